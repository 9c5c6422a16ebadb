"""What --init-from names: OpenAI's GPT-2, a repository of the hub, a folder, or a run.

Nothing is asked from a network that is in the hub's cache (HF_HOME). No torch.
"""

import json
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nanogpt_dist import hub, hub_retries, storage
from nanogpt_dist.config import ModelConfig, read_toml, settings_where
from nanogpt_dist.errors import (
    BadDataError,
    ConfigError,
    HubUnavailableError,
    MissingInputError,
    clipped,
)
from nanogpt_dist.storage import run_checkpoints, run_folder
from nanogpt_dist.storage.durable import shown

OPENAI = {
    name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}

# Losses of OpenAI's weights on OpenWebText, train and val, in nats/token, as nanoGPT's README
# states them; it has the exact form of GELU, where the weights were trained with tanh.
PUBLISHED = {
    "gpt2": (3.11, 3.12),
    "gpt2-medium": (2.85, 2.84),
    "gpt2-large": (2.66, 2.67),
    "gpt2-xl": (2.56, 2.54),
}

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
HUB_BUDGET_S = 60.0  # with a hub that does not answer; somebody sits and waits
HEAD, TABLE = "lm_head.weight", "wte.weight"
OURS = "nanogpt_tokenizer.json"  # beside Hugging Face's own tokenizer files in what we export
VOCABULARY = (OURS, "tokenizer.json", "vocab.json", "merges.txt")

SHAPES = {"n_layer": 12, "n_head": 12, "n_embd": 768}  # and what GPT2Config has by default
OTHER_NAMES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
}
GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "exact"}
# What GPT2Config can say that the architecture here does not do, and the value with which it does
# not matter.
FIXED = {
    "model_type": "gpt2",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}


@dataclass(frozen=True)
class Pretrained:
    """Weights to begin with.

    name: as given; folder: where they are; ours: a checkpoint, else Hugging Face's files.
    """

    name: str
    folder: Path
    ours: bool

    @property
    def origin(self) -> str:
        """Where the weights come from, as it is kept: `Hugging Face: OWNER/NAME`, or a folder.

        Of a checkpoint of ours that itself began with other weights, whose those were.
        """
        if self.ours:
            facts = run_folder.read_json(self.folder / "state.json")
            first = facts.get("began_from") or facts.get("imported_from")
            return str(first or f"a run: {self.name}")
        if Path(self.name).is_dir():  # never to be taken for a repository
            return (
                "Hugging Face: "
                f"{self.name if self.name.startswith(('/', '.')) else f'./{self.name}'}"
            )
        return f"Hugging Face: {OPENAI.get(self.name, self.name)}"


def find_pretrained(name: str, weights: bool = True) -> Pretrained:
    """The weights that `name` means, on this machine.

    weights=False: their configuration at least.

    Raises MissingInputError, BadDataError, HubUnavailableError, UsageError.
    """
    folder = Path(name)
    if folder.is_dir():
        if (folder / CONFIG).is_file():
            _refuse_incomplete(folder, name)
            return Pretrained(name, folder, ours=False)
        if (
            run_folder.checkpoints_of(folder).is_dir()
            or storage.step_of(folder.resolve().name) is not None
        ):
            return Pretrained(name, run_checkpoints.find_checkpoint(name), ours=True)
        raise MissingInputError(
            f"{shown(folder)} holds neither a run nor {CONFIG} and {WEIGHTS} of Hugging Face's"
        )
    if name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise MissingInputError(
            f"--init-from {name}: no such folder; give gpt2, OWNER/NAME on the hub, or a folder"
        )
    return Pretrained(name, _from_hub(name, weights), ours=False)


def architecture(name: str) -> dict[str, Any]:
    """The settings of ModelConfig that the weights of `name` fix; dropout is free.

    Raises as find_pretrained().
    """
    if name in OPENAI and not Path(name).is_dir():
        from nanogpt_dist.presets import OPENAI_SIZES

        return dict(OPENAI_SIZES[name])
    source = find_pretrained(name, weights=False)
    if source.ours:
        known = read_toml(source.folder / "config.toml")
        return {
            field: known[field]
            for field in settings_where(ModelConfig, on_resume="refuse")
            if field in known
        }
    found = read_gpt2_config(source.folder / CONFIG)
    if found["tied_head"] and has_other_head(source.folder):
        if os.environ.get("RANK", "0") == "0":
            _note(
                f"{name}: {CONFIG} ties the head to the token table, but {HEAD} is another one: it "
                "is used, untied"
            )
        return {**found, "tied_head": False}
    return found


