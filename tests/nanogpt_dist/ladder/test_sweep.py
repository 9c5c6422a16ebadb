"""What a file of a sweep asks for: which runs, their names and commands, and what is refused."""

import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cli.main import app
from cli.options import nanogpt_style
from nanogpt_dist.config import TrainConfig, settings_where
from nanogpt_dist.errors import MAX_LINE, ConfigError, MissingInputError, UsageError
from nanogpt_dist.ladder import sweep
from nanogpt_dist.ladder.changes import first_change
from nanogpt_dist.load_config import load
from nanogpt_dist.storage import run_folder

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "learning_rate": st.floats(1e-6, 1.0).filter(lambda value: value > 0),
    "seed": st.integers(0, 2**40),
    "bias": st.booleans(),
    "mlp": st.sampled_from(["gelu", "swiglu", "relu2"]),
    "n_layer": st.integers(1, 64),
    "dataset": st.sampled_from(["data/a", "data/b c", "-d", "données"]),
    "sample_prompt": st.sampled_from([["a"], ["b c", "-d"], ["é"]]),
}
GRIDS = st.dictionaries(st.sampled_from(sorted(VALUES)), st.just(None), max_size=4).flatmap(
    lambda names: st.fixed_dictionaries(
        {name: st.lists(VALUES[name], min_size=1, max_size=3, unique_by=str) for name in names}
    )
)


@given(GRIDS)
def test_a_grid_is_all_combinations_each_once(grid: dict[str, list[Any]]) -> None:
    found = sweep.combinations(grid)
    assert len(found) == (math.prod(map(len, grid.values())) if grid else 0)
    assert len({str(each) for each in found}) == len(found)
    assert all(list(each) == list(grid) for each in found)
    for name, values in grid.items():
        assert {str(each[name]) for each in found} == set(map(str, values))


@given(GRIDS)
def test_names_tell_runs_apart_and_are_folders(grid: dict[str, list[Any]]) -> None:
    runs = sweep.expand({"grid": grid, "run": [{}]}, Path("out/x")).runs
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    assert all(sweep.NAME.fullmatch(name) and len(name) <= sweep.MAX_NAME for name in names)
    assert all(shlex.quote(name) == name for name in names if name.isascii())
    assert names[-1] == sweep.PLAIN


@given(GRIDS)
def test_the_command_of_a_run_gives_train_its_settings(grid: dict[str, list[Any]]) -> None:
    found = sweep.expand({"preset": "quickstart", "grid": grid, "run": [{}]}, Path("out/x"))
    group = typer.main.get_command(app)
    for run in found.runs:
        words = nanogpt_style(found.arguments(run))
        context = group.make_context("nanogpt", words)
        name, command, rest = group.resolve_command(  # type: ignore[attr-defined]
            context, [*context._protected_args, *context.args]
        )
        typed = command.make_context(name, rest, parent=context).params
        assert typed["preset"] == "quickstart"
        # of a flag that may be repeated click has a tuple, empty where it is not given
        given = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in typed.items()
            if value not in (None, ())
        }
        settings = {key: value for key, value in given.items() if key in TrainConfig.model_fields}
        assert settings == {**run.settings, "out_dir": str(found.folder(run))}


def test_runs_come_in_the_order_of_the_file_and_the_last_setting_changes_fastest() -> None:
    content = {
        "preset": "quickstart",
        "max_iters": 9,
        "grid": {"seed": [1, 2], "learning_rate": [1e-3, 1e-5]},
        "run": [{"name": "wide", "n_embd": 256, "max_iters": 8}, {"n_embd": 64}],
    }
    found = sweep.expand(content, Path("out/sweeps/x"))
    assert [run.name for run in found.runs] == [
        "seed=1,learning_rate=0.001",
        "seed=1,learning_rate=1e-05",
        "seed=2,learning_rate=0.001",
        "seed=2,learning_rate=1e-05",
        "wide",
        "n_embd=64",
    ]
    assert found.runs[4].settings == {"max_iters": 8, "n_embd": 256}
    assert found.runs[5].settings == {"max_iters": 9, "n_embd": 64}
    assert found.out == Path("out/sweeps/x")
    assert sweep.expand({**content, "out": "o"}, Path("x")).out == Path("o")
    assert found.chosen("4") is found.chosen("wide") is found.runs[4]
    with pytest.raises(UsageError, match="from 0 to 5"):
        found.chosen("6")


