"""Readers of checkpoints, weights, tokenizers and settings."""

import contextlib
import functools
import hashlib
import io
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cli.checkpoint import list_checkpoints
from cli.show_checkpoint import checkpoint as show_checkpoint
from cli.terminal import PLAIN
from nanogpt_dist import checkpoint, load_config, storage
from nanogpt_dist.checkpoint.tensors import read_whole, whole_parts, write
from nanogpt_dist.config import TrainConfig, resolve, to_run_toml
from nanogpt_dist.interop import huggingface, import_run, init_from, nanogpt_ckpt, nanogpt_config
from nanogpt_dist.ladder import sweep
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.storage import run_checkpoints
from nanogpt_dist.storage.eval_results import save_results
from nanogpt_dist.storage.manifest import _last_line
from nanogpt_dist.tokenizer import Tokenizer, byte, tokenizer, tokenizer_json
from nanogpt_dist.tokenizer.bpe import format_ranks
from nanogpt_dist.tokenizer.loading import open_tokenizer
from nanogpt_dist.training.crash_loops import starts_in_vain
from tests.faults.parsers.formats import Parser, try_all
from tests.nanogpt_dist.interop.models import weights as drawn_weights

SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "vocab_size": 257}
RECIPE = """# a config of nanoGPT's
wandb_log = True
wandb_run_name = 'mini-gpt' # + str(time.time())
dataset = 'shakespeare_char'
batch_size = 64
block_size = 64 * 4
gradient_accumulation_steps = 5 * 8
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = max_iters
min_lr = learning_rate / 10
beta2 = 0.99
device = 'cpu'
compile = False
"""
SWEEP = """preset = "quickstart"
out = "sweeps/rates"
max_iters = 200
[grid]
muon_learning_rate = [1e-2, 2e-2]
seed = [1, 2]
[[run]]
name = "wide"
n_embd = 256
compile = false
"""


def tiny_config(**more: Any) -> TrainConfig:
    return resolve({**SIZES, "dataset": "data", "max_iters": 4, **more})


def tiny_bpe() -> Tokenizer:
    """A few merges of bytes, as a BPE."""
    tokens = [bytes([i]) for i in range(256)] + [b"th", b"the", b" t", b" the", b"in", b"ing"]
    return Tokenizer("tiny", "bpe", tokens)


# ---- checkpoints


def make_checkpoint(folder: Path) -> None:
    config = tiny_config()
    weights = drawn_weights(config)
    moments = {f"{name}.exp_avg": weight for name, weight in weights.items()}
    model = import_run.ImportedModel(config, weights, byte(), "a test", moments)
    step = import_run.write_run(model, folder / "run")
    save_results(step, {"val of data": {"val_loss": 4.0, "tokens": 99, "dataset": "data"}})


