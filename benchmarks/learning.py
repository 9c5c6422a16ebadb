"""What a second of training teaches: our recipes beside nanoGPT's own code, on this machine.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/learning.py --against-nanogpt nanoGPT --text tinyshakespeare.txt

nanoGPT's train.py runs as its README says (characters on a CPU), once for each row; ours behind it,
once for each seed. Seconds are those of the steps, by each one's own log, without start-up and
evaluations; every val loss is `nanogpt eval` over the whole val split, of theirs, too.
--rows: some of the table's rows, by name. Prints one JSON object. An hour on two cores.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turns import CLONE, alone, in_turns, machine, ratio, report

# nanoGPT's README, "I only have a macbook", and its config for a GPU
SMALL = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
WIDE = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1"
)
WIDE_MINUTES = 10
NGRAMS = "--bigram-rows 4225 --smear --muon-steps 3 --max-iters 130 --eval-interval 130"
BEST = (
    "--block-size 128 --batch-size 8 --max-iters 1250 --eval-interval 1250 --rotary-base 200 "
    "--muon-learning-rate 0.02 --muon-momentum 0.9 --embedding-learning-rate 0.02"
)
WIDE_OURS = (
    "--n-layer 6 --n-head 6 --n-embd 384 --block-size 256 --batch-size 8 --max-iters 60 "
    "--eval-interval 60 --eval-iters 5 --muon-learning-rate 0.03 --muon-momentum 0.9"
)
MUON_STEP = "gpt2-124m --block-size 256 --batch-size 16 --gradient-accumulation-steps 1 --updates 6"


@dataclass(frozen=True)
class Trained:
    """A run: seconds of its steps, and nats/token over the whole val split."""

    seconds: float
    loss: float
    bits_per_byte: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against-nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.against_nanogpt, given.text, given.seeds)
        rows = [row for name in given.rows for row in ROWS[name](bench)]
    report(rows, machine=machine("torch", "numpy"))


class Bench:
    """A folder with the data of both, and how each trains in it."""

    def __init__(self, folder: Path, nanogpt: Path, text: Path, seeds: int) -> None:
        self.folder, self.nanogpt, self.seeds = folder, nanogpt.resolve(), range(1, seeds + 1)
        ours(folder, "prepare", "shakespeare_char", "--source", str(text.resolve()))
        self._prepare_theirs(text)
        self._runs = 0

    def _prepare_theirs(self, text: Path) -> None:
        """nanoGPT's train.bin, val.bin and meta.pkl, by its own prepare.py, beside ours."""
        data = self.folder / "data" / "shakespeare_char"
        shutil.copyfile(text, data / "input.txt")
        source = self.nanogpt / "data" / "shakespeare_char" / "prepare.py"
        shutil.copyfile(source, data / "prepare.py")
        run([sys.executable, str(data / "prepare.py")], self.folder)
        for name in ("model.py", "configurator.py", "train.py"):
            shutil.copyfile(self.nanogpt / name, self.folder / name)

    def theirs(self, arguments: str, seconds: float | None = None) -> Trained:
        """nanoGPT's train.py to its end, or for about so many seconds of steps.

        Its rate still falls over all of its max_iters then, as in a run that is cut off.
        """
        config, *flags = arguments.split()
        line = [sys.executable, "train.py", str(self.nanogpt / config), *flags]
        line += ["--dataset=shakespeare_char", "--out_dir=theirs", "--always_save_checkpoint=True"]
        if seconds is not None:
            probe = step_times(run([*line, "--max_iters=6", "--eval_interval=1000"], self.folder))
            steps = int(seconds / statistics.median(probe[1:]))
            line += [f"--max_iters={steps}", f"--eval_interval={steps}"]
        times = step_times(run(line, self.folder))
        # an evaluation is in the time of its iteration: the median of all stands for these
        spent = statistics.median(times[1:]) * (len(times) - 1)
        out = Path("out") / "theirs"
        shutil.rmtree(self.folder / out, ignore_errors=True)
        taken = ["theirs/ckpt.pt", "--tokenizer", "data/shakespeare_char/meta.pkl"]
        ours(self.folder, "import", "nanogpt", *taken, "--out-dir", str(out))
        return Trained(spent, *self.judge(str(out), "--dataset", "data/shakespeare_char"))

    def train(self, preset: str, *flags: str, seed: int = 1, ranks: int = 1) -> Trained:
        """`nanogpt train` in a folder of its own."""
        self._runs += 1
        out = f"out/{preset}-{self._runs}"
        command = ["train", preset, *flags, "--seed", str(seed), "--out-dir", out, "--json"]
        said = json.loads(ours(self.folder, *command, ranks=ranks))
        seconds = said["tokens"] / said["tokens_per_second"]
        return Trained(seconds, *self.judge(out))

    def judge(self, run_folder: str, *flags: str) -> tuple[float, float]:
        """Nats/token and bits per byte over the whole val split."""
        said = json.loads(ours(self.folder, "eval", run_folder, "--json", *flags))
        return said["val_loss"], said["bits_per_byte"]


