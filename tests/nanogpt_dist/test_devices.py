"""What the machine offers: its memory, and its number formats."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanogpt_dist import devices
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.strategy import Layout, lay_out
from nanogpt_dist.distributed.world import World, connect
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.generation.decoder import pick_weights


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


CUDA, MPS = torch.device("cuda", 0), torch.device("mps")


@pytest.fixture
def precision() -> Iterator[None]:
    """What a test sets for the process is set back."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(
    ("dtype", "has_tf32"),
    [("float32", False), ("tf32", True), ("bfloat16", True), ("float16", True), ("auto", True)],
)
def test_products_of_float32_are_exact_on_a_gpu_and_tf32_is_asked_for_by_name(
    dtype: str,
    has_tf32: bool,
) -> None:
    devices.set_up(CUDA, dtype, deterministic=False)
    # torch.compile asks by the older names, which raise where only the newer one was set
    assert torch.backends.cuda.matmul.allow_tf32 == has_tf32
    assert torch.get_float32_matmul_precision() == ("high" if has_tf32 else "highest")
    assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if has_tf32 else "ieee")


@pytest.mark.usefixtures("precision")
def test_a_cpus_products_are_left_as_they_are() -> None:
    devices.set_up(torch.device("cpu"), "bfloat16", deterministic=False)
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")


@pytest.mark.parametrize("device", [torch.device("cpu"), MPS, CUDA])
def test_tf32_is_refused_where_there_is_none(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    with pytest.raises(ConfigError, match="type --dtype float32"):
        devices.pick_dtype("tf32", device)
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    assert devices.pick_dtype("tf32", CUDA) == torch.float32
    assert devices.dtype_name(torch.float32, "tf32") == "tf32"
    assert devices.dtype_name(torch.bfloat16, "auto") == "bfloat16"


@pytest.mark.usefixtures("precision")
def test_deterministic_lets_the_compiler_choose_nothing_by_timing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = SimpleNamespace(deterministic=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # what it was comes back at the end
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setitem(sys.modules, "torch._inductor.config", config)
    devices.set_up(CUDA, "bfloat16", deterministic=False)
    assert config.deterministic is False
    devices.set_up(CUDA, "bfloat16", deterministic=True)
    assert config.deterministic is True
    # a version without that mode
    older = SimpleNamespace(**dict.fromkeys(devices.BY_TIMING, True))
    monkeypatch.setitem(sys.modules, "torch._inductor.config", older)
    devices.set_up(CUDA, "bfloat16", deterministic=True)
    assert not any(vars(older).values())
    # not imported yet
    monkeypatch.delitem(sys.modules, "torch._inductor.config")
    for name in devices.BY_TIMING.values():
        monkeypatch.setenv(name, "1")
    devices.set_up(CUDA, "bfloat16", deterministic=True)
    assert {os.environ[name] for name in devices.BY_TIMING.values()} == {"0"}
    assert "torch._inductor.config" not in sys.modules
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_compiler_has_what_deterministic_switches_off() -> None:
    config = importlib.import_module("torch._inductor.config")
    for name, variable in devices.BY_TIMING.items():
        assert hasattr(config, name), name
        assert f'"{variable}"' in Path(str(config.__file__)).read_text(encoding="utf-8"), variable


def test_mps_shares_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 24 * 2**30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2**30)
    assert devices.total_memory_bytes(MPS) == 24 * 2**30
    assert devices.free_memory_bytes(MPS) == 23 * 2**30
    assert devices.memory_bytes(MPS) == 2**30


def test_mps_is_for_one_process_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device("auto").type == "mps"
    assert devices.pick_device("mps").type == "mps"
    # gloo has no tensors of mps
    assert devices.pick_device("auto", 0, 2, group=True).type == "cpu"
    with pytest.raises(ConfigError, match="no collectives"):
        devices.pick_device("mps", 0, 1, group=True)
    with pytest.raises(ConfigError, match="no collectives"), connect("mps", 10, group=True):
        pass


def test_mps_would_draw_another_dropout_in_a_pass_that_is_computed_again() -> None:
    config = TrainConfig(
        **{"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "vocab_size": 8},
        dropout=0.1,
    )
    world = World(rank=0, local_rank=0, size=1, device=MPS, backend=None)
    layout = Layout("single", 1, 1, activation_checkpointing="full")
    with pytest.raises(ConfigError, match="another dropout"):
        lay_out(config, layout, world, torch.float32, init=True, n_vocab=None)
    # torch.utils.checkpoint keeps the state of a device's generator where there is this mark
    assert not hasattr(torch.mps, "_initialized")


def test_types_of_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major <= 13)
    assert devices.pick_dtype("auto", MPS) == torch.float32
    with pytest.raises(ConfigError, match="needs macOS 14"):
        devices.pick_dtype("bfloat16", MPS)
    with pytest.raises(ConfigError, match="needs macOS 14"):
        pick_weights("int8", MPS, greedy=False)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major <= 14)
    assert devices.pick_dtype("bfloat16", MPS) == torch.bfloat16
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        devices.pick_dtype("float16", MPS)


@pytest.mark.parametrize("variable", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_segments_of_gpu_memory_grow_unless_the_environment_says_how_they_are_made(
    variable: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append, raising=False)
    monkeypatch.setattr(devices.sys, "platform", "linux")
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "max_split_size_mb:128")
    devices.use_expandable_segments()
    assert told == ([] if variable else ["expandable_segments:True"])
