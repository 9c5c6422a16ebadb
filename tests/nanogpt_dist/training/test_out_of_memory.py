"""Out of memory: by real limits on real processes, one and two; the fall-back, and its memory."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import nanogpt_dist as ng
from cli.main import app
from nanogpt_dist import devices, start_again
from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import resolve
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import MAX_LINE, NanogptError, OutOfMemoryError, StoppedError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.storage import RunLock
from nanogpt_dist.training.metrics import Console
from nanogpt_dist.training.open_run import OpenRun
from nanogpt_dist.training.out_of_memory import OutOfMemory
from nanogpt_dist.training.step import TrainStep
from tests.conftest import CLONE, command
from tests.nanogpt_dist.small import events_of

# Logits are nearly all that it takes: 2 MiB a sequence, and as much again three times.
WIDE_HEAD = ["--n-layer", "1", "--n-head", "1", "--n-embd", "32", "--block-size", "32"]
WIDE_HEAD += ["--vocab-size", "16384", "--batch-size", "64", "--gradient-accumulation-steps", "2"]
WIDE_HEAD += ["--eval-iters", "1", "--device", "cpu", "--dtype", "float32", "--no-tensorboard"]
SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 32, "block_size": 32, "batch_size": 4}
SMALL: dict[str, Any] = {
    **{**SIZES, "gradient_accumulation_steps": 4, "decay_lr": False, "eval_iters": 1},
    **{"save_interval": 2, "device": "cpu", "dtype": "float32", "tensorboard": False},
}


def limited(
    corpus: Path, run: Path, *flags: str, ranks: int = 1, **limits: str
) -> subprocess.CompletedProcess[str]:
    """A training of tests.ranks.limited in `run`, with these limits."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    start = [] if ranks == 1 else [*torchrun, "--nproc-per-node", str(ranks)]
    line = [sys.executable, *start, "-m", "tests.ranks.limited", "train"]
    line += ["--dataset", str(corpus), "--out-dir", str(run), *WIDE_HEAD, *flags]
    environment = {**os.environ, **limits}
    return subprocess.run(
        line, cwd=CLONE, env=environment, capture_output=True, text=True, timeout=600
    )


def layout_of(run: Path) -> dict[str, Any]:
    layout = json.loads((run / "run.json").read_text())["auto_layout"]
    assert isinstance(layout, dict)
    return layout


def status_of(run: Path) -> tuple[str, int]:
    status = json.loads((run / "status.json").read_text())
    return status["verdict"], status["step"]


def errors_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("nanogpt")]


def test_with_auto_a_training_fits_where_the_preset_does_not(corpus: Path, tmp_path: Path) -> None:
    dies = limited(corpus, tmp_path / "dies", "--max-iters", "1", LEFT="500")
    assert dies.returncode == 70, dies.stderr
    [line] = errors_in(dies.stderr)
    assert line == (
        "nanogpt: error: out of memory after step 0, with micro-batches of 64; add "
        "--auto-batch-size, or type --batch-size 32 --gradient-accumulation-steps 4 "
        "--no-join-micro-batches"
    )
    run = tmp_path / "fits"
    fits = limited(corpus, run, "--max-iters", "1", "--auto-batch-size", LEFT="500")
    assert fits.returncode == 0, fits.stderr
    chosen = layout_of(run)["batch_size"]
    assert chosen < 64
    assert re.search(
        rf"^--batch-size auto: micro-batches of {chosen}, single, no activation checkpointing: "
        r"takes about 0\.\d GiB of 0\.\d that each rank may take, \d+ would take ",
        fits.stderr,
        re.MULTILINE,
    )
    assert "4,096 tokens a step" in fits.stderr  # as many as ever


