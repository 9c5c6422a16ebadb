"""Tasks: log-likelihoods against plain sums, the same on any number of ranks, and lm-eval's own
command as oracle.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from nanogpt_dist.checkpoint import load_checkpoint_tokenizer, load_model
from nanogpt_dist.data import DataFolder
from nanogpt_dist.errors import BadDataError, ConfigError, MissingInputError, UsageError
from nanogpt_dist.evaluation import report
from nanogpt_dist.evaluation.tasks import harness, jsonl_tasks
from nanogpt_dist.evaluation.tasks.scoring import Scorer, pair
from nanogpt_dist.storage.run_checkpoints import find_checkpoint
from tests.conftest import Run, in_ranks, write_jsonl
from tests.nanogpt_dist.interop.models import bpe, make_run
from tests.nanogpt_dist.small import ONE

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

TASK = """task: local_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{ctx}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1.0
"""
ROLLING = """task: local_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
metadata:
  version: 1.0
"""
WRITING = """task: local_writing
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: generate_until
test_split: test
doc_to_text: "{{{{ctx}}}}"
doc_to_target: "{{{{endings[0]}}}}"
generation_kwargs:
  until: ["e", "x"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
metadata:
  version: 1.0
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("tasks") / "run", bpe(), bias=True)


@pytest.fixture(scope="module")
def scorer(run: Path) -> Scorer:
    found = find_checkpoint(str(run))
    model, _ = load_model(found, torch.device("cpu"))
    return Scorer(model, load_checkpoint_tokenizer(found), ONE, batch_size=3)


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


def test_a_byte_order_mark_is_no_part_of_what_is_scored(scorer: Scorer, tmp_path: Path) -> None:
    for name, data in (("plain", b""), ("marked", b"\xef\xbb\xbf")):
        (tmp_path / f"{name}.txt").write_bytes(data + "naïve café".encode())
        lines = [data + json.dumps({"text": passage}).encode() + b"\n" for passage in PASSAGES]
        # as `cat` puts marked files together
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(lines))
        (tmp_path / f"{name}.yaml").write_bytes(data + b"task: mine\n")
    assert jsonl_tasks.text(tmp_path / "marked.txt", scorer) == jsonl_tasks.text(
        tmp_path / "plain.txt", scorer
    )
    found = jsonl_tasks.run("lambada", tmp_path / "marked.jsonl", scorer)
    assert found == jsonl_tasks.run("lambada", tmp_path / "plain.jsonl", scorer)
    assert harness._local(str(tmp_path / "marked.yaml")) == (tmp_path.resolve(), "mine")
    (tmp_path / "bad.yaml").write_bytes("task: mine\n".encode("utf-16"))
    with pytest.raises(BadDataError, match=r"bad.yaml is not UTF-8 at byte 0"):
        harness._local(str(tmp_path / "bad.yaml"))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


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


