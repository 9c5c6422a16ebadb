"""Saves of two ranks of which one fails, dies or is stopped at a system call: nothing is lost.

Real trainings under strace: what safetensors writes goes by it, too. tests/faults/saves.py does it.
"""

import random
from pathlib import Path

import pytest

from tests.faults.saves import (
    Layout,
    fail_operations,
    go_on,
    kill_at,
    require_strace,
    stop_at,
)
from tests.faults.strace import CannotTraceError

LAYOUTS = [Layout(strategy, beside) for strategy in ("ddp", "fsdp") for beside in (False, True)]
PLACES = range(80)  # system calls of a save that change the disk: all ranks together make 76


@pytest.fixture(autouse=True)
def strace(tmp_path: Path) -> None:
    """Skips where system calls cannot be made to fail."""
    try:
        require_strace(tmp_path)
    except CannotTraceError as error:
        pytest.skip(str(error))


def test_a_save_that_fails_leaves_the_one_before_and_nothing_else(
    corpus: Path,
    tmp_path: Path,
) -> None:
    fail_operations(tmp_path, corpus, Layout("fsdp", True), seed=1, count=6)


@pytest.mark.thorough
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_save_may_fail_at_each_system_call_of_each_rank(
    layout: Layout,
    corpus: Path,
    tmp_path: Path,
) -> None:
    tries = fail_operations(tmp_path, corpus, layout, seed=LAYOUTS.index(layout), count=None)
    ranks = {each.fault.rank for each in tries if each.fault is not None}
    assert ranks == ({0} if layout.strategy == "ddp" else {0, 1}), "under ddp rank 0 writes alone"


def test_a_rank_killed_in_a_save_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    kill_at(tmp_path, corpus, Layout("fsdp", True), random.Random(1).randrange(40))
    go_on(tmp_path, corpus)


def test_a_stop_in_a_save_lets_it_finish(corpus: Path, tmp_path: Path) -> None:
    stop_at(tmp_path, corpus, Layout("fsdp", True), random.Random(2).randrange(40))


@pytest.mark.thorough
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("half", range(2))
def test_a_rank_may_be_killed_at_each_system_call(
    half: int,
    layout: Layout,
    corpus: Path,
    tmp_path: Path,
) -> None:
    for place in PLACES[LAYOUTS.index(layout) :: len(LAYOUTS)][half::2]:
        folder = tmp_path / str(place)
        folder.mkdir()
        kill_at(folder, corpus, layout, place)


@pytest.mark.thorough
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_rank_may_be_stopped_at_any_system_call(
    layout: Layout,
    corpus: Path,
    tmp_path: Path,
) -> None:
    for place in PLACES[2 * LAYOUTS.index(layout) :: 2 * len(LAYOUTS)]:
        folder = tmp_path / str(place)
        folder.mkdir()
        stop_at(folder, corpus, layout, place)
