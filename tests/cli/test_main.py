"""The command as its users meet it: versions, errors of one line with their exit codes, JSON
that is JSON.
"""

import json
import shlex
import shutil
import socket
import sys
from pathlib import Path

import pytest

from cli.ending import explain
from cli.options import nanogpt_style, refuse_empty
from cli.terminal import PLAIN
from nanogpt_dist import __version__
from nanogpt_dist.errors import MAX_LINE, BadDataError, Exit, UsageError
from tests.conftest import CLONE, TINY, Run, command


def test_version(nanogpt: Run) -> None:
    assert nanogpt("--version").stdout == f"nanogpt {__version__}\n"


def test_nanogpts_way_of_writing_flags() -> None:
    assert nanogpt_style(["--compile=False", "--bias=True", "--learning_rate=1e-3"]) == [
        *("--no-compile", "--bias", "--learning_rate=1e-3")
    ]
    assert nanogpt_style(["--prompt=True", "--json=false"]) == ["--prompt=True", "--json=false"]


def test_an_empty_argument_is_refused_but_for_a_prompt() -> None:
    refuse_empty(["sample", "--prompt", "", "--prompt="])
    for arguments in (["eval", ""], ["train", "--out-dir", ""], ["train", "--out-dir="]):
        with pytest.raises(UsageError, match="nothing stands behind"):
            refuse_empty(arguments)


def test_no_arguments_show_help_and_no_error(nanogpt: Run) -> None:
    done = nanogpt(code=2)
    assert "quickstart" in done.stdout + done.stderr
    assert "error" not in done.stderr


def test_variables_that_torchrun_did_not_set(
    nanogpt: Run,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "abc")
    assert "unset it" in nanogpt("train", "--dataset", corpus, code=78).stderr
    monkeypatch.setenv("RANK", "1")
    told = nanogpt("train", "quickstart", "--dataset", corpus, "--device", "cpu", code=78).stderr
    assert "RANK=1, but WORLD_SIZE is 1: unset RANK" in told
    # no other rank would say so
    assert "no preset gpt3" in nanogpt("train", "gpt3", code=78).stderr