MEMORY_OF_A_GROUP = {  # by the folder of version 1 of cgroups, and of version 2
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",
    Path("/sys/fs/cgroup"): "memory.max",
}


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup whose processes may take 900 MB together: the kernel kills who takes more."""
    for root, limit in MEMORY_OF_A_GROUP.items():
        folder = root / f"nanogpt-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            try:
                if (folder / limit).exists():
                    (folder / limit).write_text("900000000")
                    break
            except OSError:
                pass
            folder.rmdir()
    else:
        pytest.skip("needs root, and cgroups of memory that can be made")
    yield folder
    folder.rmdir()


@pytest.mark.thorough
def test_with_auto_a_training_fits_into_its_cgroup(
    corpus: Path, tmp_path: Path, cgroup: Path
) -> None:
    codes = {}
    for name, flags in (("plain", ["--batch-size", "64"]), ("auto", ["--batch-size", "auto"])):
        flags = [*WIDE_HEAD, *flags, "--max-iters", "4", "--gradient-accumulation-steps", "16"]
        line = command("train", "--dataset", corpus, "--out-dir", tmp_path / name, *flags)
        enter = ["bash", "-c", f'echo $$ > {cgroup}/cgroup.procs; exec "$@"', "bash"]
        codes[name] = subprocess.run([*enter, *line], cwd=tmp_path, timeout=300).returncode
    assert codes == {"plain": -signal.SIGKILL, "auto": 0}
    assert layout_of(tmp_path / "auto")["batch_size"] < 64


def test_a_rank_that_is_short_takes_all_of_them_to_the_same_smaller_layout(
    corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = limited(corpus, run, "--max-iters", "1", "--auto-batch-size", ranks=2, SHORT="1:500")
    assert done.returncode == 0, done.stderr
    assert status_of(run) == ("done", 1)
    sizes = [int(n) for n in re.findall(r"auto: micro-batches of (\d+), ddp", done.stderr)]
    assert sizes[0] == 64
    assert sizes == sorted(sizes, reverse=True)
    assert 1 < len(sizes) == len(set(sizes))
    assert layout_of(run)["batch_size"] == sizes[-1]
    events = [event for event in events_of(run) if event["event"] == "out_of_memory"]
    assert [event["auto_layout"]["batch_size"] for event in events] == sizes[1:]
    assert done.stderr.count("warning: out of memory") == len(sizes) - 1  # told once each


@pytest.mark.thorough
@pytest.mark.parametrize("ranks", [1, 2])
def test_without_auto_an_out_of_memory_is_told_once(
    ranks: int, corpus: Path, tmp_path: Path
) -> None:
    done = limited(corpus, tmp_path / "run", "--max-iters", "1", ranks=ranks, LEFT="500")
    [line] = errors_in(done.stderr)
    assert "add --auto-batch-size, or type --batch-size 32" in line
    assert len(line) <= 200
    assert status_of(tmp_path / "run") == ("failed", 0)


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_have_the_same_bits_after_a_resume(
    strategy: str, corpus: Path, tmp_path: Path
) -> None:
    flags = [
        "--batch-size",
        "32",
        "--auto-batch-size",
        "--no-decay-lr",
        "--save-interval",
        "2",
        "--strategy",
        strategy,
    ]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for run, iters, fits in ((whole, 4, "0:16"), (halves, 2, "1:16"), (halves, 4, "")):
        done = limited(corpus, run, *flags, "--max-iters", str(iters), ranks=2, FITS=fits)
        assert done.returncode == 0, done.stderr
        chosen = layout_of(run)
        assert chosen["strategy"] == strategy
        assert chosen["batch_size"] == 16
    assert weights_of(whole) == weights_of(halves)


@pytest.mark.thorough
def test_ranks_that_begin_anew_hear_of_a_stop_that_one_of_them_was_asked_for(
    corpus: Path, tmp_path: Path
) -> None:
    flags = ["--auto-batch-size", "--max-iters", "1"]
    done = limited(corpus, tmp_path / "run", *flags, ranks=2, FITS="0:16", STOP="1")
    assert "rank0" not in done.stderr
    assert done.stderr.count("--batch-size auto: micro-batches") == 1
    told = "nanogpt: stopped as memory ran out after step 0; the same command goes on with micro-"
    assert [line for line in errors_in(done.stderr) if line.startswith(told)] == errors_in(
        done.stderr
    )
    assert status_of(tmp_path / "run") == ("stopped", 0)
    again = limited(corpus, tmp_path / "run", *flags, ranks=2)
    assert again.returncode == 0, again.stderr
    assert layout_of(tmp_path / "run")["batch_size"] == 32


def weights_of(run: Path) -> dict[str, str]:
    """Digests of the newest checkpoint's tensors."""
    newest = max((run / "checkpoints").glob("step-*"))
    files = json.loads((newest / "manifest.json").read_text())["files"]
    return {one["name"]: one["sha256"] for one in files if one["name"].endswith(".safetensors")}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Micro-batches that do not fit, the largest that does; torch's allocator says so itself."""
    step, fits = TrainStep.step, [10**6]

    def asks(self: TrainStep, *rest: Any) -> Any:
        if self.layout.batch_size > fits[0]:
            torch.empty(2**60)
        return step(self, *rest)

    monkeypatch.setattr(TrainStep, "step", asks)
    return fits


