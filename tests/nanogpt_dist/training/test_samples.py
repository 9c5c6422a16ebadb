"""Samples while a run goes on: what they say, and that training does not notice them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanogpt_dist.checkpoint import load_model
from nanogpt_dist.config import resolve
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.importing import import_shards
from nanogpt_dist.errors import ConfigError, StorageError, TextError
from nanogpt_dist.generation.decoder import Decoder
from nanogpt_dist.generation.sampling import sample
from nanogpt_dist.generation.settings import Settings
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.json_lines import JsonLines
from nanogpt_dist.tokenizer.tokenizer import char
from nanogpt_dist.training import loop
from nanogpt_dist.training.odd_settings import odd_settings
from nanogpt_dist.training.samples import NEW_TOKENS, Sampler, make_sampler, val_beginnings
from tests.conftest import TINY, Run
from tests.nanogpt_dist.data.test_importing import stream, write_raw
from tests.nanogpt_dist.small import ALL_OPTIONS, ONE, go, records, tiny, weights_sha256
from tests.nanogpt_dist.training.test_pending import After


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_training_does_not_notice_that_samples_are_drawn(corpus: Path, tmp_path: Path) -> None:
    for name, changes in (("without", {}), ("with", {"sample_interval": 2})):
        go(tiny(corpus, tmp_path / name, dropout=0.3, log_interval=1, **changes))
    assert weights_sha256(tmp_path / "with", 8) == weights_sha256(tmp_path / "without", 8)
    logged = [
        [
            (line["step"], line.get("loss"), line.get("val_loss"))
            for line in records(tmp_path / name)
        ]
        for name in ("without", "with")
    ]
    assert logged[0] == logged[1]
    assert not (tmp_path / "without" / "samples.jsonl").exists()
    assert sorted({line["step"] for line in samples(tmp_path / "with")}) == [2, 4, 6, 8]


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["gpt2", "all-options"])
def test_they_are_what_the_decoder_draws_of_the_checkpoint(
    corpus: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    prompts = ["def ", "import os", ""]
    # in float32, as the decoder; a head of zeros would leave unseen ids all but equally likely
    options = {**options, "zero_init": False, "dropout": 0.1, "dtype": "float32"}
    result = go(tiny(corpus, tmp_path, sample_interval=100, sample_prompt=prompts, **options))
    found = samples(tmp_path)
    assert [line["prompt"] for line in found] == prompts
    assert {line["step"] for line in found} == {8}, "the last step has samples, whatever it is"
    assert all(line["time"] > 1.7e9 for line in found)
    model = load_model(Path(result.checkpoint), torch.device("cpu"))[0].eval()
    tokenizer = DataFolder.open(corpus).tokenizer
    decoder = Decoder(model, tokenizer.n_vocab, weights="float32")
    expected = sample(decoder, tokenizer, prompts, 1, Settings(max_new_tokens=NEW_TOKENS))
    drawn = "".join(line["text"] for line in found)
    oracle = "".join(each.text for each in expected)
    # where two ids are all but equally likely, rounding decides
    same = sum(a == b for a, b in zip(drawn, oracle, strict=True))
    assert len(oracle) - same <= 2 < len(oracle)


@pytest.mark.parametrize("eot", ["append", "prepend"])
def test_without_prompts_documents_of_the_val_split_begin_them(tmp_path: Path, eot: str) -> None:
    texts = [f"document {i}, and its words" for i in range(20)]
    for name in ("train", "val"):
        write_raw(tmp_path / f"{name}.bin", stream(texts, eot))
    import_shards([tmp_path], "byte", eot=eot)  # type: ignore[arg-type]
    data = DataFolder.open(tmp_path)
    prompts = val_beginnings(data)
    assert prompts == val_beginnings(data)
    assert prompts == ["document 0, and ", "document 7, and ", "document 14, and"]


def test_where_no_document_begins_the_words_there_do(corpus: Path) -> None:
    data = DataFolder.open(corpus)
    split = data.split("val")  # of one document
    whole = data.tokenizer.decode(split.read(0, split.tokens).tolist())
    prompts = val_beginnings(data)
    assert len(set(prompts)) == 3
    assert all(prompt and prompt in whole for prompt in prompts)


def test_a_resume_draws_anew_what_comes_after_its_checkpoint(corpus: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    go(tiny(corpus, whole, sample_interval=3))
    go(tiny(corpus, stopped, sample_interval=3, max_iters=4))
    kept = (stopped / "samples.jsonl").read_text()
    with (stopped / "samples.jsonl").open("a") as file:  # of steps that are lost, and a torn line
        file.write('{"step": 7, "time": 1, "prompt": "", "text": ""}\n{"step": 3, "ti')
    go(tiny(corpus, stopped, sample_interval=3))
    assert (stopped / "samples.jsonl").read_text().startswith(kept)
    texts = [
        [(line["step"], line["text"]) for line in samples(run) if line["step"] in (3, 6, 8)]
        for run in (whole, stopped)
    ]
    assert texts[0] == texts[1]


def test_tensorboard_shows_them_as_they_stand(corpus: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    go(tiny(corpus, tmp_path, sample_interval=4, sample_prompt=["# x"], tensorboard=True))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    [tag] = board.Tags()["tensors"]
    assert tag.startswith("samples/0")
    events = board.Tensors(tag)
    assert [event.step for event in events] == [4, 8]
    assert events[0].tensor_proto.string_val[0].decode().startswith("    # x")


def test_typed_prompts_reach_the_run(corpus: Path, nanogpt: Run, tmp_path: Path) -> None:
    flags = [*TINY, "--max-iters", 2, "--no-tensorboard", "--out-dir", "run", "--dataset", corpus]
    asked = ["--sample-interval", 2, "--sample-prompt", "s3://no/address", "--sample-prompt", "~/"]
    nanogpt("train", "shakespeare-char-cpu", *flags, *asked)
    assert [line["prompt"] for line in samples(tmp_path / "run")] == ["s3://no/address", "~/"]
    toml = (tmp_path / "run" / "config.toml").read_text()
    assert "sample_prompt" in toml
    nanogpt("train", "run", "--max-iters", 4)  # goes on with them
    assert {line["step"] for line in samples(tmp_path / "run")} == {2, 4}


def test_a_prompt_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sample_prompt = .*is no UTF-8; type it in a terminal"):
        resolve({"sample_prompt": ["a", "a\udcff"]})


def test_a_prompt_that_nothing_reads_is_told() -> None:
    idle = resolve({"sample_prompt": ["a"]})
    assert any("without --sample-interval" in line for line in odd_settings(idle, 1))
    read = resolve({"sample_prompt": ["a"], "sample_interval": 5})
    assert not any("sample" in line for line in odd_settings(read, 1))


def test_a_prompt_that_cannot_be_encoded_is_told_before_the_first_step() -> None:
    data: Any = SimpleNamespace(tokenizer=char("Under the greenwood tree"))
    for prompt, is_good in (("Under", True), ("Ünder", False)):
        config = resolve({"sample_interval": 8, "sample_prompt": [prompt]})
        if is_good:
            assert make_sampler(config, data, ONE, torch.float32) is not None
            continue
        with pytest.raises(TextError, match=r"--sample-prompt: character 'Ü' \(U\+00DC\)"):
            make_sampler(config, data, ONE, torch.float32)


def test_a_run_whose_prompts_are_refused_has_failed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("made up")

    monkeypatch.setattr(loop, "make_sampler", refuse)
    with pytest.raises(ConfigError, match="made up"):
        go(tiny(corpus, tmp_path))
    assert run_folder.verdict_of(tmp_path) == "failed"


def test_samples_are_drawn_where_they_are_due_and_at_the_end_but_not_of_a_stop(
    corpus: Path, tmp_path: Path
) -> None:
    config = tiny(corpus, tmp_path, sample_interval=3)
    assert go(config, stop=After(5)).step == 5
    drawn = [line["step"] for line in JsonLines(tmp_path / run_folder.SAMPLES).read()]
    assert sorted(set(drawn)) == [3]
    go(config)
    drawn = [line["step"] for line in JsonLines(tmp_path / run_folder.SAMPLES).read()]
    assert sorted(set(drawn)) == [3, 6, 8]


def test_all_is_saved_when_the_last_samples_are_drawn(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sampler: Sampler, model: GPT) -> None:
        raise StorageError("no more")

    monkeypatch.setattr(Sampler, "__call__", fail)
    with pytest.raises(StorageError, match="no more"):
        go(tiny(corpus, tmp_path, sample_interval=100))
    assert (tmp_path / "checkpoints" / "step-00000008").is_dir()


@pytest.mark.thorough
def test_all_ranks_together_draw_the_same(corpus: Path, nanogpt: Run, tmp_path: Path) -> None:
    flags = [*TINY, "--max-iters", 4, "--no-tensorboard", "--dataset", corpus]
    for strategy, ranks in (("single", 0), ("ddp", 2), ("fsdp", 2)):
        asked = ["--sample-interval", 2, "--strategy", strategy, "--out-dir", strategy]
        nanogpt("train", "shakespeare-char-cpu", *flags, *asked, ranks=ranks)
    texts = [[line["text"] for line in samples(tmp_path / name)] for name in ("single", "ddp")]
    assert texts[0] == texts[1]
    sharded = [line["text"] for line in samples(tmp_path / "fsdp")]
    assert sharded == texts[0]
