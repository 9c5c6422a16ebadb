"""The picture of a model: every box and shape, nothing outside of the frame."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from nanogpt_dist.inspect.architecture import count_parameters, trace
from nanogpt_dist.inspect.diagram_svg import draw_svg
from nanogpt_dist.load_config import load


@pytest.mark.parametrize("preset", ["gpt2-xl", "shakespeare-char-cpu"])
def test_the_picture_has_every_box(preset: str, tmp_path: Path) -> None:

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


def test_a_picture_holds_its_title_and_its_labels() -> None:
    """A letter of the title is 9 pixels wide, one of a label 6.6."""

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
