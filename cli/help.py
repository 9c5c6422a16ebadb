"""How a command is declared: its help in paragraphs, and two examples at the end of it."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from cli.options import CONTEXT

DATA, MODELS, RUNS, MACHINES = "Data", "Models", "Runs", "Machines"  # panels of `nanogpt --help`
EXAMPLES = "Examples:"

Function = TypeVar("Function", bound=Callable[..., None])


class Command(TyperCommand):
    """A command whose help cuts no name short on a narrow terminal."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _fold_long_words()
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of commands whose help cuts no name short on a narrow terminal."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _fold_long_words()
        super().format_help(ctx, formatter)


def _fold_long_words() -> None:
    """Typer ends an option that its column is too narrow for with …, so that nobody can type it."""
    from rich.text import Text
    from typer import rich_utils

    class Folded(rich_utils.OptionHighlighter):
        def __call__(self, text: str | Text) -> Text:
            shown = super().__call__(text)
            shown.overflow = "fold"
            return shown

    class NegativeFolded(Folded, rich_utils.NegativeOptionHighlighter):
        highlights = rich_utils.NegativeOptionHighlighter.highlights

    rich_utils.highlighter = Folded()
    rich_utils.negative_highlighter = NegativeFolded()


def command(
    app: typer.Typer,
    name: str,
    *examples: str,
    notes: str = "",
    **options: Any,
) -> Callable[[Function], Function]:
    """Add a command to `app`, with its docstring as help, `notes` and `examples` below the options.

    options: others of typer's, as rich_help_panel.
    """

    def decorate(function: Function) -> Function:
        text, end = paragraphs(function.__doc__ or ""), epilog(*examples, notes=notes)
        declared = {"context_settings": CONTEXT, "help": text, "epilog": end, **options}
        app.command(name, cls=Command, **declared)(function)
        return function

    return decorate


def group(*examples: str) -> typer.Typer:
    """An app of subcommands, which without one shows its help."""
    return typer.Typer(
        cls=Group,
        no_args_is_help=True,
        context_settings=CONTEXT,
        epilog=epilog(*examples),
    )


def paragraphs(text: str) -> str:
    """A docstring for a terminal of any width: each paragraph is one line."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


def epilog(*examples: str, notes: str = "") -> str:
    """The end of a help text: `notes`, whose line breaks are kept, and the examples."""
    lines = "\n".join(f"$ {example}" for example in examples)
    return "\n\n".join(part for part in (notes, EXAMPLES, lines) if part)
