"""`nanogpt doctor` on the fake GPU: the device's line, its memory, and ranks with a GPU each."""

import json

import pytest

from tests.conftest import Run


def test_the_gpu_is_measured_beside_its_data_sheet(nanogpt_on_gpu: Run) -> None:
    report = json.loads(nanogpt_on_gpu("doctor", "--json", code=1, count=1).stdout)
    [device] = [each for each in report["checks"] if each["name"] == "device"]
    assert device["text"].startswith("cuda:0: ")
    assert " TFLOP/s in fp32, " in device["text"]
    assert " TFLOP/s in bf16, data sheet " in device["text"]
    assert device["todo"].startswith("nvidia-smi ")  # a CPU is no such card


@pytest.mark.thorough
def test_each_rank_measures_its_own(nanogpt_on_gpu: Run) -> None:
    by_torchrun = {"TORCHELASTIC_RUN_ID": "doctor"}
    done = nanogpt_on_gpu("doctor", "--json", ranks=2, code=1, count=2, variables=by_torchrun)
    report = json.loads(done.stdout)
    devices = [each for each in report["checks"] if each["name"] == "device"]
    assert len(devices) == 1
    assert ": " in devices[0]["text"]
    [ranks] = [each for each in report["checks"] if each["name"] == "ranks"]
    assert ranks["text"].startswith("2 ranks on 1 machine")
