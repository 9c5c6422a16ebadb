"""What is done as a module is loaded: the device before torch, its torch.cuda after it, and so on.

The program's modules know nothing of it. Importing this imports no torch.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.fakecuda import build

CLONE = Path(__file__).resolve().parents[2]


def environment(**device: object) -> dict[str, str]:
    """Variables for a child process, and for its children, that has the fake GPU.

    device: what __init__.py lists, in small letters: environment(count=2, record=path).
    """
    folders = [str(Path(__file__).parent / "site"), str(CLONE), os.environ.get("PYTHONPATH", "")]
    given = {f"FAKECUDA_{name.upper()}": str(value) for name, value in device.items()}
    return {"FAKECUDA": "1", "PYTHONPATH": os.pathsep.join(filter(None, folders)), **given}


def load_library() -> None:
    """Load the device; torch, which is loaded next, asks once whether there is one."""
    folder = build.torch_folder() / "lib"
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(build.library()), ctypes.RTLD_GLOBAL)


def _install_device(_: ModuleType) -> None:
    from tests.fakecuda import device

    device.install()


def _install_nccl(module: ModuleType) -> None:
    from tests.fakecuda import nccl

    nccl.install(module)


def _mark_steps(module: ModuleType) -> None:
    """Note the beginning of each step of a training."""
    from tests.fakecuda import record

    step = module.TrainStep.step

    def marked(self: object, number: int, *rest: Any, **named: Any) -> object:
        record.mark(f"step {number}")
        return step(self, number, *rest, **named)

    module.TrainStep.step = marked


BEFORE: dict[str, Callable[[], None]] = {"torch": load_library}
AFTER: dict[str, Callable[[ModuleType], None]] = {
    "torch": _install_device,
    "torch.distributed.distributed_c10d": _install_nccl,
    "nanogpt_dist.training.step": _mark_steps,
}


class Finder:
    """Finds a module as Python does, and runs what is to be done around it."""

    def __init__(self) -> None:
        self.busy = False  # Python is asked, which asks us again

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module's own spec."""
        if name not in AFTER or self.busy:
            return None
        self.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.busy = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if name in BEFORE:
                BEFORE[name]()
            load(module)
            AFTER[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """From here on this process has the fake GPU. torch must not be loaded yet."""
    assert "torch" not in sys.modules, "torch asks for its devices as it loads"
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
