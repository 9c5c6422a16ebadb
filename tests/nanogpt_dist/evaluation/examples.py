"""Examples of tasks, which several tests score."""

import json
from pathlib import Path
from typing import Any

import torch

from nanogpt_dist.evaluation.tasks.scoring import Scorer

QUESTIONS = [
    {
        "ctx": "def read(self):",
        "endings": ["return self.lines", "The end.", "naïve", "x = 1984"],
        "label": 0,
    },
    {"ctx": "It's 1984, ", "endings": ["café", "self", "def lines", "The"], "label": "2"},
    {"ctx": "The", "endings": ["end.", "def", "return", "lines"], "label": 3},
    {"ctx": "return", "endings": ["self.lines", "The end.", "café 1984", "(self)"], "label": 0},
    {"ctx": "self.", "endings": ["lines", "read The end. The end.", "1984", "x"], "label": 1},
]


PASSAGES = ["def read(self): return", "The end. The end. The end.", "naïve café naïve café"]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def plain(scorer: Scorer, context: list[int], following: list[int]) -> tuple[float, bool]:
    """Token by token, each by a pass of its own over what fits into block_size."""
    total, greedy, ids = 0.0, True, [*context, *following]
    size, n = scorer.model.config.block_size, scorer.tokenizer.n_vocab
    ids = ids[-(size + 1) :]
    with torch.no_grad():
        for at in range(len(ids) - len(following), len(ids)):
            log_p = scorer.model(torch.tensor([ids[:at]]))[0][0, -1, :n].log_softmax(0)
            total += log_p[ids[at]].item()
            greedy = greedy and int(log_p.argmax()) == ids[at]
    return total, greedy
