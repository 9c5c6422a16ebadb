"""How text is cut into pre-tokens, and where a long text may be cut without a trace.

A pattern is known by its text, as the tiktoken library writes it: that is what tokenizer files say
and fingerprints cover. `fast` matches the same pre-tokens in less time: what needs no look-around
stands in one group, which the regular expression engine then runs as an automaton (1.7 times as
fast for GPT-2's). Tests hold each pair equal, but that only the known one takes a million
characters of white space at the end of a text.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nanogpt_dist.errors import TextError

# White space as \s sees it in these patterns; Python's own \s has \x1c-\x1f on top.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
LONG_RUN_CHARS = 65_536
# characters without a place to cut: merging them takes about 50 bytes of memory for each
MAX_UNBROKEN = 8 << 20
_LONG_RUN = re.compile(
    f"[{SPACE}](?<![{SPACE}][{SPACE}])[{SPACE}]{{{LONG_RUN_CHARS - 1},}}(?=[^{SPACE}])"
)


@dataclass(frozen=True)
class Pattern:
    """A pre-tokenizer's regular expression, and where a text may be cut under it.

    text: the pattern as it is known; fast: one that matches the same. border: a character behind
    which a pre-token ends wherever it stands; runs: whether one ends before the last character of
    white space that has text behind it.
    """

    text: str
    fast: str
    border: "re.Pattern[str] | None"
    runs: bool = False


# Letters of scripts without spaces, and marks that stand behind them. Under every pattern here a
# pre-token with such a letter ends before such a mark: only white space, an apostrophe or more
# letters and accents can go on with a word.
_CJK_LETTER = "\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4db5\u4e00-\u9fff\uac00-\ud7a3"
_CJK_MARK = (
    "\u2014\u2018-\u201d\u2026\u3001\u3002\u3008-\u3011\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
)
_BORDERS = (
    # words, numbers and marks in one line
    r"[A-Za-z](?=[0-9])|[0-9](?=[A-Za-z])|[A-Za-z0-9](?=[!-&(-/:-@\[-`{-~])",
    f"[{_CJK_LETTER}](?=[{_CJK_MARK}])",
)
_GPT2_BORDERS = (f"[^{SPACE}](?=[{SPACE}])", "[A-Za-z0-9](?=')", *_BORDERS)
# The younger patterns have line ends in one pre-token with the mark before them, and a mark with
# the word behind it; what follows the last line end of white space begins one, but o200k's has
# slashes too behind a mark and its line ends.
_IN_LINE = SPACE.replace("\t-\r", "\t\x0b\x0c")
_LINE_BORDERS = (
    f"[^{SPACE}](?=[{_IN_LINE}])",
    f"[\r\n](?=[^{SPACE}/]|[{_IN_LINE}]+[^{SPACE}])",
    *_BORDERS,
)
_LINE_BORDER = re.compile("|".join(_LINE_BORDERS))

GPT2 = Pattern(
    text=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    fast=r"""(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s""",
    border=re.compile("|".join(_GPT2_BORDERS)),
    runs=True,
)
CL100K = Pattern(
    text=r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""  # noqa: E501
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    fast=r"""(?:'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"""  # noqa: E501
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    border=_LINE_BORDER,
)
_O200K_WORDS = (
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""",
    r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
    r"""\s*[\r\n]+""",
)
_O200K_SPACE = r"""\s+(?!\S)|\s+"""
O200K = Pattern(
    text="|".join((*_O200K_WORDS, _O200K_SPACE)),
    fast=f"(?:{'|'.join(_O200K_WORDS)})|{_O200K_SPACE}",
    border=_LINE_BORDER,
)

_LLAMA_WORDS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"""  # noqa: E501
LLAMA3 = Pattern(
    text=f"{_LLAMA_WORDS}|{_O200K_SPACE}",
    fast=f"(?:{_LLAMA_WORDS})|{_O200K_SPACE}",
    border=_LINE_BORDER,
)
QWEN2 = Pattern(
    text=LLAMA3.text.replace("{1,3}", ""),
    fast=LLAMA3.fast.replace("{1,3}", ""),
    border=_LINE_BORDER,
)

KNOWN = {pattern.text: pattern for pattern in (GPT2, CL100K, O200K, LLAMA3, QWEN2)}


def pattern_of(text: str) -> Pattern:
    """The pattern of that text.

    One that is not known is matched as it is, and no text is cut for it.
    """
    return KNOWN.get(text) or Pattern(text, text, None)


def cut(text: str | Iterable[str], size: int, pattern: Pattern) -> Iterator[str]:
    """`text` in parts of about `size` characters whose ids, joined, are its ids.

    text: whole or in chunks.

    Cuts of a long run of white space keep tiktoken from failing on a million characters of it.
    Raises TextError for more than MAX_UNBROKEN characters without a place to cut.
    """
    if pattern.border is None:
        whole = text if isinstance(text, str) else "".join(text)
        if whole:
            yield whole
        return
    if isinstance(text, str) and len(text) <= min(size, LONG_RUN_CHARS):
        if text:
            yield text
        return
    rest = ""
    for chunk in (text,) if isinstance(text, str) else text:
        rest += chunk
        start = 0
        for stop in _cuts(rest, size, pattern):
            yield rest[start:stop]
            start = stop
        rest = rest[start:]
        if len(rest) > MAX_UNBROKEN:
            raise TextError(
                f"{len(rest):,} characters in which no word ends, too long for one; cut the "
                "document"
            )
    if rest:
        yield rest


def _may_hold_long_run(text: str) -> bool:
    """A quick look at places of which every long run of white space covers one."""
    step = max(1, LONG_RUN_CHARS // 2)
    return any(text[i : i + min(64, step)].isspace() for i in range(0, len(text), step))


def _cuts(text: str, size: int, pattern: Pattern) -> Iterator[int]:
    """Where to cut `text`; it may go on behind its end."""
    assert pattern.border is not None
    start = 0
    runs = (
        [run.end() - 1 for run in _LONG_RUN.finditer(text)]
        if pattern.runs and _may_hold_long_run(text)
        else []
    )
    for stop in [*runs, None]:
        end = len(text) if stop is None else stop
        while end - start > size and (border := pattern.border.search(text, start + size - 1, end)):
            start = border.end()
            yield start
        if stop is not None and stop > start:
            start = stop
            yield start
