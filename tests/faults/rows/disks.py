"""Disks that are full, read-only, or lose power."""

import random
import resource
import shutil
from pathlib import Path

from nanogpt_dist.errors import MAX_LINE, StorageError
from nanogpt_dist.storage.json_lines import JsonLines
from tests.conftest import build, hashes, write_jsonl
from tests.faults import commands, damage, prepared, small_disk
from tests.faults.checks import tensors
from tests.faults.disk import PowerCut, acknowledged
from tests.faults.row import Row
from tests.faults.session import before, check
from tests.nanogpt_dist.storage.test_crash_safety import session_record

STATES = 50  # of the disk after a power cut, that a try looks at


def power_lost(choose: random.Random, folder: Path) -> None:
    """Pull the plug at any moment of a save; look at what may be on the disk then."""
    checkpoints = folder / "checkpoints"
    before(checkpoints)
    operations = session_record(checkpoints)
    for _ in range(STATES):
        end, in_order = choose.randrange(len(operations) + 1), choose.random() < 0.5
        disk = PowerCut(checkpoints)
        disk.replay([operation for operation in operations[:end] if operation[0] != "ack"])
        disk.put(folder / "after", choose, in_order)
        check(folder / "after", acknowledged(operations, end, in_order))
        shutil.rmtree(folder / "after")


@prepared.once
def small_shards(folder: Path) -> None:
    """FOLDER/text.jsonl, and FOLDER/data made of it without a fault, in several shards."""
    choose = random.Random(0)
    texts = ["".join(choose.choices("abc defgh\n", k=choose.randrange(800))) for _ in range(400)]
    build_data(write_jsonl(folder / "text.jsonl", texts), folder / "data")


def build_data(source: Path, out: Path) -> None:
    """Prepare a text byte by byte in shards of 20,000 ids."""
    build("text", out, sources=[source], tokenizer="byte", workers=1, shard_tokens=20_000)


def full_in_prepare(choose: random.Random, folder: Path) -> None:
    """Prepare on a disk that is too small, then again with room."""
    small_disk.of_its_own()
    made = small_shards()
    size = sum(path.stat().st_size for path in (made / "data").iterdir())
    disk = small_disk.mount(folder / "disk", choose.randrange(2 * size))
    out, by_command = disk / "out", choose.random() < 0.2
    if by_command:
        line = ["prepare", "text", "--source", made / "text.jsonl", "--tokenizer", "byte"]
        done = commands.run(*line, "--workers", "1", "--out", out, folder=folder, code=None)
        code = done.wait()
        assert code in (0, 74), f"returned {code}: {done.stderr[-500:]}"
        failed = code == 74
        if failed:
            damage.line_of(done, "disk full: ", "are free")
    else:
        failed = no_room(made / "text.jsonl", out)
    if failed:
        refuse_partial_shards(out, made / "data", by_command)
        small_disk.change(disk, "size=50m")
        if by_command:
            commands.run(*line, "--workers", "1", "--out", out, folder=folder)
        else:
            build_data(made / "text.jsonl", out)
    if by_command:
        build("text", folder / "whole", [made / "text.jsonl"], tokenizer="byte", workers=1)
    assert hashes(out) == hashes(folder / "whole" if by_command else made / "data")


def no_room(source: Path, out: Path) -> bool:
    """Whether preparing failed for want of room, as it is to be told."""
    try:
        build_data(source, out)
    except StorageError as error:
        said = str(error)
    else:
        return False
    assert said.startswith("disk full: "), said
    assert "are free" in said, said
    assert len(said) <= MAX_LINE, said
    return True


def refuse_partial_shards(out: Path, whole: Path, one_shard: bool) -> None:
    """What is left of a prepare that has failed: whole shards, and nothing half written."""
    for path in out.rglob("*") if out.exists() else ():
        assert not path.name.startswith(".tmp-"), f"{path.name} is left"
    for path in out.glob("*.bin") if out.exists() else ():
        assert not one_shard, f"{path.name} is there, but the text is one shard"
        assert path.read_bytes() == (whole / path.name).read_bytes(), f"{path.name} is no shard"


