"""GPT2LMHeadModel's weights, in and out; and our own where they begin a new run.

Names are ours. Their Conv1D keeps (in, out) where nn.Linear keeps (out, in). OpenAI's own files
leave `transformer.` out, and have the causal mask beside the weights.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nanogpt_dist import storage
from nanogpt_dist.checkpoint.tensors import fill, index, read_into, whole_parts, write
from nanogpt_dist.config import ModelConfig, TrainConfig
from nanogpt_dist.errors import BadDataError, CannotCreateError
from nanogpt_dist.interop import hf_tokenizer
from nanogpt_dist.interop.exportable import refuse_beyond_gpt2
from nanogpt_dist.interop.init_from import (
    CONFIG,
    GELU,
    HEAD,
    OURS,
    TABLE,
    WEIGHTS,
    Pretrained,
    has_other_head,
    weight_files,
)
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.tokenizer import Tokenizer

CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
KNOWN = re.compile(
    r"(wte|wpe|ln_f|lm_head|h\.\d+\.(ln_1|ln_2|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj))\.\w+"
)
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # buffers of old files


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of a file, by our name for it: its shape, and how to read it whole."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def first(self, rows: int) -> "LazyTensor":
        """Its first rows; all where it has fewer."""
        return LazyTensor((min(rows, self.shape[0]), *self.shape[1:]), lambda: self.read()[:rows])


@dataclass(frozen=True)
class Weights:
    """What files hold: `find` raises BadDataError for a name that is not there. count: of all."""

    count: int
    find: Callable[[str], LazyTensor]


def load_weights(source: Pretrained, model: GPT) -> GPT:
    """Fill `model`, whole or sharded, with the weights of `source`.

    Of their positions the first block_size count.

    One tensor at a time is in memory. Raises BadDataError where they are of another architecture.
    """
    with _opened(source, model.config.tie_embeddings) as weights:
        return _filled(source, weights, model)


def load_model(source: Pretrained, config: ModelConfig, device: torch.device) -> GPT:
    """The model of `source` in evaluation mode.

    config: its architecture, with a block_size as long or shorter.
    """
    with _opened(source, config.tie_embeddings) as weights:
        if config.n_layer > weights.count:  # to lay them out would take minutes
            raise BadDataError(
                f"{source.name} is of another architecture: {config.n_layer} layers, and "
                f"{weights.count} tensors"
            )
        with torch.device("meta"):
            model = GPT(config)
        list(_fitting(source, weights, model))  # before they take memory
        return _filled(source, weights, model.to_empty(device=device).tie()).eval()


@torch.no_grad()
def _filled(source: Pretrained, weights: Weights, model: GPT) -> GPT:
    for target, stored in _fitting(source, weights, model):
        fill(target, stored.read())
    return model


def _fitting(
    source: Pretrained, weights: Weights, model: GPT
) -> Iterator[tuple[nn.Parameter, LazyTensor]]:
    """Each parameter with what is stored of it. Raises BadDataError for one of another shape."""
    for name, target in model.named_parameters():
        stored = weights.find(name)
        if name == "transformer.wpe.weight" and stored.shape:
            stored = stored.first(target.size(0))
        if stored.shape != target.shape:
            wanted = f"the model wants {list(target.shape)}"
            raise BadDataError(f"{source.name}: {name} is {list(stored.shape)}, {wanted}")
        yield target, stored


@contextmanager
def _opened(source: Pretrained, tied: bool) -> Iterator[Weights]:
    # fetched just now, after the model was laid out
    if tied and not source.ours and has_other_head(source.folder):
        raise BadDataError(
            f"{source.name}: {HEAD} is not the token table, as {CONFIG} says; type the same again"
        )
    if source.ours:
        known = index(sorted(source.folder.glob("model*.safetensors")))

        def ours(name: str) -> LazyTensor:
            if name not in known:
                raise BadDataError(f"{source.name} has no {name}: it is of another architecture")

            def read() -> Tensor:
                whole = torch.empty(known[name].shape)
                read_into({name: whole}, known)
                return whole

            return LazyTensor(known[name].shape, read)

        yield Weights(len(known), ours)
        return
    with ExitStack() as stack:
        try:
            files = [
                stack.enter_context(safe_open(path, framework="pt"))
                for path in weight_files(source.folder)
            ]
            places = {
                name.removeprefix("transformer."): (file, name)
                for file in files
                for name in file.keys()  # noqa: SIM118 (safe_open is not iterable itself)
            }
        except (SafetensorError, OSError) as error:
            raise BadDataError(f"the weights of {source.name} cannot be read: {error}") from None
        _refuse_unknown(source, places)

        def theirs(name: str) -> LazyTensor:
            short = name.removeprefix("transformer.")
            # a file may hold either name of the two
            if short == TABLE and TABLE not in places and tied:
                short = HEAD
            if short not in places:
                raise BadDataError(
                    f"{source.name} has no {short}: it is no GPT-2, or of another architecture"
                )
            file, stored_as = places[short]
            shape = tuple(file.get_slice(stored_as).get_shape())

            def read() -> Tensor:
                try:
                    tensor = file.get_tensor(stored_as).float()
                except SafetensorError as error:
                    raise BadDataError(
                        f"the weights of {source.name} cannot be read: {error}"
                    ) from None
                return tensor.t() if name.endswith(CONV1D) else tensor

            return LazyTensor(shape[::-1] if name.endswith(CONV1D) else shape, read)

        yield Weights(len(places), theirs)


def _refuse_unknown(source: Pretrained, names: Iterable[str]) -> None:
    strange = [name for name in names if not KNOWN.fullmatch(name) and not MASKS.fullmatch(name)]
    if strange:
        raise BadDataError(
            f"{source.name} has {strange[0][:60]}, which no GPT-2 has; choose a GPT-2"
        )


# ---- out


def export(
    out: Path,
    config: TrainConfig,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer,
    card: str,
    step: int = 0,
) -> None:
    """Write a folder that GPT2LMHeadModel, AutoTokenizer and `nanogpt import hf` read.

    Whole, or not at all.

    weights: by our names, fp32. A model without biases gets zeros. Rows of the token table without
    an id in the tokenizer are left out. Raises ConfigError for an architecture that is not GPT-2's,
    CannotCreateError, StorageError.
    """
    refuse_beyond_gpt2(config, "GPT2LMHeadModel", has=["tied_head"])
    if out.exists():
        raise CannotCreateError(f"{out} exists already; give another folder")

    def fill_folder(staging: Path) -> None:
        parts = whole_parts(hf_state_dict(weights, config, tokenizer.n_vocab))
        write(staging / WEIGHTS, parts, {"format": "pt"})
        _write_json(staging / CONFIG, config_json(config, tokenizer))
        stops = [tokenizer.specials[name] for name in tokenizer.stops]
        ends = [tokenizer.eot_id, *stops] if stops else tokenizer.eot_id
        eot = {"bos_token_id": tokenizer.eot_id, "eos_token_id": ends}
        _write_json(staging / "generation_config.json", {**eot, "_from_model_config": False})
        hf_tokenizer.write(staging, tokenizer, config.block_size)
        tokenizer.save(staging / OURS)
        storage.write_atomic(staging / "README.md", card.encode())

    storage.commit(out.parent, out.name, fill_folder, {"step": step})


def hf_state_dict(
    weights: dict[str, Tensor], config: ModelConfig, n_vocab: int
) -> dict[str, Tensor]:
    """GPT2LMHeadModel's tensors by its names, from ours."""
    found = {}
    for name, tensor in weights.items():
        if name in ("transformer.wte.weight", "lm_head.weight"):
            tensor = tensor[:n_vocab]
        found[name] = (tensor.t() if name.endswith(CONV1D) else tensor).contiguous()
        if (
            not config.bias
            and name.endswith(".weight")
            and not re.search(r"\b(wte|wpe|lm_head)\b", name)
        ):
            found[name.removesuffix("weight") + "bias"] = torch.zeros(tensor.size(0))
    return found


def config_json(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """config.json of GPT2LMHeadModel."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": None,
        "n_positions": config.block_size,
        "vocab_size": tokenizer.n_vocab,  # at most the rows of the table
        "activation_function": next(name for name, form in GELU.items() if form == config.gelu),
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "bos_token_id": tokenizer.eot_id,
        "eos_token_id": tokenizer.eot_id,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": "float32",
        "nanogpt_bias": config.bias,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    storage.write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
