"""Several processes at one folder: under torchrun and as a Slurm array, the same bytes as one
process alone.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from nanogpt_dist.errors import BadDataError, NanogptError, StorageError, UsageError
from nanogpt_dist.storage.runlock import RunLock, lock_holder
from prepare.units import ranks as module
from prepare.units.journal import LOCK, WORK, WorkFolder
from prepare.units.ranks import Ranks
from tests.conftest import Run, command, hashes


def test_under_torchrun(source: Path, prepared: Path, nanogpt: Run, tmp_path: Path) -> None:
    line = [
        "prepare",
        "text",
        "--source",
        source,
        "--tokenizer",
        "bpe:300",
        "--out",
        "out",
        "--json",
    ]
    done = nanogpt(*line, ranks=2)
    assert json.loads(done.stdout)["documents"] == 3000
    assert hashes(tmp_path / "out") == hashes(prepared)
    again = nanogpt(*line, ranks=2)
    assert json.loads(again.stdout)["reused"] is True


def array(
    task: int,
    tasks: int,
    source: Path,
    folder: Path,
    tokenizer: str = "bpe:300",
) -> "subprocess.Popen[str]":
    slurm = {"COUNT": tasks, "ID": 1 + 2 * task, "MIN": 1, "MAX": 2 * tasks - 1, "STEP": 2}
    variables = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in slurm.items()}
    line = command(
        "prepare",
        "text",
        "--source",
        source,
        "--tokenizer",
        tokenizer,
        "--out",
        "out",
        "--workers",
        "1",
    )
    return subprocess.Popen(
        line,
        cwd=folder,
        env={**os.environ, **variables, "SLURM_ARRAY_JOB_ID": "77"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_as_a_slurm_array(order: list[int], source: Path, prepared: Path, tmp_path: Path) -> None:
    tasks = {task: array(task, 3, source, tmp_path) for task in order}
    told = {task: process.communicate(timeout=100) for task, process in tasks.items()}
    assert [process.returncode for process in tasks.values()] == [0, 0, 0], told
    assert [bool(told[task][0]) for task in range(3)] == [True, False, False]
    assert hashes(tmp_path / "out") == hashes(prepared)


@pytest.mark.parametrize(("tokenizer", "failing"), [("byte", 1), ("bpe:300", 0)])
def test_each_rank_hears_of_anothers_end(tokenizer: str, failing: int, tmp_path: Path) -> None:
    """The second unit, which is the other rank's, cannot be encoded, or not even be read by the
    leading one.
    """
    good = "".join(
        json.dumps({"text": f"document {i} " + "some text " * 100}) + "\n" for i in range(1200)
    )
    source = tmp_path / "a.jsonl"
    source.write_bytes(good.encode() + b'{"text": "caf\xe9"}\n')
    tasks = [array(task, 2, source, tmp_path, tokenizer) for task in (0, 1)]
    told = [process.communicate(timeout=100)[1] for process in tasks]
    assert tasks[failing].returncode == 65
    assert "a.jsonl:1201:13: byte 0xe9 is not UTF-8" in told[failing]
    assert tasks[1 - failing].returncode in (65, 74)
    assert f"rank {failing}" in told[1 - failing]


def test_arrays_with_gaps_are_refused() -> None:
    slurm = {"COUNT": 3, "ID": 9, "MIN": 1, "MAX": 9, "STEP": 1}
    with pytest.raises(UsageError, match="--array=0-2"):
        Ranks.of({f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in slurm.items()})
    assert Ranks.of({}) == Ranks.of({"WORLD_SIZE": "1", "RANK": "0"}) == Ranks()


@pytest.mark.parametrize("limit", [["--max-documents", "100"], ["--max-tokens", "30000"]])
def test_ranks_stop_where_the_limit_is(
    limit: list[str],
    source: Path,
    nanogpt: Run,
    tmp_path: Path,
) -> None:
    line = [
        "prepare",
        "text",
        "--source",
        source,
        "--tokenizer",
        "byte",
        "--val-fraction",
        "0.2",
        *limit,
    ]
    nanogpt(*line, "--out", "alone")
    nanogpt(*line, "--out", "ranks", ranks=2)
    assert hashes(tmp_path / "ranks") == hashes(tmp_path / "alone")


def test_standard_input_is_for_one(source: Path, tmp_path: Path) -> None:
    task = array(1, 2, Path("-"), tmp_path, "byte")
    assert "several ranks cannot share standard input" in task.communicate(timeout=60)[1]
    assert task.returncode == 2


def test_ranks_end_with_torchrun(source: Path, tmp_path: Path) -> None:
    """Killed, torchrun leaves its ranks behind; they must not hold the folder."""
    line = command(
        "prepare", "text", "--source", source, "--tokenizer", "bpe:300", "--out", "out", ranks=2
    )
    torchrun = subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    lock = tmp_path / "out" / WORK / LOCK
    while lock_holder(lock) is None and torchrun.poll() is None:
        time.sleep(0.005)
    torchrun.kill()
    torchrun.wait()
    deadline = time.monotonic() + 20
    while lock_holder(lock) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lock_holder(lock) is None


SLURM = {"ID": "4", "COUNT": "3", "MIN": "2", "MAX": "6", "STEP": "2"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2"}


def slurm(**changed: str) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": value for name, value in {**SLURM, **changed}.items()}


@pytest.mark.parametrize(
    ("environment", "rank", "size"),
    [
        ({}, 0, 1),
        ({"RANK": "5"}, 0, 1),
        ({"WORLD_SIZE": "4"}, 0, 1),  # some clusters set that alone
        ({"WORLD_SIZE": "1", "RANK": "0"}, 0, 1),
        (TORCHRUN, 1, 2),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 0, 2),
        ({"WORLD_SIZE": "999999999", "RANK": "999999998"}, 999_999_998, 999_999_999),
        (slurm(), 1, 3),
        (slurm(ID="2"), 0, 3),
        (slurm(ID="6"), 2, 3),
        (slurm(COUNT="2", MAX="4"), 1, 2),
        ({**slurm(), "WORLD_SIZE": "1", "RANK": "0"}, 1, 3),
        ({**slurm(), **TORCHRUN}, 1, 2),
        (slurm(COUNT="1", MIN="9"), 0, 1),
        ({"SLURM_ARRAY_TASK_COUNT": "1"}, 0, 1),
    ],
)
def test_a_rank_knows_its_number(environment: dict[str, str], rank: int, size: int) -> None:
    found = Ranks.of(environment)
    assert (found.rank, found.size, found.is_rank0) == (rank, size, rank == 0)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2", "RANK": "2"},
        {"WORLD_SIZE": "2", "RANK": "-1"},
        {"WORLD_SIZE": "2", "RANK": ""},
        {"WORLD_SIZE": "two", "RANK": "1"},
        {"WORLD_SIZE": "1000000000", "RANK": "1"},
        {"SLURM_ARRAY_TASK_COUNT": "many"},
        slurm(STEP="0"),
        slurm(STEP="1"),
        slurm(COUNT="2"),
        slurm(ID="7"),
        slurm(ID="1"),
        slurm(MAX=""),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"unset|type sbatch --array=0-") as caught:
        Ranks.of(environment)
    assert len(str(caught.value)) < 200


def test_a_run_is_told_from_an_earlier_one() -> None:
    """By what torchrun and Slurm number it with, restarts included."""
    numbered = [
        {**TORCHRUN, name: value}
        for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
        for value in ("1", "2")
    ]
    numbered += [{**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": value} for value in ("0", "1")]
    numbered += [TORCHRUN, slurm()]
    numbered += [{**slurm(), "SLURM_ARRAY_JOB_ID": value} for value in ("7", "8")]
    numbered += [{**slurm(), "SLURM_RESTART_COUNT": "1"}]
    runs = [Ranks.of(environment).run for environment in numbered]
    assert len(set(runs)) == len(runs)
    assert Ranks.of({**slurm(), "SLURM_RESTART_COUNT": "0"}).run == Ranks.of(slurm()).run
    for name in ("RANK", "LOCAL_RANK"):  # all ranks of one run call it the same
        assert Ranks.of({**TORCHRUN, name: "0"}).run == Ranks.of(TORCHRUN).run
    assert Ranks.of(slurm(ID="2")).run == Ranks.of(slurm()).run


FIRST, SECOND = Ranks(0, 2, "slurm:7:0"), Ranks(1, 2, "slurm:7:0")


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    work = WorkFolder(tmp_path / "out")
    work.units.mkdir(parents=True)
    return work


class Clock:
    """Time that passes only while somebody sleeps. events: what happens then, by its second."""

    def __init__(self, now: float = 0.0) -> None:
        self.now, self.looks = now, 0
        self.events: dict[float, Callable[[], object]] = {}

    def monotonic(self) -> float:
        self.looks += 1
        assert self.looks < 1000, "waits without sleeping"
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now, self.looks = self.now + seconds, 0
        for second in [second for second in self.events if second <= self.now]:
            self.events.pop(second)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(5000.0)
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 10.0)


def held(work: WorkFolder) -> AbstractContextManager[object]:
    return RunLock(work.folder, LOCK, "--out", work.out)


@pytest.mark.usefixtures("clock", "short_wait")
@pytest.mark.parametrize("run", ["slurm:7:0", "torchrun:none"])
def test_a_rank_begins_with_the_plan_of_its_own_run_only(run: str, work: WorkFolder) -> None:
    first, second = Ranks(0, 2, run), Ranks(1, 2, run)
    nothing = r"rank 0 has made no plan in 10 s; see what it says, and start all ranks again"
    with held(work):
        with pytest.raises(StorageError, match=nothing):
            second.wait_for_plan(work)
        first.announce(work)
        assert second.wait_for_plan(work) is True
        with pytest.raises(StorageError, match=nothing):
            Ranks(1, 2, "slurm:8:0").wait_for_plan(work)
    with pytest.raises(StorageError, match=nothing):  # its holder is gone
        second.wait_for_plan(work)
    noted = json.loads(work.run.read_bytes())
    with held(work):  # another process that called its run the same
        work.run.write_text(json.dumps({**noted, "holder": "somebody else"}))
        with pytest.raises(StorageError, match=nothing):
            second.wait_for_plan(work)
        work.run.write_text("[]")
        with pytest.raises(StorageError, match=nothing):
            second.wait_for_plan(work)


def test_a_finished_folder_needs_no_plan(work: WorkFolder, clock: Clock) -> None:
    clock.events[5100.0] = (work.out / "manifest.json").touch
    assert SECOND.wait_for_plan(work) is False
    assert 5100 <= clock.now < 5101


def test_a_plan_that_comes_late_is_waited_for(work: WorkFolder, clock: Clock) -> None:
    """For half an hour, also where the first rank has not even made the folder."""
    work.units.rmdir()
    work.folder.rmdir()
    with pytest.raises(StorageError, match="no plan in 1,800 s"):
        SECOND.wait_for_plan(work)
    assert 6800 < clock.now < 6801
    with ExitStack() as stack:
        clock.events[7000.0] = lambda: stack.enter_context(held(work))
        clock.events[8500.0] = lambda: FIRST.announce(work)
        assert SECOND.wait_for_plan(work) is True
    assert 8500 <= clock.now < 8501


def test_a_first_rank_that_tidied_up_and_left_is_not_waited_for(
    work: WorkFolder,
    clock: Clock,
) -> None:
    def tidy_up() -> None:
        work.units.rmdir()
        work.folder.rmdir()

    clock.events[5100.0] = tidy_up
    with pytest.raises(StorageError, match="rank 0 has ended without a plan; see what it says"):
        SECOND.wait_for_plan(work)
    assert 5100 <= clock.now < 5101


@pytest.mark.usefixtures("clock", "short_wait")
@pytest.mark.parametrize("run", ["slurm:7:0", "torchrun:none"])
def test_what_the_first_rank_has_ended_with_ends_the_others(run: str, work: WorkFolder) -> None:
    first, second = Ranks(0, 2, run), Ranks(1, 2, run)
    with held(work):
        first.report(work, BadDataError("the file is bad"))
        with pytest.raises(BadDataError, match=r"^rank 0: the file is bad$"):
            second.wait_for_plan(work)
        first.announce(work)
        assert second.wait_for_plan(work)
        first.report(work, ValueError("a bug, which has no line"))
        assert second.wait_for_plan(work)
    first.report(work, BadDataError("the file is bad"))
    if run.startswith("slurm"):  # whose number says that it is this run
        with pytest.raises(BadDataError):
            second.wait_for_plan(work)


@pytest.mark.usefixtures("clock", "short_wait")
def test_what_another_rank_has_ended_with_ends_the_first(work: WorkFolder) -> None:
    def wait() -> None:
        FIRST.wait_for_others(work, lambda: False, lambda: None)

    FIRST.look_for_failures(work)
    with pytest.raises(StorageError, match="the other ranks have done nothing for 10 s; start"):
        wait()
    Ranks(12, 20, FIRST.run).report(work, BadDataError("the file is bad"))
    for look in (lambda: FIRST.look_for_failures(work), wait):
        with pytest.raises(BadDataError, match=r"^rank 12: the file is bad$"):
            look()
    for damaged in ("", "[]", "{}", '{"code": "65"}', '{"code": true}'):
        (work.folder / "failed-12").write_text(damaged)
        with pytest.raises(NanogptError, match=r"^rank 12 has failed; see what it says") as caught:
            FIRST.look_for_failures(work)
        assert type(caught.value) is StorageError


@pytest.mark.usefixtures("short_wait")
def test_the_first_rank_waits_as_long_as_others_get_on(work: WorkFolder, clock: Clock) -> None:
    """Each unit of theirs begins the time anew; the progress is looked at meanwhile."""
    for second in (5009, 5018, 5027):
        clock.events[second] = (work.units / f"{second:06}.json").touch
    calls: list[str] = []

    def advance() -> bool:
        calls.append("advance")
        return clock.now > 5036

    FIRST.wait_for_others(work, advance, lambda: calls.append("look"))
    assert calls == [*["advance", "look"] * (len(calls) // 2), "advance"]
    assert 5036 < clock.now < 5037
    with pytest.raises(StorageError, match="nothing"):
        FIRST.wait_for_others(work, lambda: False, lambda: None)
    assert 5046 < clock.now < 5048
    Ranks().wait_for_others(work, lambda: True, lambda: calls.append("more"))
    assert calls[-1] == "advance"


def test_a_single_process_tells_nobody(work: WorkFolder) -> None:
    with held(work):
        Ranks().announce(work)
        Ranks().report(work, BadDataError("the file is bad"))
        (work.folder / "failed-1").write_text("{}")
        Ranks().look_for_failures(work)
        assert not work.run.exists()
    (work.folder / "failed-1").unlink()
    (work.folder / "failed-1").mkdir()  # where it cannot be written there is worse to tell
    SECOND.report(work, BadDataError("the file is bad"))
    gone = WorkFolder(work.out / "nowhere")
    SECOND.report(gone, BadDataError("the file is bad"))
    assert not gone.out.exists()


@pytest.mark.parametrize(
    ("run", "output"), [("torchrun:1", b"lives"), ("slurm:1", b"lives, stays")]
)
def test_a_rank_of_torchrun_ends_with_it(
    run: str,
    output: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As long as torchrun lives it goes on. One of Slurm has no launcher to end with."""
    monkeypatch.setattr(module, "POLL_S", 0.01)
    told, tell = os.pipe()
    go, gone = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        if os.fork() == 0:
            Ranks(0, 2, run).leave_with_launcher()
            time.sleep(0.1)
            os.write(tell, b"lives")
            os.write(gone, b"!")
            time.sleep(0.3 if run.startswith("slurm") else 60)
            os.write(tell, b", stays")
            os._exit(0)
        os.read(go, 1)
        os._exit(0)
    os.close(tell)
    os.waitpid(launcher, 0)
    with open(told, "rb") as file:  # until nobody is left that could write
        assert file.read() == output
    os.close(go)
    os.close(gone)
