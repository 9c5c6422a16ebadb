"""check_run() on a real run: nothing is odd about it as it is, and each fault is named."""

import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist import storage
from nanogpt_dist.doctor import run_facts, run_standing
from nanogpt_dist.doctor.check import Check, exit_code
from nanogpt_dist.doctor.run_checks import check_run
from nanogpt_dist.errors import Exit, MissingInputError, NanogptError
from nanogpt_dist.presets import PRESETS
from nanogpt_dist.storage import run_checkpoints
from nanogpt_dist.storage.events import note_event
from nanogpt_dist.training import crash_loops
from nanogpt_dist.training.metrics import RECORD
from tests.conftest import build
from tests.nanogpt_dist.small import go, tiny
from tests.test_readme import commands_in, understand

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, the data set of the run a/, which is done and has nothing odd."""
    folder = tmp_path_factory.mktemp("healthy")
    modules = sorted(Path(os.__file__).parent.glob("[a-d]*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in modules)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    options = {"tokenizer": "byte", "workers": 1, "val_fraction": 0.1}
    build("text", folder / "data", sources=[folder / "text.txt"], **options)
    run = folder / "a"
    length = {"max_iters": 200, "warmup_iters": 10, "log_interval": 2}
    go(tiny(folder / "data", run, eval_interval=50, eval_iters=100, **length))
    lines(run, steady)  # others may have used the machine while it ran
    return folder


def steady(line: dict[str, Any]) -> None:
    if line.get("tokens_per_second"):
        line["tokens_per_second"] = 10_000 + line["step"] % 7


def lines(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change each line of metrics.jsonl."""
    found = [json.loads(text) for text in (run / RECORD).read_text().splitlines()]
    for line in found:
        change(line)
    (run / RECORD).write_text("".join(json.dumps(line) + "\n" for line in found))


def logged(change: Callable[[dict[str, Any]], None]) -> Change:
    """Change each line of a logged step."""
    return lambda run: lines(run, lambda line: change(line) if "loss" in line else None)


def status(**values: Any) -> Change:
    """Put values into status.json."""

    def change(run: Path) -> None:
        old = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps({**old, **values}))

    return change


def config(**values: Any) -> Change:
    """Put values into config.toml."""

    def change(run: Path) -> None:
        text = (run / "config.toml").read_text()
        for name, value in values.items():
            text = re.sub(rf"(?m)^{name} = .*\n", "", text) + f"{name} = {value}\n"
        (run / "config.toml").write_text(text)

    return change


def killed(run: Path) -> None:
    status(verdict="running", step=150, checkpoint="step-00000150")(run)
    shutil.rmtree(run / "checkpoints/step-00000200")


def killed_on_another_machine(run: Path) -> None:
    killed(run)
    (run / "run.lock").write_text(json.dumps({"host": "node7", "pid": 4711, "started": "2026"}))
    for name in (RECORD, "status.json", "run.json"):
        os.utime(run / name, (0, 0))


def flipped(run: Path, step: int = 200) -> None:
    path = run / "checkpoints" / storage.step_name(step) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def all_flipped(run: Path) -> None:
    for folder in storage.list_steps(run / "checkpoints"):
        flipped(run, storage.step_at(folder))


def no_best(run: Path) -> None:
    """The best one is an older one, which is gone."""
    newest = run / "checkpoints/step-00000200"
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps({**state, "best_step": 100}))
    for path in newest.glob("manifest.json"):
        path.unlink()
    storage.seal(newest.rename(newest.with_name(".x")), newest.name, {"step": 200})


def data_is_gone(run: Path) -> None:
    killed(run)
    (run.parent / "data").rename(run.parent / "elsewhere")


def data_is_another(run: Path) -> None:
    killed(run)
    source = run.parent / "other.txt"
    source.write_text("to be, or not to be\n" * 20_000)
    shutil.rmtree(run.parent / "data")
    build("text", run.parent / "data", sources=[source], tokenizer="byte", workers=1)


