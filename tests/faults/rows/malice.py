"""Checkpoints, manifests and settings that were made to harm."""

import hashlib
import json
import os
import pickle
import random
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from cli import checkpoint as checkpoint_commands
from nanogpt_dist import checkpoint, storage
from nanogpt_dist.checkpoint.tensors import index
from nanogpt_dist.data import DataFolder, verify_folder
from nanogpt_dist.errors import NanogptError
from nanogpt_dist.load_config import load
from nanogpt_dist.storage import run_checkpoints
from tests.faults import commands, damage, prepared
from tests.faults.row import Row
from tests.nanogpt_dist.checkpoint.test_bombs import FILES, FOREIGN, Bomb, plant, uses
from tests.nanogpt_dist.small import go, tiny
from tests.nanogpt_dist.storage.test_manifest import forge

HARMLESS = [name for name in FOREIGN if not name.startswith("model")]  # where a manifest has them
MEMORY_KIB = 100_000  # that reading something false may take


@prepared.once
def one_checkpoint(folder: Path) -> None:
    """FOLDER/run, of two steps, with one checkpoint."""
    go(tiny(prepared.data() / "data", folder / "run", max_iters=2, eval_interval=2))


def malicious_checkpoint(choose: random.Random, folder: Path) -> None:
    """A pickle that would make a file, under any name; a header that claims too much."""
    made = folder / "it ran"
    way = choose.choice(["pickle", "pickle", "nanogpt", "hugging face", "header", "json"])
    bomb = pickle.dumps(Bomb(made), protocol=choose.randrange(2, 6))
    if way == "pickle":
        planted(bomb, choose, folder, made)
    elif way == "nanogpt":
        nanogpts_file(bomb, choose, folder)
    elif way == "hugging face":
        (folder / "hf").mkdir()
        (folder / "hf" / "config.json").write_text('{"model_type": "gpt2"}')
        name = choose.choice(["pytorch_model.bin", "model.safetensors", "tokenizer.json"])
        (folder / "hf" / name).write_bytes(bomb)
        done = commands.run("import", "hf", "hf", "--out-dir", "new", folder=folder, code=None)
        assert done.wait() in (65, 66), done.stderr[-500:]
        damage.line_of(done)
    else:
        false_header(choose, folder, in_json=way == "json")
    assert not made.exists(), f"{way}: code from a file ran"


def planted(bomb: bytes, choose: random.Random, folder: Path, made: Path) -> None:
    """As a file of a checkpoint, with a manifest that knows of it or without."""
    name, resealed = choose.choice(FILES + FOREIGN[1:]), choose.random() < 0.6
    target = plant(one_checkpoint() / "run", folder / "run", name, bomb, resealed)
    codes = []
    for use in uses(folder / "run", prepared.data() / "data", target):
        try:
            use()
        except NanogptError as error:
            codes.append(int(error.code))
        assert not made.exists(), f"{name}: code from a file ran"
    assert set(codes) <= {2, 65}, codes  # 2: nothing to consolidate
    assert (65 in codes) != (resealed and name in HARMLESS), f"{name}: {codes}"


def nanogpts_file(bomb: bytes, choose: random.Random, folder: Path) -> None:
    """As nanoGPT's checkpoint, in torch's own file or as it is, or as the names of its ids."""
    path = folder / choose.choice(["ckpt.pt", "meta.pkl"])
    if path.suffix == ".pt" and choose.random() < 0.5:
        content = {"model": Bomb(folder / "it ran"), "model_args": {}, "iter_num": 3}
        torch.save(content, path)
    else:
        path.write_bytes(bomb)
    (folder / "text.txt").write_text("some text\n" * 100)
    line: list[object] = ["import", "nanogpt", path, "--out-dir", "new"]
    if path.suffix == ".pkl":
        line = ["prepare", "text", "--source", "text.txt", "--tokenizer", path, "--out", "new"]
    done = commands.run(*line, folder=folder, code=65)
    damage.line_of(done)


