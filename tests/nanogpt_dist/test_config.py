"""Settings: declared once, checked at once, written and read back."""

from pathlib import Path
from typing import Any, get_args

import pytest

from nanogpt_dist.config import (
    ModelConfig,
    OnResume,
    Scope,
    TrainConfig,
    resolve,
    settings_where,
    to_toml,
)
from nanogpt_dist.errors import MAX_LINE, ConfigError, MissingInputError, one_line
from nanogpt_dist.load_config import fit_vocabulary, load
from nanogpt_dist.presets import PRESETS
from nanogpt_dist.tokenizer import Tokenizer

# nanoGPT's train.py, less what has become something else here: eval_only is `nanogpt eval`,
# init_from is resuming by itself, backend follows from the device, wandb_* are to come.
NANOGPT_DEFAULTS = {
    "eval_interval": 2000,
    "eval_iters": 200,
    "always_save_checkpoint": True,
    "dataset": "data/openwebtext",
    "gradient_accumulation_steps": 40,
    "batch_size": 12,
    "block_size": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "dropout": 0.0,
    "bias": False,
    "learning_rate": 6e-4,
    "max_iters": 600_000,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "grad_clip": 1.0,
    "decay_lr": True,
    "warmup_iters": 2000,
    "min_lr": 6e-5,
    "seed": 1337,
}


@pytest.mark.parametrize("name", NANOGPT_DEFAULTS)
def test_defaults_are_nanogpts(name: str) -> None:
    assert getattr(TrainConfig(), name) == NANOGPT_DEFAULTS[name]


def group_of(field: Any) -> str:
    return field.json_schema_extra["group"]


def test_every_setting_has_help_and_a_group_and_there_are_not_too_many() -> None:
    options = {
        name
        for name, field in TrainConfig.model_fields.items()
        if group_of(field) in ("Model options", "Recipe")
    }
    assert len(TrainConfig.model_fields.keys() - options) <= 63
    for name, field in TrainConfig.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert isinstance(field.json_schema_extra, dict), name
        assert field.json_schema_extra["group"], name


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_survives_toml(name: str, tmp_path: Path) -> None:
    config = load(name)
    assert config.out_dir == f"out/{name}"
    (tmp_path / "again.toml").write_text(to_toml(config), encoding="utf-8")
    assert load(str(tmp_path / "again.toml")) == config


def test_flags_go_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    # as Notepad writes
    (tmp_path / "mine.toml").write_text("\ufeffn_layer = 3\nn_embd = 96\n", encoding="utf-8")
    config = load(str(tmp_path / "mine.toml"), {"n_layer": 5})
    assert (config.n_layer, config.n_embd, config.n_head, config.out_dir) == (5, 96, 12, "out/mine")


def test_all_problems_are_told_at_once_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"n_heads": 3, "dropout": 1.5, "learning_rate": "fast"})
    for part in (
        "unknown setting n_heads, did you mean n_head?",
        "dropout = 1.5",
        "learning_rate = 'fast'",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n_head": 5}, "768 is not a multiple of n_head 5"),
        ({"min_lr": 1.0}, "min_lr 1 is above learning_rate 0.0006; type --min-lr 0.0006 or less"),
        ({"keep_checkpoints": 1}, "keep_checkpoints = 1"),
        ({"dtype": "float8"}, "dtype = 'float8'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    values: dict[str, object],
    words: str,
) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(values)


def test_unknown_presets_and_files() -> None:
    with pytest.raises(ConfigError, match=r"did you mean gpt2-124m\?"):
        load("gpt2-124")
    with pytest.raises(MissingInputError, match=r"none.toml does not exist"):
        load("none.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_layer = = 3", "is not TOML"),
        (f"seed = {'9' * 10_000}", "is not TOML: .* digits"),
        (f"seed = 0x{'f' * 10_000}", "is not TOML: .* digits"),
        (f"n_layer = [0x{'f' * 10_000}]", "is not TOML: .* digits"),
        (f"n_layer = {'[' * 10_000}", "is not TOML"),
        ("".join(f"key{number} = 1\n" for number in range(10_000)), "is longer than the 65,536"),
    ],
    ids=["equals", "digits", "hex", "hex in a list", "brackets", "keys"],
)
def test_broken_toml_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        load(str(tmp_path / "bad.toml"))
    assert "\n" not in str(caught.value)


def test_the_architecture_is_the_part_that_fixes_shapes() -> None:
    assert set(ModelConfig.model_fields) == set(load("gpt2").architecture().model_dump())


