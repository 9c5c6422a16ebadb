"""The messages that the pages quote, in tables of what can go wrong and as lines that a command
prints, are those of the program.
"""

import ast
import functools
import re

import pytest

from tests.conftest import CLONE

FOLDERS = ("tutorial", "how-to", "explanations")
CODE = ("cli", "launch", "nanogpt_dist", "prepare")
WORDS = 3  # in a row, which make a phrase
SHARE = 0.6  # of the phrases of a quoted message, at least, stand in one file of the program


PRINTED = r"(nanogpt: (?:error: )?|note: |out/\w+: |resuming is exact).*"


def quoted() -> list[tuple[str, str]]:
    """(page, message) of each table whose first column is headed `message`, and of each line that
    a command is said to print for people.
    """
    found = []
    pages = [page for name in FOLDERS for page in sorted((CLONE / "docs" / name).glob("*.md"))]
    for page in pages:
        in_table = False
        for line in page.read_text("utf-8").splitlines():
            in_table = line.startswith("| message ") or (in_table and line.startswith("|"))
            if in_table and (cell := re.match(r"\| `([^`]{20,})`", line)):
                found.append((page.name, cell[1]))
            elif printed := re.fullmatch(PRINTED, line):
                found.append((page.name, line.removeprefix(printed[1])))
    return found


def phrases(text: str) -> set[tuple[str, ...]]:
    """All rows of WORDS words in `text` with neither a placeholder, a number nor a path in them."""
    found = set()
    for run in re.split(r"\{[^}]*\}|\n|…|\S*[\d/\x00]\S*", text):
        words = re.findall(r"[\w-]+", run)
        found |= {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}
    return found


@functools.cache
def of_the_program() -> list[set[tuple[str, ...]]]:
    """The phrases of all texts of each source file."""
    return [
        {phrase for text in _texts(file.read_text("utf-8")) for phrase in phrases(text)}
        for folder in CODE
        for file in (CLONE / folder).rglob("*.py")
    ]


def _texts(source: str) -> list[str]:
    nodes = ast.walk(ast.parse(source))
    return [
        "".join(
            value.value if isinstance(value, ast.Constant) else "\0"
            for value in (node.values if isinstance(node, ast.JoinedStr) else [node])
        )
        for node in nodes
        if isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]


def test_there_is_something_to_check() -> None:
    assert len(quoted()) >= 50


@pytest.mark.parametrize(("page", "message"), quoted())
def test_the_program_says_so(page: str, message: str) -> None:
    said = phrases(message.removeprefix("warning: "))
    share = max(len(said & known) for known in of_the_program()) / max(1, len(said))
    assert share >= SHARE or not said, (
        f"{page} quotes {message!r}, which no file of the program says"
    )
