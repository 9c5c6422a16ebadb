"""Shards that are cut, flipped or mixed up, and that are read for very long."""

import os
import random
import shutil
from pathlib import Path

import numpy as np

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import DataFolder, verify_folder
from nanogpt_dist.data.format import BLOCK_BYTES, HEADER_BYTES
from tests.faults import commands, damage, prepared
from tests.faults.checks import tensors
from tests.faults.row import Row
from tests.nanogpt_dist.data.test_shards import write_folder

BY_COMMAND = 0.1  # of the tries: those that the command trains on, in a second; others read
LINE = ["train", "--dataset", "data", "--out-dir", "out", *prepared.STEPS_24]


@prepared.once
def shards(folder: Path) -> None:
    """FOLDER/data: train of 2 MiB of ids and a short shard, val of one; FOLDER/out: trained on."""
    ids = np.random.default_rng(1).integers(0, 257, 601_000).astype(np.uint16)
    write_folder(folder / "data", ids, ids[:1000], tokenizers.byte(), 600_000)
    commands.run(*LINE, folder=folder)


def own_data(folder: Path) -> Path:
    return Path(shutil.copytree(shards() / "data", folder / "data"))


def any_file(data: Path, choose: random.Random) -> Path:
    """A file with bytes in it; a shard more often than its sidecars."""
    files = [path for path in sorted(data.iterdir()) if path.stat().st_size]
    weights = [4 if path.suffix == ".bin" else 1 for path in files]
    return choose.choices(files, weights)[0]


def refuse_training(folder: Path, *words: str, run: str = "out") -> None:
    """`train` ends with 65, these words, and without a step."""
    line = [run if word == "out" else word for word in LINE]
    damage.line_of(commands.run(*line, folder=folder, code=65), *words)
    record = folder / run / "metrics.jsonl"
    assert not record.exists() or not record.read_text(), "steps were made"
    assert not list((folder / run).glob("checkpoints/step-*")), "something was saved"


def truncated(choose: random.Random, folder: Path) -> None:
    """Cut a file of a data folder off, or make it longer."""
    data = own_data(folder)
    path = any_file(data, choose)
    size = path.stat().st_size
    left = damage.cut(path, choose)
    if choose.random() < 0.1:
        left = size + choose.randrange(1, 9)
        path.write_bytes((shards() / "data" / path.name).read_bytes() + bytes(left - size))
    told = [path.name]
    if path.name != "manifest.json":
        told.append(f"has {left:,} bytes, expected {size:,}")
    if path.name == "tokenizer.json":
        told = ["tokenizer.json"]
    damage.refused(lambda: DataFolder.open(data), *told)
    [(name, reason)] = verify_folder(data)
    assert name == path.name, f"{name}: {reason}"
    if choose.random() < BY_COMMAND:
        refuse_training(folder, *told[:1])


def flipped(choose: random.Random, folder: Path) -> None:
    """Flip a bit of a data folder: in a header, ids, a sidecar, the manifest."""
    data = own_data(folder)
    path = any_file(data, choose)
    in_header = path.suffix == ".bin" and choose.random() < 0.4
    where = damage.flip(path, choose, HEADER_BYTES if in_header else None)
    [(name, reason)] = verify_folder(data)
    assert name == path.name, f"{name}: {reason}"
    if path.suffix == ".bin":
        block = (where - HEADER_BYTES) // BLOCK_BYTES
        place = "header" if where < HEADER_BYTES else f"MiB {block} of "
        assert reason.startswith(f"damaged in {place}"), reason
    if choose.random() < BY_COMMAND:
        train_on_good_blocks(folder, path)
    else:
        read_good_blocks(data, path, where)


def read_good_blocks(data: Path, path: Path, where: int) -> None:
    """Every MiB but the damaged one reads as it was; that one, and what else is bad, does not."""
    whole = DataFolder.open(shards() / "data")
    if path.suffix != ".bin" or where < HEADER_BYTES:
        damage.refused(lambda: read_all(data), path.stem)
        return
    damaged, first = DataFolder.open(data), 0
    split = "val" if "_val_" in path.name else "train"
    for record in damaged.manifest.splits[split].shards:  # type: ignore[index]
        width = BLOCK_BYTES // 2
        for start in range(0, record.tokens, width):
            length = min(width, record.tokens - start)
            bad = record.file.name == path.name and (where - HEADER_BYTES) // 2 // width == (
                start // width
            )
            read = [each.split(split) for each in (damaged, whole)]  # type: ignore[arg-type]
            if bad:
                damage.refused(lambda: read[0].read(first + start, length), path.name)  # noqa: B023
            else:
                assert np.array_equal(*(each.read(first + start, length) for each in read))
        first += record.tokens


