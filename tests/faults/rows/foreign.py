"""What other versions, compilers and wrappers have written."""

import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.interop import nanogpt_ckpt
from tests.faults import commands, damage, prepared
from tests.faults.checks import tensors
from tests.faults.row import Row
from tests.faults.rows.checkpoints import LINE, checkpoint_of, own_run, saved_run
from tests.nanogpt_dist.interop.test_nanogpt_ckpt import make_ckpt
from tests.nanogpt_dist.small import go, tiny
from tests.nanogpt_dist.storage.test_manifest import forge

WORKS, REFUSED = 0, 65


def resealed(path: Path, change: Callable[[Path], object]) -> None:
    """Change a checkpoint as another version might have written it: its manifest agrees."""
    staging = path.rename(path.with_name(".tmp-other"))
    (staging / "manifest.json").unlink()
    change(staging)
    storage.seal(staging, path.name, {"step": 20})


def other_version(choose: random.Random, folder: Path) -> None:
    """A run that goes on from a checkpoint, or with data, of another version."""
    checkpoints = own_run(folder)
    shutil.rmtree(checkpoint_of(checkpoints, 24))
    newest = checkpoint_of(checkpoints, 20)
    code, said = choose.choice(CHANGES)(choose, folder, newest)
    done = commands.run(*LINE, folder=folder, code=code)
    if code:
        damage.line_of(done, said)
        assert newest.is_dir(), "a checkpoint of another version was set aside"
    else:
        assert tensors(folder / "out", 24) == tensors(saved_run() / "out", 24), "another end"


def any_version(choose: random.Random, but: int) -> Any:
    versions = [but + 1, 99, but + choose.randrange(1, 10**6)]
    return choose.choice(versions)


def facts_of_another(choose: random.Random, folder: Path, newest: Path) -> tuple[int, str]:
    """Other versions of torch, and facts that are not known here yet."""
    facts = {"torch": choose.choice(["1.0.0", "9.9.9+cu999"]), "numpy": "0.1", "version": "99.0"}
    names = choose.sample(sorted(facts), choose.randrange(1, len(facts) + 1))

    def change(staging: Path) -> None:
        path = staging / "state.json"
        path.write_text(
            json.dumps({**json.loads(path.read_text()), **{n: facts[n] for n in names}})
        )

    resealed(newest, change)
    run = json.loads((folder / "out" / "run.json").read_text())
    (folder / "out" / "run.json").write_text(json.dumps({**run, "version": "99.0", "python": "4"}))
    return WORKS, ""


def newer_manifest(choose: random.Random, folder: Path, newest: Path) -> tuple[int, str]:
    version = any_version(choose, 1)
    forge(newest, lambda manifest: manifest.update(format=version))
    return REFUSED, f"has format {version}, newer than 1"


def other_data(choose: random.Random, folder: Path, newest: Path) -> tuple[int, str]:
    own = own_data(folder)
    path = own / "manifest.json"
    content = json.loads(path.read_text())
    content["version"] = version = choose.choice([1, any_version(choose, 2), "2", None])
    path.write_text(json.dumps(content, indent=1))
    return REFUSED, f"has version {version}, this nanogpt reads 2"


def own_data(folder: Path) -> Path:
    (folder / "data").unlink()
    shutil.copytree(saved_run() / "data", folder / "data")
    return folder / "data"


def other_tokenizer(choose: random.Random, folder: Path, newest: Path) -> tuple[int, str]:
    path = own_data(folder) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["version"] = version = choose.choice([1, any_version(choose, 2), "2", None])
    path.write_text(json.dumps(content, indent=0))
    return REFUSED, f"has version {version}, this nanogpt reads 2"


def other_shard(choose: random.Random, folder: Path, newest: Path) -> tuple[int, str]:
    """A header of a later version, with a checksum that is right."""
    import zlib

    path = choose.choice(sorted(own_data(folder).glob("*.bin")))
    data, version = bytearray(path.read_bytes()), choose.choice([0, 2, 99, -1])
    data[12:16] = version.to_bytes(4, "little", signed=True)
    data[1020:1024] = zlib.crc32(data[:1020]).to_bytes(4, "little")
    path.write_bytes(data)
    return REFUSED, f"has header version {version}, this nanogpt reads 1"


def other_settings(choose: random.Random, folder: Path, newest: Path) -> tuple[int, str]:
    """A setting that a later version knows."""

    def change(staging: Path) -> None:
        with (staging / "config.toml").open("a") as file:
            file.write("of_a_later_version = 1\n")

    resealed(newest, change)
    return REFUSED, "unknown setting of_a_later_version"


CHANGES = [
    facts_of_another,
    newer_manifest,
    other_data,
    other_tokenizer,
    other_shard,
    other_settings,
]

# ---- names with what compilers and wrappers put in front


PREFIXES = ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."]


def prefixed_names(choose: random.Random, folder: Path) -> None:
    """Save compiled or not and go on compiled or not; take over names with prefixes."""
    way = choose.choice(["matrix", "nanogpt", "ours"])
    if way == "matrix":
        compiled_or_not(choose, folder)
        return
    prefix = choose.choice(PREFIXES if way == "nanogpt" else PREFIXES[1:])
    if way == "nanogpt":
        plain = nanogpt_ckpt.read(make_ckpt(folder / "plain" / "ckpt.pt"))
        found = nanogpt_ckpt.read(make_ckpt(folder / "prefixed" / "ckpt.pt", prefix))
        assert found.weights.keys() == plain.weights.keys(), sorted(found.weights)[:3]
        assert all(torch.equal(plain.weights[name], found.weights[name]) for name in plain.weights)
        return
    newest = checkpoint_of(own_run(folder), 24)

    def change(staging: Path) -> None:
        path = staging / "model.safetensors"
        save_file({f"{prefix}{name}": value for name, value in load_file(path).items()}, path)

    resealed(newest, change)
    damage.refused(lambda: checkpoint.load_model(newest, torch.device("cpu")), prefix)


def compiled_or_not(choose: random.Random, folder: Path) -> None:
    """The backend runs the graphs as they were found: what is saved does not depend on it."""
    compile_with_torch = torch.compile

    def compile(function: object, **options: Any) -> object:
        return compile_with_torch(function, dynamic=options["dynamic"], backend="eager")

    torch.compile = functools.wraps(compile_with_torch)(compile)  # type: ignore[assignment]
    before, after = choose.choice([(a, b) for a in (False, True) for b in (False, True)])
    data = prepared.data() / "data"
    go(tiny(data, folder / "run", max_iters=4, compile=before, decay_lr=False))
    saved = load_file(checkpoint_of(folder / "run" / "checkpoints", 4) / "model.safetensors")
    assert not [name for name in saved if name.startswith(("_orig_mod", "module"))], sorted(saved)
    assert go(tiny(data, folder / "run", compile=after, decay_lr=False)).step == 8
    checkpoint.load_model(checkpoint_of(folder / "run" / "checkpoints", 8), torch.device("cpu"))


ROWS = [
    Row(
        number=44,
        fault="a checkpoint, data or a tokenizer of another version",
        holds="the run goes on and ends the same, or one line says what to do; nothing set aside",
        goal=100,
        attempt=other_version,
        short=1,
    ),
    Row(
        number=45,
        fault="saved compiled, loaded not, and so on; names with `_orig_mod.` and `module.`",
        holds="4 of 4 load, names are plain; nanoGPT's are taken over, others refused by name",
        goal=100,
        attempt=prefixed_names,
        short=1,
    ),
]
