"""Ids that no vocabulary has, shards of another tokenizer, vocabularies that need four bytes."""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import DataFolder, Manifest, ShardWriter, verify_folder
from nanogpt_dist.data.format import HEADER_BYTES, Header
from tests.faults import commands, damage
from tests.faults.row import Row
from tests.faults.rows.shards import (
    BY_COMMAND,
    LINE,
    own_data,
    read_all,
    refuse_training,
    shards,
)
from tests.nanogpt_dist.data.test_shards import write_folder


def outside_vocabulary(choose: random.Random, folder: Path) -> None:
    """Ids that the vocabulary does not have: written, imported, or in shards that lie of them."""
    tokenizer = tokenizers.byte()
    n_vocab = tokenizer.n_vocab
    ids = np.random.default_rng(choose.randrange(2**32)).integers(0, n_vocab, 5000)
    way = choose.choice(["write", "import", "header", "forged"])
    wrong = choose.choice([n_vocab, n_vocab + choose.randrange(1, 60_000), 50_304, 65_535])
    if way == "write":
        wrong = choose.choice([wrong, 65_536, 65_537, -1, 2**40])
    ids[choose.randrange(5000)] = wrong
    if way == "write":
        (folder / "data").mkdir()
        with_id = f"id {wrong} is outside the vocabulary"
        damage.refused(lambda: write_ids(folder / "data", ids), with_id)
        assert not os.listdir(folder / "data"), "a part of a shard is left"
    elif way == "import":
        import_wrong(folder, ids.astype("<u2"), wrong)
    else:
        forge(folder / "data", ids.astype(np.uint16), choose if way == "header" else None)
        damage.refused(lambda: read_all(folder / "data"), "mine_train_000000")
        refuse_training(folder, "mine_train_000000")


def write_ids(folder: Path, ids: np.ndarray) -> None:
    with ShardWriter(folder, "x", "train", tokenizers.byte()) as writer:
        writer.write(ids)


def import_wrong(folder: Path, ids: np.ndarray, wrong: int) -> None:
    """nanoGPT's own files, which no header describes."""
    (folder / "data").mkdir()
    for name in ("train.bin", "val.bin"):
        (folder / "data" / name).write_bytes(ids.tobytes())
    line = ["import-shards", "data", "--tokenizer", "byte"]
    damage.line_of(commands.run(*line, folder=folder, code=65), str(wrong))
    assert not (folder / "data" / "manifest.json").exists()
    damage.line_of(commands.run(*LINE, folder=folder, code=65), "import-shards")


def forge(data: Path, ids: np.ndarray, lie: random.Random | None) -> None:
    """A folder whose every hash is right, with ids above the vocabulary.

    lie: chooses what still tells of the largest id: header or manifest; None: nothing does.
    """
    large = tokenizers.char("".join(map(chr, range(0xE000, 0xE000 + 65_536))))
    write_folder(data, ids, ids[:1000].clip(max=256), large, 600_000)
    small = tokenizers.byte()
    small.save(data / "tokenizer.json")
    content = json.loads((data / "manifest.json").read_text())
    seal_forged(data, content, small, lie.choice(["header", "manifest"]) if lie else "")


