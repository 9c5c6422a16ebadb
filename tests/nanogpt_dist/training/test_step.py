"""One step: what a gradient that is not finite leaves alone, and what DDP is told."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel

from nanogpt_dist.distributed.strategy import plan_layout, whole
from nanogpt_dist.distributed.world import World, connect, is_dtensor, local_part
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.schedule import learning_rate
from nanogpt_dist.training.spikes import Limits
from nanogpt_dist.training.step import StepResult, TrainStep, dropout_seed, seed
from tests.conftest import in_ranks
from tests.nanogpt_dist.small import ONE, go, tiny


def a_train_step(folder: Path, world: World, **changes: object) -> TrainStep:
    config = tiny(folder, folder / "run", vocab_size=64, **changes)
    return TrainStep(
        config, world, plan_layout(config, world, training_bytes(config)), torch.float32
    )


@pytest.fixture
def alone() -> Iterator[World]:
    with connect("cpu", timeout_s=30, group=True) as world:
        yield world


def test_a_skipped_step_does_not_count_for_the_optimizer(tmp_path: Path) -> None:
    train_step = a_train_step(tmp_path, ONE)
    rows = torch.zeros(2, 32, dtype=torch.int64).numpy()
    assert train_step.step(0, [(rows, rows)]).finite
    weight = train_step.model.transformer.ln_f.weight
    handle = weight.register_hook(lambda gradient: gradient * math.nan)
    before = {key: value.clone() for key, value in train_step.optimizer.state[weight].items()}
    skipped = train_step.step(1, [(rows, rows)])
    assert not skipped.finite
    assert math.isnan(skipped.grad_norm)
    assert math.isfinite(skipped.loss)
    handle.remove()
    after = train_step.optimizer.state[weight]
    assert before.keys() == after.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert train_step.step(2, [(rows, rows)]).finite
    assert train_step.optimizer.state[weight]["step"] == 2


def rows_of(train_step: TrainStep) -> list[tuple[np.ndarray, np.ndarray]]:
    rows = torch.arange(8 * 33).view(8, 33).mul(7).remainder(64).numpy()
    return [(part[:, :-1], part[:, 1:]) for part in np.split(rows, 2)]


def test_the_loss_is_that_of_the_model_on_inputs_and_targets_before_the_step(
    tmp_path: Path,
) -> None:
    train_step = a_train_step(tmp_path, ONE)
    given = rows_of(train_step)
    with torch.no_grad():
        each = [train_step.model(*map(torch.tensor, part))[1].item() for part in given]
    first = train_step.step(0, given)
    assert first.loss == pytest.approx(sum(each) / 2, rel=1e-6)
    assert train_step.step(1, given).loss < first.loss


def test_a_pass_that_settles_buckets_leaves_the_step_as_it_is(tmp_path: Path, alone: World) -> None:
    norms = []
    for settles in (False, True):
        train_step = a_train_step(tmp_path, alone, strategy="ddp")
        if settles:
            train_step._settle_buckets()
        norms.append(train_step.step(0, rows_of(train_step)).grad_norm)
    assert norms[0] == norms[1]


def test_nothing_that_an_evaluation_gathers_is_kept(tmp_path: Path, alone: World) -> None:
    train_step = a_train_step(tmp_path, alone, strategy="fsdp")

    def evaluator(model: torch.nn.Module) -> float:
        with torch.no_grad():
            loss: float = model(*map(torch.tensor, rows_of(train_step)[0]))[1].item()
        return loss

    assert train_step.evaluate(evaluator) == pytest.approx(math.log(64), rel=0.1)  # type: ignore[arg-type]
    assert all(map(is_dtensor, train_step.model.parameters())), "shards alone"


def test_the_scale_of_half_precision_goes_on_where_a_run_does(corpus: Path, tmp_path: Path) -> None:
    saved = Path(go(tiny(corpus, tmp_path / "run", max_iters=4)).checkpoint)
    config = tiny(corpus, tmp_path / "run", vocab_size=320)
    layout = plan_layout(config, ONE, training_bytes(config))
    for dtype, enabled in ((torch.float16, True), (torch.float32, False)):
        train_step = TrainStep(config, ONE, layout, dtype)
        at_first = train_step.scaler.get_scale()
        facts = {"scaler": {**torch.amp.GradScaler("cpu").state_dict(), "scale": 1024.0}}
        train_step.load(saved, {})
        assert train_step.scaler.get_scale() == at_first
        train_step.load(saved, facts)
        assert train_step.scaler.get_scale() == (1024.0 if enabled else 1.0)


@pytest.mark.parametrize("on_spike", ["skip", "log"])
def test_what_is_beyond_a_limit_and_not_at_it_is_skipped_where_that_is_asked_for(
    on_spike: str, tmp_path: Path
) -> None:
    def made(limits: Limits) -> tuple[StepResult, bool]:
        """And whether the weights are what they were."""
        train_step = a_train_step(tmp_path, ONE, on_spike=on_spike)
        before = [p.detach().clone() for p in train_step.model.parameters()]
        result = train_step.step(0, rows_of(train_step), limits)
        return result, all(map(torch.equal, before, train_step.model.parameters()))

    plain, as_before = made(Limits())
    assert not as_before
    assert (plain.finite, plain.spiked, plain.skipped) == (True, False, False)
    assert plain.loss == pytest.approx(math.log(64), rel=0.1)
    loss, norm = plain.loss, plain.grad_norm
    for limits, beyond in (
        (Limits(loss, norm), False),
        (Limits(0.999 * loss, 2 * norm), True),
        (Limits(2 * loss, 0.999 * norm), True),
    ):
        result, as_before = made(limits)
        assert result.spiked == beyond
        assert result.skipped == as_before == (beyond and on_spike == "skip")
        assert (result.loss, result.grad_norm) == (loss, norm)


def test_what_a_benchmark_times_and_what_starts_slowly(tmp_path: Path) -> None:
    train_step, timed = a_train_step(tmp_path, ONE), []

    @contextlib.contextmanager
    def clock(name: str) -> Iterator[None]:
        timed.append(name)
        yield
        timed.append(f"/{name}")

    train_step.timed = clock
    result = train_step.step(0, rows_of(train_step))
    each = ["forward", "/forward", "backward", "/backward"]
    assert timed == [*each, *each, "optimizer", "/optimizer"]
    assert result.learning_rate == learning_rate(0, train_step.config)
    assert not result.late
    assert not train_step.starts_slowly
    train_step.config = train_step.config.model_copy(update={"compile": True})
    assert train_step.starts_slowly


def test_a_rank_whose_own_shards_are_finite_lowers_the_scale_as_the_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tmp_path, tmp_path / "run", vocab_size=64)
    layout = plan_layout(config, ONE, training_bytes(config))
    train_step = TrainStep(config, ONE, layout, torch.float16)
    rows, scale = rows_of(train_step), train_step.scaler.get_scale()
    monkeypatch.setattr(train_step, "_clip_gradient", lambda: torch.tensor(math.inf))
    assert train_step.step(0, rows).skipped
    assert train_step.scaler.get_scale() == scale / 2


@pytest.mark.parametrize(("dtype", "skipped"), [(torch.float32, 3), (torch.float16, 20)])
def test_steps_in_a_row_that_may_be_skipped(
    dtype: torch.dtype, skipped: int, tmp_path: Path
) -> None:
    config = tiny(tmp_path, tmp_path / "run", vocab_size=64)
    layout = plan_layout(config, ONE, training_bytes(config))
    train_step = TrainStep(config, ONE, layout, dtype)
    assert train_step.max_skipped == skipped
    assert train_step.scaler.is_enabled() == (dtype == torch.float16)


@pytest.mark.parametrize("strategy", ["single", "fsdp"])
@pytest.mark.parametrize("grad_clip", [0.0, 1e-4, 0.5, 1.0, 1e9])
@pytest.mark.parametrize("size", [1e-3, 1.0, math.inf])
def test_the_gradient_is_clipped_as_torch_does_it_to_the_last_bit(
    strategy: str,
    grad_clip: float,
    size: float,
    tmp_path: Path,
    alone: World,
) -> None:
    train_step = a_train_step(tmp_path, alone, strategy=strategy, grad_clip=grad_clip)
    found = []
    for clip in (train_step._clip_gradient, None):
        generator = torch.Generator().manual_seed(1)
        for p in train_step.model.parameters():
            p.grad = p.detach().clone()
            local_part(p.grad).copy_(torch.randn(local_part(p).shape, generator=generator) * size)
        if clip is None:
            parameters = train_step.model.parameters()
            norm = whole(torch.nn.utils.clip_grad_norm_(parameters, grad_clip or math.inf))
        else:
            norm = clip()
        gradients = [
            local_part(p.grad) for p in train_step.model.parameters() if p.grad is not None
        ]
        found.append([norm, *(gradient.clone() for gradient in gradients)])
    ours, torchs = found
    for our, their in zip(ours, torchs, strict=True):
        assert torch.equal(our.view(torch.int32), their.view(torch.int32))  # NaN, too


def test_the_gradient_is_that_of_the_whole_batch_for_any_micro_batch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 64, (8, 33), generator=generator).numpy()
    norms = []
    for count in (1, 2, 8):
        micro_batches = [(part[:, :-1], part[:, 1:]) for part in np.split(rows, count)]
        norms.append(a_train_step(tmp_path, ONE).step(0, micro_batches).grad_norm)
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=1e-5)


def test_dropout_is_seeded_as_in_every_version() -> None:
    """A run that another version resumes draws what it would have drawn."""
    seeds = [dropout_seed(1337, step, rank) for step, rank in ((0, 0), (1, 0), (0, 1))]
    assert seeds == [2818048136728136684, 5787965099291754658, 4894160098788117356]


def test_seeding_draws_what_torch_draws() -> None:
    for value in (0, 7, 2**63 - 1):
        seed(torch.device("cpu"), value)
        ours = torch.rand(4)
        torch.manual_seed(value)
        assert torch.equal(ours, torch.rand(4))


@pytest.mark.parametrize(
    ("strategy", "dtype", "optimizer"),
    [
        ("ddp", "float32", "adamw"),
        ("fsdp", "float32", "adamw"),
        ("fsdp", "float16", "adamw"),
        ("fsdp", "float32", "muon"),
        pytest.param("ddp", "float16", "adamw", marks=pytest.mark.thorough),
        pytest.param("ddp", "float16", "muon", marks=pytest.mark.thorough),
    ],
)
def test_a_gradient_that_is_not_finite_on_one_rank_changes_no_bit_on_any(
    strategy: str,
    dtype: str,
    optimizer: str,
    tmp_path: Path,
) -> None:
    in_ranks("skipping", 2, tmp_path, strategy, dtype, optimizer)


@pytest.mark.parametrize(("given", "expected"), [({}, 25), ({"bucket_cap_mb": 3}, 3)])
def test_ddp_reduces_buckets_as_large_as_is_asked_for(
    given: dict[str, object],
    expected: int,
    tmp_path: Path,
    alone: World,
) -> None:
    wrapped = a_train_step(tmp_path, alone, strategy="ddp", **given).wrapped
    assert isinstance(wrapped, DistributedDataParallel)
    assert wrapped.bucket_bytes_cap == expected * 2**20


def test_a_model_is_compiled_once_for_the_buckets_and_the_steps(
    tmp_path: Path,
    alone: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = CompileCounter()
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: plain(f, backend=compiled))
    monkeypatch.setattr(
        DistributedDataParallel, "_get_active_ddp_module", classmethod(lambda cls: None)
    )  # it splits the graph at its buckets
    train_step = a_train_step(tmp_path, alone, strategy="ddp", compile=True)
    train_step._settle_buckets()
    before = compiled.frame_count
    rows = torch.arange(4 * 33).view(4, 33).remainder(64).numpy()
    assert before
    train_step.step(0, [(rows[:, :-1].copy(), rows[:, 1:].copy())] * 2)
    assert compiled.frame_count == before
