"""Which parameters go by which rule: Muon or AdamW, decayed or not, and at which rate.

Sources: Jordan et al. 2024, "Muon" (Muon for hidden matrices alone); Yang et al. 2022, "Tensor
Programs V", table 3 (AdamW's rate of hidden matrices and head falls as 1 / width).
"""

from typing import Any

from torch import Tensor, nn

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.model.gpt import MLP, CausalSelfAttention, SwiGLU

Groups = list[dict[str, Any]]

HIDDEN = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def lower_rates(config: TrainConfig) -> str:
    """What to type for a run that has diverged: its rates, all of which are to be lower."""
    muon = ("muon_learning_rate",) if config.optimizer == "muon" else ()
    of_groups = ("embedding_learning_rate", "head_learning_rate", "scalar_learning_rate")
    rates = {name: getattr(config, name) for name in ("learning_rate", *muon, *of_groups)}
    flags = [f"--{name.replace('_', '-')} {rate:g}" for name, rate in rates.items() if rate]
    return f"go on with less than {', '.join(flags)}"


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix of a block that Muon takes: of attention's or the MLP's products."""
    return name.startswith("transformer.h.") and name.endswith(HIDDEN) and parameter.ndim == 2


def parameter_groups(model: nn.Module, config: TrainConfig) -> Groups:
    """Every parameter in exactly one group: matrices decay, biases and LayerNorms do not.

    With muon its own matrices alone: tables and head have rates at which they would be gone.
    lr_scale: the group's learning rate, as a multiple of the schedule's. A group of Muon's has
    `splits`: for each parameter, the rows of each matrix that it is made of.
    """
    modules = dict(model.named_modules())
    tables = {f"{name}.weight" for name in modules if isinstance(modules[name], nn.Embedding)}
    splits = _splits(model)
    groups: dict[tuple[bool, bool, float, float], dict[str, Any]] = {}
    for decays in (True, False):
        for name, parameter in model.named_parameters():
            hidden, width = is_hidden_matrix(name, parameter), 1.0
            by_muon = hidden and config.optimizer == "muon"
            if decays != (by_muon if config.optimizer == "muon" else parameter.ndim >= 2):
                continue
            if config.base_width is not None and (hidden or name == "lm_head.weight"):
                width = 1.0 if by_muon else config.base_width / config.n_embd
            peak = width * _peak(name, parameter, config, by_muon, name in tables)
            key = by_muon, decays, peak / config.learning_rate, width
            group = groups.setdefault(key, _group(config, *key))
            group["params"].append(parameter)
            if by_muon:
                group["splits"].append(splits.get(parameter, (parameter.size(0),)))
    return list(groups.values())


def _group(
    config: TrainConfig, by_muon: bool, decays: bool, scale: float, width: float
) -> dict[str, Any]:
    """A group without parameters yet; width: part of its scale, which decay is not to follow."""
    decay = config.weight_decay / width if decays else 0.0
    group = {"params": [], "weight_decay": decay, "lr_scale": scale}
    return {**group, "splits": []} if by_muon else group


def _peak(
    name: str,
    parameter: Tensor,
    config: TrainConfig,
    by_muon: bool,
    is_table: bool,
) -> float:
    """The peak learning rate of a parameter, as it is set."""
    if by_muon:
        return config.muon_learning_rate
    if is_table:
        rate = config.embedding_learning_rate
    elif name == "lm_head.weight":
        rate = config.head_learning_rate
    elif is_hidden_matrix(name, parameter):
        rate = None
    else:  # vectors, scalars and small gates
        rate = config.scalar_learning_rate
    return config.learning_rate if rate is None else rate


def _splits(model: nn.Module) -> dict[Tensor, tuple[int, ...]]:
    """Of the weights that are several matrices, one above the other: the rows of each.

    Queries, keys and values; SwiGLU's gate and value.
    """
    found: dict[Tensor, tuple[int, ...]] = {}
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            found[module.c_attn.weight] = module.widths
        elif isinstance(module, MLP) and isinstance(module.act, SwiGLU):
            rows = module.c_fc.weight.size(0) // 2
            found[module.c_fc.weight] = (rows, rows)
    return found
