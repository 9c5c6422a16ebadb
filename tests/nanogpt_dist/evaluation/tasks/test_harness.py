"""lm-eval's tasks through the adapter, with lm-eval's own command as oracle."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nanogpt_dist.errors import BadDataError, ConfigError, HubUnavailableError, one_line
from nanogpt_dist.evaluation.tasks import harness, jsonl_tasks
from nanogpt_dist.evaluation.tasks.scoring import Scorer
from tests.conftest import Run, write_jsonl
from tests.nanogpt_dist.evaluation.examples import PASSAGES, QUESTIONS, write_lines

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


def test_without_a_network_what_to_type_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    hint = "offline, set HF_HOME to a filled cache"

    def offline(*_: Any) -> None:
        raise HubUnavailableError(f"hub unavailable for 20 s ({'x' * 70}), never answered; {hint}")

    lm_eval = SimpleNamespace(
        TaskManager=lambda **_: SimpleNamespace(all_tasks=["hellaswag"]), get_task_dict=offline
    )
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", lm_eval)
    with pytest.raises(HubUnavailableError, match="data of hellaswag cannot be had") as caught:
        harness._load(["hellaswag"])
    line = one_line(str(caught.value))
    assert line.endswith(f"; {hint}")


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
