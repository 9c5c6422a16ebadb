"""`nanogpt train --check-resume`: it proves what it says, and would notice."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nanogpt_dist.errors import NanogptError, OutOfMemoryError, StoppedError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.check_resume import check_resume
from nanogpt_dist.training.plan import make_plan
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


def test_it_proves_the_layout_that_the_run_has(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes: set[tuple[int, ...]] = set()
    forward_backward = TrainStep._forward_backward

    def noted(self: TrainStep, inputs: Tensor, targets: Tensor, count: int) -> Tensor:
        shapes.add((count, *inputs.shape))
        return forward_backward(self, inputs, targets, count)

    monkeypatch.setattr(TrainStep, "_forward_backward", noted)
    for steps, joined in ((6, True), (6, False)):
        config = tiny(
            corpus,
            tmp_path / "run",
            dtype="bfloat16",
            gradient_accumulation_steps=steps,
            join_micro_batches=joined,
        )
        plan = make_plan(config, ONE)
        shapes.clear()
        check_resume(config, ONE, StopRequest())
        count = min(2, plan.batches.per_update)
        assert shapes == {(count, plan.layout.batch_size, config.block_size)}
        assert count == (1 if joined else 2)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.75])
def test_it_proves_a_wsd_run_wherever_its_decay_starts(
    corpus: Path, tmp_path: Path, fraction: float
) -> None:
    config = tiny(corpus, tmp_path / "run", schedule="wsd", decay_fraction=fraction)
    assert check_resume(config, ONE, StopRequest()).updates == 4
    assert list(tmp_path.iterdir()) == []


def test_a_ramp_goes_up_between_the_halves(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    forward_backward = TrainStep._forward_backward

    def noted(self: TrainStep, inputs: Tensor, targets: Tensor, count: int) -> Tensor:
        shapes.append((count, *inputs.shape))
        return forward_backward(self, inputs, targets, count)

    monkeypatch.setattr(TrainStep, "_forward_backward", noted)
    ramps = {"batch_ramp": "0:8,500:32", "context_ramp": "0:16,900:32"}
    proof = check_resume(tiny(corpus, tmp_path / "run", **ramps), ONE, StopRequest())
    assert proof.updates == 4
    assert sorted(set(shapes)) == [(1, 4, 16), (2, 4, 32)]


def test_an_out_of_memory_ends_the_proof_of_what_auto_has_chosen(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fall-back: it would be proven again with what did not fit."""
    monkeypatch.setattr(TrainStep, "step", lambda *_: torch.empty(2**60))
    config = tiny(corpus, tmp_path / "run", auto_batch_size=True)
    with pytest.raises(OutOfMemoryError) as raised:
        check_resume(config, ONE, StopRequest())
    assert not raised.value.falls_back
    assert list(tmp_path.iterdir()) == []


def test_a_stop_is_no_proof(corpus: Path, tmp_path: Path) -> None:
    stop = StopRequest()
    stop.defer()
    stop._asked_at = 1.0
    with pytest.raises(StoppedError):
        check_resume(tiny(corpus, tmp_path / "run"), ONE, stop)
    assert list(tmp_path.iterdir()) == []
