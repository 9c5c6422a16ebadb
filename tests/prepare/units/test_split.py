"""What goes to the val split, and the advice where nothing does."""

from pathlib import Path

import pytest

from nanogpt_dist.errors import BadDataError
from tests.conftest import build, write_jsonl


def test_the_advice_for_one_document_can_be_followed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "one.jsonl", ["hello world " * 9])
    with pytest.raises(BadDataError, match=r"give it as one \.txt, which is cut in two"):
        build("text", tmp_path / "out", [source], tokenizer="byte")
    text = tmp_path / "one.txt"
    text.write_text("hello world " * 9)
    assert build("text", tmp_path / "out", [text], tokenizer="byte").splits["val"].tokens
    with pytest.raises(BadDataError, match="split-by characters"):
        build("text", tmp_path / "o2", [text], tokenizer="byte", split_by="documents")
    assert (
        build("text", tmp_path / "o2", [text], tokenizer="byte", split_by="characters")
        .splits["val"]
        .tokens
    )
