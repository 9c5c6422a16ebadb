"""The share of a GPU's peak that a training reaches (MFU): given, measured, or as others published.

Published are what others' programs reached, on the device nearest to the one that is asked for and
with a model of about that size; a bench of one's own machine says more.

Sources: llm-foundry: MosaicML 2023, scripts/train/benchmarking/README.md at commit 061f2c7, rows of
1,024 or 2,048 tokens with the least GPUs that train that size well. nanoGPT: its README, GPT-2 124M
on 8 × A100 40GB in "about 4 days", 600,000 steps of 491,520 tokens at 856 MFLOP. Llama 3: Dubey et
al. 2024, "The Llama 3 Herd of Models", table 4. benchmarks/RESULTS.md, README.md: of this
toolkit.
"""

import itertools
import json
import math
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_dist.errors import BadDataError, MissingInputError
from nanogpt_dist.estimate.accelerators import Accelerator
from nanogpt_dist.storage.durable import read_small, shown

MPT = "llm-foundry"
MODES = ("none", "selective", "full")


@dataclass(frozen=True)
class Published:
    """One figure: device as in the catalogue, parameters, tokens of a sequence, how many GPUs.

    activation_checkpointing: with which it was reached.
    """

    device: str
    parameters: float
    length: int
    gpus: int
    mfu: float
    source: str
    activation_checkpointing: str = "none"


PUBLISHED = (
    Published("h100-80gb", 0.76e9, 1024, 8, 0.3976, MPT),
    Published("h100-80gb", 1.3e9, 1024, 8, 0.4195, MPT),
    Published("h100-80gb", 2.6e9, 1024, 8, 0.4620, MPT),
    Published("h100-80gb", 6.7e9, 2048, 8, 0.4644, MPT),
    Published("h100-80gb", 12.9e9, 2048, 8, 0.3979, MPT),
    Published("h100-80gb", 30.0e9, 2048, 32, 0.4392, MPT, "full"),
    Published("h100-80gb", 64.9e9, 2048, 64, 0.4257, MPT, "full"),
    Published("h100-80gb", 405e9, 8192, 16384, 0.41, "Llama 3"),
    Published("a100-80gb", 0.125e9, 1024, 8, 0.4315, MPT),
    Published("a100-80gb", 0.355e9, 1024, 8, 0.5051, MPT),
    Published("a100-80gb", 0.76e9, 2048, 8, 0.5685, MPT),
    Published("a100-80gb", 1.3e9, 1024, 8, 0.6015, MPT),
    Published("a100-80gb", 2.6e9, 1024, 8, 0.6273, MPT),
    Published("a100-80gb", 6.7e9, 2048, 8, 0.6423, MPT),
    Published("a100-80gb", 12.9e9, 2048, 8, 0.5957, MPT),
    Published("a100-80gb", 30.0e9, 2048, 8, 0.5530, MPT, "full"),
    Published("a100-80gb", 64.9e9, 2048, 64, 0.5333, MPT, "full"),
    Published("a100-40gb", 0.1244e9, 1024, 8, 0.293, "nanoGPT"),
    Published("a100-40gb", 0.355e9, 1024, 8, 0.4873, MPT),
    Published("a100-40gb", 0.76e9, 1024, 8, 0.5363, MPT),
    Published("a100-40gb", 1.3e9, 1024, 8, 0.5702, MPT),
    Published("a100-40gb", 2.6e9, 1024, 8, 0.5814, MPT),
    Published("a100-40gb", 6.7e9, 1024, 8, 0.5131, MPT, "full"),
    Published("a100-40gb", 12.9e9, 2048, 32, 0.5262, MPT, "full"),
    Published("a100-40gb", 30.0e9, 2048, 32, 0.5174, MPT, "full"),
    Published("a100-40gb", 64.9e9, 2048, 128, 0.4891, MPT, "full"),
    Published("cpu", 1.8e6, 128, 2, 0.043, "README.md"),
    Published("cpu", 10.7e6, 256, 1, 0.778, "benchmarks/RESULTS.md"),
    Published("cpu", 124e6, 256, 1, 0.836, "benchmarks/RESULTS.md"),
)
# whose figures stand for a device that has none: the GPU of the same or the nearest generation
STAND_IN = {"h100-pcie": "h100-80gb", "h200": "h100-80gb", "b200": "h100-80gb"}
STAND_IN |= {"mi300x": "h100-80gb", "a100-pcie-80gb": "a100-80gb"}
OLDER = "a100-40gb"
NEAR = 8  # times as large or as small; what is smaller leaves a GPU idle


