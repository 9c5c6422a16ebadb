"""The model as an SVG picture: the boxes of the drawing, with the shape at each arrow."""

from xml.sax.saxutils import escape

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.errors import one_line
from nanogpt_dist.inspect.architecture import Component, Parameters
from nanogpt_dist.inspect.diagram_text import added_boxes, boxes, count, flows_into, lm_head, shape

WIDTH, BOX_WIDTH, BOX_HEIGHT, GAP = 760, 380, 42, 40  # pixels
LEFT = (WIDTH - BOX_WIDTH) / 2
TITLE = 76  # characters of the title
BESIDE = 6.8  # pixels of a character of a label
RAIL = LEFT - 70  # where the residual stream passes a sublayer by
COLOURS = {
    "embedding": "#dbeafe",
    "norm": "#fef3c7",
    "attention": "#dcfce7",
    "mlp": "#fce7f3",
    "head": "#ede9fe",
}

STYLE = """
text { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px; fill: #111827 }
.shape, .count { font-size: 11px; fill: #4b5563 } .title { font-size: 15px; font-weight: bold }
rect { stroke: #374151; stroke-width: 1; rx: 6 }
.frame { fill: none; stroke: #9ca3af; stroke-dasharray: 6 4 }
path { stroke: #374151; fill: none; stroke-width: 1.4 } .arrow { marker-end: url(#tip) }
"""


class _Canvas:
    """Grows downwards: y is where the next thing begins."""

    def __init__(self) -> None:
        self.y, self.parts = 30.0, list[str]()

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def path(self, d: str, arrow: bool = True) -> None:
        self.parts.append(
            f'<path d="{d}"{" class=" + chr(34) + "arrow" + chr(34) if arrow else ""}/>'
        )

    def box(self, name: str, text: str, count: str, colour: str) -> None:
        self.parts.append(
            f'<rect x="{LEFT:g}" y="{self.y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" '
            f'fill="{COLOURS[colour]}"/>'
        )
        self.text(LEFT + 10, self.y + 18, name)
        self.text(LEFT + 10, self.y + 34, text, "shape")
        self.text(LEFT + BOX_WIDTH - 10, self.y + 18, count, "count", "end")
        self.y += BOX_HEIGHT

    def arrow(self, label: str) -> None:
        self.path(f"M {WIDTH / 2:g} {self.y:g} v {GAP - 2:g}")
        self.text(WIDTH / 2 + 10, self.y + GAP / 2 + 4, label, "shape")
        self.y += GAP


def draw_svg(
    config: ModelConfig,
    parameters: Parameters,
    components: list[Component],
    title: str,
) -> str:
    """The whole model from token ids to logits, as the text of an SVG file."""
    at = {component.name: component for component in components}
    attention, mlp = boxes(config, at)
    embedding, start = added_boxes(config)
    canvas = _Canvas()
    says = f": {parameters.total:,} parameters"
    canvas.text(WIDTH / 2, canvas.y, one_line(title, TITLE - len(says)) + says, "title", "middle")
    labels = [flows_into(name, at) for name in (*attention, *mlp)]
    # its width
    frame = max(BOX_WIDTH + 248, WIDTH / 2 - LEFT + 124 + 20 + BESIDE * max(map(len, labels)))
    canvas.y += 14
    canvas.arrow(f"token ids {shape(at['GPT'].input_letters, at['GPT'].input)}")
    canvas.box("wte", "token embedding, V × C", count(parameters, "wte"), "embedding")
    if not config.rotary:
        canvas.arrow("+ a row of wpe for each position")
        canvas.box("wpe", "position embedding, T × C", count(parameters, "wpe"), "embedding")
    _row(canvas, embedding, "embedding", parameters, at)
    canvas.arrow(shape(at["h"].input_letters, at["h"].input))
    top = canvas.y
    canvas.text(LEFT - 110, top + 18, f"block × {parameters.n_layer}", "title")
    canvas.y += 24
    _row(canvas, start, "embedding", parameters, at)
    for names, colour in ((attention, "attention"), (mlp, "mlp")):
        _sublayer(canvas, names, colour, parameters, at)
    canvas.parts.append(
        f'<rect class="frame" x="{LEFT - 124:g}" y="{top:g}" width="{frame:g}" '
        f'height="{canvas.y - top:g}"/>'
    )
    canvas.arrow(shape(at["h"].output_letters, at["h"].output))
    canvas.box("ln_f", attention["h.ln_1"], count(parameters, "ln_f"), "norm")
    canvas.arrow(shape(at["lm_head"].input_letters, at["lm_head"].input))
    canvas.box("lm_head", *lm_head(config, parameters), "head")
    canvas.arrow(f"logits {shape(at['GPT'].output_letters, at['GPT'].output)}")
    body = "\n".join(canvas.parts)
    height = canvas.y + 20
    width = WIDTH + frame - (BOX_WIDTH + 248)
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {size}>
<style>{STYLE}</style>
<defs>
<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M 0 0 L 8 4 L 0 8 z" style="fill: #374151; stroke: none"/></marker></defs>
<rect x="0" y="0" width="{width:g}" height="{height:g}" style="fill: white; stroke: none"/>
{body}
</svg>
"""


def _row(
    canvas: _Canvas,
    names: dict[str, str],
    colour: str,
    parameters: Parameters,
    at: dict[str, Component],
) -> None:
    """Boxes one below the other, each with the arrow into it."""
    for name, text in names.items():
        is_norm = name.removeprefix("h.").startswith("ln")
        canvas.arrow(flows_into(name, at))
        canvas.box(name, text, count(parameters, name), "norm" if is_norm else colour)


def _sublayer(
    canvas: _Canvas,
    names: dict[str, str],
    colour: str,
    parameters: Parameters,
    at: dict[str, Component],
) -> None:
    """Boxes in a row, and beside them the residual stream, which is added at the end."""
    start = canvas.y
    _row(canvas, names, colour, parameters, at)
    canvas.path(f"M {WIDTH / 2:g} {canvas.y:g} v {GAP / 2:g}", arrow=False)
    canvas.y += GAP / 2
    middle = canvas.y + 10
    canvas.path(f"M {WIDTH / 2:g} {start + 8:g} H {RAIL:g} V {middle:g} H {WIDTH / 2 - 12:g}")
    canvas.parts.append(
        f'<circle cx="{WIDTH / 2:g}" cy="{middle:g}" r="10" fill="white" stroke="#374151"/>'
    )
    canvas.text(WIDTH / 2, middle + 5, "+", "", "middle")
    canvas.y = middle + 10
