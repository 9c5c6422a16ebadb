"""What a run folder says of itself, and which run or checkpoint a name means."""

import shutil
from pathlib import Path

import pytest

from nanogpt_dist import storage
from nanogpt_dist.errors import BadDataError
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


def all_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path): storage.sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
