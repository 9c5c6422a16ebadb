"""Documents by number: the texts that went in, whatever the shards, and those that a window
overlaps.
"""

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.documents import Documents, document_starts
from nanogpt_dist.data.importing import import_shards
from nanogpt_dist.errors import ConfigError, UsageError
from tests.nanogpt_dist.data.test_importing import EOT, stream, write_llm_c, write_raw


@settings(max_examples=40)
@given(
    texts=st.lists(st.text(alphabet="abcé", max_size=6), min_size=1, max_size=8),
    eot=st.sampled_from(["append", "prepend"]),
    cut=st.integers(1, 20),
    window=st.tuples(st.integers(0, 50), st.integers(1, 20)),
)
def test_documents_come_back_as_they_were(
    texts: list[str],
    eot: str,
    cut: int,
    window: tuple[int, int],
) -> None:
    ids = stream(texts, eot)
    with tempfile.TemporaryDirectory() as name:
        for index, start in enumerate(range(0, len(ids), cut)):
            form = write_raw if index % 2 else write_llm_c
            form(Path(name, f"train_{index}.bin"), ids[start : start + cut])
        write_raw(Path(name, "val.bin"), ids)
        import_shards([Path(name)], "byte", eot=eot)  # type: ignore[arg-type]
        data = DataFolder.open(name)
        documents = Documents(data, "train")
        assert [data.tokenizer.decode(documents.ids(i)) for i in range(len(documents))] == texts
        start = min(window[0], len(ids) - 1)
        length = min(window[1], len(ids) - start)
        of_each = [
            i
            for i, (a, b) in enumerate(pairwise([0, *documents.ends.tolist()]))
            for _ in range(a, b)
        ]
        assert documents.overlapping(start, length) == (of_each[start], of_each[start + length - 1])
        for wrong in (-1, len(texts)):
            with pytest.raises(
                UsageError, match=f"train has {len(texts)}; give 0 to {len(texts) - 1}"
            ):
                documents.ids(wrong)


def test_only_end_of_text_is_taken_off(tmp_path: Path) -> None:
    ids = np.array([EOT, 1, 2, EOT, 3, 4])  # the last document is cut off
    for name in ("train.bin", "val.bin"):
        write_raw(tmp_path / name, ids)
    import_shards([tmp_path], "byte")
    documents = Documents(DataFolder.open(tmp_path), "val")
    assert [documents.ids(i).tolist() for i in range(3)] == [[], [1, 2], [3, 4]]


@pytest.mark.parametrize("eot", ["append", "prepend"])
def test_a_window_that_is_aligned_begins_where_a_document_does(tmp_path: Path, eot: str) -> None:
    ids = stream(["abc", "", "defg", "h", "ijklmnopq"], eot)
    for name in ("train.bin", "val.bin"):
        write_raw(tmp_path / name, ids)
    import_shards([tmp_path], "byte", eot=eot)  # type: ignore[arg-type]
    data = DataFolder.open(tmp_path)
    split, begins = data.split("train"), {0, *Documents(data, "train").ends.tolist()}
    starts, length = document_starts(data), 4
    for start in range(len(ids) - length):
        wanted = [at for at in range(start, start + length) if at in begins]
        expected = wanted[0] if wanted and wanted[0] + length < len(ids) else start
        assert starts.align(split, start, length) == expected


def test_data_without_an_end_of_text_cannot_be_aligned(corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"no end of text .*: leave --align-documents out"):
        document_starts(DataFolder.open(corpus))
