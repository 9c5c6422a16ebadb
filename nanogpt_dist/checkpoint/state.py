"""A training state to a folder step-N and back: safetensors, JSON and TOML. No pickle.

model*.safetensors (fp32, nanoGPT's plain names, the tied head left out) · optimizer*.safetensors
(NAME.exp_avg …) · with ema_decay ema*.safetensors (the averaged weights, as model*) · state.json ·
config.toml · tokenizer.json · manifest.json (sha256 of each; see storage for the commit).

One process, and ddp, write one file of each kind, fsdp one per shard
(model-00001-of-00004.safetensors; see tensors).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nanogpt_dist import storage
from nanogpt_dist.checkpoint.tensors import Part, Stored, index, parts_to_write, read_into, write
from nanogpt_dist.config import TrainConfig, read_toml, resolve, to_run_toml
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError, ConfigError, MissingInputError
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.storage import run_folder
from nanogpt_dist.storage.durable import shown
from nanogpt_dist.tokenizer import Tokenizer
from nanogpt_dist.tokenizer import load as load_tokenizer

TIED = "lm_head.weight"  # the same tensor as transformer.wte.weight

Weights = Literal["model", "ema"]  # of a checkpoint: as they are, or averaged over the steps


@dataclass
class TrainState:
    """All of a run that changes, beside weights and optimizer state.

    Everything else is a function of (seed, data, step, left_out).
    """

    step: int = 0  # steps made
    tokens: int = 0  # tokens trained on
    skipped: int = 0  # steps without effect, since a gradient was not finite
    val_loss: float | None = None  # of this step, in nats/token; None where it was not evaluated
    best_val_loss: float | None = None  # the lowest of all checkpoints
    best_step: int | None = None  # the checkpoint that has it
    losses: tuple[float, ...] = ()  # of the last steps, nats/token: what spikes are judged by
    grad_norms: tuple[float, ...] = ()  # of the same steps
    left_out: tuple[tuple[int, int], ...] = ()  # first and last step of each stretch not made

    @property
    def leaves_out_next(self) -> bool:
        """Whether the step that comes next is not to be made."""
        return any(first <= self.step + 1 <= last for first, last in self.left_out)

    def leave_out(self) -> None:
        """Count a step that is not made: nothing is read, and the weights stay as they are."""
        self.step += 1
        self.val_loss = None

    def count(self, tokens: int) -> None:
        """Count a step that read `tokens`. It is not evaluated yet."""
        self.step += 1
        self.tokens += tokens
        self.val_loss = None


@dataclass(frozen=True)
class Contents:
    """What one rank writes of a checkpoint: its parts of weights and optimizer state.

    As they are or in a copy. averages: of the averaged weights; {} where there are none.
    """

    state: TrainState
    weights: dict[str, Part]
    moments: dict[str, Part]
    averages: dict[str, Part] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all values; 0 where this rank writes nothing."""
        kinds = (self.weights, self.moments, self.averages)
        return sum(part.data.nbytes for parts in kinds for part in parts.values())

    def refuse_not_finite(self) -> None:
        """Raise ConfigError where a value is NaN or infinite.

        Such a checkpoint would bury the good ones.
        """
        kinds = (self.weights, self.moments, self.averages)
        if not all(_finite(part.data) for parts in kinds for part in parts.values()):
            raise ConfigError(
                f"the weights are not finite at step {self.state.step}, nothing is saved; go on "
                "from the last checkpoint with lower learning rates"
            )


def contents(
    state: TrainState,
    model: GPT,
    moments: Mapping[str, Tensor],
    is_rank0: bool,
    copies: dict[str, Tensor] | None = None,
    averages: Mapping[str, Tensor] | None = None,
) -> Contents:
    """This rank's Contents; moments: the optimizer's state, NAME.KEY → tensor.

    averages: the averaged weights, by the names of the weights. copies: CPU memory for all of them
    by name, so that what training does next leaves them alone.
    """
    return Contents(
        replace(state),
        parts_to_write(_weights(model), is_rank0, copies),
        parts_to_write(moments, is_rank0, copies),
        _parts_of_averages(averages or {}, is_rank0, copies),
    )


def _parts_of_averages(
    averages: Mapping[str, Tensor],
    is_rank0: bool,
    copies: dict[str, Tensor] | None,
) -> dict[str, Part]:
    """parts_to_write(), with copies that are not those of the weights of the same names."""
    named = {f"ema.{name}": tensor for name, tensor in averages.items()}
    parts = parts_to_write(named, is_rank0, copies)
    return {name.removeprefix("ema."): part for name, part in parts.items()}