def false_header(choose: random.Random, folder: Path, in_json: bool) -> None:
    """A header of 10 GB, parts beyond their whole, JSON without end."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    notes: list[object] = [{"shape": [10**15, 32], "offsets": [0, 0]}, {"shape": "x"}, [], 7]
    notes += [{"shape": [2, 4], "offsets": [-1, 0]}, {"shape": [2**62, 2**62], "offsets": [0, 0]}]
    deep = "[" * choose.randrange(1000, 200_000)
    many = "{" + ",".join(f'"{number}":1' for number in range(100_000)) + "}"
    if in_json:
        name = choose.choice(["state.json", "config.toml", "tokenizer.json"])
        text = choose.choice([deep, many, '{"step": 1e999}', '{"step": ' + "9" * 5000 + "}"])
        planted_in = plant(one_checkpoint() / "run", folder / "run", name, text.encode(), True)
        may_refuse(lambda: checkpoint_commands.list_checkpoints(folder / "run"))
        refused(lambda: read_all(planted_in))
    else:
        path = folder / "model.safetensors"
        header = {"w": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}
        note = json.dumps({"w": choose.choice(notes)})
        text = json.dumps({"__metadata__": {"parts": note}, **header})
        if choose.random() < 0.4:
            text = choose.choice([deep, many, "{}", ""])
        claimed = choose.choice([len(text), len(text), 10 * 2**30, 2**63, 2**64 - 1])
        if text in ("{}", "") and claimed == len(text):
            claimed = 10 * 2**30
        path.write_bytes(struct.pack("<Q", claimed) + text.encode() + bytes(32))
        refused(lambda: index([path]))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert used <= MEMORY_KIB, f"{used:,} KiB of memory went"


def refused(use: Callable[[], object]) -> None:
    damage.refused(use, kind=NanogptError)


def may_refuse(use: Callable[[], object]) -> None:
    with suppress(NanogptError):
        use()


def read_all(folder: Path) -> None:
    checkpoint.load_state(folder)
    checkpoint.load_config(folder)
    checkpoint.load_model(folder, torch.device("cpu"))


# ---- names that lead elsewhere


@contextmanager
def watched(outside: Path) -> Iterator[None]:
    """A block in which nothing below `outside` is opened, by whatever name or link."""
    found, watching = list[str](), [True]
    place = os.path.realpath(outside)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not watching[0] or not isinstance(arguments[0], str | bytes):
            return
        path, flags = os.fsdecode(arguments[0]), arguments[2]
        head, tail = os.path.split(path)
        real = os.path.realpath(path)
        if flags & os.O_NOFOLLOW:
            real = os.path.join(os.path.realpath(head), tail)
        if real == place or real.startswith(place + os.sep):
            found.append(path)

    sys.addaudithook(note)  # for as long as this process lives
    yield
    watching[0] = False
    assert not found, f"opened outside: {found[:3]}"


def malicious_settings(choose: random.Random, folder: Path) -> None:
    """Manifests and settings with names that lead elsewhere, and more than anyone needs."""
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"not yours")
    way = choose.choice(["data", "data", "checkpoint", "checkpoint", "settings"])
    with watched(outside):
        if way == "data":
            false_data(choose, folder)
        elif way == "checkpoint":
            false_checkpoint(choose, folder)
        else:
            false_settings(choose, folder)
    assert (outside / "secret").read_bytes() == b"not yours"
    assert set(os.listdir(outside)) <= {"secret", "linked"}, "something was written outside"


def names_elsewhere(folder: Path) -> list[str]:
    secret = folder / "outside" / "secret"
    names = [str(secret), "../outside/secret", "../../outside/secret", "x/../../outside/secret"]
    names += [f"file://{secret}", "..", ".", "", "a/b", "x\0y", ".hidden", "é", "a\n", "~/x"]
    return [*names, "a" * 300, "..\\outside\\secret", "manifest.json", "CON", "-rf"]


def false_data(choose: random.Random, folder: Path) -> None:
    """The manifest of a data folder, with hashes that are right."""
    data = prepared.copied(prepared.data() / "data", folder / "data")
    path = data / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    files = [content["tokenizer"]["file"]]
    for split in content["splits"].values():
        files += [
            shard[kind] for shard in split["shards"] for kind in ("file", "checksums", "ends")
        ]
    file, way = choose.choice(files), choose.choice(["name", "link", "keys", "number", "sizes"])
    if way == "name":
        file["name"] = choose.choice(names_elsewhere(folder))
    elif way == "link":
        inside = data / file["name"]
        inside.rename(folder / "outside" / "linked")
        inside.symlink_to(folder / "outside" / "linked")
    elif way == "keys":
        content |= {f"key{number}": number for number in range(choose.choice([1, 10**6]))}
    elif way == "number":
        key = choose.choice(["tokens", "documents", "bytes"])
        wrong = [-1, 1e999, 0.5, True, "1", None] + [2**70] * (key != "bytes")
        content["splits"]["train"][key] = choose.choice(wrong)
    else:
        file["bytes"] = choose.choice([-1, 2**63, 10**30])
    body = json.dumps(content)
    content["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    path.write_text(json.dumps(content, indent=1) + "\n")
    refused(lambda: DataFolder.open(data))
    bad = verify_folder(data)
    assert bad, "verify finds nothing"


def false_checkpoint(choose: random.Random, folder: Path) -> None:
    """The manifest of a checkpoint, with a hash that is right."""
    run = prepared.copied(one_checkpoint() / "run", folder / "run")
    (newest,) = storage.list_steps(run / "checkpoints")

    def change(manifest: dict[str, Any]) -> None:
        file = choose.choice(manifest["files"])
        way = choose.choice(["name", "keys", "number", "twice"])
        if way == "name":
            file["name"] = choose.choice(names_elsewhere(folder))
        elif way == "keys":
            manifest |= {f"key{number}": number for number in range(10**6)}
        elif way == "number":
            file["bytes"] = choose.choice([-1, 2**63, 1.5, True, "1", None])
        else:
            manifest["files"].append(dict(file))

    forge(newest, change)
    refused(lambda: storage.require_good(newest))
    refused(lambda: run_checkpoints.find_checkpoint(str(run)))
    may_refuse(lambda: run_checkpoints.copy_to_run(newest, folder / "copy"))
    refused(lambda: go(tiny(prepared.data() / "data", run, max_iters=4, eval_interval=2)))


def false_settings(choose: random.Random, folder: Path) -> None:
    """A file of settings that somebody handed on."""
    keys = "".join(f"key{number} = {number}\n" for number in range(10**6))
    texts = [
        *("learning_rate = 1e999\n", "n_layer = 99999999999999999999999\n", "batch_size = nan\n"),
        *("[" * 100_000, "a." * 50_000 + "b = 1\n", "seed = " + "9" * 10_000 + "\n"),
        *("n_layer = '../x'\n", "[model]\nn_layer = 2\n", "block_size = -inf\n", keys, "\x00"),
        *("unknown = 1\n", "n_layer = [1]\n", "dropout = 1e400\n", "n_layer = 2\nn_layer = 3\n"),
        *(f"seed = 0x{'f' * 20_000}\n", "n_layer = {a = 1}\n", "bias = " + "[" * 50_000 + "\n"),
    ]
    scripts = ["learning_rate = (2**50)**60\n", "n_layer = " + "-" * 100_000 + "1\n"]
    scripts += ["n_layer = 9**9**9\n", "n_layer = open('outside/secret').read()\n"]
    scripts += ["import os\nos.system('touch outside/x')\n", "n_layer = 'a' * 10**9\n"]
    name, text = choose.choice(
        [*(("mine.toml", text) for text in texts), *(("mine.py", text) for text in scripts)]
    )
    (folder / name).write_text(text)
    refused(lambda: load(name))
    damage.line_of(commands.run("show", "config", name, folder=folder, code=78))


ROWS = [
    Row(
        number=40,
        fault="a checkpoint made to harm: pickles under any name, false headers, endless JSON",
        holds="refused in one line; no code of it runs, 100 MB of memory at most",
        goal=300,
        attempt=malicious_checkpoint,
        short=3,
    ),
    Row(
        number=41,
        fault="manifests and settings made to harm: names that lead elsewhere, 1,000,000 keys",
        holds="refused in one line; nothing outside the folder is opened",
        goal=300,
        attempt=malicious_settings,
        short=3,
    ),
]
