"""Checkpoints that are cut, flipped, incomplete or gone."""

import functools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from nanogpt_dist import storage
from nanogpt_dist.errors import MissingInputError
from nanogpt_dist.storage import run_checkpoints
from tests.faults import commands, damage, prepared
from tests.faults.checks import tensors
from tests.faults.row import Row

STEPS = [24, 20, 16]  # of the checkpoints that saved_run() has
LINE = ["train", "--dataset", "data", "--out-dir", "out", *prepared.STEPS_24]
LINE += ["--ema-decay", "0.9"]  # a fourth file of tensors
BY_COMMAND = 0.1  # of the tries: those that the command resumes, in a second; others look


@prepared.once
def saved_run(folder: Path) -> None:
    """FOLDER/data and FOLDER/out, a run of 24 steps with checkpoints of three of them."""
    shutil.copytree(prepared.data() / "data", folder / "data")
    commands.run(*LINE, folder=folder)


def own_run(folder: Path) -> Path:
    """A try's own copy of that run, in folder/out; its checkpoints."""
    whole = saved_run()
    (folder / "data").symlink_to(whole / "data")
    shutil.copytree(whole / "out", folder / "out")
    return folder / "out" / "checkpoints"


def checkpoint_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / storage.step_name(step)


def any_file(checkpoint: Path, choose: random.Random) -> Path:
    """A file of a checkpoint; each is as likely."""
    return choose.choice(sorted(checkpoint.iterdir()))


def damaged(spoil: Callable[[Path, random.Random], object]) -> Callable[..., None]:
    """A try that does `spoil` to a file of each of the newest checkpoints but one."""

    def attempt(choose: random.Random, folder: Path) -> None:
        checkpoints = own_run(folder)
        if choose.random() < BY_COMMAND:
            damaged_beside(checkpoints, spoil, choose)
            return
        count = choose.choice([1, 1, 1, 2])
        for step in STEPS[:count]:
            checkpoint = checkpoint_of(checkpoints, step)
            path = any_file(checkpoint, choose)
            spoil(path, choose)
            found = storage.verify(checkpoint)
            assert [name for name, _ in found] == [path.name], f"{path.name}: {found}"
            refuse_by_name(checkpoint, path.name)
        go_on(checkpoints, count, choose)

    return attempt


def damaged_beside(
    checkpoints: Path, spoil: Callable[[Path, random.Random], object], choose: random.Random
) -> None:
    """Spoil a file of the run that is in no checkpoint: the end is the same, perhaps without it."""
    run, folder = checkpoints.parent, checkpoints.parent.parent
    shutil.rmtree(checkpoint_of(checkpoints, 24))
    beside = [path for path in [*run.iterdir(), checkpoints / storage.LATEST] if path.is_file()]
    path = choose.choice(sorted(path for path in beside if path.stat().st_size))
    spoil(path, choose)
    done = commands.run(*LINE, folder=folder, code=None)
    if done.wait():
        assert done.wait() == 65, done.stderr[-500:]
        damage.line_of(done, path.name, "; remove it")
        path.unlink()
        commands.run(*LINE, folder=folder)
    assert tensors(run, 24) == tensors(saved_run() / "out", 24), f"another end without {path.name}"


def refuse_by_name(checkpoint: Path, file: str) -> None:
    """A bad checkpoint that the user names is refused: no other one is taken for it."""
    use = functools.partial(run_checkpoints.find_checkpoint, str(checkpoint))
    damage.refused(use, file[:30], checkpoint.name)


def go_on(checkpoints: Path, bad: int, choose: random.Random) -> None:
    """The newest `bad` are damaged: the one before is taken, they are set aside and kept."""
    folder = checkpoints.parent.parent
    if choose.random() < BY_COMMAND:
        done = commands.run(*LINE, folder=folder)
        said = done.stderr.splitlines()
        warnings = [line for line in said if "is damaged" in line]
        whole = tensors(saved_run() / "out", 24)
        assert tensors(folder / "out", 24) == whole, "the end is another"
    else:
        warnings = []
        taken = storage.newest_good(checkpoints, warnings.append)
        assert taken == checkpoint_of(checkpoints, STEPS[bad]), taken
        assert not storage.verify(taken), taken
    assert len(warnings) == bad, warnings
    for warning, step in zip(warnings, STEPS, strict=False):
        assert storage.step_name(step) in warning, warning
    aside = sorted(path.name for path in checkpoints.glob(".bad-*"))
    assert aside == [f".bad-{storage.step_name(step)}-1" for step in sorted(STEPS[:bad])], aside


def cut_or_zeroed(path: Path, choose: random.Random) -> None:
    choose.choice([damage.cut, damage.zero_tail])(path, choose)


