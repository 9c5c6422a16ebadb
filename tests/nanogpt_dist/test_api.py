"""The front door: a run, its exports and its data through `import nanogpt_dist as ng`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import nanogpt_dist as ng
from cli.main import app
from nanogpt_dist.checkpoint import load_model
from nanogpt_dist.config import resolve
from nanogpt_dist.data.batches import Batches, Order
from nanogpt_dist.errors import (
    BadDataError,
    ConfigError,
    MissingInputError,
    NanogptError,
    UsageError,
)
from nanogpt_dist.storage.run_checkpoints import find_checkpoint
from tests.conftest import CLONE, build, write_jsonl

SETTINGS = {
    **{"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 4},
    **{"gradient_accumulation_steps": 2, "learning_rate": 1e-2, "min_lr": 1e-3},
    **{"warmup_iters": 1, "eval_iters": 2, "device": "cpu", "dtype": "float32"},
    **{"max_iters": 3, "tensorboard": False},
}


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, trained through the front door."""
    out = tmp_path_factory.mktemp("api") / "run"
    result = ng.train("gpt2-124m", dataset=corpus, out_dir=out, vocab_size=257, **SETTINGS)
    assert (result.step, result.verdict) == (3, "done")
    assert Path(result.checkpoint) == out / "checkpoints" / "step-00000003"
    return out


def nanogpt(*words: object) -> str:
    """What `nanogpt WORDS` prints."""
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def model(run: Path) -> ng.Model:
    return ng.load(run, device="cpu")


