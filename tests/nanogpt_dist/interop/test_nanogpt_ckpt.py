"""nanoGPT's ckpt.pt and meta.pkl, in and out, made here in its format; tests/peers/nanogpt.py has
its own code.
"""

import contextlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist import checkpoint
from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.errors import BadDataError, CannotCreateError, ConfigError, MissingInputError
from nanogpt_dist.interop import nanogpt_ckpt
from nanogpt_dist.interop.import_run import read_moments, read_weights, write_run
from nanogpt_dist.storage.run_checkpoints import find_checkpoint
from nanogpt_dist.tokenizer import Tokenizer, byte
from nanogpt_dist.tokenizer.loading import open_tokenizer
from nanogpt_dist.tokenizer.meta_pkl import read_plain_pickle, to_plain_pickle
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.step import TrainStep
from tests.nanogpt_dist.interop.models import ids, make_run, weights
from tests.nanogpt_dist.small import ONE

CHARS = [chr(c) for c in range(32, 32 + 61)]
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 61}
ARGUMENTS = {**SIZES, "bias": False, "dropout": 0.0}
RECIPE = {
    **{
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "dataset": "shakespeare_char",
        "learning_rate": 1e-3,
    },
    **{
        "max_iters": 100,
        "lr_decay_iters": 100,
        "min_lr": 1e-4,
        "warmup_iters": 10,
        "device": "cuda",
        "compile": True,
    },
    **{
        "out_dir": "out-shakespeare-char",
        "eval_only": False,
        "init_from": "scratch",
        "backend": "nccl",
    },
}


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def make_meta(path: Path) -> Path:
    names = dict(enumerate(CHARS))
    path.write_bytes(
        pickle.dumps({"vocab_size": 61, "itos": names, "stoi": {c: i for i, c in names.items()}})
    )
    return path


def config_of(**more: Any) -> TrainConfig:
    return resolve(
        {**ARGUMENTS, **{k: v for k, v in RECIPE.items() if k in TrainConfig.model_fields}, **more}
    )


def trained(updates: int = 3) -> tuple[TrainStep, TrainConfig]:
    """A model after a few updates, with the plain loop of nanoGPT's train.py."""
    config = config_of(device="cpu", dtype="float32", init_from=None, compile=False)
    train_step = TrainStep(
        config, ONE, plan_layout(config, ONE, training_bytes(config)), torch.float32
    )
    for step in range(updates):
        train_step.step(step, batches()[step])
    return train_step, config


def batches() -> list[list[Any]]:
    rows = torch.randint(61, (24, 8, 13), generator=torch.Generator().manual_seed(0)).numpy()
    return [[(row[:, :-1], row[:, 1:])] for row in rows]


def make_ckpt(path: Path, prefix: str = "", **changes: Any) -> Path:
    """As train.py writes it: the state_dict with both names of the tied table, AdamW's own
    state_dict.
    """
    train_step, _ = trained()
    model = {f"{prefix}{name}": tensor for name, tensor in train_step.model.state_dict().items()}
    # of old versions
    model |= {f"{prefix}transformer.h.{i}.attn.bias": torch.ones(1, 1, 12, 12) for i in range(2)}
    content = {
        "model": model,
        "optimizer": train_step.optimizer.state_dict(),
        "model_args": ARGUMENTS,
        "iter_num": 3,
        "best_val_loss": torch.tensor(3.5),
        "config": RECIPE,
        **changes,
    }
    path.parent.mkdir(exist_ok=True, parents=True)
    torch.save(content, path)
    make_meta(path.parent / "meta.pkl")
    return path


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_settings_and_step_come_over(prefix: str, tmp_path: Path) -> None:
    foreign = nanogpt_ckpt.read(make_ckpt(tmp_path / "ckpt.pt", prefix))
    write_run(foreign, tmp_path / "run")
    found = find_checkpoint(str(tmp_path / "run"))
    model, config = checkpoint.load_model(found, torch.device("cpu"))
    train_step, _ = trained()
    x = ids(61, length=12)
    assert torch.equal(model.logits(x), train_step.model.eval().logits(x))
    assert found.name == "step-00000003"
    assert (config.learning_rate, config.global_batch_size, config.dataset) == (
        1e-3,
        8,
        "data/shakespeare_char",
    )
    assert checkpoint.load_checkpoint_tokenizer(found).tokens == [c.encode() for c in CHARS]