def test_a_rank_that_alone_does_not_find_a_run_says_so(
    nanogpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    told = nanogpt("train", "out/a", code=66).stderr
    assert "error (rank 1): out/a does not exist" in told


def test_ranks_that_do_not_come_are_named(
    nanogpt: Run,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for name, value in {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "RANK": "0",
        }.items():
            monkeypatch.setenv(name, value)
        line = ["train", "quickstart", "--dataset", corpus, "--device", "cpu", "--timeout-s", "2"]
        assert f"MASTER_PORT {port} is taken by another process" in nanogpt(*line, code=73).stderr
    assert (
        f"only 1 of 2 ranks came to 127.0.0.1:{port} within 2 s" in nanogpt(*line, code=74).stderr
    )
    monkeypatch.setenv("RANK", "1")
    assert f"rank 1 of 2 found no rank 0 at 127.0.0.1:{port}" in nanogpt(*line, code=74).stderr


def test_streams_that_are_closed(nanogpt: Run, tmp_path: Path) -> None:
    import subprocess

    for redirection, code in ((">&-", 0), ("2>&-", 0), (">/dev/full", 74)):
        line = f"{sys.executable} {CLONE / 'nanogpt'} show params gpt2 {redirection}"
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, timeout=60
        )
        assert done.returncode == code, (redirection, done.stderr)
        assert len(done.stderr.splitlines()) == (code != 0)


def test_a_finished_run_is_finished_also_where_standard_output_is_full(
    corpus: Path,
    tmp_path: Path,
) -> None:
    import subprocess

    line = f"{shlex.join(command('train', '--dataset', corpus, *TINY, '--max-iters', 1, '--out-dir', 'a'))} >/dev/full"  # noqa: E501
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "the run is done and saved" in done.stderr
    done = subprocess.run(
        ["bash", "-c", f"{line} --json"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 74


@pytest.mark.thorough
def test_quickstart_passes_a_stop_on_and_leaves_nobody_behind(tmp_path: Path) -> None:
    import os
    import subprocess
    import time

    from launch import processes

    environment = {**os.environ, "NANOGPT_TEST": str(tmp_path)}
    line = [sys.executable, str(CLONE / "nanogpt"), "quickstart"]
    process = subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "quickstart" / "status.json").exists():
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert not processes.marked("NANOGPT_TEST", str(tmp_path))
    assert json.loads((tmp_path / "out/quickstart/status.json").read_text())["verdict"] == "stopped"


# What is typed, the exit code, and words of the line. {corpus} is a good data folder; nothing may
# be written.
MISTAKES = [
    ("train --n-layer three", 2, "n-layer"),
    ("train --no-such-flag", 2, "no-such-flag"),
    ("trian", 2, "trian"),
    ("train --n-layer 0", 78, "n_layer = 0"),
    ("train gpt2-124", 78, "did you mean gpt2-124m?"),
    ("train --n-head 5", 78, "768 is not a multiple of n_head 5"),
    ("train mine.toml", 66, "mine.toml does not exist"),
    ("train", 66, "nanogpt prepare openwebtext"),
    ("train --dataset nowhere", 66, "nowhere does not exist"),
    ("train --dataset empty", 65, "prepare"),
    ("train --dataset essays", 65, "type: nanogpt prepare text --source essays --out data/essays"),
    ("train --dataset essays/a.txt", 66, "text --source essays/a.txt --out data/a"),
    ("train finetune-shakespeare", 66, "type: nanogpt prepare shakespeare, or"),
    ("train --dataset data/shakespear_char", 66, "did you mean data/shakespeare_char?"),
    ("train --dataset truncated --device cpu", 65, "bytes"),
    ("train --dataset {corpus} --vocab-size 100 --device cpu", 78, "--vocab-size 257"),
    (
        "train --out-dir s3://bucket/run --dataset {corpus}",
        2,
        "--out-dir s3://bucket/run is an address, not a path",
    ),
    (
        "prepare text --source=https://example.com/a.txt",
        2,
        "--source https://example.com/a.txt is an address",
    ),
    ("prepare hf https://huggingface.co/datasets/a/b", 2, "give the name: nanogpt prepare hf a/b"),
    (
        "train --init-from https://huggingface.co/openai-community/gpt2",
        2,
        "--init-from openai-community/gpt2",
    ),
    ("verify file:///data/mine", 2, "file:///data/mine is an address, not a path"),
    ("train quickstart --dataset {corpus} --vocab-size 100 --device cpu", 78, "--vocab-size 257"),
    ("train --dataset {corpus} --device cpu --dtype float16", 78, "float16"),
    ("train --dataset {corpus} --device cpu --block-size 999999", 65, "--block-size"),
    ("eval", 66, "no run with a checkpoint under out/"),
    ("eval nowhere", 66, "nowhere does not exist"),
    ("sample", 66, "no run with a checkpoint under out/"),
    ("sample --stream --json", 2, "choose one"),
    ("sample --prompt FILE:nothing.txt", 66, "nothing.txt does not exist"),
    ("prepare", 2, "which corpus?"),
    ("prepare shakespear", 2, "did you mean shakespeare"),
    ("prepare text --source nowhere", 66, "nowhere"),
    ("prepare text --source essays/a.txt --max-tokens 9", 2, "leave --max-documents"),
    ("show params gpt-2", 78, "did you mean gpt2"),
    ("launch trian", 2, "did you mean train?"),
    ("launch sample", 2, "give one of prepare, train, eval, doctor"),
    ("train --learning-rate inf", 78, "learning_rate = inf"),
    ("train --max-iters 0", 78, "max_iters = 0"),
    ("train --batch-size 99999999999999999999", 78, "batch_size"),
    ("train --out-dir=", 2, "nothing stands behind --out-dir"),
    ("train --dataset=true", 66, "true does not exist"),
    ("eval --dtype float64", 2, "float64"),
    ("sample --device toaster", 2, "toaster"),
    ("verify nowhere", 66, "nowhere does not exist"),
    ("verify empty", 65, "run the same nanogpt prepare again"),
    ("show data nowhere", 66, "nowhere does not exist"),
    ("show data truncated", 65, "bytes"),
    ("import-shards empty --tokenizer byte", 2, "no file is for train"),
    (
        "import-shards nothing_train.bin --val x.bin --tokenizer byte",
        66,
        "nothing_train.bin does not exist",
    ),
    ("import-shards empty", 2, "--tokenizer"),
    ("sample --stop=", 2, "nothing stands behind --stop"),
]


@pytest.mark.parametrize(
    ("typed", "code", "words"), MISTAKES, ids=[typed for typed, _, _ in MISTAKES]
)
def test_a_mistake_is_one_line_and_writes_nothing(
    typed: str,
    code: int,
    words: str,
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
) -> None:
    for name in ("empty", "essays", "data/shakespeare_char"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "essays" / "a.txt").write_text("An essay.")
    (tmp_path / "data" / "shakespeare_char" / "manifest.json").touch()
    if "truncated" in typed:
        shutil.copytree(corpus, tmp_path / "truncated")
        shard = next((tmp_path / "truncated").glob("*_train_*.bin"))
        shard.write_bytes(shard.read_bytes()[:-7])
    before = sorted(tmp_path.rglob("*"))
    done = nanogpt(*typed.format(corpus=corpus).split(), code=code)
    [line] = done.stderr.splitlines()
    assert words in line
    assert len(line) <= MAX_LINE
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_train_eval_and_sample_report_one_json_object(
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
) -> None:
    flags = [
        "--dataset",
        corpus,
        *TINY,
        "--max-iters",
        "2",
        "--no-tensorboard",
        "--out-dir",
        "out/a",
    ]
    trained = json.loads(nanogpt("train", *flags, "--json").stdout)
    keys = {
        "step",
        "tokens",
        "val_loss",
        "best_val_loss",
        "tokens_per_second",
        "checkpoint",
        "verdict",
    }
    assert keys <= trained.keys()
    assert (trained["step"], trained["verdict"]) == (2, "done")
    evaluated = json.loads(nanogpt("eval", "--json").stdout)  # the newest run under out/
    keys = {"val_loss", "perplexity", "bits_per_byte", "tokens", "standard_error", "checkpoint"}
    assert keys <= evaluated.keys()
    assert evaluated["checkpoint"] == "out/a/checkpoints/step-00000002"
    assert json.loads(nanogpt("eval", trained["checkpoint"], "--json").stdout) == evaluated
    (tmp_path / "prompt.txt").write_text("\ufeffdef ", encoding="utf-8")
    arguments = ["--prompt", "FILE:prompt.txt", "--num-samples", 2, "--max-new-tokens", 5, "--json"]
    samples = json.loads(nanogpt("sample", *arguments).stdout)["samples"]
    assert [each["prompt"] for each in samples] == ["def ", "def "]
    assert all(len(each["ids"]) <= 5 for each in samples)
    streamed = nanogpt("sample", "out/a", "--prompt", "def ", "--max-new-tokens", 5, "--stream")
    assert streamed.stdout.startswith("def ")
    refused = nanogpt("train", *flags, "--n-layer", "3", code=78)
    assert "out/a holds a run with n_layer 2 (now 3)" in refused.stderr
    weights = Path(tmp_path, trained["checkpoint"], "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors" in nanogpt("sample", trained["checkpoint"], code=65).stderr


def test_the_other_ways_to_start_it(nanogpt: Run, tmp_path: Path) -> None:
    import subprocess

    line = [sys.executable, "-m", "nanogpt_dist", "--version"]
    done = subprocess.run(line, cwd=CLONE, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"nanogpt {__version__}\n"
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run(
        [*line, "-m", "nanogpt_dist", "--version"],
        cwd=CLONE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == f"nanogpt {__version__}\n", done.stderr


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device", "x.bin"), Exit.IO_ERROR, "no space left for x.bin"),
        (PermissionError(13, "Permission denied", "x"), Exit.IO_ERROR, "no permission for x"),
        (MemoryError(), Exit.BUG, "lower --batch-size"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("division by zero"), Exit.BUG, "--debug"),
        (BadDataError("torn"), Exit.BAD_DATA, "torn"),
    ],
)
def test_what_other_errors_become(error: BaseException, code: int, words: str) -> None:
    found, line, _ = explain(error)
    assert found == code
    assert words in line


def test_a_broken_pipe_is_silent(nanogpt: Run, tmp_path: Path) -> None:
    import subprocess

    line = f"{sys.executable} {CLONE / 'nanogpt'} show config gpt2-124m | head -n 1"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.stderr == ""


def test_debug_shows_the_traceback(nanogpt: Run) -> None:
    done = nanogpt("train", "--debug", "--dataset", "nowhere", code=66)
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("nanogpt: error: nowhere does not exist")


def test_a_stream_without_box_characters_gets_ascii_of_the_same_width() -> None:
    drawn = "┌──┐ ▼ │ x → y …"
    for encoding in ("ascii", "latin-1", "cp1252"):
        assert drawn[:-1].encode(encoding, PLAIN).decode(encoding) == "+--+ v | x > y "
    assert "日 …".encode("ascii", PLAIN) == b"\\u65e5 ..."


INTERRUPTED_WHILE_LOADING = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *rest):
        if name == "cli.verify":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError("as pydantic makes of it")

sys.meta_path.insert(0, Finder())
sys.argv = ["nanogpt", "--version"]
from nanogpt_dist.__main__ import main
main()
"""


def test_ctrl_c_while_it_is_loading_is_quiet(nanogpt: Run) -> None:
    ended = nanogpt("-c", INTERRUPTED_WHILE_LOADING, code=130)
    assert (ended.stdout, ended.stderr) == ("", "")
