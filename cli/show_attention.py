"""`nanogpt show attention`: one head on a few tokens, as tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completing
from cli.options import Json, warn
from cli.terminal import columns, echo, echo_wrapped

if TYPE_CHECKING:
    from torch import Tensor

    from nanogpt_dist.model.gpt import GPT

MAX_TOKENS = 16  # of a text that fits into a table
SHOWN = 6  # numbers of a vector


def attention(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|RUN|CHECKPOINT",
            autocompletion=completing.targets,
            help="A preset has weights by chance, a run has learnt some.",
        ),
    ] = "shakespeare-char-cpu",
    text: Annotated[
        str, typer.Option(help=f"What the head reads, {MAX_TOKENS} tokens at most.")
    ] = "To be or",
    layer: Annotated[int, typer.Option(min=0, help="Block; the first is 0.")] = 0,
    head: Annotated[int, typer.Option(min=0, help="Head of the block; the first is 0.")] = 0,
    as_json: Json = False,
) -> None:
    """One head at work: queries, keys, values, scores under the causal mask, weights.

    The scores are q·k/√D, the weights how much each token reads of each.

    A preset's text is read character by character; a run's by its tokenizer.
    """
    from nanogpt_dist.errors import UsageError
    from nanogpt_dist.inspect.attention_head import inspect_head

    model, ids, tokens = (
        _of_run(target, text) if Path(target).is_dir() else _of_preset(target, text)
    )
    if not 1 <= len(ids) <= min(MAX_TOKENS, model.config.block_size):
        most = min(MAX_TOKENS, model.config.block_size)
        raise UsageError(
            f"--text is {len(ids)} tokens, a table takes 1 to {most}: give a shorter one"
        )
    inspected = inspect_head(model, ids, layer, head)
    if as_json:
        # The mask is told by itself: what stands above the diagonal is computed, but nobody reads
        # it.
        values = {
            name: getattr(inspected, "mask" if name == "seen" else name).tolist()
            for name in ("q", "k", "v", "scores", "seen", "weights", "y")
        }
        from nanogpt_dist.storage.run_folder import to_json

        echo(to_json({"tokens": tokens, "ids": ids, "layer": layer, "head": head, **values}))
        return
    T, D = inspected.q.shape
    echo_wrapped(
        f"{target}, layer {layer}, head {head}: T = {T} tokens, D = {D} numbers each, "
        f"of which {min(SHOWN, _beside())} are shown\n"
    )
    for name, about in {
        "q": "what each token looks for",
        "k": "what it offers to be found by",
        "v": "what it hands over when it is found",
    }.items():
        _vectors(f"{name}: {about}", tokens, getattr(inspected, name))
    _matrix("q kᵀ / √D: ▒ is masked, for it comes later", tokens, inspected.scores, inspected.mask)
    _matrix(
        "softmax of each row: how much the token reads of each; a row adds up to 1",
        tokens,
        inspected.weights,
        inspected.mask,
    )
    _vectors("weights · v: what the head hands on", tokens, inspected.y)


def _of_run(target: str, text: str) -> tuple["GPT", list[int], list[str]]:
    import torch

    from nanogpt_dist.checkpoint import load_checkpoint_tokenizer, load_model
    from nanogpt_dist.storage.run_checkpoints import read_checkpoint

    model, tokenizer = read_checkpoint(
        target,
        lambda found: (
            load_model(found, torch.device("cpu"))[0],
            load_checkpoint_tokenizer(found),
        ),
        warn=warn,
    )
    ids = tokenizer.encode(text).tolist()
    return model, ids, [tokenizer.decode([number]) for number in ids]


def _of_preset(name: str, text: str) -> tuple["GPT", list[int], list[str]]:
    """With initial weights, and the characters of the text as its vocabulary."""
    from nanogpt_dist.load_config import load
    from nanogpt_dist.model.gpt import GPT

    config = load(name)
    alphabet = sorted(set(text))
    # as few as the head needs
    small = {"vocab_size": max(len(alphabet), 1), "n_layer": min(config.n_layer, 2)}
    if config.intra_document:
        small["eot_id"] = 0
    architecture = config.architecture().model_copy(update=small)
    model = GPT(architecture).init_weights(config.seed).eval()
    return model, [alphabet.index(character) for character in text], list(text)


def _name(token: str, width: int = 6) -> str:
    """A token at the right of `width` columns of a terminal, without control codes.

    A wide character takes two columns.
    """
    from rich.cells import cell_len, set_cell_size

    text = {" ": "␣", "\n": "⏎", "\t": "⇥"}.get(token, token.strip() or "␣")
    text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    if cell_len(text) > 6:
        text = set_cell_size(text, 6)
    return " " * (width - cell_len(text)) + text


def _vectors(title: str, tokens: list[str], rows: "Tensor") -> None:
    echo_wrapped(title)
    shown = min(SHOWN, _beside())
    more = " …" if rows.size(1) > shown else ""
    for token, row in zip(tokens, rows.tolist(), strict=True):
        echo(f"  {_name(token)} │" + "".join(f"{value:8.3f}" for value in row[:shown]) + more)
    echo("")


def _matrix(title: str, tokens: list[str], values: "Tensor", mask: "Tensor") -> None:
    echo_wrapped(title)
    rows: list[Any] = values.tolist()
    for start in range(0, len(tokens), _beside()):
        these = slice(start, start + _beside())
        echo("         " + "".join(_name(token, 8) for token in tokens[these]))
        for token, row, allowed in zip(tokens, rows, mask.tolist(), strict=True):
            cells = zip(row[these], allowed[these], strict=True)
            echo(
                f"  {_name(token)} │"
                + "".join(f"{value:8.3f}" if ok else "       ▒" for value, ok in cells)
            )
    echo("")


def _beside() -> int:
    """Numbers that stand side by side on the terminal, beside a token and a mark of more."""
    width = columns()
    return MAX_TOKENS if width is None else max(1, (width - 11) // 8)
