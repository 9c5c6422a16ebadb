"""What goes to the val split, and the advice where nothing does."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.data.manifest import SplitRuleRecord
from nanogpt_dist.errors import BadDataError
from prepare.readers.text import TextPart
from prepare.units.split import by_hash, character_border, shuffled_val_rows
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


@given(st.text("aé東🙂\n", max_size=40), st.floats(0.01, 0.99), st.integers(1, 9))
def test_the_border_between_characters_is_where_nanogpt_has_it(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    val_fraction: float,
    chunk_bytes: int,
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(text, encoding="utf-8")
    rule = SplitRuleRecord(rule="characters", val_fraction=val_fraction, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prepare.readers.text.CHUNK_BYTES", chunk_bytes)
        border = character_border(TextPart(path, "", 0, path.stat().st_size, "strict"), rule)
    assert border == len(text[: int(len(text) * (1 - val_fraction))].encode())


def test_the_drawn_rows_are_a_part_rounded_up() -> None:
    for rows, count in ((1, 1), (10, 3), (100, 25), (101, 26)):
        rule = SplitRuleRecord(rule="shuffled", val_fraction=0.25, seed=3)
        drawn = shuffled_val_rows(rows, rule)
        assert len(drawn) == count
        assert list(drawn) == sorted(set(drawn) & set(range(rows)))
    others = SplitRuleRecord(rule="shuffled", val_fraction=0.25, seed=4)
    assert not np.array_equal(drawn, shuffled_val_rows(101, others))
