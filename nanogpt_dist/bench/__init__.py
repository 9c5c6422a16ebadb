"""How fast this machine trains, samples, reads data and writes checkpoints. `nanogpt bench` prints what these find."""

from typing import TypeVar

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.presets import PRETRAIN

Config = TypeVar("Config", bound=ModelConfig)


def with_vocabulary(config: Config) -> Config:
    """`config` with a vocab_size: its own, or that of the GPT-2 presets."""
    return config if config.vocab_size else config.model_copy(update=PRETRAIN)
