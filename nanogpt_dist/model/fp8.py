"""Linear layers whose products are in float8, by torchao: faster where matrices are large.

Weights stay as they are, by the same names, in memory and in checkpoints: each product scales and
rounds what it multiplies. Embeddings and head are left out.

Sources: Micikevicius et al. 2022, "FP8 Formats for Deep Learning"; torchao, "float8 training".
"""

import torch
from torch import nn

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError

ALIGNED = 16  # sides of the matrices are multiples of it, as the products in float8 want them


def check_fp8(config: TrainConfig, device: torch.device) -> None:
    """Raises ConfigError where config asks for float8 and `device` or the settings have none."""
    if not config.fp8:
        return
    leave = "leave --fp8 out"
    if device.type != "cuda" or torch.version.hip:
        raise ConfigError(f"--fp8 needs an NVIDIA GPU, this is {device.type}: {leave}")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        has = ".".join(map(str, capability))
        raise ConfigError(f"--fp8 needs compute capability 8.9, this GPU has {has}: {leave}")
    check_fp8_settings(config)


def check_fp8_settings(config: TrainConfig) -> None:
    """Raises ConfigError where settings have no float8, whatever the GPU."""
    leave = "leave --fp8 out"
    if config.dtype in ("float32", "tf32", "float16"):
        raise ConfigError(f"--fp8 goes with --dtype bfloat16, this is {config.dtype}: {leave}")
    widths = config.n_embd, config.mlp_width, config.kv_heads * config.head_size
    if any(width % ALIGNED for width in widths):
        raise ConfigError(
            f"--fp8 needs widths that are multiples of {ALIGNED}, these are "
            f"{', '.join(map(str, widths))}: {leave}"
        )


def convert_to_fp8(blocks: nn.Module, emulate: bool = False) -> None:
    """Give the linear layers within `blocks` products in float8, in place.

    emulate: by rounding alone, on any device. Raises ConfigError without torchao.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ConfigError(
            f"--fp8 needs torchao ({error}): type pip install 'nanogpt-dist[fp8]'"
        ) from None
    convert_to_float8_training(blocks, config=Float8LinearConfig(emulate=emulate))
