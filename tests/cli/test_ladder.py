"""`nanogpt ladder`: its sizes, its runs, the law of their losses, and its error on a size apart."""

import json
import math
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.ladder import _build
from nanogpt_dist import storage
from nanogpt_dist.config import ModelConfig
from nanogpt_dist.errors import MAX_LINE, UsageError
from nanogpt_dist.ladder import ladder as ladders
from nanogpt_dist.ladder.sizes import Shape, shapes, size_of
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.presets import PRESETS
from tests.cli.test_sweep import noted, typed
from tests.conftest import SHARED, build, command

BASE = ModelConfig(n_layer=12, n_head=12, n_embd=768)
TINY = shlex.split(
    "--vocab-size 257 --block-size 32 --batch-size 4 --gradient-accumulation-steps 2 "
    "--learning-rate 1e-2 --min-lr 1e-3 --eval-iters 4 --device cpu --dtype float32 "
    "--no-tensorboard --log-interval 20"
)
REAL = shlex.split(
    "--vocab-size 257 --block-size 64 --batch-size 16 --gradient-accumulation-steps 1 "
    "--learning-rate 4e-3 --min-lr 4e-4 --eval-iters 40 --device cpu --dtype float32 "
    "--no-tensorboard --log-interval 50 --rotary --qk-norm --mlp relu2 --max-iters 400 "
    "--eval-interval 400 --sizes 2x16,2x24,2x32,2x48 --hold-out 2x64"
)


@pytest.mark.parametrize(
    ("word", "base", "expected"),
    [
        ("768", BASE, Shape(12, 768, 12, None)),
        ("256", BASE, Shape(4, 256, 4, None)),
        ("1600", BASE, Shape(25, 1600, 25, None)),
        ("8x512", BASE, Shape(8, 512, 8, None)),
        ("96", BASE, Shape(2, 96, 2, None)),  # a head of 48 is nearest to 64 among the divisors
        ("16", BASE, Shape(1, 16, 1, None)),
        ("97", BASE, Shape(2, 97, 1, None)),  # prime
        ("384", BASE.model_copy(update={"n_kv_head": 4}), Shape(6, 384, 6, 2)),
    ],
)
def test_a_width_gets_the_shape_of_the_preset(
    word: str,
    base: ModelConfig,
    expected: Shape,
) -> None:
    assert shapes(word, base) == [expected]


