"""docs/reference/json.md has the keys that the commands print, no more and no fewer."""

import contextlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from nanogpt_dist.config import TrainConfig
from tests.conftest import CLONE

REFERENCE = CLONE / "docs" / "reference"
PAGE = (REFERENCE / "json.md").read_text("utf-8")
FORMATS = (REFERENCE / "file-formats.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"(?ms)^## (.+?)\n(.*?)(?=^## |\Z)", PAGE))

MODEL = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --device cpu"
RUN = f"gpt2-124m {MODEL} --vocab-size 257 --batch-size 2 --gradient-accumulation-steps 1"
RUN += " --dtype float32"  # of GPT-2's architecture, which can be exported
TRAIN = f"{RUN} --dataset data/x --max-iters 4 --eval-iters 2 --eval-interval 2 --no-tensorboard"

LADDER = f"{TRAIN} --warmup-iters 1 --sizes 1x8,1x12,1x16 --out-dir out/l"
for each in ("gpt2-124m ", "--n-layer 1 --n-head 2 --n-embd 16 "):
    LADDER = LADDER.replace(each, "")
# What all of them need; copied, out/a is out/b, too.
MADE = [
    "prepare text --source a.txt --tokenizer byte --workers 1 --out data/x",
    f"train {TRAIN} --warmup-iters 1 --out-dir out/a",
    "export hf out/a hf/a",
]
# What is typed for each section.
TYPED = {
    "nanogpt prepare": "prepare text --source a.txt --tokenizer byte --workers 1 --out data/y",
    "nanogpt prepare --list": "prepare --list",
    "nanogpt train": f"train {TRAIN} --warmup-iters 1 --out-dir out/c",
    "nanogpt train --check-resume": f"train {TRAIN} --warmup-iters 1 --check-resume",
    "nanogpt train --recheck-step": "train out/a --recheck-step 4",
    "nanogpt eval": "eval out/a --device cpu",
    "nanogpt eval, of several": "eval out/a out/a/checkpoints/step-00000002 --device cpu",
    "nanogpt sample": "sample out/a --max-new-tokens 4 --device cpu",
    "nanogpt watch": "watch out/a --once",
    "nanogpt compare": "compare out/a out/b",
    "nanogpt sweep": "sweep s.toml --table",
    "nanogpt ladder": f"ladder quickstart {LADDER} --table --predict 1e6",
    "nanogpt verify": "verify data/x",
    "nanogpt checkpoint list": "checkpoint list out/a",
    "nanogpt checkpoint verify": "checkpoint verify out/a",
    "nanogpt checkpoint prune": "checkpoint prune out/a --dry-run",
    "nanogpt tokenizer train": "tokenizer train texts --vocab-size 300 --out t.json",
    "nanogpt tokenizer compare": "tokenizer compare byte gpt2 texts",
    "nanogpt import": "import hf hf/a --out-dir out/h",
    "nanogpt import-shards": "import-shards data/x --out data/z --tokenizer byte",
    "nanogpt show params": "show params quickstart",
    "nanogpt show components": "show components quickstart",
    "nanogpt show full": "show full quickstart",
    "nanogpt show config": "show config quickstart",
    "nanogpt show attention": "show attention out/a --text To",
    "nanogpt show data": "show data data/x --run out/a --step 1",
    "nanogpt show checkpoint": "show checkpoint out/a",
    "nanogpt doctor": "doctor",
    "nanogpt plan": "plan gpt2-124m --gpus 8 --device h100-80gb",
    "nanogpt plan --devices": "plan --devices",
    "nanogpt bench train": f"bench train {RUN} --updates 3",
    "nanogpt bench sample": f"bench sample quickstart {MODEL} --prompt-tokens 4 --max-new-tokens 4",
    "nanogpt bench data": "bench data quickstart --batch-size 2 --megabytes 1 --updates 3",
    "nanogpt bench io": f"bench io quickstart {MODEL}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    stdlib = Path(os.__file__).parent
    (folder / "texts").mkdir()
    for name in ("ast", "abc", "heapq"):
        shutil.copy(stdlib / f"{name}.py", folder / "texts" / f"{name}.txt")
    shutil.copy(stdlib / "bisect.py", folder / "a.txt")
    with contextlib.chdir(folder):
        for line in MADE:
            typed(line)
        shutil.copytree("out/a", "out/b")
        Path("s.toml").write_text('preset = "quickstart"\n[grid]\nseed = [1, 2]\n')
        for line in typed(f"ladder quickstart {LADDER} --dry-run").splitlines():
            typed(line.removeprefix("nanogpt "))
    return folder


def test_every_section_is_typed() -> None:
    assert SECTIONS.keys() == TYPED.keys()


@pytest.mark.parametrize("title", TYPED)
def test_the_keys_are_those_of_the_page(
    title: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    found = json.loads(typed(TYPED[title] + " --json").splitlines()[-1])
    columns = re.findall(r"(?m)^\| (`.*?) \|", SECTIONS[title])
    listed = set(re.findall(r"`([^`]+)`", " ".join(columns)))
    if title == "nanogpt show config":
        listed = set(TrainConfig.model_fields)
    if title in ("nanogpt show data", "nanogpt show checkpoint"):
        listed |= {key for key in found if f"`{key}`" in FORMATS}
    assert keys(found, listed) == listed


def typed(line: str) -> str:
    """What `nanogpt LINE` prints on standard output."""
    done = CliRunner().invoke(app, shlex.split(line))
    known = (0, 1) if line.startswith("doctor") else (0,)  # with warnings, which a machine may have
    assert done.exit_code in known, done.output + str(done.exception)
    return done.stdout


def keys(found: dict[str, Any], listed: set[str]) -> set[str]:
    """The keys of `found`; those of the objects in a list where the page goes into it."""
    result = set()
    for key, value in found.items():
        if any(name.startswith(f"{key}[].") for name in listed):
            result |= {f"{key}[].{inner}" for inner in value[0]}
        else:
            result.add(key)
    return result
