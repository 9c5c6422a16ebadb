"""`nanogpt sample`: text from a checkpoint."""

import os
import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli import completing
from cli.options import Device, InitFrom, Json, refuse_both, warn
from cli.terminal import echo, echo_text


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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest sample, in tokens.")] = 500,
    temperature: Annotated[
        float,
        typer.Option(min=0, max=1e6, help="Below 1: more cautious; 0: always the likeliest token."),
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option(min=0, help="Choose among the k likeliest tokens; 0: among all.")
    ] = 200,
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
    ] = 1337,
    init_from: InitFrom = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print each sample while it comes.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run, the checkpoint with the lowest val loss.")
    ] = False,
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
    """Draw text from a checkpoint. A sample ends at the end-of-text token, at --stop, or at
    --max-new-tokens.
    """
    from nanogpt_dist.errors import MissingInputError, UsageError

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("sample needs one process only; leave torchrun out")
    if stream and json:
        raise UsageError(
            "--stream prints text as it comes, --json one object at the end: choose one"
        )
    refuse_both(target, init_from)
    if init_from and best:
        raise UsageError("--best chooses among a run's checkpoints: leave it out")
    prompts = [read_prompt(each) for each in prompt or []]

    from nanogpt_dist import load_config
    from nanogpt_dist.storage import run_checkpoints

    found: str | Path
    if init_from:
        found, config = init_from, load_config.load("gpt2", {"init_from": init_from})
    else:
        found = run_checkpoints.find_checkpoint(target, best, warn)

    from nanogpt_dist.devices import pick_device
    from nanogpt_dist.evaluation import report
    from nanogpt_dist.generation import sampling
    from nanogpt_dist.generation.decoder import Decoder, pick_weights

    where = pick_device(device)
    judged = (
        report.load_pretrained(config, where)
        if init_from
        else report.load_checkpoint(Path(found), where)
    )
    model, tokenizer = judged.model, judged.tokenizer
    if tokenizer is None:
        raise MissingInputError(
            f"{found} has no tokenizer files; copy the tokenizer.json of the model into it"
        )
    settings = sampling.Settings(
        max_new_tokens, temperature, top_k or None, top_p, tuple(stop or ()), seed
    )
    prompts = prompts or [sampling.first_text(tokenizer)]
    weights = pick_weights(dtype, model.lm_head.weight.device, greedy=temperature == 0)
    decoder = Decoder(model, tokenizer.n_vocab, weights)
    echo(f"sampling from {found}, weights in {weights}", err=True)
    if json:
        samples = sampling.sample(decoder, tokenizer, prompts, num_samples, settings)
        echo(dumps({"samples": [asdict(each) for each in samples], "checkpoint": str(found)}))
        return
    if stream:
        shown = 0
        echo_text(prompts[0], nl=False)
        for number, piece in sampling.stream(decoder, tokenizer, prompts, num_samples, settings):
            if number != shown:
                echo_text("\n" + "─" * 40 + "\n" + prompts[number // num_samples], nl=False)
                shown = number
            echo_text(piece, nl=False)
        echo("")
        return
    found_samples = sampling.sample(decoder, tokenizer, prompts, num_samples, settings)
    for number, each in enumerate(found_samples, 1):
        echo_text(each.prompt + each.text)
        if number < len(found_samples):
            echo("─" * 40)


def read_prompt(prompt: str) -> str:
    """`prompt` itself, or the text of the file that FILE:path names. Raises MissingInputError,
    BadDataError.
    """
    from nanogpt_dist.errors import BadDataError, MissingInputError

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
