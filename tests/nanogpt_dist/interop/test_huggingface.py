"""Exchange with Hugging Face: transformers and its tokenizers are the oracle, a hub on this machine
the hub.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.eval import _print as print_figures
from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.checkpoint import load_model
from nanogpt_dist.config import resolve
from nanogpt_dist.data import DataFolder
from nanogpt_dist.errors import BadDataError, CannotCreateError, ConfigError, MissingInputError
from nanogpt_dist.evaluation import report
from nanogpt_dist.evaluation.loss import Evaluator, spread
from nanogpt_dist.interop import hf_tokenizer, huggingface, import_run
from nanogpt_dist.interop.init_from import find_pretrained
from nanogpt_dist.interop.model_card import model_card
from nanogpt_dist.load_config import load
from nanogpt_dist.storage.run_checkpoints import find_checkpoint
from nanogpt_dist.tokenizer import Tokenizer
from tests.conftest import CLONE, Run, command
from tests.nanogpt_dist.interop.models import SIZES, TEXTS, bpe, ids, make_run, weights
from tests.nanogpt_dist.small import ONE, go
from tests.prepare.hub_server import Fault, hub

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
KINDS = {
    "gpt2": tokenizers.gpt2,
    "bpe": bpe,
    "byte": tokenizers.byte,
    "char": lambda: tokenizers.char(TEXTS),
}


def export(run: Path, out: Path) -> Path:
    found = find_checkpoint(str(run))
    config, tensors, state = import_run.read_weights(found)
    tokenizer = tokenizers.load(found / "tokenizer.json")
    huggingface.export(
        out, config, tensors, tokenizer, model_card("name", config, state, tokenizer, 1), state.step
    )
    return out


def their_logits(folder: Path, x: torch.Tensor) -> torch.Tensor:
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(x).logits


def our_logits(run: Path, x: torch.Tensor) -> torch.Tensor:
    model, _ = load_model(find_checkpoint(str(run)), CPU)
    with torch.no_grad():
        return model.logits(x)


@pytest.mark.parametrize(
    "settings",
    [{}, {"bias": True}, {"bias": True, "gelu": "tanh"}, {"tied_head": False}],
    ids=["no biases", "biases", "as OpenAI's", "untied"],
)
def test_from_ours_to_theirs_and_back(settings: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", bpe(), **settings)
    folder = export(run, tmp_path / "hf")
    x = ids(300)
    ours = our_logits(run, x)[..., :300]
    assert (their_logits(folder, x) - ours).abs().max() <= 1e-5
    import_run.write_run(
        import_run.read_hugging_face(find_pretrained(str(folder))), tmp_path / "back"
    )
    assert (our_logits(tmp_path / "back", x) - ours).abs().max() <= 1e-5
    _, config = load_model(find_checkpoint(str(tmp_path / "back")), CPU)
    assert (config.bias, config.gelu) == (
        settings.get("bias", False),
        settings.get("gelu", "exact"),
    )


def test_a_run_and_its_export_have_one_loss(corpus: Path, tmp_path: Path) -> None:
    data = DataFolder.open(corpus)
    run = make_run(tmp_path / "run", data.tokenizer, vocab_size=512)  # of 257 ids
    folder = export(run, tmp_path / "hf")
    config = load("gpt2", {"init_from": str(folder)})
    both = (
        report.load_checkpoint(find_checkpoint(str(run)), CPU),
        report.load_pretrained(config, CPU),
    )
    settings = report.EvalSettings(ONE, batch_size=8)
    ours, exported = (report.split_loss(each, data, "val", settings)["val_loss"] for each in both)
    assert ours == pytest.approx(exported, rel=1e-6)
    x = ids(257)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()(x, labels=x).loss.item()
    assert both[0].model(x[:, :-1], x[:, 1:])[1].item() == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_from_theirs_to_ours_and_back(activation: str, tmp_path: Path) -> None:
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=300,
            n_positions=48,
            n_embd=32,
            n_layer=2,
            n_head=2,
            activation_function=activation,
            bos_token_id=299,
            eos_token_id=299,
        )
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    theirs.save_pretrained(tmp_path / "hf")
    hf_tokenizer.write(tmp_path / "hf", bpe(), 48)
    import_run.write_run(
        import_run.read_hugging_face(find_pretrained(str(tmp_path / "hf"))), tmp_path / "run"
    )
    x = ids(300)
    with torch.no_grad():
        wanted = theirs(x).logits
    assert (our_logits(tmp_path / "run", x) - wanted).abs().max() <= 1e-5
    assert (
        their_logits(export(tmp_path / "run", tmp_path / "again"), x) - wanted
    ).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_their_tokenizer_gives_our_ids(kind: str, tmp_path: Path) -> None:
    ours: Tokenizer = KINDS[kind]()
    hf_tokenizer.write(tmp_path, ours, 48)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        found = ours.encode(text).tolist()
        assert theirs.encode(text, add_special_tokens=False) == found, text
        assert theirs.decode(found) == text
    assert theirs.eos_token_id == ours.eot_id
    if kind in ("gpt2", "bpe"):
        assert hf_tokenizer.load_folder(tmp_path).fingerprint == ours.fingerprint
        (tmp_path / "tokenizer.json").unlink()  # as old repositories are
        assert hf_tokenizer.load_folder(tmp_path).fingerprint == ours.fingerprint


@pytest.mark.parametrize("kind", [pytest.param("gpt2", marks=pytest.mark.thorough), "bpe"])
def test_transformers_generates_the_greedy_ids_of_sample(
    kind: str,
    tmp_path: Path,
    nanogpt: Run,
) -> None:
    """From a table padded beyond the tokenizer: neither ever gives an id of the padding."""
    tokenizer = KINDS[kind]()
    run = make_run(tmp_path / "run", tokenizer, block_size=96)
    nanogpt("export", "hf", run, tmp_path / "hf")
    said = nanogpt(
        "sample",
        run,
        "--prompt",
        TEXTS[0],
        "--temperature",
        "0",
        "--max-new-tokens",
        "40",
        "--json",
    )
    ours = json.loads(said.stdout)["samples"][0]["ids"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    x = theirs(TEXTS[0], return_tensors="pt").input_ids
    found = model.generate(x, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.eot_id)[
        0, x.size(1) :
    ].tolist()
    eot = tokenizer.eot_id
    assert (found[: found.index(eot)] if eot in found else found) == ours
    assert len(ours) > 2


def test_openai_s_own_file(tmp_path: Path) -> None:
    """Its names have no `transformer.`, and the causal masks stand beside the weights."""
    from safetensors.torch import save_file

    config = resolve({**SIZES, "vocab_size": 300, "bias": True, "gelu": "tanh"})
    tensors = huggingface.hf_state_dict(weights(config), config, 300)
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 48, 48) for i in range(2)}
    save_file(old, tmp_path / "model.safetensors")
    facts = {
        "model_type": "gpt2",
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "n_positions": 48,
        "vocab_size": 300,
    }
    (tmp_path / "config.json").write_text(json.dumps(facts))
    shorter = load("gpt2", {"init_from": str(tmp_path), "block_size": 20})
    model = huggingface.load_model(find_pretrained(str(tmp_path)), shorter.architecture(), CPU)
    assert model.transformer.wpe.weight.shape == (20, 32)
    x = ids(300)
    with torch.no_grad():
        assert (model.logits(x) - their_logits(tmp_path, x)).abs().max() <= 1e-5
        with pytest.raises(AssertionError):
            model.logits(ids(300, length=21))


def test_weights_in_several_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", bpe(), bias=True)
    folder = export(run, tmp_path / "hf")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    hf_tokenizer.write(tmp_path / "parts", bpe(), 48)
    import_run.write_run(
        import_run.read_hugging_face(find_pretrained(str(tmp_path / "parts"))), tmp_path / "back"
    )
    x = ids(300)
    assert (our_logits(tmp_path / "back", x) - our_logits(run, x)[..., :300]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"model_type": "llama"}, BadDataError, "model_type is 'llama'"),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            BadDataError,
            "scale_attn_by_inverse_layer_idx",
        ),
        ({"activation_function": "relu"}, BadDataError, "activation_function relu"),
        ({"n_inner": 100}, BadDataError, "n_inner is 100, not 128"),
        ({"n_layer": "two"}, BadDataError, "names no sizes"),
        ({"n_layer": 3}, BadDataError, r"has no h\.2"),
        ({"n_embd": 64}, BadDataError, "the model wants"),
        # what would take terabytes, and minutes
        ({"n_embd": 1 << 20}, BadDataError, "the model wants"),
        ({"n_layer": 50_000}, BadDataError, "50000 layers, and 28 tensors"),
    ],
)
def test_another_architecture_is_told(
    change: dict[str, Any],
    error: type,
    reason: str,
    tmp_path: Path,
) -> None:
    folder = export(make_run(tmp_path / "run", bpe(), bias=True), tmp_path / "hf")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(error, match=reason):
        import_run.read_hugging_face(find_pretrained(str(folder)))


def test_damage_is_told(tmp_path: Path) -> None:
    folder = export(make_run(tmp_path / "run", bpe()), tmp_path / "hf")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadDataError, match="cannot be read"):
        import_run.read_hugging_face(find_pretrained(str(folder)))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(MissingInputError, match="safetensors files only"):
        find_pretrained(str(folder))


def test_what_gpt2_cannot_be_is_not_exported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", bpe(), rotary=True, norm="rmsnorm")
    with pytest.raises(ConfigError, match="has no rotary, norm"):
        export(run, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(CannotCreateError):
        export(make_run(tmp_path / "other", bpe()), tmp_path / "there")


# ---- the hub, and --init-from


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's folder with OpenAI's gpt2, as small as it can be, and one that has only pickled
    weights.
    """
    root = tmp_path_factory.mktemp("hub")
    run = make_run(root / "run", bpe(), bias=True, gelu="tanh")
    for name in ("somebody/small", "somebody/pickled"):
        (root / "repos" / name).mkdir(parents=True)
    export(run, root / "repos" / "somebody" / "small" / "main")
    pickled = root / "repos" / "somebody" / "pickled" / "main"
    pickled.mkdir()
    (pickled / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    return root


def run_with(
    environment: dict[str, str],
    folder: Path,
    *arguments: object,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.thorough
def test_from_the_hub_then_offline_from_its_cache(repository: Path, tmp_path: Path) -> None:
    sample = (
        "sample",
        "--init-from",
        "somebody/small",
        "--temperature",
        "0",
        "--max-new-tokens",
        "8",
        "--json",
    )
    faults = [Fault("corrupt", "/lfs/*safetensors"), Fault("status", "*/resolve/*/tokenizer.json")]
    with hub(repository / "repos", faults) as server:
        environment = server.environment(tmp_path / "home")
        first = run_with(environment, tmp_path, *sample)
        assert first.returncode == 0, first.stderr
        assert server.asked("/lfs/*safetensors") == 2, "the corrupt file was fetched again"
        server.forget()
        again = run_with(environment, tmp_path, *sample)
        assert again.stdout == first.stdout
        assert not server.requests, "what is in the cache is not asked for"
        refused = run_with(environment, tmp_path, "sample", "--init-from", "somebody/pickled")
        assert "pickled weights are not read" in refused.stderr
        refused = run_with(environment, tmp_path, "sample", "--init-from", "somebody/else")
        assert "no model somebody/else on the hub" in refused.stderr
        assert refused.returncode == 66
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    assert run_with(offline, tmp_path, *sample).stdout == first.stdout
    missing = run_with(offline, tmp_path, "sample", "--init-from", "gpt2-xl")
    assert missing.returncode == 69
    assert missing.stderr.startswith(
        "nanogpt: error: gpt2-xl is neither in the hub's cache (HF_HOME) nor a folder here"
    )
    assert len(missing.stderr.splitlines()) == 1


def test_training_begins_from_foreign_weights(corpus: Path, tmp_path: Path) -> None:
    """From a folder of theirs and from a run of ours: the first loss is that of the weights, not of
    chance.
    """
    run = make_run(tmp_path / "source", tokenizers.byte(), bias=True, vocab_size=257)
    losses = []
    for source in (run, export(run, tmp_path / "hf")):
        settings = {
            "dataset": str(corpus),
            "out_dir": str(tmp_path / f"from-{source.name}"),
            "max_iters": 1,
        }
        quick = {
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "warmup_iters": 0,
            "eval_iters": 2,
            "device": "cpu",
        }
        same = {
            "learning_rate": 1e-9,
            "min_lr": 0.0,
            "dtype": "float32",
            "tensorboard": False,
            "block_size": 32,
        }
        config = load("gpt2-124m", {"init_from": str(source), **settings, **quick, **same})
        assert (config.n_layer, config.bias, config.vocab_size) == (2, True, 257)
        losses.append(go(config).val_loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    shutil.rmtree(tmp_path / "hf")  # a run that has begun goes on without its source
    again = load(
        "gpt2-124m",
        {"init_from": str(tmp_path / "hf"), **settings, **quick, **same, "max_iters": 2},
    )
    assert go(again).step == 2
    data = DataFolder.open(corpus)
    model, _ = load_model(find_checkpoint(str(run)), CPU)
    model.crop_block_size(32)
    tokens = data.split("val")
    judge = Evaluator(tokens, spread(tokens.tokens, 32, 8), data.tokenizer.byte_lengths(), ONE, 4)
    assert losses[0] == pytest.approx(judge(model).val_loss, abs=1e-4)


def test_a_hub_that_is_not_there_is_told_soon(tmp_path: Path) -> None:
    code = (
        "from nanogpt_dist.interop import init_from; init_from.HUB_BUDGET_S = 1.0; from cli.main "
        "import main; import sys; sys.argv = ['nanogpt', 'show', 'params', '--init-from', "
        "'somebody/model']; sys.exit(main())"
    )
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CLONE,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 69
    assert (
        "somebody/model is neither in the hub's cache (HF_HOME) nor a folder here: hub unavail"
        in done.stderr
    )


@pytest.mark.thorough
def test_the_ranks_of_fsdp_begin_from_foreign_weights(
    corpus: Path,
    tmp_path: Path,
    nanogpt: Run,
) -> None:
    run = make_run(tmp_path / "source", tokenizers.byte(), bias=True, vocab_size=257)
    export(run, tmp_path / "hf")
    flags = [
        "--init-from",
        tmp_path / "hf",
        "--dataset",
        corpus,
        "--batch-size",
        "4",
        "--max-iters",
        "2",
        "--json",
    ]
    flags += [
        "--gradient-accumulation-steps",
        "2",
        "--eval-iters",
        "2",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    alone = nanogpt("train", *flags, "--out-dir", "out/alone")
    ranks = nanogpt("train", *flags, "--out-dir", "out/ranks", "--strategy", "fsdp", ranks=2)
    losses = [json.loads(done.stdout)["val_loss"] for done in (alone, ranks)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_settings_that_contradict_the_weights_are_refused(tmp_path: Path) -> None:
    folder = str(export(make_run(tmp_path / "run", bpe()), tmp_path / "hf"))
    with pytest.raises(ConfigError, match="have n_layer 2, not 3"):
        load(None, {"init_from": folder, "n_layer": 3})
    with pytest.raises(ConfigError, match="have block_size 48; it can be made shorter"):
        load(None, {"init_from": folder, "block_size": 49})
    with pytest.raises(MissingInputError, match="no such folder"):
        load(None, {"init_from": str(tmp_path / "nowhere")})
    assert load(None, {"init_from": folder, "block_size": 20, "dropout": 0.1}).block_size == 20
    assert load(None, {"init_from": folder}).block_size == 48


def test_openais_architectures_are_known_without_a_network() -> None:
    assert load("finetune-shakespeare").n_layer == 48
    config = load("eval-gpt2-medium")
    assert (config.init_from, config.n_layer, config.bias, config.gelu) == (
        "gpt2-medium",
        24,
        True,
        "tanh",
    )
    assert load("gpt2-124m", {"init_from": "gpt2"}).vocab_size == 50257


def test_the_published_loss_stands_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "val_loss": 3.2,
        "standard_error": 0.1,
        "perplexity": 24.5,
        "bits_per_byte": 1.0,
        "tokens": 9,
    }
    for name, published in (("gpt2", "3.12"), ("gpt2-xl", "2.54")):
        print_figures([(name, {"val of data": {**figures, "dataset": "data", "split": "val"}})])
        assert f"published   {published} on OpenWebText" in capsys.readouterr().out


def test_loading_needs_no_transformers(repository: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['transformers'] = None; from cli.main import main; sys.argv = "
        f"['nanogpt', 'sample', '--init-from', {str(repository / 'repos/somebody/small/main')!r}, "
        "'--max-new-tokens', '2']; sys.exit(main())"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=CLONE, check=True, capture_output=True, timeout=60
    )


def test_more_ids_than_rows_are_told_before_weights_are_used(tmp_path: Path) -> None:
    folder = export(make_run(tmp_path / "run", bpe(), bias=True, gelu="tanh"), tmp_path / "hf")
    tokenizer = bpe()
    specials = {**tokenizer.specials, "<more>": 5000}
    more = Tokenizer("more", "bpe", tokenizer.tokens, None, specials)
    hf_tokenizer.write(folder, more, 64)
    more.save(folder / huggingface.OURS)
    with pytest.raises(
        BadDataError, match="5001 ids in its tokenizer, 300 in its model; give the tokenizer"
    ):
        report.load_pretrained(load("gpt2", {"init_from": str(folder)}), CPU)
