"""What a run folder says of itself, and which run or checkpoint a name means."""

import os
import shutil
from pathlib import Path

import pytest

from cli.eval import _judged
from nanogpt_dist import storage
from nanogpt_dist.config import read_toml, to_toml
from nanogpt_dist.errors import CannotCreateError, ConfigError, UsageError
from nanogpt_dist.evaluation.report import keep
from nanogpt_dist.load_config import load
from nanogpt_dist.storage import run_checkpoints, run_folder
from tests.conftest import Run
from tests.nanogpt_dist.small import ONE, go, tiny, weights_sha256


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with checkpoints at 4 and 8."""
    run = tmp_path_factory.mktemp("trained") / "a"
    go(tiny(corpus, run))
    return run


def test_a_run_that_says_running_without_a_process_was_killed(tmp_path: Path) -> None:
    assert run_folder.verdict_of(tmp_path) is None
    run_folder.write_status(tmp_path, "running", 0, 4, "", None)
    assert run_folder.verdict_of(tmp_path) == "killed"  # no lock at all
    with storage.RunLock(tmp_path):
        assert run_folder.verdict_of(tmp_path) == "running"
    assert run_folder.verdict_of(tmp_path) == "killed"
    for verdict in ("done", "stopped", "failed"):
        run_folder.write_status(tmp_path, verdict, 0, 4, "", None)
        assert run_folder.verdict_of(tmp_path) == verdict
    (tmp_path / "status.json").write_text("{")
    assert run_folder.verdict_of(tmp_path) is None


def test_a_run_folder_is_its_own_out_dir_however_it_is_spelt(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(trained, tmp_path / "deep" / "b")
    run = (tmp_path / "deep" / "b").resolve()
    # as older versions wrote it
    old = (run / "config.toml").read_text() + f'out_dir = "{trained}"\n'
    for text in ((run / "config.toml").read_text(), old):
        (run / "config.toml").write_text(text)
        monkeypatch.chdir(tmp_path)
        os.path.lexists("link") or Path("link").symlink_to(run)
        for name in (
            "deep/b",
            "deep/b/",
            str(run),
            "./deep/../deep/b",
            "deep/b/config.toml",
            "link",
            "link/config.toml",
        ):
            out_dir = load(name).out_dir
            assert out_dir is not None
            assert Path(out_dir).resolve() == run, name
        for folder, name in {run: ".", run / "checkpoints": "..", run.parent: "b"}.items():
            monkeypatch.chdir(folder)
            out_dir = load(name).out_dir
            assert out_dir is not None
            assert Path(out_dir).resolve() == run, name
            assert Path(out_dir).name == "b"
    assert load(str(run), {"out_dir": "elsewhere"}).out_dir == "elsewhere"


def test_the_data_of_a_run_is_found_from_another_folder(
    trained: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project, run = tmp_path / "project", tmp_path / "project" / "out" / "a"
    shutil.copytree(trained, run)
    settings = load(str(run)).model_copy(update={"dataset": "data/mine", "out_dir": None})
    (run / "config.toml").write_text(to_toml(settings))
    monkeypatch.chdir(tmp_path)
    assert load("project/out/a").dataset == "data/mine"  # nowhere: told as it is written
    shutil.copytree(corpus, project / "data" / "mine")
    assert load("project/out/a").dataset == str(project / "data" / "mine")
    assert load("project/out/a", {"dataset": "other"}).dataset == "other"
    monkeypatch.chdir(project)
    assert load("out/a").dataset == "data/mine"


def test_a_config_used_as_a_template_names_no_run(trained: Path, tmp_path: Path) -> None:
    for file in (
        trained / "config.toml",
        run_folder.checkpoints_of(trained) / "step-00000008" / "config.toml",
    ):
        assert "out_dir" not in read_toml(file)
        shutil.copy(file, tmp_path / "mine.toml")
        assert load(str(tmp_path / "mine.toml")).out_dir == "out/mine"
    (tmp_path / "mine.toml").write_text('out_dir = "runs/x"\n')  # written by hand
    assert load(str(tmp_path / "mine.toml")).out_dir == "runs/x"


def test_a_folder_that_has_not_begun_and_names_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('out_dir = "out/a"\n')
    with pytest.raises(ConfigError, match=r"has out_dir = 'out/a'; type --out-dir with"):
        load(str(tmp_path))
    assert load(str(tmp_path), {"out_dir": "out/b"}).out_dir == "out/b"


def test_folders_that_are_no_runs_say_what_to_type(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"type nanogpt train {trained}"):
        load(str(trained / "checkpoints"))
    with pytest.raises(ConfigError, match=r"has no config\.toml, so it is no run"):
        load(str(tmp_path))
    shutil.copytree(trained, tmp_path / "b")
    (tmp_path / "b" / "config.toml").unlink()
    with pytest.raises(
        ConfigError, match=r"has lost its config.toml: cp .*step-00000008/config.toml"
    ):
        load(str(tmp_path / "b"))


def test_a_copied_run_is_its_own_run(nanogpt: Run, trained: Path, tmp_path: Path) -> None:
    before = all_hashes(trained)
    shutil.copytree(trained, tmp_path / "out" / "b")
    done = nanogpt("train", "out/b/", "--max-iters", 12, "--learning-rate", "5e-3")
    assert "out/b: going on from step-00000008" in done.stderr
    assert weights_sha256(tmp_path / "out" / "b", 12)
    assert all_hashes(trained) == before


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


def all_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path): storage.sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


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


def test_a_flag_that_a_run_does_not_take_is_refused(trained: Path) -> None:
    with pytest.raises(UsageError, match="a run is judged at its own context"):
        _judged(str(trained), None, 4, False, ONE)
    with pytest.raises(UsageError, match="--best chooses among a run's checkpoints"):
        _judged(None, str(trained), None, True, ONE)
    assert _judged(None, str(trained), 4, False, ONE).config.block_size == 4


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
        keep(run_checkpoints.find_checkpoint(str(run)), {})
        == run / "checkpoints" / "step-00000008.eval.json"
    )
