"""Files of JSON lines that grow are read to the last whole line, each line once."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist.storage.json_lines import JsonLines


@settings(max_examples=30)
@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5))),
    st.lists(st.integers(0, 400), max_size=5),
)
def test_lines_are_the_same_however_they_arrive(
    tmp_path_factory: pytest.TempPathFactory,
    objects: list[dict[str, object]],
    cuts: list[int],
) -> None:
    path = tmp_path_factory.mktemp("lines") / "some.jsonl"
    data = b"".join(json.dumps(each).encode() + b"\n" for each in objects)
    reader = JsonLines(path)
    assert reader.read() == []
    ends = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(ends):
        with path.open("ab") as file:
            file.write(data[start:end])
        reader.read()
    assert reader.read() == [each for each in objects if each]


def test_a_last_line_without_an_end_counts_once_it_is_whole(tmp_path: Path) -> None:
    reader = JsonLines(tmp_path / "some.jsonl")
    reader.path.write_bytes(b'{"a": 1}\n{"b": 2}')
    assert reader.read() == [{"a": 1}, {"b": 2}]
    with reader.path.open("ab") as file:
        file.write(b'\n{"c": 3}\n')
    assert reader.read() == [{"a": 1}, {"b": 2}, {"c": 3}]
