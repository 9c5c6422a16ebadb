"""Averaged weights: by hand to the last bit, in every layout, saved, resumed and evaluated."""

import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from cli.main import app
from nanogpt_dist import api, checkpoint, storage
from nanogpt_dist.checkpoint.consolidate import consolidate
from nanogpt_dist.checkpoint.tensors import read_whole
from nanogpt_dist.data import DataFolder
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.errors import ConfigError, MissingInputError, UsageError
from nanogpt_dist.training import optim
from nanogpt_dist.training.ema import decay_of
from nanogpt_dist.training.plan import fit_to_data, read_plan
from nanogpt_dist.training.step import TrainStep
from tests.conftest import Run, in_ranks
from tests.nanogpt_dist.small import ONE, go, records, tiny
from tests.ranks.averaging import HALF, STEPS
from tests.ranks.matrix import strategies

FILES = ["config.toml", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
FILES += ["tokenizer.json"]


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 steps with averaged weights, saved at each; read it, or copy it."""
    run = tmp_path_factory.mktemp("averaged") / "a"
    every = {"save_interval": 1, "keep_checkpoints": 9, "max_iters": 8, "bias": True}
    go(tiny(corpus, run, ema_decay=0.5, **every))
    return run


def saved(run: Path, step: int) -> Path:
    return run / "checkpoints" / storage.step_name(step)


def new_step(corpus: Path, **changes: Any) -> tuple[TrainStep, Any, Any]:
    config = fit_to_data(tiny(corpus, corpus / "none", **changes), DataFolder.open(corpus))
    layout = plan_layout(config, ONE, optim.training_bytes(config))
    batches, evaluator = read_plan(config, DataFolder.open(corpus), ONE, layout, torch.float32)
    return TrainStep(config, ONE, layout, torch.float32), batches, evaluator


@given(step=st.integers(0, 10**9), decay=st.floats(1e-6, 1, exclude_max=True))
def test_the_decay_rises_to_the_one_that_is_set(step: int, decay: float) -> None:
    assert 0 < decay_of(step, decay) <= decay < 1
    assert decay_of(step, decay) <= decay_of(step + 1, decay)
    if step > 10 / (1 - decay):
        assert decay_of(step, decay) == decay


def test_the_average_is_the_one_made_by_hand_to_the_last_bit(run: Path, corpus: Path) -> None:
    step, _, _ = new_step(corpus, bias=True)  # the same first weights: they follow from the seed
    by_hand = {name: p.detach().clone() for name, p in step.model.named_parameters()}
    exact = {name: value.double() for name, value in by_hand.items()}
    for n in range(8):
        d = min(0.5, (1 + n) / (10 + n))
        weights = load_file(saved(run, n + 1) / "model.safetensors")
        averages = load_file(saved(run, n + 1) / "ema.safetensors")
        assert averages.keys() == weights.keys() == by_hand.keys()
        for name, weight in weights.items():
            by_hand[name] = torch.lerp(by_hand[name], weight, 1 - d)
            exact[name] = d * exact[name] + (1 - d) * weight.double()
            assert torch.equal(averages[name], by_hand[name]), (n, name)
            assert torch.allclose(averages[name].double(), exact[name], atol=1e-7, rtol=1e-5)
            assert averages[name].dtype == torch.float32
    assert not torch.equal(averages[name], weights[name])


def test_a_run_with_it_learns_the_same_bits_and_without_it_has_no_such_file(
    run: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    go(tiny(corpus, tmp_path / "off", bias=True))
    at_end = saved(tmp_path / "off", 8)
    assert sorted(path.name for path in at_end.iterdir()) == FILES
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert storage.sha256_file(at_end / name) == storage.sha256_file(saved(run, 8) / name)
    on = sorted(path.name for path in saved(run, 8).iterdir())
    assert on == sorted([*FILES, "ema.safetensors"])
    listed = [entry["name"] for entry in storage.read_manifest(saved(run, 8))["files"]]
    assert "ema.safetensors" in listed
    evaluated = [record for record in records(tmp_path / "off") if "val_loss" in record]
    assert all("val_loss_ema" not in record for record in evaluated)


def test_a_resumed_average_is_bitwise_the_undisturbed_one(run: Path, tmp_path: Path) -> None:
    shutil.copytree(saved(run, 5), saved(tmp_path / "b", 5))
    config = checkpoint.load_config(saved(run, 5))
    go(config.model_copy(update={"out_dir": str(tmp_path / "b")}))
    for name in ("model", "optimizer", "ema"):
        file = f"{name}.safetensors"
        ends = [storage.sha256_file(saved(one, 8) / file) for one in (run, tmp_path / "b")]
        assert ends[0] == ends[1], name


def test_a_run_that_began_without_averages_from_where_it_is(run: Path, tmp_path: Path) -> None:
    shutil.copytree(saved(run, 8), saved(tmp_path / "b", 8))
    config = checkpoint.load_config(saved(run, 8)).model_copy(
        update={"out_dir": str(tmp_path / "b"), "ema_decay": None, "max_iters": 9}
    )
    go(config)
    assert not (saved(tmp_path / "b", 9) / "ema.safetensors").exists()
    go(config.model_copy(update={"ema_decay": 0.25, "max_iters": 10}))
    [before, after] = [load_file(saved(tmp_path / "b", n) / "model.safetensors") for n in (9, 10)]
    averages = load_file(saved(tmp_path / "b", 10) / "ema.safetensors")
    for name, average in averages.items():
        assert torch.equal(average, torch.lerp(before[name], after[name], 0.75)), name


def test_a_step_without_effect_leaves_the_average_alone(corpus: Path) -> None:
    step, batches, _ = new_step(corpus, ema_decay=0.9)
    assert step.step(0, list(batches.of(0))).finite
    assert step.average is not None
    before = {name: value.clone() for name, value in step.average.weights.items()}
    weight = step.model.transformer.ln_f.weight
    handle = weight.register_hook(lambda gradient: gradient * math.inf)
    assert not step.step(1, list(batches.of(1))).finite
    handle.remove()
    assert all(torch.equal(before[name], step.average.weights[name]) for name in before)
    assert step.step(2, list(batches.of(2))).finite
    assert any(not torch.equal(before[name], step.average.weights[name]) for name in before)


def test_loading_a_checkpoint_without_one_forgets_the_one_before(
    corpus: Path,
    trained: Path,
) -> None:
    step, batches, _ = new_step(corpus, ema_decay=0.9)
    step.step(0, list(batches.of(0)))
    step.load(saved(trained, 8), {})
    step.step(8, list(batches.of(8)))
    before = load_file(saved(trained, 8) / "model.safetensors")
    assert step.average is not None
    for name, weight in step.model.named_parameters():
        expected = torch.lerp(before[name], weight.detach(), 1 - 0.5)  # 9 / 18
        assert torch.equal(step.average.weights[name], expected), name


def test_evaluating_the_average_moves_no_memory_and_no_bit(corpus: Path) -> None:
    step, batches, evaluator = new_step(corpus, ema_decay=0.9)
    assert step.evaluate_average(evaluator) is None, "there is none before the first step"
    step.step(0, list(batches.of(0)))
    assert step.average is not None

    def places() -> list[int]:
        assert step.average is not None
        tensors: list[Tensor] = [*step.model.parameters(), *step.average.weights.values()]
        return [tensor.data_ptr() for tensor in tensors]

    before, weights = places(), [p.detach().clone() for p in step.model.parameters()]
    with step.average.in_place_of_weights():
        half = len(before) // 2
        assert places() == before[half:] + before[:half]
        assert step.model.lm_head.weight is step.model.transformer.wte.weight
    found, averaged = step.evaluate(evaluator), step.evaluate_average(evaluator)
    assert averaged is not None
    assert averaged.val_loss != found.val_loss == step.evaluate(evaluator).val_loss
    assert places() == before
    pairs = zip(weights, step.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_average_is_exchanged_back_where_its_evaluation_fails(corpus: Path) -> None:
    step, batches, _ = new_step(corpus, ema_decay=0.9)
    step.step(0, list(batches.of(0)))
    before = [p.data_ptr() for p in step.model.parameters()]

    def fails(_: object) -> Any:
        raise MissingInputError("a shard is gone")

    with pytest.raises(MissingInputError):
        step.evaluate_average(fails)  # type: ignore[arg-type]
    assert [p.data_ptr() for p in step.model.parameters()] == before


def test_an_average_that_is_not_finite_is_not_saved(corpus: Path) -> None:
    step, batches, _ = new_step(corpus, ema_decay=0.9)
    step.step(0, list(batches.of(0)))
    step.contents(checkpoint.TrainState(step=1)).refuse_not_finite()
    assert step.average is not None
    step.average.weights["transformer.wte.weight"][3, 3] = math.nan
    with pytest.raises(ConfigError, match="the weights are not finite at step 1"):
        step.contents(checkpoint.TrainState(step=1)).refuse_not_finite()


def test_a_copy_in_the_background_is_not_that_of_the_weights(
    run: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    go(tiny(corpus, tmp_path / "b", ema_decay=0.5, bias=True, async_save=True))
    for step in (4, 8):
        for name in ("model", "ema"):
            files = [saved(one, step) / f"{name}.safetensors" for one in (run, tmp_path / "b")]
            assert storage.sha256_file(files[0]) == storage.sha256_file(files[1]), (step, name)


def test_it_is_evaluated_where_the_weights_are(run: Path) -> None:
    found = [record for record in records(run) if "val_loss" in record]
    assert [record["step"] for record in found] == [4, 8]
    model, _ = checkpoint.load_model(saved(run, 8), torch.device("cpu"), "ema")
    expected = load_file(saved(run, 8) / "ema.safetensors")
    assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())
    config = checkpoint.load_config(saved(run, 8))
    layout = plan_layout(config, ONE, optim.training_bytes(config))
    _, evaluator = read_plan(
        config, DataFolder.open(Path(config.dataset)), ONE, layout, torch.float32
    )
    assert evaluator(model).val_loss == found[-1]["val_loss_ema"] != found[-1]["val_loss"]
    best = min(found, key=lambda record: record["val_loss"])
    assert checkpoint.load_state(saved(run, 8))[0].best_step == best["step"], "by the weights' own"


def test_its_memory_and_its_files_are_counted(run: Path, corpus: Path) -> None:
    on, off = (tiny(corpus, run, ema_decay=decay) for decay in (0.9, None))
    assert optim.training_bytes(on) == optim.training_bytes(off) + 4
    assert optim.checkpoint_bytes(on) == optim.checkpoint_bytes(off) + 4
    with_vocabulary = [fit_to_data(config, DataFolder.open(corpus)) for config in (on, off)]
    usages = [
        plan_layout(config, ONE, optim.training_bytes(config)).usage for config in with_vocabulary
    ]
    assert usages[0] is not None
    assert usages[1] is not None
    parameters = usages[1].weights // 4
    assert usages[0].moments - usages[1].moments == 4 * parameters
    files = {
        entry["name"]: entry["bytes"] for entry in storage.read_manifest(saved(run, 8))["files"]
    }
    assert files["ema.safetensors"] == pytest.approx(files["model.safetensors"], abs=64)


# ---- several ranks


@pytest.fixture(scope="module")
def averaged(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    for size in (1, 2):
        in_ranks("averaging", size, folder, corpus)
    return folder


@pytest.mark.thorough
def test_each_layout_has_the_same_average_and_resumes_it_bitwise(averaged: Path) -> None:
    for size in (1, 2):
        for name in strategies(size):
            ends = [
                saved(averaged / f"{name}-{size}" / kind, STEPS) for kind in ("whole", "resumed")
            ]
            [files, again] = [
                {entry["name"]: entry["sha256"] for entry in storage.read_manifest(end)["files"]}
                for end in ends
            ]
            shards = [file for file in files if file.startswith("ema")]
            assert len(shards) == (size if name == "fsdp" else 1), (name, size)
            assert all(files[file] == again[file] for file in shards), (name, size)
            whole = read_whole(ends[0] / file for file in shards)
            weights = read_whole(sorted(ends[0].glob("model*.safetensors")))
            assert whole.keys() == weights.keys()
            assert any(not torch.equal(whole[key], weights[key]) for key in whole)


@pytest.mark.thorough
def test_each_layout_reads_every_others_average(averaged: Path) -> None:
    for size in (1, 2):
        found = json.loads((averaged / f"loaded-{size}.json").read_text())
        for key, losses in found.items():
            if key.split()[0].endswith("-1"):  # dropout differs between numbers of ranks
                expected = found[f"single-1 by {key.split()[-1]}"]
                assert losses == pytest.approx(expected, rel=1e-5), (size, key)
        of_two = [value for key, value in found.items() if key.startswith("fsdp-2")]
        assert all(value == pytest.approx(of_two[0], rel=1e-5) for value in of_two)


@pytest.mark.thorough
def test_consolidating_keeps_the_average(averaged: Path, tmp_path: Path) -> None:
    sharded = saved(averaged / "fsdp-2" / "whole", HALF)
    out = consolidate(sharded, tmp_path / sharded.name)
    whole = load_file(out / "ema.safetensors")
    parts = read_whole(sorted(sharded.glob("ema*.safetensors")))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert storage.verify(out) == []


# ---- as it is typed


def typed(line: str, code: int = 0) -> Result:
    """What `nanogpt LINE` says."""
    done = CliRunner().invoke(app, shlex.split(line))
    assert done.exit_code == code, done.output + str(done.exception)
    return done


def test_the_averaged_weights_are_evaluated_sampled_and_exported_by_name(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(run, tmp_path / "out" / "a")
    monkeypatch.chdir(tmp_path)
    plain = typed("eval out/a --device cpu")
    ema = typed("eval out/a --weights ema --device cpu")
    assert "step-00000008, averaged weights, on the val split" in ema.stderr
    assert [line.split()[0] for line in ema.stdout.splitlines()] == [
        line.split()[0] for line in plain.stdout.splitlines()
    ]
    assert ema.stdout.splitlines()[0].startswith("loss        ")
    assert ema.stdout != plain.stdout
    as_json = json.loads(typed("eval out/a --weights ema --device cpu --json").stdout)
    assert f"{as_json['val_loss']:.4f}" == ema.stdout.split()[1]
    assert as_json["weights"] == "ema"
    shown = typed("show checkpoint out/a").stdout
    assert "ema.safetensors" in shown
    assert shown.count("  val of ") == 2, "what was found of both is kept"
    assert ", weights ema: val_loss " in shown

    sampled = typed("sample out/a --weights ema --max-new-tokens 8 --device cpu")
    assert "averaged weights in " in sampled.stderr
    typed("export nanogpt out/a ck/ckpt.pt --weights ema")
    content = torch.load(tmp_path / "ck" / "ckpt.pt", weights_only=True)
    weight = content["model"]["transformer.h.0.attn.c_attn.weight"]
    expected = load_file(saved(run, 8) / "ema.safetensors")["transformer.h.0.attn.c_attn.weight"]
    assert torch.equal(weight, expected)
    assert not content["optimizer"]["state"], "AdamW's state is that of the weights themselves"
    typed("export hf out/a hf --weights ema")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert torch.equal(found["transformer.h.0.attn.c_attn.weight"], expected.T)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| loss on the val split | not evaluated |" in card, "that one is of the others"


def test_a_run_without_says_what_to_type(trained: Path, nanogpt: Run) -> None:
    done = nanogpt("eval", trained, "--weights", "ema", "--device", "cpu", code=66)
    line = done.stderr.splitlines()[-1]
    assert line.endswith(
        "has no averaged weights: leave --weights ema out, or train with --ema-decay 0.999"
    )
    assert len(line) <= 200
    for command in (f"sample {trained}", f"export hf {trained} hf", f"export llmc {trained} llmc"):
        error = CliRunner().invoke(app, shlex.split(f"{command} --weights ema")).exception
        assert isinstance(error, MissingInputError), command
        assert "leave --weights ema out" in str(error)
    for command in ("eval --init-from gpt2", "eval eval-gpt2", "sample --init-from gpt2"):
        refused = CliRunner().invoke(app, shlex.split(f"{command} --weights ema")).exception
        assert isinstance(refused, UsageError), command
        assert str(refused) == "--weights ema is for a run's checkpoint: leave it out"


def test_the_python_api_loads_them(run: Path, trained: Path, tmp_path: Path) -> None:
    model = api.load(run, device="cpu", weights="ema")
    expected = load_file(saved(run, 8) / "ema.safetensors")
    assert all(torch.equal(p, expected[name]) for name, p in model.gpt.named_parameters())
    with pytest.raises(MissingInputError, match="has no averaged weights"):
        api.load(trained, device="cpu", weights="ema")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="leave it out"):
        api.load(tmp_path / "hf", device="cpu", weights="ema")
