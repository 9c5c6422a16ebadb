"""Seconds of a training, from what its steps take."""

from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.estimate.accelerators import accelerator
from nanogpt_dist.estimate.communication import Links
from nanogpt_dist.estimate.flops import model_flops_per_token, training_flops
from nanogpt_dist.estimate.mfu import Bench, Mfu, given_mfu, published_mfu
from nanogpt_dist.estimate.time import Speed, duration, evaluated_steps
from nanogpt_dist.training.disk_room import saved_steps
from nanogpt_dist.training.saver import due

H100 = accelerator("h100-80gb")
CONFIG = TrainConfig(vocab_size=50304, max_iters=1000, eval_interval=100, warmup_iters=10)
LINKS = Links(450e9, 50e9, 8)
DDP = Layout("ddp", 8, 1, batch_size=12)


def speed(mfu: Mfu, ranks: int = 8, bench: Bench | None = None) -> Speed:
    return Speed(H100, ranks, LINKS, 1e9, mfu, bench)


def test_a_given_mfu_is_that_of_the_whole_step() -> None:
    found = duration(CONFIG, DDP, speed(given_mfu(0.4)))
    flops = 491_520 * model_flops_per_token(CONFIG)
    assert found.step.seconds == pytest.approx(flops / (0.4 * 8 * 989e12))
    assert found.steps_seconds == pytest.approx(1000 * found.step.seconds)
    assert found.step.tokens_per_second == pytest.approx(491_520 / found.step.seconds)
    assert found.step.waits_seconds > 0


def test_an_mfu_of_one_rank_leaves_communication_out_and_one_of_several_that_of_more_nodes() -> (
    None
):
    one, several = Mfu(0.4, "measured", "", 1), Mfu(0.4, "measured", "", 8)
    assert duration(CONFIG, DDP, speed(one)).step.exposed_seconds > 0
    assert duration(CONFIG, DDP, speed(several)).step.exposed_seconds == 0
    nodes = Layout("ddp", 32, 1, batch_size=12)
    assert duration(CONFIG, nodes, speed(several, ranks=32)).step.exposed_seconds > 0
    # of 64 GPUs it has the network in it, as well
    many = published_mfu(H100, 65e9)
    assert many.ranks == 64
    assert duration(CONFIG, nodes, speed(many, ranks=32)).step.exposed_seconds == 0


def test_a_bench_of_the_same_training_gives_back_its_own_step() -> None:
    flops, ms = 491_520 * model_flops_per_token(CONFIG), 800.0
    mfu = flops / (ms / 1e3) / (8 * 700e12)  # of another peak, which was measured
    bench = Bench(mfu, 700.0, ms, 30.0, 124_373_760, 8, "cuda", 2e6)
    found = duration(CONFIG, DDP, speed(Mfu(mfu, "measured", "", 8, 700.0), bench=bench))
    assert found.step.seconds == pytest.approx(0.8)
    assert found.start_seconds == pytest.approx(30 - 0.8)
    # 200 batches of 12 windows over 8 ranks, 25 rounds each
    assert found.evaluation_seconds == pytest.approx(25 * 8 * 12 * 1024 / 2e6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eval_interval": 300},
        {"save_interval": 70},
        {"save_interval": 70, "always_save_checkpoint": False},
        {"save_interval": 100, "always_save_checkpoint": False},
        {"always_save_checkpoint": False, "eval_interval": 300},
        *(
            {"save_interval": 70, "always_save_checkpoint": False, "schedule": "wsd"}
            | {"decay_fraction": fraction}
            for fraction in (0.3, 0.35)
        ),
        {"schedule": "wsd", "decay_fraction": 0.35},
        {"schedule": "wsd", "decay_fraction": 0.2},
        {"max_iters": 5, "warmup_iters": 1},
    ],
)
def test_evaluations_and_saves_are_as_many_as_training_makes(settings: dict[str, object]) -> None:
    config = CONFIG.model_copy(update=settings)
    evaluations, saves = 0, 0
    for step in range(1, config.max_iters + 1):
        last = step == config.max_iters
        evaluated = last or step % config.eval_interval == 0
        evaluations += evaluated
        saves += last or due(config, step, evaluated, improved=True)
    assert evaluated_steps(config) == evaluations
    assert saved_steps(config) == saves


