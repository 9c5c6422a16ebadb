"""The model and its optimizer, with their first values: seeded, pretrained, or a checkpoint's."""

import torch

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data import DataFolder
from nanogpt_dist.distributed.check_memory import check_memory, memory_of
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.strategy import site_of
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import NanogptError
from nanogpt_dist.training.metrics import Console
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.plan import Plan
from nanogpt_dist.training.resume import ResumePoint
from nanogpt_dist.training.step import TrainStep


def build(plan: Plan, start: ResumePoint | None, world: World, console: Console) -> TrainStep:
    """The TrainStep of `plan` as it is at `start`, None: step 0; all ranks together.

    Raises ConfigError where it does not fit into memory, BadDataError where the checkpoint is of
    another architecture, and what init_from.find_pretrained() raises.
    """
    config = plan.config
    waiting = world.with_long_timeout  # a rank may read from a slow disk
    if warning := memory_warning(config, plan.layout, world):
        console.line(f"warning: {warning}")
    init = start is None and config.init_from is None
    n_vocab = plan.data.tokenizer.n_vocab
    train_step = TrainStep(config, world, plan.layout, plan.dtype, init, n_vocab)
    if start is not None:
        with waiting.raise_on_all_ranks():
            train_step.load(start.path, start.facts)
        train_step.origin = start.origin or config.init_from
    elif config.init_from is not None:
        train_step.origin = _load_pretrained(config.init_from, train_step, plan.data, console)
    return train_step


def memory_warning(config: TrainConfig, layout: Layout, world: World) -> str | None:
    """What to warn of before a model is built that will hardly fit into memory; all ranks together.

    Raises ConfigError where it cannot: the kernel would kill it in the midst of building, without a
    word.
    """
    with world.raise_on_all_ranks():
        site = site_of(config, world, training_bytes(config))
        return check_memory(site, layout, memory_of(torch.device("cpu"), world))


def _load_pretrained(
    name: str,
    train_step: TrainStep,
    data: DataFolder,
    console: Console,
) -> str:
    """Give the model its first weights, fetched by one rank of each machine; whose they are."""
    from nanogpt_dist.interop import hf_tokenizer, huggingface, init_from

    world = train_step.world
    pretrained = world.local_rank0_first(lambda: init_from.find_pretrained(name))
    with world.with_long_timeout.raise_on_all_ranks():
        huggingface.load_weights(pretrained, train_step.model)
        try:
            fingerprint = hf_tokenizer.load_tokenizer(pretrained).fingerprint
        except NanogptError:
            fingerprint = data.tokenizer.fingerprint  # nothing is known
    console.line(f"weights of {name}")
    if fingerprint != data.tokenizer.fingerprint:
        console.line(
            f"warning: the weights of {name} were trained on other ids than {data.tokenizer.name}'s"
        )
    return pretrained.origin
