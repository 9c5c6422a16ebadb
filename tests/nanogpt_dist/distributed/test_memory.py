"""What is told before a run takes its hours."""

from pathlib import Path

import pytest

from nanogpt_dist import devices
from nanogpt_dist.config import resolve
from nanogpt_dist.distributed import memory as advice
from nanogpt_dist.errors import ConfigError
from tests.nanogpt_dist.small import go, tiny

GIB = 2**30


@pytest.mark.parametrize(
    ("settings", "epochs", "word"),
    [
        ({"warmup_iters": 2000, "max_iters": 6}, 1, "never reaches learning_rate 0.0006"),
        (
            {"warmup_iters": 6, "lr_decay_iters": 3, "max_iters": 8},
            1,
            "falls from learning_rate to min_lr at once",
        ),
        ({"max_iters": 6, "warmup_iters": 1}, 1_000_000, "1,000,000 epochs"),
    ],
)
def test_a_schedule_that_nobody_means_is_told(
    settings: dict[str, int],
    epochs: float,
    word: str,
) -> None:
    (line,) = advice.on_schedule(resolve(settings), epochs)
    assert word in line


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"warmup_iters": 2000, "max_iters": 6, "decay_lr": False},
        {"warmup_iters": 3, "max_iters": 6},
    ],
)
def test_of_a_usual_schedule_nothing_is_told(settings: dict[str, int]) -> None:
    assert advice.on_schedule(resolve(settings), 30) == []


def test_a_model_that_does_not_fit_is_refused_before_it_is_built() -> None:
    billion = 10**9  # 14.9 GiB of weights, gradients and moments
    assert advice.on_memory(billion, 1, 1, 32 * GIB, 20 * GIB, on_cpu=True) is None
    assert "activations come on top" in str(
        advice.on_memory(billion, 1, 1, 32 * GIB, 16 * GIB, on_cpu=True)
    )
    with pytest.raises(ConfigError, match=r"take 14.9 GiB, this machine has 8.0 GiB"):
        advice.on_memory(billion, 1, 1, 8 * GIB, None, on_cpu=True)
    with pytest.raises(ConfigError, match=r"take 29.8 GiB, this machine has 32.0 GiB, 20.0 free"):
        advice.on_memory(billion, 2, 1, 32 * GIB, 20 * GIB, on_cpu=True)  # two ranks of ddp
    assert advice.on_memory(billion, 2, 2, 32 * GIB, 20 * GIB, on_cpu=True) is None  # of fsdp
    assert "the GPU has 24.0 GiB, 10.0 free" in str(
        advice.on_memory(billion, 1, 1, 24 * GIB, 10 * GIB, on_cpu=False)
    )


def test_the_least_limit_of_a_cgroup_counts(tmp_path: Path) -> None:
    own, job = tmp_path / "cgroup", tmp_path / "fs" / "job"
    (job / "step").mkdir(parents=True)
    own.write_text("0::/job/step\n")
    assert devices.memory_limit_bytes(tmp_path / "fs", own) is None
    (job / "memory.max").write_text("1000\n")
    (job / "step" / "memory.max").write_text("max\n")
    assert devices.memory_limit_bytes(tmp_path / "fs", own) == 1000
    own.write_text("5:cpuset:/\n4:memory,hugetlb:/job\n")  # cgroup v1
    (tmp_path / "fs" / "memory" / "job").mkdir(parents=True)
    (tmp_path / "fs" / "memory" / "job" / "memory.limit_in_bytes").write_text("2000\n")
    assert devices.memory_limit_bytes(tmp_path / "fs", own) == 2000


def test_a_best_loss_over_other_windows_is_compared_no_more(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    go(tiny(corpus, tmp_path, max_iters=4, eval_interval=2))
    result = go(
        tiny(corpus, tmp_path, max_iters=8, eval_interval=4, eval_iters=3, learning_rate=2e-3)
    )
    told = capsys.readouterr().err
    assert "eval_interval 2 (now 4), eval_iters 2 (now 3)" in told
    assert "was over 8 windows of the val split, from here on it is over 12" in told
    assert result.best_val_loss == result.val_loss
    assert (tmp_path / "checkpoints" / "step-00000004").is_dir()  # the best until then is not lost


def test_a_val_loss_that_is_none_ends_the_run_and_is_not_saved(
    corpus: Path,
    tmp_path: Path,
) -> None:
    go(tiny(corpus, tmp_path, max_iters=4))
    with pytest.raises(
        ConfigError, match="nothing is saved; the last good checkpoint is step-00000004"
    ):
        go(tiny(corpus, tmp_path, max_iters=6, learning_rate=1e30, min_lr=1e30))
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000004"]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA T400 4GB", None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_data_sheet(name: str, peak: float | None) -> None:
    assert next((known for key, known in devices.PEAK_TFLOPS.items() if key in name), None) == peak
