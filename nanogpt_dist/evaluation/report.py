"""`nanogpt eval`: a checkpoint's or pretrained weights' loss over a split, and tasks.

storage/eval_results.py keeps it.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nanogpt_dist.checkpoint import Weights, load_checkpoint_tokenizer, load_model
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data import DataFolder
from nanogpt_dist.devices import pick_dtype, set_matmul_precision
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError, DivergedError, MissingInputError, UsageError
from nanogpt_dist.evaluation.loss import Evaluator, whole_split
from nanogpt_dist.evaluation.tasks import jsonl_tasks
from nanogpt_dist.evaluation.tasks.scoring import Scorer
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.tokenizer import Tokenizer

SplitName = Literal["train", "val"]


@dataclass(frozen=True)
class LoadedModel:
    """A model to evaluate or to sample from.

    name: for messages. tokenizer: None where it is unknown. checkpoint: its folder; None for
    pretrained weights.
    """

    name: str
    model: GPT
    config: TrainConfig
    tokenizer: Tokenizer | None
    checkpoint: Path | None

    def scorer(self, world: World, batch_size: int, dtype: str) -> Scorer:
        """A Scorer of this model.

        Raises MissingInputError where the tokenizer is unknown, ConfigError for a dtype that the
        device does not have.
        """
        if self.tokenizer is None:
            raise MissingInputError(
                f"{self.name} has no tokenizer files: tasks and texts need them"
            )
        set_matmul_precision(world.device, dtype)
        return Scorer(
            self.model, self.tokenizer, world, batch_size, pick_dtype(dtype, world.device)
        )


@dataclass(frozen=True)
class EvalSettings:
    """On which ranks, how many windows go into one forward pass, and in which numbers."""

    world: World
    batch_size: int = 16
    dtype: str = "float32"


def load_checkpoint(
    folder: Path,
    device: torch.device,
    weights: Weights = "model",
) -> LoadedModel:
    """The model of a verified checkpoint folder. Raises as load_model()."""
    model, config = load_model(folder, device, weights)
    return LoadedModel(str(folder), model, config, load_checkpoint_tokenizer(folder), folder)


def load_pretrained(config: TrainConfig, device: torch.device) -> LoadedModel:
    """The weights that config.init_from names. Raises as init_from.find_pretrained()."""
    from nanogpt_dist.interop import hf_tokenizer, huggingface, init_from

    assert config.init_from is not None
    pretrained = init_from.find_pretrained(config.init_from)
    model = huggingface.load_model(pretrained, config.architecture(), device)
    try:
        tokenizer = hf_tokenizer.load_tokenizer(pretrained)
        model.n_vocab = tokenizer.n_vocab
    except MissingInputError:
        tokenizer = None  # nobody knows which rows have an id
    rows = model.config.vocab_size
    if tokenizer is not None and rows is not None and tokenizer.n_vocab > rows:
        ids = f"{tokenizer.n_vocab} ids in its tokenizer, {rows} in its model"
        raise BadDataError(f"{config.init_from}: {ids}; give the tokenizer that belongs to it")
    return LoadedModel(config.init_from, model, config, tokenizer, None)


def split_loss(
    loaded: LoadedModel,
    data: DataFolder,
    split: SplitName,
    settings: EvalSettings,
) -> dict[str, Any]:
    """Loss, perplexity and bits per byte over a whole split; all ranks together.

    Raises BadDataError for other ids than the model's, DivergedError, and ConfigError for a dtype
    that the device does not have.
    """
    world = settings.world
    with world.raise_on_all_ranks():
        check_tokenizer(loaded, data)
        tokens = data.split(split)
        windows = whole_split(tokens.tokens, loaded.config.block_size)
        dtype = pick_dtype(settings.dtype, world.device)
        set_matmul_precision(world.device, settings.dtype)
    byte_lengths = data.tokenizer.byte_lengths()
    evaluator = Evaluator(tokens, windows, byte_lengths, world, settings.batch_size, dtype)
    figures = asdict(evaluator(loaded.model))
    if not math.isfinite(figures["val_loss"]):
        raise DivergedError
    if split == "train":
        figures = {
            "train_loss" if name == "val_loss" else name: value for name, value in figures.items()
        }
    return figures


def check_tokenizer(loaded: LoadedModel, data: DataFolder) -> None:
    """Raises BadDataError where the data has other ids than the model, or more than it has rows."""
    ours, theirs = loaded.tokenizer, data.tokenizer
    rows = loaded.model.transformer.wte.weight.size(0)
    highest = max(len(theirs.tokens) - 1, theirs.eot_id or 0)  # other special tokens are in no data
    if highest >= rows and (ours is None or ours.fingerprint == theirs.fingerprint):
        raise BadDataError(
            f"{data.path} has ids up to {highest}, {loaded.name} {rows} rows: they do not belong "
            "together"
        )
    if ours is None or ours.fingerprint == data.tokenizer.fingerprint:
        return
    name = loaded.checkpoint.name if loaded.checkpoint else loaded.name
    again = (
        f": prepare it again with --tokenizer {loaded.checkpoint / 'tokenizer.json'}"
        if loaded.checkpoint
        else ""
    )
    raise BadDataError(
        f"{data.path} is tokenized with {data.tokenizer.name} ({data.tokenizer.n_vocab} ids), "
        f"{name} was trained with another one, {ours.name} ({ours.n_vocab} ids){again}"
    )


def task_names(listed: str) -> list[str]:
    """The tasks of a list with commas: NAME=FILE.jsonl, or a name or PATH.yaml of lm-eval's.

    Raises UsageError for no name, one twice, or a NAME that is not scored from a file;
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


def run_tasks(names: list[str], scorer: Scorer, limit: int | None) -> dict[str, dict[str, Any]]:
    """{task: figures} of NAME=FILE.jsonl, and of lm-eval's tasks by name or PATH.yaml.

    Where a NAME has several files, or is one of lm-eval's too, its figures are called
    NAME=FILE.jsonl.
    """
    from_lm_eval: dict[str, dict[str, Any]] = {}
    if others := [name for name in names if "=" not in name]:
        from nanogpt_dist.evaluation.tasks import harness

        from_lm_eval = harness.run(others, scorer, limit)
    tasks = [name.partition("=")[0] for name in names]
    from_files: dict[str, dict[str, Any]] = {}
    for name in names:
        task, has_file, file = name.partition("=")
        if has_file:
            alone = tasks.count(task) == 1 and task not in from_lm_eval
            figures = jsonl_tasks.run(task, Path(file), scorer, limit)
            from_files[task if alone else name] = figures
    return {**from_files, **from_lm_eval}
