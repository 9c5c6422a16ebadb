""""""

from pathlib import Path

import pytest

from cli.eval import _load_model
from nanogpt_dist.errors import UsageError
from tests.nanogpt_dist.small import ONE


def test_a_flag_that_a_run_does_not_take_is_refused(trained: Path) -> None:
    with pytest.raises(UsageError, match="a run is judged at its own context"):
        _load_model(str(trained), None, 4, False, ONE)
    with pytest.raises(UsageError, match="--best chooses among a run's checkpoints"):
        _load_model(None, str(trained), None, True, ONE)
    assert _load_model(None, str(trained), 4, False, ONE).config.block_size == 4