def test_a_resumed_run_keeps_the_layout_and_so_its_bits(
    corpus: Path, tmp_path: Path, short: list[int]
) -> None:
    def train(name: str, max_iters: int, fits: int, **settings: Any) -> dict[str, str]:
        short[0] = fits
        run = tmp_path / name
        settings = {**SMALL, **settings}
        ng.train("gpt2-124m", dataset=corpus, out_dir=run, max_iters=max_iters, **settings)
        return weights_of(run)

    auto = {"auto_batch_size": True}
    whole = train("whole", 4, fits=2, **auto)
    assert layout_of(tmp_path / "whole")["batch_size"] == 2
    train("halves", 2, fits=2, **auto)
    assert train("halves", 4, fits=10**6, **auto) == whole  # where more would fit by now
    assert layout_of(tmp_path / "halves")["batch_size"] == 2
    events = [(event["event"], event["step"]) for event in events_of(tmp_path / "halves")]
    assert events.count(("out_of_memory", 0)) == 3
    assert "fail" not in dict(events)  # it goes on
    assert train("chosen anew", 4, fits=10**6, **auto) != whole  # or nothing was compared
    assert layout_of(tmp_path / "chosen anew")["batch_size"] == 16


def test_auto_typed_over_a_run_ends_its_number(
    corpus: Path, tmp_path: Path, short: list[int]
) -> None:
    ng.train("gpt2-124m", dataset=corpus, out_dir=tmp_path, max_iters=2, **SMALL)
    line = ["train", str(tmp_path), "--batch-size", "auto", "--max-iters", "3"]
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0
    assert "--batch-size auto: micro-batches of 16, single, no activation" in done.output
    assert layout_of(tmp_path)["batch_size"] == 16