@dataclass(frozen=True)
class Mfu:
    """A share of the peak, and where it is from.

    kind: given, measured or published. source: in words. ranks: with how many it was measured; its
    communication is in it. peak_tflops: of the device then; None: that of the catalogue.
    activation_checkpointing: with which it was reached; a given one without.
    """

    share: float
    kind: str
    source: str
    ranks: int | None = None
    peak_tflops: float | None = None
    activation_checkpointing: str = "none"


def given_mfu(share: float) -> Mfu:
    """What somebody typed."""
    return Mfu(share, "given", "as given")


def published_mfu(device: Accelerator, parameters: float) -> Mfu:
    """Of the published figures the one nearest in size, for this device or its stand-in."""
    known = {row.device for row in PUBLISHED}
    name = "cpu" if device.kind != "cuda" else device.name
    if name not in known:
        name = STAND_IN.get(name, OLDER)
    rows = [row for row in PUBLISHED if row.device == name]
    row = min(rows, key=lambda row: abs(math.log(row.parameters / parameters)))
    what = f"{row.source}: {_short(row.parameters)} on {row.gpus:,} × {row.device}"
    mode = row.activation_checkpointing
    return Mfu(row.mfu, "published", what, row.gpus, activation_checkpointing=mode)


def is_published(device: str, parameters: float) -> bool:
    """Whether a figure of about that size stands for this device of the catalogue, or its like."""
    name = STAND_IN.get(device, device)
    sizes = [row.parameters for row in PUBLISHED if row.device == name]
    return any(1 / NEAR <= size / parameters <= NEAR for size in sizes)


def _short(parameters: float) -> str:
    return f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


@dataclass(frozen=True)
class Bench:
    """What `nanogpt bench train --json` printed. Milliseconds are of one step, of the median one.

    device: its kind, device_name: as torch has it. evaluation_tokens_per_second: over all ranks.
    Both are None in an older file, which does not say its activation_checkpointing either.
    """

    mfu: float
    peak_tflops: float
    ms_per_update: float
    first_step_seconds: float
    parameters: int
    ranks: int
    device: str
    evaluation_tokens_per_second: float | None = None
    device_name: str | None = None
    activation_checkpointing: str = "none"

    def as_mfu(self, measured: Path | str) -> Mfu:
        """Its MFU; measured: the file, or what else is its source."""
        device = self.device_name or self.device
        source = f"{measured}: {_short(self.parameters)} on {self.ranks} × {device}"
        mode = self.activation_checkpointing
        return Mfu(self.mfu, "measured", source, self.ranks, self.peak_tflops, mode)


def read_bench(path: Path) -> Bench:
    """The Bench in a file. Raises MissingInputError, BadDataError."""
    from pydantic import TypeAdapter

    try:
        values: Any = json.loads(read_small(path))
        names = Bench.__dataclass_fields__
        known = {name: values[name] for name in names if name in values}
        found = TypeAdapter(Bench).validate_python(known)
        if not (0 < found.mfu < 2 and found.peak_tflops > 0 and found.ms_per_update > 0):
            raise ValueError
        if not (0 < found.parameters < 2**63 and found.ranks > 0):
            raise ValueError
        if found.activation_checkpointing not in MODES:
            raise ValueError
        return found
    except FileNotFoundError:
        raise MissingInputError(f"{shown(path)} does not exist; {_to_make(path)}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise BadDataError(
            f"{shown(path)} is not what bench train prints with --json; {_to_make(_unused())}"
        ) from None


def _to_make(path: Path) -> str:
    return f"type: nanogpt bench train --json > {shlex.quote(str(path))}"


def _unused() -> Path:
    """bench.json, or where it is there the next name that no file has: bench-2.json and so on."""
    names = itertools.chain(["bench.json"], (f"bench-{n}.json" for n in itertools.count(2)))
    return next(path for name in names if not os.path.lexists(path := Path(name)))
