"""What a model card says of where its weights come from, and what it leaves to others to say."""

from pathlib import Path

import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.checkpoint import load_checkpoint_tokenizer
from nanogpt_dist.config import resolve
from nanogpt_dist.data import DataFolder
from nanogpt_dist.interop import huggingface, import_run
from nanogpt_dist.interop.import_run import ImportedModel, write_run
from nanogpt_dist.interop.init_from import Pretrained, find_pretrained
from nanogpt_dist.interop.model_card import model_card
from nanogpt_dist.storage.run_checkpoints import find_checkpoint
from tests.nanogpt_dist.interop.models import make_run, weights
from tests.nanogpt_dist.small import go, tiny


def card(run: Path) -> str:
    found = find_checkpoint(str(run))
    config, _, state = import_run.read_weights(found)
    return model_card(
        "name", config, state, load_checkpoint_tokenizer(found), 1, *import_run.origin_of(found)
    )


def exported(run: Path, out: Path) -> Path:
    found = find_checkpoint(str(run))
    config, tensors, state = import_run.read_weights(found)
    huggingface.export(
        out, config, tensors, load_checkpoint_tokenizer(found), card(run), state.step
    )
    return out


def test_a_run_of_ours_is_told_as_pretrained(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path / "run", max_iters=1))
    told = card(tmp_path / "run")
    assert "pretrained with nanogpt-dist" in told
    assert f"| data | {corpus} |" in told
    assert "base_model" not in told


def test_imported_weights_are_not_called_ours(tmp_path: Path) -> None:
    folder = exported(make_run(tmp_path / "run", tokenizers.byte()), tmp_path / "their model")
    assert "pretrained with" not in (folder / "README.md").read_text()
    import_run.write_run(
        import_run.read_hugging_face(find_pretrained(str(folder))), tmp_path / "back"
    )
    told = card(tmp_path / "back")
    assert "The weights of `their model` (Hugging Face), as they came" in told
    for claim in (
        "pretrained with",
        "openwebtext",
        "learning rate",
        "weight decay",
        "| data |",
        "base_model",
        str(tmp_path),
    ):
        assert claim not in told


def test_the_base_model_of_the_hub_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tokenizers.byte())
    for name, base in {"gpt2": "openai-community/gpt2", "owner/a-model": "owner/a-model"}.items():
        origin = Pretrained(name, tmp_path, ours=False).origin
        found = find_checkpoint(str(run))
        config, _, state = import_run.read_weights(found)
        for as_imported in (True, False):
            told = model_card(
                "name", config, state, load_checkpoint_tokenizer(found), 1, origin, as_imported
            )
            assert f"\nbase_model: {base}\n" in told.split("---")[1]
            assert "pretrained with" not in told


def test_a_folder_is_never_taken_for_a_repository(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert (
        Pretrained("owner/model", Path("owner/model"), ours=False).origin
        == "Hugging Face: ./owner/model"
    )


def test_training_further_keeps_the_name_of_the_base(corpus: Path, tmp_path: Path) -> None:
    """Also after the run was gone on with, and in a run that begins from that one."""
    tokenizer = DataFolder.open(corpus).tokenizer
    settings = tiny(corpus, tmp_path / "run").model_dump() | {
        "vocab_size": -(-tokenizer.n_vocab // 64) * 64
    }
    config = resolve({**settings, "max_iters": 1, "eval_interval": 1})
    write_run(
        ImportedModel(config, weights(config), tokenizer, "Hugging Face: owner/model"),
        tmp_path / "run",
    )
    for updates in (1, 2):
        go(config.model_copy(update={"max_iters": updates}))
        told = card(tmp_path / "run")
        assert (
            "began with the weights of `owner/model` (Hugging Face) and was trained further" in told
        )
        assert "\nbase_model: owner/model\n" in told
        assert "| learning rate |" in told
    go(
        config.model_copy(
            update={"out_dir": str(tmp_path / "next"), "init_from": str(tmp_path / "run")}
        )
    )
    assert "\nbase_model: owner/model\n" in card(tmp_path / "next")