def read_all(data: Path) -> None:
    opened = DataFolder.open(data)
    for split in opened.splits.values():
        split.read(0, split.tokens)
        split.document_ends()


def train_on_good_blocks(folder: Path, path: Path) -> None:
    """Training ends at the damaged block, or never meets it and ends as it would have."""
    done = commands.run(*LINE, folder=folder, code=None)
    assert done.wait() in (0, 65), done.stderr[-500:]
    if done.wait():
        damage.line_of(done, path.stem)
    else:
        assert tensors(folder / "out", 24) == tensors(shards() / "out", 24), "another end"


def edited_set(choose: random.Random, folder: Path) -> None:
    """Add, remove, rename, exchange or prepare anew some of the shards under a run."""
    data = own_data(folder)
    shutil.copytree(shards() / "out", folder / "out")
    was = damage.contents(folder / "out" / "checkpoints")
    files = sorted(data.glob("*.bin"))
    way = choose.choice(["add", "remove", "rename", "exchange", "another", "folder"])
    if way == "add":
        shutil.copy(files[0], data / files[0].name.replace("000000", "000002"))
        assert verify_folder(data) == []
        resumed_as_before(folder, "data")
        return
    if way == "folder":  # by its content the data is the same, whatever its name
        data.rename(folder / "renamed")
        resumed_as_before(folder, "renamed")
        return
    if way == "remove":
        choose.choice(files).unlink()
    elif way == "rename":
        path = choose.choice(files)
        path.rename(path.with_name(f"x{path.name}"))
    elif way == "exchange":
        files[1].rename(data / "aside")
        files[0].rename(files[1])
        (data / "aside").rename(files[0])
    else:
        ids = np.random.default_rng(choose.randrange(2**32)).integers(0, 257, 602_000)
        if choose.random() < 0.5:  # the same with more behind it
            ids[:601_000] = DataFolder.open(shards() / "data").split("train").read(0, 601_000)
        shutil.rmtree(data)
        write_folder(data, ids.astype(np.uint16), ids[:1000], tokenizers.byte(), 600_000)
    words = ["was trained on data set"] if way == "another" else ["mine_"]
    damage.line_of(commands.run(*LINE, folder=folder, code=65), *words)
    assert damage.contents(folder / "out" / "checkpoints") == was
    if way != "another":
        refuse_training(folder, *words, run="new")


def resumed_as_before(folder: Path, data: str) -> None:
    """A run goes on with `data` from the step before the last: the end is the same."""
    shutil.rmtree(folder / "out" / "checkpoints" / "step-00000024")
    line = [data if word == "data" else word for word in LINE]
    commands.run(*line, folder=folder)
    assert tensors(folder / "out", 24) == tensors(shards() / "out", 24), "another end"


LARGE_TOKENS = 1 << 27  # of the data set that is read again and again: 256 MiB
BATCHES = 100_000


@prepared.once
def large(folder: Path) -> None:
    """FOLDER/data: 256 MiB of ids in shards of 32 MiB."""
    ids = np.resize(np.random.default_rng(1).integers(0, 257, 1 << 20), LARGE_TOKENS)
    write_folder(folder / "data", ids.astype(np.uint16), ids[:1000], tokenizers.byte(), 1 << 24)


def read_much(choose: random.Random, folder: Path) -> None:
    """Read as many batches as a long run does; memory must not grow with what was read."""
    split = DataFolder.open(large() / "data").split("train")
    length = 1025
    for start in range(0, LARGE_TOKENS - length, BLOCK_BYTES // 2):  # each MiB is checked once
        split.read(start, length)
    before = resident_bytes()
    for _ in range(BATCHES):
        split.read(choose.randrange(LARGE_TOKENS - length), length)
    grown = resident_bytes() - before
    assert grown <= 64 << 20, f"{grown:,} bytes more in memory"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


ROWS = [
    Row(
        number=15,
        fault="a file of a data folder cut off, or longer",
        holds="named with its bytes and those expected, before step 1",
        goal=200,
        attempt=truncated,
        short=4,
    ),
    Row(
        number=16,
        fault="a bit flipped in a shard's header or ids, a sidecar, the manifest",
        holds="named, a shard's MiB, too; no id of a bad MiB is trained on, all others read",
        goal=1000,
        attempt=flipped,
        short=8,
    ),
    Row(
        number=29,
        fault="shards added, removed, renamed, exchanged or prepared anew under a run",
        holds="refused before a step; what is not in the manifest is not read, names do not count",
        goal=100,
        attempt=edited_set,
        short=1,
    ),
    Row(
        number=48,
        fault="100,000 batches read out of 256 MiB of shards",
        holds="memory grows by 64 MiB at most",
        goal=3,
        attempt=read_much,
    ),
]