def seal_checkpoint(folder: Path) -> None:
    """Sizes, sha256 and the manifest's own made right again."""
    for path in folder.glob("run/checkpoints/*/manifest.json"):
        content = json.loads(path.read_bytes())
        for record in content["files"]:
            data = (path.parent / record["name"]).read_bytes()
            record["bytes"], record["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        content.pop("sha256", None)
        head = json.dumps(content, indent=1).removesuffix("\n}").encode()
        path.write_bytes(head + _last_line(head))
        evaluated = path.parents[1] / f"{path.parent.name}.eval.json"
        found = json.loads(evaluated.read_bytes())
        found["manifest"] = json.loads(path.read_bytes())["sha256"]
        evaluated.write_text(json.dumps(found))


def read_checkpoint(folder: Path) -> None:
    """As resuming, sampling, exporting, verifying, and showing it read it."""
    run = folder / "run"
    as_commands_do = io.TextIOWrapper(io.BytesIO(), "utf-8", errors=PLAIN)
    with contextlib.redirect_stdout(as_commands_do), contextlib.redirect_stderr(as_commands_do):
        try_all(
            [
                lambda: list_checkpoints(run),
                lambda: show_checkpoint(str(run)),
                lambda: show_checkpoint(str(run), as_json=True),
                lambda: _resume(run, folder / "copy"),
            ]
        )


def _resume(run: Path, copy: Path) -> None:
    for path in run.glob("checkpoints/*"):
        if path.is_dir():
            storage.verify(path)
    run_checkpoints.kept_by_keep_every(run / "checkpoints")
    storage.read_latest(run / "checkpoints")
    storage.read_pins(run / "checkpoints")
    starts_in_vain(run, 0, "x")
    run_checkpoints.is_new(run)
    load_config.load(str(run))
    found = run_checkpoints.find_checkpoint(str(run))
    run_checkpoints.step_of_any(found)
    checkpoint.load_state(found)
    _, config = checkpoint.load_model(found, torch.device("cpu"))
    import_run.origin_of(found)
    import_run.read_weights(found)
    import_run.read_moments(found)
    with torch.device("meta"):
        model = GPT(config.architecture())
    checkpoint.load_moments(
        found, lambda: {f"{name}.exp_avg": p.detach() for name, p in model.named_parameters()}
    )
    run_checkpoints.copy_to_run(found, copy)


def make_tensors(folder: Path) -> None:
    """One file whole, and a tensor in two parts."""
    a = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    write(folder / "whole.safetensors", whole_parts({"a": a, "b": torch.tensor(1.0)}))
    for number, rows in enumerate((slice(0, 2), slice(2, 4))):
        part = checkpoint.tensors.Part(a[rows], (2 * number, 0), (4, 6))
        write(folder / f"part-{number}.safetensors", {"a": part}, {"format": "pt"})


def read_tensors(folder: Path) -> None:
    read_whole([folder / "whole.safetensors"])
    read_whole(sorted(folder.glob("part-*")))


# ---- others' weights


def make_hugging_face(folder: Path) -> None:
    config = tiny_config(vocab_size=263)
    huggingface.export(folder / "hf", config, drawn_weights(config), tiny_bpe(), "a card")
    (folder / "hf" / init_from.OURS).unlink()


def read_hugging_face(folder: Path) -> None:
    """As `import hf` and --init-from read it."""
    source = init_from.find_pretrained(str(folder / "hf"))
    load_config.load(None, {"init_from": str(folder / "hf"), "out_dir": str(folder / "x")})
    import_run._refuse_other_shapes(import_run.read_hugging_face(source))


def make_nanogpt(folder: Path) -> None:
    config = tiny_config()
    weights = drawn_weights(config)
    moments = {
        f"{name}.{kind}": torch.ones(()) if kind == "step" else weight
        for name, weight in weights.items()
        for kind in nanogpt_ckpt.MOMENTS
    }
    state = checkpoint.TrainState(step=3)
    nanogpt_ckpt.write(folder / "ckpt.pt", config, weights, moments, state, byte())


def read_nanogpt(folder: Path) -> None:
    found = nanogpt_ckpt.read(folder / "ckpt.pt", byte())
    import_run._refuse_other_shapes(found)


def mutated_torch(data: bytes, others: Any, choose: random.Random) -> bytes:
    """torch's zip: its pickle changed, and zipped anew; or its bytes."""
    import io
    import zipfile

    from tests.faults.parsers.mutations import mutated_bytes

    if choose.random() < 0.3:
        return mutated_bytes(data, others, choose)
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(new, "w") as archive:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("data.pkl"):
                content = mutated_bytes(content, [content], choose)
            archive.writestr(info.filename, content)
    return new.getvalue()


# ---- tokenizers


def make_own_tokenizer(folder: Path) -> None:
    byte().save(folder / "byte.json")
    tiny_bpe().save(folder / "bpe.json")
    Tokenizer("char", "char", [c.encode() for c in "\n abcé"]).save(folder / "char.json")
    hugging_face = folder / "hf"
    make_hugging_face(folder)
    content = json.loads((hugging_face / "tokenizer.json").read_bytes())
    content["normalizer"] = {"type": "NFC"}
    (folder / "hf.json").write_text(json.dumps(content))
    open_tokenizer(str(folder / "hf.json")).save(folder / "library.json")
    for path in [*hugging_face.iterdir(), folder / "hf.json"]:
        path.unlink()
    hugging_face.rmdir()


def seal_tokenizers(folder: Path) -> None:
    """The fingerprint made right: by the program itself, which is asked what it would be."""
    asked: list[str] = []
    kept = tokenizer_json._with_its_fingerprint

    def note(path: Path, content: dict[str, Any], found: Tokenizer) -> Tokenizer:
        asked.append(found.fingerprint)
        return found

    tokenizer_json._with_its_fingerprint = note  # type: ignore[assignment]
    try:
        for path in folder.glob("*.json"):
            asked.clear()
            with_fault: list[Exception] = []
            try:
                tokenizer_json.load(path)
            except Exception as error:  # the same comes again when it is read
                with_fault.append(error)
            if asked:
                content = json.loads(path.read_bytes())
                path.write_text(json.dumps({**content, "fingerprint": asked[0]}))
    finally:
        tokenizer_json._with_its_fingerprint = kept


def use(found: Tokenizer) -> None:
    """What every command does with a tokenizer."""
    found.probe()
    for text in (tokenizer.PROBE, "", "the thing \x00\n  \u2028", "a" * 3000):
        try:
            found.decode(found.encode(text))
        except tokenizer.TextError:
            continue
    found.byte_lengths()
    found.to_json()


def _each(pattern: str, read: Callable[[Path], object]) -> Callable[[Path], None]:
    def read_all(folder: Path) -> None:
        try_all(functools.partial(read, path) for path in sorted(folder.glob(pattern)))

    return read_all


def make_hf_tokenizers(folder: Path) -> None:
    """tokenizer.json of two kinds, with what stands beside it."""
    make_hugging_face(folder)
    for path in (folder / "hf").glob("*"):
        if path.suffix in (".safetensors", ".md") or path.name in ("vocab.json", "merges.txt"):
            path.unlink()
    more = {"eos_token_id": [262], "bos_token_id": 262}
    (folder / "hf/generation_config.json").write_text(json.dumps(more))
    content = json.loads((folder / "hf/tokenizer.json").read_bytes())
    content["normalizer"] = {"type": "NFC"}
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits, content["pre_tokenizer"]]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (folder / "hf/library.json").write_text(json.dumps(content))
    added = {"id": 263, "content": "<tool>", "special": False, "normalized": True}
    content["added_tokens"].append({**added, "single_word": False, "lstrip": False, "rstrip": True})
    (folder / "hf/words.json").write_text(json.dumps(content))


