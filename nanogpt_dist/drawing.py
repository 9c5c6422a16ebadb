"""The model as a drawing in plain Unicode: embeddings → blocks → head, with the shapes at the arrows."""

import math

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.describe import Component, Parameters

WIDTH = 90  # columns
CENTRE = 40  # column of the arrows
RAIL = 5  # column on which the residual stream passes a sublayer by
BOX = 60  # width of a box


def boxes(config: ModelConfig, at: dict[str, Component]) -> tuple[dict[str, str], dict[str, str]]:
    """Of attention and of the MLP: the components that are drawn as boxes, and what stands beside their names."""
    norm = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[config.norm]
    qkv = at["h.attn.c_attn"].output_letters[-1]
    then = [text for text, on in {"QK norm": config.qk_norm, "rotary": config.rotary}.items() if on]
    made = f"C → {qkv}; {', '.join(then)}" if then else f"C → {qkv}, queries, keys, values"
    mask = "mask of documents" if config.intra_document else "mask"
    wide, width = at["h.mlp.c_fc"].output_letters[-1], at["h.mlp.c_proj"].input_letters[-1]
    attention = {
        "h.ln_1": norm,
        "h.attn.c_attn": made,
        "h.attn.sdpa": f"softmax(q kᵀ / √D + {mask}) v",
        "h.attn.c_proj": "C → C, heads side by side",
    }
    mlp = {
        "h.ln_2": norm,
        "h.mlp.c_fc": f"C → {wide}",
        "h.mlp.act": {"gelu": "GELU", "swiglu": f"SwiGLU, {wide} → {width}", "relu2": "squared ReLU"}[config.mlp],
        "h.mlp.c_proj": f"{width} → C",
    }
    return attention, mlp


def draw(config: ModelConfig, parameters: Parameters, components: list[Component]) -> str:
    """The whole model from token ids to loss; parameters and components describe `config`."""
    at = {component.name: component for component in components}
    attention, mlp = boxes(config, at)
    head, number = lm_head(config, parameters)
    lines = [
        *(_tokens(parameters, at) if config.rotary else _embeddings(parameters, at)),
        *_blocks(parameters, at, attention, mlp),
        *_box("ln_f", attention["h.ln_1"], count(parameters, "ln_f")),
        _arrow(shape(at["lm_head"].input_letters, at["lm_head"].input)),
        *_box("lm_head", head, number),
        _arrow(f"logits {shape(at['GPT'].output_letters, at['GPT'].output)}"),
        _put("", CENTRE, f"▼ loss, untrained ≈ ln V = {math.log(at['GPT'].output[-1]):.3f} nats/token"),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _tokens(parameters: Parameters, at: dict[str, Component]) -> list[str]:
    """The token table alone: positions are in the attention."""
    return [
        _arrow(f"token ids {shape(at['GPT'].input_letters, at['GPT'].input)}"),
        *_box("wte", "token table V × C", count(parameters, "wte")),
        _arrow(shape(at["h"].input_letters, at["h"].input)),
    ]


def _embeddings(parameters: Parameters, at: dict[str, Component]) -> list[str]:
    """The two tables side by side, their sum below."""
    start, gap, width = 1, 3, 38
    tokens, positions = start + width // 2, start + width + gap + width // 2  # columns of their arrows
    left = _frame("wte  token table V × C", count(parameters, "wte"), width)
    right = _frame("wpe  positions T × C", count(parameters, "wpe"), width)
    top, middle, bottom = (" " * start + a + " " * gap + b for a, b in zip(left, right, strict=True))
    joint = "└" + "─" * (positions - tokens - 1) + "┘"
    return [
        _put("", tokens, f"│ token ids {shape(at['GPT'].input_letters, at['GPT'].input)}"),
        _put(top, tokens, "▼"),
        middle,
        _put(_put(bottom, tokens, "┬"), positions, "┬"),
        _put(_put("", tokens, joint), CENTRE, "+"),
        _arrow(shape(at["h"].input_letters, at["h"].input)),
    ]


def _blocks(
    parameters: Parameters, at: dict[str, Component], attention: dict[str, str], mlp: dict[str, str]
) -> list[str]:
    """The frame of the repeated block with its two sublayers, and the arrow out of it."""
    title = f" block × {parameters.n_layer} "
    count = f" {parameters.blocks // parameters.n_layer:,} each, {parameters.blocks:,} together "
    top = "╔══" + title + "═" * (WIDTH - 6 - len(title) - len(count)) + count + "══╗"
    inside = [*_sublayer(attention, parameters, at), *_sublayer(mlp, parameters, at)]
    return [
        _put(top, CENTRE, "▼"),
        *(_put(_put(line, 0, "║"), WIDTH - 1, "║") for line in inside),
        _put("╚" + "═" * (WIDTH - 2) + "╝", CENTRE, "╤"),
        _arrow(shape(at["h"].output_letters, at["h"].output)),
    ]


def _sublayer(boxes: dict[str, str], parameters: Parameters, at: dict[str, Component]) -> list[str]:
    """Boxes in a row, and to their left the residual rail, which carries the input to the sum at the end."""
    lines = []
    for name, text in boxes.items():
        lines.append(_arrow(flows_into(name, at)))
        lines += _box(name, text, count(parameters, name))
    lines = [_put(line, RAIL, "│") for line in lines]
    lines[0] = _put(lines[0], RAIL, "┌" + "─" * (CENTRE - RAIL - 1) + "┤")
    total = "└" + "─" * (CENTRE - RAIL - 2) + "►+ " + shape(at["h"].output_letters, at["h"].output)
    return [*lines, _put("", RAIL, total)]


def _box(name: str, text: str, count: str) -> list[str]:
    """A box on the centre line, an arrow coming in at the top and one leaving at the bottom."""
    start = CENTRE - BOX // 2
    top, middle, bottom = (_put("", start, line) for line in _frame(f"{name:<14} {text}", count, BOX))
    return [_put(top, CENTRE, "▼"), middle, _put(bottom, CENTRE, "┬")]


def _frame(text: str, count: str, width: int) -> list[str]:
    return [
        "┌" + "─" * (width - 2) + "┐",
        f"│ {text}{count:>{width - 4 - len(text)}} │",
        "└" + "─" * (width - 2) + "┘",
    ]


def lm_head(config: ModelConfig, parameters: Parameters) -> tuple[str, str]:
    """What stands in the box of the head, and its count."""
    if config.tied_head:
        return "C → V, the matrix of wte", "tied"
    return "C → V, its own matrix", count(parameters, "lm_head")


def flows_into(name: str, at: dict[str, Component]) -> str:
    """The shape at the arrow into a box; of attention's three inputs, where they differ, that of the queries."""
    each = ""
    if name == "h.attn.sdpa":
        each = "q " if "K" in at["h.attn.k"].output_letters else "q, k, v each "
    return each + shape(at[name].input_letters, at[name].input)


def count(parameters: Parameters, name: str) -> str:
    """The parameters of one instance of the component; nothing for a function without any."""
    count = parameters.by_component.get(name, 0)
    count //= parameters.n_layer if name.startswith("h.") else 1
    return f"{count:,}" if count else ""


def _arrow(label: str) -> str:
    return _put("", CENTRE, f"│ {label}")


def shape(letters: tuple[str, ...], sizes: tuple[int, ...]) -> str:
    """(B, T) = (12, 64)."""
    return f"({', '.join(letters)}) = ({', '.join(map(str, sizes))})"


def _put(line: str, column: int, text: str) -> str:
    """`line` with `text` written over it from `column` on."""
    return line[:column].ljust(column) + text + line[column + len(text) :]
