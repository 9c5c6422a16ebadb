"""`nanogpt train --check-resume`: it proves what it says, and would notice."""

import json
from pathlib import Path

import pytest

from nanogpt_dist.errors import NanogptError, StoppedError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.check_resume import check_resume
from nanogpt_dist.training.step import TrainStep
from tests.conftest import TINY, Run
from tests.nanogpt_dist.small import ONE, tiny


@pytest.mark.thorough
def test_it_proves_and_leaves_nothing(nanogpt: Run, corpus: Path, tmp_path: Path) -> None:
    flags = [
        "--dataset",
        corpus,
        *TINY,
        "--dropout",
        "0.1",
        "--strategy",
        "fsdp",
        "--deterministic",
    ]
    done = nanogpt("train", *flags, "--check-resume", "--json", ranks=2)
    proof = json.loads(done.stdout)
    assert proof["ok"]
    assert proof["files"] == 4
    assert len(proof["losses"]) == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_it_notices_a_moment_that_is_lost(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = TrainStep.load

    def forgetful(self: TrainStep, *rest: object) -> None:
        load(self, *rest)  # type: ignore[arg-type]
        next(iter(self.optimizer.state.values()))["exp_avg"][0, 0] += 1e-9

    monkeypatch.setattr(TrainStep, "load", forgetful)
    with pytest.raises(
        NanogptError, match=r"differs from an undisturbed one in model.safetensors, optimizer.saf"
    ):
        check_resume(tiny(corpus, tmp_path / "run"), ONE, StopRequest())
    assert list(tmp_path.iterdir()) == []


def test_a_stop_is_no_proof(corpus: Path, tmp_path: Path) -> None:
    stop = StopRequest()
    stop.defer()
    stop._asked_at = 1.0
    with pytest.raises(StoppedError):
        check_resume(tiny(corpus, tmp_path / "run"), ONE, stop)
    assert list(tmp_path.iterdir()) == []
