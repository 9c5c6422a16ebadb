"""What torch.compile is given in training: nothing of it is compiled twice."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.compilation import CudaGraphs, keeps_gradients, plan_compilation
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.world import connect
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.loop import train
from tests.nanogpt_dist.small import ALL_OPTIONS, records, tiny

CPU = torch.device("cpu")
KINDS_OF_BLOCKS = 2  # that a model of two layers and every option has


@pytest.fixture(autouse=True)
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """torch.compile by the backend that runs graphs as they were found; what was asked of it."""
    asked: list[dict[str, object]] = []
    compiled = torch.compile

    def compile(function: object, **options: object) -> object:
        asked.append(options)
        return compiled(function, dynamic=options["dynamic"], backend="eager")

    monkeypatch.setattr(torch, "compile", functools.wraps(compiled)(compile))
    torch._dynamo.reset()
    counters.clear()
    yield asked
    torch._dynamo.config.optimize_ddp = True
    torch._dynamo.reset()


def run(corpus: Path, folder: Path, strategy: str, **changes: object) -> list[float]:
    """The losses of a short run with two evaluations."""
    config = tiny(corpus, folder, strategy=strategy, dtype="float32", log_interval=1, **changes)
    with connect("cpu", 60, group=strategy != "single") as world:
        train(config, world, StopRequest())
    return [record["loss"] for record in records(folder) if "loss" in record]


@pytest.mark.parametrize(
    "changes",
    [{}, {"chunked_loss": True}, {"intra_document": True}, ALL_OPTIONS],
    ids=["plain", "chunked_loss", "intra_document", "all options"],
)
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_nothing_is_compiled_again_after_an_evaluation(
    strategy: str,
    changes: dict[str, object],
    corpus: Path,
    tmp_path: Path,
    eager_backend: list[dict[str, object]],
) -> None:
    plain = run(corpus, tmp_path / "plain", strategy, compile=False, **changes)
    assert not eager_backend
    # blocks that differ, as every other one has value embeddings, are a graph each
    alike = changes is not ALL_OPTIONS or strategy == "single"
    with torch._dynamo.config.patch(error_on_recompile=alike):
        assert run(corpus, tmp_path / "compiled", strategy, compile=True, **changes) == plain
    if not alike:
        assert counters["stats"]["unique_graphs"] == KINDS_OF_BLOCKS + 1, "and the loss"
    assert all(options["dynamic"] is False for options in eager_backend)
    assert counters["stats"]["unique_graphs"] >= 1
    breaks = dict(counters["graph_break"])
    assert not breaks or strategy == "fsdp" or "intra_document" in changes, breaks


def test_fsdp_compiles_its_loss_beside_its_blocks(
    corpus: Path,
    tmp_path: Path,
    eager_backend: list[dict[str, object]],
) -> None:
    run(corpus, tmp_path / "run", "fsdp", compile=True, n_layer=3)
    assert len(eager_backend) == 3 + 1
    # one for all blocks, one for the loss
    assert counters["stats"]["unique_graphs"] == 2


def planned(
    strategy: str,
    device: str = "cuda",
    activation_checkpointing: str = "none",
    **changes: object,
) -> tuple[str, str]:
    config = TrainConfig(**changes)  # type: ignore[arg-type]
    layout = Layout(strategy, 1, 1, activation_checkpointing)
    found = plan_compilation(config, layout, torch.device(device))
    return found.parts, found.mode


def test_what_is_compiled() -> None:
    assert planned("single") == ("model", "default")
    assert planned("single", "cpu") == ("nothing", "default")
    assert planned("single", compile=False) == ("nothing", "default")
    assert planned("ddp") == ("model", "default")
    assert planned("ddp", activation_checkpointing="full") == ("blocks", "default")
    assert planned("fsdp", compile_mode="max-autotune-no-cudagraphs")[0] == "blocks"


def test_a_mode_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave --compile-mode out"):
        planned("fsdp", compile_mode="reduce-overhead")
    with pytest.raises(ConfigError, match="needs --compile: add it"):
        planned("single", "cpu", compile_mode="reduce-overhead")


def test_with_cuda_graphs_gradients_have_memory_of_their_own(corpus: Path, tmp_path: Path) -> None:
    plain = run(corpus, tmp_path / "plain", "single", compile=False)
    graphs = {"compile": True, "compile_mode": "reduce-overhead"}
    assert run(corpus, tmp_path / "graphs", "single", **graphs) == plain

    model = torch.nn.Linear(2, 2)
    wrapped = CudaGraphs(model, model)
    assert keeps_gradients(torch.nn.Sequential(wrapped))
    assert not keeps_gradients(model)
    kept = model.weight.grad
    assert kept is not None
    wrapped(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is kept
