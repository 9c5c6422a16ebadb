"""What a try changes in a process of a command: clocks, folders, gradients, bits."""

import builtins
import errno
import io
import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanogpt_dist.data.batches import Batches
from nanogpt_dist.distributed.world import local_part
from nanogpt_dist.training.optim import named_state
from nanogpt_dist.training.replicas import INTEGERS
from nanogpt_dist.training.step import TrainStep


def sleep_at(step: int, seconds: float = 600) -> None:
    """Whoever reads the batch of `step`, from 0, sleeps over it."""
    read = Batches.of

    def slow(self: Batches, at: int) -> Any:
        if at == step:
            time.sleep(seconds)
        return read(self, at)

    Batches.of = slow  # type: ignore[method-assign]


def around_steps(around: Callable[[TrainStep, int, Callable[[], Any]], Any]) -> None:
    """around(train_step, step, make) is called for each step, from 0, which make() makes."""
    made = TrainStep.step

    def step(self: TrainStep, number: int, *rest: Any) -> Any:
        return around(self, number, lambda: made(self, number, *rest))

    TrainStep.step = step  # type: ignore[method-assign]


def no_finite_gradient_at(step: int) -> None:
    """The gradient of the head's weight becomes NaN in `step`, from 0."""

    def around(train_step: TrainStep, number: int, make: Callable[[], Any]) -> Any:
        if number != step:
            return make()
        weight = train_step.model.transformer.ln_f.weight
        handle = weight.register_hook(lambda gradient: gradient * math.nan)
        try:
            return make()
        finally:
            handle.remove()

    around_steps(around)


def flip_a_bit_after(step: int, choose: random.Random) -> None:
    """One bit of a weight or a moment flips when `step` steps are made."""

    def around(train_step: TrainStep, number: int, make: Callable[[], Any]) -> Any:
        result = make()
        if number + 1 == step:
            state = named_state(train_step.model, train_step.optimizer)
            tensors = [*train_step.model.parameters(), *state.values()]
            parts = [part for each in tensors if (part := local_part(each.detach())).numel()]
            part = choose.choice(parts)
            bits = part.view(-1).view(INTEGERS[part.element_size()])
            bits[choose.randrange(len(bits))] ^= 1 << choose.randrange(8 * part.element_size() - 2)
        return result

    around_steps(around)


def clock_jumps(choose: random.Random) -> None:
    """The clock that tells the date goes forward or back by up to twenty years, again and again."""
    real, real_ns, offset = time.time, time.time_ns, [0.0]

    def now() -> float:
        if choose.random() < 0.1:
            offset[0] = choose.uniform(-20, 20) * 365 * 86400
        return real() + offset[0]

    time.time, time.time_ns = now, lambda: real_ns() + int(offset[0] * 1e9)


def late_names(folder: Path, seconds: float) -> None:
    """Checkpoints and files in `folder` that others make appear `seconds` after they are made."""
    inside, own = str(folder.resolve()), set[str]()
    real_stat = os.stat

    def hidden(path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        name = os.path.abspath(os.fsdecode(path))
        inner = Path(name[len(inside) + 1 :] if name.startswith(inside + os.sep) else "").parts
        if inner[:1] != ("checkpoints",) or name in own:
            return False
        try:
            made = real_stat(os.path.join(inside, *inner[:2])).st_ctime
        except OSError:
            return False
        return len(inner) > 1 and time.time() - made < seconds

    def looked_up(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            creates = (rest and isinstance(rest[0], int) and rest[0] & os.O_CREAT) or (
                rest and isinstance(rest[0], str) and set(rest[0]) & set("wxa")
            )
            if creates:
                own.add(os.path.abspath(os.fsdecode(path)))
            elif hidden(path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return real(path, *rest, **named)

        return call

    listed = os.listdir

    def listdir(path: Any = ".") -> list[Any]:
        names = looked_up(listed)(path)
        return [name for name in names if not hidden(os.path.join(path, name))]

    os.stat, os.open = looked_up(os.stat), looked_up(os.open)
    os.listdir = listdir
    builtins.open = io.open = looked_up(io.open)
