"""What a person would want to know of a run before it takes its hours: lines of warning, none where
all is well.
"""

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError

MANY_EPOCHS = 100
HARDLY = 0.8  # of what is free: with more the activations may be too much
STATE_BYTES = 16  # a parameter's weight, gradient and AdamW's two moments, in fp32


def on_schedule(config: TrainConfig, epochs: float) -> list[str]:
    """Where the learning rate never does what its settings say, or the data is read more often than
    anybody means.

    epochs: that max_iters makes of the train split.
    """
    lines = []
    warmup, decay = config.warmup_iters, config.lr_decay_iters or config.max_iters
    if config.decay_lr and warmup >= config.max_iters > 1:
        lines.append(
            f"warming up takes {warmup:,} updates, the run makes {config.max_iters:,}: it never "
            f"reaches learning_rate {config.learning_rate:g}; lower --warmup-iters"
        )
    elif config.decay_lr and warmup > decay:
        lines.append(
            f"warming up takes {warmup:,} updates, lr_decay_iters is {decay:,}: the rate falls "
            "from learning_rate to min_lr at once; lower --warmup-iters"
        )
    if epochs > MANY_EPOCHS:
        lines.append(
            f"{epochs:,.0f} epochs: the same text is read as many times; prepare more of it, or "
            "lower --max-iters"
        )
    return lines


def on_memory(
    parameters: int,
    ranks: int,
    shards: int,
    memory: int,
    free: int | None,
    on_cpu: bool,
) -> str | None:
    """A warning where a training will hardly fit into memory, None where it does. Raises
    ConfigError where it cannot.

    parameters: of the model; ranks: that share `memory` bytes, each of which holds 1/shards of the
    model. free: bytes of it that nobody uses, None: unknown. A GPU says itself that it is full;
    where a CPU's memory ends the kernel kills without a word, so there what is free counts.
    """
    needed = STATE_BYTES * parameters * ranks // shards
    there = f"{memory / 2**30:,.1f} GiB" + ("" if free is None else f", {free / 2**30:,.1f} free")
    text = (
        f"weights, gradients and AdamW's moments take {needed / 2**30:,.1f} GiB, "
        f"{'this machine' if on_cpu else 'the GPU'} has {there}"
    )
    if needed > memory or (on_cpu and free is not None and needed > free):
        raise ConfigError(
            f"{text}; take a smaller model, or more {'machines' if on_cpu else 'GPUs'} with "
            "--strategy fsdp"
        )
    return (
        f"{text}; activations come on top" if free is not None and needed > HARDLY * free else None
    )
