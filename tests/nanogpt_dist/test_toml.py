"""TOML of anybody's takes no memory beyond its size."""

import pytest

from nanogpt_dist.toml import parse_toml


@pytest.mark.parametrize(
    "line",
    [
        "a" + ".a" * 501 + " = 1",
        "[" + '"a".' * 501 + "b]",
        "a = {" + "'a' . " * 501 + "b = 1}",
    ],
)
def test_a_key_of_many_parts_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 2 has more than 500 dots"):
        parse_toml(f"x = 1\n{line}\n")


@pytest.mark.parametrize("line", ['a = "' + "." * 600 + '"', "a = '" + "." * 600 + "'"])
def test_a_text_may_have_any_number_of_dots(line: str) -> None:
    assert parse_toml(line) == {"a": "." * 600}
    assert parse_toml("x.y = [" + "0.5, " * 499 + "]") == {"x": {"y": [0.5] * 499}}
