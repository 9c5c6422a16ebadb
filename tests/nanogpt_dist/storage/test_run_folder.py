"""What a run folder says of itself, and which run or checkpoint a name means."""

import shutil
from pathlib import Path

import pytest

from nanogpt_dist import storage
from nanogpt_dist.errors import BadDataError, StorageError
from nanogpt_dist.ladder.sweep import state
from nanogpt_dist.storage import run_folder
from tests.conftest import Run
from tests.nanogpt_dist.small import go, tiny, weights_sha256


def test_a_run_that_says_running_without_a_process_was_killed(tmp_path: Path) -> None:
    assert run_folder.verdict_of(tmp_path) is None
    run_folder.write_status(tmp_path, run_folder.Status("running", 4, None))
    assert run_folder.verdict_of(tmp_path) == "killed"  # no lock at all
    with storage.RunLock(tmp_path):
        assert run_folder.verdict_of(tmp_path) == "running"
    assert run_folder.verdict_of(tmp_path) == "killed"
    for verdict in ("done", "stopped", "failed"):
        run_folder.write_status(tmp_path, run_folder.Status(verdict, 4, None))
        assert run_folder.verdict_of(tmp_path) == verdict
    (tmp_path / "status.json").write_text("{")
    assert run_folder.verdict_of(tmp_path) is None


