"""What goes to the val split, and the advice where nothing does."""

from pathlib import Path

import pytest

from nanogpt_dist.data.manifest import SplitRuleRecord
from nanogpt_dist.errors import BadDataError
from prepare.units.split import by_hash
from tests.conftest import build, write_jsonl


def test_documents_go_where_they_go_in_every_version() -> None:
    """What one version keeps for validation another does not train on."""
    rule = SplitRuleRecord(rule="documents", val_fraction=0.25, seed=2357)
    kept = [i for i in range(40) if by_hash([b"document ", str(i).encode()], rule) == "val"]
    assert kept == [8, 9, 13, 17, 18, 25, 29, 36]


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