def in_vain(starts: int) -> Change:
    """The run was killed at step 150, and started so often in vain."""

    def change(run: Path) -> None:
        from nanogpt_dist.config import read_toml, resolve

        killed(run)
        settings_ = crash_loops.digest(resolve(read_toml(run / "config.toml")), 1)
        for _ in range(starts):
            crash_loops.begun(run, 150, 150, settings_)

    return change


def left_over(run: Path) -> None:
    for name in (".tmp-step-00000250-0123abcd", ".bad-step-00000100-1"):
        place = run / "checkpoints" / name
        shutil.copytree(run / "checkpoints/step-00000200", place)
        for path in (place, *place.iterdir()):
            os.utime(path, (0, 0))


def many_left_over(run: Path) -> None:
    """Of a run that is not done."""
    killed(run)
    for number in range(5):
        place = run / f"checkpoints/.trash-step-00000100-0123abc{number}"
        place.mkdir()
        os.utime(place, (0, 0))


def slower(line: dict[str, Any]) -> None:
    if line["step"] > 140:
        line["tokens_per_second"] = 5000


def spike(line: dict[str, Any]) -> None:
    if line["step"] in (60, 62, 120):
        line["loss"] += 4


def not_a_number(line: dict[str, Any]) -> None:
    if line["step"] > 180:
        line["loss"] = line["grad_norm"] = None


def diverging(line: dict[str, Any]) -> None:
    if line["step"] > 150:
        line["loss"] = 6.0 + line["loss"] % 0.1


def no_progress(run: Path) -> None:
    """What a learning rate of nearly 0 leaves."""
    config(learning_rate=1e-9, min_lr=1e-9)(run)

    def change(line: dict[str, Any]) -> None:
        if "loss" in line:
            line.update(learning_rate=1e-9, loss=5.5 + line["loss"] % 0.1)
        else:
            line.update(val_loss=5.5 + line["step"] / 1e6)

    lines(run, change)


def overfitting(run: Path) -> None:
    losses = {50: 3.1, 100: 2.9, 150: 3.1, 200: 3.4}

    def change(line: dict[str, Any]) -> None:
        if "loss" in line:
            line["loss"] -= line["step"] / 100
        else:
            line["val_loss"] = losses[line["step"]]

    lines(run, change)


def shares(**values: float) -> Change:
    """A log interval of ten seconds, with these parts."""
    return logged(lambda line: line.update(interval_s=10.0, **values))


def straggler(line: dict[str, Any]) -> None:
    line.update(slowest_rank=3, slowest_host="node3", slowest_factor=1.7)


def slow_save(run: Path) -> None:
    (run / "events.jsonl").unlink()  # its own saves took no time
    for step, seconds in enumerate((2.0, 2.1, 1.9, 2.0, 30.0)):
        note_event(run, "save", step, seconds=seconds, bytes=1)


def backwards(line: dict[str, Any]) -> None:
    line["time"] = 1.8e9 + line["step"] - 3602 * (line["step"] > 100)


def val_error(line: dict[str, Any]) -> None:
    if "val_loss" in line:
        line["standard_error"] = 0.2


def half_written(name: str) -> Change:
    def change(run: Path) -> None:
        killed(run)
        path = run / name
        path.write_bytes(path.read_bytes()[:40])

    return change