@pytest.mark.parametrize("torn", ["{", "", "[]", "[" * 100_000])
def test_a_torn_file_beside_the_checkpoints_is_told_to_be_removed(
    torn: str, corpus: Path, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "a"
    shutil.copytree(trained, run)
    (run / "run.json").write_text(torn)
    with pytest.raises(BadDataError, match=r"run\.json (cannot be read|holds no).*; remove it"):
        go(tiny(corpus, run, max_iters=12))
    (run / "run.json").unlink()
    assert go(tiny(corpus, run, max_iters=12)).step == 12


def test_a_copied_run_is_its_own_run(nanogpt: Run, trained: Path, tmp_path: Path) -> None:
    before = all_hashes(trained)
    shutil.copytree(trained, tmp_path / "out" / "b")
    done = nanogpt("train", "out/b/", "--max-iters", 12, "--learning-rate", "5e-3")
    assert "out/b: going on from step-00000008" in done.stderr
    assert weights_sha256(tmp_path / "out" / "b", 12)
    assert all_hashes(trained) == before


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("runs/a/checkpoints/step-00000004", "runs/a"),
        ("a/checkpoints/step-00000004", "a"),
        ("checkpoints/step-00000004", None),
        ("step-00000004", None),
        ("here/../a/checkpoints/step-00000004", None),
        ("a/checkpoints/mine", None),
    ],
)
def test_the_run_of_a_checkpoint_is_above_it_as_it_was_named(
    name: str, run: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = Path(name).resolve()
    assert run_folder.canonical_path(Path(name)) == (Path(name) if run else resolved)
    assert run_folder.run_of(Path(name)) == (Path(run) if run else resolved.parents[1])


def test_which_folder_is_a_checkpoint_which_a_run_and_which_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-00000004"
    renamed, config = tmp_path / "mine", tmp_path / "config.toml"
    step.mkdir(parents=True)
    for folder in (run, step, renamed):
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").touch()
    config.touch()  # anybody's
    (tmp_path / "step-00000009").write_text("no folder")
    (tmp_path / "newest").symlink_to(step)
    (tmp_path / "step-00000005").symlink_to(renamed)
    assert run_folder.is_checkpoint(step)
    assert run_folder.is_checkpoint(tmp_path / "newest")
    assert run_folder.is_checkpoint(tmp_path / "step-00000005")
    assert not run_folder.is_checkpoint(tmp_path / "step-00000009")
    assert not run_folder.is_checkpoint(tmp_path / "step-00000008")
    for file in ("state.json", "manifest.json"):
        assert not run_folder.is_checkpoint(renamed)
        (renamed / file).touch()
    for name in (renamed, renamed / "config.toml"):
        assert run_folder.as_checkpoint(str(name)) == renamed
        assert run_folder.as_run(str(name)) is None
    assert run_folder.as_checkpoint(str(run)) is None
    for name in (run, run / "config.toml"):
        assert run_folder.as_run(str(name)) == run
    assert run_folder.as_run(str(config)) is None
    assert run_folder.as_run(str(tmp_path)) == tmp_path  # named as a folder it may begin
    assert run_folder.as_run(str(run / "checkpoints")) is None
    monkeypatch.chdir(run)
    assert run_folder.as_run(".") == run
    assert run_folder.as_run("checkpoints/..") == run


@pytest.mark.parametrize("mark", ["run.json", "status.json", "run.lock", "checkpoints"])
def test_a_run_has_begun_where_it_has_written(mark: str, tmp_path: Path) -> None:
    assert not run_folder.has_begun(tmp_path)
    (tmp_path / mark).touch()
    assert run_folder.has_begun(tmp_path)


def test_a_data_set_is_looked_for_from_where_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "project" / "out" / "a"
    (tmp_path / "project" / "data").mkdir(parents=True)
    run.mkdir(parents=True)
    (tmp_path / "data").write_text("no folder")
    (run.parent / "data").write_text("no folder")
    monkeypatch.chdir(run)
    assert run_folder.dataset_of(run, "data") == str(tmp_path / "project" / "data")
    assert run_folder.dataset_of(run, "nowhere") == "nowhere"
    monkeypatch.chdir(tmp_path / "project")
    assert run_folder.dataset_of(run, "data") == "data"


def test_json_files_are_strict_and_for_people(tmp_path: Path) -> None:
    infinite = float("inf")
    content = {"a": [float("nan"), (infinite, 1.5)], "b": {"c": -infinite}, "d": "nan", "e": 3}
    run_folder.write_json(tmp_path / "x.json", content)
    expected = {"a": [None, [None, 1.5]], "b": {"c": None}, "d": "nan", "e": 3}
    assert run_folder.read_json(tmp_path / "x.json") == expected
    assert run_folder.to_json({"a": infinite, "b": 1}) == '{"a": null, "b": 1}'
    run_folder.write_json(tmp_path / "x.json", {"a": 1})
    assert (tmp_path / "x.json").read_text() == '{\n "a": 1\n}\n'
    assert run_folder.read_json(tmp_path / "nowhere") == {}


def test_a_json_file_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(BadDataError, match=r"state\.json cannot be read: .*; restore a copy of it"):
        run_folder.read_json(tmp_path / "state.json")
    (tmp_path / "status.json").write_text("[]")
    with pytest.raises(BadDataError, match=r"status\.json holds no JSON object; remove it"):
        run_folder.read_json(tmp_path / "status.json")
    with pytest.raises(StorageError, match="is not a regular file; check the disk"):
        run_folder.read_json(tmp_path)


def test_the_status_has_the_exit_code_and_is_no_verdict_without_one(tmp_path: Path) -> None:
    run_folder.write_status(tmp_path, run_folder.Status("done", 4, "step-00000004"))
    assert run_folder.read_json(tmp_path / "status.json") == {
        "verdict": "done",
        "code": 0,
        "step": 4,
        "message": "",
        "checkpoint": "step-00000004",
    }
    run_folder.write_json(tmp_path / "status.json", {"verdict": 3})
    assert run_folder.verdict_of(tmp_path) is None


@pytest.mark.parametrize(
    "wrong",
    [{"step": "8"}, {"step": 8.5}, {"step": True}, {"checkpoint": 8}, {"message": ["a"]}],
)
def test_a_status_that_somebody_edited_is_told(wrong: dict[str, object], tmp_path: Path) -> None:
    assert run_folder.read_status(tmp_path) == {}
    good = {"verdict": "done", "step": 8, "checkpoint": None, "code": 0, "message": ""}
    run_folder.write_json(tmp_path / "status.json", good)
    assert run_folder.read_status(tmp_path) == good
    run_folder.write_json(tmp_path / "status.json", {**good, **wrong})
    with pytest.raises(BadDataError, match=r"status\.json is not as this .* it; remove it$"):
        run_folder.read_status(tmp_path)
    assert state(tmp_path, 8) == "not begun"


def all_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path): storage.sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
