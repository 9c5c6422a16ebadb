"""The figures of docs/explanations/memory.md are those that the program computes."""

import re

from nanogpt_dist.estimate.memory_plan import Alternative, best, site_of
from nanogpt_dist.load_config import load
from tests.conftest import CLONE

PAGE = (CLONE / "docs/explanations/memory.md").read_text()
EXAMPLES = (("gpt2-124m", 1, 80), ("gpt2-1558m", 8, 40))


def chosen(preset: str, ranks: int, card: int) -> Alternative:
    return best(site_of(load(preset), card * 10**9, ranks, ranks), ranks)


def test_the_examples_are_what_is_chosen() -> None:
    header = next(line for line in PAGE.splitlines() if line.startswith("| part | gpt2-124m"))
    for cell, (preset, ranks, card) in zip(header.split("|")[2:4], EXAMPLES, strict=True):
        found = chosen(preset, ranks, card)
        mode, batch = found.layout.activation_checkpointing, found.layout.batch_size
        said = f"{preset}, {ranks} × {card} GB: {found.strategy}, {mode}, {batch} × "
        assert cell.strip() == f"{said}{found.micro_batches}"


def test_every_part_of_the_examples_is_there() -> None:
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    said = {name: tuple(int(cell.replace(",", "")) for cell in cells) for name, *cells in rows}
    for column, example in enumerate(EXAMPLES):
        found = chosen(*example)
        parts = {name: value for name, value in found.parts.items() if value}
        assert parts == {
            name: values[column]
            for name, values in said.items()
            if name != "peak" and values[column]
        }
        assert said["peak"][column] == found.peak


def test_the_blocks_share_of_the_activations_is_the_formulas() -> None:
    assert f"are {60 * 1024 * 12 * (36 * 768 + 48) / 1e9:.1f} GB of the activations" in PAGE