@pytest.fixture
def short_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third step on no micro-batch of more than two sequences fits."""
    step = TrainStep.step

    def asks(self: TrainStep, at: int, *rest: Any) -> Any:
        if at >= 2 and self.layout.batch_size > 2:
            torch.empty(2**60)
        return step(self, at, *rest)

    monkeypatch.setattr(TrainStep, "step", asks)


def test_a_fresh_run_goes_on_from_what_it_has_saved_itself(
    corpus: Path, tmp_path: Path, short_later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = []
    monkeypatch.setattr(devices, "give_back_cached_memory", lambda: given_back.append(1))
    settings = {**SMALL, "dataset": corpus, "out_dir": tmp_path, "auto_batch_size": True}
    assert ng.train("gpt2-124m", fresh=True, max_iters=4, **settings).step == 4
    assert layout_of(tmp_path)["batch_size"] == 2
    events = [(one["event"], one.get("step")) for one in events_of(tmp_path)]
    assert ("resume", 2) in events
    assert len(given_back) == [name for name, _ in events].count("out_of_memory") > 0
    # a process that has started itself again has the same command line
    line = ["train", str(tmp_path), "--fresh", "--max-iters", "4"]
    refused = CliRunner().invoke(app, line)
    assert "holds a run at step-00000004; --fresh needs another" in str(refused.exception)
    assert CliRunner().invoke(app, line, env={start_again.TIMES: "1"}).exit_code == 0


def test_a_stop_that_was_asked_for_is_not_forgotten(
    corpus: Path, tmp_path: Path, short_later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, step = StopRequest(), TrainStep.step

    def asked(self: TrainStep, at: int, *rest: Any) -> Any:
        if at == 2:
            stop.ask()
        return step(self, at, *rest)

    monkeypatch.setattr(TrainStep, "step", asked)
    settings = {**SMALL, "dataset": corpus, "out_dir": tmp_path, "auto_batch_size": True}
    with pytest.raises(
        StoppedError,
        match=r"^stopped as memory ran out after step 2; the same command goes on with micro-",
    ):
        ng.train("gpt2-124m", max_iters=4, stop=stop, **settings)
    assert status_of(tmp_path) == ("stopped", 2)
    assert layout_of(tmp_path)["batch_size"] == 8
    assert [event["event"] for event in events_of(tmp_path)][-2:] == ["out_of_memory", "stop"]
    assert ng.train("gpt2-124m", max_iters=4, **settings).step == 4


def test_a_fall_back_of_long_words_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Selective checkpointing on a mesh: nothing is longer."""
    config = resolve(
        {"vocab_size": 50304, "strategy": "fsdp", "mesh": "128x128", "batch_size": 64},
        {"activation_checkpointing": "selective", "gradient_accumulation_steps": 2**14}
        | {"auto_batch_size": True},
    )
    world = World(0, 0, 2**14, torch.device("cpu"), None)
    layout = Layout("fsdp", 128, 128, "selective", 64)
    state = TrainState(step=123456)
    memory = OutOfMemory(config, layout, world, Console(True), state, StopRequest())
    with pytest.raises(OutOfMemoryError) as raised, memory.explained():
        raise MemoryError
    with RunLock(tmp_path) as lock:
        memory._remember(OpenRun(tmp_path, world, lock), raised.value)
    line = capsys.readouterr().err.rstrip("\n")
    assert len(f"warning: {raised.value}") > MAX_LINE >= len(line)
    assert line.startswith("warning: out of memory after step 123456, with micro-batches of 64")
    assert "; the next attempt has micro-batches of 32, fsdp, " in line


@pytest.mark.thorough
def test_smaller_micro_batches_come_first_then_checkpointing_then_the_end(
    corpus: Path, tmp_path: Path, short: list[int]
) -> None:
    short[0] = 0
    with pytest.raises(OutOfMemoryError, match=r"take a smaller model, or a shorter --block-size$"):
        ng.train("gpt2-124m", dataset=corpus, out_dir=tmp_path, **SMALL, auto_batch_size=True)
    tried = [event["auto_layout"] for event in events_of(tmp_path) if "auto_layout" in event]
    steps = [(one["activation_checkpointing"], one["batch_size"]) for one in tried]
    assert steps[:4] == [("none", 8), ("none", 4), ("none", 2), ("none", 1)]
    assert all(mode != "none" for mode, _ in steps[4:])
    # no attempt of these was in vain
    short[0] = 10**6
    assert ng.train(tmp_path, max_iters=1).verdict == "done"
    assert layout_of(tmp_path)["batch_size"] == steps[-1][1]


@pytest.mark.thorough
def test_a_number_ends_what_auto_has_chosen(corpus: Path, tmp_path: Path, short: list[int]) -> None:
    ng.train("gpt2-124m", dataset=corpus, out_dir=tmp_path, max_iters=2, **SMALL)
    assert "auto_layout" not in (tmp_path / "run.json").read_text()
    assert ng.train(tmp_path, max_iters=4, batch_size="auto").verdict == "done"
    assert layout_of(tmp_path)["batch_size"] == 16
    assert ng.train(tmp_path, max_iters=6).verdict == "done"  # the run has it in its settings
    assert layout_of(tmp_path)["batch_size"] == 16
    short[0] = 1
    with pytest.raises(NanogptError, match="out of memory after step 6, with micro-batches of 4"):
        ng.train(tmp_path, max_iters=8, batch_size=4)
