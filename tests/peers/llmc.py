"""Against a clone of llm.c: its CPU trainer, built with the C compiler, goes on from our checkpoint
on our shards.

    python -m tests.peers.llmc PATH/TO/llm.c

A small run of ours is exported; train_gpt2 makes its 41 updates from it; the same are made with our
model: the losses are equal, before and during its training. It prints samples with the vocabulary
that we export.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from nanogpt_dist import checkpoint
from nanogpt_dist.data import DataFolder, Split

B, T = 4, 64  # as its main() has them
RATE, BETAS = 1e-4, (0.9, 0.999)
MODEL = [
    *(
        "--n-layer",
        "3",
        "--n-head",
        "4",
        "--n-embd",
        "64",
        "--block-size",
        "64",
        "--vocab-size",
        "512",
        "--bias",
    ),
    *(
        "--gelu",
        "tanh",
        "--batch-size",
        "4",
        "--gradient-accumulation-steps",
        "2",
        "--max-iters",
        "30",
    ),
    *(
        "--warmup-iters",
        "5",
        "--learning-rate",
        "1e-3",
        "--min-lr",
        "1e-4",
        "--eval-iters",
        "2",
        "--device",
        "cpu",
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clone", type=Path)
    clone = parser.parse_args().clone.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        prove(clone, Path(scratch))


def prove(clone: Path, work: Path) -> None:
    text = work / "text.txt"
    shutil.copy(Path(os.__file__).with_name("argparse.py"), text)
    nanogpt(
        work,
        "prepare",
        "text",
        "--source",
        text,
        "--tokenizer",
        "bpe:512",
        "--out",
        "data",
        "--val-fraction",
        "0.2",
    )
    nanogpt(work, "train", *MODEL, "--dataset", "data", "--out-dir", "run")
    nanogpt(work, "export", "llmc", "run", "theirs")

    program, source = work / "train_gpt2", work / "train_gpt2.c"
    in_order = (
        (clone / "train_gpt2.c")
        .read_text()
        .replace("train_tokens, B, T, 0, 1, 1)", "train_tokens, B, T, 0, 1, 0)")
    )
    source.write_text(in_order)  # it would shuffle the batches
    subprocess.run(
        ["cc", "-O3", "-fopenmp", f"-I{clone}", "-o", program, source, "-lm"], cwd=clone, check=True
    )
    folder = work / "dev" / "data" / "tinyshakespeare"
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copy(
            next((work / "data").glob(f"*_{split}_000000.bin")),
            folder / f"tiny_shakespeare_{split}.bin",
        )
    for path in (work / "theirs").glob("*.bin"):
        shutil.copy(path, work)
    said = subprocess.run(
        [program], cwd=work, check=True, capture_output=True, text=True, errors="replace"
    ).stdout
    print("\n".join(said.splitlines()[:14]), "\n…")
    theirs = [float(loss) for loss in re.findall(r"step \d+: train loss ([\d.]+)", said)]
    before = float(re.findall(r"val loss ([\d.]+)", said)[0])
    samples = re.findall(r"---\n(.*?)\n---", said, re.DOTALL)

    val, train = ours(work, len(theirs))
    print(f"val loss before: llm.c {before:.6f}, ours {val:.6f}")
    worst = max(abs(a - b) for a, b in zip(theirs, train, strict=True))
    print(
        f"loss over {len(theirs)} updates: from {theirs[0]:.6f} to {theirs[-1]:.6f}, largest "
        f"difference {worst:.2e}"
    )
    assert abs(before - val) < 1e-4
    assert worst < 1e-3
    assert len(samples) == 2, "it printed no samples"
    print("its last sample:", repr(samples[-1][:60]))


def nanogpt(work: Path, *arguments: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "nanogpt_dist", *map(str, arguments)], check=True, cwd=work
    )


def ours(work: Path, updates: int) -> tuple[float, list[float]]:
    """The mean loss over its five batches of the val split, then that of each update, as its main()
    makes them.
    """
    found = next((work / "run" / "checkpoints").glob("step-*"))
    model, _ = checkpoint.load_model(found, torch.device("cpu"))
    data = DataFolder.open(work / "data")
    with torch.no_grad():
        val = sum(loss_of(model, data.split("val"), i).item() for i in range(5)) / 5
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=BETAS, eps=1e-8, weight_decay=0.0
    )
    losses = []
    for name in [data.split("train")] * updates:
        loss = loss_of(model, name, len(losses))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return val, losses


def loss_of(model: torch.nn.Module, split: Split, batch: int) -> torch.Tensor:
    ids = torch.from_numpy(split.read(batch * B * T, B * T + 1).astype("int64"))
    return model(ids[:-1].view(B, T), ids[1:].view(B, T))[1]


if __name__ == "__main__":
    main()
