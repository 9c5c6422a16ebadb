"""`nanogpt import nanogpt|hf`: what others trained, as a run of ours."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.help import command, group
from cli.options import Json
from cli.terminal import echo

if TYPE_CHECKING:
    from nanogpt_dist.interop.import_run import ImportedModel

import_app = group(
    "nanogpt import nanogpt out-nanogpt/ckpt.pt --out-dir out/imported",
    "nanogpt import hf openai-community/gpt2 --out-dir out/gpt2",
)

OutDir = Annotated[
    Path, typer.Option("--out-dir", metavar="RUN", help="Run folder to make.", show_default=False)
]


@command(
    import_app,
    "nanogpt",
    "nanogpt import nanogpt out-nanogpt/ckpt.pt --out-dir out/imported",
    "nanogpt import nanogpt ckpt.pt --tokenizer data/shakespeare_char/meta.pkl --out-dir out/char",
)
def import_nanogpt(
    file: Annotated[
        Path,
        typer.Argument(metavar="CKPT.PT", help="A checkpoint of nanoGPT's.", show_default=False),
    ],
    out_dir: OutDir,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of its text: gpt2, or PATH/meta.pkl. Unset: found by the number of ids.",
        ),
    ] = None,
    optimizer: Annotated[
        bool, typer.Option(help="Take AdamW's state, too, so that its training can go on.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Take over a ckpt.pt of nanoGPT's: weights, settings, step, AdamW's state.

    Nothing in it, or in a meta.pkl, is executed.

    `nanogpt train RUN --dataset DIR` goes on with it.
    """
    from nanogpt_dist.interop import nanogpt_ckpt
    from nanogpt_dist.tokenizer.loading import open_tokenizer

    chosen = open_tokenizer(tokenizer) if tokenizer else None
    _write_run(nanogpt_ckpt.read(file, chosen, optimizer), out_dir, as_json)


@command(
    import_app,
    "hf",
    "nanogpt import hf openai-community/gpt2 --out-dir out/gpt2",
    "nanogpt import hf exported/gpt2-124m --out-dir out/again",
)
def import_hf(
    model: Annotated[
        str,
        typer.Argument(
            metavar="DIR|OWNER/NAME", help="A folder, or a model on the hub.", show_default=False
        ),
    ],
    out_dir: OutDir,
    as_json: Json = False,
) -> None:
    """Take over a GPT2LMHeadModel of Hugging Face's, from its safetensors: a run at step 0."""
    from nanogpt_dist.interop import import_run
    from nanogpt_dist.interop.init_from import find_pretrained

    _write_run(import_run.read_hugging_face(find_pretrained(model)), out_dir, as_json)


def _write_run(foreign: "ImportedModel", run: Path, as_json: bool) -> None:
    from nanogpt_dist.interop.import_run import write_run

    written = write_run(foreign, run)
    parameters = sum(tensor.numel() for tensor in foreign.weights.values())
    if as_json:
        facts: dict[str, Any] = {
            "checkpoint": str(written),
            "step": foreign.state.step,
            "parameters": parameters,
            "tokenizer": foreign.tokenizer.name,
            "optimizer": bool(foreign.moments),
            "origin": foreign.origin,
        }
        echo(json.dumps(facts))
        return
    with_state = "with AdamW's state" if foreign.moments else "weights only"
    echo(f"{written}: {parameters:,} parameters, {with_state}, tokenizer {foreign.tokenizer.name}")
    echo(f"Next: {shlex.join(['nanogpt', 'sample', str(run)])}")
