"""What an architecture is: its parameters counted and its shapes traced, on the meta device, which
has no memory.

Shape letters: B sequences in the batch, T = block_size, C = n_embd, H = n_head, D = C / H,
V = vocab_size. Components are named as in the checkpoint, without `transformer.` and the block's
number: h.attn.c_attn.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nanogpt_dist.config import ModelConfig, TrainConfig
from nanogpt_dist.inspect.formulas import count_by_arithmetic, formulas, letter_sizes
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.training.optim import parameter_groups, training_bytes

Shapes = tuple[torch.Size, torch.Size]  # of the input, of the output


def about(config: ModelConfig) -> dict[str, tuple[str, str, str]]:
    """Component → letters of its input, letters of its output, what it does; trace() checks them
    against the sizes.
    """
    grouped = config.kv_heads != config.n_head
    qkv, K = ("(H+2K)·D", "K") if grouped else ("3C", "H")
    F = "4C" if config.mlp_width == 4 * config.n_embd else "F"
    wide = {"swiglu": "2" + ("F" if F == "F" else "·4C")}.get(config.mlp, F)
    norm = {
        "layernorm": "LayerNorm: each position to mean 0 and variance 1, then scaled.",
        "rmsnorm": "RMSNorm: each position to mean square 1, then scaled.",
    }[config.norm]
    name = norm.split(":")[0]
    third = "part" if grouped else "third"
    act = {
        "gelu": "The non-linearity: GELU.",
        "relu2": "The non-linearity: ReLU, squared.",
        "swiglu": "SwiGLU: one half, through SiLU, is the gate of the other.",
    }[config.mlp]
    return {
        "GPT": (
            "B T",
            "B T V",
            "Token ids to logits: for each position, a score of every possible next token.",
        ),
        "wte": ("B T", "B T C", "Each id's row of the token table."),
        "wpe": (
            (
                "B T",
                "B T C",
                "Each position's row of the position table; positions begin anew with a document.",
            )
            if config.intra_document
            else ("T", "T C", "Each position's row of the position table, added to every sequence.")
        ),
        "drop": ("B T C", "B T C", "Dropout; identity outside of training."),
        "h": (
            "B T C",
            "B T C",
            "A block, one of n_layer: attention, then MLP, each added to its own input.",
        ),
        "h.ln_1": ("B T C", "B T C", norm),
        "h.attn": (
            "B T C",
            "B T C",
            "Causal self-attention: a position reads itself and those before it.",
        ),
        "h.attn.c_attn": (
            "B T C",
            f"B T {qkv}",
            "Queries, keys and values, in one matrix product.",
        ),
        "h.attn.q_norm": ("B H T D", "B H T D", "RMSNorm of each query."),
        "h.attn.k_norm": (f"B {K} T D", f"B {K} T D", "RMSNorm of each key."),
        "h.attn.q": (
            f"B T {qkv}",
            "B H T D",
            f"Queries: the first {third}, cut into heads. What a position looks for.",
        ),
        "h.attn.k": (
            f"B T {qkv}",
            f"B {K} T D",
            f"Keys: the second {third}. What a position offers to be found by.",
        ),
        "h.attn.v": (
            f"B T {qkv}",
            f"B {K} T D",
            f"Values: the last {third}. What a position hands over when found.",
        ),
        "h.attn.sdpa": (
            "B H T D",
            "B H T D",
            "softmax(q kᵀ / √D + causal mask) v, in each head by itself.",
        ),
        "h.attn.c_proj": (
            "B T C",
            "B T C",
            "The heads, side by side again, mixed into one update.",
        ),
        "h.attn.resid_dropout": ("B T C", "B T C", "Dropout of the update."),
        "h.ln_2": ("B T C", "B T C", f"{name}, ahead of the MLP."),
        "h.mlp": (
            "B T C",
            "B T C",
            "Two linear layers around a non-linearity, for each position by itself.",
        ),
        "h.mlp.c_fc": (
            "B T C",
            f"B T {wide}",
            "Four times wider." if F == wide == "4C" else "Wider.",
        ),
        "h.mlp.act": (f"B T {wide}", f"B T {F}", act),
        "h.mlp.c_proj": (f"B T {F}", "B T C", "Narrow again."),
        "h.mlp.dropout": ("B T C", "B T C", "Dropout of the update."),
        "ln_f": ("B T C", "B T C", f"{name} of what the last block gives."),
        "lm_head": (
            "B T C",
            "B T V",
            "Dot product with every row of "
            + ("the token table: the tied head." if config.tie_embeddings else "its own."),
        ),
        "loss": ("B·T V", "", "Mean cross-entropy in nats/token; untrained ≈ ln V."),
    }


@dataclass(frozen=True)
class Parameters:
    """The parameters of a model, exactly; the head's matrix is the token table's and counts there.

    by_component: summed over the blocks; its values add up to total. blocks: all blocks together.
    rule_of_thumb: 12·n_layer·n_embd², which estimates blocks, rule_of_thumb_error percent off.
    training_bytes: weights, gradients and AdamW's moments in fp32; activations come on top.
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
    """One module or function of the forward pass: sizes of input and output, the same in letters,
    what it does.
    """

    name: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    input_letters: tuple[str, ...]
    output_letters: tuple[str, ...]
    about: str


