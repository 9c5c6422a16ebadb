"""`nanogpt train RUN --recheck-step`: it makes a step again, and would notice."""

import json
import shutil
from pathlib import Path

import pytest

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import BadDataError, MissingInputError, UsageError
from nanogpt_dist.storage import write_atomic
from nanogpt_dist.training.recheck_step import recheck_step
from tests.conftest import Run
from tests.nanogpt_dist.small import ONE, go, records, tiny
from tests.nanogpt_dist.spiking import SETTINGS, poison

EVERY = {"log_interval": 1, "dropout": 0.1, "max_iters": 12, "keep_checkpoints": 9}


@pytest.fixture(scope="module")
def logged(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = tiny(corpus, tmp_path_factory.mktemp("logged") / "a", **EVERY)
    go(config)
    return config


@pytest.fixture(scope="module")
def without_dropout(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without dropout, whose masks each rank draws for itself."""
    run = tmp_path_factory.mktemp("trained") / "a"
    go(tiny(corpus, run, **{**EVERY, "dropout": 0.0}))
    return run


def log_of(config: TrainConfig) -> Path:
    return Path(str(config.out_dir)) / "metrics.jsonl"


@pytest.mark.parametrize(("step", "since"), [(5, 4), (7, 4), (12, 8)])
def test_a_step_comes_to_the_same_bits(logged: TrainConfig, step: int, since: int) -> None:
    before = log_of(logged).read_bytes()
    found = recheck_step(logged, step, ONE)
    assert (found.step, found.since, found.exact, found.difference) == (step, since, True, 0)
    assert log_of(logged).read_bytes() == before


def test_another_figure_in_the_log_is_told_of(corpus: Path, tmp_path: Path) -> None:
    config = tiny(corpus, tmp_path / "a", **EVERY)
    go(config)
    lines = records(tmp_path / "a")
    for line in lines:
        if line["step"] == 6:
            line["loss"] *= 1.01
    write_atomic(log_of(config), b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    with pytest.raises(BadDataError, match=r"step 6 comes to loss .* memory, a GPU or the data"):
        recheck_step(config, 6, ONE)
    assert recheck_step(config, 7, ONE).exact


def test_what_cannot_be_made_again_is_said(logged: TrainConfig) -> None:
    with pytest.raises(UsageError, match=r"step 40 of .* was not logged: type --recheck-step 12"):
        recheck_step(logged, 40, ONE)
    with pytest.raises(MissingInputError, match="from before step 3: type --recheck-step 5"):
        recheck_step(logged, 3, ONE)


def test_the_step_to_type_instead_has_a_good_checkpoint_before_it(
    corpus: Path, tmp_path: Path
) -> None:
    """Logged are 2, 4, 6, 8; good checkpoints are of steps 6 and 8, the one of 3 is damaged."""
    settings = {**EVERY, "log_interval": 2, "save_interval": 3, "max_iters": 8}
    config = tiny(corpus, tmp_path / "a", **settings)
    go(config)
    damaged = tmp_path / "a" / "checkpoints" / storage.step_name(3)
    (damaged / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"step 5 of .* was not logged: type --recheck-step 8$"):
        recheck_step(config, 5, ONE)
    with pytest.raises(MissingInputError, match=r"before step 4: type --recheck-step 8$"):
        recheck_step(config, 4, ONE)
    assert recheck_step(config, 8, ONE).since == 6
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="nothing is logged yet after step-00000006, its first"):
        recheck_step(config, 8, ONE)
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    with pytest.raises(UsageError, match=r"was not logged: the run has no good checkpoint$"):
        recheck_step(config, 8, ONE)


def test_steps_that_were_left_out_are_left_out_again(corpus: Path, tmp_path: Path) -> None:
    poison(60)
    config = tiny(corpus, tmp_path / "a", on_spike="rollback", **{**SETTINGS, "save_interval": 49})
    go(config)
    poison()
    assert recheck_step(config, 61, ONE).exact


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_command_says_it(ranks: int, without_dropout: Path, nanogpt: Run) -> None:
    line = ("train", str(without_dropout), "--recheck-step", "7")
    done = nanogpt(*line, ranks=ranks)
    assert "step 7 comes to loss " in done.stdout
    assert "to the last bit" in done.stdout or ranks == 2  # two may round otherwise
    told = json.loads(nanogpt(*line, "--json", ranks=ranks).stdout)
    assert told["difference"] < 1e-5
