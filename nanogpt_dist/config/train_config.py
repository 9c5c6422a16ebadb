"""All settings of a run, and what has to hold between them."""

import os
import re

from pydantic import field_validator, model_validator

from nanogpt_dist.config import ramps
from nanogpt_dist.config.data_config import DataConfig
from nanogpt_dist.config.machine_config import MachineConfig
from nanogpt_dist.config.model_config import ModelConfig
from nanogpt_dist.config.optimizer_config import OptimizerConfig
from nanogpt_dist.config.output_config import OutputConfig

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)  # how s3://bucket and https://… begin


# the settings of the last base come first
class TrainConfig(MachineConfig, OutputConfig, OptimizerConfig, DataConfig, ModelConfig):
    """Everything that `nanogpt train` takes. Defaults are those of nanoGPT's train_gpt2 recipe."""

    @field_validator("init_from", "dataset", "out_dir")
    @classmethod
    def _is_a_path(cls, path: str | None) -> str | None:
        if path and ADDRESS.match(path):
            raise ValueError(
                "this is an address, not a path; mount or download it, and give a path"
            )
        return os.path.expanduser(path) if path else path  # in a TOML file no shell does it

    @model_validator(mode="after")
    def _ramp_ends_at_block_size(self) -> "TrainConfig":
        lengths = [length for _, length in ramps.parse(self.context_ramp or "0:1")]
        last, longest = lengths[-1], max(lengths)
        if self.context_ramp is None or last == longest == self.block_size:
            return self
        other = f", or --block-size {longest}" if last == longest else ""
        raise ValueError(
            f"context_ramp {self.context_ramp[:80]} must end with block_size {self.block_size} and "
            f"have nothing longer; type another --context-ramp{other}"
        )

    @property
    def ramp(self) -> ramps.Ramp:
        """The sequences of each step and their length."""
        sequences = self.batch_size * self.gradient_accumulation_steps
        return ramps.ramp(self.batch_ramp, self.context_ramp, sequences, self.block_size)

    @property
    def global_batch_size(self) -> int:
        """Sequences in one step, over all ranks; with a batch_ramp in the largest."""
        return max(piece.sequences for piece in self.ramp.pieces)

    def architecture(self) -> ModelConfig:
        """The part of the settings that fixes the shapes of the weights."""
        return ModelConfig(**self.model_dump(include=set(ModelConfig.model_fields)))
