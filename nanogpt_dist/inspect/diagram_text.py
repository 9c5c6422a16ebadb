"""The model drawn in plain Unicode: embeddings → blocks → head, with shapes at the arrows."""

import math
import textwrap
from dataclasses import dataclass

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.inspect.architecture import Component, Parameters
from nanogpt_dist.inspect.formulas import instances

WIDTH = 90  # columns where there is room
NARROW = 80  # below, boxes take the whole width
NARROWEST = 40  # columns that a drawing needs
CENTRE = 40  # column of the arrows
RAIL = 5  # column on which the residual stream passes a sublayer by
BOX = 60  # width of a box
NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}


def boxes(config: ModelConfig, at: dict[str, Component]) -> tuple[dict[str, str], dict[str, str]]:
    """Components that are drawn as boxes, with their text: those of attention, those of the MLP."""
    norm = NORMS[config.norm]
    qkv = at["h.attn.c_attn"].output_letters[-1]
    then = [text for text, on in {"QK norm": config.qk_norm, "rotary": config.rotary}.items() if on]
    made = f"C → {qkv}; {', '.join(then)}" if then else f"C → {qkv}, queries, keys, values"
    mask = "mask of documents" if config.intra_document else "mask"
    mask += "" if config.shortest_window is None else f", {config.shortest_window} in short layers"
    values = "+ a row, in every other block"
    wide, width = at["h.mlp.c_fc"].output_letters[-1], at["h.mlp.c_proj"].input_letters[-1]
    attention = {
        "h.ln_1": norm,
        "h.attn.c_attn": made,
        **({"h.attn.value_embedding": values} if config.value_embeddings else {}),
        "h.attn.sdpa": f"softmax(q kᵀ / √D + {mask}) v",
        "h.attn.c_proj": "C → C, heads side by side",
    }
    mlp = {
        "h.ln_2": norm,
        "h.mlp.c_fc": f"C → {wide}",
        "h.mlp.act": {
            "gelu": "GELU",
            "swiglu": f"SwiGLU, {wide} → {width}",
            "relu2": "squared ReLU",
        }[config.mlp],
        "h.mlp.c_proj": f"{width} → C",
    }
    return attention, mlp


