"""The catalogue of devices: names that people type, and what each one has."""

import pytest
import torch

from nanogpt_dist.devices import total_memory_bytes
from nanogpt_dist.errors import MAX_LINE, UsageError
from nanogpt_dist.estimate.accelerators import ROWS, SHORT, accelerator
from nanogpt_dist.peaks import known_peak


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_device_has_the_peak_of_the_one_table_and_less_memory_than_its_name_says(
    name: str,
) -> None:
    device = accelerator(name)
    assert device.peak_tflops == known_peak(device.torch_name)
    assert device.memory_bytes < 200 * 2**30
    for word in name.split("-"):
        if word.endswith("gb"):
            said = int(word.removesuffix("gb")) * 2**30
            assert 0.97 * said < device.memory_bytes < said
    assert device.link_gb_per_second > 0
    assert device.power_watts


@pytest.mark.parametrize("name", sorted(SHORT))
def test_a_short_name_leads_to_a_device_of_the_catalogue(name: str) -> None:
    assert accelerator(name).name in ROWS


def test_names_are_read_as_people_write_them() -> None:
    assert accelerator("NVIDIA_H100 80GB") == accelerator("h100-80gb") == accelerator(" H100 ")


def test_this_machines_cpu_has_its_own_memory() -> None:
    cpu = accelerator("cpu")
    assert cpu.memory_bytes == total_memory_bytes(torch.device("cpu"))
    assert cpu.kind == "cpu"
    assert cpu.peak_tflops > 0


@pytest.mark.parametrize(("typed", "near"), [("h100-90gb", "h100-80gb"), ("mi300", "mi300x")])
def test_an_unknown_name_is_told_the_nearest_one(typed: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {near}") as error:
        accelerator(typed)
    assert len(str(error.value)) <= MAX_LINE


def test_an_unknown_name_without_a_near_one_is_told_where_the_list_is() -> None:
    with pytest.raises(UsageError, match=r"nanogpt plan --devices"):
        accelerator("zzzzzzzz" * 9)


def test_memory_and_peak_stand_in_for_a_devices_own_and_for_an_unknown_one() -> None:
    sliced = accelerator("h100-80gb", memory_bytes=40 * 10**9)
    assert (sliced.memory_bytes, sliced.peak_tflops) == (40 * 10**9, 989.0)
    mine = accelerator("my-gpu", 10**10, 100.0)
    assert (mine.name, mine.memory_bytes, mine.peak_tflops) == ("my-gpu", 10**10, 100.0)
    with pytest.raises(UsageError, match="--peak"):
        accelerator("my-gpu", memory_bytes=10**10)
