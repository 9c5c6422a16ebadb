"""One model on one process or several, whole or shared out: the same losses, and checkpoints that
all of them read.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from nanogpt_dist import storage
from nanogpt_dist.checkpoint.consolidate import consolidate, is_sharded
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.strategy import needs_group, plan_layout, whole
from nanogpt_dist.distributed.world import World, connect, is_dtensor
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.signals import StopRequest
from nanogpt_dist.training.loop import train
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.step import TrainStep
from tests.conftest import in_ranks
from tests.nanogpt_dist.small import ONE, go, records, tiny
from tests.ranks import options
from tests.ranks.matrix import HALF, STEPS, strategies

SIZES = (1, 2, 4)


@pytest.fixture(scope="module", params=["adamw", "muon"])
def matrix(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("matrix") / request.param
    for size in SIZES:
        in_ranks("matrix", size, "train", folder, corpus, request.param)
    return folder


def losses(run: Path, name: str) -> list[float]:
    return [record[name] for record in records(run) if name in record]


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, False),
        ({"strategy": "ddp"}, True),
        ({"strategy": "fsdp"}, True),
        ({"mesh": "1x1"}, True),
        ({"cpu_offload": True}, True),
    ],
)
def test_one_process_has_a_group_where_its_strategy_needs_one(
    settings: dict[str, object], needed: bool, tmp_path: Path
) -> None:
    assert needs_group(tiny(tmp_path, tmp_path / "run", **settings)) is needed


@pytest.mark.thorough
def test_the_losses_do_not_depend_on_the_layout(matrix: Path) -> None:
    expected = {
        name: losses(matrix / "single-1" / "plain", name)
        for name in ("loss", "val_loss", "grad_norm")
    }
    assert len(expected["loss"]) == STEPS
    runs = [f"{name}-{size}" for size in SIZES for name in strategies(size)]
    assert len(runs) == 10
    for run in runs:
        for name, values in expected.items():
            assert losses(matrix / run / "plain", name) == pytest.approx(values, rel=1e-5), (
                run,
                name,
            )


@pytest.mark.thorough
def test_a_resumed_run_is_bitwise_the_undisturbed_one_in_each_layout(matrix: Path) -> None:
    for size in SIZES:
        for name in strategies(size):
            run = matrix / f"{name}-{size}"
            ends = [
                run / kind / "checkpoints" / storage.step_name(STEPS)
                for kind in ("whole", "resumed")
            ]
            whole, resumed = (
                {entry["name"]: entry["sha256"] for entry in storage.read_manifest(end)["files"]}
                for end in ends
            )
            tensors = [file for file in whole if file.endswith(".safetensors")]
            shards = size if name == "fsdp" else 2 if (name, size) == ("hsdp", 4) else 1
            assert len(tensors) == 2 * shards, (run, tensors)
            assert all(whole[file] == resumed[file] for file in tensors), run
            assert losses(run / "whole", "loss")[HALF:] == losses(run / "resumed", "loss")[HALF:]


@pytest.mark.thorough
def test_each_checkpoint_is_read_by_each_layout(matrix: Path, corpus: Path) -> None:
    for size in SIZES:
        in_ranks("matrix", size, "load", matrix, corpus, matrix.name)
    loaded = {
        f"{key} {size}": values
        for size in SIZES
        for key, values in json.loads((matrix / f"loaded-{size}.json").read_text()).items()
    }
    assert len(loaded) == 10 * 10
    expected = loaded["single-1 by single 1"]
    for key, values in loaded.items():
        assert values == pytest.approx(expected, rel=1e-5), key


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.thorough)])
def test_the_training_state_shrinks_with_the_number_of_ranks(size: int, tmp_path: Path) -> None:
    in_ranks("memory", size, tmp_path, "fsdp")
    ranks = [
        json.loads((tmp_path / f"memory-fsdp-{size}-{rank}.json").read_text())
        for rank in range(size)
    ]
    for rank in ranks:
        mine = rank["parameters"] + rank["gradients"] + rank["moments"]
        assert mine == pytest.approx(rank["total"] / size, rel=0.1)
        assert rank["reductions"] == rank["groups"], (
            "each group once, in the last of four micro-batches"
        )


def weights(run: Path, out: Path) -> dict[str, Tensor]:
    """The last weights of a run, whole, by their names."""
    last = run / "checkpoints" / storage.step_name(options.STEPS)
    if is_sharded(last):
        last = consolidate(last, out / last.name)
    return load_file(last / "model.safetensors")


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.thorough)])
def test_a_model_with_every_option_is_the_same_on_several_ranks(
    size: int,
    corpus: Path,
    tmp_path: Path,
) -> None:
    go(tiny(corpus, tmp_path / "single" / "plain", strategy="single", **options.COMMON))
    in_ranks("options", size, tmp_path, corpus)
    expected = losses(tmp_path / "single" / "plain", "loss")
    assert len(expected) == options.STEPS
    plain = weights(tmp_path / "single" / "plain", tmp_path / "whole-single")
    for name in (*options.STRATEGIES, "recomputing"):
        run = tmp_path / name / "plain"
        assert losses(run, "loss") == pytest.approx(expected, rel=1e-5), name
        found = weights(run, tmp_path / f"whole-{name}")
        assert found.keys() == plain.keys()
        for key, value in plain.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)
    resumed = weights(tmp_path / "fsdp" / "resumed", tmp_path / "whole-resumed")
    for key, value in weights(tmp_path / "fsdp" / "plain", tmp_path / "again").items():
        assert torch.equal(resumed[key], value), key
    last = options.loaded(ONE, tmp_path, corpus, {"strategy": "single"})
    for name, loss in json.loads((tmp_path / "loaded.json").read_text()).items():
        assert loss == pytest.approx(last, rel=1e-5), name


# ---- what can be told in one process


@pytest.fixture
def alone() -> Iterator[World]:
    with connect("cpu", timeout_s=30, group=True) as world:
        yield world


def final(config: TrainConfig, world: World) -> dict[str, Tensor]:
    """Weights after the run, and its first losses to full precision."""
    run = Path(train(config, world, StopRequest()).checkpoint)
    return {
        **load_file(run / "model.safetensors"),
        "loss": torch.tensor(losses(run.parents[1], "loss")),
    }


VARIANTS = [
    {"activation_checkpointing": "full"},
    {"activation_checkpointing": "selective"},
    {"strategy": "fsdp", "activation_checkpointing": "full"},
    {"strategy": "fsdp", "activation_checkpointing": "selective"},
    {"strategy": "fsdp", "reshard_after_forward": False},
    {"strategy": "fsdp", "cpu_offload": True},
    {"async_save": True},
]


@pytest.mark.parametrize("given", VARIANTS, ids=lambda given: "-".join(map(str, given.values())))
def test_what_saves_memory_or_time_changes_no_bit(
    given: dict[str, object],
    corpus: Path,
    tmp_path: Path,
    alone: World,
) -> None:
    common = {"dropout": 0.1, "log_interval": 1, "max_iters": 4, "eval_interval": 2}
    plain = {"strategy": given.get("strategy", "single"), **common}
    expected = final(tiny(corpus, tmp_path / "plain", **plain), alone)
    found = final(tiny(corpus, tmp_path / "given", **{**plain, **given}), alone)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["none", "selective"])
def test_blocks_are_compiled_one_by_one(
    mode: str,
    corpus: Path,
    tmp_path: Path,
    alone: World,
) -> None:
    common = {
        "strategy": "fsdp",
        "log_interval": 1,
        "max_iters": 3,
        "activation_checkpointing": mode,
    }
    expected = final(tiny(corpus, tmp_path / "plain", **common), alone)
    found = final(tiny(corpus, tmp_path / "compiled", compile=True, **common), alone)
    assert found["loss"].tolist() == pytest.approx(expected["loss"].tolist(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_the_master_weights(
    dtype: torch.dtype,
    corpus: Path,
    tmp_path: Path,
    alone: World,
) -> None:
    rows = torch.randint(0, 257, (2, 33), generator=torch.Generator().manual_seed(1)).numpy()
    norms = {}
    for numbers in (torch.float32, dtype):
        config = tiny(corpus, tmp_path / "run", strategy="fsdp", vocab_size=257)
        train_step = TrainStep(
            config, alone, plan_layout(config, alone, training_bytes(config)), numbers
        )
        updates = [train_step.step(step, [(rows[:, :-1], rows[:, 1:])] * 2) for step in range(3)]
        assert all(update.finite for update in updates)
        assert {p.dtype for p in train_step.model.parameters()} == {torch.float32}
        norms[numbers] = [update.grad_norm for update in updates]
    assert norms[dtype] == pytest.approx(norms[torch.float32], rel=0.05)
    assert norms[dtype] != norms[torch.float32]


def test_one_copy_is_sharded_over_the_usual_group_alone(tmp_path: Path, alone: World) -> None:
    """Groups of one rank each would be made, and reduced over, for nothing."""
    config = tiny(tmp_path, tmp_path / "run", strategy="fsdp", vocab_size=64)
    layout = plan_layout(config, alone, training_bytes(config))
    for parameter in TrainStep(config, alone, layout, torch.float32).model.parameters():
        assert is_dtensor(parameter)
        assert parameter.device_mesh.mesh_dim_names == ("shard",)
        assert parameter.device_mesh.get_group() == dist.group.WORLD


def test_an_infinite_gradient_of_a_shard_lowers_the_scale_and_changes_nothing(
    tmp_path: Path,
    alone: World,
) -> None:
    config = tiny(tmp_path, tmp_path / "run", strategy="fsdp", vocab_size=64)
    train_step = TrainStep(
        config, alone, plan_layout(config, alone, training_bytes(config)), torch.float16
    )
    rows = torch.zeros(2, 32, dtype=torch.int64).numpy()
    before = {name: whole(p).clone() for name, p in train_step.model.named_parameters()}
    scale = train_step.scaler.get_scale()
    handle = train_step.model.transformer.ln_f.weight.register_post_accumulate_grad_hook(
        lambda weight: weight.grad.to_local().fill_(math.inf)
    )
    assert not train_step.step(0, [(rows, rows)]).finite
    handle.remove()
    assert train_step.scaler.get_scale() == scale / 2
    assert all(
        torch.equal(whole(p), before[name]) for name, p in train_step.model.named_parameters()
    )


@pytest.mark.parametrize(
    ("given", "size", "expected"),
    [
        ({}, 1, "single"),
        ({}, 4, "ddp"),
        ({"n_embd": 65536, "n_layer": 96}, 4, "fsdp, 1 copies of 4 shards"),
        ({"mesh": "2x4"}, 8, "fsdp, 2 copies of 4 shards"),
        ({"cpu_offload": True}, 2, "fsdp, 1 copies of 2 shards"),
        ({"strategy": "ddp"}, 1, "ddp"),
    ],
)
def test_auto_takes_what_fits(
    given: dict[str, object],
    size: int,
    expected: str,
    tmp_path: Path,
) -> None:
    config = tiny(tmp_path, tmp_path, vocab_size=64, **given)
    assert str(plan_layout(config, replace(ONE, size=size), training_bytes(config))) == expected


@pytest.mark.parametrize(
    ("given", "size", "message"),
    [
        ({"strategy": "single"}, 2, "would train 2 models"),
        ({"strategy": "ddp", "mesh": "1x2"}, 2, "--mesh needs --strategy fsdp"),
        ({"strategy": "ddp", "cpu_offload": True}, 2, "--cpu-offload needs --strategy fsdp"),
        ({"mesh": "2x4"}, 6, "give 1x6, 2x3, 3x2, 6x1"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(
    given: dict[str, object],
    size: int,
    message: str,
    tmp_path: Path,
) -> None:
    config = tiny(tmp_path, tmp_path, vocab_size=64, **given)
    with pytest.raises(ConfigError, match=message):
        plan_layout(config, replace(ONE, size=size), training_bytes(config))


def test_float8_is_refused_where_there_is_none(tmp_path: Path) -> None:
    config = tiny(tmp_path, tmp_path, vocab_size=64, fp8=True)
    layout = plan_layout(config, ONE, training_bytes(config))
    with pytest.raises(ConfigError, match="--fp8 needs an NVIDIA GPU, this is cpu"):
        TrainStep(config, ONE, layout, torch.bfloat16)
