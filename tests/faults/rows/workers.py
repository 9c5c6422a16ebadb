"""What `prepare` is given too much of, or loses: a document of a gigabyte, its workers."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from launch import processes
from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.documents import Documents
from tests.conftest import command, hashes, write_jsonl
from tests.faults import commands, damage, prepared
from tests.faults.row import Row
from tests.prepare.hub_repos import english

NOTICED_S = 5.0  # after which a worker that was killed must be known to be gone, on an idle machine


@prepared.once
def by_workers(folder: Path) -> None:
    """FOLDER/text.jsonl, of several units, and FOLDER/out, prepared of it."""
    write_jsonl(folder / "text.jsonl", english(8000, 1))
    commands.run(*prepare_line(folder), folder=folder)


def prepare_line(made: Path) -> list[object]:
    line: list[object] = ["prepare", "text", "--source", made / "text.jsonl", "--out", "out"]
    return [*line, "--tokenizer", "gpt2", "--workers", 2]


def worker_killed(choose: random.Random, folder: Path) -> float:
    """Kill a worker at any moment, or each as it comes; the seconds until that is noticed."""
    made = by_workers()
    started = commands.start(*prepare_line(made), folder=folder)
    if choose.random() < 0.2:
        return all_killed(started, folder)
    seen = wait_for_workers(started, set())
    time.sleep(choose.uniform(0.0, 1.0))
    victims = workers_of(started)
    if victims:  # else they are done by now
        processes.send(signal.SIGKILL, [choose.choice(sorted(victims))])
    killed = time.monotonic()
    wait_for_workers(started, seen | victims)
    noticed = time.monotonic() - killed
    assert started.wait() == 0, started.stderr[-500:]
    assert hashes(folder / "out") == hashes(made / "out"), "other bytes"
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # that shares each processor
    assert noticed <= NOTICED_S * crowd, f"{noticed:.1f} s until other workers came"
    return noticed


def workers_of(started: commands.Started) -> set[int]:
    """The processes that encode, or are about to."""
    return {pid for pid in processes.children(started.pids[0]) if "spawn_main" in said_of(pid)}


def said_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def wait_for_workers(started: commands.Started, but: set[int]) -> set[int]:
    """The first workers that are none of `but`; none where the command has ended."""
    deadline = time.monotonic() + 60
    while not (found := workers_of(started) - but) and not started.poll():
        assert time.monotonic() < deadline, "no worker came"
        time.sleep(0.005)
    return found


def all_killed(started: commands.Started, folder: Path) -> float:
    """Kill all workers as soon as they come, as the kernel does where memory is short."""
    begun = time.monotonic()
    while not started.poll():
        for pid in workers_of(started):
            processes.send(signal.SIGKILL, [pid])
        time.sleep(0.02)
    assert started.wait() == 74, f"returned {started.wait()}: {started.stderr[-500:]}"
    damage.line_of(started, "a worker died 3 times, now at")
    assert not (folder / "out" / "manifest.json").exists()
    return min(time.monotonic() - begun, NOTICED_S)


# ---- one long document

MEGABYTES = 1000  # of the one document
RSS_BYTES = 1_500_000_000  # that a process may have in memory meanwhile


@prepared.once
def long_texts(folder: Path) -> None:
    """NAME.txt: a part that begins and ends where a word does, so that many make a document whose
    ids are theirs; NAME.npy: its ids; short.jsonl: other documents.
    """
    stdlib = Path(os.__file__).parent
    text = " ".join((stdlib / name).read_text() for name in ("ast.py", "argparse.py", "os.py"))
    plain = " " + " ".join(text.split())
    parts = {
        "words": [plain * 10, " x"],
        "code": [" x", text, " x"],
        "letters": [plain, f" {'a' * 300_000}", " x"],
        "spaces": [plain, " " * 1_000_000, " x"],
    }
    tokenizer = tokenizers.gpt2()
    for name, pieces in parts.items():
        (folder / f"{name}.txt").write_text("".join(pieces), encoding="utf-8", newline="")
        ids = [in_one_piece(tokenizer, piece) for piece in pieces]
        np.save(folder / f"{name}.npy", np.concatenate(ids))
    write_jsonl(folder / "short.jsonl", english(100, 1))


def in_one_piece(tokenizer: tokenizers.Tokenizer, text: str) -> np.ndarray:
    """The ids of a text that our own code has not cut."""
    if text.strip():
        return tokenizer._encode_by_tiktoken(text)
    assert tokenizer.pattern is not None
    encoding = tokenizer._encoding(tokenizer.pattern.text)  # its regular expression gives up
    return np.array(encoding._encode_single_piece(text), np.uint32)


def long_document(choose: random.Random, folder: Path) -> None:
    """Prepare a document of a gigabyte, a file or a line, in a process whose memory is counted."""
    made = long_texts()
    name = choose.choice(sorted(path.stem for path in made.glob("*.npy")))
    part = (made / f"{name}.txt").read_bytes()
    times = MEGABYTES * 1_000_000 // len(part) + 1
    path = write_long(folder, part, times, choose.random() < 0.5)
    line = ["prepare", "text", "--source", path, "--source", made / "short.jsonl"]
    line += ["--tokenizer", "gpt2", "--out", "out", "--val-fraction", "0.1", "--workers", "1"]
    peak = peak_bytes(command(*line), folder)
    assert peak <= RSS_BYTES, f"{peak:,} bytes in memory"
    same_ids(DataFolder.open(folder / "out"), np.load(made / f"{name}.npy"), times)
    shutil.rmtree(folder / "out")


def write_long(folder: Path, part: bytes, times: int, is_line: bool) -> Path:
    """A file that is `part`, that many times; or whose only line has it as its text."""
    path = folder / ("long.jsonl" if is_line else "long.txt")
    piece = json.dumps(part.decode(), ensure_ascii=False).encode()[1:-1] if is_line else part
    with path.open("wb") as file:
        file.write(b'{"text": "' if is_line else b"")
        for _ in range(times):
            file.write(piece)
        file.write(b'"}\n' if is_line else b"")
    return path


def peak_bytes(line: list[str], folder: Path) -> int:
    """Run a command to a good end; the most memory that it had."""
    with (folder / "said").open("wb") as said:
        started = subprocess.Popen(line, cwd=folder, stdout=said, stderr=said)
        _, status, used = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    assert started.returncode == 0, (folder / "said").read_text()[-500:]
    return used.ru_maxrss << (0 if sys.platform == "darwin" else 10)


def same_ids(data: DataFolder, part: np.ndarray, times: int) -> None:
    """One document is `part`, that many times, and an end of text."""
    length = len(part) * times
    for name in ("train", "val"):
        documents = Documents(data, name)  # type: ignore[arg-type]
        starts = [0, *documents.ends.tolist()]
        for start, end in zip(starts, documents.ends.tolist(), strict=False):
            if end - start != length + 1:
                continue
            for at in range(0, length, 1 << 20):
                ids = documents.split.read(start + at, min(1 << 20, length - at))
                wanted = np.take(part, np.arange(at, at + len(ids)) % len(part))
                assert np.array_equal(ids, wanted), f"other ids from {at:,} on"
            return
    raise AssertionError(f"no document has {length:,} ids")


ROWS = [
    Row(
        number=33,
        fault="one document of 1 GB: words, code, runs of one letter, 1,000,000 spaces",
        holds="the ids are those of the text in one piece; 1.5 GB of memory at most",
        goal=4,
        attempt=long_document,
        limit_s=900,
    ),
    Row(
        number=35,
        fault="a tokenizer worker killed, or all of them again and again",
        holds="the same bytes, noticed within 5 s; else one line that names the document",
        goal=50,
        attempt=worker_killed,
        short=1,
    ),
]
