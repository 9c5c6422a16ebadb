"""A checkpoint judged, or foreign weights: loss over a split, tasks, texts; and what is kept of
that.

CHECKPOINT.eval.json, in the folder in which the checkpoint lies: {"checkpoint": name, "results":
{what: figures}}.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nanogpt_dist.checkpoint import load_checkpoint_tokenizer, load_model
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data import DataFolder
from nanogpt_dist.devices import pick_dtype
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError, DivergedError, MissingInputError, UsageError
from nanogpt_dist.evaluation.loss import Evaluator, whole_split
from nanogpt_dist.evaluation.tasks import jsonl_tasks
from nanogpt_dist.evaluation.tasks.scoring import Scorer
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.storage import run_folder
from nanogpt_dist.tokenizer import Tokenizer


@dataclass(frozen=True)
class Judged:
    """What is judged. name: for people; checkpoint: its folder, None for foreign weights;
    tokenizer: None: unknown.
    """

    name: str
    model: GPT
    config: TrainConfig
    tokenizer: Tokenizer | None
    checkpoint: Path | None

    def scorer(self, world: World, batch_size: int, dtype: str) -> Scorer:
        """Raises MissingInputError where the tokenizer is unknown."""
        if self.tokenizer is None:
            raise MissingInputError(
                f"{self.name} has no tokenizer files: tasks and texts need them"
            )
        return Scorer(
            self.model, self.tokenizer, world, batch_size, pick_dtype(dtype, world.device)
        )


def of_checkpoint(found: Path, device: torch.device) -> Judged:
    """A verified checkpoint."""
    model, config = load_model(found, device)
    return Judged(str(found), model, config, load_checkpoint_tokenizer(found), found)


def of_source(config: TrainConfig, device: torch.device) -> Judged:
    """The weights that config.init_from names. Raises as init_from.find_pretrained()."""
    from nanogpt_dist.interop import hf_tokenizer, huggingface, init_from

    assert config.init_from is not None
    found = init_from.find_pretrained(config.init_from)
    model = huggingface.load_model(found, config.architecture(), device)
    try:
        tokenizer = hf_tokenizer.load_tokenizer(found)
        model.n_vocab = tokenizer.n_vocab
    except MissingInputError:
        tokenizer = None  # nobody knows which rows have an id
    rows = model.config.vocab_size
    if tokenizer is not None and rows is not None and tokenizer.n_vocab > rows:
        ids = f"{tokenizer.n_vocab} ids in its tokenizer, {rows} in its model"
        raise BadDataError(f"{config.init_from}: {ids}; give the tokenizer that belongs to it")
    return Judged(config.init_from, model, config, tokenizer, None)


Split = Literal["train", "val"]


def loss(
    judged: Judged,
    data: DataFolder,
    split: Split,
    world: World,
    batch_size: int,
    dtype: str,
) -> dict[str, Any]:
    """Loss, perplexity and bits per byte over a whole split; all ranks together.

    Raises BadDataError for other ids, DivergedError.
    """
    with world.raise_on_all_ranks():
        check_tokenizer(judged, data)
        tokens = data.split(split)
        windows = whole_split(tokens.tokens, judged.config.block_size)
        numbers = pick_dtype(dtype, world.device)
    judge = Evaluator(tokens, windows, data.tokenizer.byte_lengths(), world, batch_size, numbers)
    figures = asdict(judge(judged.model))
    if not math.isfinite(figures["val_loss"]):
        raise DivergedError
    if split == "train":
        figures = {
            "train_loss" if name == "val_loss" else name: value for name, value in figures.items()
        }
    return figures


def check_tokenizer(judged: Judged, data: DataFolder) -> None:
    """Raises BadDataError where the data has other ids than the model's tokenizer, or more than its
    model has rows.
    """
    ours, theirs, rows = (
        judged.tokenizer,
        data.tokenizer,
        judged.model.transformer.wte.weight.size(0),
    )
    highest = max(len(theirs.tokens) - 1, theirs.eot_id or 0)  # other special tokens are in no data
    if highest >= rows and (ours is None or ours.fingerprint == theirs.fingerprint):
        raise BadDataError(
            f"{data.path} has ids up to {highest}, {judged.name} {rows} rows: they do not belong "
            "together"
        )
    if ours is None or ours.fingerprint == data.tokenizer.fingerprint:
        return
    name = judged.checkpoint.name if judged.checkpoint else judged.name
    again = (
        f": prepare it again with --tokenizer {judged.checkpoint / 'tokenizer.json'}"
        if judged.checkpoint
        else ""
    )
    raise BadDataError(
        f"{data.path} is tokenized with {data.tokenizer.name} ({data.tokenizer.n_vocab} ids), "
        f"{name} was trained with another one, {ours.name} ({ours.n_vocab} ids){again}"
    )


def task_names(listed: str) -> list[str]:
    """The tasks of a list with commas: NAME=FILE.jsonl, or a name or PATH.yaml of lm-eval's.

    Raises UsageError where it names none, one twice, or one from a file that we cannot score;
    MissingInputError.
    """
    names = []
    for part in filter(None, map(str.strip, listed.split(","))):
        task, has_file, file = (piece.strip() for piece in part.partition("="))
        if has_file:
            jsonl_tasks.check(task, Path(file))
        names.append(f"{task}={file}" if has_file else task)
    if not names:
        raise UsageError(
            "--tasks names no task: type e.g. --tasks lambada_openai, or --tasks "
            "hellaswag=FILE.jsonl"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--tasks names {twice[0]} twice; leave one out")
    return names


def tasks(names: list[str], scorer: Scorer, limit: int | None) -> dict[str, dict[str, Any]]:
    """{task: figures} of NAME=FILE.jsonl, by our own scorer, and of lm-eval's tasks, by name or
    PATH.yaml.

    Where a NAME has several files, or is one of lm-eval's too, its figures are called
    NAME=FILE.jsonl.
    """
    every = [name.partition("=")[0] for name in names]
    theirs: dict[str, dict[str, Any]] = {}
    if elsewhere := [name for name in names if "=" not in name]:
        from nanogpt_dist.evaluation.tasks import harness

        theirs = harness.run(elsewhere, scorer, limit)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        task, has_file, file = name.partition("=")
        if has_file:
            called = task if every.count(task) == 1 and task not in theirs else name
            found[called] = jsonl_tasks.run(task, Path(file), scorer, limit)
    return {**found, **theirs}


def keep(checkpoint: Path, results: dict[str, dict[str, Any]]) -> Path:
    """Write `results` into the file beside the checkpoint, over what it has under the same names;
    returns its path.
    """
    checkpoint = run_folder.canonical_path(checkpoint)
    path = checkpoint.with_name(f"{checkpoint.name}.eval.json")
    before = run_folder.read_json(path).get("results", {})
    run_folder.write_json(path, {"checkpoint": checkpoint.name, "results": {**before, **results}})
    return path
