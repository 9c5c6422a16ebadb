"""Finding a run's checkpoint, and branching from one."""

import json
import shutil
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
from nanogpt_dist.evaluation.report import save_results
from nanogpt_dist.load_config import load
from nanogpt_dist.storage import run_checkpoints, run_folder
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
