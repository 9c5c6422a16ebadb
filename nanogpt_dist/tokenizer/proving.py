"""What a pattern of others' has to be: short, a regular expression, and without loss.

The longest of the known patterns has 274 characters and one counted repeat. An engine takes up to
10 MB for each counted repeat that stands alone, as in a look-around.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nanogpt_dist.errors import BadDataError, clipped

MAX_CHARS = 1000  # of all patterns of a tokenizer
MAX_REPEATS = 16  # counted ones, as {1,3}, in all of them
_REPEAT = re.compile(r"(?<!\\x)\{\s*,?\s*\d")
# The id of no text: with it in the vocabulary, a match of nothing is told and is no panic.
_NOTHING = 256


@contextmanager
def panics_told(library: str = "Hugging Face's tokenizers") -> Iterator[None]:
    """Turns a panic of the library's, which is no Exception, into BadDataError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise BadDataError(f"{library} breaks down over it ({clipped(str(error), 60)})") from None


def check_size(texts: Iterable[str]) -> None:
    """Check that patterns are no larger than any that is in use.

    Raises BadDataError: a few KB of them can take gigabytes and minutes.
    """
    whole = "\n".join(texts)
    if len(whole) > MAX_CHARS:
        raise BadDataError(
            f"its pattern has more than {MAX_CHARS:,} characters, as none in use has"
        )
    if len(_REPEAT.findall(whole)) > MAX_REPEATS:
        raise BadDataError(f"its pattern has more than {MAX_REPEATS} counted repeats such as {{2}}")


def regexes(content: Any) -> Iterator[str]:
    """The regular expressions in the steps of a tokenizer.json, at any depth."""
    if isinstance(content, dict):
        if isinstance(regex := content.get("Regex"), str):
            yield regex
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            yield from regexes(value)


def check_pattern(text: str, probe: str) -> None:
    """Check that tiktoken reads a pattern, and that it cuts `probe` into parts that are all of it.

    Whether it comes to an end over it is not told here. Raises BadDataError.
    """
    import tiktoken

    check_size([text])
    ranks = {**{bytes([i]): i for i in range(256)}, b"": _NOTHING}
    try:
        with panics_told("tiktoken"):
            encoding = tiktoken.Encoding(
                "probe", pat_str=text, mergeable_ranks=ranks, special_tokens={}
            )
    except ValueError:
        raise BadDataError("its pattern is no regular expression that tiktoken reads") from None
    try:
        with panics_told("tiktoken"):
            ids = encoding.encode(probe, disallowed_special=())
    except ValueError:  # it gives up: Tokenizer.probe() tells it
        return
    if _NOTHING in ids:
        raise BadDataError("its pattern matches the empty string, of which no token is made")
    if bytes(ids) != probe.encode():
        raise BadDataError("its pattern leaves out part of a text, which would be lost")
