"""A checkpoint, as one name: `from nanogpt_dist import checkpoint`.

state.py         save and load: weights, optimizer, step, settings, tokenizer
tensors.py       safetensors of sharded and whole tensors, read into any layout
consolidate.py   the shards of one checkpoint as whole tensors
"""

from nanogpt_dist.checkpoint.state import (
    Contents,
    TrainState,
    Weights,
    as_left_out,
    contents,
    load_averages,
    load_checkpoint_tokenizer,
    load_config,
    load_model,
    load_moments,
    load_state,
    load_weights,
    save,
    weight_files,
)

__all__ = [
    "Contents",
    "TrainState",
    "Weights",
    "as_left_out",
    "contents",
    "load_averages",
    "load_checkpoint_tokenizer",
    "load_config",
    "load_model",
    "load_moments",
    "load_state",
    "load_weights",
    "save",
    "weight_files",
]