OOM = "out of memory; lower --batch-size (and raise --gradient-accumulation-steps)"
# name: (the fault, the Check's name and level, what its text says, what it says to type)
FAULTS: dict[str, tuple[Change, str, str, str, str]] = {
    "killed": (killed, "run", "warning", "killed, step 200 of 200", "^nanogpt train {run}$"),
    "killed elsewhere": (
        *(killed_on_another_machine, "run", "warning", "killed, it seems.* process 4711 on node7"),
        "^ssh node7 ps -o user,pid,stat,etime,args -p 4711; if it is gone: nanogpt train {run}$",
    ),
    "failed": (
        status(verdict="failed", code=70, step=120, message=OOM),
        *("run", "error", "failed, .*exit code 70: out of memory"),
        "^lower --batch-size .*; then nanogpt train {run}$",
    ),
    "newest damaged": (
        *(flipped, "checkpoints", "warning", "step-00000200 is damaged: model.safetensors does"),
        "^nanogpt train {run}$",
    ),
    "all damaged": (
        *(all_flipped, "checkpoints", "error", "all 2 are damaged"),
        "^restore a backup, or start over: nanogpt train {run} --out-dir {run}-again$",
    ),
    "best gone": (
        *(no_best, "checkpoints", "warning", "the best one, step-00000100, is gone: leave --best"),
        "^nanogpt eval {run}$",
    ),
    "checkpoints gone": (
        lambda run: shutil.rmtree(run / "checkpoints"),
        *("checkpoints", "error", "step-00000200 and all others are gone"),
        "start over: nanogpt train {run} --fresh$",
    ),
    "data gone": (
        *(data_is_gone, "data", "error", "data does not exist"),
        "nanogpt train {run} --dataset DIR$",
    ),
    "data changed": (
        *(data_is_another, "data", "error", r"trained on data set \w{{12}}, .* is \w{{12}}"),
        "^nanogpt train {run} --dataset DIR$",
    ),
    "settings edited": (
        config(n_layer=3),
        *("resume", "error", r"refused: config.toml has n_layer 2 \(now 3\)"),
        "^cp {run}/checkpoints/step-00000200/config.toml {run}/config.toml$",
    ),
    "settings of another version": (
        config(n_layerz=3),
        *("settings", "error", "config.toml cannot be used: .*unknown setting n_layerz"),
        "cp {run}/checkpoints/step-00000200/config.toml {run}/config.toml$",
    ),
    "status half-written": (
        *(half_written("status.json"), "run", "error", "status.json cannot be used"),
        "^rm {run}/status.json; then nanogpt train {run}$",
    ),
    "crash loop": (
        *(in_vain(3), "attempts", "warning", "3 starts in a row .* one checkpoint further back"),
        r"^nanogpt train {run} --save-interval \d+$",
    ),
    "given up": (
        *(in_vain(4), "attempts", "error", "4 starts in a row .* will be refused"),
        r"^rm {run}/attempts.jsonl; then nanogpt train {run} --save-interval \d+$",
    ),
    "debris": (
        *(left_over, "disk", "warning", r"1 folder of killed saves, [\d.]+ MB"),
        "^rm -rf {run}/checkpoints/.tmp-step-00000250-0123abcd$",
    ),
    "debris of a killed run": (
        many_left_over,
        *("disk", "warning", "5 folders of killed saves, .* the next start removes them"),
        "^nanogpt train {run}$",
    ),
    "set aside": (
        *(left_over, "disk", "warning", "1 folder set aside as damaged"),
        "^rm -rf {run}/checkpoints/.bad-step-00000100-1$",
    ),
    "not finite": (
        *(logged(not_a_number), "losses", "error", "NaN or infinite in 10 of .* at step 182"),
        "^nanogpt train {run}/checkpoints/step-00000150 --out-dir {run}-lower "
        "--learning-rate 0.005 --min-lr 0.0005$",
    ),
    "spikes": (
        *(logged(spike), "losses", "warning", "2 spikes, the highest .* at step 60, 120"),
        "^nanogpt train {run} --out-dir {run}-lower --learning-rate 0.005 --min-lr 0.0005$",
    ),
    "diverged": (
        *(logged(diverging), "losses", "warning", "diverged: train loss .*, 6.* now"),
        "--learning-rate 0.005",
    ),
    "flat": (
        *(no_progress, "losses", "warning", "flat: train loss 5.* nothing learnt since"),
        "^nanogpt train {run} --learning-rate 3e-09$",
    ),
    "overfitting": (
        *(overfitting, "losses", "warning", "overfitting: val loss 3.4000, .* at step 100"),
        "^nanogpt train .*--dropout 0.2$",
    ),
    "slower": (
        *(logged(slower), "speed", "warning", "slower than it was: 5,000 tokens/s .* 10,00. be"),
        "^nanogpt doctor$",
    ),
    "below the plan": (
        logged(lambda line: line.update(expected_tokens_per_second=20_000)),
        *("speed", "warning", "10,00. tokens/s, planned were 20,000"),
        "^nanogpt bench train {run}$",
    ),
    "straggler": (
        *(logged(straggler), "ranks", "warning", "rank 3 on node3 is the slowest in .* 1.7 ×"),
        "^ssh node3 nanogpt doctor$",
    ),
    "data stalls": (
        *(shares(data_s=4.0), "data", "warning", "40% of the time goes on waiting for batches"),
        "^nanogpt bench data {run}$",
    ),
    "saves stall": (
        *(shares(save_s=2.0), "saves", "warning", "20% of the time goes on saving"),
        "^nanogpt train {run} --save-interval 200$",
    ),
    "evaluations": (
        *(shares(eval_s=5.0), "evaluations", "warning", "50% of the time goes on evaluating"),
        "^nanogpt train {run} --eval-interval 200$",
    ),
    "a slow save": (
        *(slow_save, "saves", "warning", "the last save took 30.0 s, 2.0 s were usual"),
        "^nanogpt bench io {run} --folder {folder}$",
    ),
    "clock": (
        *(logged(backwards), "clock", "warning", "metrics.jsonl: the clock.* went 1h00m back"),
        "^timedatectl set-ntp true$",
    ),
    "high rate": (
        config(learning_rate=2.0),
        *("settings", "warning", "learning_rate 2 is high: 0.014 is usual for adamw"),
        "^nanogpt train {run} --learning-rate 0.014$",
    ),
    "low rate": (
        config(learning_rate=1e-5, min_lr=0.0),
        *("settings", "warning", "learning_rate 1e-05 is low"),
        "^nanogpt train {run} --learning-rate 0.014$",
    ),
    "warm-up": (
        config(warmup_iters=100),
        *("settings", "warning", "warming up takes 100 of 200 steps, 50%"),
        "^nanogpt train {run} --warmup-iters 10$",
    ),
    "never warm": (
        config(warmup_iters=300),
        *("settings", "warning", "warming up takes 300 steps, the run makes 200"),
        "^nanogpt train {run} --warmup-iters 10$",
    ),
    "unread": (
        config(muon_steps=7),
        *("settings", "warning", "nothing reads muon_steps without --optimizer muon"),
        "^nanogpt train {run} --muon-steps 5$",
    ),
    "epochs": (
        config(max_iters=100_000),
        *("settings", "warning", r"29\.\d epochs of [\d,]+ tokens"),
        "^nanogpt train {run} --dropout 0.2$",
    ),
    "batch": (
        config(batch_size=50_000),
        *("settings", "warning", "a step reads 3,200,000 tokens, the train split has"),
        r"--batch-size \d+ --gradient-accumulation-steps 1$",
    ),
    "val split": (
        lambda run: lines(run, val_error),
        *("settings", "warning", "± 0.2000: two evaluations can hardly be told apart"),
        r"^nanogpt train {run} --eval-iters \d+$",
    ),
}


