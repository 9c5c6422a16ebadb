"""Run on the fake GPU by test_on_gpu.py: what evaluation reads there, as one JSON object."""

import json

import numpy as np
import torch

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.distributed.world import World
from nanogpt_dist.evaluation.loss import Evaluator, whole_split
from nanogpt_dist.evaluation.tasks.scoring import Scorer
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.tokenizer import byte
from tests.fakecuda import record

CONFIG = ModelConfig(block_size=16, vocab_size=257, n_layer=2, n_head=2, n_embd=16)
REQUESTS = [([1, 2, i], list(range(i + 1, i + 4))) for i in range(20)]


class Ids:
    """A split of which nothing is on a disk."""

    tokens, n_vocab = 16 * 10 + 6, 257

    def read(self, start: int, length: int) -> np.ndarray:
        return (np.arange(start, start + length, dtype=np.uint32) * 7) % 257


def figures(device: torch.device) -> tuple[list[float], dict[str, list[str]]]:
    """Loss and log-likelihoods; what waited for the device, asked it, or went up unpinned."""
    with torch.device("meta"):
        model = GPT(CONFIG)
    model = model.to_empty(device=device).tie().init_weights(0).eval()
    world = World(rank=0, local_rank=0, size=1, device=device, backend=None)
    windows = whole_split(Ids.tokens, CONFIG.block_size)
    evaluator = Evaluator(Ids(), windows, byte().byte_lengths(), world, batch_size=4)  # type: ignore[arg-type]
    waited = {}
    record.happenings.clear()
    found = [evaluator(model).val_loss]
    waited["loss"] = waits()
    found += [score.log_likelihood for score in Scorer(model, byte(), world, 4)(REQUESTS)]
    waited["scores"] = waits()
    return found, waited


def waits() -> list[str]:
    found = [
        each.kind
        for each in record.happenings
        if each.waits
        or each.kind == "query"
        or (each.kind == "up" and not (each.pinned and each.contiguous))
    ]
    record.happenings.clear()
    return found


if __name__ == "__main__":
    gpu, waited = figures(torch.device("cuda", 0))
    cpu, _ = figures(torch.device("cpu"))
    farthest = max(abs(a - b) for a, b in zip(gpu, cpu, strict=True))
    print(json.dumps({"farthest": farthest, "numbers": len(gpu), "waited": waited}))