def test_an_error_line_keeps_its_end() -> None:
    line = one_line("something is wrong\nwith " + "x" * 500 + "; type this")
    assert len(line) <= MAX_LINE
    assert "\n" not in line
    assert line.endswith("; type this")


def test_a_presets_vocabulary_gives_way_to_the_data(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    byte, char = (
        Tokenizer("byte", "byte", [bytes([i]) for i in range(256)]),
        Tokenizer("char", "char", [b"a", b"b"]),
    )

    def rows(name: str, tokenizer: Tokenizer) -> int | None:
        return fit_vocabulary(name, load(name), tokenizer).vocab_size

    assert rows("shakespeare-char-cpu", byte) == 320  # 257 ids, a multiple of 64
    assert rows("shakespeare-char-cpu", char) == 65  # they fit
    assert rows("gpt2-124m", byte) == 50304
    Path("mine.toml").write_text("n_layer = 1\n")
    # characters get exactly their rows
    assert (rows("mine.toml", byte), rows("mine.toml", char)) == (320, 2)
    Path("mine.toml").write_text("vocab_size = 20\n")
    assert rows("mine.toml", byte) == 20  # was typed: refused later
    Path("out/quickstart").mkdir(parents=True)
    Path("out/quickstart/config.toml").write_text("vocab_size = 8192\n")
    assert rows("quickstart", byte) == 8192  # a run that has begun goes on with its own rows


def test_paths_in_a_file_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    config = resolve({"out_dir": "~/runs/a", "dataset": "~/data", "init_from": "~/hf/gpt2"})
    assert (config.out_dir, config.dataset, config.init_from) == (
        "/home/ada/runs/a",
        "/home/ada/data",
        "/home/ada/hf/gpt2",
    )
    with pytest.raises(
        ConfigError, match="out_dir = 's3://bucket/a': this is an address, not a path"
    ):
        resolve({"out_dir": "s3://bucket/a"})


def test_every_setting_of_a_run_declares_what_a_change_of_it_means() -> None:
    for name, field in TrainConfig.model_fields.items():
        declared: Any = field.json_schema_extra
        assert declared.get("on_resume") in get_args(OnResume), name
        assert declared.get("scope") in get_args(Scope), name


ARCHITECTURE = {
    "block_size",
    "vocab_size",
    "n_layer",
    "n_head",
    "n_embd",
    "bias",
    "gelu",
    "rotary",
    "rotary_base",
    "norm",
    "mlp",
    "qk_norm",
    "n_kv_head",
    "tied_head",
    "intra_document",
    "eot_id",
    "norm_weights",
    "embedding_norm",
    "logit_softcap",
    "residual_scalars",
    "value_embeddings",
    "bigram_rows",
    "smear",
    "sliding_window",
    "window_pattern",
}


def test_which_layers_are_short() -> None:
    def windows(**settings: Any) -> list[int | None]:
        config = ModelConfig(**{"n_layer": 6, "block_size": 64, **settings})
        return [config.window_of(layer) for layer in range(6)]

    assert windows() == [None] * 6
    assert windows(sliding_window=8) == [8, 8, 8, None, 8, None]
    assert windows(sliding_window=8, window_pattern="S") == [8, 8, 8, 8, 8, None]
    assert windows(sliding_window=8, window_pattern="L") == [None] * 6
    assert windows(sliding_window=64) == [None] * 6
    assert ModelConfig(sliding_window=8).shortest_window == 8
    assert ModelConfig(sliding_window=8, window_pattern="L").shortest_window is None
    with pytest.raises(ConfigError, match="window_pattern"):
        resolve({"window_pattern": "SX"})


# which tokens a step sees, and what is saved
ORDER = {"seed", "batch_ramp", "context_ramp", "align_documents", "optimizer"}
OTHERWISE = {
    "max_iters",
    "learning_rate",
    "decay_lr",
    "warmup_iters",
    "lr_decay_iters",
    "min_lr",
    "weight_decay",
    "beta1",
    "beta2",
    "grad_clip",
    "on_spike",
    "dropout",
    "dtype",
    "cpu_fast",
    "deterministic",
    "fp8",
    "eval_interval",
    "eval_iters",
    "save_interval",
    "always_save_checkpoint",
    "keep_checkpoints",
    "keep_every",
    "schedule",
    "decay_fraction",
    "muon_learning_rate",
    "muon_momentum",
    "muon_momentum_warmup",
    "muon_momentum_cooldown",
    "muon_coefficients",
    "muon_steps",
    "muon_scale",
    "embedding_learning_rate",
    "head_learning_rate",
    "scalar_learning_rate",
    "cautious_weight_decay",
    "base_width",
    "ema_decay",
}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"on_resume": "refuse"}, ARCHITECTURE | ORDER),
        ({"on_resume": "refuse_global_batch"}, {"batch_size", "gradient_accumulation_steps"}),
        ({"on_resume": "note"}, OTHERWISE),
        ({"scope": "machine"}, {"dataset", "device"}),
        (
            {"scope": "report"},
            {
                *("out_dir", "sample_interval", "sample_prompt", "tensorboard"),
                *("wandb_log", "wandb_project", "wandb_run_name"),
            },
        ),
        (
            {"scope": "upkeep"},
            {"timeout_s", "log_interval", "keep_checkpoints", "check_replicas_every"},
        ),
    ],
)
def test_what_a_change_means_is_what_it_always_meant(
    declared: dict[str, Any],
    expected: set[str],
) -> None:
    assert set(settings_where(**declared)) == expected


