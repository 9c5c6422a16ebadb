"""What follows from settings and data before anything is built: layout, batches, windows."""

from dataclasses import dataclass
from pathlib import Path

import torch

from nanogpt_dist import __version__
from nanogpt_dist.config import TrainConfig, settings_where
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.batches import Batches, DocumentStarts, Ids, Order
from nanogpt_dist.data.documents import document_starts
from nanogpt_dist.devices import pick_dtype
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.evaluation.loss import Evaluator, spread
from nanogpt_dist.load_config import rows_for
from nanogpt_dist.training.auto_layout import choose, look_up


@dataclass(frozen=True)
class Plan:
    """A run before it is built. config: with vocab_size and eot_id filled in from the data.

    why: by what the layout was chosen, in a line, where auto_batch_size chooses it.
    """

    config: TrainConfig
    data: DataFolder
    dtype: torch.dtype
    layout: Layout
    batches: Batches
    evaluator: Evaluator
    why: str | None = None


def make_plan(config: TrainConfig, world: World) -> Plan:
    """The Plan of `config` on these ranks. Raises ConfigError, BadDataError, on all of them."""
    known = look_up(config, world)
    with world.raise_on_all_ranks():
        data = DataFolder.open(Path(config.dataset))
        config = fit_to_data(config, data)
        dtype = pick_dtype(config.dtype, world.device)
        layout, why = choose(config, world, known)
        batches, evaluator = read_plan(config, data, world, layout, layout.autocast_dtype(dtype))
    differing = set(settings_where(scope="machine"))
    shared = {name: str(value) for name, value in config.model_dump(exclude=differing).items()}
    world.raise_if_ranks_differ(
        version=__version__, torch=torch.__version__, dataset=data.dataset_id, **shared
    )
    return Plan(config, data, dtype, layout, batches, evaluator, why)


def fit_to_data(config: TrainConfig, data: DataFolder) -> TrainConfig:
    """`config` with vocab_size and eot_id filled in from the data.

    Raises ConfigError where the data has ids beyond vocab_size, or no end of text that is needed.
    """
    n_vocab, eot_id = data.tokenizer.n_vocab, data.tokenizer.eot_id
    if config.intra_document and config.eot_id is None:
        if eot_id is None:
            raise ConfigError(f"{data.path} has no end-of-text token: leave --intra-document out")
        config = config.model_copy(update={"eot_id": eot_id})
    if config.vocab_size is None:
        return config.model_copy(update={"vocab_size": rows_for(data.tokenizer)})
    if config.vocab_size < n_vocab:
        raise ConfigError(
            f"vocab_size {config.vocab_size} is less than the {n_vocab} ids of {data.path}; leave "
            f"it out, or type --vocab-size {n_vocab}"
        )
    return config


def read_plan(
    config: TrainConfig,
    data: DataFolder,
    world: World,
    layout: Layout,
    dtype: torch.dtype,
) -> tuple[Batches, Evaluator]:
    """What this rank reads: the batches of every step, the windows of every evaluation.

    dtype: of an evaluation's matrix products, under autocast.
    """
    val = data.split("val")
    aligned = document_starts(data) if config.align_documents else None
    batches = plan_batches(config, data.split("train"), data.dataset_id, world, layout, aligned)
    windows = spread(val.tokens, config.block_size, config.eval_iters * config.batch_size)
    at_once, lengths = evaluated_at_once(config, world, layout), data.tokenizer.byte_lengths()
    return batches, Evaluator(val, windows, lengths, world, at_once, dtype)


def evaluated_at_once(config: TrainConfig, world: World, layout: Layout) -> int:
    """Windows in one forward pass of an evaluation."""
    # where a smaller micro-batch says that memory is short
    by_memory = world.device.type == "cuda" or config.auto_batch_size
    return min(config.batch_size, layout.batch_size) if by_memory else config.batch_size


def plan_batches(
    config: TrainConfig,
    split: Ids,
    dataset_id: str,
    world: World,
    layout: Layout,
    aligned: DocumentStarts | None = None,
) -> Batches:
    """What this rank reads of `split` in each step. Raises ConfigError, BadDataError."""
    order = Order(config.seed, dataset_id, config.block_size, split.tokens)
    largest, batch_size = config.global_batch_size, layout.batch_size
    place = world.rank, world.size
    batches = Batches(split, order, largest, batch_size, *place, config.ramp, aligned)
    for piece in batches.pieces:
        batches.micro_batches(piece)  # whether the ranks can share it
    return batches