def test_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    write_run(nanogpt_ckpt.read(make_ckpt(tmp_path / "ckpt.pt")), tmp_path / "run")
    config = config_of(device="cpu", dtype="float32", init_from=None, compile=False)
    ours = TrainStep(
        config, ONE, plan_layout(config, ONE, training_bytes(config)), torch.float32, init=False
    )
    ours.load(find_checkpoint(str(tmp_path / "run")), {})
    theirs, _ = trained()
    for step in range(3, 23):
        assert ours.step(step, batches()[step]).loss == theirs.step(step, batches()[step]).loss


def test_and_back(tmp_path: Path) -> None:
    original = make_ckpt(tmp_path / "ckpt.pt")
    write_run(nanogpt_ckpt.read(original), tmp_path / "run")
    found = find_checkpoint(str(tmp_path / "run"))
    config, tensors, state = read_weights(found)
    nanogpt_ckpt.write(
        tmp_path / "back" / "ckpt.pt",
        config,
        tensors,
        read_moments(found),
        state,
        nanogpt_ckpt.read(original).tokenizer,
    )
    before, after = (
        torch.load(p, weights_only=True) for p in (original, tmp_path / "back" / "ckpt.pt")
    )
    for name, tensor in after["model"].items():
        assert torch.equal(tensor, before["model"][name]), name
    assert after["model_args"] == before["model_args"]
    assert after["iter_num"] == 3
    for number, state in before["optimizer"]["state"].items():
        assert all(
            torch.equal(state[key], after["optimizer"]["state"][number][key]) for key in state
        ), number
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained()[0].model.parameters() if (p.ndim >= 2) == wide]}
            for wide in (True, False)
        ]
    )
    optimizer.load_state_dict(after["optimizer"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    with pytest.raises(CannotCreateError):
        nanogpt_ckpt.write(original, config, tensors, {}, state, tokenizers.gpt2())


def test_what_nanogpt_has_not_is_not_exported(tmp_path: Path) -> None:
    new = {"logit_softcap": 15.0, "smear": True, "sliding_window": 4, "norm_weights": False}
    for options, named in (
        ({"qk_norm": True, "n_kv_head": 1}, "no qk_norm, n_kv_head"),
        (new, "no norm_weights, logit_softcap, smear, sliding_window"),
    ):
        config = config_of(**options)
        with pytest.raises(ConfigError, match=named):
            nanogpt_ckpt.write(
                tmp_path / "ckpt.pt",
                config,
                weights(config),
                {},
                checkpoint.TrainState(),
                tokenizers.gpt2(),
            )


def test_a_pickle_bomb_executes_nothing(tmp_path: Path) -> None:
    fuse = tmp_path / "exploded"
    for i, content in enumerate(
        [Bomb(fuse), {"model": Bomb(fuse)}, {"model": {}, "model_args": [Bomb(fuse)]}]
    ):
        torch.save(content, tmp_path / f"{i}.pt")
        (tmp_path / f"{i}.pkl").write_bytes(pickle.dumps(content))
        # also a bare pickle under the name of a checkpoint
        for path in (tmp_path / f"{i}.pt", tmp_path / f"{i}.pkl"):
            with pytest.raises(BadDataError, match=r"nothing was executed|is no checkpoint"):
                nanogpt_ckpt.read(path)
        for protocol in range(6):
            (tmp_path / "meta.pkl").write_bytes(pickle.dumps(content, protocol))
            with pytest.raises(BadDataError, match="it was not executed"):
                open_tokenizer(str(tmp_path / "meta.pkl"))
    assert not fuse.exists()
    pickle.loads((tmp_path / "0.pkl").read_bytes())
    assert fuse.exists(), "the bomb was none"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=20,
)


@given(value=plain, protocol=st.integers(0, 5))
def test_plain_values_are_read_as_pickle_reads_them(
    value: Any,
    protocol: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(path) == pickle.loads(path.read_bytes())


keys = st.text() | st.integers(-(2**31), 2**31 - 1)


@given(value=st.dictionaries(keys, keys | st.dictionaries(keys, keys)))
def test_what_is_written_as_a_pickle_is_one(value: dict[Any, Any]) -> None:
    assert pickle.loads(to_plain_pickle(value)) == value


@given(data=st.binary(max_size=60))
def test_any_bytes_end_in_our_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pkl"
    path.write_bytes(data)
    with contextlib.suppress(BadDataError):
        read_plain_pickle(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model": {}}, "none of nanoGPT's"),
        ([1, 2], "none of nanoGPT's"),
        ({"model": {"a": 1}, "model_args": ARGUMENTS}, "is no tensor"),
        ({"model": {}, "model_args": {**ARGUMENTS, "n_head": 3}}, "n_embd 16 is not a multiple"),
    ],
)
def test_another_file_is_told(content: Any, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(BadDataError, match=reason):
        nanogpt_ckpt.read(tmp_path / "ckpt.pt")
    with pytest.raises(MissingInputError):
        nanogpt_ckpt.read(tmp_path / "none.pt")


def test_cut_off_and_contradictory_files(tmp_path: Path) -> None:
    path = make_ckpt(tmp_path / "ckpt.pt")
    data = path.read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:length])
        with pytest.raises(BadDataError, match="no checkpoint of torch's"):
            nanogpt_ckpt.read(path)
    smaller = {**ARGUMENTS, "n_layer": 1}
    with pytest.raises(BadDataError, match=r"other parameters than its model; add --no-optimizer"):
        nanogpt_ckpt.read(make_ckpt(tmp_path / "ckpt.pt", model_args=smaller))
    with pytest.raises(BadDataError, match=r"transformer\.h\.1\.\S+ is .*, its sizes ask for none"):
        write_run(nanogpt_ckpt.read(tmp_path / "ckpt.pt", with_optimizer=False), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_would_grow_as_it_is_read_is_refused(tmp_path: Path) -> None:
    """A small file is no large model."""
    good = make_ckpt(tmp_path / "good" / "ckpt.pt")
    content = torch.load(good, weights_only=True)

    def refused(name: str, words: str, **changes: Any) -> None:
        path = tmp_path / name / "ckpt.pt"
        path.parent.mkdir()
        torch.save({**content, **changes}, path)
        with pytest.raises(BadDataError, match=words):
            nanogpt_ckpt.read(path, byte())

    deep = {**ARGUMENTS, "n_layer": 9999}
    refused("deep", "9999 layers, and .* tensors; it is damaged", model_args=deep)
    table = torch.zeros(1000, dtype=torch.float16)
    views = {f"{at}": table[at:] for at in range(500)}
    refused("views", "share bytes", model={**content["model"], **views})
    state = content["optimizer"]["state"]
    same = {**state, 0: {**state[0], "exp_avg": table, "exp_avg_sq": table[1:]}}
    refused("moments", "share bytes", optimizer={**content["optimizer"], "state": same})

    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for each in old.infolist():
            new.writestr(each.filename, old.read(each))
    with pytest.raises(BadDataError, match="is compressed, as torch writes none"):
        nanogpt_ckpt.read(packed)


def test_without_a_meta_file_the_tokenizer_is_asked_for(tmp_path: Path) -> None:
    path = make_ckpt(tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").rename(tmp_path / "elsewhere.pkl")
    with pytest.raises(MissingInputError, match=r"type --tokenizer PATH/meta\.pkl"):
        nanogpt_ckpt.read(path)
    assert (
        nanogpt_ckpt.read(path, open_tokenizer(str(tmp_path / "elsewhere.pkl"))).tokenizer.n_vocab
        == 61
    )


@pytest.mark.thorough
def test_its_files_of_ids_are_trained_on_as_they_are(tmp_path: Path, nanogpt: Any) -> None:
    """The whole way by the command: ckpt.pt and data of nanoGPT's in its own folders, resumed by
    ours.
    """
    path = make_ckpt(tmp_path / "out" / "ckpt.pt")
    data = tmp_path / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    rows = (
        torch.randint(61, (4000,), generator=torch.Generator().manual_seed(0)).numpy().astype("<u2")
    )
    rows[:3600].tofile(data / "train.bin")
    rows[3600:].tofile(data / "val.bin")
    (path.parent / "meta.pkl").rename(data / "meta.pkl")
    refused = nanogpt(
        "train", "shakespeare-char-cpu", "--dataset", "data/shakespeare_char", code=65
    )
    assert "holds files of ids without a manifest" in refused.stderr
    nanogpt("import-shards", data, "--tokenizer", data / "meta.pkl")
    said = nanogpt("import", "nanogpt", path, "--out-dir", "run").stdout
    assert "with AdamW's state, tokenizer char" in said
    nanogpt("export", "nanogpt", "run", "back/ckpt.pt")
    assert pickle.loads((tmp_path / "back" / "meta.pkl").read_bytes()) == pickle.loads(
        (data / "meta.pkl").read_bytes()
    )
    quick = [
        "--max-iters",
        "6",
        "--eval-iters",
        "2",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--no-compile",
    ]
    done = nanogpt("train", "run", "--dataset", data, *quick)
    assert "going on from step-00000003" in done.stderr
    nanogpt("import", "nanogpt", path, "--out-dir", "run", code=73)


def test_a_run_with_other_ids_is_not_gone_on_with(
    corpus: Path,
    tmp_path: Path,
    nanogpt: Any,
) -> None:
    run = make_run(
        tmp_path / "run", open_tokenizer(str(make_meta(tmp_path / "meta.pkl"))), vocab_size=320
    )
    refused = nanogpt("train", run, "--dataset", corpus, "--device", "cpu", code=65)
    assert "has other ids than" in refused.stderr


def exported(out: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    run = find_checkpoint(str(make_run(out.parent / f"run of {out.name}", tokenizer, **settings)))
    nanogpt_ckpt.write(out, *read_weights(run)[:2], {}, read_weights(run)[2], tokenizer)
    return out


def test_an_export_leaves_the_characters_of_another_model(tmp_path: Path) -> None:
    first = exported(tmp_path / "first.pt", tokenizers.char(["some text"]))
    assert exported(tmp_path / "again $(ü).pt", tokenizers.char(["some text"])).is_file()
    with pytest.raises(
        CannotCreateError, match=r"meta\.pkl is of another model; give a file in another folder"
    ):
        exported(tmp_path / "second.pt", tokenizers.char(["ACGT"]))
    assert not (tmp_path / "second.pt").exists()
    assert (
        nanogpt_ckpt.read(first).tokenizer.encode("text").tolist()
        == tokenizers.char(["some text"]).encode("text").tolist()
    )


def test_the_characters_of_another_model_are_not_taken(tmp_path: Path) -> None:
    """By our own exports, which say what they were trained with, and by nanoGPT's, whose rows are
    the characters.
    """
    of_words = exported(tmp_path / "words.pt", tokenizers.gpt2())
    of_bases = exported(tmp_path / "bases" / "ckpt.pt", tokenizers.char(["ACGT"]))
    assert nanogpt_ckpt.read(of_bases).tokenizer.n_vocab == 4  # of 64 rows
    make_meta(tmp_path / "meta.pkl")
    assert nanogpt_ckpt.read(of_words).tokenizer.name == "gpt2"
    make_meta(of_bases.with_name("meta.pkl"))
    for named in (None, open_tokenizer(str(tmp_path / "meta.pkl"))):
        with pytest.raises(
            BadDataError, match=r"not of ckpt\.pt, with 64 ids: type|with another tokenizer"
        ):
            nanogpt_ckpt.read(of_bases, named)
    original = make_ckpt(tmp_path / "theirs" / "ckpt.pt")
    content = torch.load(original, weights_only=True)
    torch.save({**content, "model_args": {**ARGUMENTS, "vocab_size": 50304}}, original)
    assert nanogpt_ckpt.read(original, with_optimizer=False).tokenizer.name == "gpt2"
    torch.save({**content, "model_args": {**ARGUMENTS, "vocab_size": 65}}, original)
    with pytest.raises(
        BadDataError, match=r"is not of ckpt\.pt, with 65 ids: type --tokenizer PATH/meta\.pkl"
    ):
        nanogpt_ckpt.read(original, with_optimizer=False)


def test_another_vocabulary_of_as_many_rows_is_not_called_gpt2s(tmp_path: Path) -> None:
    path = exported(tmp_path / "ckpt.pt", tokenizers.byte(), vocab_size=50304)
    with pytest.raises(MissingInputError, match=r"type --tokenizer a tokenizer\.json"):
        nanogpt_ckpt.read(path)
    assert nanogpt_ckpt.read(path, tokenizers.byte()).tokenizer.name == "byte"


def test_an_export_goes_where_a_link_leads(tmp_path: Path) -> None:
    (link := tmp_path / "ckpt.pt").symlink_to("real.pt")
    exported(link, tokenizers.gpt2())
    assert link.is_symlink()
    assert (tmp_path / "real.pt").stat().st_size > 0
