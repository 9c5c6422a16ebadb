"""Make the pictures of this folder with the toolkit itself: python docs/images/make.py

It prepares Tiny Shakespeare, trains two small models on it (two minutes on two cores) and draws:
loss.svg, model.svg and data.svg. Without a network: --source FILE, the text of Tiny Shakespeare.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).resolve().parent
sys.path.insert(0, str(IMAGES.parents[1]))

from docs.images.data_flow import draw  # noqa: E402

PRESET = "shakespeare-char-cpu"
RUNS = {
    "out/as-gpt2": [],
    "out/rotary-rmsnorm-swiglu": ["--rotary", "--norm", "rmsnorm", "--mlp", "swiglu"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, help="input.txt of Tiny Shakespeare")
    source = parser.parse_args().source
    (IMAGES / "data.svg").write_text(draw(), "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        given = ["--source", str(source.resolve())] if source else []
        nanogpt(folder, "prepare", "shakespeare_char", *given)
        for run, options in RUNS.items():
            nanogpt(folder, "train", PRESET, "--out-dir", run, *options)
        nanogpt(folder, "compare", *RUNS, "--plot", str(IMAGES / "loss.svg"))
        nanogpt(folder, "show", "full", PRESET, "--svg", str(IMAGES / "model.svg"))


def nanogpt(folder: str, *words: str) -> None:
    """Run a command of the toolkit in `folder`. Raises CalledProcessError."""
    subprocess.run([sys.executable, IMAGES.parents[1] / "nanogpt", *words], cwd=folder, check=True)


if __name__ == "__main__":
    main()
