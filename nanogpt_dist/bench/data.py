"""The speed at which steps get their tokens, from a data folder or from shards of random ids."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nanogpt_dist.bench.clock import spread
from nanogpt_dist.bench.train import behind_ramps
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.batches import Batches, Order
from nanogpt_dist.data.documents import document_starts
from nanogpt_dist.data.importing import import_shards
from nanogpt_dist.devices import memory_bytes
from nanogpt_dist.storage.durable import storage_errors

CPU = torch.device("cpu")
SHARD_BYTES = 2**27
FAR = 10**6  # steps


@dataclass(frozen=True)
class DataSpeed:
    """Figures of reading batches.

    open_ms: to open the folder; far_ms: to get the tokens of the millionth step, without those
    before it.

    ms_per_update: those of an update. memory_growth_bytes: what the process held more at the end of
    the reading.
    """

    tokens_per_second: float
    ms_per_update: float
    ms_least: float
    ms_greatest: float
    updates: int
    open_ms: float
    far_ms: float
    dataset: str
    dataset_tokens: int
    batch_tokens: int
    memory_bytes: int
    memory_growth_bytes: int
    mfu: None = None  # no products are made
    peak_tflops: None = None


def bench_data(
    config: TrainConfig,
    dataset: Path | None,
    megabytes: int,
    updates: int,
    seconds: float,
) -> DataSpeed:
    """Get the tokens of `updates` updates, or of as many as fit into `seconds`; at least of 3.

    dataset: a data folder; None: `megabytes` of random ids, in a folder for temporary files.
    Raises MissingInputError, BadDataError, StorageError.
    """
    if dataset is not None:
        return _measure(config, dataset, updates, seconds)
    with tempfile.TemporaryDirectory() as folder:
        return _measure(config, random_shards(Path(folder), megabytes), updates, seconds)


def random_shards(folder: Path, megabytes: int) -> Path:
    """A data folder in `folder` with as many MB of random ids of GPT-2. Raises StorageError."""
    drawn = np.random.default_rng(0)
    with storage_errors(folder):
        left = megabytes * 10**6
        for number in range(-(-left // SHARD_BYTES)):
            size = min(SHARD_BYTES, left)
            left -= size
            drawn.integers(50256, size=max(1, size // 2), dtype=np.uint16).tofile(
                folder / f"train_{number:03d}.bin"
            )
        drawn.integers(50256, size=4096, dtype=np.uint16).tofile(folder / "val.bin")
    return import_shards([folder], "gpt2")[0]


def _measure(config: TrainConfig, dataset: Path, updates: int, seconds: float) -> DataSpeed:
    start = time.perf_counter()
    data = DataFolder.open(dataset)
    opened = time.perf_counter() - start
    split = data.split("train")
    config = behind_ramps(config)
    order = Order(config.seed, data.dataset_id, config.block_size, split.tokens)
    aligned = document_starts(data) if config.align_documents else None
    batches = Batches(
        split,
        order,
        config.global_batch_size,
        config.batch_size,
        rank=0,
        ranks=1,
        aligned=aligned,
    )
    start = time.perf_counter()
    list(batches.of(FAR))
    far = time.perf_counter() - start
    before, deadline = memory_bytes(CPU), time.perf_counter() + seconds
    took: list[float] = []
    while len(took) < updates and (len(took) < 3 or time.perf_counter() < deadline):
        start = time.perf_counter()
        list(batches.of(len(took)))
        took.append(time.perf_counter() - start)
    median, least, greatest = spread(took)
    batch_tokens = config.ramp.at(0).tokens
    held = memory_bytes(CPU)
    return DataSpeed(
        tokens_per_second=batch_tokens / median * 1e3,
        ms_per_update=median,
        ms_least=least,
        ms_greatest=greatest,
        updates=len(took),
        open_ms=1e3 * opened,
        far_ms=1e3 * far,
        dataset=str(dataset),
        dataset_tokens=split.tokens,
        batch_tokens=batch_tokens,
        memory_bytes=held,
        memory_growth_bytes=held - before,
    )
