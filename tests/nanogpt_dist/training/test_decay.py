"""Longer wsd runs go on from before their decay, and a decay branches off anywhere before it: with
the bits of a run that was so from the start.
"""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nanogpt_dist as ng
from nanogpt_dist import checkpoint, storage
from nanogpt_dist.config import TrainConfig, resolve, to_run_toml
from nanogpt_dist.errors import (
    MAX_LINE,
    BadDataError,
    ConfigError,
    MissingInputError,
    StorageError,
    UsageError,
    one_line,
)
from nanogpt_dist.storage import run_checkpoints
from nanogpt_dist.training import decay
from nanogpt_dist.training.schedule import decay_start
from tests.conftest import TINY, Run
from tests.faults.disk import FailingDisk
from tests.nanogpt_dist.small import go, records, tiny

WSD = {"schedule": "wsd", "decay_fraction": 0.4, "warmup_iters": 2, "min_lr": 0.0}
WSD |= {"dropout": 0.1, "log_interval": 1, "eval_interval": 100}


def tensors(run: Path, step: int) -> dict[str, str]:
    """{file: sha256} of the weights and moments in a checkpoint."""
    folder = run / "checkpoints" / storage.step_name(step)
    return {path.name: storage.sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}


def steps(run: Path) -> list[str]:
    return [path.name for path in storage.list_steps(run / "checkpoints")]


def test_a_longer_run_goes_on_from_where_the_decay_began_and_loses_nothing(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    go(tiny(corpus, run, max_iters=10, **WSD))
    assert steps(run) == ["step-00000010", "step-00000006"]
    assert storage.read_pins(run / "checkpoints") == {"step-00000006"}
    decayed, losses = tensors(run, 10), records(run)
    (run / "checkpoints" / "step-00000010.eval.json").write_text("{}")
    go(tiny(corpus, run, max_iters=10, **WSD))  # finished: nothing moves
    assert steps(run) == ["step-00000010", "step-00000006"]
    capsys.readouterr()

    go(tiny(corpus, run, max_iters=20, **WSD))
    told = capsys.readouterr().err
    assert (
        "note: step-00000010 has decayed; going on from step-00000006, before the decay; what came "
        "after is kept as decayed-step-00000010\n"
    ) in told
    go(tiny(corpus, whole, max_iters=20, **WSD))
    assert tensors(run, 20) == tensors(whole, 20)
    one, other = (
        {record["step"]: record["loss"] for record in records(path) if "loss" in record}
        for path in (run, whole)
    )
    assert one == other
    kept = run / "checkpoints" / "decayed-step-00000010"
    assert {name: storage.sha256_file(kept / name) for name in decayed} == decayed
    assert run_checkpoints.find_checkpoint(str(kept)) == kept
    assert (run / "checkpoints" / "decayed-step-00000010.eval.json").is_file()
    assert not (run / "checkpoints" / "step-00000010.eval.json").exists()
    copied = run / "metrics-decayed-00000010.jsonl"
    assert [json.loads(line) for line in copied.read_text().splitlines()] == losses
    assert steps(run) == ["step-00000020", "step-00000012", "step-00000006"]

    go(tiny(corpus, run, max_iters=25, **WSD))
    assert steps(run)[:2] == ["step-00000025", "step-00000015"]
    assert (run / "checkpoints" / "decayed-step-00000020").is_dir()


def test_all_checkpoints_within_the_decay_are_set_aside(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path, max_iters=10, **{**WSD, "save_interval": 2}))
    assert steps(tmp_path) == ["step-00000010", "step-00000008", "step-00000006"]
    go(tiny(corpus, tmp_path, max_iters=11, **WSD))  # its decay starts at 7
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("decayed-*"))
    assert kept == ["decayed-step-00000008", "decayed-step-00000010"]
    assert steps(tmp_path) == ["step-00000011", "step-00000007", "step-00000006"]


