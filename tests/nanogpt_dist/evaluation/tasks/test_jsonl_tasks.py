"""HellaSwag, LAMBADA and texts, scored from their files."""

import math
from pathlib import Path

import pytest
import torch

from nanogpt_dist.errors import BadDataError, MissingInputError, UsageError
from nanogpt_dist.evaluation.tasks import jsonl_tasks
from nanogpt_dist.evaluation.tasks.scoring import Scorer, pair
from tests.conftest import write_jsonl
from tests.nanogpt_dist.evaluation.examples import PASSAGES, QUESTIONS, plain, write_lines


def test_hellaswag_and_lambada(scorer: Scorer, tmp_path: Path) -> None:
    found = jsonl_tasks.run("hellaswag", write_lines(tmp_path / "h.jsonl", QUESTIONS), scorer)
    hits = normed = 0
    for q in QUESTIONS:
        pairs = [pair(scorer.tokenizer, q["ctx"], " " + ending) for ending in q["endings"]]
        sums = [plain(scorer, list(a), list(b))[0] for a, b in pairs]
        hits += sums.index(max(sums)) == int(q["label"])
        means = [s / len(b) for s, (_, b) in zip(sums, pairs, strict=True)]
        normed += means.index(max(means)) == int(q["label"])
    assert found == {"acc": hits / 5, "acc_norm": normed / 5, "examples": 5}

    found = jsonl_tasks.run("lambada", write_jsonl(tmp_path / "l.jsonl", PASSAGES), scorer, limit=2)
    pairs = [
        pair(scorer.tokenizer, text.rpartition(" ")[0], " " + text.rpartition(" ")[2])
        for text in PASSAGES[:2]
    ]
    wanted = [plain(scorer, list(a), list(b)) for a, b in pairs]
    assert found["examples"] == 2
    assert found["acc"] == sum(greedy for _, greedy in wanted) / 2
    assert found["perplexity"] == pytest.approx(
        math.exp(-sum(total for total, _ in wanted) / 2), rel=1e-4
    )


def test_bits_per_byte_of_a_text(scorer: Scorer, tmp_path: Path) -> None:
    text = "It's 1984, naïve café; 東京 🙂\n" * 7
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    found = jsonl_tasks.text(tmp_path / "t.txt", scorer)
    ids = [scorer.tokenizer.eot_id, *scorer.tokenizer.encode(text).tolist()]
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 48):
            x = torch.tensor([ids[start : start + 48]])
            y = torch.tensor(ids[start + 1 : start + 49])
            log_p = scorer.model.logits(x)[0, : len(y), :300].log_softmax(-1)
            nats -= log_p.gather(1, y[:, None]).sum().item()
    assert found["bytes"] == len(text.encode())
    assert found["tokens"] == len(ids) - 1
    assert found["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / len(text.encode()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("hellaswag", "{}\n", r":1 has no ctx, endings and label"),
        ("hellaswag", '{"ctx": "a", "endings": ["b"], "label": 1}\n', "has no ctx"),
        ("lambada", '\n{"text": "one"}\n', ":1 has no text of several words"),
        ("lambada", "[1]\n", ":1 is no JSON object"),
        ("lambada", "\n", "is empty"),
        ("lambada", b"\xff", "is not UTF-8 at byte 0"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(
    name: str,
    text: str | bytes,
    reason: str,
    scorer: Scorer,
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadDataError, match=reason):
        jsonl_tasks.run(name, path, scorer)
    with pytest.raises(MissingInputError):
        jsonl_tasks.run(name, tmp_path / "none.jsonl", scorer)
    with pytest.raises(UsageError, match="only hellaswag and lambada"):
        jsonl_tasks.run("piqa", path, scorer)
