"""What is decided before the first document is read, and what does not go together."""

from pathlib import Path

import pytest

from nanogpt_dist.errors import BadDataError, UsageError
from tests.conftest import build, write_jsonl


def test_documents_do_not_limit_a_mix(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(500)])
    with pytest.raises(UsageError, match="give --max-tokens"):
        build("text", tmp_path / "out", mix=f"{source}=0.5,python-stdlib=0.5", max_documents=5)


def test_one_text_may_be_cut_in_two(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("some text " * 100)
    with pytest.raises(BadDataError, match="for a single text type --split-by characters"):
        build("text", tmp_path / "out", [tmp_path / "a.md"], tokenizer="byte")
    manifest = build(
        "text", tmp_path / "out", [tmp_path / "a.md"], tokenizer="byte", split_by="characters"
    )
    assert (manifest.splits["train"].tokens, manifest.splits["val"].tokens) == (900, 100)