@given(st.integers(1, 2000))
def test_every_width_makes_an_architecture(width: int) -> None:
    base = ModelConfig(n_layer=8, n_head=8, n_embd=256, n_kv_head=2)
    [shape] = shapes(str(width), base)
    made = ModelConfig(**{**base.model_dump(), **shape.settings()})
    assert made.n_layer == max(1, round(width / 32))
    if width % 128 == 0:
        assert (made.head_size, made.n_head // made.kv_heads) == (32, 4)
    if width % 2 == 0:
        turned = base.model_copy(update={"rotary": True})
        [shape] = shapes(str(width), turned)
        ModelConfig(**{**turned.model_dump(), **shape.settings()})


@pytest.mark.parametrize("text", ["", "0", "4x", "x4", "a", "64,,96", "-3", "1e3"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="is no size; give widths, or LAYERSxWIDTH"):
        shapes(text, BASE)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_blocks_and_head(tied: bool) -> None:
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=100, tied_head=tied)
    size, model = size_of(config), GPT(config)
    blocks = sum(parameter.numel() for parameter in model.transformer.h.parameters())
    assert size.parameters == blocks + 32 + 100 * 32  # the last norm, the head
    assert size.flops_per_token == model.flops_per_token()


def built(corpus: Path, *, given: dict[str, Any] | None = None, **how: Any) -> ladders.Ladder:
    settings = {"dataset": str(corpus), "vocab_size": 257, **(given or {})}
    words = {"sizes": "32,64", "hold_out": None, "ratios": None, **how}
    return _build("quickstart", settings, **words)


def test_a_run_has_so_many_tokens_for_each_parameter(corpus: Path) -> None:
    made = built(corpus, ratios="5,20", hold_out="96")
    assert [run.name for run in made.sweep.runs] == [
        *("1x32-5", "1x32-20", "2x64-5", "2x64-20", "3x96-20")
    ]
    assert made.held_out == {"3x96-20"}
    for run in made.sweep.runs:
        config = made.sweep.config(run)
        n = size_of(config.architecture()).parameters
        step_tokens = config.global_batch_size * config.block_size
        ratio = float(run.name.split("-")[1])
        assert config.max_iters == math.ceil(ratio * n / step_tokens)
        share = PRESETS["quickstart"]["warmup_iters"] / PRESETS["quickstart"]["max_iters"]
        assert config.warmup_iters == max(1, round(share * config.max_iters))
        assert config.eval_interval == math.ceil(config.max_iters / 10)
    # the same name, however many numbers were typed
    assert [run.name for run in built(corpus).sweep.runs] == ["1x32-20", "2x64-20"]
    assert {run.name for run in built(corpus, ratios="5").sweep.runs} < {
        run.name for run in made.sweep.runs
    }


def test_max_iters_are_those_of_each_size_and_typed_steps_stay(corpus: Path) -> None:
    made = built(corpus, given={"max_iters": 40, "eval_interval": 7, "learning_rate": 1e-2})
    for run in made.sweep.runs:
        assert run.settings["max_iters"] == 40
        assert run.settings["eval_interval"] == 7
        assert run.settings["warmup_iters"] == 1  # 5 of 1,000 are less than one
        assert run.settings["learning_rate"] == 1e-2
    made = built(corpus, given={"max_iters": 40, "warmup_iters": 9, "out_dir": "out/x"})
    assert {run.settings["warmup_iters"] for run in made.sweep.runs} == {9}
    assert made.sweep.folder(made.sweep.runs[0]) == Path("out/x/1x32")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sizes 64,a", "is no size"),
        ("--sizes 64,64", "two are 2x64; leave one out"),
        ("--sizes 32 --hold-out 32", "two are 1x32"),
        ("--sizes 32 --n-layer 3", "the sizes say so"),
        ("--sizes 32 --max-iters 3 --tokens-per-parameter 3", "one of them says how long"),
        ("--sizes 32 --tokens-per-parameter 3,x", "like 20 or 5,10,20"),
        ("--sizes 32 --tokens-per-parameter 0", "like 20 or 5,10,20"),
        ("--sizes 32 --predict 1e9:x", "like 1.5e9:30e9"),
        ("--sizes 32 --predict=-5", "like 1.5e9:30e9"),
        ("--sizes 32 --predict gpt3", "no preset gpt3"),
        ("--sizes 32 --predict :1e9", "like 1.5e9:30e9"),
        ("--sizes 32 --batch-ramp 0:4,9:8", "counts in steps, which a ladder changes"),
        ("--sizes 32,64", "a law takes 3 sizes or more, here are 2; give more to --sizes"),
        ("--sizes 32,64 --hold-out 96 --table", "here are 2; give more to --sizes"),
        ("--sizes 32,64,96 --table", "that are done, here are 0; type the same again, without"),
        ("--sizes 32,64,96 --plot .", ". is a folder; name a file in it"),
    ],
)
def test_usage(words: str, message: str, corpus: Path, tmp_path: Path) -> None:
    line = ["ladder", "quickstart", "--dataset", str(corpus), *shlex.split(words)]
    code, _, error = typed(tmp_path, *line)
    assert code in (2, 73, 78)
    assert message in error
    assert len(error) <= MAX_LINE
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with the runs of a ladder of constant rates, and the words that made it."""
    folder = tmp_path_factory.mktemp("made")
    line = ["ladder", "quickstart", "--dataset", str(corpus), *TINY, "--no-decay-lr"]
    line += ["--sizes", "8,16,32", "--hold-out", "48", "--max-iters", "40"]
    code, lines, error = typed(folder, *line, "--dry-run")
    assert code == 0, error
    for each in lines.splitlines():
        assert typed(folder, *shlex.split(each)[1:])[0] == 0
    return folder, line


def test_the_law_is_fitted_told_and_drawn(made: tuple[Path, list[str]]) -> None:
    folder, line = made
    line = [*line, "--table", "--predict", "1e6:1e8", "--predict", "gpt2-124m"]
    assert "note: gpt2-124m has 50,304 ids, the runs have 257" in noted(folder, *line)
    code, out, error = typed(folder, *line, "--plot", "law.svg")
    assert code == 0, error
    assert "<svg" in (folder / "law.svg").read_text()
    told = json.loads(typed(folder, *line, "--json")[1])
    assert [run["name"] for run in told["runs"]] == ["1x8", "1x16", "1x32", "2x48"]
    assert [run["held_out"] for run in told["runs"]] == [False, False, False, True]
    # rates are constant: the evaluations from a quarter of each run on are points of its own
    assert len(told["points"]) == 3 * 8
    assert told["in_tokens"]
    assert set(told["law"]) == {"E", "A", "alpha", "B", "beta"}
    assert "along the runs, whose rate is constant" in out
    names = [each["name"] for each in told["predictions"]]
    assert names == ["2x48", "1e6:1e8", "gpt2-124m"]
    apart, million, gpt2 = told["predictions"]
    held = told["runs"][3]
    assert apart["reached"] == held["val_loss"]
    assert apart["tokens"] == held["tokens"] == 40 * 8 * 32
    assert apart["error"] == pytest.approx(apart["val_loss"] / apart["reached"] - 1)
    assert f"{apart['error']:+.2%}" in out
    assert (million["parameters"], million["tokens"]) == (1e6, 1e8)
    assert gpt2["tokens"] == 600_000 * 480 * 1024
    assert gpt2["parameters"] == 123_587_328  # 124 M without positions


def test_with_a_decaying_rate_only_the_ends_of_runs_count(
    made: tuple[Path, list[str]],
    corpus: Path,
    tmp_path: Path,
) -> None:
    folder, line = made
    for config in folder.glob("out/ladders/quickstart/*/config.toml"):
        run = tmp_path / config.parent.relative_to(folder)
        run.mkdir(parents=True)
        text = config.read_text().replace("decay_lr = false", "decay_lr = true")
        (run / "config.toml").write_text(text)
        for name in ("metrics.jsonl", "status.json"):
            (run / name).write_bytes((config.parent / name).read_bytes())
    words = [word for word in line if word != "--no-decay-lr"]
    told = json.loads(typed(tmp_path, *words, "--table", "--json")[1])
    assert len(told["points"]) == 3
    assert not told["in_tokens"]
    out = typed(tmp_path, *words, "--table")[1]
    assert "this is a law in N alone" in out
    assert "(10,240 tokens each)" in out
    assert "a law in N alone knows no D" not in noted(tmp_path, *words, "--table")
    said = noted(tmp_path, *words, "--table", "--predict", "1e6:1e8")
    assert "note: a law in N alone knows no D" in said
    (tmp_path / "out/ladders/quickstart/1x8/status.json").unlink()
    code, out, error = typed(tmp_path, *words, "--table")
    assert code == 78
    assert "here are 2; type the same again, without --table" in error
    assert out.count(" done") == 3  # the table comes first
    assert out.count("not begun") == 1


@pytest.mark.parametrize(("name", "law"), [("2x64", True), ("1x8", False)])
def test_a_run_that_fails_is_told_below_the_law_or_what_is_missing_for_it(
    name: str,
    law: bool,
    made: tuple[Path, list[str]],
    tmp_path: Path,
) -> None:
    folder, line = made
    shutil.copytree(folder / "out", tmp_path / "out")
    run = tmp_path / "out/ladders/quickstart" / name
    shutil.rmtree(run, ignore_errors=True)
    run.write_text("a file where a folder is to be made")
    sizes = "8,16,32,64" if law else "8,16,32"
    code, out, error = typed(tmp_path, *(sizes if word == "8,16,32" else word for word in line))
    assert code == 73
    assert f"1 of the runs failed, {name} with exit code 73" in error
    assert out.count("not begun") == 1
    assert ("fitted to" in out) == law


def test_a_run_or_a_checkpoint_is_no_preset_of_a_ladder(made: tuple[Path, list[str]]) -> None:
    folder, _ = made
    run = "out/ladders/quickstart/1x8"
    for target in (run, f"{run}/checkpoints/{storage.step_name(40)}"):
        code, _, error = typed(folder, "ladder", target, "--sizes", "8,16,32")
        assert code == 78
        assert "a ladder begins from scratch" in error
        advice = error.split("its settings alone: nanogpt ")[1].split(" > ")[0]
        assert typed(folder, *shlex.split(advice))[0] == 0


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_four_real_sizes_predict_the_fifth_within_5_percent(tmp_path: Path) -> None:
    """On Tiny Shakespeare, byte by byte, or on Python's own sources where it is not there."""
    source = SHARED / "data" / "tinyshakespeare.txt"
    if not source.exists():
        import argparse

        source = Path(argparse.__file__)
    build("text", tmp_path / "data", sources=[source], tokenizer="byte", workers=1)
    line = command("ladder", "quickstart", "--dataset", "data", *REAL, "--json")

    def made() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            line, cwd=tmp_path, capture_output=True, text=True, timeout=1500, check=True
        )

    done = made()
    told = json.loads(done.stdout)
    assert len(told["points"]) == 4
    [fifth] = told["predictions"]
    print(json.dumps(told["law"]), json.dumps(fifth))
    assert abs(fifth["error"]) < 0.05
    assert [run["verdict"] for run in told["runs"]] == ["done"] * 5
    again = made()
    assert again.stdout == done.stdout
    assert again.stderr.count("is done:") == 5
