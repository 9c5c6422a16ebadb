"""Runs side by side, and what W&B is told."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError, MissingInputError
from nanogpt_dist.inspect import compare_runs
from nanogpt_dist.training.wandb import _identity
from tests.conftest import Run
from tests.nanogpt_dist.small import go, records, tiny


@pytest.fixture(scope="module")
def two(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("two")
    go(tiny(corpus, folder / "a", log_interval=1))
    go(tiny(corpus, folder / "b", log_interval=2, batch_size=8, learning_rate=2e-3, max_iters=12))
    return [folder / "a", folder / "b"]


def test_bits_per_byte_are_told_which_do_not_depend_on_the_tokenizer(two: list[Path]) -> None:
    for run in two:
        evaluated = [one for one in records(run) if "val_loss" in one][-1]
        assert (
            compare_runs.summary(compare_runs.read_curve(run))["bits_per_byte"]
            == evaluated["bits_per_byte"]
        )


def test_losses_stand_at_equal_tokens(two: list[Path]) -> None:
    a, b = map(compare_runs.read_curve, two)
    assert (a.tokens, b.tokens) == (8 * 8 * 32, 12 * 16 * 32)
    rows = compare_runs.at_equal_tokens([a, b], points=4)
    assert [row["tokens"] for row in rows] == [512, 1024, 1536, 2048]
    of_a = records(two[0])
    losses = [one["loss"] for one in of_a if "loss" in one]
    evaluations = {one["step"]: one["val_loss"] for one in of_a if "val_loss" in one}
    assert [row["train_loss"][0] for row in rows] == pytest.approx(
        [np.mean(losses[i : i + 2]) for i in (0, 2, 4, 6)]
    )
    assert rows[0]["val_loss"][0] is None
    assert rows[1]["val_loss"][0] == evaluations[4]
    assert rows[2]["val_loss"][0] == pytest.approx((evaluations[4] + evaluations[8]) / 2)
    finer = compare_runs.at_equal_tokens([a, b], points=16)  # b logs every fourth of them
    assert all(row["train_loss"][1] is not None for row in finer[7:])
    assert finer[8]["train_loss"][1] == pytest.approx(np.interp(1152, b.train_tokens, b.train_loss))
    changed = compare_runs.differences([a, b])
    assert changed["learning_rate"] == [1e-2, 2e-3]
    assert changed.keys() == {"batch_size", "learning_rate", "log_interval", "max_iters"}


def test_the_command_prints_tables_json_and_a_picture(
    two: list[Path],
    tmp_path: Path,
    nanogpt: Run,
) -> None:
    done = nanogpt("compare", *two, "--plot", tmp_path / "plot.png")
    assert "learning_rate" in done.stdout
    data = (tmp_path / "plot.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000
    told = json.loads(nanogpt("compare", *two, "--json").stdout)
    assert [one["step"] for one in told["runs"]] == [8, 12]
    assert told["runs"][0]["verdict"] == "done"
    nanogpt("compare", two[0], code=2)


def test_what_is_no_run_is_told(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="is no run"):
        compare_runs.read_curve(tmp_path)


def offline_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format, behind a header of seven bytes."""
    assert data.startswith(b":W&B")
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768  # in this block; what is shorter than a header is padding
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""


def test_wandb_is_told_what_the_record_tells(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Offline; read back with wandb's own messages, over a stop and a resumption."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    go(tiny(corpus, run, log_interval=1, wandb_log=True, wandb_project="owt", max_iters=4))
    go(tiny(corpus, run, log_interval=1, wandb_log=True, wandb_project="owt"))
    told: dict[int, dict[str, float]] = {}
    identities = set()
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for data in offline_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.run.run_id:
                identities.add((record.run.run_id, record.run.project, record.run.display_name))
            items = record.history.item
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items
            }
            if "step" in values:
                told.setdefault(values["step"], {}).update(values)
    assert len(identities) == 1
    assert next(iter(identities))[1:] == ("owt", "run")
    for one in records(run):
        name = "train/loss" if "loss" in one else "val/val_loss"
        assert told[int(one["step"])][name] == pytest.approx(one[name.partition("/")[2]])
    assert set(told) == set(range(1, 9))


def test_a_copied_run_is_another_at_wandb_and_a_renamed_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = _identity(tmp_path / "a")
    assert not first[1]
    assert _identity(tmp_path / "a") == first
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    second = _identity(tmp_path / "b")
    assert second[1]
    assert second[0] != first[0]
    assert _identity(tmp_path / "b") == (second[0], False)
    (tmp_path / "a").rename(tmp_path / "c")
    assert _identity(tmp_path / "c") == first
    (tmp_path / "b" / "wandb_id").write_text("0123456789ab")  # of an older version
    assert _identity(tmp_path / "b") == ("0123456789ab", False)


def test_without_wandb_the_line_to_type_is_told(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'nanogpt-dist\[wandb\]'"):
        go(tiny(corpus, tmp_path / "run", wandb_log=True))


def test_a_wandb_that_fails_does_not_end_the_run(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(
        wandb, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no network"))
    )
    assert go(tiny(corpus, tmp_path / "run", wandb_log=True)).verdict == "done"
    assert "Weights & Biases is not told any more (no network)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lr$^$", "_c", "$", r"a\b$x$", "$$"])
def test_a_run_of_any_name_is_drawn(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = np.array([1.0, 2.0])
    curve = compare_runs.Curve(name, TrainConfig(), one, one, one, one, None)
    compare_runs.plot([curve, curve], tmp_path / "losses.svg")
    assert (tmp_path / "losses.svg").stat().st_size > 1000
