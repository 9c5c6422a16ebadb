"""Ids that a model has no row for end in a line, wherever they come from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.config import resolve
from nanogpt_dist.data import DataFolder
from nanogpt_dist.errors import BadDataError, MissingInputError, UsageError
from nanogpt_dist.evaluation import report
from nanogpt_dist.evaluation.report import LoadedModel
from nanogpt_dist.evaluation.tasks import jsonl_tasks
from nanogpt_dist.evaluation.tasks.scoring import Scorer
from nanogpt_dist.generation import sampling
from nanogpt_dist.generation.decoder import Decoder
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.storage.run_checkpoints import find_checkpoint
from nanogpt_dist.storage.run_folder import to_json
from nanogpt_dist.tokenizer import Tokenizer
from tests.conftest import Run
from tests.nanogpt_dist.evaluation.examples import QUESTIONS, write_lines
from tests.nanogpt_dist.interop.models import SIZES, bpe, make_run
from tests.nanogpt_dist.small import ONE


def loaded(rows: int, tokenizer: Tokenizer | None) -> LoadedModel:
    config = resolve({**SIZES, "vocab_size": rows})
    return LoadedModel(
        "a model", GPT(config.architecture()).init_weights(0).eval(), config, tokenizer, None
    )


def test_an_id_without_a_row_is_told(tmp_path: Path) -> None:
    few = loaded(90, tokenizers.byte())
    text = tmp_path / "text.txt"
    text.write_text("abc xyz", encoding="utf-8")
    with pytest.raises(BadDataError, match="gives id 256, the model has 90 rows"):
        jsonl_tasks.text(text, few.scorer(ONE, 4, "float32"))
    decoder = Decoder(few.model, 256)
    with pytest.raises(BadDataError, match="gives id 122, the model has 90 rows"):
        sampling.sample(decoder, tokenizers.byte(), ["xyz"], 1, sampling.Settings(max_new_tokens=2))
    assert sampling.sample(
        decoder, tokenizers.byte(), ["ABC"], 1, sampling.Settings(max_new_tokens=2)
    )


def test_data_with_more_ids_than_the_model_has_rows_is_refused(corpus: Path) -> None:
    data = DataFolder.open(corpus)
    for tokenizer in (None, data.tokenizer):
        with pytest.raises(BadDataError, match=r"has ids up to \d+, a model 20 rows"):
            report.check_tokenizer(loaded(20, tokenizer), data)
        report.check_tokenizer(loaded(data.tokenizer.n_vocab, tokenizer), data)


def test_json_has_null_for_what_is_not_finite_at_any_depth() -> None:
    content = {"a": float("nan"), "b": {"c": [1.5, float("inf"), {"d": (-float("inf"), 2)}]}}
    assert json.loads(to_json(content)) == {"a": None, "b": {"c": [1.5, None, {"d": [None, 2]}]}}


@pytest.mark.parametrize(("text", "begins"), [("ACGT", "A"), ("a\nb", "\n"), ("", "\n")])
def test_a_sample_begins_with_text_that_the_tokenizer_has(text: str, begins: str) -> None:
    tokenizer = tokenizers.char([text]) if text else tokenizers.byte()
    assert sampling.first_text(tokenizer) == begins
    model = loaded(tokenizer.n_vocab, tokenizer).model
    torch.manual_seed(0)
    assert sampling.encode_prompt("", tokenizer)
    for prompt in ("", begins):
        [found] = sampling.sample(
            Decoder(model, tokenizer.n_vocab), tokenizer, [prompt], 1, sampling.Settings(3)
        )
        assert found.prompt == prompt


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
