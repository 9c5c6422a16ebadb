"""nanoGPT's ckpt.pt, in and out.

Nothing in it is executed: torch reads tensors and plain values only.

The file is {model, optimizer, model_args, iter_num, best_val_loss, config}. Of AdamW's state the
parameters have numbers: first those of two dimensions and more in the order of the model, then the
others.
"""

import math
import os
import re
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_dist import storage
from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.config import ModelConfig, TrainConfig, resolve
from nanogpt_dist.errors import BadDataError, CannotCreateError, ConfigError, MissingInputError
from nanogpt_dist.interop.exportable import refuse_beyond_gpt2
from nanogpt_dist.interop.import_run import ImportedModel
from nanogpt_dist.interop.nanogpt_config import to_our_settings
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.storage.durable import shown, storage_errors
from nanogpt_dist.tokenizer import Tokenizer, gpt2
from nanogpt_dist.tokenizer.loading import from_nanogpt_meta
from nanogpt_dist.tokenizer.meta_pkl import to_plain_pickle

# of its GPTConfig
ARGUMENTS = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
_PREFIX = re.compile(r"(_orig_mod\.|module\.)*")  # torch.compile's and DDP's, in any order
FINGERPRINT = "tokenizer_fingerprint"  # a key of ours beside nanoGPT's own, which it leaves alone
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def read(
    path: Path, tokenizer: Tokenizer | None = None, with_optimizer: bool = True
) -> ImportedModel:
    """The model in a ckpt.pt.

    tokenizer: of its text; None: GPT-2's, or the meta.pkl of its data set where that is found.

    Raises MissingInputError, BadDataError.
    """
    content = _load(path)
    arguments, raw = content.get("model_args"), content.get("model")
    if (
        not isinstance(arguments, dict)
        or not isinstance(raw, dict)
        or not set(ARGUMENTS) - {"dropout"} <= set(arguments)
    ):
        raise BadDataError(f"{shown(path)} has no model and model_args: it is none of nanoGPT's")
    recipe = content["config"] if isinstance(content.get("config"), dict) else {}
    settings = {
        **to_our_settings(recipe),
        **{name: arguments[name] for name in ARGUMENTS if name in arguments},
    }
    settings.pop("out_dir", None)
    settings.pop("init_from", None)
    try:
        config = resolve(settings)
    except ConfigError as error:
        raise BadDataError(f"{shown(path)}: {error}") from None
    weights = _weights(raw, path)
    if config.n_layer > len(weights):  # to lay them out would take minutes
        raise BadDataError(
            f"{shown(path)}: {config.n_layer} layers, and {len(weights)} tensors; it is damaged"
        )
    step, loss = _whole(content.get("iter_num", 0), path), _loss(content.get("best_val_loss"))
    state = TrainState(step=step, tokens=config.ramp.tokens_before(step), val_loss=loss)
    moments = (
        _moments(content.get("optimizer"), config.architecture(), path) if with_optimizer else {}
    )
    known = content[FINGERPRINT] if isinstance(content.get(FINGERPRINT), str) else None
    if tokenizer and known and tokenizer.fingerprint != known:
        raise BadDataError(
            f"{shown(path)} was trained with another tokenizer than that {tokenizer.name}; give "
            "its own"
        )
    found = tokenizer or _tokenizer(path, config, recipe, known)
    return ImportedModel(config, weights, found, f"nanoGPT: {path.name}", moments, state)


def _whole(step: Any, path: Path) -> int:
    if type(step) is not int or not 0 <= step < 2**40:
        raise BadDataError(f"{shown(path)}: iter_num is {str(step)[:30]}, no number of steps")
    return step


def _loss(best: Any) -> float | None:
    """A number or a tensor of one; 1e9 is what nanoGPT begins with."""
    value = best.item() if isinstance(best, Tensor) and best.numel() == 1 else best
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingInputError(f"{shown(path)} does not exist or is not a file; check the path")
    try:
        if _is_compressed(path):
            raise BadDataError(f"{shown(path)} is compressed, as torch writes none; unpack it")
        with warnings.catch_warnings(action="ignore"):  # about pickles of other versions
            content = torch.load(path, map_location="cpu", weights_only=True)
    except BadDataError:
        raise
    except Exception as error:  # of any kind: the file may be anything
        if "Weights only load failed" in str(error):
            raise BadDataError(
                f"{shown(path)} holds more than tensors and plain values; nothing was executed"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:60]
        raise BadDataError(f"{shown(path)} is no checkpoint of torch's: {reason}") from None
    if not isinstance(content, dict):
        raise BadDataError(f"{shown(path)} is none of nanoGPT's checkpoints")
    return content


