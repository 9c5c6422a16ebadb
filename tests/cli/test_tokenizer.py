"""`nanogpt tokenizer train|compare`."""

import json
from pathlib import Path

from nanogpt_dist.tokenizer.loading import open_tokenizer
from tests.conftest import Run


def test_a_trained_vocabulary_is_proven_and_used(
    source: Path,
    nanogpt: Run,
    tmp_path: Path,
) -> None:
    for name in ("mine.tiktoken", "mine.json"):
        done = nanogpt("tokenizer", "train", source, "--vocab-size", 300, "--out", name, "--json")
        figures = json.loads(done.stdout)
        assert (figures["vocab_size"], figures["equal"]) == (300, True)
        assert figures["held_out_tokens"] > 10_000
        assert 1.5 < figures["bytes_per_token"] < 5
    ranks, ours = (open_tokenizer(str(tmp_path / name)) for name in ("mine.tiktoken", "mine.json"))
    assert ranks.fingerprint == ours.fingerprint
    assert (
        "--tokenizer mine2.tiktoken"
        in nanogpt(
            "tokenizer", "train", source, "--vocab-size", 260, "--out", "mine2.tiktoken"
        ).stdout
    )
    nanogpt("prepare", "text", "--source", source, "--tokenizer", "mine.tiktoken", "--out", "data")


def test_two_are_compared_on_the_same_text(source: Path, nanogpt: Run) -> None:
    figures = json.loads(nanogpt("tokenizer", "compare", "byte", "gpt2", source, "--json").stdout)
    byte, gpt2 = figures["tokenizers"]
    assert (byte["name"], byte["tokens"], byte["bytes_per_token"]) == (
        "byte",
        figures["bytes"],
        1.0,
    )
    assert gpt2["tokens"] < byte["tokens"] / 1.5
    assert min(byte["mb_per_second"], gpt2["mb_per_second"]) > 0
    assert (
        "times the tokens of gpt2" in nanogpt("tokenizer", "compare", "gpt2", "byte", source).stdout
    )


def test_mistakes(source: Path, nanogpt: Run, tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "empty.txt").write_text("")
    for arguments, code, message in (
        (["train", source, "--vocab-size", 300, "--out", "there.json"], 73, "there.json exists"),
        (
            ["train", source, "--vocab-size", 300, "--out", "a.bin"],
            2,
            "neither a .tiktoken nor a .json",
        ),
        (["train", "missing.txt", "--vocab-size", 300, "--out", "a.json"], 66, "missing.txt"),
        (["train", "empty.txt", "--vocab-size", 300, "--out", "a.json"], 65, "only 257 of 300"),
        (["compare", "gpt2", "byte", "empty.txt"], 65, "no text"),
        (["compare", "gpt2", "gpt9", source], 66, "no tokenizer gpt9"),
    ):
        done = nanogpt("tokenizer", *arguments, code=code)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
