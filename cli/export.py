"""`nanogpt export hf|nanogpt|llmc`: a checkpoint for other programs."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import completing
from cli.help import command, group
from cli.options import WeightsOf, warn
from cli.terminal import echo
from nanogpt_dist.storage.run_checkpoints import read_checkpoint

export_app = group(
    "nanogpt export hf out/gpt2-124m exported/gpt2-124m",
    "nanogpt export nanogpt out/gpt2-124m out-nanogpt/ckpt.pt",
)

Target = Annotated[
    str,
    typer.Argument(
        metavar="RUN|CHECKPOINT",
        autocompletion=completing.runs,
        help="What to export.",
        show_default=False,
    ),
]
Best = Annotated[
    bool, typer.Option("--best", help="Of a run, the checkpoint with the lowest val loss.")
]
Out = Annotated[Path, typer.Argument(metavar="DIR", help="New folder.", show_default=False)]


@command(
    export_app,
    "hf",
    "nanogpt export hf out/gpt2-124m exported/gpt2-124m",
    "nanogpt export hf --best out/gpt2-124m exported/gpt2-124m-best",
)
def export_hf(target: Target, out: Out, best: Best = False, weights: WeightsOf = "model") -> None:
    """For transformers: a folder that GPT2LMHeadModel and AutoTokenizer read.

    They give the same logits and ids.
    """
    from nanogpt_dist.checkpoint import load_checkpoint_tokenizer
    from nanogpt_dist.interop import huggingface
    from nanogpt_dist.interop.import_run import origin_of, read_weights
    from nanogpt_dist.interop.model_card import model_card

    def read(found: Path) -> Any:
        return *read_weights(found, weights), load_checkpoint_tokenizer(found), origin_of(found)

    config, tensors, state, tokenizer, origin = read_checkpoint(target, read, best, warn)
    card = model_card(
        out.name,
        config,
        state,
        tokenizer,
        sum(each.numel() for each in tensors.values()),
        *origin,
    )
    huggingface.export(out, config, tensors, tokenizer, card, state.step)
    echo(f"{out}: step {state.step:,} as GPT2LMHeadModel, with tokenizer {tokenizer.name}")
    text = "A" if tokenizer.kind != "char" or b"A" in tokenizer.tokens else tokenizer.decode([0])
    asked = (
        # its default is beyond a short context
        f"{text!r}, max_new_tokens={max(1, min(50, config.block_size - 1))}"
    )
    generator = f'pipeline("text-generation", {str(out)!r})'
    program = f"from transformers import pipeline; print({generator}({asked}))"
    echo(f"Next: {shlex.join(['python', '-c', program])}")


@command(
    export_app,
    "nanogpt",
    "nanogpt export nanogpt out/gpt2-124m out-nanogpt/ckpt.pt",
    "nanogpt export nanogpt out/gpt2-124m/checkpoints/step-00001000 out-nanogpt/ckpt.pt",
)
def export_nanogpt(
    target: Target,
    out: Annotated[Path, typer.Argument(metavar="CKPT.PT", help="New file.", show_default=False)],
    best: Best = False,
    weights: WeightsOf = "model",
) -> None:
    """For nanoGPT: a ckpt.pt that its sample.py and train.py load, with AdamW's state."""
    from nanogpt_dist.checkpoint import load_checkpoint_tokenizer
    from nanogpt_dist.interop import nanogpt_ckpt
    from nanogpt_dist.interop.import_run import read_moments, read_weights

    def read(found: Path) -> Any:
        config, tensors, state = read_weights(found, weights)
        # AdamW's state is that of the weights themselves
        ours = weights == "model" and config.optimizer == "adamw"
        moments = read_moments(found) if ours else {}
        return config, tensors, state, load_checkpoint_tokenizer(found), moments

    config, tensors, state, tokenizer, moments = read_checkpoint(target, read, best, warn)
    nanogpt_ckpt.write(out, config, tensors, moments, state, tokenizer)
    if config.optimizer != "adamw":
        warn(f"nanoGPT has AdamW alone: the state of {config.optimizer} is left out")
    if config.gelu == "tanh":
        warn(
            "nanoGPT has the exact form of GELU, this model was trained with tanh: logits differ "
            "by about 1e-3"
        )
    echo(f"{out}: step {state.step:,}")
    other_ids = tokenizer.kind != "char" and tokenizer.name != "gpt2"
    if tokenizer.kind == "char":
        meta = out.with_name("meta.pkl")
        echo(
            f"{meta}: its characters; its sample.py looks for them in "
            f"data/{Path(config.dataset).name}/meta.pkl"
        )
    elif other_ids:
        warn(f"its sample.py decodes with GPT-2's ids, this model has those of {tokenizer.name}")
    if out.name != "ckpt.pt":
        echo("nanoGPT opens no other name than ckpt.pt: call it so there, in a folder of its own")
    elif not other_ids:
        folder = out.parent.resolve()  # it is typed in another folder
        echo(f"Next, in nanoGPT: {shlex.join(['python', 'sample.py', f'--out_dir={folder}'])}")


@command(
    export_app,
    "llmc",
    "nanogpt export llmc out/gpt2-124m exported/llmc",
    "nanogpt export llmc --best out/gpt2-124m exported/llmc-best",
)
def export_llmc(target: Target, out: Out, best: Best = False, weights: WeightsOf = "model") -> None:
    """For llm.c: the model and tokenizer files that its train_gpt2 begins with.

    They are gpt2_124M.bin and gpt2_tokenizer.bin; data shards are the same.
    """
    from nanogpt_dist.checkpoint import load_checkpoint_tokenizer
    from nanogpt_dist.interop import llmc
    from nanogpt_dist.interop.import_run import read_weights

    def read(found: Path) -> Any:
        return *read_weights(found, weights), load_checkpoint_tokenizer(found)

    config, tensors, state, tokenizer = read_checkpoint(target, read, best, warn)
    llmc.write(out, config, tensors, tokenizer, state.step)
    echo(
        f"{out}: step {state.step:,} as {llmc.MODEL} and {llmc.VOCABULARY}; copy both to where "
        "train_gpt2 runs"
    )