def test_a_long_name_is_cut_and_stays_another() -> None:
    names = {sweep.name_of({"dataset": "d" * 200, "seed": seed}) for seed in range(3)}
    assert len(names) == 3
    assert {len(name) for name in names} == {sweep.MAX_NAME}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('preset = "quickstart"', "neither a [grid] nor a [[run]]"),
        ("[grid]\nseed = 1", "seed in [grid] is no list"),
        ("[grid]\nseed = []", "write seed = [1, 2]"),
        ("seed = 1\n[grid]\nseed = [1]", "leave out one of them"),
        ("[grid]\nsed = [1]", "unknown setting sed, did you mean seed?"),
        ('[grid]\nseed = ["a"]', "seed = 'a'"),
        ("[grid]\nseed = [1, 1]", "two runs are called seed=1"),
        (
            "[grid]\n" + "".join(f"{name} = [{'1, ' * 101}]\n" for name in ("seed", "n_head")),
            "that makes 10,201 runs, and 10,000 are the most",
        ),
        ('[[run]]\nname = "a/b"', "the name 'a/b' is no folder's"),
        ('[[run]]\nname = "-x"', "the name '-x' is no folder's"),
        ('[[run]]\nout_dir = "x"', "leave out out_dir"),
        ("run = 3", "runs are a list of them, [[run]]"),
        ('preset = "quickstrat"\n[[run]]', "did you mean quickstart?"),
        ('preset = "gpt2-124m"\n[[run]]\nlearning_rate = 1e-5', "min_lr"),
        ("[grid", "is not TOML"),
        ("out = 5\n[[run]]", "out = 5 is no folder"),
        ('out = ""\n[[run]]', "out = '' is no folder"),
        ('out = "s3://bucket/x"\n[[run]]', 'write out = "out/sweeps/rates"'),
    ],
)
def test_what_is_no_sweep_is_told_in_a_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        sweep.read(tmp_path / "a.toml")
    assert message in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) <= MAX_LINE


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="is no file"):
        sweep.read(tmp_path / "a.toml")


def test_the_home_folder_is_that_of_train() -> None:
    found = sweep.expand({"out": "~/x", "run": [{"name": "a"}]}, Path("y"))
    assert found.out == Path.home() / "x"
    assert found.config(found.runs[0]).out_dir == str(found.out / "a")


@pytest.mark.parametrize(
    "name",
    ["seed", "dataset", "learning_rate", "init_from", "init", "zero_init", "n_layer"],
)
def test_a_folder_with_a_run_of_other_settings_is_refused(
    name: str,
    tmp_path: Path,
) -> None:
    content = {"preset": "quickstart", "run": [{"name": "a"}]}
    found = sweep.expand(content, tmp_path)
    folder = tmp_path / "a"
    folder.mkdir()
    changed: dict[str, Any] = {"seed": 1, "dataset": "x", "learning_rate": 4e-3, "n_layer": 3}
    changed["zero_init"] = False
    theirs = found.config(found.runs[0]).model_copy(update={name: changed.get(name, "gpt2")})
    write(folder, theirs)
    assert sweep.checked(found)  # a config.toml alone is anybody's
    run_folder.write_status(folder, run_folder.Status("done", 1000, None))
    with pytest.raises(ConfigError, match=rf"was trained with {name} .*; give another out"):
        sweep.checked(found)
    with pytest.raises(ConfigError, match=rf"was trained with {name} .*; give another --out-dir$"):
        sweep.checked(found, "give another --out-dir")


def test_a_run_may_be_made_longer_and_use_the_machine_otherwise(tmp_path: Path) -> None:
    found = sweep.expand({"preset": "quickstart", "run": [{"name": "a"}]}, tmp_path)
    folder = tmp_path / "a"
    folder.mkdir()
    run_folder.write_status(folder, run_folder.Status("done", 900, None))
    theirs = found.config(found.runs[0])
    other = {name: None for name in settings_where(on_resume="ignore") if name == "compile"}
    write(folder, theirs.model_copy(update={"max_iters": 900, "vocab_size": 320, **other}))
    assert sweep.checked(found)
    assert sweep.state(folder, 900) == "done"
    assert sweep.state(folder, 1000) == "stopped"
    write(folder, theirs.model_copy(update={"max_iters": 2000}))
    with pytest.raises(ConfigError, match="max_iters 2000"):
        sweep.checked(found)


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        ({"schedule": "wsd"}, True),
        ({"schedule": "wsd", "muon_momentum_cooldown": 50}, True),
        ({"schedule": "constant"}, True),
        ({"schedule": "cosine"}, False),
        ({"schedule": "linear"}, False),
        ({"schedule": "cosine", "decay_lr": False}, True),
        ({"schedule": "cosine", "lr_decay_iters": 900}, True),
        ({"schedule": "constant", "muon_momentum_cooldown": 50}, False),
        ({"schedule": "constant", "muon_momentum_cooldown": 50, "optimizer": "adamw"}, True),
    ],
    ids=str,
)
def test_a_run_grows_where_its_first_steps_are_those_of_the_longer_one(
    settings: dict[str, Any],
    may: bool,
) -> None:
    short = load("quickstart", {**settings, "max_iters": 900})
    change = first_change(short, load("quickstart", {**settings, "max_iters": 1000}), settings)
    assert change == (None if may else "max_iters 900, where its schedule ends (now 1000)")


def test_how_a_step_is_shared_out_saved_and_logged_may_change() -> None:
    now = load("quickstart")
    before = now.model_copy(
        update={
            "batch_size": now.batch_size * now.gradient_accumulation_steps,
            "gradient_accumulation_steps": 1,
            "save_interval": 10,
            "keep_checkpoints": 5,
            "log_interval": 7,
        }
    )
    assert first_change(before, now, ()) is None
    before = now.model_copy(update={"batch_size": 2 * now.batch_size})
    change = first_change(before, now, ())
    assert change == f"global_batch_size {before.global_batch_size} (now {now.global_batch_size})"


def write(folder: Path, config: TrainConfig) -> None:
    from nanogpt_dist.config import to_run_toml

    (folder / run_folder.CONFIG).write_text(to_run_toml(config))
