"""`nanogpt show`: the counts against known figures, the shapes against a real pass, the drawing,
the TOML.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.show import commented_toml, show_app
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import MAX_LINE, ConfigError
from nanogpt_dist.inspect.architecture import count_parameters, trace
from nanogpt_dist.inspect.components import descriptions
from nanogpt_dist.load_config import load
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.presets import PRESETS
from tests.conftest import CLONE

# Preset → parameters, parameters less wpe: what nanoGPT and the GPT-2 weights have.
KNOWN = {
    "gpt2": (124_439_808, 123_653_376),
    "gpt2-medium": (354_823_168, 353_774_592),
    "gpt2-large": (774_030_080, 772_719_360),
    "gpt2-xl": (1_557_611_200, 1_555_972_800),
    "gpt2-124m": (124_373_760, 123_587_328),
    "shakespeare-char": (10_745_088, 10_646_784),
    "shakespeare-char-cpu": (804_096, 795_904),
}
TINY = {"block_size": 5, "vocab_size": 11, "n_layer": 3, "n_head": 2, "n_embd": 14, "batch_size": 4}


def show(*arguments: str) -> str:
    result = CliRunner(env={"FORCE_COLOR": ""}).invoke(show_app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def show_json(*arguments: str) -> dict[str, Any]:
    value = json.loads(show(*arguments, "--json"))
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("preset", KNOWN)
def test_known_counts(preset: str) -> None:
    shown = show_json("params", preset)
    assert (shown["total"], shown["non_embedding"]) == KNOWN[preset]
    assert sum(shown["by_component"].values()) == shown["total"]
    assert shown["decayed"] + shown["not_decayed"] == shown["total"]
    assert shown["by_component"]["lm_head"] == 0
    assert abs(shown["rule_of_thumb_error"]) < 1


def test_decayed_and_not_decayed() -> None:
    counted = count_parameters(load("gpt2-124m"))
    assert (counted.decayed, counted.decayed_tensors) == (124_354_560, 50)
    assert (counted.not_decayed, counted.not_decayed_tensors) == (19_200, 25)


def test_with_muon_its_matrices_decay_alone_and_have_one_moment() -> None:
    modern = show_json("params", "modern-124m")
    matrices = 12 * 12 * 768**2
    assert (modern["decayed"], modern["decayed_tensors"]) == (matrices, 48)
    assert modern["training_bytes"] == 16 * modern["total"] - 4 * matrices
    assert "(the blocks' matrices)" in show("params", "modern-124m")
    assert "decayed      0 in 0 tensors (weight_decay is 0)" in show("params", "quickstart")


@pytest.mark.parametrize("bias", [False, True])
def test_counts_are_those_of_the_real_model(bias: bool) -> None:
    config = TrainConfig(**TINY, bias=bias)
    counted, model = count_parameters(config), GPT(config)
    block = model.transformer.h[0]
    assert counted.total == model.num_params()
    assert counted.blocks == 3 * sum(p.numel() for p in block.parameters())
    assert counted.by_component["h.mlp.c_fc"] == 3 * (14 * 56 + (56 if bias else 0))
    assert counted.rule_of_thumb == 12 * 3 * 14**2
    assert counted.training_bytes == 16 * counted.total


def test_every_component_is_traced_in_order_of_execution() -> None:
    config = TrainConfig(**TINY)
    traced = trace(config, batch_size=4)
    assert [component.name for component in traced] == [
        name for name in descriptions(config) if not name.endswith("_norm")
    ]
    at = {component.name: component for component in traced}
    assert at["GPT"].input == (4, 5)
    assert at["GPT"].output == (4, 5, 11)
    assert at["h.attn.c_attn"].output == (4, 5, 3 * 14)
    for name in ("q", "k", "v", "sdpa"):
        assert at[f"h.attn.{name}"].output == (4, 2, 5, 7), name
    assert at["h.attn.q"].output_letters == ("B", "H", "T", "D")
    assert at["h.mlp.act"].input == (4, 5, 4 * 14)
    assert at["loss"].output == ()


def test_components_as_json() -> None:
    shown = show_json("components", "gpt2-124m")
    assert shown["letters"] == {"B": 12, "T": 1024, "C": 768, "H": 12, "D": 64, "V": 50304}
    head = next(component for component in shown["components"] if component["name"] == "lm_head")
    assert (head["input"], head["output"]) == ([12, 1024, 768], [12, 1024, 50304])


@pytest.mark.parametrize("command", ["params", "components", "full"])
def test_tables_fit_into_100_columns(command: str) -> None:
    for preset in ("gpt2-xl", "shakespeare-char-cpu"):
        text = show(command, preset)
        assert max(map(len, text.splitlines())) <= 100
        assert "\x1b" not in text


def test_component_table_cuts_no_shape() -> None:
    text = show("components", "gpt2-xl")
    assert "…" not in text
    assert "(B, T, 3C) → (B, H, T, D)" in text
    assert "(12, 1024, 4800) → (12, 25, 1024, 64)" in text


def test_flags_override_the_preset() -> None:
    shown = show_json(
        "params",
        "gpt2-124m",
        "--n-layer",
        "1",
        "--n_embd",
        "64",
        "--n-head",
        "4",
        "--bias",
        "--vocab-size",
        "100",
    )
    # matrices; biases 3C + C + 4C + C, two LayerNorms 2 · 2C
    assert shown["blocks"] == 12 * 64**2 + 13 * 64
    assert shown["by_component"]["wte"] == 6400
    settings = show_json("config", "gpt2", "--no-bias", "--gelu", "exact")
    assert (settings["bias"], settings["gelu"]) == (False, "exact")


@pytest.mark.parametrize("command", ["params", "components", "full"])
def test_unset_vocabulary_asks_for_the_flag(command: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("n_layer = 2\n")
    with pytest.raises(ConfigError, match="add --vocab-size") as caught:
        show(command, str(file))
    assert len(str(caught.value)) < MAX_LINE
    assert show(command, str(file), "--vocab-size", "64")
    assert "# vocab_size =" in show("config", str(file))


@pytest.mark.parametrize("preset", PRESETS)
def test_config_as_toml_gives_the_config_back(preset: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(show("config", preset), encoding="utf-8")
    # the run goes where the file says
    assert load(str(file)) == load(preset, {"out_dir": "out/mine"})
    assert TrainConfig(**show_json("config", preset)) == load(preset)


def test_toml_stars_what_is_not_the_default() -> None:
    config = TrainConfig(n_layer=3, dataset='a "quoted" \\ folder')
    lines = commented_toml(config, "mine").splitlines()
    starred = [line.split(" = ")[0] for line in lines if " # * " in line]
    assert starred == ["n_layer", "dataset"]
    assert all(
        any(line.startswith((f"{name} = ", f"# {name} =")) for line in lines)
        for name in TrainConfig.model_fields
    )


def test_show_config_leaves_torch_out() -> None:
    code = (
        "import sys; from cli.show import show_app; show_app(['config'], standalone_mode=False);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=CLONE, check=True, capture_output=True, timeout=60
    )
