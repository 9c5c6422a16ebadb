"""How fast this machine trains, samples, reads data and writes checkpoints. `nanogpt bench` prints what these find."""

from typing import TypeVar

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.presets import PRETRAIN

Config = TypeVar("Config", bound=ModelConfig)


def with_vocabulary(config: Config) -> Config:
    """`config` with a vocab_size, its own or the GPT-2 presets', and an end of text where it wants one."""
    vocabulary = {} if config.vocab_size else PRETRAIN
    eot = {"eot_id": config.eot_id or 0} if config.intra_document else {}
    return config.model_copy(update={**vocabulary, **eot})