def _finite(values: Tensor) -> bool:
    """Whether all values are finite.

    A sum is quicker than a look at each value; only if it is not finite, as a sum of large ones may
    be, look.
    """
    return math.isfinite(values.sum().item()) or bool(torch.isfinite(values).all())


def save(
    world: World,
    checkpoints: Path,
    mine: Contents,
    config: TrainConfig,
    tokenizer: Tokenizer,
    about: dict[str, Any],
) -> Path:
    """Commit checkpoints/step-N, whole or not at all, and return it; all ranks together.

    Raises, on all of them, ConfigError where a value is not finite, StorageError; that before
    anything is written where the disk, as any of them sees it, has no room for it.
    about: facts for state.json beside the TrainState (data set id, world size, scaler …).
    """
    name = storage.step_name(mine.state.step)
    staging: Path | None = None
    sizes = world.gather_ints(mine.nbytes)
    try:
        with world.raise_on_all_ranks():
            mine.refuse_not_finite()
            storage.require_room(checkpoints / name, sum(sizes))
            if world.is_rank0:
                staging = storage.begin(checkpoints, name)
                run_folder.write_json(staging / "state.json", {**asdict(mine.state), **about})
                storage.write_atomic(staging / "config.toml", to_run_toml(config).encode())
                tokenizer.save(staging / "tokenizer.json")
        place = checkpoints / world.broadcast_text(staging.name if staging else "")
        writers = sum(size > 0 for size in sizes)  # always the first ranks
        hashes = _write_parts(world, place, mine, writers)
        with world.raise_on_all_ranks():
            if world.is_rank0:
                storage.seal(place, name, {"step": mine.state.step}, hashes)
    except BaseException:
        if staging is not None:
            storage.discard(staging)
        raise
    return checkpoints / name


def _write_parts(world: World, folder: Path, mine: Contents, writers: int) -> dict[str, str]:
    """Write this rank's parts; returns {file name: sha256} of all ranks' files.

    writers: how many ranks have a part.
    """
    suffix = "" if writers == 1 else f"-{world.rank + 1:05d}-of-{writers:05d}"
    hashes = ""
    kinds = {"model": mine.weights, "optimizer": mine.moments}
    if mine.averages:
        kinds["ema"] = mine.averages
    with world.raise_on_all_ranks():
        for kind, parts in kinds.items():
            if mine.weights:
                path = folder / f"{kind}{suffix}.safetensors"
                write(path, parts)
                hashes += f"{path.name} {storage.fsync_and_hash(path)}\n"
    return dict(line.split() for text in world.gather_texts(hashes) for line in text.splitlines())


def load_model(
    checkpoint: Path,
    device: torch.device,
    weights: Weights = "model",
) -> tuple[GPT, TrainConfig]:
    """The model of a verified checkpoint, in evaluation mode on `device`, and its settings.

    weights: which of them. Raises MissingInputError where it has no averaged ones, BadDataError.
    """
    files = weight_files(checkpoint, weights)
    config, n_vocab = load_config(checkpoint), load_checkpoint_tokenizer(checkpoint).n_vocab
    stored = index(files)
    if config.n_layer > len(stored):  # to lay them out would take minutes
        raise BadDataError(
            f"{checkpoint} is of another architecture: {config.n_layer} layers, and {len(stored)} "
            "tensors"
        )
    with torch.device("meta"):
        model = GPT(config.architecture(), n_vocab)
    _check_names(checkpoint, stored, _weights(model))  # before they take memory
    model = model.to_empty(device=device).tie()
    read_into(_weights(model), stored)
    return model.eval(), config


def load_config(checkpoint: Path) -> TrainConfig:
    """The settings in a checkpoint. Raises BadDataError."""
    path = checkpoint / "config.toml"
    try:
        return resolve(read_toml(path), name=shown(path))
    except ConfigError as error:
        raise BadDataError(str(error)) from None


def load_state(checkpoint: Path) -> tuple[TrainState, dict[str, Any]]:
    """The TrainState of a checkpoint and the other facts beside it. Raises BadDataError."""
    content = run_folder.read_json(checkpoint / "state.json")
    names = {field.name for field in fields(TrainState)}
    try:
        content["step"]
        state = _state({name: content[name] for name in names if name in content})
    except (KeyError, TypeError, ValueError):
        raise BadDataError(
            f"{checkpoint / 'state.json'} is not as this program writes it; use another checkpoint"
        ) from None
    return state, {name: value for name, value in content.items() if name not in names}


