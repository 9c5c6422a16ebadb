"""`nanogpt sweep`: stopped, killed and resumed; what fails; tables, JSON, picture, commands."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import sweep_runs
from cli.main import app
from cli.options import nanogpt_style
from nanogpt_dist import storage
from nanogpt_dist.config import resolve
from nanogpt_dist.errors import MAX_LINE, Exit, StoppedError
from nanogpt_dist.inspect import compare_runs
from nanogpt_dist.ladder import results
from nanogpt_dist.ladder import sweep as sweeps
from nanogpt_dist.ladder.sizes import size_of
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.storage import run_folder
from tests.conftest import CLONE, TINY, command

STEPS = 100
NAMES = [name.removeprefix("--").replace("-", "_") for name in TINY[::2]]
SETTINGS = dict(zip(NAMES, TINY[1::2], strict=True))


def write(folder: Path, corpus: Path, more: str, steps: int = STEPS) -> Path:
    """FOLDER/s.toml: the tiny model on `corpus`, saved often, and `more`."""
    words = ("device", "dtype")
    shared = [f'{k} = "{v}"' if k in words else f"{k} = {v}" for k, v in SETTINGS.items()]
    shared += ['preset = "quickstart"', f'dataset = "{corpus}"', "vocab_size = 257"]
    shared += [f"max_iters = {steps}", f"eval_interval = {steps // 2}", "save_interval = 25"]
    shared += ["tensorboard = false", "dropout = 0.1", "log_interval = 10"]
    (folder / "s.toml").write_text("\n".join([*shared, more]) + "\n")
    return folder / "s.toml"


def typed(folder: Path, *words: str) -> tuple[int, str, str]:
    """`nanogpt WORDS` in this process, in `folder`: exit code, standard output, the error."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, nanogpt_style(list(words)))
    error = done.exception
    code = int(getattr(error, "code", done.exit_code) if error else done.exit_code)
    return code, done.stdout, str(error or "")


