"""JSON of others is read as deep as it can be written again, and no deeper."""

import json
from pathlib import Path

import pytest

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.json_lines import JsonLines
from nanogpt_dist.storage.shallow_json import DEEPEST, parse_json


def nested(depth: int) -> str:
    half = depth // 2
    return '{"a": [' * half + "1" + "]}" * half


@pytest.mark.parametrize("text", ["[1, 2.5]", '{"a": "[[[["}', "null", "[" * 60 + "]" * 60])
def test_usual_json_is_read(text: str) -> None:
    assert parse_json(text.encode()) == json.loads(text)
    many = json.dumps([json.loads(text)] * 100)
    assert parse_json(many.encode()) == json.loads(many)


def test_the_deepest_is_read_and_the_next_is_not() -> None:
    assert parse_json(nested(DEEPEST).encode())
    for text in (nested(DEEPEST + 2), nested(900), "[" * 900 + "]" * 900, "[" * 10**6):
        with pytest.raises(ValueError, match=r"nested too deep|Expecting"):
            parse_json(text.encode())
    for depth in (DEEPEST, DEEPEST + 1):  # with a list beside, and a number in the innermost
        text = b"[[]," + b"[" * (depth - 1) + b"1" + b"]" * depth
        if depth == DEEPEST:
            assert parse_json(text)[0] == []
        else:
            with pytest.raises(ValueError, match="nested too deep"):
                parse_json(text)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_without_end_are_refused_where_they_are_not_wanted(number: str) -> None:
    parse_json(number.encode())
    with pytest.raises(ValueError, match=number):
        parse_json(f'{{"a": {number}}}'.encode(), finite=True)
    assert parse_json(b"[1.5, 2]", finite=True) == [1.5, 2]


def test_what_is_read_of_a_run_folder_can_be_written_again(tmp_path: Path) -> None:
    deep = nested(900)
    (tmp_path / "events.jsonl").write_text(f'{{"rank": {deep}}}\n{{"rank": [[1]]}}\n')
    read = JsonLines(tmp_path / "events.jsonl").read()
    assert run_folder.to_json({"events": read}) == '{"events": [{"rank": [[1]]}]}'
    for name, advice in (("run.json", "remove it"), ("step-00000004.eval.json", "remove it")):
        (tmp_path / name).write_text(f'{{"x": {deep}}}')
        told = rf"{name} cannot be read: nested too deep; {advice}"
        with pytest.raises(BadDataError, match=told):
            run_folder.read_json(tmp_path / name)
