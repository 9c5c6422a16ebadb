"""Preset, file, run or --init-from, with flags on top → TrainConfig."""

import difflib
import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nanogpt_dist import storage
from nanogpt_dist.config import (
    ModelConfig,
    TrainConfig,
    by_own_names,
    read_toml,
    resolve,
    settings_where,
)
from nanogpt_dist.errors import ConfigError, MissingInputError
from nanogpt_dist.presets import DEFAULT_PRESET, PRESETS, PRETRAIN
from nanogpt_dist.storage import run_folder

if TYPE_CHECKING:
    from nanogpt_dist.tokenizer import Tokenizer

Config = TypeVar("Config", bound=ModelConfig)


def load(name: str | None, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """The TrainConfig of a preset, file or run, with `overrides` on top; fills in out_dir.

    name: a key of PRESETS, a path that ends in .toml, one of nanoGPT's configs, which ends in .py,
    or a folder with a config.toml: a run, which is its own out_dir, or a checkpoint; None:
    gpt2-124m. Raises ConfigError, MissingInputError.
    """
    name, overrides = name or DEFAULT_PRESET, by_own_names(overrides or {})
    values, run = dict(read(name)), run_folder.as_run(name)
    out_dir = overrides.get("out_dir") or (
        _own_out_dir(run, values) if run else values.get("out_dir")
    )
    out_dir = out_dir or f"out/{Path(name).stem}"
    for given in (values, overrides):
        # nanoGPT's words: a run is begun, or gone on with, anyhow
        if given.get("init_from") in ("scratch", "resume"):
            given["init_from"] = None
    try:
        source = overrides.get("init_from", values.get("init_from"))
        ours = run or run_folder.as_checkpoint(name)
        if ours and isinstance(dataset := values.get("dataset"), str):
            values["dataset"] = run_folder.dataset_of(ours, dataset)
        # a run's settings have the architecture already
        if source and ("init_from" in overrides or not ours):
            values = with_architecture_of(str(source), Path(str(out_dir)), values, overrides)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    return resolve(values, {**overrides, "out_dir": out_dir}, name)


def _own_out_dir(run: Path, values: dict[str, Any]) -> str:
    """`run` itself as out_dir.

    Raises ConfigError where it has not begun, and its config.toml names another folder.
    """
    other = values.get("out_dir")
    if other and not run_folder.has_begun(run) and Path(str(other)).resolve() != run.resolve():
        raise ConfigError(
            f"{run / run_folder.CONFIG} has out_dir = {str(other)!r}; type --out-dir with the one "
            "you mean"
        )
    return str(run)


def read(name: str) -> dict[str, Any]:
    """The settings that `name` stands for, as load() takes it, and no others. Raises as load()."""
    folder = run_folder.as_run(name) or run_folder.as_checkpoint(name)
    if folder is not None:
        return read_toml(folder / run_folder.CONFIG)
    if name.endswith(".toml"):
        return read_toml(Path(name))
    if name.endswith(".py"):
        from nanogpt_dist.interop import nanogpt_config

        return nanogpt_config.read(Path(name))
    if name in PRESETS:
        return PRESETS[name]
    if Path(name).is_dir():
        raise ConfigError(f"{name} {_why_no_run(Path(name))}")
    if "/" in name and not os.path.lexists(name):
        raise MissingInputError(f"{name} does not exist; {_what_does(Path(name))}")
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = (
        f"did you mean {near[0]}?" if near else f"known: {', '.join(PRESETS)}; or give a .toml file"
    )
    raise ConfigError(f"no preset {name}; {hint}")


def _what_does(missing: Path) -> str:
    """What to type in place of a run or a checkpoint that is not there."""
    for folder in missing.parents:
        if run_folder.as_run(str(folder)):
            return f"type {shlex.join(['nanogpt', 'checkpoint', 'list', str(folder)])}"
    return "give a run, a checkpoint in one, a preset or a .toml file"


def _why_no_run(folder: Path) -> str:
    if (folder.resolve().parent / run_folder.CONFIG).is_file():
        return f"is a folder of a run: type {shlex.join(['nanogpt', 'train', str(folder.parent)])}"
    kept = next(
        (
            step / run_folder.CONFIG
            for step in storage.list_steps(run_folder.checkpoints_of(folder))
        ),
        None,
    )
    if kept is not None:
        return f"has lost its {run_folder.CONFIG}: {shlex.join(['cp', str(kept), str(folder)])}"
    if (folder / "config.json").is_file():
        hf = shlex.join(["nanogpt", "train", "--init-from", str(folder)])
        return f"is a folder of Hugging Face's, no run; to begin with its weights type {hf}"
    return f"has no {run_folder.CONFIG}, so it is no run; give a run, a preset or a .toml file"


def with_architecture_of(
    source: str,
    run: Path,
    values: dict[str, Any],
    overrides: dict[str, Any],
) -> dict[str, Any]:
    """`values` with the architecture of the weights in `source`.

    block_size may be shorter than theirs.

    run: that has begun from the same source remembers it, and goes on where the source is gone.
    Raises ConfigError where `overrides` contradict it, and what init_from.find_pretrained() raises.
    """
    from nanogpt_dist.interop.init_from import architecture

    theirs = {
        name: TrainConfig.model_fields[name].default
        for name in settings_where(ModelConfig, on_resume="refuse")
    }
    known = read_toml(run / "config.toml") if (run / "config.toml").is_file() else {}
    if known.get("init_from") == source:
        theirs.update({name: value for name, value in known.items() if name in theirs})
    else:
        theirs.update(architecture(source))
    for name, given in overrides.items():
        if name in theirs.keys() - {"block_size"} and given != theirs[name]:
            raise ConfigError(
                f"the weights of {source} have {name} {theirs[name]}, not {given}; leave it out"
            )
    longest = theirs["block_size"]
    if overrides.get("block_size", 0) > longest:
        raise ConfigError(
            f"the weights of {source} have block_size {longest}; it can be made shorter, not longer"
        )
    wanted = overrides.get("block_size", values.get("block_size", longest))
    return {**values, **theirs, "block_size": min(wanted, longest)}


def rows_for(tokenizer: "Tokenizer") -> int:
    """Rows of the token embedding for a tokenizer: a multiple of 64, as GPUs like it.

    Characters get exactly theirs, as in nanoGPT.
    """
    return tokenizer.n_vocab if tokenizer.kind == "char" else math.ceil(tokenizer.n_vocab / 64) * 64


def fit_vocabulary(name: str, config: TrainConfig, tokenizer: "Tokenizer") -> TrainConfig:
    """`config` with the vocab_size that the data set's tokenizer wants.

    For a config of load(name) whose vocab_size was not typed.

    A run that has begun keeps its own rows, and a preset's hold where all ids fit; else the data
    decides.
    """
    rows = config.vocab_size if name in PRESETS else None
    if config.init_from or (config.vocab_size is not None and rows is None):
        return config  # the weights have them, or a file says so
    begun = os.path.join(config.out_dir or "", "config.toml")
    known = (
        read_toml(Path(begun)).get("vocab_size")
        if config.out_dir and os.path.isfile(begun)
        else None
    )
    fits = [size for size in (known, rows) if isinstance(size, int) and size >= tokenizer.n_vocab]
    return config.model_copy(update={"vocab_size": fits[0] if fits else rows_for(tokenizer)})


def with_vocabulary(config: Config) -> Config:
    """`config` with a vocab_size, the GPT-2 presets' by default, and an end of text."""
    vocabulary = {} if config.vocab_size else PRETRAIN
    eot = {"eot_id": config.eot_id or 0} if config.intra_document else {}
    return config.model_copy(update={**vocabulary, **eot})
