"""show attention, show checkpoint, the picture, and parameters counted by hand."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli import show_attention
from cli.main import app
from nanogpt_dist.config import ModelConfig
from nanogpt_dist.errors import UsageError
from nanogpt_dist.inspect.architecture import count_parameters, formulas, letter_sizes
from nanogpt_dist.inspect.attention_head import look
from nanogpt_dist.load_config import load
from nanogpt_dist.model.gpt import GPT
from tests.conftest import Run
from tests.nanogpt_dist.interop.models import bpe, make_run
from tests.nanogpt_dist.model.test_options import OPTIONS, SMALL


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_a_head_is_the_one_of_the_forward_pass(options: dict) -> None:
    """Put together again, what the heads hand on is what the attention of the block gives."""
    model = GPT(ModelConfig(**{**SMALL, **options})).init_weights(3).eval()
    ids = [3, 7, 1, 4, 7, 5]
    wanted: list[torch.Tensor] = []
    block = model.transformer.h[1]
    block.attn.c_proj.register_forward_pre_hook(lambda _, inputs: wanted.append(inputs[0]))
    model.logits(torch.tensor([ids]))
    heads = [look(model, ids, layer=1, head=h) for h in range(4)]
    torch.testing.assert_close(
        torch.cat([head.y for head in heads], 1), wanted[0][0], rtol=1e-4, atol=1e-6
    )
    for head in heads:
        torch.testing.assert_close(head.weights.sum(1), torch.ones(6))
        assert not head.weights[~head.seen].any()
    for layer, number in [(2, 0), (0, 4)]:
        with pytest.raises(UsageError, match="this model has"):
            look(model, ids, layer, number)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_counting_by_hand_gives_what_the_machine_counts(options: dict) -> None:
    config = ModelConfig(**{**SMALL, **options})
    counted = count_parameters(config)  # compares each
    assert counted.by_hand.keys() == counted.by_component.keys() == formulas(config).keys()
    assert letter_sizes(config, 1)["V"] == 29


def test_the_head_of_a_preset_and_of_a_run_as_tables(tmp_path: Path, nanogpt: Run) -> None:
    said = nanogpt("show", "attention", "--text", "abc", "--head", "1").stdout
    assert "q kᵀ / √D" in said
    assert [line.count("▒") for line in said.splitlines() if "▒" in line and "│" in line] == [
        2,
        1,
        2,
        1,
    ]
    run = make_run(tmp_path / "run", bpe())
    shown = json.loads(nanogpt("show", "attention", run, "--text", "The end.", "--json").stdout)
    T = len(shown["tokens"])
    assert "".join(shown["tokens"]) == "The end."
    assert [sum(row) for row in shown["seen"]] == list(range(1, T + 1))
    assert len(shown["q"][0]) == 16
    refused = nanogpt("show", "attention", "--text", "x" * 17, code=2)
    assert "a table takes 1 to 16" in refused.stderr


def test_a_checkpoint_with_its_files(tmp_path: Path, nanogpt: Run) -> None:
    run = make_run(tmp_path / "run", bpe())
    shown = json.loads(nanogpt("show", "checkpoint", run, "--json").stdout)
    assert shown["step"] == 0
    assert {entry["name"] for entry in shown["files"]} >= {
        "model.safetensors",
        "state.json",
        "tokenizer.json",
    }
    assert all(len(entry["sha256"]) == 64 for entry in shown["files"])
    (run / "checkpoints" / "step-00000000" / "model.safetensors").write_bytes(b"")
    nanogpt("show", "checkpoint", run, code=65)


@pytest.mark.parametrize("preset", ["gpt2-xl", "shakespeare-char-cpu"])
def test_the_picture_has_every_box(preset: str, tmp_path: Path) -> None:
    from nanogpt_dist.inspect.architecture import trace
    from nanogpt_dist.inspect.diagram_svg import draw_svg

    config = load(preset)
    counted = count_parameters(config)
    picture = draw_svg(config, counted, trace(config, 2), preset)
    tree = ElementTree.fromstring(picture)
    texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert f"{preset}: {counted.total:,} parameters" in texts
    for box in (
        "wte",
        "wpe",
        "h.ln_1",
        "h.attn.sdpa",
        "h.mlp.act",
        "ln_f",
        "lm_head",
        f"block × {config.n_layer}",
    ):
        assert box in texts
    assert f"token ids (B, T) = (2, {config.block_size})" in texts
    height = float(tree.attrib["height"])
    assert all(
        0 <= float(e.attrib["y"]) <= height for e in tree.iter("{http://www.w3.org/2000/svg}text")
    )


def test_a_picture_under_a_name_of_pixels_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["show", "full", "shakespeare-char-cpu", "--svg", str(tmp_path / "x.png")]
    )
    assert isinstance(done.exception, UsageError)
    assert not list(tmp_path.iterdir())


def test_a_tokens_name_is_as_wide_as_its_column_and_holds_no_control_codes() -> None:
    from rich.cells import cell_len

    for token in ("a", "日本語です", "\x1b[31m", " ", "👍"):
        shown = show_attention._name(token, 8)
        assert cell_len(shown) == 8
        assert shown.isprintable()


def test_a_picture_holds_its_title_and_its_labels() -> None:
    """A letter of the title is 9 pixels wide, one of a label 6.6."""
    from nanogpt_dist.inspect.architecture import trace
    from nanogpt_dist.inspect.diagram_svg import draw_svg

    large = {
        "n_layer": 32,
        "n_head": 32,
        "n_embd": 4096,
        "block_size": 131072,
        "vocab_size": 256000,
    }
    for title, settings in {
        "gpt2-xl": {},
        "out/" + "a-long-name/" * 20 + "run\x1b.toml": large,
    }.items():
        config = load("gpt2-xl", settings)
        picture = draw_svg(config, count_parameters(config), trace(config, 12), title)
        tree = ElementTree.fromstring(picture)
        width = float(tree.attrib["width"])
        [frame] = [
            e
            for e in tree.iter("{http://www.w3.org/2000/svg}rect")
            if e.attrib.get("class") == "frame"
        ]
        right = float(frame.attrib["x"]) + float(frame.attrib["width"])
        assert right < width
        for text in tree.iter("{http://www.w3.org/2000/svg}text"):
            said, x = text.text or "", float(text.attrib["x"])
            if text.attrib["text-anchor"] == "middle":
                assert len(said) * 9.1 / 2 <= x
            elif "shape" in text.attrib["class"] and not said.startswith("logits"):
                assert x + len(said) * 6.6 < right


def test_a_picture_goes_through_a_device_a_pipe_and_a_link(tmp_path: Path) -> None:
    import os
    import threading

    def draw(path: Path) -> None:
        line = ["show", "full", "shakespeare-char-cpu", "--vocab-size", "65", "--svg", str(path)]
        assert CliRunner().invoke(app, line).exit_code == 0

    draw(Path(os.devnull))
    assert Path(os.devnull).is_char_device()
    os.mkfifo(pipe := tmp_path / "pipe.svg")
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(pipe.read_bytes()), daemon=True)
    reader.start()
    draw(pipe)
    reader.join(30)
    assert said[0].startswith(b"<svg ")
    assert pipe.is_fifo()
    (link := tmp_path / "link.svg").symlink_to("real.svg")
    draw(link)
    assert link.is_symlink()
    assert (tmp_path / "real.svg").read_bytes() == said[0]
