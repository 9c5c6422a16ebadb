"""Checkpoints made to harm: pickles under every name, false headers, deep JSON. Nothing runs, each
is refused.
"""

import json
import pickle
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli import checkpoint as commands
from nanogpt_dist import checkpoint, storage
from nanogpt_dist.checkpoint.tensors import index
from nanogpt_dist.errors import BadDataError, NanogptError
from nanogpt_dist.storage import run_checkpoints
from tests.nanogpt_dist.small import go, tiny

FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "config.toml",
    "tokenizer.json",
    "manifest.json",
]
FOREIGN = [
    ".metadata",
    "pytorch_model.bin",
    "__0_0.distcp",
    "data.pkl",
    "model-00002-of-00002.safetensors",
]


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bombs")
    go(tiny(corpus, folder / "run", max_iters=2, eval_interval=2))
    return folder / "run"


def plant(trained: Path, run: Path, name: str, data: bytes, resealed: bool) -> Path:
    """A copy of the run whose only checkpoint has `data` under `name`, its manifest made anew if
    `resealed`.
    """
    shutil.copytree(trained, run)
    (folder,) = storage.list_steps(run / "checkpoints")
    (folder / name).write_bytes(data)
    if resealed and name != "manifest.json":
        staging = folder.rename(folder.with_name(".tmp-x"))
        (staging / "manifest.json").unlink()
        storage.seal(staging, folder.name, {"step": 2})
    return folder


def uses(run: Path, corpus: Path, folder: Path) -> list[Callable[[], object]]:
    """What reads a checkpoint; the run, which sets a bad one aside, comes last."""

    def sample() -> None:
        found = run_checkpoints.find_checkpoint(str(run))
        checkpoint.load_model(found, torch.device("cpu"))
        checkpoint.load_checkpoint_tokenizer(found)
        checkpoint.load_state(found)

    def consolidate() -> None:
        commands.consolidate(run)

    def resume() -> None:
        go(tiny(corpus, run, max_iters=4, eval_interval=2))

    return [
        sample,
        lambda: commands.verify(run),
        lambda: commands.verify(folder),
        consolidate,
        resume,
    ]


@pytest.mark.parametrize("resealed", [False, True])
@pytest.mark.parametrize("name", FILES + FOREIGN)
def test_a_pickle_under_any_name_runs_nothing_and_is_refused(
    name: str,
    resealed: bool,
    trained: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    made = tmp_path / "it ran"
    bomb = pickle.dumps(Bomb(made))
    try:
        folder = plant(trained, tmp_path / "run", name, bomb, resealed)
    except AssertionError:  # names that no manifest of ours can hold
        assert name.startswith(".")
        return
    commands.list_checkpoints(tmp_path / "run", as_json=True)
    codes = []
    for use in uses(tmp_path / "run", corpus, folder):
        try:
            use()
        except NanogptError as error:
            codes.append(int(error.code))
        assert not made.exists()
    # With a manifest that vouches for it a foreign file is but a file: no tensor is looked for
    # there.
    harmless = resealed and name in FOREIGN and not name.startswith("model")
    assert set(codes) <= {2, 65}, codes  # 2: nothing to consolidate
    assert (65 in codes) != harmless
    if not resealed:
        assert codes.count(65) == 5
    assert pickle.loads(bomb) is not None
    assert made.exists(), "the bomb would have worked"


@pytest.mark.parametrize(
    "note",
    [
        {"shape": [10**15, 32], "offsets": [0, 0]},
        {"shape": [4, 4], "offsets": [2, 0]},
        {"shape": [2, 4], "offsets": [-1, 0]},
        {"shape": [2], "offsets": [0]},
        {"shape": "x", "offsets": None},
        [],
        7,
    ],
)
def test_false_notes_of_parts_are_refused(note: object, tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}
    text = json.dumps({"__metadata__": {"parts": json.dumps({"w": note})}, **header}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    with pytest.raises(BadDataError):
        index([path])


def test_a_header_that_claims_ten_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 10 * 2**30) + b"{}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadDataError):
        index([path])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000  # KiB


MANY = ",".join(f'"{n}":1' for n in range(10**5))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"step": 1e999', "{" + MANY, "{" + MANY + "}", "{}", '{"tokens": 1}']
)
def test_json_made_to_harm_is_refused(text: str, trained: Path, tmp_path: Path) -> None:
    folder = plant(trained, tmp_path / "run", "state.json", text.encode(), resealed=True)
    with pytest.raises(BadDataError):
        checkpoint.load_state(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("of_later = 1", "unknown setting of_later"),
        ("{", "is not TOML"),
        ("n_layer = 0", "n_layer"),
    ],
)
def test_settings_that_cannot_be_taken_name_their_file_once(
    text: str, words: str, trained: Path, tmp_path: Path
) -> None:
    folder = plant(trained, tmp_path / "run", "config.toml", text.encode(), resealed=True)
    with pytest.raises(BadDataError, match=words) as caught:
        checkpoint.load_config(folder)
    assert str(caught.value).count("config.toml") == 1


def test_settings_made_to_harm_do_not_end_a_save(trained: Path, tmp_path: Path) -> None:
    text = f"keep_every = {'[' * 100_000}".encode()
    folder = plant(trained, tmp_path / "run", "config.toml", text, resealed=True)
    assert run_checkpoints.kept_by_keep_every(folder.parent) == set()


@pytest.mark.parametrize(
    ("name", "value"), [("n_layer", 2**16), ("n_embd", 2**20), ("block_size", 2**24)]
)
def test_sizes_that_the_weights_have_not_take_no_memory(
    name: str, value: int, trained: Path, tmp_path: Path
) -> None:
    (step,) = storage.list_steps(trained / "checkpoints")
    lines = (step / "config.toml").read_text().splitlines()
    changed = [f"{name} = {value}" if line.startswith(f"{name} =") else line for line in lines]
    data = "\n".join(changed).encode()
    folder = plant(trained, tmp_path / "run", "config.toml", data, resealed=True)
    assert not storage.verify(folder)
    with pytest.raises(BadDataError, match="of another architecture"):
        checkpoint.load_model(folder, torch.device("cpu"))