def test_the_parts_add_up_and_saves_beside_the_training_are_not_waited_for() -> None:
    found = duration(CONFIG, DDP, speed(given_mfu(0.4)))
    parts = found.steps_seconds + found.evaluations * found.evaluation_seconds
    assert found.total_seconds == pytest.approx(parts + found.waiting_seconds)
    assert found.checkpoint_bytes == 12 * 124_373_760
    assert found.waiting_seconds == pytest.approx(found.save_seconds)
    waits = CONFIG.model_copy(update={"async_save": False})
    slow = duration(waits, DDP, speed(given_mfu(0.4)))
    assert slow.waiting_seconds == pytest.approx(10 * slow.save_seconds)


def test_a_small_val_split_makes_evaluations_short() -> None:
    fast = speed(given_mfu(0.4))
    whole, small = duration(CONFIG, DDP, fast), duration(CONFIG, DDP, fast, val_tokens=20_000)
    assert small.evaluation_seconds < whole.evaluation_seconds / 10


def test_full_checkpointing_takes_the_time_of_what_it_computes_again() -> None:
    full, selective = (
        replace(DDP, activation_checkpointing=mode) for mode in ("full", "selective")
    )
    model, hardware = training_flops(CONFIG, "full")
    for without in (given_mfu(0.4), Mfu(0.4, "published", "", 8), Mfu(0.4, "measured", "", 1)):
        plain = duration(CONFIG, DDP, speed(without)).step.computing_seconds
        assert duration(CONFIG, selective, speed(without)).step.computing_seconds == plain
        found = duration(CONFIG, full, speed(without)).step
        assert found.computing_seconds / plain == pytest.approx(hardware / model, rel=1e-3)
        # an MFU that was reached with it has it in it
        with_it = speed(replace(without, activation_checkpointing="full"))
        assert duration(CONFIG, full, with_it).step.computing_seconds == pytest.approx(plain)
        assert duration(CONFIG, DDP, with_it).step.computing_seconds < plain
    one = speed(Mfu(0.4, "measured", "", 1))  # whose backward pass, now longer, hides more
    waits = [duration(CONFIG, layout, one).step.exposed_seconds for layout in (full, DDP)]
    assert waits[0] <= waits[1]


def test_ramps_take_each_piece_by_itself() -> None:
    config = CONFIG.model_copy(update={"batch_ramp": "0:240,500:480"})
    found = duration(config, DDP, speed(given_mfu(0.4)))
    plain = duration(CONFIG, DDP, speed(given_mfu(0.4)))
    assert found.steps_seconds == pytest.approx(0.75 * plain.steps_seconds)
    assert found.step.tokens == 491_520


def test_a_bench_of_a_machine_is_that_of_all_its_ranks() -> None:
    """Two ranks do not double a CPU that was measured with one; two machines do."""
    cpu = replace(accelerator("cpu", peak_tflops=1.0), peak_tflops=9.0)
    bench = Bench(0.5, 1.0, 800.0, 30.0, 124_373_760, 1, "cpu", 1e6)
    mfu = bench.as_mfu(Path("bench.json"))
    for ranks, each, machines in ((1, 1, 1), (2, 2, 1), (4, 2, 2)):
        found = Speed(cpu, ranks, replace(LINKS, ranks_per_node=each), 1e9, mfu, bench)
        assert found.peak_flops == machines * 1e12
    of_two = replace(mfu, ranks=2)  # whose peaks were those of their threads
    found = Speed(cpu, 1, replace(LINKS, ranks_per_node=1), 1e9, of_two)
    assert found.peak_flops == 2e12
    one, two = (
        duration(
            CONFIG, DDP, Speed(cpu, n, replace(LINKS, ranks_per_node=n), 1e9, mfu, bench), 1025
        )
        for n in (1, 2)
    )
    assert two.evaluation_seconds == pytest.approx(2 * one.evaluation_seconds)  # one of them waits


def test_ranks_on_a_cpu_share_its_peak() -> None:
    cpu = replace(accelerator("cpu", peak_tflops=1.0), peak_tflops=1.0)
    peaks = [Speed(cpu, n, replace(LINKS, ranks_per_node=n), 1e9, given_mfu(0.5)) for n in (1, 4)]
    assert peaks[0].peak_flops == peaks[1].peak_flops == 1e12
