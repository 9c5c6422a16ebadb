"""Scores of a run on two files, which rank 0 writes down: RUN HELLASWAG LAMBADA OUT."""

import json
import sys
from pathlib import Path

from nanogpt_dist.checkpoint import load_checkpoint_tokenizer, load_model
from nanogpt_dist.distributed.world import connect
from nanogpt_dist.storage.run_folder import find_checkpoint
from nanogpt_dist.tasks import own
from nanogpt_dist.tasks.scoring import Scorer

run, hellaswag, lambada, out = map(Path, sys.argv[1:])
with connect("cpu", timeout_s=60) as world:
    found = find_checkpoint(str(run))
    model, _ = load_model(found, world.device)
    scorer = Scorer(model, load_checkpoint_tokenizer(found), world, batch_size=3)
    results = {
        "hellaswag": own.run("hellaswag", hellaswag, scorer),
        "lambada": own.run("lambada", lambada, scorer),
        "text": own.text(hellaswag, scorer),
        "scores": [
            score.log_likelihood for score in scorer([([i], [i + 1, 2]) for i in range(17)])
        ],
    }
    if world.leads:
        out.write_text(json.dumps(results))