def unwritable(choose: random.Random, folder: Path) -> float:
    """Train, prepare or import into a folder that cannot be written; the seconds of processor
    time until it says so.
    """
    made, text = prepared.trained(), prepared.data().with_name("source.txt")
    out = folder / "there" / "out"
    way = choose.choice(["read-only disk", "file in the way", "link to nowhere", "full disk"])
    if way in ("read-only disk", "full disk"):
        small_disk.of_its_own()
        disk = small_disk.mount(folder / "there", 4096)
        if way == "full disk":
            (disk / "full").write_bytes(bytes(4096))
        else:
            small_disk.change(disk, "ro")
    elif way == "file in the way":
        choose.choice([out, out.parent]).parent.mkdir(exist_ok=True)
        (out if out.parent.is_dir() else out.parent).write_text("mine")
    else:
        out.parent.symlink_to(folder / "nowhere")
    was = damage.contents(folder)
    large = ["--n-layer", "12", "--n-embd", "768", "--n-head", "12"]  # its weights take seconds
    line = choose.choice(
        [
            ["train", "--dataset", made / "data", *prepared.STEPS_24, *large, "--out-dir", out],
            ["train", made / "out" / "checkpoints" / "step-00000024", "--out-dir", out],
            ["prepare", "text", "--source", text, "--tokenizer", "byte", "--out", out],
        ]
    )
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = commands.run(*line, folder=folder, code=None)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.wait() in (73, 74), f"{way} returned {done.wait()}: {done.stderr[-500:]}"
    damage.line_of(done, "out" if way != "file in the way" else "there")
    shutil.rmtree(done.folder)
    assert damage.contents(folder) == was, "something was written or changed"
    seconds = ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime
    assert seconds <= 2, f"{seconds:.1f} s of processor time went before it was noticed"
    return seconds


@prepared.once
def with_board(folder: Path) -> None:
    """FOLDER/data and FOLDER/out, a run with TensorBoard's files."""
    shutil.copytree(prepared.data() / "data", folder / "data")
    commands.run(*BOARD_LINE, folder=folder)


BOARD_LINE = [
    *("train", "--dataset", "data", "--out-dir", "out"),
    *(flag for flag in prepared.STEPS_24 if flag != "--no-tensorboard"),
]


def board_unwritable(choose: random.Random, folder: Path) -> None:
    """Train where TensorBoard's folder cannot be written, or is full before long."""
    whole = with_board()
    (folder / "data").symlink_to(whole / "data")
    board = folder / "out" / "tensorboard"
    way = choose.choice(["file in the way", "read-only disk", "full disk", "link to nowhere"])
    board.parent.mkdir()
    if way == "file in the way":
        board.write_text("mine")
    elif way == "link to nowhere":
        board.symlink_to(folder / "nowhere" / "else")
    else:
        small_disk.of_its_own()
        small_disk.mount(board, 4096)
        if way == "full disk":
            (board / "full").write_bytes(bytes(4096))
        else:
            small_disk.change(board, "ro")
    done = commands.run(*BOARD_LINE, folder=folder)
    told = done.stderr.count("TensorBoard's files cannot be written")
    assert told == 1, f"{way}: told {told} times: {done.stderr[-800:]}"
    assert "Traceback" not in done.stderr, done.stderr[-1000:]
    assert tensors(folder / "out", 24) == tensors(whole / "out", 24), "the end is another"
    losses = [
        [line.get("loss") for line in JsonLines(run / "out" / "metrics.jsonl").read()]
        for run in (folder, whole)
    ]
    assert losses[0] == losses[1], "metrics.jsonl has not everything"


ROWS = [
    Row(
        number=4,
        fault="power loss at any moment of a save, names changing in order or in none",
        holds="what was acknowledged is there, whole; nothing else looks whole",
        goal=10_000,
        attempt=power_lost,
        short=4,
        each=STATES,
    ),
    Row(
        number=12,
        fault="disk full in `prepare`",
        holds="exit 74, one line with the bytes free, no partial shard; with room it goes on",
        goal=100,
        attempt=full_in_prepare,
        short=1,
    ),
    Row(
        number=14,
        fault="out_dir read-only, full, or not to be made",
        holds="one line before the model is built, within 2 s of processor time; nothing written",
        goal=100,
        attempt=unwritable,
        short=2,
    ),
    Row(
        number=42,
        fault="TensorBoard's folder unwritable or full",
        holds="one warning; the run ends with the same bits, metrics.jsonl has everything",
        goal=50,
        attempt=board_unwritable,
        short=1,
    ),
]
