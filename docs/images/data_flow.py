"""The way of the data as an SVG: text → documents → tokens → shards → batches → … → checkpoint."""

from collections.abc import Callable
from html import escape

WIDTH, HEIGHT = 960, 560
BOX, GAP, TOP = 204, 24, 74  # width of a box, space between two, where the first row of them starts
LEFT = 36
ROW = 196  # height of a box
BLUE, GREEN, AMBER, PINK = "#93c5fd", "#86efac", "#fcd34d", "#f9a8d4"

STYLE = """\
text { font-family: ui-sans-serif, system-ui, Helvetica, Arial, sans-serif; fill: #111827 }
.title { font-size: 17px; font-weight: 600 } .note { font-size: 12.5px; fill: #374151 }
.command { font-size: 14px; font-family: ui-monospace, Menlo, Consolas, monospace; fill: #1d4ed8 }
.id { font-size: 11px; font-family: ui-monospace, Menlo, Consolas, monospace }
.box { fill: #f9fafb; stroke: #374151 }
.frame { fill: none; stroke: #9ca3af; stroke-dasharray: 6 4 }
.arrow { stroke: #374151; stroke-width: 1.6; fill: none; marker-end: url(#tip) }
"""
TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#374151"/></marker></defs>'
)


def draw() -> str:
    """The whole picture, on a white ground, so that it is legible on any page."""
    rows: list[tuple[str, list[Box]]] = [
        ("nanogpt prepare", [TEXT, DOCUMENTS, TOKENS, SHARDS]),
        ("nanogpt train", [BATCHES, RANKS, STEP, CHECKPOINT]),
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}">',
        f"<style>\n{STYLE}</style>",
        TIP,
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="white"/>',
    ]
    for number, (command, boxes) in enumerate(rows):
        y = TOP - 32 + number * (ROW + 66)
        parts.append(text(LEFT, y + 10, command, "command"))
        parts.append(rect(24, y - 12, WIDTH - 48, ROW + 52, "frame"))
        for column, box in enumerate(boxes):
            x = LEFT + column * (BOX + GAP)
            parts += draw_box(x, y + 24, box)
            if column < len(boxes) - 1:
                parts.append(
                    f'<path class="arrow" d="M {x + BOX} {y + 24 + ROW / 2} h {GAP - 2}"/>'
                )
    turn = TOP - 32 + 24 + ROW
    x = LEFT + 3 * (BOX + GAP) + BOX / 2
    parts.append(f'<path class="arrow" d="M {x} {turn} v 27 H {LEFT + 160} v 37"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


Box = tuple[str, list[str], Callable[[float, float], list[str]]]


def draw_box(x: float, y: float, box: Box) -> list[str]:
    title, notes, picture = box
    lines = [text(x + 12, y + 136 + 17 * n, note, "note") for n, note in enumerate(notes)]
    return [
        rect(x, y, BOX, ROW, "box"),
        text(x + 12, y + 26, title, "title"),
        *picture(x + 12, y + 40),
        *lines,
    ]


def rect(x: float, y: float, width: float, height: float, kind: str = "", fill: str = "") -> str:
    look = f'class="{kind}"' if kind else f'fill="{fill}" stroke="#374151" stroke-width="0.8"'
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" {look}/>'


def text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'


def line(x: float, y: float, length: float) -> str:
    return f'<path d="M {x:g} {y:g} h {length:g}" stroke="#6b7280" stroke-width="3"/>'


def _text(x: float, y: float) -> list[str]:
    sheets = [rect(x + 14 * n, y + 6 * n, 120, 62, fill="white") for n in range(3)]
    return sheets + [line(x + 38, y + 26 + 12 * n, (96, 80, 92)[n]) for n in range(3)]


def _documents(x: float, y: float) -> list[str]:
    parts = []
    for n, (color, length) in enumerate([(BLUE, 150), (GREEN, 96), (AMBER, 128)]):
        parts.append(rect(x, y + 26 * n, length, 20, fill=color))
        parts.append(line(x + 8, y + 26 * n + 10, length - 40))
    return parts


def _tokens(x: float, y: float) -> list[str]:
    ids = [[2514, 307, 11, 393], [407, 284, 307, 50256], [1026, 318, 257, 890]]
    parts = []
    for row, (values, color) in enumerate(zip(ids, (BLUE, BLUE, GREEN), strict=True)):
        for column, value in enumerate(values):
            fill = "white" if value == 50256 else color
            parts.append(rect(x + 43 * column, y + 26 * row, 41, 20, fill=fill))
            parts.append(text(x + 43 * column + 3, y + 26 * row + 14, str(value), "id"))
    return parts


def _shards(x: float, y: float) -> list[str]:
    parts = []
    for n in range(3):
        parts.append(rect(x, y + 26 * n, 172, 20, fill="#e5e7eb"))
        parts.append(rect(x, y + 26 * n, 24, 20, fill=PINK))
        parts.append(text(x + 32, y + 26 * n + 14, f"train_{n:06}.bin", "id"))
    return parts


def grid(x: float, y: float, colors: list[str]) -> list[str]:
    return [
        rect(x + 17 * column, y + 19 * row, 15, 16, fill=color)
        for row, color in enumerate(colors)
        for column in range(10)
    ]


def _batches(x: float, y: float) -> list[str]:
    return grid(x, y, ["#e5e7eb"] * 4)


def _ranks(x: float, y: float) -> list[str]:
    return grid(x, y, [BLUE, BLUE, GREEN, GREEN])


def _step(x: float, y: float) -> list[str]:
    parts = []
    for n, (color, name) in enumerate([(BLUE, "rank 0"), (GREEN, "rank 1")]):
        parts.append(rect(x, y + 40 * n, 70, 32, fill=color))
        parts.append(text(x + 14, y + 40 * n + 20, name, "id"))
        parts.append(f'<path class="arrow" d="M {x + 70} {y + 40 * n + 16} L {x + 98} {y + 36}"/>')
    return [*parts, rect(x + 100, y + 18, 72, 36, fill=AMBER), text(x + 116, y + 40, "AdamW", "id")]


def _checkpoint(x: float, y: float) -> list[str]:
    names = ["model.safetensors", "optimizer.safetensors", "manifest.json"]
    parts = []
    for n, name in enumerate(names):
        parts.append(rect(x, y + 26 * n, 172, 20, fill=(BLUE, AMBER, PINK)[n]))
        parts.append(text(x + 8, y + 26 * n + 14, name, "id"))
    return parts


TEXT: Box = ("text", ["your files, or a corpus", "of the Hugging Face hub"], _text)
DOCUMENTS: Box = ("documents", ["a file, a line or a row each;", "to train or to val"], _documents)
TOKENS: Box = (
    "tokens",
    ["ids of the tokenizer;", "an end of text behind", "each document"],
    _tokens,
)
SHARDS: Box = (
    "shards",
    ["uint16 ids, a CRC32 a MiB;", "a manifest with each", "file's sha256"],
    _shards,
)
BATCHES: Box = ("batches", ["windows of tokens, chosen", "by (seed, data, step) alone"], _batches)
RANKS: Box = (
    "ranks",
    ["each takes its rows: the", "order is the same on any", "number of ranks"],
    _ranks,
)
STEP: Box = ("step", ["forward, backward, the", "mean of the gradients,", "AdamW"], _step)
CHECKPOINT: Box = (
    "checkpoint",
    ["written aside, hashed and", "renamed; a killed run ends", "with the same bytes"],
    _checkpoint,
)