def _state(known: dict[str, Any]) -> TrainState:
    """The TrainState of what JSON holds of it. Raises TypeError, ValueError."""
    state = TrainState(**known)
    state.losses, state.grad_norms = tuple(state.losses), tuple(state.grad_norms)
    state.left_out = as_left_out(state.left_out)
    counts = [state.step, state.tokens, state.skipped]
    counts += [step for step in [state.best_step] if step is not None]
    losses = [loss for loss in (state.val_loss, state.best_val_loss) if loss is not None]
    if not all(map(_is_count, counts)) or not all(map(_is_loss, [*losses, *state.losses])):
        raise ValueError("a number is none")
    if not all(_is_loss(norm) and norm > 0 for norm in state.grad_norms):  # it has a logarithm
        raise ValueError("a norm is none")
    return state


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_loss(value: Any) -> bool:
    """Whether it is a finite number; what a run knows nothing of is null."""
    if type(value) is int:
        return abs(value) < 2**63  # it is made a float
    return type(value) is float and math.isfinite(value)


def as_left_out(stretches: Any) -> tuple[tuple[int, int], ...]:
    """Stretches of steps left out, from the lists that JSON has. Raises TypeError, ValueError."""
    found = tuple((first, last) for first, last in stretches)
    if not all(_is_count(step) and step > 0 for stretch in found for step in stretch):
        raise ValueError("a step is none")
    return found


def load_weights(checkpoint: Path, model: GPT) -> None:
    """Fill `model`, whole or sharded, from a checkpoint of any layout.

    Raises BadDataError where names or shapes are of another architecture.
    """
    _read_weights(checkpoint, model, weight_files(checkpoint, "model"))


def weight_files(checkpoint: Path, weights: Weights) -> list[Path]:
    """The files that hold its weights, or the averaged ones.

    Raises MissingInputError where it has no averaged ones.
    """
    files = sorted(checkpoint.glob(f"{weights}*.safetensors"))
    if weights == "ema" and not files:
        raise MissingInputError(
            f"{shown(checkpoint)} has no averaged weights: leave --weights ema out, or train with "
            "--ema-decay 0.999"
        )
    return files


def _read_weights(checkpoint: Path, model: GPT, files: list[Path]) -> None:
    stored, weights = index(files), _weights(model)
    _check_names(checkpoint, stored, weights)
    read_into(weights, stored)


def load_moments(checkpoint: Path, empty_state: Callable[[], Mapping[str, Tensor]]) -> None:
    """Fill the optimizer's state from a checkpoint of any layout.

    empty_state: makes that state, NAME.KEY → tensor; not called where the checkpoint has none.
    Raises BadDataError where names or shapes are of another architecture or optimizer.
    """
    _read_if_there(checkpoint, "optimizer", empty_state)  # there is none before the first step


def load_averages(checkpoint: Path, averages: Callable[[], Mapping[str, Tensor]]) -> None:
    """Fill averaged weights from a checkpoint of any layout.

    averages: makes them, NAME → tensor; not called where the checkpoint has none: the run began
    without ema_decay. Raises BadDataError where names or shapes are of another architecture.
    """
    _read_if_there(checkpoint, "ema", averages)


def _read_if_there(
    checkpoint: Path,
    kind: str,
    targets: Callable[[], Mapping[str, Tensor]],
) -> None:
    stored = index(sorted(checkpoint.glob(f"{kind}*.safetensors")))
    if stored:
        wanted = targets()
        _check_names(checkpoint, stored, wanted)
        read_into(wanted, stored)


def load_checkpoint_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer that travels inside a checkpoint."""
    return load_tokenizer(checkpoint / "tokenizer.json")


def _weights(model: GPT) -> dict[str, Tensor]:
    """Parameters by nanoGPT's names, the tied head left out."""
    left_out = TIED if model.config.tie_embeddings else None
    return {
        name: parameter.detach() for name, parameter in model.named_parameters() if name != left_out
    }


def _check_names(
    checkpoint: Path,
    stored: Mapping[str, Stored],
    expected: Mapping[str, Tensor],
) -> None:
    found = {name: known.shape for name, known in stored.items()}
    for name in sorted(expected.keys() | found.keys()):
        have = found.get(name, "absent")
        want = tuple(expected[name].shape) if name in expected else "absent"
        if have != want:
            raise BadDataError(
                f"{checkpoint} is of another architecture: {name} is {have}, the model wants {want}"
            )
