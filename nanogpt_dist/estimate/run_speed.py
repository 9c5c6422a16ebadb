"""The speed that a run has logged, as a bench of its own settings would have measured it."""

import statistics
from pathlib import Path

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.layout import choose_layout
from nanogpt_dist.estimate.accelerators import Accelerator
from nanogpt_dist.estimate.flops import model_flops_per_token
from nanogpt_dist.estimate.memory_plan import site_of
from nanogpt_dist.estimate.mfu import Bench, Mfu
from nanogpt_dist.inspect.formulas import count_by_arithmetic
from nanogpt_dist.inspect.run_record import RunRecord, is_number, is_run, read_run

LATE = 10  # logged steps
SAME = 0.01  # of the peak, by which GPUs are told apart


def measured_by(
    run: Path, device: Accelerator, dtype: str, peak_tflops: float
) -> tuple[Bench, Mfu] | None:
    """The median of the run's last logged steps; None: none, or of another dtype or device.

    peak_tflops: of `device` in that dtype. That of a CPU is what the run has measured.
    """
    record = read_run(run) if is_run(run) else None
    if record is None or record.config is None or record.config.vocab_size is None:
        return None
    config = record.config
    lines = [line for line in record.train if _is_timed(line)]
    if not lines or config.dtype != dtype:
        return None
    first, ranks = _begun(record, lines[-1]["step"])
    lines = [line for line in lines if line["step"] > first][-LATE:]
    mfu = statistics.median_low(line["mfu"] for line in lines)
    line = next(line for line in reversed(lines) if line["mfu"] == mfu)
    piece = config.ramp.at(line["step"] - 1)
    per_token = model_flops_per_token(config, piece.length)
    peak = line["tokens_per_second"] * per_token / mfu / ranks / 1e12
    on_gpu = line.get("memory_reserved_bytes") is not None
    if on_gpu != (device.kind == "cuda") or (on_gpu and abs(peak / peak_tflops - 1) > SAME):
        return None
    bench = Bench(
        mfu=mfu,
        peak_tflops=peak,
        ms_per_update=1e3 * piece.tokens / line["tokens_per_second"],
        first_step_seconds=0.0,  # nobody has logged it
        parameters=sum(count_by_arithmetic(config).values()),
        ranks=ranks,
        device=device.kind,
        device_name=device.torch_name,
        activation_checkpointing=_checkpointing(config, device, ranks),
    )
    return bench, bench.as_mfu(f"{run}'s last {len(lines)} logged steps")


def _is_timed(line: dict[str, object]) -> bool:
    """Whether a logged step has a speed; the first of each start has none."""
    mfu, speed = line.get("mfu"), line.get("tokens_per_second")
    return is_number(mfu) and is_number(speed) and 0 < mfu < 2 and speed > 0


def _begun(record: RunRecord, step: int) -> tuple[int, int]:
    """After which step the attempt that made `step` began, and with how many ranks."""
    begun = [each for each in record.events_of("start", "resume") if each["step"] < step]
    found = begun[-1] if begun else {}
    ranks = found.get("ranks", record.about.get("world_size"))
    return found.get("step", 0), ranks if type(ranks) is int and ranks > 0 else 1


def _checkpointing(config: TrainConfig, device: Accelerator, ranks: int) -> str:
    """Activation checkpointing of the run: as its settings say, or as training chose it."""
    if config.activation_checkpointing != "auto":
        return config.activation_checkpointing
    site = site_of(config, device.memory_bytes, ranks, ranks, device.kind)
    return choose_layout(site).activation_checkpointing
