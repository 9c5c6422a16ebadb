"""The pages of the reference that the program itself can tell, so that they cannot drift from it.

Nothing that is written here is committed.
"""

from pathlib import Path

from docs.generate.catalogues import corpora_page, exit_codes_page, tokenizers_page
from docs.generate.commands import command_pages
from docs.generate.drawing import drawing
from docs.generate.memory import memory_page
from docs.generate.settings import presets_page, settings_page


def pages() -> dict[str, str]:
    """The text of each page, by its path below reference/generated."""
    return {
        **command_pages(),
        "settings.md": settings_page(),
        "presets.md": presets_page(),
        "memory.md": memory_page(),
        "corpora.md": corpora_page(),
        "tokenizers.md": tokenizers_page(),
        "exit-codes.md": exit_codes_page(),
        "gpt2-124m.txt": drawing("gpt2-124m"),
    }


def write(folder: Path) -> None:
    """Write all pages into `folder`; one that has not changed is left alone, an old one removed."""
    texts = {folder / name: text for name, text in pages().items()}
    for path in set(folder.rglob("*.*")) - set(texts):
        path.unlink()
    for path, text in texts.items():
        if not path.is_file() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
