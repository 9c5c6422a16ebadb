"""Scores of a run on two files, which rank 0 writes down: RUN HELLASWAG LAMBADA OUT."""

import json
import sys
from pathlib import Path

from nanogpt_dist.checkpoint import load_checkpoint_tokenizer, load_model
from nanogpt_dist.distributed.world import connect
from nanogpt_dist.evaluation.tasks import jsonl_tasks
from nanogpt_dist.evaluation.tasks.scoring import Scorer
from nanogpt_dist.storage.run_checkpoints import find_checkpoint

run, hellaswag, lambada, out = map(Path, sys.argv[1:])
with connect("cpu", timeout_s=60) as world:
    found = find_checkpoint(str(run))
    model, _ = load_model(found, world.device)
    scorer = Scorer(model, load_checkpoint_tokenizer(found), world, batch_size=3)
    results = {
        "hellaswag": jsonl_tasks.run("hellaswag", hellaswag, scorer),
        "lambada": jsonl_tasks.run("lambada", lambada, scorer),
        "text": jsonl_tasks.text(hellaswag, scorer),
        "scores": [
            score.log_likelihood for score in scorer([([i], [i + 1, 2]) for i in range(17)])
        ],
    }
    if world.is_rank0:
        out.write_text(json.dumps(results))