def ours(folder: Path, *arguments: str, ranks: int = 1) -> str:
    """Standard output of a `nanogpt` command."""
    line = [sys.executable, str(CLONE / "nanogpt"), *arguments]
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        line[1:1] = [*launcher, "--nproc-per-node", str(ranks)]
    return run(line, folder, 1 if ranks > 1 else None)


def run(line: list[str], folder: Path, threads: int | None = None) -> str:
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(line)[:300]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def step_times(log: str) -> list[float]:
    """Seconds of each iteration in nanoGPT's log."""
    return [float(ms) / 1e3 for ms in re.findall(r"time ([\d.]+)ms", log)]


def same_loss(bench: Bench, what: str, flags: str, reach: float) -> dict[str, Any]:
    """The time to nanoGPT's own loss, as a share of nanoGPT's; all seeds are to reach it."""
    theirs = bench.theirs(SMALL)
    each = [bench.train("modern-char", *flags.split(), seed=seed) for seed in bench.seeds]
    good = sum(one.loss <= theirs.loss for one in each)
    return {
        "what": what,
        "beside": f"nanoGPT: {theirs.loss:.4f} in {theirs.seconds:.1f} s",
        **ratio([one.seconds for one in each], [theirs.seconds] * len(each)),
        "reach": reach,
        "at_most": True,
        "reached": good == len(each),
        "seeds that reach its loss": f"{good} of {len(each)}",
        **told(each),
    }


def told(each: list[Trained]) -> dict[str, Any]:
    return {
        "losses": ", ".join(f"{one.loss:.4f}" for one in each),
        "seconds": ", ".join(f"{one.seconds:.1f}" for one in each),
    }


def characters(bench: Bench) -> list[dict[str, Any]]:
    return [same_loss(bench, "4 × 128 characters, time to nanoGPT's loss", "", 1 / 8)]


def ngrams(bench: Bench) -> list[dict[str, Any]]:
    return [same_loss(bench, "the same with bigram table and smear", NGRAMS, 1 / 12)]


def best(bench: Bench) -> list[dict[str, Any]]:
    """The lowest loss in nanoGPT's time."""
    theirs = bench.theirs(SMALL)
    each = [bench.train("modern-char", *BEST.split(), seed=seed) for seed in bench.seeds]
    return [
        {
            "what": "4 × 128 characters, val loss in nanoGPT's time",
            "beside": f"nanoGPT: {theirs.loss:.4f} in {theirs.seconds:.1f} s",
            **alone([one.loss for one in each]),
            "reach": 1.60,
            "at_most": True,
            **told(each),
        }
    ]


def wide(bench: Bench) -> list[dict[str, Any]]:
    """6 × 384: the loss of nanoGPT after ten minutes."""
    theirs = bench.theirs(WIDE, 60 * WIDE_MINUTES)
    each = [bench.train("modern-char", *WIDE_OURS.split(), seed=seed) for seed in bench.seeds[:2]]
    return [
        {
            "what": f"6 × 384 characters, time to nanoGPT's loss of {WIDE_MINUTES} minutes",
            "beside": f"nanoGPT: {theirs.loss:.4f} in {theirs.seconds:.0f} s",
            **ratio([one.seconds for one in each], [theirs.seconds] * len(each)),
            "reach": 1 / 4,
            "at_most": True,
            **told(each),
        }
    ]


def quickstart(bench: Bench) -> list[dict[str, Any]]:
    """Bits per byte of the quickstart, on two ranks."""
    ours(bench.folder, "prepare", "python-stdlib")
    each = [bench.train("quickstart", seed=seed, ranks=2) for seed in bench.seeds[:2]]
    return [
        {
            "what": "quickstart, bits per byte on the val split, two ranks",
            "beside": "",
            **alone([one.bits_per_byte for one in each]),
            "reach": 1.30,
            "at_most": True,
            "seconds": ", ".join(f"{one.seconds:.0f}" for one in each),
        }
    ]


def muon_step(bench: Bench) -> list[dict[str, Any]]:
    """A step of Muon beside one of AdamW, in turns."""

    def measure(optimizer: str, ranks: int) -> Callable[[], float]:
        line = ["bench", "train", *MUON_STEP.split(), "--optimizer", optimizer, "--json"]
        line += ["--device", "cpu", "--seconds", "600"]
        return lambda: json.loads(ours(bench.folder, *line, ranks=ranks))["ms_per_update"]

    rows = []
    for ranks in (1, 2):
        figures = in_turns({name: measure(name, ranks) for name in ("adamw", "muon")}, 3, False)
        rows.append(
            {
                "what": f"a step of muon, 12 × 768, 16 × 256 tokens, {ranks} rank(s)",
                "beside": "a step of adamw",
                **ratio(figures["muon"], figures["adamw"]),
                "reach": 1.10,
                "at_most": True,
                "ms": {name: statistics.median(values) for name, values in figures.items()},
            }
        )
    return rows


ROWS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "characters": characters,
    "ngrams": ngrams,
    "best": best,
    "wide": wide,
    "quickstart": quickstart,
    "muon_step": muon_step,
}


if __name__ == "__main__":
    main()
