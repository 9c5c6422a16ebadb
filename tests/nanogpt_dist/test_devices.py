"""What the machine offers: its memory, and the peak of its GPU."""

from pathlib import Path

import pytest

from nanogpt_dist import devices


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