def incomplete(choose: random.Random, folder: Path) -> None:
    """Something of a run is missing: a file, a folder's content, what `latest` says, all steps."""
    checkpoints = own_run(folder)
    newest = checkpoint_of(checkpoints, 24)
    way = choose.choice(["file", "empty", "no folder", "gone", "latest", "all"])
    if way == "file":
        path = any_file(newest, choose)
        path.unlink()
        assert storage.verify(newest) == [(path.name, "is missing")]
        refuse_by_name(newest, path.name)
        go_on(checkpoints, 1, choose)
    elif way in ("empty", "no folder"):
        shutil.rmtree(newest)
        newest.mkdir() if way == "empty" else newest.write_text("mine")
        go_on(checkpoints, 1, choose)
    elif way == "gone":
        newest.rename(folder / "elsewhere")
        use = functools.partial(run_checkpoints.find_checkpoint, str(newest))
        damage.refused(use, newest.name, kind=MissingInputError)
        assert storage.newest_good(checkpoints, refuse_warning) == checkpoint_of(checkpoints, 20)
        resume(folder, choose)
    elif way == "latest":
        tear_latest(checkpoints / storage.LATEST, choose)
        assert storage.newest_good(checkpoints, refuse_warning) == newest
        resume(folder, choose)
    else:
        history_lost(checkpoints, choose)


def refuse_warning(text: str) -> None:
    raise AssertionError(f"warned for nothing: {text}")


def tear_latest(latest: Path, choose: random.Random) -> None:
    """What may stand in `latest` after a crash, another program, or a person."""
    torn = [b"", b"step-0000", b"../../x\n", b"\xff" * 999, bytes(14), b"step-00000016\n"]
    torn += [b"step-99999999\n", choose.randbytes(choose.randrange(40))]
    latest.unlink()
    way = choose.randrange(len(torn) + 3)
    if way < len(torn):
        latest.write_bytes(torn[way])
    elif way == len(torn):
        latest.mkdir()
    elif way == len(torn) + 1:
        latest.symlink_to(latest)


def resume(folder: Path, choose: random.Random) -> None:
    """Let the command go on, now and then: further than the run went, so that it saves."""
    if choose.random() < 2 * BY_COMMAND:
        commands.run(*LINE, folder=folder)
        assert tensors(folder / "out", 24) == tensors(saved_run() / "out", 24), "another end"


def history_lost(checkpoints: Path, choose: random.Random) -> None:
    """A run whose checkpoints are gone is never taken for a new one, unless that is asked for."""
    run, folder = checkpoints.parent, checkpoints.parent.parent
    if choose.random() < 0.5:
        shutil.rmtree(checkpoints)
    else:
        for step in STEPS:
            checkpoint_of(checkpoints, step).rename(folder / f"elsewhere-{step}")
    metrics = (run / "metrics.jsonl").read_bytes()
    done = commands.run(*LINE, folder=folder, code=66)
    damage.line_of(done, "has lost its checkpoint step-00000024", "--fresh")
    assert (run / "metrics.jsonl").read_bytes() == metrics, "the record of the lost run was cut"
    assert not storage.list_steps(checkpoints)
    if choose.random() < BY_COMMAND:
        commands.run(*LINE, "--fresh", folder=folder)
        assert tensors(run, 24) == tensors(saved_run() / "out", 24), "another end"


def all_bad(choose: random.Random, folder: Path) -> None:
    """Damage every checkpoint, each in its own way; nothing is set aside or deleted."""
    checkpoints = own_run(folder)
    for step in STEPS:
        checkpoint = checkpoint_of(checkpoints, step)
        way = choose.choice([damage.flip, cut_or_zeroed, lambda path, _: path.unlink()])
        way(any_file(checkpoint, choose), choose)
    was = damage.contents(checkpoints)
    names = [storage.step_name(step) for step in STEPS]
    if choose.random() < 0.5:
        done = commands.run(*LINE, folder=folder, code=65)
        damage.line_of(done, "all 3 checkpoints", names[0], "--fresh")
        done = commands.run("sample", "out", folder=folder, code=65)
        damage.line_of(done, "all 3 checkpoints")
    else:
        use = functools.partial(storage.newest_good, checkpoints, refuse_warning)
        damage.refused(use, "all 3 checkpoints", names[0])
    if choose.random() < 0.5:
        listed = commands.run("checkpoint", "verify", "out", folder=folder, code=65).stdout
        for name in names:
            assert f"bad  {name}/" in listed, f"{name} is not in the list: {listed}"
    assert damage.contents(checkpoints) == was, "something was changed"


ROWS = [
    Row(
        number=17,
        fault="a file of a checkpoint, or of a run, cut, or its end zeros",
        holds="named, set aside with one warning; the newest good one is taken, the end the same",
        goal=200,
        attempt=damaged(cut_or_zeroed),
        short=4,
    ),
    Row(
        number=18,
        fault="a bit flipped in any file of a checkpoint, or of a run",
        holds="named, set aside with one warning; the newest good one is taken, the end the same",
        goal=1000,
        attempt=damaged(damage.flip),
        short=8,
    ),
    Row(
        number=19,
        fault="a checkpoint's file missing, an empty folder, torn `latest`, all steps gone",
        holds="what is on the disk counts, not `latest`; a named one has no stand-in; never anew",
        goal=200,
        attempt=incomplete,
        short=4,
    ),
    Row(
        number=20,
        fault="all checkpoints bad",
        holds="exit 65, one line; `checkpoint verify` lists each; no byte is changed",
        goal=100,
        attempt=all_bad,
        short=1,
    ),
]
