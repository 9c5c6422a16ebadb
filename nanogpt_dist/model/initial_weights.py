"""The first values of each weight, as a function of the seed and of its name.

`gpt2` is nanoGPT's: N(0, 0.02), a block's two c_proj N(0, 0.02 / √(2·n_layer)). `fan_in` draws a
matrix from N(0, 1/√(its inputs)), so that what it gives is as large as what it is given, the MLP's
first one half as large; a table from N(0, 1). zero_init has each block begin as the identity.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", §2.3; LeCun et
al. 1998, "Efficient BackProp", §4.6 (fan-in); Yang et al. 2022, "Tensor Programs V" (zero outputs);
the NanoGPT speedrun (both of them, and the half).
"""

import hashlib
import math

import torch
from torch import nn

from nanogpt_dist.config import ModelConfig


@torch.no_grad()
def init_weight(name: str, parameter: nn.Parameter, seed: int, config: ModelConfig) -> None:
    """Give `parameter`, of this name in GPT, its first values.

    Each weight has a generator of its own, seeded by (seed, its name in GPT), on the CPU: the
    values depend neither on the device, nor on the number of ranks, nor on which other weights
    there are.
    """
    if name.endswith("bias") or _begins_as_zeros(name, config):
        parameter.zero_()
    elif parameter.ndim == 1:  # a norm's, or a scale
        parameter.fill_(1.0)
    else:
        generator = torch.Generator("cpu").manual_seed(_seed_of(seed, name))
        values = torch.empty(parameter.shape, device="cpu")  # also under `with device:`
        deviation = _deviation(name, parameter.shape[-1], config)
        parameter.copy_(values.normal_(0.0, deviation, generator=generator))


def _begins_as_zeros(name: str, config: ModelConfig) -> bool:
    if name.endswith(("x0_scale", "bigram.weight", "smear.gate", "smear.scale")):
        return True
    # a head that is tied has the name of the token embedding
    return config.zero_init and name.endswith(("c_proj.weight", "lm_head.weight"))


def _deviation(name: str, inputs: int, config: ModelConfig) -> float:
    """The standard deviation of a matrix or a table; inputs: numbers of one of its rows."""
    if config.init == "gpt2":
        scale = 1 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1.0
        return 0.02 * scale
    if name.endswith(("wte.weight", "wpe.weight")):
        # tied, the token embedding is a matrix, too, whose logits are not to be larger
        return 1 / math.sqrt(config.n_embd) if config.tie_embeddings else 1.0
    if name.endswith("value_embedding.weight"):  # as the values are that it is added to
        return 1 / math.sqrt(config.n_embd)
    return (0.5 if name.endswith("c_fc.weight") else 1.0) / math.sqrt(inputs)


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1