def test_weights_fix_the_architecture_but_for_dropout() -> None:
    assert set(settings_where(ModelConfig, on_resume="refuse")) == ARCHITECTURE
    assert ModelConfig.model_fields.keys() == ARCHITECTURE | {"dropout", "init", "zero_init"}


def test_tie_embeddings_is_tied_head_which_files_keep(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("tie_embeddings = false\nvocab_size = 64\n")
    for config in (load(str(file)), load("gpt2-124m", {"tie_embeddings": False})):
        assert config.tie_embeddings is config.tied_head is False
        assert "tied_head = false" in to_toml(config)
        assert "tie_embeddings" not in to_toml(config)
    assert load(str(file), {"tied_head": True}).tie_embeddings
    assert ModelConfig(tie_embeddings=False) == ModelConfig(tied_head=False)  # type: ignore[call-arg]


def test_one_setting_under_two_names_with_two_values_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("tie_embeddings = false\ntied_head = true\n")
    with pytest.raises(ConfigError, match="tie_embeddings = False and tied_head = True are the"):
        load(str(file))
    assert resolve({"tie_embeddings": False, "tied_head": False}).tied_head is False


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_ramp": "64"}, "this is no ramp; type STEP:SIZE,… from step 0 on, e.g. 0:64"),
        ({"batch_ramp": "5:64"}, "this is no ramp; type STEP:SIZE,… from step 0 on"),
        ({"batch_ramp": "0:64,1000:0"}, "this is no ramp"),
        (
            {"batch_ramp": "0:64,50:96,50:128"},
            "step 50 does not come after step 50; type the steps in ascending order, e.g. 0:64,51",
        ),
        (
            {"context_ramp": "0:256,1000:512"},
            "must end with block_size 1024 .* or --block-size 512",
        ),
        ({"context_ramp": "0:512,9:2048"}, "have nothing longer; .* or --block-size 2048"),
        ({"context_ramp": "0:2048,9:1024"}, "have nothing longer; type another --context-ramp$"),
        ({"context_ramp": "0:1024,9:512"}, "have nothing longer; type another --context-ramp$"),
    ],
)
def test_a_ramp_that_is_none_is_told_what_to_type(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(settings)
    assert len(one_line(str(caught.value))) <= MAX_LINE


def test_a_ramp_says_of_each_step_what_it_reads() -> None:
    config = resolve({"batch_ramp": "0:64,1000:128", "context_ramp": "0:256,600:1024"})
    at = [(step, config.ramp.at(step)) for step in (0, 599, 600, 999, 1000, 10**9)]
    assert [(step, piece.sequences, piece.length) for step, piece in at] == [
        (0, 64, 256),
        (599, 64, 256),
        (600, 64, 1024),
        (999, 64, 1024),
        (1000, 128, 1024),
        (10**9, 128, 1024),
    ]
    assert config.global_batch_size == 128
    assert config.ramp.tokens_before(1001) == 64 * (600 * 256 + 400 * 1024) + 128 * 1024
    assert config.ramp.sequences_before(1001, 1024) == 64 * 400 + 128
    first = 64 * 600 * 256
    steps = [config.ramp.steps_of(tokens) for tokens in (0, 1, first, first + 1)]
    assert steps == [0, 1, 600, 601]
    plain = resolve({"batch_size": 4, "block_size": 32}).ramp
    assert [(each.first, each.length) for each in plain.pieces] == [(0, 32)]
    assert plain.sequences_before(3, 16) == 0
