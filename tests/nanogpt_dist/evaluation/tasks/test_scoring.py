"""Log-likelihoods against plain sums, the same on any number of ranks."""

import json
from pathlib import Path

import pytest
import torch

from nanogpt_dist.evaluation.tasks.scoring import Scorer, pair
from tests.conftest import in_ranks, write_jsonl
from tests.nanogpt_dist.evaluation.examples import PASSAGES, QUESTIONS, plain, write_lines


def test_scores_are_plain_sums_in_any_batch(scorer: Scorer) -> None:
    requests = [
        pair(scorer.tokenizer, q["ctx"], " " + ending) for q in QUESTIONS for ending in q["endings"]
    ]
    requests.append(([5] * 40, [7, 8, 9] * 3))  # more than fits: the end of the context counts
    for score, (context, following) in zip(scorer(requests), requests, strict=True):
        wanted, greedy = plain(scorer, list(context), list(following))
        assert score.log_likelihood == pytest.approx(wanted, abs=1e-4)
        assert (score.greedy, score.tokens) == (greedy, len(following))
    likeliest = [int(scorer.model(torch.tensor([[3]]))[0][0, -1, :300].argmax())]
    assert scorer([([3], likeliest)])[0].greedy


@pytest.mark.thorough
def test_the_ranks_share_the_requests_and_agree(run: Path, tmp_path: Path) -> None:
    h, lamb = (
        write_lines(tmp_path / "h.jsonl", QUESTIONS),
        write_jsonl(tmp_path / "l.jsonl", PASSAGES),
    )
    for ranks in (1, 2):
        in_ranks("tasks", ranks, run, h, lamb, tmp_path / f"{ranks}.json")
    one, two = (json.loads((tmp_path / f"{ranks}.json").read_text()) for ranks in (1, 2))
    assert one == two
