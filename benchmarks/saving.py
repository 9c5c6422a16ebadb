"""How long the training of GPT-2 124M stands still for a checkpoint, beside a synchronous
torch.save of the same.

    python benchmarks/saving.py                 # --rounds 5 --folder .; 6 GB of disk

In one process, in turns: torch.save of weights and AdamW's moments, as nanoGPT does it; and the
copy that an update of ours waits for, after which the checkpoint is written beside the training.
`slower` is what updates take more while it is. Prints one JSON object.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from turns import in_turns, machine, ratio, report

CONTEXT = 64  # tokens of an update: short ones show the standstill best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write")
    given = parser.parse_args()

    import torch

    from nanogpt_dist import checkpoint, storage, tokenizer
    from nanogpt_dist.checkpoint import TrainState
    from nanogpt_dist.distributed.layout import Layout
    from nanogpt_dist.distributed.world import World
    from nanogpt_dist.load_config import load
    from nanogpt_dist.training.saver import Writing
    from nanogpt_dist.training.step import TrainStep

    shape = {"block_size": CONTEXT, "batch_size": 1, "gradient_accumulation_steps": 1}
    config = load("gpt2-124m", shape)
    world = World(0, 0, 1, torch.device("cpu"), None)
    train_step = TrainStep(config, world, Layout("single", 1, 1), torch.bfloat16)
    tokens = np.zeros((1, CONTEXT), np.int64)
    copies: dict[str, torch.Tensor] = {}
    writing: list[Writing] = []
    alone: list[float] = []
    beside: list[float] = []
    step = 0

    def update() -> float:
        nonlocal step
        started = time.perf_counter()
        train_step.step(step, [(tokens, tokens)])
        step += 1
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)

        def theirs() -> float:
            alone.extend(update() for _ in range(5))
            started = time.perf_counter()
            saved = {
                "model": train_step.model.state_dict(),
                "optimizer": train_step.optimizer.state_dict(),
            }
            torch.save(saved, folder / "ckpt.pt")
            took = time.perf_counter() - started
            (folder / "ckpt.pt").unlink()
            return took

        def ours() -> float:
            update()
            started = time.perf_counter()
            mine = train_step.contents(TrainState(step=step), copies)
            commit = lambda: checkpoint.save(world, folder, mine, config, tokenizer.byte(), {})  # noqa: E731
            writing[:] = [Writing(mine.state, commit, later=True)]
            took = time.perf_counter() - started
            while not writing[0].ended:
                beside.append(update())
            error = writing[0].wait()
            assert error is None, error
            storage.discard(folder / storage.step_name(mine.state.step))
            return took

        update()
        figures = in_turns({"the step stands still": ours, "torch.save": theirs}, given.rounds)
    row = {
        "what": "time the step stands still for a save, 124M",
        "beside": "synchronous torch.save",
        "reach": 0.15,
    }
    told = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    slower = statistics.median(beside) / statistics.median(alone)
    row |= {"at_most": True, "seconds": told, "slower": round(slower, 2)}
    report(
        [row | ratio(figures["the step stands still"], figures["torch.save"])],
        machine=machine("torch"),
    )


if __name__ == "__main__":
    main()
