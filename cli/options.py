"""Flags made from the settings in config/, so that a setting is declared once."""

import contextlib
import copy
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, get_type_hints

import typer
from pydantic import BaseModel

from cli import completing
from cli.terminal import echo
from nanogpt_dist.config import ADDRESS, ALIASES, AUTO, TrainConfig, by_own_names
from nanogpt_dist.errors import UsageError

# `--learning_rate` is `--learning-rate`, as in nanoGPT.
CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),
}

Preset = Annotated[
    str,
    typer.Argument(
        metavar="PRESET|FILE",
        autocompletion=completing.presets,
        help="A preset, a .toml file of settings, or one of nanoGPT's .py configs.",
    ),
]
Settings = dict[str, Any]  # those given as flags, which go on top
InitFrom = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Foreign weights: gpt2 … gpt2-xl, OWNER/NAME on the hub, or a folder.",
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="auto: cuda, else mps, else cpu.")
]
WeightsOf = Annotated[
    Literal["model", "ema"],
    typer.Option(
        "--weights", help="Of a checkpoint; ema: averaged over the steps of a run with --ema-decay."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead.")]


def takes_settings(
    model: type[BaseModel],
    panel: str | None = None,
    groups: Collection[str] = (),
    with_defaults: bool = False,
    without: Collection[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each setting of `model`, with its type and help.

    panel: overrides their groups in --help.

    groups: of which settings; none given: of all. without: settings that are left out.
    with_defaults: flags have the settings' defaults and bounds; else those of a preset may stand
    below them, and the model holds the bounds.

    The command's parameter `settings` receives {name: value} of those that are not None.
    """

    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in without and (not groups or _group(field) in groups):
            for alias in (alias for alias, own in ALIASES.items() if own == name):
                older = f"Older name of --{alias.replace('_', '-')}."
                fields[alias], field = field, copy.copy(field)
                field.description = older
            fields[name] = field

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            flags = {name: given.pop(name) for name in fields}
            settings = {name: value for name, value in flags.items() if value is not None}
            function(**given, settings=by_own_names(settings))

        hints = get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(function).parameters.items()
            if name != "settings"
        ]
        flag = _flag_with_default if with_defaults else _flag
        parameters = own + [flag(name, field, panel) for name, field in fields.items()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _flag(name: str, field: Any, panel: str | None) -> inspect.Parameter:
    group = panel or _group(field)
    default = (
        "" if field.default is None else f" [dim]\\[default: {str(field.default).lower()}][/dim]"
    )
    # a number or the word
    words: dict[str, Any] = (
        {"parser": _number_or_auto, "metavar": "INTEGER|auto"} if name in AUTO else {}
    )
    option = typer.Option(
        help=f"{field.description}{default}", rich_help_panel=group, show_default=False, **words
    )
    annotation = Annotated[field.annotation | None, option]  # unset: what the preset says
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _number_or_auto(text: str) -> int | str:
    """Raises typer.BadParameter."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor auto.") from None


def _flag_with_default(name: str, field: Any, panel: str | None) -> inspect.Parameter:
    bounds = {type(bound).__name__: bound for bound in field.metadata}
    option = typer.Option(
        help=field.description,
        rich_help_panel=panel or _group(field),
        metavar=field.json_schema_extra.get("metavar"),
        min=bounds["Ge"].ge if "Ge" in bounds else None,
        max=bounds["Le"].le if "Le" in bounds else None,
    )
    annotation = Annotated[field.annotation, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation
    )


def _group(field: Any) -> str:
    return field.json_schema_extra["group"]


def nanogpt_style(arguments: list[str]) -> list[str]:
    """nanoGPT's --compile=False as our --no-compile, for settings that are on or off."""
    switches = {
        name
        for name, field in TrainConfig.model_fields.items()
        if field.annotation in (bool, bool | None)
    }
    switches |= {alias for alias, name in ALIASES.items() if name in switches}
    result = []
    for argument in arguments:
        match = re.fullmatch(r"--([A-Za-z][\w-]*)=(true|false)", argument, re.IGNORECASE)
        if match and match[1].replace("-", "_") in switches:
            result.append(f"--{match[1]}" if match[2].lower() == "true" else f"--no-{match[1]}")
        else:
            result.append(argument)
    return result


def with_paths(arguments: list[str]) -> list[str]:
    """Write out `~/` where a shell does not: in --out=~/x, in quotes, behind a comma.

    Raises UsageError for an address where a path is wanted, as s3://bucket/run. A prompt is text:
    only FILE:~/x in it.
    """
    result = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        joined = re.match(r"--[\w-]+=", argument)
        flag, equals, value = argument.partition("=") if joined else (before, "", argument)
        is_text = flag in ("--prompt", "--sample-prompt") or (
            flag == "--text" and "attention" in arguments
        )
        if not is_text and ADDRESS.match(value):
            raise UsageError(_advice(flag if flag.startswith("--") else "", value))
        tilde = r"^(FILE:)~(?=/)" if is_text else r"(^|[,=])~(?=/|$)"
        value = re.sub(tilde, lambda found: found[1] + os.path.expanduser("~"), value)
        result.append(f"{flag}{equals}{value}" if equals else value)
    return result


def _advice(flag: str, address: str) -> str:
    on_hub = re.match(
        r"https?://huggingface\.co/(datasets/)?([\w.-]+/[\w.-]+)", address, re.IGNORECASE
    )
    if on_hub:
        instead = f"nanogpt prepare hf {on_hub[2]}" if on_hub[1] else f"--init-from {on_hub[2]}"
        return f"{address[:80]} is an address; of the hub's repositories give the name: {instead}"
    what = f"{flag} {address[:80]} is an address, not a path".strip()
    return f"{what}; mount or download it, and give a path"


def refuse_nanogpts(arguments: list[str]) -> None:
    """Raises UsageError for a flag of nanoGPT's that is something else here, with what it is."""
    from nanogpt_dist.interop.nanogpt_config import ELSEWHERE

    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name in ELSEWHERE:
            raise UsageError(f"no --{name} here: {ELSEWHERE[name]}")


def refuse_both(run: object, init_from: str | None) -> None:
    """Raises UsageError where a run is named and foreign weights are, too."""
    if run and init_from:
        raise UsageError("a run, or --init-from with foreign weights: one of them at a time")


def refuse_ema(weights: str, foreign: object) -> None:
    """Raises UsageError where averaged weights of `foreign` ones are asked for."""
    if foreign and weights == "ema":
        raise UsageError("--weights ema is for a run's checkpoint: leave it out")


def note(text: str) -> None:
    """Tell something on stderr, beside what a command prints."""
    echo(f"note: {text}", err=True)


def warn(text: str) -> None:
    """Warn on stderr, beside what a command prints."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        echo(f"warning: {text}", err=True)


def rank() -> int:
    """This process's rank under torchrun; 0 where RANK is left over from something else."""
    number, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    known = all(re.fullmatch("[0-9]{1,9}", text) for text in (number, size))
    return int(number) if known and int(number) < int(size) else 0


def flush_or_drop() -> None:
    """Write out standard output.

    What it cannot take is dropped, or the interpreter would fail at its last flush.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def refuse_empty(arguments: list[str]) -> None:
    """Raises UsageError for an empty argument: mostly a shell variable that is not set.

    A prompt may be empty.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag = (
            before
            if argument == ""
            else argument.removesuffix("=")
            if re.fullmatch(r"--[\w-]+=", argument)
            else None
        )
        if flag is not None and flag != "--prompt":
            raise UsageError(
                f"nothing stands behind {flag or 'nanogpt'}: is a variable unset? Leave it out or "
                "fill it in"
            )
