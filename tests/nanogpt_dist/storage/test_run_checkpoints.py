"""Finding a run's checkpoint, and branching from one."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from nanogpt_dist import storage
from nanogpt_dist.errors import (
    BadDataError,
    CannotCreateError,
    MissingInputError,
    StorageError,
    UsageError,
)
from nanogpt_dist.load_config import load
from nanogpt_dist.storage import run_checkpoints, run_folder
from nanogpt_dist.storage.eval_results import save_results
from tests.conftest import Run
from tests.nanogpt_dist.small import go, tiny, weights_sha256
from tests.nanogpt_dist.storage.test_run_folder import all_hashes


def test_a_checkpoint_is_refused_or_branches_exactly(
    nanogpt: Run,
    trained: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    before, step = all_hashes(trained), run_folder.checkpoints_of(trained) / "step-00000004"
    for name in (step, step / "config.toml"):
        refused = nanogpt("train", name, code=2)
        assert "is a checkpoint" in refused.stderr
        assert "--out-dir DIR" in refused.stderr
    nanogpt("train", step, "--out-dir", trained, code=2)
    config = load(str(step), {"out_dir": str(tmp_path / "branch")})
    go(config, branch_from=step)
    assert weights_sha256(tmp_path / "branch", 8) == weights_sha256(trained, 8)
    assert not storage.verify(tmp_path / "branch" / "checkpoints" / "step-00000004")
    go(config.model_copy(update={"max_iters": 12}), branch_from=step)  # the same again resumes
    assert storage.read_latest(tmp_path / "branch" / "checkpoints") == "step-00000012"
    assert all_hashes(trained) == before


def test_the_newest_run_is_the_one_that_was_started_last_and_has_a_checkpoint(
    tmp_path: Path,
) -> None:
    with pytest.raises(MissingInputError, match="no run with a checkpoint under"):
        run_checkpoints.newest_run(tmp_path)
    started = {"a": "2026-11-02", "z": "2026-11-01", "m": "2026-11-03", "none": None}
    for name, date in started.items():
        (tmp_path / name / "checkpoints" / storage.step_name(1)).mkdir(parents=True)
        run_folder.write_json(tmp_path / name / "run.json", {"started": date} if date else {})
    (tmp_path / "m" / "checkpoints" / storage.step_name(1)).rmdir()
    assert run_checkpoints.newest_run(tmp_path) == tmp_path / "a"


@pytest.mark.parametrize("step", ["8", -8, None])
def test_a_renamed_checkpoint_that_does_not_say_its_step_is_refused(
    step: object, trained: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "mine"
    shutil.copytree(trained / "checkpoints" / "step-00000008", renamed)
    assert run_checkpoints.step_of_any(renamed) == 8
    (renamed / "state.json").write_text(json.dumps({"step": step}))
    with pytest.raises(BadDataError, match="mine does not say its step; name it step-00001000"):
        run_checkpoints.step_of_any(renamed)


def test_a_bad_copy_is_not_begun_with(
    trained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flipped(source: Path, copy: Path) -> None:
        data = bytearray(source.read_bytes())
        data[-1] ^= 1
        copy.write_bytes(data)

    monkeypatch.setattr(shutil, "copyfile", flipped)
    with pytest.raises(StorageError, match="does not match its sha256; type the same again"):
        go(tiny(corpus, tmp_path), branch_from=trained / "checkpoints" / "step-00000004")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_damaged_checkpoint_is_not_branched_from(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "step-00000008"
    shutil.copytree(trained / "checkpoints" / "step-00000008", damaged)
    (damaged / "state.json").write_bytes(b"{}")
    with pytest.raises(BadDataError, match=r"state\.json has 2 bytes instead of"):
        go(tiny(corpus, tmp_path / "branch"), branch_from=damaged)
    assert not (tmp_path / "branch" / "checkpoints").exists()


def test_a_checkpoint_stands_for_a_run_by_its_folder_its_config_and_after_a_move(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(trained, run)
    newest = run / "checkpoints" / "step-00000008"
    for name in (run, run / "config.toml", run / "checkpoints", newest, newest / "config.toml"):
        assert run_checkpoints.find_checkpoint(str(name)).resolve() == newest, name
    assert (
        run_checkpoints.find_checkpoint(str(run / "checkpoints"), best=True).parent
        == run / "checkpoints"
    )
    shutil.copytree(newest, tmp_path / "mine")
    assert run_checkpoints.find_checkpoint(str(tmp_path / "mine")) == tmp_path / "mine"
    with pytest.raises(UsageError, match="--best chooses among a run's checkpoints"):
        run_checkpoints.find_checkpoint(str(newest), best=True)
    monkeypatch.chdir(newest)
    assert run_folder.run_of(Path(".")) == run
    monkeypatch.chdir(run.parent)
    assert run_folder.run_of(Path("moved/checkpoints/step-00000008")) == Path("moved")


def test_a_folder_of_checkpoints_may_be_a_link_to_another_disk(
    corpus: Path,
    tmp_path: Path,
) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk" / "ck"
    run.mkdir()
    (run / "checkpoints").symlink_to(disk)
    with pytest.raises(
        CannotCreateError, match=r"run/checkpoints: it links to .*disk/ck, which is no folder here"
    ):
        go(tiny(corpus, run))
    disk.mkdir(parents=True)
    go(tiny(corpus, run))
    assert [path.name for path in storage.list_steps(disk)] == ["step-00000008", "step-00000004"]
    assert run_folder.run_of(run_checkpoints.find_checkpoint(str(run))) == run
    assert (
        save_results(run_checkpoints.find_checkpoint(str(run)), {})
        == run / "checkpoints" / "step-00000008.eval.json"
    )


def make(run: Path, best: object = None, steps: Iterable[int] = (1, 2, 3)) -> dict[int, Path]:
    """Checkpoints without weights; best: what their state.json says of the best step."""

    def fill(staging: Path) -> None:
        (staging / "state.json").write_text(json.dumps({"step": 0, "best_step": best}))
        (staging / "config.toml").write_text("")

    folder = run / "checkpoints"
    return {at: storage.commit(folder, storage.step_name(at), fill, {}) for at in steps}


def spoil(checkpoint: Path) -> None:
    (checkpoint / "config.toml").write_text("#")


def test_the_good_one_before_is_the_newest_that_is(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert run_checkpoints.good_before(made[3]) == made[2]
    spoil(made[2])
    assert run_checkpoints.good_before(made[3]) == made[1]
    assert run_checkpoints.good_before(made[1]) == made[1]  # there is none before


def test_a_run_is_resumed_at_its_newest_and_never_started_over_by_itself(tmp_path: Path) -> None:
    resume = run_checkpoints.checkpoint_to_resume
    for fresh in (False, True):
        assert resume(tmp_path, fresh, pytest.fail) is None
    assert run_checkpoints.is_new(tmp_path)
    made = make(tmp_path)
    assert not run_checkpoints.is_new(tmp_path)
    assert resume(tmp_path, False, pytest.fail) == made[3]
    with pytest.raises(CannotCreateError, match="holds a run at step-00000003; --fresh needs"):
        resume(tmp_path, True, pytest.fail)
    spoil(made[3])
    warnings: list[str] = []
    assert resume(tmp_path, False, warnings.append) == made[2]
    assert "step-00000003 is damaged" in warnings[0]
    run_folder.write_status(tmp_path, run_folder.Status("failed", 2, "step-00000002"))
    shutil.rmtree(tmp_path / "checkpoints")
    assert not run_checkpoints.is_new(tmp_path)
    assert resume(tmp_path, True, pytest.fail) is None
    with pytest.raises(MissingInputError, match="has lost its checkpoint step-00000002; restore"):
        resume(tmp_path, False, pytest.fail)


@pytest.mark.parametrize(
    ("every", "kept"),
    [("1", {0, 4, 5, 6}), ("2", {0, 4, 6}), ("4", {0, 4}), ("0", set()), ('"2"', set())],
)
def test_each_checkpoint_is_kept_as_its_own_settings_promised(
    every: str, kept: set[int], tmp_path: Path
) -> None:
    for step in (0, 4, 5, 6):
        folder = tmp_path / storage.step_name(step)
        folder.mkdir()
        (folder / "config.toml").write_text(f"keep_every = {every}\n")
    (tmp_path / storage.step_name(8)).mkdir()  # without settings, as others damaged ones
    for step, damage in ((2, b"keep_every = 1 1"), (3, b"\xff"), (12, b"keep_every = 1e")):
        (tmp_path / storage.step_name(step)).mkdir()
        (tmp_path / storage.step_name(step) / "config.toml").write_bytes(damage)
    promised = {storage.step_name(step) for step in kept}
    assert run_checkpoints.kept_by_keep_every(tmp_path) == promised
    unreadable = tmp_path / storage.step_name(99)
    unreadable.mkdir()
    (unreadable / "config.toml").symlink_to("config.toml")
    assert run_checkpoints.kept_by_keep_every(tmp_path) == promised | {unreadable.name}


def test_a_step_may_be_0_whatever_the_folder_is_called(tmp_path: Path) -> None:
    made = make(tmp_path, steps=[0])
    assert run_checkpoints.step_of_any(made[0]) == 0
    made[0].rename(tmp_path / "mine")
    assert run_checkpoints.step_of_any(tmp_path / "mine") == 0


def test_a_reader_takes_the_newest_good_one_and_moves_nothing(tmp_path: Path) -> None:
    made = make(tmp_path)
    spoil(made[3])
    warnings: list[str] = []
    assert run_checkpoints.find_checkpoint(str(tmp_path), warn=warnings.append) == made[2]
    assert warnings == [
        "step-00000003 is damaged (config.toml has 1 bytes instead of 0); using step-00000002"
    ]
    assert made[3].is_dir()
    with pytest.raises(BadDataError, match=r"step-00000003: config\.toml has 1 bytes"):
        run_checkpoints.find_checkpoint(str(made[3]))


@pytest.mark.parametrize("best", [None, True, "2", -1])
def test_the_best_is_only_found_where_one_was_evaluated(best: object, tmp_path: Path) -> None:
    make(tmp_path, best)
    with pytest.raises(MissingInputError, match=r"no evaluation of .*: leave --best out"):
        run_checkpoints.find_checkpoint(str(tmp_path), best=True)
    assert run_checkpoints.find_checkpoint(str(tmp_path)).name == "step-00000003"


def test_the_best_is_found_and_verified(tmp_path: Path) -> None:
    made = make(tmp_path / "a", 0, steps=[0, 1, 2])
    assert run_checkpoints.find_checkpoint(str(tmp_path / "a"), best=True) == made[0]
    spoil(made[0])
    with pytest.raises(BadDataError, match=r"step-00000000: config\.toml has 1 bytes"):
        run_checkpoints.find_checkpoint(str(tmp_path / "a"), best=True)


def test_what_is_no_run_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status.json").write_text("{}")
    for name in ("nowhere", "status.json"):
        with pytest.raises(MissingInputError, match=f"{name} does not exist or is no folder; give"):
            run_checkpoints.find_checkpoint(str(tmp_path / name))
    with pytest.raises(MissingInputError, match="holds no checkpoint; give a run"):
        run_checkpoints.find_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingInputError, match=r"folder of Hugging Face's, .* nanogpt import hf"):
        run_checkpoints.find_checkpoint(str(tmp_path))
    made = make(tmp_path / "out" / "only")
    monkeypatch.chdir(tmp_path)
    assert run_checkpoints.find_checkpoint(None).resolve() == made[3]


def test_a_checkpoint_that_is_pruned_while_it_is_read_gives_way_to_the_next(
    corpus: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    go(tiny(corpus, run))
    newest, *older = storage.list_steps(run / "checkpoints")
    tried = []

    def read(found: Path) -> Path:
        tried.append(found)
        if found == newest:
            shutil.rmtree(found)
        storage.require_good(found)
        return found

    assert run_checkpoints.read_checkpoint(str(run), read) == older[0]
    assert tried == [newest, older[0]]
    with pytest.raises(BadDataError):
        run_checkpoints.read_checkpoint(
            str(run), lambda found: run_folder.read_json(found / "model.safetensors")
        )
