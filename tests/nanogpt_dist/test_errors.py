"""The one line that an error is: what is wrong and what to type stay whole, whatever is long
between them.
"""

from pathlib import Path

import pytest

from nanogpt_dist.errors import MAX_LINE, Exit, clipped, explain, one_line

DEEP = "/a-rather-long-folder-name/" + "and-one-more/" * 12 + "run"
REASON = (
    "HTTPSConnectionPool(host='huggingface.co', port=443): [Errno -2] Name or service not known "
    * 3
)


@pytest.mark.parametrize("at_most", [MAX_LINE, MAX_LINE - len("nanogpt: error (rank 1023): ")])
@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        (
            f"{DEEP} holds another run; give another --out-dir",
            "…",
            "/run holds another run; give another --out-dir",
        ),
        (f"cannot read '{DEEP}'; type that again", "cannot read '…", "/run'; type that again"),
        (f"{DEEP}/a, {DEEP}/b and {DEEP}/c differ; keep one", "…", "/c differ; keep one"),
        (
            f"no preset {'x' * 500!r}; type nanogpt train gpt2",
            "no preset 'xxx",
            "x…'; type nanogpt train gpt2",
        ),
        (
            f"hub unavailable: {REASON}; run it again",
            "hub unavailable: HTTPSConnectionPool",
            " …; run it again",
        ),
        (
            f"a run is there; type nanogpt train {DEEP}",
            "a run is there; type nanogpt train …",
            "/run",
        ),
        ("word " * 100, "word word", "word word"),
        ("x" * 500, "xxx", "x…"),
    ],
)
def test_a_long_error_line_keeps_what_is_wrong_and_what_to_type(
    text: str,
    first: str,
    last: str,
    at_most: int,
) -> None:
    line = one_line(text, at_most)
    assert at_most - 60 < len(line) <= at_most
    assert line.startswith(first)
    assert line.endswith(last)


def test_a_reason_that_is_clipped_ends_between_words() -> None:
    assert clipped("Temporary failure in name resolution", 24) == "Temporary failure in …"
    assert clipped("short", 24) == "short"


def test_a_link_to_itself_is_no_bug(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a")
    with pytest.raises((OSError, RuntimeError)) as raised:
        (tmp_path / "a").resolve(strict=True)
    code, line = explain(raised.value)
    assert code == Exit.IO_ERROR
    assert str(tmp_path / "a") in line
