"""`nanogpt sample`: text from a checkpoint."""

import os
import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from cli import completing
from cli.options import Device, InitFrom, Json, WeightsOf, refuse_both, refuse_ema, warn
from cli.terminal import echo, echo_text
from nanogpt_dist.errors import BadDataError, MissingInputError, UsageError
from nanogpt_dist.generation.settings import Settings
from nanogpt_dist.storage.run_checkpoints import read_checkpoint

if TYPE_CHECKING:
    from nanogpt_dist.api import Choices, Model

RULE = "─" * 40  # between samples


def sample(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|CHECKPOINT",
            autocompletion=completing.runs,
            help="Unset: the newest run under out/.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to go on from; FILE:path, or FILE:- for standard input; repeatable. Unset: "
            "a line break."
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(min=1, help="Samples to draw, after each prompt.")
    ] = 1,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest sample, in tokens.")
    ] = Settings.max_new_tokens,
    temperature: Annotated[
        float,
        typer.Option(min=0, max=1e6, help="Below 1: more cautious; 0: always the likeliest token."),
    ] = Settings.temperature,
    top_k: Annotated[
        int, typer.Option(min=0, help="Choose among the k likeliest tokens; 0: among all.")
    ] = cast(int, Settings.top_k),
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Choose among the likeliest tokens of this total probability."
        ),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End a sample before this text; may be given again.")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**63 - 1, help="Equal seeds draw equal samples, however many at a time."
        ),
    ] = Settings.seed,
    init_from: InitFrom = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print each sample while it comes.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run, the checkpoint with the lowest val loss.")
    ] = False,
    weights: WeightsOf = "model",
    device: Device = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "int8"],
        typer.Option(
            help="Format of the weights; auto: bfloat16 where the device is fast in it, but "
            "float32 at temperature 0, which is exact."
        ),
    ] = "auto",
    json: Json = False,
) -> None:
    """Draw text from a checkpoint, or from weights of Hugging Face's.

    A sample ends at the end-of-text token, at --stop, or at --max-new-tokens.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("sample needs one process only; leave torchrun out")
    if stream and json:
        raise UsageError(
            "--stream prints text as it comes, --json one object at the end: choose one"
        )
    refuse_both(target, init_from)
    if init_from and best:
        raise UsageError("--best chooses among a run's checkpoints: leave it out")
    refuse_ema(weights, init_from)
    prompts: list[str | None] = [read_prompt(each) for each in prompt] if prompt else [None]
    choices: Choices = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop": tuple(stop or ()),
        "seed": seed,
    }
    from nanogpt_dist.api import Model

    if init_from:
        model = Model.of_pretrained(init_from, device, dtype)
    else:
        model = read_checkpoint(
            target, lambda found: Model.of_checkpoint(found, device, dtype, weights), best, warn
        )
    numbers = model.prepare_weights(temperature)
    averaged = "averaged " if weights == "ema" else ""
    echo(f"sampling from {model.name}, {averaged}weights in {numbers}", err=True)
    if stream:
        _print_stream(model, prompts, num_samples, choices)
        return
    samples = model.samples(prompts, num_samples, **choices)
    if json:
        echo(dumps({"samples": [asdict(each) for each in samples], "checkpoint": model.name}))
        return
    echo_text(f"\n{RULE}\n".join(each.prompt + each.text for each in samples))


def _print_stream(
    model: "Model",
    prompts: list[str | None],
    num_samples: int,
    choices: "Choices",
) -> None:
    """Print each piece when it comes; samples stand one below the other."""
    shown = 0
    echo_text(model.prompt_text(prompts[0]), nl=False)
    for number, piece in model.stream_samples(prompts, num_samples, **choices):
        if number != shown:
            prompt = model.prompt_text(prompts[number // num_samples])
            echo_text(f"\n{RULE}\n{prompt}", nl=False)
            shown = number
        echo_text(piece, nl=False)
    echo("")


def read_prompt(prompt: str) -> str:
    """The prompt itself, or the text of the file that FILE:path names.

    Raises: MissingInputError, BadDataError.
    """
    if not prompt.startswith("FILE:"):
        return prompt
    path = Path(prompt.removeprefix("FILE:"))
    try:
        if prompt == "FILE:-":
            return sys.stdin.buffer.read().decode("utf-8-sig")
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise MissingInputError(
            f"the prompt's file {path} does not exist or is not a file; check the path"
        ) from None
    except UnicodeDecodeError as error:
        raise BadDataError(
            f"the prompt's file {path} is not UTF-8 at byte {error.start}; convert it with iconv"
        ) from None
