"""The peak memory of a step beside what is expected of it, for each preset that fits."""

import json

import pytest
import torch

from nanogpt_dist.config import resolve
from nanogpt_dist.distributed.layout import Memory, Site, choose_layout, peak
from nanogpt_dist.distributed.memory import ALLOWANCE_BYTES
from nanogpt_dist.presets import PRESETS
from nanogpt_dist.training.optim import training_bytes
from tests.conftest import Run
from tests.gpu.conftest import Measured
from tests.gpu.machine import SIMULATED

NAMES = ["gpt2-124m", "gpt2-350m", "gpt2-774m", "gpt2-1558m", "shakespeare-char"]
SMALL = {"n_layer": 2, "n_embd": 64, "n_head": 2, "block_size": 64, "vocab_size": 320}
FAR = 0.10  # of what is expected


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_is_what_was_expected(name: str, nanogpt: Run, measured: Measured) -> None:
    small = {**SMALL, "batch_size": 2, "gradient_accumulation_steps": 2} if SIMULATED else {}
    config = resolve({**PRESETS[name], **small})
    total = torch.cuda.get_device_properties(0).total_memory
    memory = Memory(total, None, 1, "cuda")
    layout = choose_layout(Site(config, memory, 1, torch.bfloat16, training_bytes(config)))
    if peak(layout) > total:
        pytest.skip(f"{name} takes {peak(layout) / 1e9:.0f} GB, the GPU has {total / 1e9:.0f}")
    flags = [part for key, value in small.items() for part in (f"--{key.replace('_', '-')}", value)]
    line = ["bench", "train", name, *flags, "--device", "cuda", "--dtype", "bfloat16", "--json"]
    said = json.loads(nanogpt(*line, "--updates", 3).stdout)
    # what is allowed for CUDA itself is not torch's to count
    assert layout.usage is not None
    expected = peak(layout) - min(layout.usage.allowance, ALLOWANCE_BYTES)
    measured.note(
        expected_bytes=expected,
        memory_bytes=said["memory_bytes"],
        micro_batch=said["batch_size"],
        tokens_per_second=said["tokens_per_second"],
        mfu=said["mfu"],
    )
    assert said["batch_size"] == layout.batch_size
    difference = abs(said["memory_bytes"] / expected - 1)
    measured.note(difference=difference)
    measured.on_hardware(difference <= FAR, "the peak is within 10 % of the expected one")
