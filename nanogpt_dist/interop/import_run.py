"""Imported weights become a run with one checkpoint, which all commands take."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_dist import checkpoint, storage
from nanogpt_dist.checkpoint import Contents, TrainState
from nanogpt_dist.checkpoint.tensors import read_whole, whole_parts
from nanogpt_dist.config import TrainConfig, resolve, to_run_toml
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError, CannotCreateError, ConfigError, UsageError
from nanogpt_dist.interop import hf_tokenizer, huggingface
from nanogpt_dist.interop.init_from import Pretrained, architecture
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.presets import DEFAULT_PRESET, PRESETS
from nanogpt_dist.storage import run_folder
from nanogpt_dist.tokenizer import Tokenizer

SINGLE_PROCESS = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"), backend=None)


@dataclass(frozen=True)
class ImportedModel:
    """What is imported: weights, AdamW's moments, and where training stood.

    Names are ours (moments: NAME.exp_avg …).
    """

    config: TrainConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    origin: str
    moments: dict[str, Tensor] = field(default_factory=dict)
    state: TrainState = field(default_factory=TrainState)


def write_run(foreign: ImportedModel, run: Path) -> Path:
    """Write `run` with one checkpoint of what is taken over, and return that.

    Raises BadDataError where weights or moments are not those of the architecture,
    CannotCreateError where the folder has checkpoints, ConfigError where a value is not finite,
    StorageError.
    """
    if storage.list_steps(run_folder.checkpoints_of(run)):
        raise CannotCreateError(f"{run} holds a run already; give another --out-dir")
    _refuse_other_shapes(foreign)
    config = foreign.config.model_copy(update={"out_dir": str(run)})
    storage.probe_writable(run)
    with storage.RunLock(run):
        about: dict[str, Any] = {
            "imported_from": foreign.origin,
            "tokenizer_fingerprint": foreign.tokenizer.fingerprint,
            "layout": "imported",
        }
        mine = Contents(foreign.state, whole_parts(foreign.weights), whole_parts(foreign.moments))
        written = checkpoint.save(
            SINGLE_PROCESS, run_folder.checkpoints_of(run), mine, config, foreign.tokenizer, about
        )
        storage.write_latest(run_folder.checkpoints_of(run), written.name)
        storage.write_atomic(run / "config.toml", to_run_toml(config).encode())
        run_folder.write_run_json(run, 1, torch.get_num_threads(), imported_from=foreign.origin)
        message = f"imported from {foreign.origin}"
        status = run_folder.Status("stopped", foreign.state.step, written.name, message=message)
        run_folder.write_status(run, status)
    return written


def read_hugging_face(source: Pretrained) -> ImportedModel:
    """What is in a folder of Hugging Face's, at step 0."""
    config = resolve({**PRESETS[DEFAULT_PRESET], **architecture(str(source.folder))})
    model = huggingface.load_model(source, config.architecture(), torch.device("cpu"))
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    tokenizer = hf_tokenizer.load_tokenizer(source)
    return ImportedModel(config, weights, tokenizer, source.origin)


def origin_of(found: Path) -> tuple[str | None, bool]:
    """Where a verified checkpoint's first weights came from, and whether they are unchanged.

    None for ours.
    """
    facts = checkpoint.load_state(found)[1]
    imported = facts.get("imported_from")
    origin = imported or facts.get("began_from") or checkpoint.load_config(found).init_from
    return (str(origin) if origin else None), bool(imported)


def read_weights(
    found: Path,
    weights: checkpoint.Weights = "model",
) -> tuple[TrainConfig, dict[str, Tensor], TrainState]:
    """Config, weights and state of a verified checkpoint, whole and in memory.

    With the averaged weights the state has no val loss: that was of the others. Raises
    MissingInputError where there are none.
    """
    tensors = read_whole(checkpoint.weight_files(found, weights))
    state, _ = checkpoint.load_state(found)
    if weights == "ema":
        state.val_loss = None
    return checkpoint.load_config(found), tensors, state


def read_moments(found: Path) -> dict[str, Tensor]:
    """AdamW's state in a verified checkpoint, as NAME.exp_avg …; empty before the first step."""
    return read_whole(sorted(found.glob("optimizer*.safetensors")))


def _refuse_other_shapes(foreign: ImportedModel) -> None:
    if foreign.config.vocab_size is None:
        raise ConfigError(f"{foreign.origin} does not say how many ids it has")
    ids, rows = foreign.tokenizer.n_vocab, foreign.config.vocab_size
    if ids > rows:
        raise BadDataError(f"{foreign.origin}: {ids} ids in its tokenizer, {rows} in its model")
    with torch.device("meta"):
        wanted = {
            name: tuple(p.shape)
            for name, p in GPT(foreign.config.architecture()).named_parameters()
        }
    found = {name: tuple(tensor.shape) for name, tensor in foreign.weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise BadDataError(
                f"{foreign.origin}: {name} is {found.get(name, 'absent')}, its sizes ask for "
                f"{wanted.get(name, 'none')}"
            )
    for name, tensor in foreign.moments.items():
        parameter, _, kind = name.rpartition(".")
        if parameter not in wanted or (kind != "step" and tuple(tensor.shape) != wanted[parameter]):
            raise UsageError(
                f"{foreign.origin}: its optimizer state does not fit its weights; add "
                "--no-optimizer"
            )
