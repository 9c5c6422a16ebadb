"""Texts for those who want no shards: what is wrong with a file is told without flags of
`nanogpt prepare`.
"""

import ast
from pathlib import Path

import pytest

from nanogpt_dist.errors import BadDataError
from prepare.readers import documents, json_field, text
from prepare.texts import PREPARES, read_texts


@pytest.mark.parametrize("module", [documents, json_field, text])
def test_each_advice_of_prepares_is_known(module: object) -> None:
    source = Path(str(module.__file__)).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    literals = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]
    advices = [text for text in literals if "give --errors" in text]
    assert advices
    for advice in advices:
        assert "--errors" not in PREPARES.sub("", advice)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"caf\xe9\n", r"byte 0xe9 is not UTF-8; convert the file$"),
        (
            "a.jsonl",
            b'{"text": 7}\n',
            r"field text holds a number, not text; give another --column$",
        ),
        ("b.jsonl", b"[7]\n", r"mend it$"),
    ],
)
def test_what_is_no_text_is_told_without_prepares_flags(
    tmp_path: Path,
    name: str,
    data: bytes,
    message: str,
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadDataError, match=message):
        list(read_texts([str(tmp_path / name)], "text"))
