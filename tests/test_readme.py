"""Every command that README.md and CONTRIBUTING.md show is one that exists."""

import re
import shlex

import pytest
import typer

from cli.main import app
from cli.options import nanogpt_style
from tests.conftest import CLONE

LINES = [
    line
    for name in ("README.md", "CONTRIBUTING.md")
    for line in (CLONE / name).read_text("utf-8").splitlines()
]
TYPED = sorted(
    {line.split(" #")[0].strip() for line in LINES if re.match(r"    (\S+ .*)?nanogpt [a-z]", line)}
)
MADE = sorted({line.split()[1] for line in LINES if re.match(r"    make [a-z]", line)})


def test_there_is_something_to_check() -> None:
    assert len(TYPED) >= 15
    assert {"quickstart", "test", "setup", "check"} <= set(MADE)


@pytest.mark.parametrize("typed", TYPED)
def test_the_command_line_is_understood(typed: str) -> None:
    words = shlex.split(typed.split(" > ")[0])
    understand(words[words.index("nanogpt") + 1 :])


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


@pytest.mark.parametrize("target", MADE)
def test_the_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (CLONE / "Makefile").read_text("utf-8"), re.MULTILINE)
