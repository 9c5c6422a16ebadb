"""What a command tells to type next: lines that a shell takes as they are printed."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanogpt_dist.data.manifest import Manifest


def to_train(manifest: "Manifest", out: str) -> str:
    """The command that trains on the data folder `out`, and a second line for those without a GPU.

    A corpus for which a preset is made gets that one; other data the default preset, in a run
    folder of its own.
    """
    from nanogpt_dist.config import TrainConfig
    from nanogpt_dist.presets import DEFAULT_PRESET, PRESETS
    from prepare.corpora import CORPORA

    corpus = CORPORA.get(manifest.name)
    fits = corpus is not None and manifest.tokenizer.spec == corpus.tokenizer
    preset = corpus.preset if corpus and fits and corpus.preset else None
    small = f"{preset}-cpu" if f"{preset}-cpu" in PRESETS else "quickstart"

    def train(name: str) -> str:
        setting = {
            field: info.default for field, info in TrainConfig.model_fields.items()
        } | PRESETS[name]
        given = []
        if os.path.normpath(out) != setting["dataset"]:
            given += ["--dataset", out]
            # a preset's own run folder is for its own data
            if not (preset and name.startswith(preset)):
                given += ["--out-dir", f"out/{Path(out).resolve().name}"]
        if (tokens := manifest.splits["train"].tokens) <= setting["block_size"]:
            given += ["--block-size", str(max(1, tokens - 1))]
        return shlex.join(["nanogpt", "train", name, *given])

    first = train(preset or DEFAULT_PRESET)
    return (
        f"Next: {first}" if preset == small else f"Next: {first}\nor, without a GPU: {train(small)}"
    )


def to_prepare(sources: Sequence[str], column: str, tokenizer: Path) -> str:
    """The command that prepares what a tokenizer was learnt from, with it."""
    corpus = ["python-stdlib"] if list(sources) == ["python-stdlib"] else ["text"]
    given = (
        [] if corpus != ["text"] else [word for source in sources for word in ("--source", source)]
    )
    given += [] if column == "text" else ["--column", column]
    return shlex.join(["nanogpt", "prepare", *corpus, *given, "--tokenizer", str(tokenizer)])