def test_where_muons_momentum_falls_earlier_a_run_is_stable_until_there(
    corpus: Path, tmp_path: Path
) -> None:
    muon = {**WSD, "optimizer": "muon", "muon_momentum_cooldown": 7}
    run, whole = tmp_path / "run", tmp_path / "whole"
    go(tiny(corpus, run, max_iters=10, **muon))
    assert steps(run) == ["step-00000010", "step-00000003"]
    go(tiny(corpus, run, max_iters=14, **muon))
    go(tiny(corpus, whole, max_iters=14, **muon))
    assert tensors(run, 14) == tensors(whole, 14)
    with pytest.raises(ConfigError, match=r"last 7 steps, .* 2: type --muon-momentum-cooldown 2"):
        decay.settings_of_branch(str(run), 3, {})
    decay.settings_of_branch(str(run), 3, {"muon_momentum_cooldown": 2})


@pytest.mark.parametrize(
    ("values", "longer", "start"),
    [
        ({}, {"max_iters": 20, "decay_fraction": 0.7}, 6),
        ({}, {"max_iters": 30, "decay_fraction": 0.8}, 6),
        (
            {"optimizer": "muon", "muon_momentum_cooldown": 7},
            {"max_iters": 14, "muon_momentum_cooldown": 11},
            3,
        ),
    ],
)
def test_a_decay_that_is_made_longer_begins_anew(
    corpus: Path, tmp_path: Path, values: dict[str, object], longer: dict[str, object], start: int
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    go(tiny(corpus, run, **{**WSD, **values, "max_iters": 10}))
    assert steps(run) == ["step-00000010", storage.step_name(start)]
    settings = {**WSD, **values, **longer}
    end = go(tiny(corpus, run, **settings)).step
    go(tiny(corpus, whole, **settings))
    assert tensors(run, end) == tensors(whole, end)
    assert (run / "checkpoints/decayed-step-00000010").is_dir()


def test_two_decays_that_end_at_one_step_are_both_kept(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = []
    for fraction, steps_made in ((0.4, 10), (0.3, 10), (0.4, 20)):
        settings = {**WSD, "decay_fraction": fraction, "max_iters": steps_made}
        go(tiny(corpus, tmp_path, **settings))
        logs.append((tmp_path / "metrics.jsonl").read_bytes())
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("decayed-*"))
    assert kept == ["decayed-step-00000010", "decayed-step-00000010-2"]
    assert (tmp_path / "metrics-decayed-00000010.jsonl").read_bytes() == logs[0]
    assert (tmp_path / "metrics-decayed-00000010-2.jsonl").read_bytes() == logs[1] != logs[0]

    def killed(*_: object) -> None:
        raise OSError("killed")

    chosen = tmp_path / "checkpoints/step-00000006"
    with monkeypatch.context() as patch:
        patch.setattr("os.rename", killed)
        with pytest.raises(StorageError):
            decay.set_aside_after(chosen)
    before = sorted(tmp_path.glob("metrics-decayed-*"))
    assert "metrics-decayed-00000020.jsonl" in [path.name for path in before]
    assert "decayed-step-00000020" in decay.set_aside_after(chosen)
    assert sorted(tmp_path.glob("metrics-decayed-*")) == before


def test_a_run_that_could_not_save_where_its_decay_starts_says_so_once(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = checkpoint.save

    def full(world: object, folder: object, mine: checkpoint.Contents, *rest: object) -> Path:
        if mine.state.step == 6:
            raise StorageError("no space left")
        return save(world, folder, mine, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", full)
    values = {**WSD, "max_iters": 10, "save_interval": 2}
    go(tiny(corpus, tmp_path, **values))
    told = "warning: no checkpoint was saved at step 6, where the decay starts: a longer run goes"
    assert capsys.readouterr().err.count(told) == 1
    go(tiny(corpus, tmp_path / "whole", **{**values, "max_iters": 11}))
    assert "no checkpoint was saved" not in capsys.readouterr().err


def test_where_the_decay_starts_is_pinned_later_if_it_cannot_be_at_once(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write, failed = storage.write_pins, []

    def full(checkpoints: Path, pins: set[str]) -> None:
        if len(failed) < 2:
            failed.append(pins)
            raise StorageError("no space left")
        write(checkpoints, pins)

    monkeypatch.setattr(storage, "write_pins", full)
    go(tiny(corpus, tmp_path, **WSD, max_iters=20, save_interval=1, keep_checkpoints=2))
    assert capsys.readouterr().err.count("is saved, but no space left") == 2
    assert storage.read_pins(tmp_path / "checkpoints") == {storage.step_name(12)}
    assert (tmp_path / "checkpoints" / storage.step_name(12)).is_dir()


def test_a_run_that_is_made_longer_before_its_decay_just_goes_on(
    corpus: Path, tmp_path: Path
) -> None:
    go(tiny(corpus, tmp_path, max_iters=10, **WSD))
    storage.list_steps(tmp_path / "checkpoints")[0].rename(tmp_path / "gone")
    go(tiny(corpus, tmp_path, max_iters=20, **WSD))
    assert not list((tmp_path / "checkpoints").glob("decayed-*"))


def test_a_decay_that_goes_on_as_it_was_and_a_shorter_run_move_nothing(
    corpus: Path, tmp_path: Path
) -> None:
    values = {**WSD, "save_interval": 2}
    go(tiny(corpus, tmp_path, max_iters=10, **values))
    storage.list_steps(tmp_path / "checkpoints")[0].rename(tmp_path / "gone")
    assert steps(tmp_path) == ["step-00000008", "step-00000006"]
    assert go(tiny(corpus, tmp_path, max_iters=9, **values)).step == 9
    assert not list((tmp_path / "checkpoints").glob("decayed-*"))


def test_each_checkpoint_is_judged_by_its_own_settings(corpus: Path, tmp_path: Path) -> None:
    run, whole, values = tmp_path / "run", tmp_path / "whole", {**WSD, "save_interval": 2}
    go(tiny(corpus, run, max_iters=10, **values))
    storage.list_steps(run / "checkpoints")[0].rename(tmp_path / "gone")
    go(tiny(corpus, run, max_iters=9, **values))
    assert steps(run) == ["step-00000009", "step-00000008", "step-00000006"]
    go(tiny(corpus, run, max_iters=20, **values))  # what made 9 steps would have decayed from 5 on
    go(tiny(corpus, whole, max_iters=20, **values))
    assert tensors(run, 20) == tensors(whole, 20)


def test_a_branch_of_what_has_decayed_names_the_checkpoint_of_before(
    corpus: Path, tmp_path: Path
) -> None:
    run, new, whole = (tmp_path / name for name in ("run", "new", "whole"))
    go(tiny(corpus, run, max_iters=10, **WSD))
    config = tiny(corpus, new, max_iters=20, **WSD)
    with pytest.raises(ConfigError, match="has decayed; in its place type one of before:") as told:
        go(config, branch_from=run / "checkpoints/step-00000010")
    assert steps(new) == []
    go(config, branch_from=Path(str(told.value).split()[-1]))
    go(tiny(corpus, whole, max_iters=20, **WSD))
    assert tensors(new, 20) == tensors(whole, 20)
    go(config, branch_from=run / "checkpoints/step-00000010")  # it has begun: nothing is copied


def test_a_run_that_has_nothing_of_before_its_decay_says_so_and_moves_nothing(
    corpus: Path, tmp_path: Path
) -> None:
    go(tiny(corpus, tmp_path, max_iters=10, **WSD))
    (tmp_path / "checkpoints" / "step-00000006").rename(tmp_path / "gone")
    with pytest.raises(
        ConfigError, match=r"decayed since step 6, .*schedule constant to"
    ) as caught:
        go(tiny(corpus, tmp_path, max_iters=20, **WSD))
    assert len(one_line(str(caught.value))) <= MAX_LINE
    assert steps(tmp_path) == ["step-00000010"]
    constant = {**WSD, "schedule": "constant"}
    assert go(tiny(corpus, tmp_path, max_iters=12, **constant)).step == 12


def test_a_refused_resume_moves_nothing(corpus: Path, tmp_path: Path) -> None:
    go(tiny(corpus, tmp_path, max_iters=10, **WSD))
    with pytest.raises(ConfigError, match="seed 1337"):
        go(tiny(corpus, tmp_path, max_iters=20, seed=7, **WSD))
    assert steps(tmp_path) == ["step-00000010", "step-00000006"]


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_branch_has_the_bits_of_a_run_that_decayed_there_from_the_start(
    corpus: Path, tmp_path: Path, nanogpt: Run, ranks: int
) -> None:
    flags = [
        *TINY,
        "--dataset",
        corpus,
        "--schedule",
        "wsd",
        "--warmup-iters",
        2,
        "--no-tensorboard",
    ]
    flags += ["--min-lr", "0", "--dropout", "0.1", "--save-interval", 4, "--keep-every", 4]
    nanogpt("train", *flags, "--max-iters", 20, "--out-dir", "out/mine", ranks=ranks)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/mine").rglob("*")}

    told = nanogpt("train", "out/mine", "--decay-from", 8, ranks=ranks)
    assert "out/mine-decay-8: going on from step-00000008" in told.stderr
    assert "Next: nanogpt sample out/mine-decay-8\n" in told.stdout
    nanogpt("train", *flags, "--max-iters", 10, "--out-dir", "whole", ranks=ranks)
    assert tensors(tmp_path / "out/mine-decay-8", 10) == tensors(tmp_path / "whole", 10)

    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/mine").rglob("*")} == before


def test_a_branch_of_any_length_decays_from_its_step_and_goes_on_without_its_run(
    corpus: Path, tmp_path: Path
) -> None:
    run, branch = tmp_path / "run", tmp_path / "run-decay-8"
    go(tiny(corpus, run, max_iters=15, **{**WSD, "save_interval": 4, "keep_every": 4}))
    result = ng.train(run, decay_from=8, max_iters=17, device="cpu")
    assert Path(result.checkpoint).parents[1] == branch
    go(tiny(corpus, tmp_path / "whole", max_iters=17, **{**WSD, "decay_fraction": 9 / 17}))
    assert tensors(branch, 17) == tensors(tmp_path / "whole", 17)
    assert storage.read_pins(branch / "checkpoints") == {"step-00000008"}

    # stopped and typed again, where the run has lost the checkpoint
    (run / "checkpoints/step-00000008").rename(tmp_path / "gone")
    (branch / "checkpoints/step-00000017").rename(tmp_path / "gone17")
    again = ng.train(run, decay_from=8, max_iters=17, device="cpu")
    assert (again.step, tensors(branch, 17)) == (17, tensors(tmp_path / "whole", 17))


def test_a_branch_decays_anew_when_it_is_to_be_longer_and_has_one_start(
    corpus: Path, tmp_path: Path
) -> None:
    run, branch = tmp_path / "run", tmp_path / "run-decay-8"
    go(tiny(corpus, run, max_iters=15, **{**WSD, "save_interval": 4, "keep_every": 4}))
    ng.train(run, decay_from=8, max_iters=17, device="cpu")
    ng.train(run, decay_from=8, max_iters=30, device="cpu")
    go(tiny(corpus, tmp_path / "whole", max_iters=30, **{**WSD, "decay_fraction": 22 / 30}))
    assert tensors(branch, 30) == tensors(tmp_path / "whole", 30)
    before = steps(branch)
    for place in (branch, run):
        with pytest.raises(ConfigError, match=r"does not decay from 4; type --out-dir NEW"):
            ng.train(run, decay_from=4, out_dir=place, device="cpu")
    assert steps(branch) == before


def test_settings_in_an_object_are_no_run_to_decay(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run's folder: type train\('out/RUN', decay_from=8\)"):
        ng.train(tiny(corpus, tmp_path), decay_from=8)


@pytest.mark.parametrize(
    ("step", "given", "error", "words"),
    [
        (7, {}, MissingInputError, "no checkpoint at step 7, but at 4, 6, 10: type --decay-from 6"),
        (10, {}, ConfigError, "has decayed at step 10: its wsd rate falls from step 6 on; .* list"),
        (6, {"max_iters": 6}, ConfigError, "--max-iters 6 ends before the decay from 6 on"),
        (
            6,
            {"max_iters": 20, "decay_fraction": 0.5},
            ConfigError,
            "the last 0.5 of 20 steps begin at 10, not at 6: leave --decay-fraction or",
        ),
        (
            6,
            {"decay_fraction": 0.01},
            ConfigError,
            "no number of steps .* give --max-iters above",
        ),
        (6, {"schedule": "linear"}, UsageError, "leave --schedule, --lr-decay-iters and --no"),
        (6, {"decay_lr": False}, UsageError, "--lr-decay-iters and --no-decay-lr out"),
        (
            6,
            {"warmup_iters": 7},
            UsageError,
            "--warmup-iters 7 ends after --decay-from 6: leave it",
        ),
    ],
)
def test_a_branch_that_cannot_be_says_what_to_type(
    corpus: Path,
    tmp_path: Path,
    step: int,
    given: dict[str, object],
    error: type[Exception],
    words: str,
) -> None:
    go(tiny(corpus, tmp_path / "run", max_iters=10, **{**WSD, "keep_every": 4}, save_interval=2))
    (tmp_path / "run/checkpoints/step-00000008").rename(tmp_path / "gone")
    with pytest.raises(error, match=words) as caught:
        decay.settings_of_branch(str(tmp_path / "run"), step, given)
    assert len(one_line(str(caught.value)).replace(str(tmp_path), "out")) <= MAX_LINE


def test_only_a_run_at_its_learning_rate_can_be_branched_off(corpus: Path, tmp_path: Path) -> None:
    cosine, constant, plain = (tmp_path / name for name in ("cosine", "constant", "plain"))
    values = {**WSD, "save_interval": 3, "max_iters": 6}
    go(tiny(corpus, cosine, **{**values, "schedule": "cosine"}))
    with pytest.raises(ConfigError, match="at step 3: its cosine rate falls from step 2 on"):
        decay.settings_of_branch(str(cosine), 3, {})
    go(tiny(corpus, constant, **{**values, "schedule": "constant", "warmup_iters": 4}))
    with pytest.raises(ConfigError, match="still warms up at step 3, until 4"):
        decay.settings_of_branch(str(constant), 3, {})
    _, found = decay.settings_of_branch(str(constant), 6, {})
    assert decay_start(resolve({"warmup_iters": 4, **found})) == 6
    muon = {"optimizer": "muon", "muon_momentum_cooldown": 4}
    config = tiny(corpus, constant, **{**values, "schedule": "constant", **muon})
    with pytest.raises(ConfigError, match="at step 3: Muon's momentum falls from step 2 on"):
        decay.refuse_decayed(config, constant, 3)
    # nanoGPT's constant rate has no warm-up
    go(tiny(corpus, plain, **{**values, "decay_lr": False, "warmup_iters": 100}))
    _, found = decay.settings_of_branch(str(plain), 3, {})
    assert (found["decay_lr"], found["warmup_iters"], found["max_iters"]) == (True, 0, 5)
    with pytest.raises(UsageError, match=r"takes a run, and .* type nanogpt train RUN"):
        decay.settings_of_branch("gpt2-124m", 3, {})


@settings(max_examples=40)
@example(step=600_000, fraction=0.99, more=1)  # found at once, not step by step
@given(step=st.integers(1, 10**6), fraction=st.floats(0.001, 0.95), more=st.integers(1, 10**6))
def test_the_decay_of_a_branch_starts_exactly_at_its_step(
    step: int, fraction: float, more: int
) -> None:
    try:
        found = decay._length(step, {}, fraction)
    except ConfigError:  # a decay that is too short for so early a step
        assert fraction * (step + 1) <= 0.5 + 1e-9
    else:
        most = found["max_iters"]
        assert decay_start(resolve({"schedule": "wsd", "warmup_iters": 0, **found})) == step
        assert most == step + 1 or most - 1 - round(fraction * (most - 1)) < step
    found = decay._length(step, {"max_iters": step + more}, 0.2)
    assert decay_start(resolve({"schedule": "wsd", "warmup_iters": 0, **found})) == step


def made(run: Path, *at: int, **values: object) -> TrainConfig:
    """Checkpoints of `run` without weights, made with these settings, which are returned."""
    config = resolve({"out_dir": str(run), "schedule": "wsd", "decay_fraction": 0.4, **values})

    def fill(staging: Path) -> None:
        (staging / "config.toml").write_text(to_run_toml(config))

    for step in at:
        storage.commit(run / "checkpoints", storage.step_name(step), fill, {})
    run.mkdir(exist_ok=True)
    (run / "config.toml").write_text(to_run_toml(config))
    return config


MUON = {"optimizer": "muon", "muon_momentum_cooldown": 7}  # of 10 steps: it falls from 3 on


@pytest.mark.parametrize(
    ("values", "newest", "then", "expected"),
    [
        ({}, 10, {}, 10),
        ({}, 6, {"max_iters": 20}, 6),
        ({}, 7, {"max_iters": 20}, 6),
        ({}, 10, {"max_iters": 11}, 6),  # it would fall from 7 on
        ({}, 8, {"max_iters": 9}, 8),  # faster than before
        ({}, 8, {"max_iters": 20, "decay_fraction": 0.7}, 6),
        ({}, 8, {"max_iters": 12, "decay_fraction": 0.5}, 8),  # slower, but it does not rise again
        ({}, 8, {"max_iters": 26, "decay_fraction": 20 / 26}, 6),  # it would rise
        ({}, 10, {"max_iters": 8, "decay_fraction": 0.5}, 10),
        ({}, 8, {"max_iters": 20, "decay_fraction": 0.75}, 4),  # from 5 on
        ({}, 10, {"schedule": "cosine", "max_iters": 20}, 10),
        ({"schedule": "cosine"}, 10, {"max_iters": 20}, 10),
        (MUON, 10, {}, 10),
        (MUON, 7, {"max_iters": 14, "decay_fraction": 9 / 14, "muon_momentum_cooldown": 11}, 2),
    ],
)
def test_a_run_goes_on_where_its_settings_undo_nothing(
    values: dict[str, object],
    newest: int,
    then: dict[str, object],
    expected: int,
    tmp_path: Path,
) -> None:
    settings = {"max_iters": 10, "warmup_iters": 2, **values}
    made(tmp_path, *(step for step in (2, 4, 6, 7, 8, 10) if step <= newest), **settings)
    config = made(tmp_path, **{"schedule": "wsd", **settings, **then})
    found = decay.before_decay(tmp_path / "checkpoints" / storage.step_name(newest), config)
    assert storage.step_at(found) == expected


def test_a_renamed_checkpoint_that_has_not_decayed_may_be_branched_from(tmp_path: Path) -> None:
    made(tmp_path, 6, max_iters=10, warmup_iters=2)
    mine = (tmp_path / "checkpoints" / storage.step_name(6)).rename(tmp_path / "step-00000006")
    config = made(tmp_path, max_iters=20, warmup_iters=2)
    assert decay.before_decay(mine, config) == mine
    decay.refuse_to_branch(mine, config)


def test_a_damaged_checkpoint_of_before_the_decay_is_passed_over(tmp_path: Path) -> None:
    made(tmp_path, 4, 6, 8, max_iters=10, warmup_iters=2)
    folder = tmp_path / "checkpoints"
    (folder / storage.step_name(6) / "more").touch()
    config = made(tmp_path, max_iters=20, warmup_iters=2)
    newest = folder / storage.step_name(8)
    assert decay.before_decay(newest, config) == folder / storage.step_name(4)
    (newest / "config.toml").write_text("max_iters = 'many'")
    with pytest.raises(BadDataError, match=r"step-00000008/config\.toml: .*max_iters"):
        decay.before_decay(newest, config)


def test_what_is_set_aside_is_durably_so_under_free_names(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    made(tmp_path, 4, 6, 8)
    (folder / "decayed-step-00000008").mkdir()
    (folder / "decayed-step-00000008-2").mkdir()
    (folder / "step-00000008.eval.json").touch()
    (tmp_path / "metrics.jsonl").write_text("record")
    chosen = folder / storage.step_name(4)
    disk = FailingDisk()
    with disk.watch():
        names = decay.set_aside_after(chosen)
    assert names == ["decayed-step-00000008-3", "decayed-step-00000006"]
    assert (folder / "decayed-step-00000008-3.eval.json").exists()
    assert storage.read_latest(folder) == "step-00000004"
    assert (tmp_path / "metrics-decayed-00000008-3.jsonl").read_text() == "record"
    moved = max(at for at, done in enumerate(disk.operations) if done[1:] == moved_to(folder))
    assert ("fsync", str(folder)) == disk.operations[moved + 1]

    assert decay.set_aside_after(chosen) == []
    assert len(list(tmp_path.glob("metrics*"))) == 2  # nothing more was copied
    (tmp_path / "metrics.jsonl").unlink()
    made(tmp_path, 5)
    assert decay.set_aside_after(chosen, "spiked") == ["spiked-step-00000005"]


def test_what_was_logged_is_not_copied_behind_a_link(tmp_path: Path) -> None:
    made(tmp_path, 4, 6)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "metrics.jsonl").write_text("record")
    copy = tmp_path / "metrics-decayed-00000006.jsonl"
    copy.symlink_to(tmp_path / "mine")
    decay.set_aside_after(tmp_path / "checkpoints" / storage.step_name(4))
    assert (copy.read_text(), (tmp_path / "mine").read_text()) == ("record", "mine")


def moved_to(folder: Path) -> tuple[str, str]:
    """What the rename of step 6 is recorded as."""
    return str(folder / "step-00000006"), str(folder / "decayed-step-00000006")


def test_only_where_the_decay_starts_is_pinned_beside_what_is(tmp_path: Path) -> None:
    config = made(tmp_path, 6, max_iters=10, warmup_iters=2)
    folder = tmp_path / "checkpoints"
    storage.write_pins(folder, {storage.step_name(4)})
    for step in (5, 7, 6):
        assert decay.starts_at(step, config) is (step == 6)
        decay.pin_decay_start(folder, step, config)
    assert storage.read_pins(folder) == {storage.step_name(4), storage.step_name(6)}
    cosine = config.model_copy(update={"schedule": "cosine", "warmup_iters": 6})
    assert not decay.starts_at(6, cosine)


@pytest.mark.parametrize(
    ("newest", "step", "values", "missed"),
    [
        (None, 8, {}, True),
        (None, 6, {}, False),
        (4, 8, {}, True),
        (4, 6, {}, False),
        (6, 8, {}, False),
        (8, 10, {}, False),
        (None, 8, {"decay_fraction": 0.9}, True),  # it starts at 1
        (None, 8, {"decay_fraction": 1.0}, False),  # at 0
        (None, 8, {"schedule": "cosine", "warmup_iters": 4}, False),
    ],
)
def test_a_missed_start_of_the_decay_is_told_at_the_next_save_only(
    newest: int | None, step: int, values: dict[str, object], missed: bool, tmp_path: Path
) -> None:
    config = made(tmp_path, **{"max_iters": 10, "warmup_iters": 0, **values})
    before = None if newest is None else tmp_path / storage.step_name(newest)
    told = decay.missed_start(before, step, config)
    start = decay_start(config)
    assert (told is not None) is missed
    assert not missed or f"no checkpoint was saved at step {start}, where the decay" in str(told)


@pytest.mark.parametrize(
    ("step", "values", "told"),
    [
        (3, {"warmup_iters": 4}, "still warms up at step 3, until 4"),
        (4, {"warmup_iters": 4}, None),
        (3, {"warmup_iters": 4, "decay_lr": False}, None),
        (6, {}, None),
        (7, {}, "its wsd rate falls from step 6 on"),
        (7, {**MUON, "muon_momentum_cooldown": 4}, "Muon's momentum falls from step 6 on"),
        (4, MUON, "Muon's momentum falls from step 3 on"),
    ],
)
def test_a_decay_begins_at_the_learning_rate_or_is_refused(
    step: int, values: dict[str, object], told: str | None, tmp_path: Path
) -> None:
    config = made(tmp_path, **{"max_iters": 10, "warmup_iters": 2, **values})
    if told is None:
        decay.refuse_decayed(config, tmp_path, step)
    else:
        with pytest.raises(ConfigError, match=told):
            decay.refuse_decayed(config, tmp_path, step)


@pytest.mark.parametrize(
    ("step", "given", "words"),
    [
        (6, {}, None),
        (6, {"schedule": "wsd", "decay_lr": True, "warmup_iters": 6}, None),
        (6, {"lr_decay_iters": 9}, "leave --schedule, --lr-decay-iters and"),
        (6, {"decay_lr": False}, "and --no-decay-lr out"),
        (6, {"schedule": "cosine"}, "leave --schedule"),
        (6, {"warmup_iters": 7}, "ends after --decay-from 6"),
        (0, {"max_iters": 5}, None),
    ],
)
def test_what_a_branch_is_given_is_taken_or_refused(
    step: int, given: dict[str, object], words: str | None, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    made(run, 0, 6, 10, max_iters=10, warmup_iters=0, schedule="constant")
    if words is None:
        source, found = decay.settings_of_branch(str(run), step, given)
        assert source == str(run / "checkpoints" / storage.step_name(step))
        assert decay_start(resolve({"warmup_iters": 0, **found})) == step
        assert found["out_dir"] == f"{run}-decay-{step}"
        assert "warmup_iters" not in found or found["warmup_iters"] == given["warmup_iters"]
        there = {**given, "out_dir": str(tmp_path / "there")}
        _, found = decay.settings_of_branch(str(run), step, there)
        assert found["out_dir"] == str(tmp_path / "there")
    else:
        with pytest.raises(UsageError, match=words):
            decay.settings_of_branch(str(run), step, given)


def test_a_branch_of_a_rate_without_warm_up_has_none_either(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made(run, 3, max_iters=10, warmup_iters=100, decay_lr=False, schedule="constant")
    _, found = decay.settings_of_branch(str(run), 3, {})
    assert (found["decay_lr"], found["warmup_iters"], found["max_iters"]) == (True, 0, 5)


def test_a_folder_that_holds_another_decay_is_not_branched_into(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made(run, 4, 6, max_iters=10, warmup_iters=0)
    for at, values in (
        ([6, 9], {"max_iters": 10}),
        ([6], {"schedule": "constant"}),  # the copy that it began with
        ([], {}),
    ):
        place = tmp_path / f"fits-{len(at)}"
        made(place, *at, warmup_iters=0, **values)
        decay.settings_of_branch(str(run), 6, {"out_dir": str(place)})
    for name, values in (("other", {"max_iters": 11}), ("none", {"schedule": "constant"})):
        made(tmp_path / name, 8, warmup_iters=0, **{"max_iters": 6, **values})
        with pytest.raises(ConfigError, match="does not decay from 6; type --out-dir NEW"):
            decay.settings_of_branch(str(run), 6, {"out_dir": str(tmp_path / name)})


def test_a_step_without_checkpoint_is_told_the_nearest_of_the_last(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made(run, max_iters=100)
    with pytest.raises(MissingInputError, match="has no checkpoint; type nanogpt train"):
        decay.settings_of_branch(str(run), 6, {})
    made(run, *range(5, 60, 5), max_iters=100)
    with pytest.raises(
        MissingInputError,
        match=r"at step 9, but at 20, 25, 30, 35, 40, 45, 50, 55: type --decay-from 10$",
    ):
        decay.settings_of_branch(str(run), 9, {})


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2, 1 / 3, 0.5, 0.6, 0.75, 0.9, 0.99])
def test_a_branch_is_as_short_as_its_fraction_makes_it(fraction: float) -> None:
    """By trying all lengths."""
    for step in range(1, 40):
        starts = {n: n - round(fraction * n) for n in range(5000, step, -1)}
        shortest = {start: n for n, start in starts.items()}.get(step)
        if shortest is None:
            with pytest.raises(ConfigError, match=f"give --max-iters above {step} in place"):
                decay._length(step, {}, fraction)
        else:
            found = decay._length(step, {}, fraction)
            assert found == {"max_iters": shortest, "decay_fraction": fraction}


def test_all_of_a_run_is_its_decay_only_from_step_0_on() -> None:
    assert decay._length(0, {}, 1.0) == {"max_iters": 1, "decay_fraction": 1.0}
    with pytest.raises(ConfigError, match="no number of steps"):
        decay._length(5, {}, 1.0)
    given = {"max_iters": 20, "decay_fraction": 0.7}
    assert decay._length(6, given, 0.7) == {"max_iters": 20, "decay_fraction": 0.7}
