"""The page of what fits: what `auto` chooses for each preset on GPUs of several sizes."""

import torch

from docs.generate.text import code, table
from nanogpt_dist.distributed.layout import Layout, Memory, Site, choose_layout
from nanogpt_dist.load_config import load
from nanogpt_dist.training.optim import training_bytes

SHOWN = ("gpt2-124m", "gpt2-350m", "gpt2-774m", "gpt2-1558m", "shakespeare-char")
CARDS_GB = (16, 24, 40, 48, 80, 141)
RANKS = (1, 8)

PAGE = """\
# What fits on which GPU

What `nanogpt train PRESET` chooses on one GPU and on eight, in bfloat16 and compiled: the strategy,
activation checkpointing, and the micro-batch, as sequences of one pass × passes of a rank in a
step; and the most memory, in GB, that it expects to take. By arithmetic: no GPU has been measured
yet. [Out of memory](../../how-to/out-of-memory.md) says how it chooses. A GB is 10⁹ bytes; a card
has a little more or less than its name says.

{sections}
"""


def memory_page() -> str:
    """A table for each preset."""
    return PAGE.format(sections="\n".join(map(preset_section, SHOWN)))


def preset_section(name: str) -> str:
    """What is chosen for one preset, by size and number of GPUs."""
    header = ("GPU", *(f"{ranks} GPU{'s' if ranks > 1 else ''}" for ranks in RANKS))
    rows = [(f"{card} GB", *(cell(name, card, ranks) for ranks in RANKS)) for card in CARDS_GB]
    return f"## {name}\n\n{table(header, rows)}"


def cell(name: str, card_gb: int, ranks: int) -> str:
    """What is chosen, or that nothing fits."""
    config = load(name)
    memory = Memory(card_gb * 10**9, None, 1, "cuda")
    site = Site(config, memory, ranks, torch.bfloat16, training_bytes(config))
    layout = choose_layout(site)
    return described(layout, site.share) if site.fits(layout) else "does not fit"


def described(layout: Layout, share: int) -> str:
    """One choice; share: sequences of a rank in a step."""
    assert layout.usage is not None
    return (
        f"{code(layout.strategy)}, {code(layout.activation_checkpointing)}, {layout.batch_size} × "
        f"{share // layout.batch_size}: {layout.usage.peak / 1e9:.1f}"
    )
