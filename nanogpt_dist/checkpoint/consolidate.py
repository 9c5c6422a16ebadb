"""A sharded checkpoint as whole tensors, for tools that read no shards.

One file of weights, one of optimizer state, one of averaged weights where there are any.
"""

import shutil
from pathlib import Path

from nanogpt_dist import storage
from nanogpt_dist.checkpoint.tensors import read_whole, whole_parts, write
from nanogpt_dist.errors import CannotCreateError, UsageError
from nanogpt_dist.storage import run_folder

KINDS = ("model", "optimizer", "ema")


def is_sharded(checkpoint: Path) -> bool:
    """Whether it has more than one file of weights."""
    return len(list(checkpoint.glob("model*.safetensors"))) > 1


def consolidate(checkpoint: Path, out: Path) -> Path:
    """Write a verified `checkpoint` to the new folder `out` with whole tensors; returns it.

    Holds one kind after the other in memory. Raises CannotCreateError where `out` exists,
    UsageError where it has another name, BadDataError, StorageError.
    """
    if out.exists():
        raise CannotCreateError(f"{out} exists already; give another --out")
    name = run_folder.canonical_path(checkpoint).name
    if storage.step_of(out.name) != storage.step_of(name):
        raise UsageError(
            f"{out} has to be called {name}, as the checkpoint is: type --out {out / name}"
        )

    def fill(staging: Path) -> None:
        for kind in KINDS:
            parts = whole_parts(read_whole(sorted(checkpoint.glob(f"{kind}*.safetensors"))))
            if parts:
                write(staging / f"{kind}.safetensors", parts)
        for name in ("state.json", "config.toml", "tokenizer.json"):
            shutil.copyfile(checkpoint / name, staging / name)

    return storage.commit(out.parent, out.name, fill, {"step": storage.step_of(out.name)})