@pytest.mark.thorough
def test_lm_evals_own_command_gives_the_figures_of_eval(
    run: Path,
    tmp_path: Path,
    nanogpt: Run,
) -> None:
    """On our export, by transformers' GPT-2 and tokenizer; a multiple choice, a text, and what is
    written.
    """
    pytest.importorskip("lm_eval")
    h = write_lines(tmp_path / "h.jsonl", [{**q, "label": int(q["label"])} for q in QUESTIONS])
    texts = write_jsonl(tmp_path / "texts.jsonl", [" ".join(PASSAGES) * 3, PASSAGES[2]])
    tasks = {
        "local_choice": (TASK, h),
        "local_text": (ROLLING, texts),
        "local_writing": (WRITING, h),
    }
    for name, (content, file) in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(content.format(file=file))
    refused = nanogpt("eval", run, "--tasks", "no_such_task", code=2)
    assert "lm-eval has no task no_such_task" in refused.stderr
    nanogpt("export", "hf", run, tmp_path / "hf")
    said = nanogpt(
        "eval", run, "--json", "--tasks", ",".join(str(tmp_path / f"{name}.yaml") for name in tasks)
    )
    ours = json.loads(said.stdout)["results"]
    kept = json.loads((run / "checkpoints" / "step-00000000.eval.json").read_text())
    assert kept["results"]["local_choice"] == ours["local_choice"]

    line = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={tmp_path / 'hf'}",
    ]
    line += [
        "--tasks",
        ",".join(tasks),
        "--include_path",
        str(tmp_path),
        "--output_path",
        str(tmp_path / "theirs"),
    ]
    done = subprocess.run(
        [*line, "--device", "cpu"], capture_output=True, text=True, timeout=200, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(next((tmp_path / "theirs").rglob("results*.json")).read_text())["results"]
    for task, figures in ours.items():
        for metric in figures.keys() - {"sample_len"}:
            key = metric if metric in theirs[task] else f"{metric},none"
            assert figures[metric] == pytest.approx(theirs[task][key], rel=1e-5), (task, metric)
    assert {"acc", "acc_norm"} <= ours["local_choice"].keys()
    assert {"word_perplexity", "bits_per_byte"} <= ours["local_text"].keys()
    assert "exact_match" in ours["local_writing"]


def test_eval_by_the_command(run: Path, tmp_path: Path, nanogpt: Run) -> None:
    """Two checkpoints in a table, on a task and a text; the figures are kept beside each."""
    h = write_lines(tmp_path / "h.jsonl", QUESTIONS)
    other = make_run(tmp_path / "other", bpe())
    done = nanogpt("eval", run, other, "--tasks", f"hellaswag={h}", "--text", h, "--limit", "2")
    assert "step-00000000" in done.stdout
    assert "acc_norm" in done.stdout
    assert len([line for line in done.stdout.splitlines() if "other/checkpoints" in line]) == 1
    kept = json.loads((other / "checkpoints" / "step-00000000.eval.json").read_text())
    assert kept["checkpoint"] == "step-00000000"
    assert kept["results"]["hellaswag"]["examples"] == 2


@pytest.mark.parametrize(
    "asked",
    [{}, {"max_gen_toks": 48}, {"max_new_tokens": 300}, {"max_gen_toks": "x"}, {"max_gen_toks": 0}],
)
def test_what_leaves_a_prompt_no_room_is_refused(asked: dict[str, Any], scorer: Scorer) -> None:
    with pytest.raises(ConfigError, match="generation_kwargs"):
        harness._asked([("The end.", asked)], scorer)


def test_a_prompt_keeps_what_max_gen_toks_leaves(
    scorer: Scorer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = scorer.tokenizer.encode("The end." * 30).tolist()
    how = {"max_gen_toks": 40, "until": "e", "do_sample": True}
    first, again, short = harness._asked(
        [("The end." * 30, how), ("The end." * 30, how), ("x", how)], scorer
    )
    assert first[0] == whole[-8:]
    assert (first[2], again[2], short[2]) == (0, 1, 0)  # equal requests are drawn anew
    assert (first[1].temperature, first[1].stop) == (1.0, ("e",))
    assert "2 of 3 prompts lose their beginning" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_weights_that_diverged_have_no_figures(
    value: float,
    run: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    loaded = report.load_checkpoint(find_checkpoint(str(run)), torch.device("cpu"))
    with torch.no_grad():
        loaded.model.transformer.ln_f.weight[:] = value
    scorer = loaded.scorer(ONE, 4, "float32")
    file = write_lines(tmp_path / "h.jsonl", QUESTIONS)
    for figures in (
        lambda: report.run_tasks([f"hellaswag={file}"], scorer, None),
        lambda: jsonl_tasks.text(file, scorer),
        lambda: report.split_loss(
            replace(loaded, tokenizer=None),
            DataFolder.open(corpus),
            "val",
            report.EvalSettings(ONE, 4),
        ),
    ):
        with pytest.raises(BadDataError, match="diverged"):
            figures()


def test_a_list_of_tasks_is_read_before_anything_else(scorer: Scorer, tmp_path: Path) -> None:
    one, two = (write_lines(tmp_path / name, QUESTIONS) for name in ("a.jsonl", "b.jsonl"))
    names = report.task_names(f" hellaswag={one}, hellaswag = {two} ,")
    assert names == [f"hellaswag={one}", f"hellaswag={two}"]
    assert list(report.run_tasks(names, scorer, 1)) == names
    assert list(report.run_tasks(names[:1], scorer, 1)) == ["hellaswag"]
    for listed, error, told in [
        (",", UsageError, "names no task"),
        ("", UsageError, "names no task"),
        (f"hellaswag={one},hellaswag={one}", UsageError, "twice"),
        (f"piqa={one}", UsageError, "only hellaswag and lambada"),
        ("lambada=no.jsonl", MissingInputError, "does not exist"),
        ("hellaswag=", MissingInputError, "not a file"),
    ]:
        with pytest.raises(error, match=told):
            report.task_names(listed)


def test_flags_of_eval_that_nothing_would_read_are_refused(run: Path) -> None:
    for flags in (
        ["--limit", "3"],
        ["--limit", "3", "--text", "a"],
        ["--split", "train", "--tasks", "piqa"],
    ):
        found = CliRunner().invoke(app, ["eval", str(run), *flags])
        assert isinstance(found.exception, UsageError)
        assert flags[0] in str(found.exception)