def noted(folder: Path, *words: str) -> str:
    """What the same writes to standard error."""
    with contextlib.chdir(folder):
        return CliRunner().invoke(app, nanogpt_style(list(words))).stderr


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with s.toml and its two runs, undisturbed, each by the command that is printed."""
    folder = tmp_path_factory.mktemp("made")
    write(folder, corpus, "[grid]\nseed = [1, 2]")
    code, lines, error = typed(folder, "sweep", "s.toml", "--dry-run")
    assert code == 0, error
    for line in lines.splitlines():
        assert typed(folder, *shlex.split(line)[1:])[0] == 0
    return folder


def weights(folder: Path, steps: int = STEPS) -> dict[str, str]:
    """{run: sha256 of its last weights}."""
    name = f"checkpoints/{storage.step_name(steps)}/model.safetensors"
    return {
        run.name: storage.sha256_file(run / name)
        for run in sorted((folder / "out/sweeps/s").iterdir())
    }


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """`nanogpt sweep s.toml` in a process group of its own."""
    return subprocess.Popen(
        command("sweep", "s.toml", *words),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CLONE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()[-3000:]  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.thorough
def test_a_stopped_and_killed_sweep_goes_on_and_ends_with_the_weights_of_an_undisturbed_one(
    made: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    write(tmp_path, corpus, "[grid]\nseed = [1, 2]")
    first, second = (tmp_path / f"out/sweeps/s/seed={seed}" for seed in (1, 2))

    stopped = start(tmp_path)
    wait_for(lambda: list((first / "checkpoints").glob("step-*")), stopped)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=120)[1]
    assert stopped.returncode == 75, said[-2000:]
    assert "stopped at run 1/2, seed=1; the same command goes on" in said
    assert json.loads((first / "status.json").read_text())["verdict"] == "stopped"
    assert not second.exists()

    killed = start(tmp_path)
    wait_for(lambda: list((second / "checkpoints").glob("step-*")), killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    finished = (first / "run.json").read_bytes()

    resumed = start(tmp_path)
    said = resumed.communicate(timeout=240)[1]
    assert resumed.returncode == 0, said[-2000:]
    assert "run 1/2 is done: seed=1" in said
    assert (first / "run.json").read_bytes() == finished  # not started again
    assert "starting at step 0" not in said
    assert weights(tmp_path) == weights(made)


def test_done_runs_make_a_table_json_and_a_picture(made: Path) -> None:
    code, out, _ = typed(made, "sweep", "s.toml", "--plot", "s.svg")
    assert code == 0
    assert "<svg" in (made / "s.svg").read_text()
    told = json.loads(typed(made, "sweep", "s.toml", "--json")[1])
    runs = told["runs"]
    assert [run["val_loss"] for run in runs] == sorted(run["val_loss"] for run in runs)
    places = [out.index(run["name"]) for run in runs]
    assert places == sorted(places)
    for run in runs:
        assert run["verdict"] == "done"
        assert run["step"] == STEPS
        assert run["tokens"] == STEPS * 8 * 32
        assert run["seconds"] > 0
        assert f"{run['val_loss']:.4f}" in out
    equal = told["at_equal"]
    assert equal["tokens"]["amount"] == STEPS * 8 * 32
    assert equal["tokens"]["val_loss"] == [run["val_loss"] for run in runs]
    assert equal["seconds"]["amount"] == min(run["seconds"] for run in runs)


def test_what_is_there_is_shown_while_nothing_has_begun(corpus: Path, tmp_path: Path) -> None:
    write(tmp_path, corpus, "[grid]\nseed = [1, 2]")
    code, out, _ = typed(tmp_path, "sweep", "s.toml", "--table")
    assert code == 0
    assert out.count("not begun") == 2
    assert not (tmp_path / "out").exists()


def test_a_failing_run_does_not_keep_others_from_going_on_and_is_told(made: Path) -> None:
    shared = (made / "s.toml").read_text().split("[grid]")[0]
    bad = '[[run]]\nname = "bad"\nvocab_size = 7\n[[run]]\nname = "worse"\nvocab_size = 8\n'
    (made / "bad.toml").write_text(f'out = "out/bad"\n{shared}{bad}')
    (made / "out/bad/bad").mkdir(parents=True)
    before = run_folder.Status("failed", 5, None, 70, "words of an earlier attempt")
    run_folder.write_status(made / "out/bad/bad", before)
    line = command("sweep", "bad.toml")
    done = subprocess.run(line, cwd=made, capture_output=True, text=True, timeout=120)
    assert done.returncode == 78
    assert "run 2/2: worse" in done.stderr
    assert "earlier attempt" not in done.stderr
    typed_again = done.stderr.split("bad failed with exit code 78; type:\n  ")[1].splitlines()[0]
    assert typed_again.startswith("nanogpt train quickstart --n-layer 2")
    assert "--vocab-size 7" in typed_again
    last = done.stderr.splitlines()[-1]
    assert "2 of the runs failed, bad with exit code 78" in last
    assert len(last) <= MAX_LINE
    assert "not begun" in done.stdout
    line.append("--fail-fast")
    done = subprocess.run(line, cwd=made, capture_output=True, text=True, timeout=120)
    assert done.returncode == 78
    assert "worse" not in done.stderr


def test_a_run_that_is_asked_to_stop_between_two_others_is_not_made(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun = []

    def fail(given: list[str], stop: object) -> int:
        begun.append(given)
        return int(Exit.BUG)

    monkeypatch.chdir(made)
    monkeypatch.setattr(sweep_runs, "_make", fail)
    # a note follows each failure
    monkeypatch.setattr(sweep_runs, "note", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    file = made / "between.toml"
    file.write_text((made / "s.toml").read_text().replace("[1, 2]", "[3, 4]"))
    found = sweeps.read(file)
    with pytest.raises(StoppedError, match="stopped at run 2/2, seed=4; the same command"):
        sweep_runs.make_runs(found, found.runs, None, fail_fast=False)
    assert len(begun) == 1
    assert "seed=3 failed with exit code 70; type:\n  nanogpt train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "more", "code", "message"),
    [
        ([], 'dataset = "nowhere"', 66, "nowhere does not exist"),
        (["--plot", "."], "", 73, ". is a folder; name a file in it"),
        (["--plot", "s.toml/x.svg"], "", 73, "name a folder that you may write to"),
    ],
)
def test_what_is_missing_is_told_before_the_first_run(
    words: list[str],
    more: str,
    code: int,
    message: str,
    corpus: Path,
    tmp_path: Path,
) -> None:
    write(tmp_path, corpus, f'[[run]]\nname = "a"\n[[run]]\nname = "b"\n{more}')
    found = typed(tmp_path, "sweep", "s.toml", *words)
    assert found[0] == code
    assert message in found[2]
    assert not (tmp_path / "out").exists()


def test_losses_over_other_windows_are_not_compared_without_a_word(
    made: Path,
    tmp_path: Path,
) -> None:
    for name, windows in (("a", 2), ("b", 3)):
        run = tmp_path / "out/sweeps/s" / name
        shutil.copytree(made / "out/sweeps/s/seed=1", run)
        text = (run / "config.toml").read_text()
        (run / "config.toml").write_text(text.replace("eval_iters = 2", f"eval_iters = {windows}"))
    shared = (made / "s.toml").read_text().split("[grid]")[0]
    runs = '[[run]]\nname = "a"\nseed = 1\n[[run]]\nname = "b"\nseed = 1\neval_iters = 3\n'
    (tmp_path / "s.toml").write_text(shared + runs)
    said = noted(tmp_path, "sweep", "s.toml", "--table")
    assert "other windows of the val split; nanogpt eval RUN reads all of it" in said
    assert "windows" not in noted(made, "sweep", "s.toml", "--table")


def test_steps_are_those_that_were_logged_since_the_last_save(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "here")
    status = tmp_path / "here/out/sweeps/s/seed=1/status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "step": 75}))
    told = json.loads(typed(tmp_path / "here", "sweep", "s.toml", "--table", "--json")[1])
    assert {run["step"] for run in told["runs"]} == {STEPS}


def test_one_run_is_made_by_its_number_or_name_in_ranks(made: Path) -> None:
    ranks = ("--nproc-per-node", "2")
    line = typed(made, "sweep", "s.toml", "--only", "1", "--dry-run", *ranks)[1]
    assert line.startswith("nanogpt launch --nproc-per-node 2 train quickstart --n-layer 2")
    assert line.endswith("--seed 2 --out-dir out/sweeps/s/seed=2\n")
    assert typed(made, "sweep", "s.toml", "--only", "seed=2", "--dry-run", *ranks)[1] == line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "7"], "a number from 0 to 1"),
        (["--partition", "gpu"], "add --slurm"),
        (["--nnodes", "2"], "add --slurm"),
        (["--slurm", "--json"], "leave out --only"),
        (["--slurm", "--nproc-per-node", "auto"], "--nproc-per-node 8"),
    ],
)
def test_usage(words: list[str], message: str, made: Path) -> None:
    code, _, error = typed(made, "sweep", "s.toml", *words)
    assert code == 2
    assert message in error
    assert len(error) <= MAX_LINE


def test_the_help_names_the_tables_of_a_file(made: Path) -> None:
    """In brackets rich would take them for its markup."""
    said = " ".join(typed(made, "sweep", "--help")[1].split())
    assert "its table `grid` lists values" in said
    assert "each table `run` is" in said


def test_within_torchrun_it_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert "leave torchrun out" in typed(made, "sweep", "s.toml")[2]


def test_seconds_are_those_in_steps_and_losses_lie_between_evaluations(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(made)
    found = results.read(sweeps.read(Path("s.toml")))
    for one in found:
        assert one.curve is not None
        assert one.size is not None
        lines = [
            json.loads(line) for line in (one.folder / "metrics.jsonl").read_text().splitlines()
        ]
        steps = [line for line in lines if "loss" in line]
        speeds = [line["tokens_per_second"] for line in steps]
        counts = [line["step"] * 8 * 32 for line in steps]
        expected = counts[0] / speeds[1] + sum(
            (now - before) / speed
            for before, now, speed in zip(counts, counts[1:], speeds[1:], strict=False)
        )
        assert one.total("seconds") == pytest.approx(expected)
        assert one.total("flops") == STEPS * 8 * 32 * one.size.flops_per_token
        early, late = one.curve.val_loss
        assert one.loss_at("tokens", 0.75 * counts[-1]) == pytest.approx((early + late) / 2)
        assert one.loss_at("tokens", 0.4 * counts[-1]) is None
        assert one.loss_at("tokens", 1.1 * counts[-1]) is None


def test_without_a_speed_there_are_no_seconds() -> None:
    tokens = np.array([10.0, 20.0, 30.0])
    nan = np.nan
    assert compare_runs._seconds(tokens, np.array([nan, nan, nan])) is None
    found = compare_runs._seconds(tokens, np.array([nan, 5.0, nan]))
    assert found is not None
    assert found.tolist() == [2.0, 4.0, 6.0]


def test_flops_of_a_shorter_context_are_fewer() -> None:
    config = resolve(
        {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64, "vocab_size": 100}
        | {"batch_size": 4, "gradient_accumulation_steps": 1, "context_ramp": "0:16,10:64"}
    )
    lengths = [piece.length for piece in config.ramp.pieces]
    size = size_of(config.architecture(), *lengths)
    first, second = 10 * 4 * 16, 5 * 4 * 64
    found = results._flops(np.array([320.0, first, first + second]), config.ramp, size)
    model = GPT(config.architecture())
    short, long = model.flops_per_token(16), model.flops_per_token(64)
    assert short < long
    assert found.tolist() == [320 * short, first * short, first * short + second * long]