def count_parameters(config: ModelConfig) -> Parameters:
    """The parameters of GPT(config), counted on the model itself. config.vocab_size must be set."""
    model = skeleton(config)
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
    decayed, not_decayed = (
        cast(list[Tensor], group["params"]) for group in parameter_groups(model, weight_decay=0.1)
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
        training_bytes=training_bytes(TrainConfig()) * total,
    )


def _by_hand(config: ModelConfig, counted: dict[str, int]) -> dict[str, str]:
    """The formulas as text; each gives what was counted on the model."""
    by_arithmetic = count_by_arithmetic(config)
    for name, count in by_arithmetic.items():
        assert count == counted[name], f"{name} is {count} by hand, the model has {counted[name]}"
    return {name: " + ".join(terms) or "0" for name, terms in formulas(config).items()}


def trace(config: ModelConfig, batch_size: int) -> list[Component]:
    """Every component of the model and of one block, in the order in which a forward pass enters
    them.

    The pass is real, with batch_size sequences of block_size tokens and their loss, but through one
    block only: all are alike. config.vocab_size must be set.
    """
    model = skeleton(config.model_copy(update={"n_layer": 1}))
    ids = torch.empty(batch_size, config.block_size, dtype=torch.int64, device="meta")
    seen: dict[str, Shapes] = {}
    for name, module in model.named_modules():
        if module is not model.transformer:  # GPT without its head
            _watch(component_of(name) or "GPT", module, seen)
    with _Functions(seen):
        model(ids, ids)
    sizes = letter_sizes(config, batch_size)
    texts = about(config)
    return [_component(name, shapes, sizes, *texts[name]) for name, shapes in seen.items()]


def component_of(name: str) -> str:
    """A module's name without `transformer.` and the number of its block: transformer.h.3.ln_1
    → h.ln_1.
    """
    return re.sub(r"^h\.\d+", "h", name.removeprefix("transformer."))


def skeleton(config: ModelConfig) -> GPT:
    """GPT(config) on the meta device: shapes without memory and without values."""
    with torch.device("meta"), _WithoutInit():
        return GPT(config)


class _WithoutInit(TorchFunctionMode):
    """No initial values for modules built inside: drawn on meta, they would cost 1.5 s of imports
    for nothing.
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


def _watch(name: str, module: nn.Module, seen: dict[str, Shapes]) -> None:
    """Have the module write the shapes of its first input and output into `seen`, on entry and on
    return.
    """

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[name] = (inputs[0].shape, torch.Size())

    def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen[name] = (inputs[0].shape, (output[0] if isinstance(output, tuple) else output).shape)

    module.register_forward_pre_hook(enter)  # on entry, so that `seen` is in the order of execution
    module.register_forward_hook(leave)


class _Functions(TorchFunctionMode):
    """Writes the shapes of what is a function and no module into `seen`: attention's inside, and
    the loss.
    """

    def __init__(self, seen: dict[str, Shapes]) -> None:
        super().__init__()
        self.seen = seen

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
                self.seen[f"h.attn.{name}"] = (self.seen["h.attn.c_attn"][1], tensor.shape)
            self.seen["h.attn.sdpa"] = (args[0].shape, output.shape)
        elif func is F.cross_entropy:
            self.seen["loss"] = (args[0].shape, output.shape)
        return output


def _component(
    name: str,
    shapes: Shapes,
    sizes: dict[str, int],
    given: str,
    gives: str,
    about: str,
) -> Component:
    """The component, its letters checked against the shapes."""
    C, F = sizes["C"], sizes.get("F", 4 * sizes["C"])
    qkv = (sizes["H"] + 2 * sizes.get("K", 0)) * sizes["D"]
    more = {
        "3C": 3 * C,
        "4C": 4 * C,
        "2·4C": 8 * C,
        "2F": 2 * F,
        "(H+2K)·D": qkv,
        "B·T": sizes["B"] * sizes["T"],
    }
    sizes = {**sizes, **more}
    letters = [tuple(text.split()) for text in (given, gives)]
    for shape, names in zip(shapes, letters, strict=True):
        assert tuple(shape) == tuple(sizes[letter] for letter in names), (
            f"{name}: {shape} is not {names}"
        )
    return Component(name, tuple(shapes[0]), tuple(shapes[1]), letters[0], letters[1], about)