def seal_forged(
    data: Path, content: dict[str, Any], small: tokenizers.Tokenizer, honest: str
) -> None:
    """Make headers and manifest those of `small`, but for what is `honest` about the ids."""
    about = content["tokenizer"]
    saved = (data / "tokenizer.json").read_bytes()
    about |= {"n_vocab": small.n_vocab, "eot_id": small.eot_id, "name": small.name}
    about |= {"fingerprint": small.fingerprint}
    about["file"] |= {"bytes": len(saved), "sha256": hashlib.sha256(saved).hexdigest()}
    for split in content["splits"].values():
        for shard in split["shards"]:
            path = data / shard["file"]["name"]
            raw = path.read_bytes()
            true, false = shard["largest_id"], min(shard["largest_id"], small.n_vocab - 1)
            largest = true if honest == "header" else false
            digest = hashlib.sha256(raw[HEADER_BYTES:]).hexdigest()
            header = Header(
                *(shard["tokens"], small.n_vocab, small.eot_id, largest),
                *(shard["documents"], small.fingerprint, digest),
            )
            path.write_bytes(header.pack() + raw[HEADER_BYTES:])
            shard["file"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            shard["largest_id"] = true if honest == "manifest" else false
    content.pop("sha256")
    manifest = Manifest.model_validate(content)
    (data / "manifest.json").write_bytes(manifest.to_bytes())


def other_tokenizer(choose: random.Random, folder: Path) -> None:
    """Data, a shard or a tokenizer.json of another tokenizer, of as many ids."""
    names = random_names(choose)
    other = tokenizers.Tokenizer(names, "bpe", tokenizers.byte().tokens)
    way = choose.choice(["tokenizer.json", "shard", "resume", "eval"])
    ids = np.random.default_rng(choose.randrange(2**32)).integers(0, 257, 601_000)
    if way in ("tokenizer.json", "shard"):
        data = own_data(folder)
        if way == "tokenizer.json":
            other.save(data / "tokenizer.json")
            told = damage.refused(
                lambda: DataFolder.open(data), f"is tokenizer {names} ", "not byte "
            )
        else:
            write_folder(folder / "other", ids, ids[:1000], other, 600_000)
            name = choose.choice(["mine_train_000000", "mine_train_000001", "mine_val_000000"])
            for suffix in ("bin", "crc32", "ends"):
                shutil.copy(folder / "other" / f"{name}.{suffix}", data)
            told = damage.refused(lambda: read_all(data), name)
            assert verify_folder(data), "verify finds nothing"
        if choose.random() < BY_COMMAND:
            refuse_training(folder, told.partition(":")[0].split("/")[-1].split()[0])
    else:
        write_folder(folder / "data", ids, ids[:1000], other, 600_000)
        shutil.copytree(shards() / "out", folder / "out")
        was = damage.contents(folder / "out" / "checkpoints")
        line = LINE if way == "resume" else ["eval", "out", "--dataset", "data"]
        said = damage.line_of(commands.run(*line, folder=folder, code=65))
        assert way == "resume" or (names in said and "byte" in said), said
        assert damage.contents(folder / "out" / "checkpoints") == was


def random_names(choose: random.Random) -> str:
    return "other-" + "".join(choose.choices("abcdefgh", k=5))


def large_vocabulary(choose: random.Random, folder: Path) -> None:
    """Vocabularies around the largest that two bytes hold, with ids at their ends."""
    sizes = [65_535, 65_536, 65_537, 200_000]
    n_vocab = choose.choice([*sizes, choose.randrange(60_000, 250_000)])
    letters = "".join(map(chr, range(0x20000, 0x20000 + n_vocab)))
    tokenizer = tokenizers.char(letters)
    numbers = np.random.default_rng(choose.randrange(2**32))
    ids = numbers.integers(0, n_vocab, 20_000)
    edges = [0, n_vocab - 1, min(65_535, n_vocab - 1), min(65_536, n_vocab - 1)]
    ids[: len(edges)] = edges
    write_folder(folder / "data", ids, ids[:100], tokenizer, choose.randrange(3000, 30_000))
    opened = DataFolder.open(folder / "data").split("train")
    assert np.array_equal(opened.read(0, len(ids)), ids), "ids have changed"
    assert opened.dtype == (np.uint16 if n_vocab <= 65_536 else np.uint32)
    text = "".join(letters[i] for i in ids[:1000])
    assert np.array_equal(tokenizer.encode(text), ids[:1000])
    wrong = choose.choice([n_vocab, n_vocab + choose.randrange(70_000), 65_536 * 4])
    ids[choose.randrange(len(ids))] = wrong

    def write() -> None:
        with ShardWriter(folder, "x", "train", tokenizer) as writer:
            writer.write(ids)

    damage.refused(write, f"id {wrong} is outside the vocabulary")
    assert os.listdir(folder) == ["data"] or sorted(os.listdir(folder)) == [".said", "data"]


ROWS = [
    Row(
        number=27,
        fault="ids that the vocabulary does not have",
        holds="not written, not imported; forged ones are refused before step 1",
        goal=100,
        attempt=outside_vocabulary,
        short=2,
    ),
    Row(
        number=28,
        fault="shards, data or a tokenizer.json of another tokenizer of as many ids",
        holds="refused by train and eval, with the names; nothing is changed",
        goal=100,
        attempt=other_tokenizer,
        short=1,
    ),
    Row(
        number=30,
        fault="vocabularies of 65,535, 65,536, 65,537 and more ids",
        holds="every id reads back; none wraps, those outside are refused",
        goal=50,
        attempt=large_vocabulary,
        short=1,
    ),
]