def test_the_package_offers_its_front_door_and_imports_nothing() -> None:
    code = (
        "import sys, nanogpt_dist as ng; assert set(ng.__all__) <= set(dir(ng));"
        "assert 'nanogpt_dist.api' not in sys.modules; assert 'numpy' not in sys.modules;"
        "ng.load, ng.train, ng.open_dataset, ng.prepare; print('torch' in sys.modules)"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=CLONE, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        ng.lode  # type: ignore[attr-defined]  # noqa: B018


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert Path(ng.__file__).with_name("py.typed").is_file()


def test_training_goes_on_where_the_run_is(run: Path, corpus: Path, tmp_path: Path) -> None:
    branch = tmp_path / "branch"
    checkpoint = run / "checkpoints" / "step-00000003"
    first = ng.train(checkpoint, out_dir=branch, max_iters=4)
    assert (first.step, Path(first.checkpoint).parent.parent) == (4, branch)
    assert ng.train(branch, max_iters=5).step == 5
    config = resolve({**SETTINGS, "dataset": str(corpus), "out_dir": str(tmp_path / "own")})
    assert ng.train(config, max_iters=1).step == 1


def test_logits_are_those_of_the_model(run: Path, model: ng.Model) -> None:
    gpt, config = load_model(find_checkpoint(str(run)), torch.device("cpu"))
    ids = torch.randint(0, 257, (3, 20), generator=torch.Generator().manual_seed(1))
    wanted = gpt.logits(ids)
    assert torch.equal(model.logits(ids), wanted)
    assert torch.equal(model.logits(ids.tolist()), wanted)
    torch.testing.assert_close(model.logits(ids[1].tolist()), wanted[1])
    assert model.logits(ids[1]).shape == (20, 257)
    assert model.config == config
    assert model.checkpoint == find_checkpoint(str(run))
    assert model.tokenizer.decode(model.tokenizer.encode("def ")) == "def "


def test_text_is_what_the_command_samples(run: Path, model: ng.Model) -> None:
    how = ["--max-new-tokens", 12, "--seed", 5, "--device", "cpu", "--json"]
    typed = ["--prompt", "def ", "--prompt", "import ", *how]
    samples = json.loads(nanogpt("sample", run, *typed))["samples"]
    prompts = [sample["prompt"] for sample in samples]
    assert model.generate(prompts, max_new_tokens=12, seed=5) == [each["text"] for each in samples]
    text = model.generate("def ", max_new_tokens=12, seed=5)
    assert text == samples[0]["text"]
    assert "".join(model.stream("def ", max_new_tokens=12, seed=5)) == text
    assert model.samples(["def "], max_new_tokens=12, seed=5)[0].ids == samples[0]["ids"]
    [unprompted] = json.loads(nanogpt("sample", run, *how))["samples"]
    assert model.generate(max_new_tokens=12, seed=5) == unprompted["text"]
    greedy = {"max_new_tokens": 12, "temperature": 0.0}
    assert model.generate("def ", **greedy, seed=1) == model.generate("def ", **greedy, seed=2)
    stop = text[1]
    assert stop not in model.generate("def ", max_new_tokens=12, seed=5, stop=[stop])


def test_loss_is_what_the_command_finds(
    run: Path,
    model: ng.Model,
    tmp_path: Path,
) -> None:
    text = "def read(path):\n    return open(path).read()  # naïve\n" * 3
    (tmp_path / "text.py").write_text(text, encoding="utf-8")
    typed = ["--text", tmp_path / "text.py", "--device", "cpu", "--json"]
    [found] = json.loads(nanogpt("eval", run, *typed))["results"].values()
    loss = model.loss(text)
    assert vars(loss) == found
    assert loss.bytes == len(text.encode())


def test_an_exported_folder_is_the_same_model(
    run: Path,
    model: ng.Model,
    tmp_path: Path,
) -> None:
    nanogpt("export", "hf", run, tmp_path / "exported")
    back = ng.load(tmp_path / "exported", device="cpu")
    assert back.checkpoint is None
    ids = back.tokenizer.encode("import os\n").tolist()
    torch.testing.assert_close(back.logits(ids), model.logits(ids))
    how = {"max_new_tokens": 12, "temperature": 0.0}
    assert back.generate("import ", **how) == model.generate("import ", **how)
    with pytest.raises(UsageError, match="best chooses among a run's checkpoints"):
        ng.load(tmp_path / "exported", best=True)


def test_a_dataset_gives_its_documents(tmp_path: Path) -> None:
    texts = [f"document {number} — naïve\n" * (number % 3 + 1) for number in range(40)]
    source = write_jsonl(tmp_path / "texts.jsonl", texts)
    build("text", tmp_path / "data", [source], tokenizer="byte", workers=1, val_fraction=0.2)
    data = ng.open_dataset(tmp_path / "data")
    assert sorted([*data.train.texts(), *data.val.texts()]) == sorted(texts)
    assert len(data.train) + len(data.val) == 40
    ids = next(iter(data.train))
    assert data.tokenizer.decode(ids) == data.train.text(0)
    assert data.train.tokens == sum(len(ids) + 1 for ids in data.train)  # and an end of text
    assert data.split("val").read(0, 3).tolist() == data.val.documents.ids(0)[:3].tolist()
    with pytest.raises(UsageError, match="no document 99"):
        data.train.text(99)


def test_a_corpus_is_prepared_as_the_command_does_it(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", [f"text {number}" for number in range(40)])
    typed = ["--source", source, "--tokenizer", "byte", "--val-fraction", 0.2, "--workers", 1]
    nanogpt("prepare", "text", *typed, "--out", tmp_path / "typed")
    options = {"source": source, "tokenizer": "byte", "val_fraction": 0.2}
    data = ng.prepare("text", **options, out=tmp_path / "called")
    assert data.path == tmp_path / "called"
    assert data.dataset_id == ng.open_dataset(tmp_path / "typed").dataset_id
    assert ng.prepare("text", **options, out=data.path).dataset_id == data.dataset_id
    other = write_jsonl(tmp_path / "other.jsonl", [f"other {number}" for number in range(40)])
    mix = f"{source}=0.5,{other}=0.5"
    mixed = ng.prepare(mix=mix, tokenizer="byte", val_fraction=0.2, out=tmp_path / "mixed")
    assert [record.weight for record in mixed.manifest.sources] == [0.5, 0.5]


def test_windows_are_those_that_training_reads(corpus: Path) -> None:
    data = ng.open_dataset(corpus)
    split = data.folder.split("train")
    order = Order(7, data.dataset_id, 16, split.tokens)
    for step in (0, 3):
        x, y = data.windows(step, batch_size=8, block_size=16, seed=7)
        read = [list(Batches(split, order, 8, 2, rank, 2).of(step)) for rank in range(2)]
        pairs = [pair for batches in read for pair in batches]
        assert np.array_equal(x, np.concatenate([pair[0] for pair in pairs]))
        assert np.array_equal(y, np.concatenate([pair[1] for pair in pairs]))
        starts = data.window_starts(step, batch_size=8, block_size=16, seed=7)
        assert x[0].tolist() == data.train.read(int(starts[0]), 16).tolist()
    assert np.array_equal(x[:, 1:], y[:, :-1])
    ramps = {"batch_ramp": "0:4,3:6", "context_ramp": "0:8,2:16"}
    shapes = [
        data.windows(step, batch_size=6, block_size=16, **ramps)[0].shape for step in range(4)
    ]
    assert shapes == [(4, 8), (4, 8), (4, 16), (6, 16)]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda model: ng.load("./nowhere"), MissingInputError, "no such folder"),
        (lambda model: ng.load("a/b/c"), MissingInputError, "no such folder"),
        (lambda model: ng.open_dataset("nowhere"), MissingInputError, "nowhere does not exist"),
        (lambda model: ng.prepare(), UsageError, "which corpus"),
        (lambda model: ng.prepare("shakespear"), UsageError, "did you mean shakespeare"),
        (lambda model: ng.prepare("text", tokeniser="byte"), UsageError, "tokeniser"),
        (lambda model: ng.prepare("text", mix="a=1"), UsageError, "leave corpus"),
        (lambda model: ng.prepare("text", source="no"), MissingInputError, "no"),
        (lambda model: ng.train("gpt3"), ConfigError, "no preset gpt3"),
        (lambda model: ng.train("quickstart", n_layers=3), ConfigError, "did you mean n_layer"),
        (lambda model: ng.train("quickstart", n_layer="3"), ConfigError, "n_layer = '3'"),
        (lambda model: ng.train("quickstart", dataset="x"), MissingInputError, "x does not exist"),
        (lambda model: ng.train(resolve({})), ConfigError, "out_dir"),
        (lambda model: model.generate("a", temperature=-1), UsageError, "temperature = -1"),
        (lambda model: model.generate("a", top_p=2), UsageError, "top_p = 2"),
        (lambda model: model.generate("a", max_tokens=2), UsageError, "max_tokens"),
        (lambda model: model.loss(""), BadDataError, "too short"),
        (lambda model: model.logits([]), UsageError, "1 to 32 tokens"),
        (lambda model: model.logits([0] * 33), UsageError, "1 to 32 tokens"),
        (lambda model: model.logits([-1]), UsageError, "-1 is no token id"),
        (lambda model: model.logits([257]), BadDataError, "id 257"),
    ],
)
def test_a_mistake_is_an_error_of_ours(
    call: object,
    error: type[NanogptError],
    words: str,
    model: ng.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        call(model)  # type: ignore[operator]
    assert not list(tmp_path.iterdir())