def _is_compressed(path: Path) -> bool:
    """Whether a zip file would grow as it is read: a kilobyte may stand for a megabyte."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist())


def _weights(raw: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """The weights by our names, fp32.

    Without the causal masks of old versions, and without the head, which is the token embedding.
    """
    found: dict[str, Tensor] = {}
    _refuse_shared(raw.values(), path)
    for key, tensor in raw.items():
        name = _PREFIX.sub("", str(key))
        if not isinstance(tensor, Tensor):
            raise BadDataError(f"{shown(path)}: {name[:60]} is no tensor")
        if not name.endswith(".attn.bias"):
            found[name] = _plain(tensor, name, path)
    head, table = found.pop("lm_head.weight", None), found.get("transformer.wte.weight")
    if head is not None and (table is None or not torch.equal(head, table)):
        raise BadDataError(
            f"{shown(path)}: the head is not the token table, so it is none of nanoGPT's"
        )
    return found


def _refuse_shared(values: Iterable[Any], path: Path) -> None:
    """Raise BadDataError where tensors have the same bytes of the file.

    They would take memory without end, each for itself. The head and the token embedding are one.
    """
    views: dict[tuple[int, int], set[tuple[int, int, torch.Size]]] = defaultdict(set)
    for tensor in values:
        if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
            memory = tensor.untyped_storage()
            view = tensor.element_size(), int(tensor.storage_offset()), tensor.shape
            views[memory.data_ptr(), memory.nbytes()].add(view)
    for (_, room), found in views.items():
        if len(found) > 1 and sum(size * math.prod(shape) for size, _, shape in found) > room:
            raise BadDataError(f"{shown(path)}: its tensors share bytes; nanoGPT's do not")


def _plain(tensor: Tensor, name: str, path: Path) -> Tensor:
    """A tensor of the file in fp32, of its own memory.

    Raises BadDataError for one that is not dense numbers, or that repeats a few of the file's
    bytes: it would take any amount of memory.
    """
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    plain = dense and not (tensor.is_quantized or tensor.is_complex())
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BadDataError(f"{shown(path)}: {name[:60]} is no dense tensor; nanoGPT has no other")
    return tensor.float().contiguous()


def ordered_names(config: ModelConfig) -> list[str]:
    """The parameters' names in the order in which nanoGPT's optimizer numbers them."""
    with torch.device("meta"):
        parameters = dict(GPT(config).named_parameters())
    return [name for name, p in parameters.items() if p.ndim >= 2] + [
        name for name, p in parameters.items() if p.ndim < 2
    ]


def _moments(optimizer: Any, config: ModelConfig, path: Path) -> dict[str, Tensor]:
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    if state is None or (isinstance(state, dict) and not state):  # saved before the first step
        return {}
    names = ordered_names(config)
    if not isinstance(state, dict) or set(state) != set(range(len(names))):
        raise BadDataError(
            f"{shown(path)}: its optimizer has other parameters than its model; add --no-optimizer"
        )
    kept = (value for of in state.values() if isinstance(of, dict) for value in of.values())
    _refuse_shared(kept, path)
    found = {}
    for number, name in enumerate(names):
        for kind in MOMENTS:
            value = state[number].get(kind) if isinstance(state[number], dict) else None
            if not isinstance(value, Tensor | int | float):
                raise BadDataError(f"{shown(path)}: its optimizer is not AdamW; add --no-optimizer")
            found[f"{name}.{kind}"] = _plain(torch.as_tensor(value), f"{name}.{kind}", path)
    return found


def _tokenizer(
    path: Path,
    config: TrainConfig,
    recipe: dict[str, Any],
    known: str | None,
) -> Tokenizer:
    """The characters in the meta.pkl of the data set, or else GPT-2's where the sizes are its own.

    A meta.pkl lies beside other checkpoints, too: it counts where it has the fingerprint `known`,
    or without that as many ids as the model has rows, as train.py makes them.
    """
    name, rows = str(recipe.get("dataset", "")), config.vocab_size
    folders = [
        path.parent,
        *(parent / "data" / name for parent in list(path.resolve().parents)[:3] if name),
    ]
    metas = [folder / "meta.pkl" for folder in folders if (folder / "meta.pkl").is_file()]
    for meta in metas:
        found = from_nanogpt_meta(meta)
        if found.fingerprint == known or (known is None and found.n_vocab == rows):
            return found
    if rows in (50257, 50304) and known in (None, gpt2().fingerprint):
        return gpt2()
    if metas:
        raise BadDataError(
            f"{shown(metas[0])} is not of {path.name}, with {rows} ids: type --tokenizer "
            "PATH/meta.pkl"
        )
    wanted = "a tokenizer.json or meta.pkl of its own" if known else "PATH/meta.pkl"
    raise MissingInputError(
        f"{path.name} has {rows} ids and no meta.pkl: type --tokenizer {wanted}"
    )


# ---- out


def write(
    out: Path,
    config: TrainConfig,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    state: TrainState,
    tokenizer: Tokenizer,
) -> None:
    """Write a ckpt.pt that nanoGPT's sample.py and train.py load.

    Of a `char` tokenizer also meta.pkl beside it.

    Raises ConfigError for an architecture that nanoGPT has not, CannotCreateError, StorageError.
    """
    refuse_beyond_gpt2(config, "nanoGPT")
    if out.exists():
        raise CannotCreateError(f"{out} exists already; give another file")
    meta = _meta_beside(out, tokenizer)
    names = ordered_names(config.architecture())
    matrices = sum(1 for name in names if weights[name].ndim >= 2)
    groups = [
        (list(range(matrices)), config.weight_decay),
        (list(range(matrices, len(names))), 0.0),
    ]
    optimizer = torch.optim.AdamW(
        [torch.zeros(1)], lr=config.learning_rate, betas=(config.beta1, config.beta2)
    )
    common = optimizer.state_dict()["param_groups"][0]
    dataset = Path(config.dataset).name
    content = {
        "model": {**weights, "lm_head.weight": weights["transformer.wte.weight"]},
        "optimizer": {
            "state": {i: {k: moments[f"{n}.{k}"] for k in MOMENTS} for i, n in enumerate(names)}
            if moments
            else {},
            "param_groups": [
                {**common, "params": numbers, "weight_decay": decay} for numbers, decay in groups
            ],
        },
        "model_args": {name: getattr(config, name) for name in ARGUMENTS},
        "iter_num": state.step,
        "best_val_loss": 1e9 if state.best_val_loss is None else state.best_val_loss,
        "config": {
            **config.model_dump(include=set(TrainConfig.model_fields), exclude_none=True),
            "dataset": dataset,
        },
        FINGERPRINT: tokenizer.fingerprint,
    }
    real = Path(os.path.realpath(out))  # a link to what is not there yet stays a link
    staging = real.with_name(f".tmp-{real.name}")
    try:
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with staging.open("wb") as file:  # by a path torch refuses some names
                torch.save(content, file)
            storage.fsync_and_hash(staging)
            if meta is not None:
                storage.write_atomic(out.with_name("meta.pkl"), meta)
            os.replace(staging, real)
            storage.fsync_folder(real.parent)
    finally:
        staging.unlink(missing_ok=True)


def _meta_beside(out: Path, tokenizer: Tokenizer) -> bytes | None:
    """The meta.pkl that belongs to `out`: the characters of a `char` tokenizer; None for any other.

    Raises CannotCreateError where the folder has one of other characters: that belongs to another
    ckpt.pt.
    """
    if tokenizer.kind != "char":
        return None
    names = {number: token.decode() for number, token in enumerate(tokenizer.tokens)}
    numbers = {name: number for number, name in names.items()}
    beside = out.with_name("meta.pkl")
    if beside.exists() and _fingerprint(beside) != tokenizer.fingerprint:
        raise CannotCreateError(
            f"{shown(beside)} is of another model; give a file in another folder"
        )
    return to_plain_pickle({"vocab_size": len(names), "itos": names, "stoi": numbers})


def _fingerprint(meta: Path) -> str | None:
    try:
        return from_nanogpt_meta(meta).fingerprint
    except (BadDataError, MissingInputError):
        return None
