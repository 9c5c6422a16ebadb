"""A sharded checkpoint as whole tensors: the same values and settings, in a sealed folder."""

from pathlib import Path

import pytest
import torch

from nanogpt_dist import storage
from nanogpt_dist.checkpoint.consolidate import consolidate, is_sharded
from nanogpt_dist.checkpoint.tensors import Part, read_whole, whole_parts, write
from nanogpt_dist.errors import CannotCreateError, UsageError

WEIGHTS = torch.arange(12.0).view(4, 3)
SETTINGS = ("state.json", "config.toml", "tokenizer.json")


def sharded(folder: Path, shards: int, kinds: tuple[str, ...]) -> Path:
    """The checkpoint of step 3, with WEIGHTS times the number of the kind in each kind of file."""

    def fill(staging: Path) -> None:
        for number, kind in enumerate(kinds, start=1):
            for shard, rows in enumerate((number * WEIGHTS).chunk(shards)):
                part = Part(rows, (shard * len(rows), 0), (4, 3))
                write(staging / f"{kind}-0000{shard + 1}-of-0000{shards}.safetensors", {"a": part})
        for name in SETTINGS:
            (staging / name).write_text(name)

    return storage.commit(folder, storage.step_name(3), fill, {"step": 3})


@pytest.mark.parametrize("kinds", [("model", "optimizer", "ema"), ("model",)])
def test_each_kind_becomes_one_file_beside_the_settings(
    kinds: tuple[str, ...], tmp_path: Path
) -> None:
    source = sharded(tmp_path / "run", 2, kinds)
    out = consolidate(source, tmp_path / "out" / source.name)
    assert out == tmp_path / "out" / source.name
    assert storage.verify(out) == []
    assert storage.read_manifest(out)["step"] == 3
    files = {path.name for path in out.iterdir()}
    assert files == {"manifest.json", *SETTINGS, *(f"{kind}.safetensors" for kind in kinds)}
    for number, kind in enumerate(kinds, start=1):
        assert torch.equal(read_whole([out / f"{kind}.safetensors"])["a"], number * WEIGHTS)
    assert [(out / name).read_text() for name in SETTINGS] == list(SETTINGS)
    assert is_sharded(source)
    assert not is_sharded(out)


def test_a_checkpoint_of_two_shards_is_sharded_and_one_of_one_is_not(tmp_path: Path) -> None:
    write(tmp_path / "model-00001-of-00002.safetensors", whole_parts({"a": WEIGHTS}))
    assert not is_sharded(tmp_path)
    write(tmp_path / "model-00002-of-00002.safetensors", whole_parts({"b": WEIGHTS}))
    assert is_sharded(tmp_path)


def test_nothing_is_written_over_and_the_step_stays_in_the_name(tmp_path: Path) -> None:
    source = sharded(tmp_path / "run", 2, ("model",))
    with pytest.raises(CannotCreateError, match="run exists already; give another --out"):
        consolidate(source, tmp_path / "run")
    for name in ("mine", storage.step_name(4)):
        with pytest.raises(
            UsageError, match=r"called step-00000003, .* type --out .*/step-00000003"
        ):
            consolidate(source, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
