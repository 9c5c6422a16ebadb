"""Where an MFU is from."""

import json
from pathlib import Path

import pytest

from nanogpt_dist.errors import BadDataError, MissingInputError
from nanogpt_dist.estimate.accelerators import ROWS, accelerator
from nanogpt_dist.estimate.mfu import PUBLISHED, given_mfu, published_mfu, read_bench

BENCH = {
    "tokens_per_second": 1000.0,
    "ms_per_update": 500.0,
    "mfu": 0.25,
    "peak_tflops": 2.0,
    "batch_tokens": 500,
    "first_step_seconds": 3.0,
    "parameters": 10_000_000,
    "ranks": 2,
    "device": "cpu",
    "layout": "ddp",
}


def test_every_published_figure_is_of_a_known_device_with_a_source() -> None:
    for row in PUBLISHED:
        assert row.device in {*ROWS, "cpu"}
        assert 0 < row.mfu < 1
        assert row.source


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize("parameters", [1e7, 1.3e9, 1e12])
def test_every_device_has_a_figure_and_says_whose_it_is(name: str, parameters: float) -> None:
    found = published_mfu(accelerator(name), parameters)
    assert 0 < found.share < 1
    assert found.kind == "published"
    assert " on " in found.source


def test_the_nearest_size_is_taken() -> None:
    assert published_mfu(accelerator("a100-80gb"), 1.2e9).share == 0.6015
    assert published_mfu(accelerator("h100-80gb"), 30e9).activation_checkpointing == "full"
    assert published_mfu(accelerator("h100-80gb"), 12e9).activation_checkpointing == "none"
    assert published_mfu(accelerator("h100-80gb"), 5e11).source.startswith("Llama 3: 405B")
    assert published_mfu(accelerator("a100-40gb"), 1.2e8).source.startswith("nanoGPT")


def test_a_bench_says_its_mfu_of_its_own_peak(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(BENCH))
    bench = read_bench(path)
    assert (bench.mfu, bench.ranks, bench.device_name) == (0.25, 2, None)
    mfu = bench.as_mfu(path)
    assert (mfu.share, mfu.kind, mfu.peak_tflops, mfu.ranks) == (0.25, "measured", 2.0, 2)
    assert "10M on 2 × cpu" in mfu.source
    assert given_mfu(0.4).kind == "given"
    path.write_text(json.dumps({**BENCH, "activation_checkpointing": "full"}))
    assert read_bench(path).as_mfu(path).activation_checkpointing == "full"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "nonsense",
        json.dumps({**BENCH, "mfu": "x"}),
        json.dumps({**BENCH, "mfu": 0}),
        json.dumps({**BENCH, "activation_checkpointing": "some"}),
        json.dumps({**BENCH, "parameters": "many"}),
        json.dumps({**BENCH, "parameters": 1 << 70}),
        json.dumps({**BENCH, "ranks": 0}),
        json.dumps({**BENCH, "device": 3}),
        "[" * 100_000,
    ],
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(BadDataError, match="bench train --json"):
        read_bench(path)
    with pytest.raises(MissingInputError, match="bench train --json"):
        read_bench(tmp_path / "none.json")


def test_what_it_says_to_type_overwrites_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, unused in (("README.md", "bench.json"), ("bench.json", "bench-2.json")):
        Path(name).write_text("mine")
        with pytest.raises(BadDataError, match=rf"--json > {unused}$"):
            read_bench(Path(name))