def added_boxes(config: ModelConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Boxes that GPT-2 has not: those behind its embeddings, and those at the start of a block."""
    embedding = {} if config.bigram_rows is None else {"bigram": "+ a row of the last two ids"}
    embedding |= {"ln_emb": NORMS[config.norm]} if config.embedding_norm else {}
    embedding |= {"smear": "+ a gate · the embedding before"} if config.smear else {}
    start = {"h.residual": "a·x + b·(the embedding)"} if config.residual_scalars else {}
    return embedding, start


def draw(
    config: ModelConfig,
    parameters: Parameters,
    components: list[Component],
    width: int | None = None,
) -> str:
    """The whole model from token ids to loss.

    parameters and components describe `config`. width: columns; None: as many as it takes.
    """
    at = {component.name: component for component in components}
    attention, mlp = boxes(config, at)
    embedding, start = added_boxes(config)
    head, number = lm_head(config, parameters)
    labels = [flows_into(name, at) for name in (*attention, *mlp)] + [_flows("h", at)]
    page = Page.of(max(WIDTH, CENTRE + 4 + max(map(len, labels))), width)
    alone = config.rotary or embedding or page.narrow
    beside = [] if alone else _embeddings_side_by_side(page, parameters, at)
    lines = [
        *(beside or _embeddings(page, config, parameters, at)),
        *_row(page, embedding, parameters, at),
        *page.arrow(_flows("h", at)),
        *_blocks(page, parameters, at, start, attention, mlp),
        *page.box("ln_f", attention["h.ln_1"], count(parameters, "ln_f")),
        *page.arrow(_flows("lm_head", at)),
        *page.box("lm_head", head, number),
        *page.arrow(f"logits {shape(at['GPT'].output_letters, at['GPT'].output)}"),
        *page.arrow(
            f"loss, untrained ≈ ln V = {math.log(at['GPT'].output[-1]):.3f} nats/token", "▼"
        ),
    ]
    return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True)
class Page:
    """Where things stand on it, in columns."""

    width: int
    centre: int  # of the arrows
    rail: int  # on which the residual stream passes a sublayer by
    start: int  # of a box
    box_width: int

    @classmethod
    def of(cls, natural: int, width: int | None) -> "Page":
        """A Page of `width` columns at most; natural: those that the drawing takes, given room."""
        width = natural if width is None else max(min(width, natural), NARROWEST)
        if width < NARROW:
            return cls(width, centre=9, rail=2, start=4, box_width=width - 7)
        return cls(width, CENTRE, RAIL, CENTRE - BOX // 2, BOX)

    @property
    def narrow(self) -> bool:
        return self.width < NARROW

    def arrow(self, label: str, tip: str = "│") -> list[str]:
        """An arrow with a label, which is broken where the frame of the block stands."""
        room = self.width - self.centre - 4
        parts = [label] if len(label) <= room else label.replace(" = ", "\n= ").split("\n")
        lines = [line for part in parts for line in textwrap.wrap(part, room)]
        return [
            _put("", self.centre, f"{tip if number == 0 else ' ' if tip == '▼' else '│'} {line}")
            for number, line in enumerate(lines)
        ]

    def box(self, name: str, text: str, count: str) -> list[str]:
        """A box on the centre line, an arrow coming in at the top and one leaving at the bottom."""
        top, *inside, bottom = (
            _put("", self.start, line) for line in _frame(name, text, count, self.box_width)
        )
        return [_put(top, self.centre, "▼"), *inside, _put(bottom, self.centre, "┬")]


def _embeddings(
    page: Page,
    config: ModelConfig,
    parameters: Parameters,
    at: dict[str, Component],
) -> list[str]:
    """The token embedding, and below it the position embedding where there is one."""
    lines = [
        *page.arrow(f"token ids {shape(at['GPT'].input_letters, at['GPT'].input)}"),
        *page.box("wte", "token embedding V × C", count(parameters, "wte")),
    ]
    if not config.rotary:
        lines += page.arrow("+ a row for each position")
        lines += page.box("wpe", "position embedding T × C", count(parameters, "wpe"))
    return lines


def _embeddings_side_by_side(
    page: Page, parameters: Parameters, at: dict[str, Component]
) -> list[str]:
    """The two embeddings side by side, their sum below; nothing where their counts are too wide."""
    start, gap, width = 1, 3, 38
    # columns of their arrows
    tokens, positions = start + width // 2, start + width + gap + width // 2
    left = _frame("wte", "tokens V × C", count(parameters, "wte"), width, 4)
    right = _frame("wpe", "positions T × C", count(parameters, "wpe"), width, 4)
    if len(left) + len(right) > 6:
        return []
    top, middle, bottom = (
        " " * start + a + " " * gap + b for a, b in zip(left, right, strict=True)
    )
    joint = "└" + "─" * (positions - tokens - 1) + "┘"
    return [
        _put("", tokens, f"│ token ids {shape(at['GPT'].input_letters, at['GPT'].input)}"),
        _put(top, tokens, "▼"),
        middle,
        _put(_put(bottom, tokens, "┬"), positions, "┬"),
        _put(_put("", tokens, joint), page.centre, "+"),
    ]


def _blocks(
    page: Page,
    parameters: Parameters,
    at: dict[str, Component],
    start: dict[str, str],
    attention: dict[str, str],
    mlp: dict[str, str],
) -> list[str]:
    """The frame of the repeated block with its two sublayers, and the arrow out of it."""
    title = f" block × {parameters.n_layer} "
    count = f" {parameters.blocks:,} together "
    if "h.attn.value_embedding" not in parameters.by_component:  # blocks are alike
        count = f" {parameters.blocks // parameters.n_layer:,} each,{count}"
    left = CENTRE if not page.narrow else len(title) + 3  # the arrow's tip, or the title, is there
    if page.width - 3 - len(count) <= left:
        count = f" {parameters.blocks:,} "
    top = "╔══" + title + "═" * (page.width - 6 - len(title) - len(count)) + count + "══╗"
    inside = _row(page, start, parameters, at)
    inside += [*_sublayer(page, attention, parameters, at), *_sublayer(page, mlp, parameters, at)]
    return [
        top if page.narrow else _put(top, page.centre, "▼"),
        *(_put(_put(line, 0, "║"), page.width - 1, "║") for line in inside),
        _put("╚" + "═" * (page.width - 2) + "╝", page.centre, "╤"),
        *page.arrow(shape(at["h"].output_letters, at["h"].output)),
    ]


def _row(
    page: Page,
    boxes: dict[str, str],
    parameters: Parameters,
    at: dict[str, Component],
) -> list[str]:
    """Boxes one below the other, each with the arrow into it."""
    lines = []
    for name, text in boxes.items():
        lines += page.arrow(flows_into(name, at))
        lines += page.box(name, text, count(parameters, name))
    return lines


def _sublayer(
    page: Page,
    boxes: dict[str, str],
    parameters: Parameters,
    at: dict[str, Component],
) -> list[str]:
    """Boxes in a row, and to their left the residual stream, which is added at the end."""
    lines = _row(page, boxes, parameters, at)
    lines = [_put(line, page.rail, "│") for line in lines]
    lines[0] = _put(lines[0], page.rail, "┌" + "─" * (page.centre - page.rail - 1) + "┤")
    first, *more = page.arrow(shape(at["h"].output_letters, at["h"].output), "+")
    return [*lines, _put(first, page.rail, "└" + "─" * (page.centre - page.rail - 2) + "►"), *more]


def _frame(name: str, text: str, count: str, width: int, name_width: int = 14) -> list[str]:
    """A box of one line; of more, where name, text and count do not fit side by side."""
    room = width - 4
    line = f"{name:<{name_width}} {text}"
    inside = [f"{line}{count:>{max(room - len(line), 0)}}"]
    if len(line) + len(count) + (1 if count else 0) > room:
        inside = [f"{name}{count:>{room - len(name)}}", *textwrap.wrap(text, room)]
    return [
        "┌" + "─" * (width - 2) + "┐",
        *(f"│ {line:<{room}} │" for line in inside),
        "└" + "─" * (width - 2) + "┘",
    ]


def lm_head(config: ModelConfig, parameters: Parameters) -> tuple[str, str]:
    """What stands in the box of the head, and its count."""
    if config.tie_embeddings:
        return "C → V, the matrix of wte", "tied"
    return "C → V, its own matrix", count(parameters, "lm_head")


def flows_into(name: str, at: dict[str, Component]) -> str:
    """The shape at the arrow into a box; of attention's inputs, where they differ, the queries'."""
    each = ""
    if name == "h.attn.sdpa":
        each = "q " if "K" in at["h.attn.k"].output_letters else "q, k, v each "
    return each + shape(at[name].input_letters, at[name].input)


def count(parameters: Parameters, name: str) -> str:
    """The parameters of one instance of the component; nothing for a function without any."""
    count = parameters.by_component.get(name, 0)
    count //= instances(name, parameters.n_layer)
    return f"{count:,}" if count else ""


def _flows(name: str, at: dict[str, Component]) -> str:
    return shape(at[name].input_letters, at[name].input)


def shape(letters: tuple[str, ...], sizes: tuple[int, ...]) -> str:
    """(B, T) = (12, 64)."""
    return f"({', '.join(letters)}) = ({', '.join(map(str, sizes))})"


def _put(line: str, column: int, text: str) -> str:
    """`line` with `text` written over it from `column` on."""
    return line[:column].ljust(column) + text + line[column + len(text) :]
