"""What the campaigns against trainings share: a small corpus, a run of two ranks under
`nanogpt launch`, its end.
"""

import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path

from launch import processes
from nanogpt_dist import storage
from tests.conftest import CLONE, TINY, build, command

MARK = "NANOGPT_CAMPAIGN"


def prepare(folder: Path) -> None:
    """FOLDER/data: a module of Python's, byte by byte."""
    shutil.copy(Path(os.__file__).parent / "ast.py", folder / "text.txt")
    build("text", folder / "data", sources=[folder / "text.txt"], tokenizer="byte", workers=1)


class Training:
    """A training of FOLDER/data into FOLDER/NAME: two ranks, dropout, `updates` updates, saved
    every `save`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        updates: int,
        save: int,
        launch: list[str],
        *more: str,
    ) -> None:
        self.folder, self.run, self.updates = folder, folder / name, updates
        self.mark = secrets.token_hex(8)
        train = [
            "train",
            "--dataset",
            "data",
            *TINY,
            "--vocab-size",
            "257",
            "--dropout",
            "0.1",
            "--max-iters",
        ]
        train += [
            str(updates),
            "--eval-interval",
            str(updates),
            "--save-interval",
            str(save),
            "--no-tensorboard",
        ]
        self.line = command(
            "launch", "--nproc-per-node", "2", *launch, *train, "--out-dir", name, *more
        )

    def start(self) -> "subprocess.Popen[str]":
        environment = {**os.environ, MARK: self.mark, "PYTHONPATH": str(CLONE)}
        return subprocess.Popen(
            self.line,
            cwd=self.folder,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def living(self) -> set[int]:
        """Ids of all processes of this training."""
        return processes.marked(MARK, self.mark)

    def ranks(self) -> list[int]:
        """Ids of the ranks, in their order."""
        found = {}
        for pid in self.living():
            try:
                lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                told = dict(line.split(b"=", 1) for line in lines if b"=" in line)
                if b"nanogpt_dist\0train" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found[int(told[b"RANK"])] = pid
            except (OSError, KeyError):
                continue
        return [found[rank] for rank in sorted(found)]

    def newest_step(self) -> int:
        steps = storage.list_steps(self.run / "checkpoints")
        return (storage.step_of(steps[0].name) or 0) if steps else 0

    def tensors(self) -> dict[str, str]:
        """sha256 of the files of weights and moments after the last update."""
        end = self.run / "checkpoints" / storage.step_name(self.updates)
        entries = json.loads((end / "manifest.json").read_text())["files"]
        return {
            entry["name"]: entry["sha256"]
            for entry in entries
            if entry["name"].endswith(".safetensors")
        }
