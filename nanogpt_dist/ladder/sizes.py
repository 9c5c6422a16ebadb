"""Sizes of one model: a preset at another width, its parameters and FLOPs.

A width gets the preset's shape: n_layer / n_embd, the size of a head, and the share of heads of
keys and values, each rounded to what divides. Source: Kaplan et al. 2020, section 3.1, where the
shape matters little as long as it is kept.
"""

import re
from dataclasses import dataclass

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.errors import UsageError


@dataclass(frozen=True)
class Size:
    """Of a model: N and the FLOPs of a token, forward and backward.

    parameters: N of a scaling law: all but embeddings, with the head, tied or not. flops_at: of a
    token in sequences of each length that was asked for.
    """

    parameters: int
    flops_per_token: int
    flops_at: tuple[int, ...] = ()


def size_of(config: ModelConfig, *lengths: int) -> Size:
    """The Size of an architecture, whose vocab_size is set; the model takes no memory."""
    import torch

    from nanogpt_dist.model.gpt import GPT

    with torch.device("meta"):
        model = GPT(config)
    tables = {
        id(module.weight): module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
    }
    tables.pop(id(model.lm_head.weight), None)  # the head's, where they are tied
    at = tuple(model.flops_per_token(length) for length in lengths)
    return Size(model.num_params() - sum(tables.values()), model.flops_per_token(), at)


@dataclass(frozen=True)
class Shape:
    """Depth, width and heads of one size."""

    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int | None

    @property
    def name(self) -> str:
        """LAYERSxWIDTH."""
        return f"{self.n_layer}x{self.n_embd}"

    def settings(self) -> dict[str, int]:
        """As settings of a run."""
        kv = {} if self.n_kv_head is None else {"n_kv_head": self.n_kv_head}
        return {"n_layer": self.n_layer, "n_embd": self.n_embd, "n_head": self.n_head, **kv}


def shapes(sizes: str, base: ModelConfig) -> list[Shape]:
    """The shapes of --sizes 64,96,4x128: a width, or LAYERSxWIDTH. Raises UsageError."""
    return [_shape(word.strip(), base) for word in sizes.split(",")]


def _shape(word: str, base: ModelConfig) -> Shape:
    match = re.fullmatch(r"(?:([1-9]\d{0,4})x)?([1-9]\d{0,6})", word)
    if not match:
        raise UsageError(f"{word!r} is no size; give widths, or LAYERSxWIDTH: --sizes 64,96,4x128")
    width = int(match[2])
    layers = int(match[1]) if match[1] else max(1, round(width * base.n_layer / base.n_embd))
    wanted = width * base.n_head / base.n_embd
    even = 2 if base.rotary else 1
    heads = [h for h in _divisors(width) if width // h % even == 0]
    if not heads:
        raise UsageError(f"--sizes {word}: rotary turns pairs; give an even width")
    head = _nearest(heads, wanted)
    kv = None
    if base.n_kv_head is not None:
        kv = _nearest(_divisors(head), head * base.n_kv_head / base.n_head)
    return Shape(layers, width, head, kv)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _nearest(numbers: list[int], wanted: float) -> int:
    """The one whose ratio to `wanted` is nearest to 1; of two the larger."""
    return min(numbers, key=lambda each: (max(each / wanted, wanted / each), -each))
