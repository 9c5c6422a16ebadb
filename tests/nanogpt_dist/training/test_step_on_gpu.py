"""What a step asks of a GPU, counted on the fake one: one copy up, one figure down, no wait."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY, Run
from tests.fakecuda import record
from tests.fakecuda.record import Happening
from tests.nanogpt_dist.small import records

STEPS, EVALUATED = 8, {4, 8}
SEQUENCES, BLOCK_SIZE = 8, 32  # of TINY's global batch
EVAL_BATCHES, EVAL_WINDOWS = 2, 8
TRAIN = ["--max-iters", STEPS, "--eval-interval", 4, "--log-interval", 1, "--no-tensorboard"]
# a GPU's peak in float32 is measured, which takes its time on the fake one
BFLOAT16 = ["--no-compile", "--dtype", "bfloat16"]


@pytest.fixture
def trained(nanogpt_on_gpu: Run, corpus: Path, tmp_path: Path) -> Callable[..., list[Happening]]:
    """Train with flags of its own on the fake GPU; what went between host and device, of rank 0."""

    def train(*flags: object, ranks: int = 0) -> list[Happening]:
        path = tmp_path / "record"
        common = ["--dataset", corpus, *TINY, "--device", "cuda", "--out-dir", tmp_path / "run"]
        nanogpt_on_gpu("train", *common, *TRAIN, *flags, ranks=ranks, record=path)
        return record.read(path)

    return train


def of_steps(happenings: list[Happening]) -> dict[int, list[Happening]]:
    """What the main thread did in each step, by its number from 1, but for saves."""
    return {
        number + 1: [
            happening
            for happening in found
            if happening.thread == "MainThread"
            and "checkpoint/" not in happening.where
            and "saver.py" not in happening.where
        ]
        for number, found in record.steps(happenings).items()
    }


LAYOUTS = [
    pytest.param(BFLOAT16, id="single"),
    pytest.param(["--compile", "--dtype", "bfloat16"], id="compiled"),
    pytest.param(["--no-compile", "--dtype", "float16"], id="scaler"),
    pytest.param([*BFLOAT16, "--strategy", "ddp"], id="ddp"),
    pytest.param([*BFLOAT16, "--strategy", "fsdp"], id="fsdp"),
    pytest.param(["--no-compile", "--dtype", "float16", "--strategy", "fsdp"], id="fsdp-scaler"),
]


@pytest.mark.parametrize("flags", LAYOUTS)
def test_a_step_copies_once_up_and_once_down_and_waits_for_nothing(
    flags: list[str],
    trained: Callable[..., list[Happening]],
) -> None:
    happenings = trained(*flags)
    steps = of_steps(happenings)
    assert sorted(steps) == list(range(1, STEPS + 1))
    for number, found in steps.items():
        if "ddp" in flags and number <= 2:
            continue  # DDP orders its buckets by the first backward pass, and tells the ranks
        evaluated = number in EVALUATED
        up, down = ([each for each in found if each.kind == kind] for kind in ("up", "down"))
        assert all(copy.pinned and copy.contiguous for copy in up), number
        assert [copy.bytes for copy in up] == [
            2 * 8 * SEQUENCES * BLOCK_SIZE,  # inputs and targets, int64
            *[2 * 8 * EVAL_WINDOWS // EVAL_BATCHES * BLOCK_SIZE] * EVAL_BATCHES * evaluated,
        ], number
        assert all(copy.pinned for copy in down), number
        assert [copy.bytes for copy in down] == [
            3 * 4,  # norm, loss, and whether the step was skipped, float32
            *[4 * EVAL_WINDOWS] * evaluated,
        ], number
        assert not [happening for happening in found if happening.waits], number
    assert not [happening for happening in happenings if happening.kind == "race"]


@pytest.mark.parametrize("flags", [[], ["--strategy", "fsdp"]], ids=["single", "fsdp"])
def test_averaging_the_weights_copies_nothing_and_waits_for_nothing(
    flags: list[str],
    trained: Callable[..., list[Happening]],
) -> None:
    happenings = trained(*BFLOAT16, *flags, "--ema-decay", "0.9")
    for number, found in of_steps(happenings).items():
        assert not [happening for happening in found if happening.waits], number
        if number not in EVALUATED:
            copies = [each.bytes for each in found if each.kind in ("up", "down")]
            assert copies == [2 * 8 * SEQUENCES * BLOCK_SIZE, 3 * 4], number
    assert not [happening for happening in happenings if happening.kind == "race"]


def test_the_thread_of_each_rank_pins_for_its_own_gpu(
    trained: Callable[..., list[Happening]],
    tmp_path: Path,
) -> None:
    trained(*BFLOAT16, "--strategy", "ddp", ranks=2)
    for rank in range(2):
        pins = [each for each in record.read(tmp_path / "record", rank) if each.kind == "pin"]
        of_thread = [each for each in pins if each.thread.startswith("batches")]
        assert len(of_thread) >= STEPS
        assert {each.device for each in of_thread} == {rank}
        assert {each.bytes for each in of_thread} == {2 * 8 * SEQUENCES * BLOCK_SIZE // 2}


def test_a_run_on_a_gpu_records_what_one_on_a_cpu_does(
    trained: Callable[..., list[Happening]],
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
) -> None:
    trained(*BFLOAT16)
    flags = ["--dataset", corpus, *TINY, "--out-dir", tmp_path / "cpu", *TRAIN]
    nanogpt("train", *flags, "--dtype", "bfloat16", "--no-cpu-fast")
    found, expected = records(tmp_path / "run"), records(tmp_path / "cpu")
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() & {"tokens", "loss", "grad_norm", "learning_rate", "val_loss"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2), (name, ours["step"])
