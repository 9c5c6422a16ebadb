"""`nanogpt checkpoint`: what it shows, keeps and deletes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist import storage
from nanogpt_dist.storage import steps
from tests.conftest import TINY, Run


@pytest.fixture
def run(nanogpt: Run, corpus: Path) -> str:
    nanogpt(
        "train",
        "--dataset",
        corpus,
        *TINY,
        "--max-iters",
        12,
        "--eval-interval",
        2,
        "--keep-checkpoints",
        4,
        "--keep-every",
        4,
        "--out-dir",
        "run",
        "--no-tensorboard",
    )
    return "run"


def names(nanogpt: Run, run: str) -> dict[int, list[str]]:
    found = json.loads(nanogpt("checkpoint", "list", run, "--json").stdout)["checkpoints"]
    return {one["step"]: one["marks"] for one in found}


def test_list_pin_prune_and_verify(nanogpt: Run, run: str, tmp_path: Path) -> None:
    assert list(names(nanogpt, run)) == [12, 10, 8, 6, 4]
    place = f"{run}/checkpoints/step-000000"
    nanogpt("checkpoint", "pin", f"{place}06")
    told = nanogpt("checkpoint", "prune", run, "--keep", 1, "--dry-run").stdout
    assert "would delete" in told
    assert len(names(nanogpt, run)) == 5
    pruned = json.loads(nanogpt("checkpoint", "prune", run, "--keep", 1, "--json").stdout)
    left = names(nanogpt, run)
    assert pruned["bytes"] > 0
    assert "pinned" in left[6]
    assert "latest" in left[12]
    assert len(left) + len(pruned["deleted"]) == 5
    assert (
        f"give one checkpoint of it, like {place}12"
        in nanogpt("checkpoint", "pin", run, code=66).stderr
    )
    nanogpt("checkpoint", "unpin", f"{place}06")
    nanogpt("checkpoint", "unpin", f"{place}06", code=66)
    assert json.loads(nanogpt("checkpoint", "verify", run, "--json").stdout)["ok"]
    model = tmp_path / f"{place}12" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\xff")
    bad = nanogpt("checkpoint", "verify", f"{place}12", "--json", code=65)
    assert json.loads(bad.stdout)["bad"][0]["file"] == "step-00000012/model.safetensors"
    assert "nanogpt checkpoint verify run" in nanogpt("verify", run, code=2).stderr
    assert (
        "whole tensors already" in nanogpt("checkpoint", "consolidate", f"{place}06", code=2).stderr
    )


def test_prune_refuses_while_the_run_is_held(nanogpt: Run, run: str, tmp_path: Path) -> None:
    with storage.RunLock(tmp_path / run):
        nanogpt("checkpoint", "prune", run, code=73)


@pytest.mark.thorough
def test_a_sharded_checkpoint_is_consolidated(nanogpt: Run, corpus: Path, tmp_path: Path) -> None:
    nanogpt(
        "train",
        "--dataset",
        corpus,
        *TINY,
        "--max-iters",
        2,
        "--strategy",
        "fsdp",
        "--out-dir",
        "run",
        ranks=2,
    )
    out = nanogpt("checkpoint", "consolidate", "run").stdout.strip()
    assert sorted(path.name for path in (tmp_path / out).glob("*.safetensors")) == [
        "model.safetensors",
        "optimizer.safetensors",
    ]
    losses = [
        json.loads(nanogpt("eval", name, "--json").stdout)["val_loss"] for name in ("run", out)
    ]
    assert losses[0] == losses[1]
    nanogpt("checkpoint", "consolidate", "run", code=73)
    nanogpt("checkpoint", "consolidate", "run", "--out", "else", code=2)


@given(
    found=st.sets(st.integers(1, 40), max_size=12),
    keep=st.integers(1, 5),
    also=st.sets(st.integers(1, 40), max_size=3),
    pinned=st.sets(st.integers(1, 40), max_size=3),
    every=st.none() | st.integers(1, 10),
)
def test_what_stays_is_what_the_rule_says(
    tmp_path_factory: pytest.TempPathFactory,
    found: set[int],
    keep: int,
    also: set[int],
    pinned: set[int],
    every: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in found:
        storage.commit(folder, storage.step_name(step), lambda _: None, {"step": step})
    storage.write_pins(folder, set(map(storage.step_name, pinned)))
    steps.prune(folder, keep, set(map(storage.step_name, also)), every)
    newest = set(sorted(found, reverse=True)[:keep])
    multiples = {step for step in found if every and step % every == 0}
    assert {
        storage.step_of(path.name) for path in storage.list_steps(folder)
    } == newest | multiples | (found & (also | pinned))
