"""Which weights a folder of Hugging Face's means: those that transformers takes from it, whatever
else lies there.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanogpt_dist.errors import BadDataError, MissingInputError
from nanogpt_dist.interop import huggingface
from nanogpt_dist.interop.init_from import architecture, find_pretrained
from nanogpt_dist.load_config import load
from tests.nanogpt_dist.interop.models import ids

transformers = pytest.importorskip("transformers")


def saved(folder: Path, seed: int = 0, **sharded: Any) -> Any:
    """A model of theirs in `folder`, each weight at random, of which no two seeds have the same."""
    config = transformers.GPT2Config(vocab_size=300, n_positions=48, n_embd=32, n_layer=2, n_head=2)
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    model.save_pretrained(folder, **sharded)
    return model


def configure(folder: Path, **changes: Any) -> None:
    """Settings in config.json; None takes one out."""
    content = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )


def rewrite(
    folder: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def with_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {**tensors, "lm_head.weight": torch.randn(300, 32)}


def as_is(folder: Path) -> None:
    saved(folder)


def another_head_though_tied(folder: Path) -> None:
    saved(folder)
    rewrite(folder, with_head)


def another_head_though_tied_in_shards(folder: Path) -> None:
    another_head_though_tied(folder)
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(whole)}
    for file in set(where.values()):
        save_file(
            {name: tensor for name, tensor in whole.items() if where[name] == file}, folder / file
        )
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def another_head_untied(folder: Path) -> None:
    another_head_though_tied(folder)
    configure(folder, tie_word_embeddings=False)


def the_same_head_twice(folder: Path) -> None:
    saved(folder)
    rewrite(
        folder, lambda found: {**found, "lm_head.weight": found["transformer.wte.weight"].clone()}
    )


def only_the_head(folder: Path) -> None:
    saved(folder)
    rewrite(folder, lambda found: {"lm_head.weight": found.pop("transformer.wte.weight"), **found})


def old_shards_beside_a_newer_file(folder: Path) -> None:
    saved(folder, seed=1, max_shard_size="40KB")
    old = {path: path.read_bytes() for path in folder.glob("model-*")}
    index = (folder / "model.safetensors.index.json").read_bytes()
    saved(folder, seed=2)
    for path, data in old.items():
        path.write_bytes(data)
    (folder / "model.safetensors.index.json").write_bytes(index)


def one_file_beside_an_old_index(folder: Path) -> None:
    old_shards_beside_a_newer_file(folder)
    for path in folder.glob("model-*"):
        path.unlink()


def no_word_of_tying(folder: Path) -> None:
    saved(folder)
    configure(folder, tie_word_embeddings=None)


def sizes_by_their_common_names(folder: Path) -> None:
    saved(folder)
    configure(folder, n_embd=None, n_layer=None, n_head=None, n_positions=None, hidden_size=32)
    configure(
        folder, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=48, n_inner=128
    )


def half_floats(folder: Path) -> None:
    saved(folder)
    rewrite(folder, lambda found: {name: tensor.half() for name, tensor in found.items()})


def brain_floats(folder: Path) -> None:
    saved(folder)
    rewrite(folder, lambda found: {name: tensor.bfloat16() for name, tensor in found.items()})


@pytest.mark.parametrize(
    "make",
    [
        as_is,
        another_head_though_tied,
        another_head_though_tied_in_shards,
        another_head_untied,
        the_same_head_twice,
        only_the_head,
        old_shards_beside_a_newer_file,
        one_file_beside_an_old_index,
        no_word_of_tying,
        sizes_by_their_common_names,
        half_floats,
        brain_floats,
    ],
    ids=lambda make: make.__name__,
)
def test_the_weights_are_those_that_transformers_takes(
    make: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    make(tmp_path)
    config = load("gpt2", {"init_from": str(tmp_path)}).architecture()
    ours = huggingface.load_model(find_pretrained(str(tmp_path)), config, torch.device("cpu"))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    x = ids(300)
    with torch.no_grad():
        assert (ours.logits(x) - theirs(x).logits).abs().max() <= 1e-5


def test_which_head_is_meant_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    another_head_though_tied(tmp_path)
    assert architecture(str(tmp_path))["tied_head"] is False
    assert (
        "ties the head to the token table, but lm_head.weight is another one"
        in capsys.readouterr().err
    )
    the_same_head_twice(tmp_path)
    capsys.readouterr()
    assert architecture(str(tmp_path))["tied_head"] is True
    assert capsys.readouterr().err == ""


def test_weights_that_came_after_the_model_was_laid_out_are_not_tied_in_silence(
    tmp_path: Path,
) -> None:
    another_head_though_tied(tmp_path)
    tied = (
        load("gpt2", {"init_from": str(tmp_path)})
        .architecture()
        .model_copy(update={"tied_head": True})
    )
    with pytest.raises(BadDataError, match="is not the token table"):
        huggingface.load_model(find_pretrained(str(tmp_path)), tied, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_inner": 64}, "n_inner is 64"),
        ({"activation_function": "relu"}, "activation_function relu"),
        ({"scale_attn_weights": False}, "scale_attn_weights is .*; only True"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is .*; only 1e-05"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_setting_that_changes_the_logits_is_refused(
    change: dict[str, Any],
    reason: str,
    tmp_path: Path,
) -> None:
    saved(tmp_path)
    configure(tmp_path, **change)
    with pytest.raises(BadDataError, match=reason):
        architecture(str(tmp_path))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(MissingInputError, match="safetensors files only"):
        find_pretrained(str(tmp_path))
