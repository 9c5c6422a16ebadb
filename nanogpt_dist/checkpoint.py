"""A training state to a folder step-N and back: tensors as safetensors, everything else as JSON and TOML. No pickle.

model.safetensors (fp32, nanoGPT's plain names, the tied head left out) · optimizer.safetensors (NAME.exp_avg …) ·
state.json · config.toml · tokenizer.json · manifest.json (sha256 of each; see storage for the commit).
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanogpt_dist import runs, storage
from nanogpt_dist.config import TrainConfig, read_toml, resolve, to_toml
from nanogpt_dist.errors import BadDataError, ConfigError, StorageError
from nanogpt_dist.model import GPT
from nanogpt_dist.tokenizer import Tokenizer
from nanogpt_dist.tokenizer import load as load_tokenizer

TIED = "lm_head.weight"  # the same tensor as transformer.wte.weight


@dataclass
class TrainState:
    """All of a run that changes beside weights and optimizer; everything else is a function of (seed, data, step)."""

    step: int = 0  # updates made
    tokens: int = 0  # tokens trained on
    skipped: int = 0  # updates left out since a gradient was not finite
    val_loss: float | None = None  # of the last evaluation, in nats/token
    best_val_loss: float | None = None  # the lowest of all checkpoints
    best_step: int | None = None  # the checkpoint that has it


def save(
    checkpoints: Path,
    state: TrainState,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    tokenizer: Tokenizer,
    about: dict[str, Any],
) -> Path:
    """Commit checkpoints/step-N, whole or not at all, and return it. Raises StorageError.

    about: facts for state.json beside the TrainState (data set id, world size, scaler …).
    """

    def fill(folder: Path) -> None:
        weights = {name: tensor for name, tensor in model.state_dict().items() if name != TIED}
        _save_tensors(weights, folder / "model.safetensors")
        _save_tensors(_optimizer_tensors(model, optimizer), folder / "optimizer.safetensors")
        runs.write_json(folder / "state.json", {**asdict(state), **about})
        storage.write_atomic(folder / "config.toml", to_toml(config).encode())
        tokenizer.save(folder / "tokenizer.json")

    return storage.commit(checkpoints, storage.step_name(state.step), fill, {"step": state.step})


def load_model(checkpoint: Path, device: torch.device) -> tuple[GPT, TrainConfig]:
    """The model of a verified checkpoint, in evaluation mode on `device`, and the settings that it was trained with."""
    config = load_config(checkpoint)
    with torch.device("meta"):
        model = GPT(config.architecture())
    model = model.to_empty(device=device)
    model.lm_head.weight = model.transformer.wte.weight  # to_empty has cut the tie
    load_weights(checkpoint, model)
    return model.eval(), config


def load_config(checkpoint: Path) -> TrainConfig:
    """The settings in a checkpoint. Raises BadDataError."""
    try:
        return resolve(read_toml(checkpoint / "config.toml"))
    except ConfigError as error:
        raise BadDataError(f"{checkpoint / 'config.toml'}: {error}") from None


def load_state(checkpoint: Path) -> tuple[TrainState, dict[str, Any]]:
    """The TrainState of a checkpoint and the other facts beside it."""
    content = runs.read_json(checkpoint / "state.json")
    names = {field.name for field in fields(TrainState)}
    state = TrainState(**{name: content[name] for name in names if name in content})
    return state, {name: value for name, value in content.items() if name not in names}


def load_weights(checkpoint: Path, model: GPT) -> None:
    """Copy model.safetensors into `model`. Raises BadDataError where names or shapes are of another architecture."""
    tensors = _load_tensors(checkpoint / "model.safetensors")
    expected = {name: tensor for name, tensor in model.state_dict().items() if name != TIED}
    _check_names(checkpoint / "model.safetensors", tensors, expected)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])


def load_optimizer(checkpoint: Path, model: GPT, optimizer: torch.optim.Optimizer) -> None:
    """Give `optimizer` the state in optimizer.safetensors; the tensors go where their parameters are."""
    tensors = _load_tensors(checkpoint / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        prefix = name + "."
        saved = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for key, value in saved.items():
            if value.ndim and value.shape != parameter.shape:
                raise BadDataError(f"{checkpoint}: {prefix}{key} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
        # AdamW's fused form wants its step counter on the parameter's device, too.
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in saved.items()}


def load_checkpoint_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer that travels inside a checkpoint."""
    return load_tokenizer(checkpoint / "tokenizer.json")


def _optimizer_tensors(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """{parameter name}.{exp_avg | exp_avg_sq | step} → tensor."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    except (SafetensorError, OSError) as error:
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        free = storage.free_bytes(path.parent)
        raise StorageError(f"cannot write {path.name}: {error}; needed {needed:,} bytes, free {free:,}") from error


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadDataError(f"{path} cannot be read: {error}") from None


def _check_names(path: Path, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name in expected.keys() | found.keys():
        have = tuple(found[name].shape) if name in found else "absent"
        want = tuple(expected[name].shape) if name in expected else "absent"
        if have != want:
            raise BadDataError(f"{path} is of another architecture: {name} is {have}, the model wants {want}")
