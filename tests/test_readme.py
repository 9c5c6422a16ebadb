"""README.md, CONTRIBUTING.md and the docs show commands that exist, and links that lead somewhere.

tests/docs/test_commands.py runs those commands that can be run here.
"""

import re
import shlex

import pytest
import typer

from cli.main import app
from cli.options import nanogpt_style
from tests.conftest import CLONE

GENERATED = ("docs/_build", "docs/reference/generated")
PAGES = [
    CLONE / "README.md",
    CLONE / "CONTRIBUTING.md",
    *(
        path
        for path in sorted((CLONE / "docs").rglob("*.md"))
        if not path.relative_to(CLONE).as_posix().startswith(GENERATED)
    ),
]
SHELL = ("", "sh", "bash", "console")  # languages of blocks in which commands stand
MAX_WORDS = 900  # of README.md


def typed_lines(text: str) -> list[str]:
    """The lines that a page tells to type: indented by four, or in a fenced block of a shell.

    In a block of text they stand behind a $, with what they print below.
    """
    found, language = [], None
    for line in text.splitlines():
        if fence := re.match(r"\s*(?:```+|:::+)\{?([\w-]*)", line):
            language = fence[1] if language is None else None
        elif language in SHELL or (language is None and line.startswith("    ")):
            found.append(line.strip())
        elif language == "text" and line.startswith("$ "):
            found.append(line)
    return "\n".join(line.removeprefix("$ ") for line in found).replace("\\\n", "").splitlines()


def command_of(line: str) -> str | None:
    """The line without its comment, if it types `nanogpt COMMAND`; None: it does not."""
    line = line.split(" #")[0].strip()
    return line if re.match(r"(\S+ .*)?(?<!\()nanogpt [a-z]", line) else None


def commands_in(words: list[str]) -> list[list[str]]:
    """What stands behind each `nanogpt` that is typed in a line, up to the next sign of a shell."""
    found: list[list[str]] = []
    open_ = False
    for word in words:
        if word in ("|", ">", "&&", "||", ";", "do"):
            open_ = False
        elif open_:
            found[-1].append(word)
        elif word in ("nanogpt", "./nanogpt", "nanogpt_dist"):
            found.append([])
            open_ = True
    return found


LINES = [line for page in PAGES for line in typed_lines(page.read_text("utf-8"))]
TYPED = sorted({command for line in LINES if (command := command_of(line))})
MADE = sorted({line.split()[1] for line in LINES if re.match(r"make [a-z]", line)})
NAMED = sorted(
    {
        named
        for page in PAGES
        for named in re.findall(r"`([^`\n]*\bnanogpt [a-z][^`\n]*)`", page.read_text("utf-8"))
    }
)
# --help, or an argument that a sentence leaves out
INCOMPLETE = ("Exit", "MissingParameter", "BadOptionUsage", "NoArgsIsHelpError")
LINK = r"\]\(([^)#\s]+\.(?:md|svg|png|py|ipynb|toml))(?:#[^)]*)?\)"
LINKS = sorted(
    {
        (page.relative_to(CLONE).as_posix(), target)
        for page in PAGES
        for target in re.findall(LINK, page.read_text("utf-8"))
        if "://" not in target
    }
)


def test_there_is_something_to_check() -> None:
    assert len(TYPED) >= 60
    assert len(LINKS) >= 20
    assert {"quickstart", "test", "setup", "check", "docs"} <= set(MADE)


def test_lines_are_found_in_every_kind_of_block() -> None:
    page = (
        "    nanogpt eval   # why\n\n```sh\nnanogpt train \\\n  quickstart\n```\n"
        "```text\n$ nanogpt sample\nnanogpt: error\n```\n```python\nnanogpt bench\n```\n"
    )
    assert [command_of(line) for line in typed_lines(page)] == [
        *("nanogpt eval", "nanogpt train quickstart", "nanogpt sample")
    ]
    words = shlex.split("until nanogpt eval a > b ; do torchrun nanogpt train ; done")
    assert commands_in(words) == [["eval", "a"], ["train"]]


def test_the_readme_is_short() -> None:
    assert len((CLONE / "README.md").read_text("utf-8").split()) <= MAX_WORDS


@pytest.mark.parametrize("typed", TYPED)
def test_the_command_line_is_understood(typed: str) -> None:
    commands = commands_in(shlex.split(typed.replace(";", " ; ")))
    assert commands
    for words in commands:
        understand(words)


def understand(words: list[str]) -> None:
    """Parse what is typed behind `nanogpt`, to the last command in it."""
    arguments = nanogpt_style(words)
    group = typer.main.get_command(app)
    context = group.make_context("nanogpt", arguments)
    while hasattr(group, "resolve_command"):
        name, command, rest = group.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert command is not None
        context = command.make_context(name, rest, parent=context)
        group = command


@pytest.mark.parametrize("named", NAMED)
def test_the_command_that_a_sentence_names_exists(named: str) -> None:
    """It may leave arguments out: `nanogpt verify`."""
    for words in commands_in(shlex.split(named)):
        try:
            understand(words)
        except (typer.Exit, typer.TyperException) as error:
            if type(error).__name__ not in INCOMPLETE:
                raise


@pytest.mark.parametrize("target", MADE)
def test_the_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (CLONE / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_what_is_linked_exists(page: str, target: str) -> None:
    path = (CLONE / page).parent / target
    assert path.exists() or path.resolve().is_relative_to(CLONE / "docs/reference/generated")
