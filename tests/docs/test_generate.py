"""The generated reference has a line for everything that the program has."""

import re
from pathlib import Path

import pytest

from docs.generate import pages, write
from docs.generate.commands import walk
from docs.generate.memory import CARDS_GB, SHOWN
from docs.generate.text import escape, prose
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import Exit
from nanogpt_dist.presets import PRESETS
from prepare.corpora import CORPORA

PAGES = pages()


@pytest.mark.parametrize(("name", "command", "_"), list(walk()), ids=lambda each: str(each)[:40])
def test_every_command_has_its_section_with_all_its_options(
    name: str,
    command: object,
    _: object,
) -> None:
    page = PAGES[f"commands/{name.split()[1]}.md"]
    section = page.split(f"({name.replace(' ', '-')})=\n")[1].split("\n(nanogpt-")[0]
    for parameter in command.params:  # type: ignore[attr-defined]
        for option in [*parameter.opts, *parameter.secondary_opts]:
            shown = parameter.metavar if parameter.param_type_name == "argument" else option
            assert f"{shown}" in section, option


def test_every_setting_has_its_entry_with_its_default() -> None:
    for name, field in TrainConfig.model_fields.items():
        entry = PAGES["settings.md"].split(f"`{name}`{{#setting-{name}}}")[1].split("\n\n")[0]
        default = str(field.default)
        assert "unset" in entry if field.default is None else default.lower() in entry.lower()
        assert escape(field.description or "") in entry
        assert "fixed for a run" in entry or "may change on resume" in entry


def test_every_preset_corpus_and_exit_code_has_its_entry() -> None:
    assert all(f"(preset-{name})=" in PAGES["presets.md"] for name in PRESETS)
    assert all(f"## {name}\n" in PAGES["corpora.md"] for name in CORPORA)
    assert all(f"| `{int(code)}` | {code.meaning}" in PAGES["exit-codes.md"] for code in Exit)


def test_no_gpu_is_said_to_hold_more_than_it_has() -> None:
    rows = re.findall(r"^\| (\d+) GB \| (.*) \| (.*) \|$", PAGES["memory.md"], re.MULTILINE)
    assert len(rows) == len(SHOWN) * len(CARDS_GB)
    cells = [(int(card), cell) for card, *cells in rows for cell in cells]
    assert sum(cell == "does not fit" for _, cell in cells) == 3
    for card, cell in cells:
        if cell != "does not fit":
            assert float(cell.rsplit(": ")[1]) <= card, (card, cell)


def test_what_markdown_would_take_as_its_own_is_shown_as_it_is() -> None:
    assert escape("a <b> | `<c>` n_head $x *") == r"a \<b\> \| `<c>` n\_head \$x \*"
    assert prose("One\nline.\n\nAnother.") == "One line.\n\nAnother.\n"


def test_the_examples_of_a_command_are_a_block() -> None:
    page = PAGES["commands/train.md"]
    assert re.search(r"(?s)## Examples\n\n```text\n\$ (nanogpt|torchrun) [^`]+\n```\n", page)


def test_a_page_is_written_once_and_an_old_one_removed(tmp_path: Path) -> None:
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands/gone.md").write_text("# Gone")
    write(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert len(written) == len(PAGES)
    write(tmp_path)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}


def test_the_drawing_of_the_tutorial_has_the_numbers_that_it_counts() -> None:
    assert "38,633,472" in PAGES["gpt2-124m.txt"]
    assert "7,079,424 each, 84,953,088 together" in PAGES["gpt2-124m.txt"]