def has_other_head(folder: Path) -> bool:
    """Whether the weights have a head other than the token embedding.

    Then transformers does not tie them either.

    False where the weights are not there yet or cannot be read, which who loads them will tell.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with ExitStack() as stack:
            files = [
                stack.enter_context(safe_open(path, framework="pt"))
                for path in weight_files(folder)
            ]
            places = {
                name.removeprefix("transformer."): (file, name)
                for file in files
                for name in file.keys()  # noqa: SIM118 (safe_open is not iterable itself)
            }
            if not {HEAD, TABLE} <= places.keys():
                return False
            head, table = (file.get_tensor(name) for file, name in (places[HEAD], places[TABLE]))
            return not (head.shape == table.shape and bool((head == table).all()))
    except (SafetensorError, OSError):
        return False


def read_gpt2_config(path: Path) -> dict[str, Any]:
    """The architecture in a config.json of GPT2LMHeadModel.

    Raises BadDataError for any other.
    """
    content = run_folder.read_json(path)
    for key, wanted in FIXED.items():
        if content.get(key, wanted) != wanted:
            raise BadDataError(
                f"{shown(path)}: {key} is {str(content[key])[:40]!r}; only {wanted!r} can be run "
                "here"
            )
    found: dict[str, Any] = {
        name: content.get(name, content.get(OTHER_NAMES[name], default))
        for name, default in SHAPES.items()
    }
    found["block_size"] = content.get(
        "n_positions", content.get("max_position_embeddings", content.get("n_ctx", 1024))
    )
    found["vocab_size"] = content.get("vocab_size", 50257)
    if not all(type(value) is int and value > 0 for value in found.values()):
        raise BadDataError(
            f"{shown(path)} names no sizes: {json.dumps(found)[:100]}; is it GPT-2's?"
        )
    if content.get("n_inner") not in (None, 4 * found["n_embd"]):
        raise BadDataError(
            f"{shown(path)}: n_inner is {content['n_inner']}, not {4 * found['n_embd']} = 4 × "
            "n_embd"
        )
    activation = content.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in GELU:
        raise BadDataError(
            f"{shown(path)}: activation_function {str(activation)[:30]} is none of "
            f"{', '.join(GELU)}"
        )
    # what we export says so where its biases are zeros that nobody trains
    bias = content.get("nanogpt_bias", True)
    tied = content.get("tie_word_embeddings", True)
    return {**found, "gelu": GELU[activation], "bias": bool(bias), "tied_head": bool(tied)}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder: one, or those in the index.

    As transformers chooses.

    Raises BadDataError.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    where = run_folder.read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise BadDataError(
            f"{shown(folder / INDEX)} names no files for its weights; fetch it again"
        )
    return [folder / Path(name).name for name in sorted(set(where.values()))]


def _refuse_incomplete(folder: Path, name: str) -> None:
    missing = [path.name for path in weight_files(folder) if not path.is_file()]
    if missing:
        raise MissingInputError(
            f"{name} has no {missing[0]}; weights are read from safetensors files only"
        )


# ---- the hub


def _from_hub(name: str, weights: bool) -> Path:
    """The folder of a repository in the hub's cache, fetched if it is not all there."""
    repo = OPENAI.get(name, name)
    # OpenAI's models once stood at the hub's root, and in many a cache do
    for known in dict.fromkeys((repo, name)):
        cached = _cached(known, weights)
        if cached is not None:
            return cached
    try:
        with hub_retries.retrying(hub_retries.RetryPolicy(note=_note, budget_s=HUB_BUDGET_S)):
            return _fetched(repo, weights)
    except HubUnavailableError as error:
        why = (
            "HF_HUB_OFFLINE is set"
            if "HF_HUB_OFFLINE" in str(error)
            else clipped(str(error).split(";")[0], 70)
        )
        raise HubUnavailableError(
            f"{name[:40]} is neither in the hub's cache (HF_HOME) nor a folder here: {why}; "
            "fill the cache where there is a network, or name a folder"
        ) from error


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _cached(repo: str, weights: bool) -> Path | None:
    library = hub.hub_library()
    with hub.hub_errors(repo, kind="model"):
        config = library.try_to_load_from_cache(repo, CONFIG)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if not weights or all(path.is_file() for path in weight_files(folder)) else None


def _fetched(repo: str, weights: bool) -> Path:
    """Fetch and compare every byte with its hash.

    Raises HubUnavailableError, MissingInputError.
    """
    library = hub.hub_library()
    with hub.hub_errors(repo, kind="model"):
        info = library.HfApi().model_info(repo, files_metadata=True)
        at = {file.rfilename: file for file in info.siblings or []}
        _refuse_unreadable(repo, at)

        def get(name: str) -> Path:
            file = at[name]
            good = (
                partial(_has_sha256, sha256=file.lfs["sha256"])
                if file.lfs
                else partial(hub.is_blob, git_hash=file.blob_id)
            )
            return hub.download(hub.RepoFile(repo, info.sha, name, "model"), good)

        folder = get(CONFIG).parent
        if weights:
            for name in (WEIGHTS if WEIGHTS in at else INDEX, *VOCABULARY):
                if name in at:
                    get(name)
            for path in weight_files(folder):
                if path.name not in at:
                    raise MissingInputError(
                        f"{repo} has no {path.name}, which its index names; choose another "
                        "repository"
                    )
                get(path.name)
        _remember(repo, info.sha, folder)
    return folder


def _remember(repo: str, commit: str, folder: Path) -> None:
    """Note which commit the branch `main` is, so that the cache is found by name.

    The hub's own client does the same.
    """
    reference = folder.parents[1] / "refs" / "main"
    reference.parent.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(reference, commit.encode())


def _refuse_unreadable(repo: str, names: Iterable[str]) -> None:
    names = set(names)
    if CONFIG not in names:
        raise ConfigError(f"{repo[:60]} has no {CONFIG}: is it a model? Give another OWNER/NAME")
    if not names & {WEIGHTS, INDEX}:
        raise ConfigError(
            f"{repo[:60]} has no safetensors file; pickled weights are not read. Give another "
            "OWNER/NAME"
        )


def _has_sha256(path: Path, sha256: str) -> bool:
    return storage.sha256_file(path) == sha256
