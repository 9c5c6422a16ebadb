"""Parameters counted and shapes traced on a real model, on the meta device, without memory.

Shape letters: B sequences in the batch, T = block_size, C = n_embd, H = n_head, D = C / H,
V = vocab_size. Components are named as in the checkpoint, without `transformer.` and the block's
number: h.attn.c_attn.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from nanogpt_dist.config import ModelConfig, TrainConfig
from nanogpt_dist.inspect.components import Description, descriptions
from nanogpt_dist.inspect.formulas import count_by_arithmetic, formulas, letter_sizes
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.training.groups import parameter_groups
from nanogpt_dist.training.optim import training_bytes

Shapes = tuple[torch.Size, torch.Size]  # of the input, of the output


@dataclass(frozen=True)
class Parameters:
    """The parameters of a model, exactly; a tied head counts as the token embedding.

    by_component: summed over the blocks; its values add up to total. blocks: all blocks together.
    rule_of_thumb: 12·n_layer·n_embd², which estimates blocks, rule_of_thumb_error percent off.
    training_bytes: weights, gradients and the optimizer's state in fp32; activations come on top.
    """

    total: int
    non_embedding: int  # total less wpe, which is what nanoGPT prints
    by_component: dict[str, int]
    by_hand: dict[str, str]  # of one instance, in letters: C·3C + 3C
    n_layer: int
    blocks: int
    rule_of_thumb: int
    rule_of_thumb_error: float
    decayed: int
    decayed_tensors: int
    not_decayed: int
    not_decayed_tensors: int
    fp32_bytes: int
    bf16_bytes: int
    training_bytes: int


@dataclass(frozen=True)
class Component:
    """One module or function of the forward pass: its input and output, in sizes and in letters."""

    name: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    input_letters: tuple[str, ...]
    output_letters: tuple[str, ...]
    about: str


def count_parameters(config: ModelConfig) -> Parameters:
    """The parameters of GPT(config), counted on the model itself. config.vocab_size must be set.

    What decays, and the optimizer's bytes, are those of a TrainConfig; else of the default one.
    """
    model = skeleton(config)
    recipe = config if isinstance(config, TrainConfig) else TrainConfig()
    by_component: dict[str, int] = {}
    # a shared tensor comes once, under its first name: wte
    for name, parameter in model.named_parameters():
        component = component_of(name.rpartition(".")[0])
        by_component[component] = by_component.get(component, 0) + parameter.numel()
    by_component.setdefault("lm_head", 0)

    total = sum(by_component.values())
    blocks = sum(count for name, count in by_component.items() if name.startswith("h."))
    # 3C² + C² in attention, 4C² + 4C² in the MLP
    rule_of_thumb = 12 * config.n_layer * config.n_embd**2
    groups = parameter_groups(model, recipe)
    decayed, not_decayed = (
        [p for group in groups if bool(group["weight_decay"]) == decays for p in group["params"]]
        for decays in (True, False)
    )
    return Parameters(
        total=total,
        non_embedding=total - by_component.get("wpe", 0),
        by_component=by_component,
        by_hand=_by_hand(config, by_component),
        n_layer=config.n_layer,
        blocks=blocks,
        rule_of_thumb=rule_of_thumb,
        rule_of_thumb_error=100 * (rule_of_thumb - blocks) / blocks,
        decayed=sum(tensor.numel() for tensor in decayed),
        decayed_tensors=len(decayed),
        not_decayed=sum(tensor.numel() for tensor in not_decayed),
        not_decayed_tensors=len(not_decayed),
        fp32_bytes=4 * total,
        bf16_bytes=2 * total,
        training_bytes=round(training_bytes(recipe) * total),
    )


def _by_hand(config: ModelConfig, counted: dict[str, int]) -> dict[str, str]:
    """The formulas as text; each gives what was counted on the model."""
    by_arithmetic = count_by_arithmetic(config)
    for name, count in by_arithmetic.items():
        assert count == counted[name], f"{name} is {count} by hand, the model has {counted[name]}"
    return {name: " + ".join(terms) or "0" for name, terms in formulas(config).items()}


def trace(config: ModelConfig, batch_size: int) -> list[Component]:
    """Every component of the model and of one block, in the order of execution.

    The pass is real, with batch_size sequences of block_size tokens and their loss, but through one
    block only: all are alike. config.vocab_size must be set.
    """
    model = skeleton(config.model_copy(update={"n_layer": 1}))
    ids = torch.empty(batch_size, config.block_size, dtype=torch.int64, device="meta")
    shapes: dict[str, Shapes] = {}
    for name, module in model.named_modules():
        if module is not model.transformer:  # GPT without its head
            _record(component_of(name) or "GPT", module, shapes)
    with _RecordFunctions(shapes):
        model(ids, ids)
    sizes, described = letter_sizes(config, batch_size), descriptions(config)
    return [_component(name, shapes[name], sizes, described[name]) for name in shapes]


def component_of(name: str) -> str:
    """A module's name without `transformer.` and its block's number: h.ln_1."""
    return re.sub(r"^h\.\d+", "h", name.removeprefix("transformer."))


def skeleton(config: ModelConfig) -> GPT:
    """GPT(config) on the meta device: shapes without memory and without values."""
    with torch.device("meta"), _WithoutInit():
        return GPT(config)


class _WithoutInit(TorchFunctionMode):
    """No initial values for modules built inside.

    To draw them on the meta device would cost 1.5 s of imports.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def _record(name: str, module: nn.Module, shapes: dict[str, Shapes]) -> None:
    """Have `module` write the shapes of its first input and of its output into `shapes`."""

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        shapes[name] = (inputs[0].shape, torch.Size())

    def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        shapes[name] = (inputs[0].shape, first.shape)

    # on entry, too, so that `shapes` is in the order of execution
    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


class _RecordFunctions(TorchFunctionMode):
    """Writes the shapes of what is no module into `shapes`: attention's inside, and the loss."""

    def __init__(self, shapes: dict[str, Shapes]) -> None:
        super().__init__()
        self.shapes = shapes

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            for name, tensor in zip("qkv", args[:3], strict=True):
                self.shapes[f"h.attn.{name}"] = (self.shapes["h.attn.c_attn"][1], tensor.shape)
            self.shapes["h.attn.sdpa"] = (args[0].shape, output.shape)
        elif func is F.cross_entropy:
            self.shapes["loss"] = (args[0].shape, output.shape)
        return output


def _component(
    name: str,
    shapes: Shapes,
    sizes: dict[str, int],
    description: Description,
) -> Component:
    """The component, its letters checked against the shapes."""
    given, gives, about = description
    C, F = sizes["C"], sizes.get("F", 4 * sizes["C"])
    qkv = (sizes["H"] + 2 * sizes.get("K", 0)) * sizes["D"]
    more = {
        "3C": 3 * C,
        "4C": 4 * C,
        "2·4C": 8 * C,
        "2F": 2 * F,
        "(H+2K)·D": qkv,
        "K·D": sizes.get("K", 0) * sizes["D"],
        "B·T": sizes["B"] * sizes["T"],
    }
    sizes = {**sizes, **more}
    letters = [tuple(text.split()) for text in (given, gives)]
    for shape, names in zip(shapes, letters, strict=True):
        assert tuple(shape) == tuple(sizes[letter] for letter in names), (
            f"{name}: {shape} is not {names}"
        )
    return Component(name, tuple(shapes[0]), tuple(shapes[1]), letters[0], letters[1], about)
