"""The commands of README.md and the docs that can be run here, typed as they stand."""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from typer.testing import CliRunner

from cli import quickstart
from cli.main import app
from cli.options import nanogpt_style
from tests.conftest import CLONE, SHARED
from tests.test_readme import NAMED, TYPED, commands_in

NOT_HERE = {
    "a network": r"openwebtext|c4-en|fineweb|tinystories|TinyStories|--init-from|hf gpt2|finetune"
    r"|eval-gpt2|prepare shakespeare|hellaswag|lambada",
    "GPUs, or hours": r"^torchrun|^until|(train|ladder) gpt2|bench .*gpt2|bench data|out/gpt2-1558m"
    r"|train shakespeare-char$|sweep recipes|--bench bench.json",
    "nodes": r"(launch|sweep) .*--(nnodes|slurm|nproc-per-node 8)(?!.*--dry-run)",
    "another project's files": r"nanoGPT/(config|data)|import nanogpt",
}
LONG = r"python-stdlib|launch --nproc-per-node 2|quickstart$"
LONG += r"|train (quickstart|shakespeare-char-cpu|modern-char)"
RUN = [line for line in TYPED if not any(re.search(why, line) for why in NOT_HERE.values())]
QUICK = [line for line in RUN if not re.search(LONG, line)]
JOB = re.compile(r"launch .*--(slurm|kubernetes) .* (train|prepare)|sweep .*--slurm")

SETTINGS = """
gelu = "tanh"
n_layer = 2
n_head = 4
n_embd = 32
block_size = 32
batch_size = 2
gradient_accumulation_steps = 2
max_iters = 3
warmup_iters = 1
eval_iters = 1
ema_decay = 0.9
device = "cpu"
"""
RUNS = ("other", "modern", "tanh", "theirs", "quickstart", "shakespeare-char-cpu", "gpt2-124m")
RUNS += ("lr-1e-2", "lr-2e-2", "lr-4e-2")
RUNS += ("sweeps/rates/learning_rate=0.003", "sweeps/rates/wide")
LONGER = "train mine.toml --dataset data/mine --out-dir out/long --schedule wsd --min-lr 0 "
LONGER += "--max-iters 100 --save-interval 50 --keep-every 50"
TRAINED = "train mine.toml --dataset data/mine --max-iters 200 --save-interval 100"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands read: texts, a data set and a run under several names."""
    folder = tmp_path_factory.mktemp("made")
    modules = sorted(Path(os.__file__).parent.glob("[a-c]*.py"))
    (folder / "essays").mkdir()
    for path in modules:
        shutil.copy(path, folder / "essays" / f"{path.stem}.txt")
    text = modules[0].read_bytes()
    for name in ("essay.txt", "code.md"):
        (folder / name).write_bytes(text)
    (folder / "input.txt").write_bytes(b"".join(path.read_bytes() for path in modules[:8]))
    (folder / "prompt.txt").write_text("def ")
    (folder / "logs.txt.gz").write_bytes(gzip.compress(text))
    (folder / "notes.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "A note."}\n' * 100))
    (folder / "mine.toml").write_text(SETTINGS)
    shutil.copy(CLONE / "docs/how-to/rates.toml", folder)
    typed("prepare text --source essays/ --tokenizer byte --out data/mine", folder)
    shutil.copytree(folder / "data/mine", folder / "data/pieces")
    typed(TRAINED, folder)
    typed("checkpoint pin out/mine/checkpoints/step-00000200", folder)
    for name in RUNS:
        shutil.copytree(folder / "out/mine", folder / "out" / name)
    typed(LONGER, folder)
    typed("tokenizer train essays/ --vocab-size 300 --out mine.tiktoken", folder)
    return folder


def test_there_is_much_to_run() -> None:
    assert len(QUICK) >= 30


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=pytest.mark.thorough) if "nanogpt ladder" in line else line
        for line in QUICK
    ],
)
def test_the_command_runs(line: str, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    for written in re.findall(r"(?:--out|--out-dir) (\S+)", line):
        remove(folder / written)
    if "train mine.toml" in line and "--out-dir" not in line:
        remove(folder / "out/mine")
    if "|" in line:
        in_a_shell(line, folder)
        return
    for words in commands_in(shlex.split(line)):
        if words[0] in ("sweep", "ladder"):
            make_its_runs(words, folder)
        typed(shlex.join(words), folder)


def test_the_example_of_a_sweep_is_the_one_of_its_page() -> None:
    page = (CLONE / "docs/how-to/sweep.md").read_text("utf-8")
    assert re.findall(r"(?s)```toml\n(.*?)```", page) == [
        (CLONE / "docs/how-to/rates.toml").read_text("utf-8")
    ]


def test_the_example_in_python_runs(made: Path, tmp_path: Path) -> None:
    page = (CLONE / "docs" / "reference" / "python.md").read_text("utf-8")
    [example] = re.findall(r"(?s)```python\n(.*?)```", page)
    shutil.copytree(made / "essays", tmp_path / "essays")
    line = [sys.executable, "-c", example]
    environment = {**os.environ, "PYTHONPATH": str(CLONE)}
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "torch.Size" in done.stdout


def make_its_runs(words: list[str], folder: Path) -> None:
    """Make the runs of a sweep or a ladder in this process, by the commands that it prints."""
    remove(folder / "out/sweeps")
    for line in typed(shlex.join([*words, "--dry-run"]), folder).splitlines():
        typed(line.removeprefix("nanogpt "), folder)


@pytest.mark.parametrize("line", sorted(line for line in {*TYPED, *NAMED} if JOB.search(line)))
def test_the_job_is_complete(line: str, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    remove(folder / "out/sweeps")
    [words] = commands_in(shlex.split(line))
    typed(shlex.join([words[0], "--dry-run", *words[1:]]), folder)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_long_commands_run(tmp_path: Path) -> None:
    """The quickstart command by command, then all that reads what it made; last itself, resumed."""
    first = [f"nanogpt {line}" for line in quickstart.COMMANDS]
    rest = sorted(set(RUN) - set(QUICK) - {*first, "nanogpt quickstart"})
    source = SHARED / "data" / "tinyshakespeare.txt"
    if source.exists():
        first.append(f"nanogpt prepare shakespeare_char --source {source}")
    else:
        rest = [line for line in rest if "shakespeare" not in line]
    for line in [*first, *rest, "nanogpt quickstart"]:
        in_a_shell(line, tmp_path)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def typed(line: str, folder: Path) -> str:
    """Run `nanogpt LINE` in this process; it has to end well. What it has printed."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(app, nanogpt_style(shlex.split(line)))
    finally:
        os.chdir(before)
    assert isinstance(done.exception, SystemExit | None), line
    assert done.exit_code in ends_well(line), f"{line}: {done.output[-2000:]} {done.exception}"
    return done.stdout


def in_a_shell(line: str, folder: Path) -> None:
    path = os.pathsep.join([str(CLONE), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode in ends_well(line), f"{line}: {done.stderr[-2000:]}"


def ends_well(line: str) -> tuple[int, ...]:
    """The exit codes with which a line ends well: doctor has 1 for what it warns of."""
    return (0, 1) if re.search(r"^(nanogpt .*|)doctor\b", line) else (0,)
