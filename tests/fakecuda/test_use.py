"""`nanogpt sample` and `nanogpt eval` on the fake GPU: what the CPU says of the same weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import fork_server
from tests.fakecuda.runs import TRAIN
from tests.fork_server import Done, Server

Use = Callable[..., Done]


@pytest.fixture
def both(
    server: Server,
    trained: Path,
    tmp_path: Path,
) -> Callable[..., tuple[Done, Done]]:
    """A command on the same run, on the fake GPU and on the CPU."""

    def run(command: str, *arguments: object, ranks: int = 0) -> tuple[Done, Done]:
        line = [command, trained, *arguments]
        return (
            server.run(*line, "--device", "cuda", folder=tmp_path, ranks=ranks),
            fork_server().run(*line, "--device", "cpu", folder=tmp_path),
        )

    return run


def texts(done: Done) -> list[str]:
    return [each["text"] for each in done.json()["samples"]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_samples_are_the_cpus(both: Use, dtype: str) -> None:
    """Generators draw the same here; but in few bits a near tie may fall to the other side."""
    asked = ["--prompt", "import", "--prompt", "x", "--num-samples", 2, "--max-new-tokens", 12]
    gpu, cpu = both("sample", *asked, "--top-k", 50, "--dtype", dtype, "--json")
    if dtype == "float32":
        assert texts(gpu) == texts(cpu)
    ours, theirs = "".join(texts(gpu)), "".join(texts(cpu))
    same = sum(a == b for a, b in zip(ours, theirs, strict=False))
    assert same > len(theirs) / 2
    assert len(set(texts(gpu))) > 1


def test_a_stream_is_the_same_text(both: Use) -> None:
    asked = ["--prompt", "for ", "--num-samples", 1, "--max-new-tokens", 12, "--dtype", "float32"]
    gpu, _ = both("sample", *asked, "--stream")
    whole, _ = both("sample", *asked)
    assert gpu.stdout.strip() == whole.stdout.strip()


def reads_of(done: Done) -> int:
    return sum(each.kind in ("down", "item") for each in done.record)


def test_one_read_for_each_token_that_is_drawn(both: Use) -> None:
    """How often the host reads for each further token: once, to see whether the text ends."""

    def reads(tokens: int) -> int:
        asked = ["--prompt", "x", "--num-samples", 1, "--max-new-tokens", tokens]
        return reads_of(both("sample", *asked, "--dtype", "float32")[0])

    assert reads(12) - reads(4) == 8


def figures(done: Done) -> dict[str, Any]:
    """All numbers that --json printed, by their way there."""

    def flat(value: Any, way: str = "") -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key in value for k, v in flat(value[key], f"{way}/{key}").items()}
        return {way: value} if isinstance(value, float) else {}

    return flat(done.json())


@pytest.mark.parametrize("ranks", [0, 2])
def test_the_val_loss_is_the_cpus(both: Use, ranks: int) -> None:
    gpu, cpu = both("eval", "--dtype", "float32", "--json", ranks=ranks)
    ours, theirs = figures(gpu), figures(cpu)
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours
    assert reads_of(gpu) <= len([each for each in gpu.record if each.kind == "up"])


def test_tasks_and_texts_are_the_cpus(both: Use, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("import os\n" * 40)
    lines = [
        {"ctx": "import", "endings": [" os", " zebra", " 1", "!"], "label": 0},
        {"ctx": "def f(", "endings": ["x):", "y", " the", "é"], "label": 0},
    ]
    (tmp_path / "hellaswag.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    asked = ["--tasks", "hellaswag=hellaswag.jsonl", "--text", "text.txt"]
    gpu, cpu = both("eval", *asked, "--dtype", "float32", "--json")
    ours, theirs = figures(gpu), figures(cpu)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert len(ours) >= 4, ours


def test_what_fsdp_saved_is_evaluated(
    server: Server,
    corpus: Path,
    tmp_path: Path,
) -> None:
    """The parts of both ranks."""
    line = [*TRAIN, "--dataset", corpus, "--dtype", "float32", "--out-dir", "run"]
    server.run(*line, "--device", "cuda", "--strategy", "fsdp", folder=tmp_path, ranks=2)
    found = []
    for place, device in ((server, "cuda"), (fork_server(), "cpu")):
        asked = ["eval", "run", "--device", device, "--dtype", "float32", "--json"]
        found.append(figures(place.run(*asked, folder=tmp_path)))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
