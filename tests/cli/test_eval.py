"""`nanogpt eval`: what it refuses, and how long its ranks wait."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.eval import _load_model
from cli.main import app
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import UsageError
from tests.nanogpt_dist.small import ONE


def test_a_flag_that_a_run_does_not_take_is_refused(trained: Path) -> None:
    with pytest.raises(UsageError, match="a run is judged at its own context"):
        _load_model(str(trained), None, 4, False, ONE)
    with pytest.raises(UsageError, match="--best chooses among a run's checkpoints"):
        _load_model(None, str(trained), None, True, ONE)
    assert _load_model(None, str(trained), 4, False, ONE).config.block_size == 4


def test_once_the_model_is_there_ranks_wait_ten_minutes(
    trained: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[bool, float]] = []
    monkeypatch.setattr(
        World, "settle", lambda self, settled=True: told.append((settled, self.timeout_s))
    )
    line = ["eval", str(trained), "--dataset", str(corpus), "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert told == [(True, 600)]