# what matters to a training that is to come, and is a note of one that is finished
OF_TRAINING = ("losses", "speed", "ranks", "data", "saves", "evaluations", "settings")


@pytest.fixture
def run(healthy: Path, tmp_path: Path) -> Path:
    """A copy of the healthy run, beside its data set."""
    shutil.copytree(healthy, tmp_path / "copy", symlinks=True)
    config(dataset=f'"{tmp_path}/copy/data"')(tmp_path / "copy/a")
    return tmp_path / "copy/a"


def test_nothing_is_odd_about_a_healthy_run(run: Path) -> None:
    found = check_run(run)
    assert {check.level for check in found} == {"ok"}, found
    assert exit_code(found) == 0
    assert [check.name for check in found] == [
        *("run", "checkpoints", "disk", "data", "resume", "losses", "speed", "settings")
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_what_mends_it(fault: str, run: Path) -> None:
    break_, name, level, text, todo = FAULTS[fault]
    assert not named(check_run(run), name, level, text.format())
    if name in OF_TRAINING:
        status(verdict="stopped")(run)
    break_(run)
    found = check_run(run)
    [check] = named(found, name, level, text.format())
    typed = todo.format(run=re.escape(str(run)), folder=re.escape(str(run.parent)))
    assert re.search(typed, check.todo), check
    for words in commands_in(shlex.split(check.todo.replace(";", " ; "))):
        if words != ["doctor"]:
            understand(words)
    assert exit_code(found) == (int(check.code) if level == "error" else exit_code(found)) != 0


@pytest.mark.parametrize("fault", [name for name in FAULTS if FAULTS[name][1] in OF_TRAINING])
def test_no_line_is_in_vain_where_the_run_is_finished_or_goes_on(fault: str, run: Path) -> None:
    FAULTS[fault][0](run)
    goes_on = re.compile(rf"nanogpt train {re.escape(str(run))}(?! --out-dir)( |$)")
    if run_facts.read_facts(run).is_finished:  # it makes more steps with more --max-iters alone
        lines_ = [check.todo for check in check_run(run)]
        assert not [line for line in lines_ if goes_on.search(line) and "--max-iters" not in line]
    with storage.RunLock(run):  # a second training of it would be refused
        lines_ = [check.todo for check in check_run(run)]
        assert not [line for line in lines_ if goes_on.search(line) and "stop it by" not in line]


@pytest.mark.parametrize("fault", ["slower", "below the plan", "val split", "warm-up", "unread"])
def test_what_mattered_to_its_training_is_a_note_of_a_finished_run(fault: str, run: Path) -> None:
    break_, name, _, text, _ = FAULTS[fault]
    break_(run)
    found = check_run(run)
    assert named(found, name, "ok", text)
    assert exit_code(found) == 0


RESUMES = ("resume", "ok")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_resume_does_is_told_as_training_does_it(fault: str, run: Path) -> None:
    FAULTS[fault][0](run)
    told = [check.text for check in check_run(run) if (check.name, check.level) == RESUMES]
    try:
        start = run_checkpoints.checkpoint_to_resume(run, False, lambda _: None)
    except NanogptError:
        assert told == []
        return
    assert start is not None
    assert not told or re.search(f"from {start.name}|none is due", told[0])


@pytest.mark.parametrize("fault", ["data gone", "data changed", "given up", "checkpoints gone"])
def test_a_resume_that_would_be_refused_is_not_promised(fault: str, run: Path) -> None:
    FAULTS[fault][0](run)
    assert RESUMES not in {(check.name, check.level) for check in check_run(run)}


def test_a_resume_after_starts_in_vain_is_told_to_go_one_checkpoint_back(run: Path) -> None:
    older = shutil.copytree(run / "checkpoints/step-00000150", run / "checkpoints/.x")
    (older / "manifest.json").unlink()
    storage.seal(older, "step-00000100", {"step": 100})
    in_vain(3)(run)
    assert named(check_run(run), "resume", "ok", "goes on from step-00000100, 100 steps are comp")


def test_no_line_goes_on_with_a_killed_run_that_has_lost_its_checkpoints(run: Path) -> None:
    killed(run)
    shutil.rmtree(run / "checkpoints")
    todo = f"restore {run}/checkpoints, or start over: nanogpt train {run} --fresh"
    for name in ("run", "checkpoints"):
        assert [check.todo for check in check_run(run) if check.name == name] == [todo]


def named(found: list[Check], name: str, level: str, text: str) -> list[Check]:
    """The checks of that name and level that say so."""
    same = [check for check in found if (check.name, check.level) == (name, level)]
    return [check for check in same if re.search(text, check.text)]


def test_a_full_disk_is_told_before_the_next_save(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(run)
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1000)
    [check] = named(check_run(run), "disk", "error", "0.00 GB free at .* the next 2 saves take")
    assert check.text.endswith("GB")  # as the machine's free space is told
    assert check.todo == f"df -h {run}/checkpoints  # or --out-dir on another disk"
    assert check.code == Exit.IO_ERROR


def test_a_full_disk_with_checkpoints_to_spare(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status(verdict="stopped")(run)
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1000)
    [check] = named(check_run(run), "disk", "error", "GB free")
    assert check.todo == f"nanogpt checkpoint prune {run} --keep 1 --dry-run"
    with storage.RunLock(run):  # prune would refuse
        [check] = named(check_run(run), "disk", "error", "GB free")
    assert check.todo.startswith("df -h ")


def test_a_save_that_may_be_alive_is_no_debris(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_over(run)
    killed(run)
    place = run / "checkpoints/.tmp-step-00000250-0123abcd"
    os.utime(next(place.iterdir()))  # it was written just now
    assert not named(check_run(run), "disk", "warning", "killed saves")
    os.utime(next(place.iterdir()), (0, 0))
    assert named(check_run(run), "disk", "warning", "killed saves")
    killed_elsewhere = {"host": "node7", "pid": 4711, "started": "2026"}
    (run / "run.lock").write_text(json.dumps(killed_elsewhere))  # its lock is not seen from here
    assert not named(check_run(run), "disk", "warning", "folder")


def test_a_checkpoint_that_a_living_run_deletes_is_not_called_damaged(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = run / "checkpoints/step-00000200"
    verify = storage.verify

    def going_on(folder: Path) -> list[tuple[str, str]]:
        if newest.exists():  # it saves another, and deletes this one
            storage.seal(shutil.copytree(newest, newest.with_name(".x")), "step-00000250", {})
            shutil.rmtree(newest)
        return verify(folder)

    (newest / "manifest.json").unlink()
    monkeypatch.setattr(storage, "verify", going_on)
    found = [check for check in check_run(run) if check.name == "checkpoints"]
    assert [(check.level, check.text[:21]) for check in found] == [("ok", "step-00000250 is good")]


def test_a_living_run_is_called_alive(run: Path) -> None:
    killed(run)
    with storage.RunLock(run):
        found = check_run(run)
        assert not any(check.level == "error" for check in found)
        [check] = named(
            found, "run", "ok", f"running, .*process {os.getpid()} on .* holds run.lock"
        )
        lines(run, lambda line: line.update(time=float(line["step"])))
        os.utime(run / RECORD, (0, 0))
        [check] = named(check_run(run), "run", "warning", "has logged nothing for")
        look = "ps -o user,pid,stat,etime,args -p"
        end = f"if it hangs: kill {os.getpid()}; then nanogpt train {run}"
        assert check.todo == f"{look} {os.getpid()}; {end}"
        note = {"host": socket.gethostname(), "pid": 1, "started": "2026"}
        (run / "run.lock").write_text(json.dumps(note))  # a process that does not hold it
        [check] = named(check_run(run), "run", "warning", "has logged nothing for")
        assert check.todo == f"{look} 1; if it is gone: nanogpt train {run}"
    assert named(check_run(run), "run", "warning", "killed")


@pytest.fixture
def orphan(run: Path) -> Iterator[int]:
    """A process that holds the lock of a dead one, as a worker that outlives it does."""
    killed(run)
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
    code += "print(flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run / "run.lock")], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        child.kill()


@pytest.fixture
def dead(run: Path) -> int:
    """A process that has ended, and that run.lock names."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    note = {"host": socket.gethostname(), "pid": child.pid, "started": "2026-01-01T00:00:00+00:00"}
    (run / "run.lock").write_text(json.dumps(note))
    return child.pid


def test_who_holds_the_lock_of_a_dead_process_is_named(run: Path, orphan: int, dead: int) -> None:
    with (run / "run.lock").open():  # a reader holds nothing
        [check] = named(check_run(run), "run", "error", f"is dead, but .* held by {orphan}:")
    look = f"ps -o user,pid,etime,args -p {orphan}"
    assert check.todo == f"{look}; if it is left over: kill {orphan}"
    assert check.code == Exit.CANNOT_CREATE


@pytest.mark.usefixtures("orphan")
def test_a_lock_whose_holder_cannot_be_seen_is_no_error(
    run: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_standing, "holders_of", lambda lock: [])
    [check] = named(check_run(run), "run", "warning", f"process {dead} .* is not seen from here")
    assert check.todo == f"fuser -v {run}/run.lock"


def test_who_may_not_be_signalled_and_who_is_of_a_container_is_alive(
    dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_standing._is_gone(dead, [])
    monkeypatch.setattr(run_standing, "_number_inside", {4711: dead}.get)
    assert not run_standing._is_gone(dead, [4711])

    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(run_standing.os, "kill", refuse)
    assert not run_standing._is_gone(dead, [])


def test_a_run_elsewhere_that_named_no_process_is_looked_for(run: Path) -> None:
    killed_on_another_machine(run)
    (run / "run.lock").write_text(json.dumps({"host": "node7"}))
    (run / "run.json").unlink()
    [check] = named(check_run(run), "run", "warning", "killed, it seems")
    assert check.todo == f"ssh node7 pgrep -af nanogpt; if it is gone: nanogpt train {run}"


@pytest.mark.parametrize("name", ["-Fx", "-oProxyCommand=x", ".a", ""])
def test_a_host_that_is_an_option_is_none(name: str) -> None:
    assert not run_facts.HOST.fullmatch(name)


def test_a_run_elsewhere_whose_lock_is_not_seen_is_alive_while_it_writes(run: Path) -> None:
    killed_on_another_machine(run)
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "host": "node7"}))
    assert named(check_run(run), "run", "ok", "^running on node7")


def test_the_commands_that_it_says_mend_the_run(run: Path) -> None:
    """A killed run with half a checkpoint, and a damaged one: typed as they stand."""
    flipped(run)
    status(verdict="running")(run)
    left_over(run)
    for todo in dict.fromkeys(check.todo for check in check_run(run)):
        line = f'alias nanogpt="{sys.executable} -m nanogpt_dist"\n{todo}'
        subprocess.run(line, shell=True, check=True, capture_output=True)
    lines(run, steady)  # others may use the machine
    left = [check for check in check_run(run) if check.level != "ok"]
    assert [check.text[:33] for check in left] == ["1 folder set aside as damaged, 0."]


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_has_an_odd_rate_or_warm_up(preset: str, run: Path) -> None:
    text = "".join(
        f"{name} = {json.dumps(value)}\n"
        for name, value in PRESETS[preset].items()
        if name not in ("dataset", "init_from")
    )
    tuned = 'init_from = "gpt2"\n' if "init_from" in PRESETS[preset] else ""
    (run / "config.toml").write_text(f'{text}{tuned}dataset = "{run.parent / "data"}"\n')
    odd = [check for check in check_run(run) if check.name == "settings" and check.level != "ok"]
    assert not [check for check in odd if re.search("is high|is low|warming|reads", check.text)]


def test_an_older_run_is_read_without_what_came_later(run: Path) -> None:
    old = {"step", "tokens", "loss", "learning_rate", "tokens_per_second", "val_loss"}

    def strip(line: dict[str, Any]) -> None:
        for name in line.keys() - old:
            del line[name]

    lines(run, strip)
    for name in ("attempts.jsonl", "events.jsonl", "run.json", "run.lock"):
        (run / name).unlink(missing_ok=True)
    assert {check.level for check in check_run(run)} == {"ok"}


def test_a_run_that_was_stopped_before_its_first_step_has_one_finding(tmp_path: Path) -> None:
    run = tmp_path / "a"
    with storage.RunLock(run):  # the folder as it is until the model is built
        crash_loops.begun(run, 0, 0, "0123")
        [check] = check_run(run)
        assert (check.level, check.text[:29]) == ("ok", "starting: nothing is trained ")
    [check] = check_run(run)
    assert (check.name, check.level) == ("run", "warning")
    assert check.text == "nothing was trained: it ended before its first step"
    assert check.todo == f"the command that began it, once more; or rm -r {run}"
    (run / "run.lock").write_text(json.dumps({"host": "node7", "pid": 4711, "started": "2026"}))
    [check] = check_run(run)
    assert check.todo.startswith("ssh node7 ps -o user,pid,stat,etime,args -p 4711; if it is gone")


def test_a_run_that_has_lost_its_settings_is_not_taken_for_one_that_never_began(run: Path) -> None:
    (run / "config.toml").unlink()
    assert named(check_run(run), "settings", "error", "config.toml cannot be used")
    shutil.rmtree(run / "checkpoints")
    (run / RECORD).unlink()
    assert named(check_run(run), "checkpoints", "error", "step-00000200 and all others are gone")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        check_run(tmp_path)
    with pytest.raises(MissingInputError):
        check_run(tmp_path / "nothing")


FILES = ("status.json", "run.json", "metrics.jsonl", "config.toml", "attempts.jsonl", "run.lock")
FILES += ("events.jsonl", "checkpoints/step-00000200/state.json", "checkpoints/pins")
NUMBERS = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.integers(), st.floats(), st.just(10**400)
)


@settings(max_examples=40)
@given(name=st.sampled_from(FILES), data=st.data())
def test_no_content_of_a_file_ends_in_a_traceback(
    name: str, data: st.DataObject, healthy: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("mutated") / "a"
    shutil.copytree(healthy / "a", run)
    killed(run) if data.draw(st.booleans()) else None
    path = run / name
    if not path.parent.is_dir():
        return
    old = path.read_bytes() if path.exists() else b""
    kind = data.draw(st.sampled_from(("cut", "bytes", "inserted", "values")))
    if kind == "cut":
        path.write_bytes(old[: data.draw(st.integers(0, len(old)))])
    elif kind == "bytes":
        path.write_bytes(data.draw(st.binary(max_size=200)))
    elif kind == "inserted":
        at = data.draw(st.integers(0, len(old)))
        path.write_bytes(old[:at] + data.draw(st.binary(max_size=9)) + old[at:])
    else:
        path.write_text(with_other_values(old, data), encoding="utf-8", errors="surrogatepass")
    checks = check_run(run)
    assert checks
    assert all(check.text and (check.todo or check.level == "ok") for check in checks)


def with_other_values(old: bytes, data: st.DataObject) -> str:
    """JSON lines of which some values are others, of any kind."""
    found = []
    for text in old.decode().splitlines()[-30:] if old.count(b"\n{") else [old.decode()]:
        try:
            line = json.loads(text)
        except ValueError:
            line = {}
        if isinstance(line, dict):
            keys = st.sampled_from([*line, "time", "data_s", "interval_s", "slowest_rank"])
            line.update(data.draw(st.dictionaries(keys, NUMBERS, max_size=4)))
        found.append(json.dumps(line))
    return "\n".join(found) + "\n"


def test_a_lock_that_is_looked_at_stays_free(run: Path) -> None:
    check_run(run)
    with (run / "run.lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