def make_gpt2_files(folder: Path) -> None:
    make_hugging_face(folder)
    for path in (folder / "hf").glob("*"):
        if path.name not in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            path.unlink()
    about = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (folder / "hf/tokenizer_config.json").write_text(json.dumps(about))
    (folder / "hf/added_tokens.json").write_text(json.dumps({"<x>": 263}))


def make_ranks(folder: Path) -> None:
    (folder / "a.tiktoken").write_bytes(format_ranks(tiny_bpe().tokens))


def make_meta(folder: Path) -> None:
    names = dict(enumerate("\n abcdefé"))
    meta = {"vocab_size": len(names), "itos": names, "stoi": {c: i for i, c in names.items()}}
    for protocol in (0, 2, 4):
        (folder / f"{protocol}.pkl").write_bytes(pickle.dumps(meta, protocol))


# ---- settings


def make_toml(folder: Path) -> None:
    more = {"batch_ramp": "0:2,2:4", "sample_prompt": ["a", "b"], "init_from": None}
    (folder / "a.toml").write_text(to_run_toml(tiny_config(**more)))
    (folder / "sweep.toml").write_text(SWEEP)


def read_toml(path: Path) -> None:
    """As settings, and as a sweep."""
    if path.name == "a.toml":
        load_config.load(str(path))
        return
    for run in (found := sweep.read(path)).runs:
        found.arguments(run)


def make_recipe(folder: Path) -> None:
    (folder / "a.py").write_text(RECIPE)


def read_recipe(path: Path) -> None:
    nanogpt_config.only_evaluates(path)
    load_config.load(str(path))


PARSERS = [
    Parser("checkpoint", make_checkpoint, read_checkpoint, ("run/**/*",), seal_checkpoint),
    Parser(
        "checkpoint-manifest",
        make_checkpoint,
        read_checkpoint,
        ("run/checkpoints/*/manifest.json",),
        seal_checkpoint,
    ),
    Parser("safetensors", make_tensors, read_tensors),
    Parser("hugging-face", make_hugging_face, read_hugging_face),
    Parser("nanogpt-ckpt", make_nanogpt, read_nanogpt, mutate=mutated_torch),
    Parser(
        "tokenizer-json",
        make_own_tokenizer,
        _each("*.json", lambda path: use(tokenizer_json.load(path))),
        seal=seal_tokenizers,
    ),
    Parser(
        "hf-tokenizer",
        make_hf_tokenizers,
        _each("hf/*.json", lambda path: use(open_tokenizer(str(path)))),
    ),
    Parser(
        "gpt2-files",
        make_gpt2_files,
        _each("hf/vocab.json", lambda path: use(open_tokenizer(str(path)))),
    ),
    Parser(
        "tiktoken", make_ranks, _each("*.tiktoken", lambda path: use(open_tokenizer(str(path))))
    ),
    Parser("meta-pkl", make_meta, _each("*.pkl", lambda path: use(open_tokenizer(str(path))))),
    Parser("toml", make_toml, _each("*.toml", read_toml)),
    Parser("nanogpt-config", make_recipe, _each("*.py", read_recipe)),
]
