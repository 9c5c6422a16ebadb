"""`nanogpt watch`: live, killed, paused, failed and old runs, from their files alone."""

import contextlib
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.main import app
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.events import note_event
from tests.conftest import CLONE, TINY, Run, command
from tests.nanogpt_dist.small import events_of, go, tiny

TERMINAL = {"COLUMNS": "100", "LINES": "30", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
AGE = re.compile(r", \d+s ago *")
CODES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")  # colours, and moves of the cursor


@pytest.fixture(scope="module")
def done(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("watched") / "out" / "a"
    go(tiny(corpus, run, log_interval=1))
    return run


@pytest.fixture
def out(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done.parent, tmp_path / "out")


def watched(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["watch", *map(str, words)])
    assert done.exit_code == code, done.output + str(done.exception)
    return done.stdout


def figures(*words: object) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(watched(*words, "--once", "--json"))["runs"]
    return runs


def wait(ready: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_a_finished_run_is_a_panel_with_its_figures_and_curve(out: Path) -> None:
    shown = watched(out / "a", "--once")
    for part in ("a · done", "step 8/8 (100%)", "val ", "1 rank", "saved step-00000008", "●"):
        assert part in shown, shown
    again = watched(out / "a")  # where standard output is no terminal
    assert AGE.sub("", shown) == AGE.sub("", again)
    (one,) = figures(out)
    assert (one["verdict"], one["step"], one["max_iters"]) == ("done", 8, 8)
    assert one["eta_s"] is None
    assert sum(one["shares"].values()) == pytest.approx(1)
    assert one["events"][-1]["event"] == "done"


def test_the_speed_stands_beside_the_one_that_was_expected(out: Path) -> None:
    path = out / "a" / "metrics.jsonl"
    assert "planned" not in watched(out / "a")
    planned = path.read_text().replace(
        '"expected_tokens_per_second": null', '"expected_tokens_per_second": 12345.6'
    )
    path.write_text(planned)
    assert "tokens/s of 12,346 planned" in watched(out / "a")


def test_a_run_that_ended_badly_says_why(out: Path) -> None:
    newest = "step-00000008"
    run_folder.write_status(out / "a", run_folder.Status("running", 8, newest))
    assert "a · killed" in watched(out / "a")  # nobody holds its lock
    told = "the disk is full; \x1b[31m make room"
    run_folder.write_status(out / "a", run_folder.Status("failed", 8, newest, 74, told))
    note_event(out / "a", "straggler", 6, rank=3, host="node-7", factor=1.8)
    shown = watched(out / "a")
    assert "a · failed" in shown
    assert "the disk is full" in shown
    assert "\x1b" not in shown
    assert "straggler: rank 3 on node-7, 1.8 times as long as the others (step 6)" in shown


def test_an_old_run_is_shown_without_what_it_lacks(out: Path) -> None:
    old = ("step", "tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu")
    path = out / "a" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if "val_loss" in line or k in old} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    (out / "a" / "events.jsonl").unlink()
    (one,) = figures(out)
    assert one["shares"] is one["straggler"] is one["checkpoint_age_s"] is None
    assert one["tokens_per_second"] > 0
    assert "saved step-00000008" in watched(out)


def test_a_run_that_has_logged_nothing_yet_is_shown(out: Path) -> None:
    for name in ("metrics.jsonl", "events.jsonl", "config.toml", "status.json"):
        (out / "a" / name).unlink()
    shutil.rmtree(out / "a" / "checkpoints")
    shown = watched(out)
    assert "not begun" in shown
    assert "nothing saved yet" in shown


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_a_frame_keeps_to_its_width_and_height(
    out: Path,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.console import Console

    from cli.watch import Watched
    from cli.watch_frame import frame

    for i in range(7):
        shutil.copytree(out / "a", out / f"run-{i}")
    watched = Watched([out])
    watched.read()
    for height in (8, 12, 24, 60):
        for plain in (False, True):
            console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
            console.print(frame(watched.runs, width, height, plain))
            lines = console.export_text().rstrip("\n").splitlines()
            assert max(map(len, lines)) <= width
            assert len(lines) <= height
            known = {*map(chr, range(32, 127)), *"·–…"}  # the terminal replaces these
            assert not plain or all(set(line) <= known for line in lines)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
BIG = st.sampled_from([10**400, -(10**400), 1e308, -1e308, 5e-324, "nan", 2**63])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_value_that_a_file_may_hold_ends_the_watching(
    done: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    from rich.console import Console

    from cli.watch import Watched
    from cli.watch_frame import frame

    run = tmp_path_factory.mktemp("odd") / "a"
    run.mkdir()
    shutil.copy(done / "config.toml", run)
    for name in ("metrics.jsonl", "events.jsonl"):
        lines = [json.loads(line) for line in (done / name).read_text().splitlines()][-3:]
        lines += [{"event": "straggler", "time": 1.0, "step": 1, "rank": 0, "factor": 2}]
        for line in lines:
            line.update(data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(line, BIG))))
            odd = st.dictionaries(st.sampled_from(sorted(line)), VALUES, max_size=2)
            line.update(data.draw(odd))
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("status.json", "run.json"):
        content = json.loads((done / name).read_text())
        odd = st.dictionaries(st.sampled_from(sorted(content)), VALUES | BIG, max_size=3)
        (run / name).write_text(json.dumps({**content, **data.draw(odd)}))
    watched = Watched([run])
    watched.read()
    run_folder.to_json({"runs": [figures for _, figures in watched.runs]})
    console = Console(width=80, file=io.StringIO())
    for height in (3, 40):
        console.print(frame(watched.runs, 80, height, False, watched.note))


def test_runs_that_do_not_fit_are_counted(out: Path) -> None:
    from rich.console import Console

    from cli.watch import Watched
    from cli.watch_frame import frame

    for i in range(7):
        shutil.copytree(out / "a", out / f"run-{i}")
    watched = Watched([out, out / "none"])
    watched.read()
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(frame(watched.runs, 80, 6, False, ""))
    assert "… 4 more" in console.export_text()
    assert watched.note.startswith(f"no run under {out / 'none'} yet: waiting for one")
    assert watched.note.endswith(f"not there: {out / 'none'}")


def test_a_run_that_is_only_silent_does_not_end_the_watching(out: Path) -> None:
    from cli.watch import Watched

    run = out / "a"
    run_folder.write_status(run, run_folder.Status("running", 8, None))
    about = run_folder.read_json(run / "run.json")
    for host, ends in ((about["host"], True), ("node-7", False)):
        run_folder.write_json(run / "run.json", {**about, "host": host})
        for path in run.iterdir():
            os.utime(path, (1e9, 1e9))
        watched = Watched([run])
        watched.read()
        assert watched.runs[0][1]["verdict"] == "killed"
        assert watched.ended is ends
    assert (
        "node-7 writes nothing for long, and its lock is not seen here"
        in CliRunner().invoke(app, ["watch", str(run)]).stdout
    )


def test_what_is_no_run_is_told(out: Path, corpus: Path, nanogpt: Run, tmp_path: Path) -> None:
    shutil.rmtree(out)
    told = nanogpt("watch", code=66).stderr
    assert "no run under out yet; type: nanogpt quickstart, or name a run" in told
    assert "is no run" in nanogpt("watch", corpus, code=66).stderr
    told = nanogpt("watch", tmp_path / "none", "--once", code=66).stderr
    assert "does not exist; type it again once the training has begun, or give a run" in told


@contextlib.contextmanager
def in_terminal(*words: object, folder: Path) -> "Iterator[tuple[Any, int]]":
    """`nanogpt watch WORDS` on a terminal of its own: the process, and our end of the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(CLONE / "nanogpt"), "watch", *map(str, words)],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, **TERMINAL},
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.communicate()
        os.close(ours)


def seen(terminal: int, text: str, seconds: float = 60) -> None:
    """Wait until `text` stands on the terminal, whatever its colours."""
    found, end = b"", time.monotonic() + seconds
    while text not in (plain := CODES.sub(b"", found).decode("utf-8", "replace")):
        assert time.monotonic() < end, plain[-2000:]
        if select.select([terminal], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                found += os.read(terminal, 65536)


def test_a_run_that_appears_later_is_watched_until_it_is_removed(out: Path, tmp_path: Path) -> None:
    run = out / "a"
    run_folder.write_status(run, run_folder.Status("running", 8, "step-00000008"))
    run.rename(tmp_path / "away")
    with in_terminal("--interval", "0.2", folder=tmp_path) as (process, terminal):
        seen(terminal, "no run under out yet: waiting for one")
        with lock_of(tmp_path / "away"):
            (tmp_path / "away").rename(run)
            seen(terminal, "out/a · running")
            shutil.rmtree(run)
            seen(terminal, "no run under out yet: waiting for one")
        process.send_signal(signal.SIGINT)
        seen(terminal, "no run under out yet")
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


def test_where_nothing_goes_on_it_ends_and_says_so(out: Path) -> None:
    with in_terminal("out", folder=out.parent) as (process, terminal):
        seen(terminal, "out/a · done")
        assert process.wait(30) == 0
        told = process.stderr.read().decode()
    assert told == "note: nothing goes on in out: type it again once a training has begun\n"


@contextlib.contextmanager
def lock_of(run: Path) -> Iterator[None]:
    from nanogpt_dist import storage

    with storage.RunLock(run):
        yield


@contextlib.contextmanager
def training(corpus: Path, run: Path, ranks: int) -> "Iterator[subprocess.Popen[bytes]]":
    """A real training that goes on for long."""
    more = ["--max-iters", 10**6, "--eval-interval", 10**6, "--log-interval", 2, "--no-tensorboard"]
    line = command("train", *TINY, "--dataset", corpus, "--out-dir", run, *more, ranks=ranks)
    log = run.with_suffix(".log").open("wb")
    process = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def test_live_ranks_are_watched_and_a_killed_one_is_seen(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "out" / "a"
    run.parent.mkdir()
    with training(corpus, run, ranks=2):
        metrics = run / "metrics.jsonl"
        wait(lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) > 3)
        (one,) = figures(run.parent)
        assert (one["verdict"], one["ranks"], one["checkpoint"]) == ("running", 2, None)
        assert one["eta_s"] > 0
        assert one["slowest_rank"] in (0, 1)
        assert 0 < one["shares"]["communication"] < 1
        assert "out/a · running" in watched(run.parent).replace(str(tmp_path) + "/", "")
        pid = json.loads((run / "run.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)  # rank 0: it says nothing any more
        wait(lambda: figures(run)[0]["verdict"] != "running")
        assert figures(run)[0]["verdict"] in ("killed", "failed")
    assert events_of(run)[0]["event"] == "start"


def test_a_run_that_stops_while_it_is_watched_ends_the_watching(
    corpus: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "out" / "a"
    run.parent.mkdir()
    with training(corpus, run, ranks=0) as process:
        wait((run / "metrics.jsonl").exists)
        with in_terminal("out", "--interval", "0.2", folder=tmp_path) as (viewer, terminal):
            seen(terminal, "out/a · running")
            process.send_signal(signal.SIGTERM)
            seen(terminal, "out/a · stopped")
            assert viewer.wait(30) == 0
            assert viewer.stderr.read() == b""
