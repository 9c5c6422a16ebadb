"""The files of a corpus as a recipe takes them."""

from pathlib import Path

from tests.conftest import build, write_jsonl


def test_parts_of_a_mix_may_have_their_text_in_other_columns(tmp_path: Path) -> None:
    web = write_jsonl(tmp_path / "web.jsonl", [f"page {n}" for n in range(99)])
    code = write_jsonl(
        tmp_path / "code.jsonl", [f"def f{n}()" for n in range(99)], column="content"
    )
    notes: list[str] = []
    manifest = build(
        "text",
        tmp_path / "out",
        mix=f"{web}=0.5,{code}=0.5",
        column="content",
        tokenizer="byte",
        val_fraction=0.2,
        workers=1,
        note=notes.append,
    )
    assert {source.column for source in manifest.sources} == {"text", "content"}
    assert any("web.jsonl has no text in content" in note for note in notes)
