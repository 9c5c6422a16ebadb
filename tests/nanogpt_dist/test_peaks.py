"""The peak of a GPU by its whole name, or measured."""

import re

import pytest
import torch

from nanogpt_dist import peaks

CUDA = torch.device("cuda", 0)

# as torch gives them
KNOWN = {
    "NVIDIA GB300": 2500,
    "NVIDIA GB200": 2500,
    "NVIDIA B300 SXM6 AC": 2250,
    "NVIDIA B200": 2250,
    "NVIDIA GH200 480GB": 989,
    "NVIDIA H200": 989,
    "NVIDIA H200 NVL": 835,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H800": 989,
    "NVIDIA H800 PCIe": 756,
    "NVIDIA H20": 148,
    "NVIDIA H20-3e": 148,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "A100-SXM4-40GB": 312,  # an older driver
    "NVIDIA A800-SXM4-80GB": 312,
    "NVIDIA A800 80GB PCIe": 312,
    "NVIDIA A40": 149.7,
    "NVIDIA A30": 165,
    "NVIDIA A10": 125,
    "NVIDIA A10G": 70,
    "NVIDIA L40S": 362,
    "NVIDIA L40": 181,
    "NVIDIA L20": 119.5,
    "NVIDIA L4": 121,
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": 503.8,
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": 438.9,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA GeForce RTX 5090": 209.5,
    "NVIDIA GeForce RTX 5080": 112.6,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 3090": 71,
    "Tesla V100-SXM2-16GB": 125,
    "Tesla V100-SXM3-32GB": 125,
    "Tesla V100-PCIE-32GB": 112,
    "Tesla V100S-PCIE-32GB": 130,
    "Tesla T4": 65,
    "NVIDIA T4G": 65,
    "AMD Instinct MI300X": 1307.4,
    "AMD Instinct MI300X OAM": 1307.4,
    "AMD Instinct MI325X": 1307.4,
    "AMD Instinct MI300A": 980.6,
}
UNKNOWN = [
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 5090 Laptop GPU",
    "NVIDIA RTX A1000 Laptop GPU",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    "NVIDIA T400 4GB",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    "NVIDIA A10-4Q",
    "NVIDIA L2",
    "NVIDIA A16",
    "Quadro RTX 6000",
    "AMD Instinct MI250X",
    "AMD Radeon Graphics",
]


@pytest.mark.parametrize("name", KNOWN)
def test_the_peak_of_a_gpu_is_that_of_its_data_sheet(name: str) -> None:
    assert peaks.known_peak(name) == KNOWN[name]


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_only_resembles_a_known_one_is_measured(name: str) -> None:
    assert peaks.known_peak(name) is None


def test_each_pattern_is_some_gpus_and_no_two_are_the_same_ones() -> None:
    models = [re.sub(r"^(NVIDIA |AMD Instinct )?(Tesla )?", "", name) for name in KNOWN]
    for pattern in peaks.PEAK_TFLOPS:
        assert any(re.fullmatch(pattern, model) for model in models), pattern
    for model in models:
        assert sum(bool(re.fullmatch(each, model)) for each in peaks.PEAK_TFLOPS) == 1, model


def test_tf32_is_half_of_bfloat16_and_exact_float32_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(peaks, "_measured_peak", lambda *about: 50.0)
    assert peaks.peak_tflops(CUDA, torch.bfloat16) == 989
    assert peaks.peak_tflops(CUDA, torch.float32) == 50
    torch.set_float32_matmul_precision("high")
    try:
        assert peaks.peak_tflops(CUDA, torch.float32) == 989 / 2
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_cpus_peak_is_measured() -> None:
    assert peaks.peak_tflops(torch.device("cpu"), torch.float32, 0.05) > 0.001


@pytest.mark.parametrize(
    ("room", "seconds_at_1024", "widest"),
    [(8192, 1e-5, 8192), (2048, 1e-5, 2048), (8192, 1.0, 1024), (8192, 1e-3, 2048)],
)
def test_a_measured_peak_is_of_matrices_that_keep_the_gpu_at_work_and_fit(
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    seconds_at_1024: float,
    widest: int,
) -> None:
    def seconds(n: int, *about: object) -> float:
        if n > room:
            raise torch.OutOfMemoryError
        return seconds_at_1024 * (n / 1024) ** 3

    monkeypatch.setattr(peaks, "_matmul_seconds", seconds)
    peaks._measured_peak.cache_clear()
    found = peaks.peak_tflops(CUDA, torch.float32)
    assert found == pytest.approx(2 * 1024**3 / seconds_at_1024 / 1e12)
    measured: list[int] = []
    monkeypatch.setattr(
        peaks, "_matmul_seconds", lambda n, *about: measured.append(n) or seconds(n)
    )
    peaks._measured_peak.cache_clear()
    peaks.peak_tflops(CUDA, torch.float32)
    peaks._measured_peak.cache_clear()
    assert measured[-1] == widest
