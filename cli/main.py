"""The command `nanogpt`: its subcommands, and how an error becomes a line and a code."""

import os
import sys
from typing import Annotated

import typer

from cli.bench import bench_app
from cli.checkpoint import checkpoint_app
from cli.compare import compare
from cli.doctor import doctor
from cli.ending import DEBUG, code_of
from cli.eval import eval_command
from cli.export import export_app
from cli.help import DATA, MACHINES, MODELS, RUNS, Group, command, epilog
from cli.import_model import import_app
from cli.import_shards import import_shards
from cli.ladder import ladder
from cli.launch import CONTEXT as LAUNCH_CONTEXT
from cli.launch import launch
from cli.options import (
    CONTEXT,
    nanogpt_style,
    refuse_empty,
    refuse_nanogpts,
    with_paths,
)
from cli.plan import plan
from cli.prepare import prepare
from cli.quickstart import quickstart
from cli.report import report
from cli.sample import sample
from cli.show import show_app
from cli.sweep import sweep
from cli.terminal import echo, open_streams
from cli.tokenizer import tokenizer_app
from cli.train import preset_table, train
from cli.verify import verify
from cli.watch import watch
from nanogpt_dist import __version__
from nanogpt_dist.errors import INTERRUPTED, Exit

app = typer.Typer(
    name="nanogpt",
    cls=Group,
    no_args_is_help=True,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Pretrain GPTs: a corpus to shards, shards to checkpoints on any number of GPUs, "
    "checkpoints to text.",
    epilog=epilog("nanogpt quickstart", "torchrun --nproc-per-node 8 nanogpt train gpt2-124m"),
)

command(
    app,
    "prepare",
    "nanogpt prepare python-stdlib",
    "nanogpt prepare text --source texts/ --tokenizer bpe:8192 --out data/mine",
    rich_help_panel=DATA,
)(prepare)
command(
    app,
    "import-shards",
    "nanogpt import-shards nanoGPT/data/openwebtext/ --tokenizer gpt2",
    "nanogpt import-shards train.bin --val val.bin --tokenizer gpt2 --out data/mine",
    rich_help_panel=DATA,
)(import_shards)
app.add_typer(
    tokenizer_app,
    name="tokenizer",
    rich_help_panel=DATA,
    help="Learn a vocabulary from text, or compare two.",
)
command(
    app,
    "verify",
    "nanogpt verify data/openwebtext",
    "nanogpt verify data/openwebtext --threads 4 --json",
    rich_help_panel=DATA,
)(verify)

app.add_typer(
    show_app,
    name="show",
    rich_help_panel=MODELS,
    help="What a preset is, data, or a checkpoint.",
)
command(
    app,
    "eval",
    "nanogpt eval out/gpt2-124m",
    "nanogpt eval --init-from gpt2 --dataset data/openwebtext --dtype bfloat16",
    rich_help_panel=MODELS,
)(eval_command)
command(
    app,
    "sample",
    "nanogpt sample out/quickstart --prompt 'def read_' --max-new-tokens 200",
    "nanogpt sample --init-from gpt2 --prompt 'Once upon a time' --num-samples 3 --stream",
    rich_help_panel=MODELS,
)(sample)
app.add_typer(
    import_app,
    name="import",
    rich_help_panel=MODELS,
    help="Take over a model: nanoGPT's, Hugging Face's.",
)
app.add_typer(
    export_app,
    name="export",
    rich_help_panel=MODELS,
    help="Hand a checkpoint on: Hugging Face, nanoGPT, llm.c.",
)

command(
    app,
    "quickstart",
    "nanogpt quickstart",
    "nanogpt quickstart && nanogpt sample out/quickstart",
    rich_help_panel=RUNS,
)(quickstart)
command(
    app,
    "train",
    "nanogpt train gpt2-124m --dataset data/openwebtext --out-dir out/mine",
    "torchrun --nproc-per-node 8 nanogpt train out/mine",
    notes=preset_table(),
    rich_help_panel=RUNS,
)(train)
command(
    app,
    "watch",
    "nanogpt watch",
    "nanogpt watch out/a out/b --interval 10",
    rich_help_panel=RUNS,
)(watch)
command(
    app,
    "compare",
    "nanogpt compare out/a out/b",
    "nanogpt compare out/a out/b out/c --plot loss.png --html page.html",
    rich_help_panel=RUNS,
)(compare)
command(
    app,
    "report",
    "nanogpt report out/quickstart",
    "nanogpt report out/a out/b --out a-and-b.html",
    rich_help_panel=RUNS,
)(report)
command(
    app,
    "sweep",
    "nanogpt sweep rates.toml --plot rates.svg",
    "nanogpt sweep rates.toml --slurm --nproc-per-node 8 --time 4:00:00",
    rich_help_panel=RUNS,
)(sweep)
command(
    app,
    "ladder",
    "nanogpt ladder quickstart --sizes 64,96,128,192 --hold-out 256 --max-iters 1000",
    "nanogpt ladder mine.toml --sizes 4x256,6x384,8x512 --predict 1.5e9:30e9 --plot law.svg",
    rich_help_panel=RUNS,
)(ladder)
app.add_typer(
    checkpoint_app,
    name="checkpoint",
    rich_help_panel=RUNS,
    help="What a run has saved: list, verify, prune, pin, consolidate.",
)

command(
    app,
    "plan",
    "nanogpt plan gpt2-1558m --gpus 32 --device h100-80gb",
    "nanogpt plan --hours 24 --gpus 8 --device a100-80gb --price-per-hour 2",
    rich_help_panel=MACHINES,
)(plan)
command(
    app,
    "launch",
    "nanogpt launch --nproc-per-node 8 train gpt2-124m",
    "nanogpt launch --slurm --nnodes 4 --nproc-per-node 8 --time 24:00:00 train gpt2-124m",
    context_settings=LAUNCH_CONTEXT,
    rich_help_panel=MACHINES,
)(launch)
command(
    app,
    "doctor",
    "nanogpt doctor out/mine",
    "torchrun --nproc-per-node 2 nanogpt doctor",
    rich_help_panel=MACHINES,
)(doctor)
app.add_typer(
    bench_app,
    name="bench",
    rich_help_panel=MACHINES,
    help="How fast this machine trains, samples, reads and saves.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"nanogpt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks. May stand anywhere in the line.")
    ] = False,
) -> None:
    pass


def main() -> int:
    """Run the command line; returns the exit code.

    An error is one line on stderr, with --debug a traceback, too.
    """
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = [argument for argument in arguments if argument != "--debug"]
        os.environ[DEBUG] = "1"
    open_streams()
    try:
        refuse_empty(arguments)
        refuse_nanogpts(arguments)
        code = app(nanogpt_style(with_paths(arguments)), prog_name="nanogpt", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer has turned Ctrl-C into this
            raise KeyboardInterrupt
        return code if isinstance(code, int) else Exit.DONE
    except BaseException as error:
        return code_of(error)
