"""Agreement of real ranks under a real torchrun: see ranks/agreement.py for what each of them
does.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from nanogpt_dist.distributed.world import World, connect
from nanogpt_dist.errors import BadDataError
from tests.conftest import CLONE, TINY, Run, command


def test_ranks_agree(tmp_path: Path) -> None:
    line = [
        str(CLONE / "tests/ranks/agreement.py") if part.endswith("/nanogpt") else part
        for part in command(ranks=2)
    ]
    done = subprocess.run(
        [*line, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=CLONE
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first == {
        "sum": [3.0, 30.0],
        "any": [False, True],
        "text": ["", "grüße"],
        "one fails": [65, "rank 1: bad shard", True],
        "both fail": [78, "of rank 0", True],
        "after": 2.0,
    }


def test_after_an_error_the_process_may_meet_the_others_again() -> None:
    """As in a notebook, whose process goes on."""
    for _ in range(2):
        with (
            pytest.raises(BadDataError, match="here"),
            connect("cpu", timeout_s=30, group=True),
        ):
            raise BadDataError("here")
        assert not torch.distributed.is_initialized()


def test_a_world_of_one_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with connect("cpu", timeout_s=5) as world:
        assert world == World(0, 0, 1, torch.device("cpu"), None)
        assert world.any(True)
        assert world.broadcast_text("x") == "x"
        assert world.sum(torch.ones(2)).tolist() == [1, 1]
        with pytest.raises(BadDataError, match="here"), world.raise_on_all_ranks():
            raise BadDataError("here")


@pytest.mark.thorough
def test_evaluation_and_bad_data_on_two_ranks(nanogpt: Run, corpus: Path, tmp_path: Path) -> None:
    flags = ["--dataset", corpus, *TINY, "--max-iters", "3", "--out-dir", "run", "--no-tensorboard"]
    one = json.loads(nanogpt("train", *flags, "--json", ranks=2).stdout)
    assert one["step"] == 3
    alone, both = (
        json.loads(nanogpt("eval", "run", "--json", ranks=ranks).stdout) for ranks in (0, 2)
    )
    assert alone == both
    shard = next(corpus.glob("*_train_000000.bin"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in corpus.iterdir():
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[:-10] if path == shard else data)
    failed = nanogpt(
        "launch",
        "--nproc-per-node",
        2,
        "train",
        "--dataset",
        broken,
        *TINY,
        "--out-dir",
        "x",
        code=65,
    )
    assert [
        line for line in failed.stderr.splitlines() if "error" in line
    ] == failed.stderr.splitlines()
    assert len(failed.stderr.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_ranks_of_different_settings_are_refused(corpus: Path, tmp_path: Path) -> None:
    line = command(
        "train",
        "--dataset",
        corpus,
        *TINY,
        "--max-iters",
        "3",
        "--out-dir",
        tmp_path / "run",
        ranks=2,
    )
    script = tmp_path / "odd"
    script.write_text(
        "import os, runpy, sys\n"
        "sys.argv += ['--dropout', '0.' + os.environ['RANK']]\n"
        f"sys.argv[0] = {str(CLONE / 'nanogpt')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    line = [str(script) if part == str(CLONE / "nanogpt") else part for part in line]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=CLONE)
    errors = [text for text in done.stderr.splitlines() if text.startswith("nanogpt")]
    assert len(errors) == 1
    assert "rank 1 has another dropout than rank 0: 0.1 and 0.0" in errors[0]
    assert not (tmp_path / "run").exists()
