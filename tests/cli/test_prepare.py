"""`nanogpt prepare`: what it prints, and how it stops."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.prepare import prepare
from nanogpt_dist.data import DataFolder
from nanogpt_dist.errors import (
    UsageError,
)
from nanogpt_dist.storage import sha256_file
from prepare.corpora import CORPORA
from tests.conftest import CLONE, hashes

app = typer.Typer()
app.command()(prepare)


def test_json_is_one_object(source: Path, prepared: Path) -> None:
    arguments = [
        "text",
        "--source",
        str(source),
        "--tokenizer",
        "bpe:300",
        "--out",
        str(prepared),
        "--json",
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    figures = json.loads(result.stdout)
    data = DataFolder.open(prepared)
    assert figures["out"] == str(prepared)
    assert figures["dataset_id"] == data.dataset_id
    assert (figures["train_tokens"], figures["val_tokens"]) == (
        data.split("train").tokens,
        data.split("val").tokens,
    )
    assert (figures["documents"], figures["vocab_size"], figures["reused"]) == (3000, 300, True)
    assert figures["seconds"] >= 0


def test_the_summary_ends_with_what_to_type_next(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be " * 50)
    out = str(tmp_path / "out")
    arguments = ["text", "--source", str(tmp_path / "a.txt"), "--tokenizer", "char", "--out", out]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "855 tokens" in result.stdout
    where = f"--dataset {out} --out-dir out/out"
    first = f"nanogpt train gpt2-124m {where} --block-size 854"  # of 855 tokens
    assert result.stdout.endswith(
        f"Next: {first}\nor, without a GPU: nanogpt train quickstart {where}\n"
    )
    assert DataFolder.open(out).tokenizer.n_vocab == 7


def test_the_summary_names_the_presets_for_a_corpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("to be or not to be " * 50)
    with pytest.raises(UsageError, match="not the known text"):
        CliRunner().invoke(
            app, ["shakespeare_char", "--source", "input.txt"], catch_exceptions=False
        )
    known = replace(CORPORA["shakespeare_char"], sha256=sha256_file(Path("input.txt")))
    monkeypatch.setitem(CORPORA, "shakespeare_char", known)
    result = CliRunner().invoke(
        app, ["shakespeare_char", "--source", "input.txt"], catch_exceptions=False
    )
    last = (
        "Next: nanogpt train shakespeare-char\nor, without a GPU: nanogpt train "
        "shakespeare-char-cpu\n"
    )
    assert result.stdout.endswith(last)


def test_list_names_every_corpus() -> None:
    result = CliRunner().invoke(app, ["--list"], catch_exceptions=False)
    names = [line.split()[0] for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert names == [*CORPORA, "hf"]
    assert (
        "8,013,769 documents; 9,035,582,198 + 4,434,897 tokens; gpt2; val 0.0005 drawn by rows"
        in result.stdout
    )
    printed = CliRunner().invoke(app, ["--list", "--json"], catch_exceptions=False).stdout
    assert json.loads(printed)["corpora"]["openwebtext"]["address"] == "Skylion007/openwebtext"
    with pytest.raises(UsageError, match="prepare text --source essays"):
        CliRunner().invoke(app, ["text", "essays"], catch_exceptions=False)
    with pytest.raises(UsageError, match="OWNER/NAME"):
        CliRunner().invoke(app, ["hf", "TinyStories"], catch_exceptions=False)
    with pytest.raises(UsageError, match="--split-by characters"):
        CliRunner().invoke(app, ["text", "--split", "characters"], catch_exceptions=False)
    with pytest.raises(UsageError, match="leave them out"):
        CliRunner().invoke(app, ["--mix", "a=0.5,b=0.5", "--config", "en"], catch_exceptions=False)
    with pytest.raises(UsageError, match="which corpus"):
        CliRunner().invoke(app, [], catch_exceptions=False)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_says_so_and_the_same_command_goes_on(
    source: Path,
    prepared: Path,
    sign: signal.Signals,
    tmp_path: Path,
) -> None:
    line = [
        sys.executable,
        str(CLONE / "nanogpt"),
        "prepare",
        "text",
        "--source",
        str(source),
        "--workers",
        "2",
    ]
    line += ["--tokenizer", "bpe:300", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (tmp_path / "out" / "tokenizer.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, sign)  # as a terminal does it: the workers get it too
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (75, ""), stderr
    assert stderr == "nanogpt: stopped; the same command goes on where it was\n"
    subprocess.run(line, check=True, capture_output=True)
    assert hashes(tmp_path / "out") == hashes(prepared)


def test_documents_without_a_border_between_them_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(100))
    )
    for tokenizer, note in (
        ("char", "note: char has no end of text: nothing stands between the 100 documents"),
        ("byte", ""),
    ):
        arguments = [
            "text",
            "--source",
            str(tmp_path / "a.jsonl"),
            "--tokenizer",
            tokenizer,
            "--workers",
            "1",
        ]
        done = CliRunner().invoke(
            app, [*arguments, "--out", str(tmp_path / tokenizer)], catch_exceptions=False
        )
        assert done.exit_code == 0
        assert (note in done.stderr) if note else "end of text" not in done.stderr
