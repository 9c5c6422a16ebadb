"""Readers of texts, token shards and what prepare keeps while it works."""

import functools
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_dist.data import DataFolder, verify_folder
from nanogpt_dist.data import foreign as foreign_shards
from nanogpt_dist.data.documents import Documents
from nanogpt_dist.data.format import HEADER_BYTES, Header
from nanogpt_dist.data.manifest import Errors
from nanogpt_dist.data.scan import ReadProgress
from nanogpt_dist.storage.durable import open_plain
from nanogpt_dist.storage.runlock import lock_holder
from nanogpt_dist.tokenizer import byte
from prepare.corpora import CORPORA
from prepare.readers.documents import Part
from prepare.readers.formats import Format, format_of
from prepare.readers.tables import row_groups
from prepare.sources.local import find_sources
from prepare.units.encode import DOCUMENT
from prepare.units.journal import LOCK, WorkFolder, read_json
from prepare.units.ranks import Ranks
from tests.conftest import build
from tests.faults.parsers.formats import Parser, try_all

LINES = [
    {"text": "To be, or not to be.", "id": 1, "meta": {"a": [1, 2.5, None]}},
    {"text": "É 東京 🙂 \u2028 \x7f", "id": 2},
    {"text": "", "id": 3, "more": [[{"text": "no"}]]},
    {"text": 'quoted " and \\ and \n and \t', "id": 4},
]
TEXT = "\n".join(str(line["text"]) for line in LINES) * 3
ALL_ERRORS: tuple[Errors, ...] = ("strict", "replace", "skip")


def make_data(folder: Path) -> None:
    """A data folder of a few thousand ids, three shards of train."""
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps({"text": TEXT + str(i)}) + "\n" for i in range(20)))
    build("text", folder / "data", [source], tokenizer="byte", workers=1, val_fraction=0.2)
    source.unlink()


def seal_data(folder: Path) -> None:
    """What a forger of a data folder makes right: CRCs, sizes, sha256, the manifest's own."""
    path = folder / "data/manifest.json"
    content = json.loads(path.read_bytes())
    records = [content["tokenizer"]["file"]]
    for split in content["splits"].values():
        for shard in split["shards"]:
            file = folder / "data" / shard["file"]["name"]
            data = file.read_bytes()
            head = data[: HEADER_BYTES - 4]
            data = head + zlib.crc32(head).to_bytes(4, "little") + data[HEADER_BYTES:]
            file.write_bytes(data)
            ids = data[HEADER_BYTES:]
            crcs = [zlib.crc32(ids[i : i + (1 << 20)]) for i in range(0, len(ids), 1 << 20)]
            sums = folder / "data" / shard["checksums"]["name"]
            if len(sums.read_bytes()) == 4 * len(crcs):
                sums.write_bytes(np.array(crcs, "<u4").tobytes())
            records += [shard["file"], shard["checksums"], shard["ends"]]
    for record in records:
        data = (folder / "data" / record["name"]).read_bytes()
        if data:
            record["bytes"], record["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    seal_manifest(path, content)


def seal_manifest(path: Path, content: dict[str, Any]) -> None:
    """Write a manifest whose own sha256 is right."""
    content.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": digest}, indent=1) + "\n")


def read_data(folder: Path) -> None:
    """Open, read all, count documents, verify."""
    verify_folder(folder / "data", threads=1)
    data = DataFolder.open(folder / "data")
    for split in data.splits.values():
        ids = split.read(0, min(split.tokens, 10_000))
        assert not len(ids) or int(ids.max()) < data.tokenizer.n_vocab, "an id without a token"
        split.document_ends()
    documents = Documents(data, "train")
    data.tokenizer.decode(documents.ids(0))


def read_header(folder: Path) -> None:
    """A header alone, as a shard and as llm.c's."""
    for path in sorted(folder.glob("*.bin")):
        with open_plain(path) as file:
            Header.parse(file.read(HEADER_BYTES), path.name)


def make_headers(folder: Path) -> None:
    tokenizer = byte()
    header = Header(1000, 257, 256, 250, 3, tokenizer.fingerprint, "0" * 64)
    (folder / "a.bin").write_bytes(header.pack())


def seal_headers(folder: Path) -> None:
    for path in folder.glob("*.bin"):
        head = path.read_bytes()[: HEADER_BYTES - 4]
        path.write_bytes(head + zlib.crc32(head).to_bytes(4, "little"))


def make_foreign(folder: Path) -> None:
    """Files of ids as nanoGPT, llm.c and modded-nanogpt write them."""
    ids = np.arange(3000) % 257
    (folder / "raw.bin").write_bytes(ids.astype("<u2").tobytes())
    (folder / "wide.bin").write_bytes(ids.astype("<u4").tobytes())
    for name, magic, version, width in (("a", 20240520, 1, 2), ("b", 20240801, 7, 4)):
        head = np.zeros(256, "<i4")
        head[:3] = magic, version, len(ids)
        (folder / f"{name}.bin").write_bytes(head.tobytes() + ids.astype(f"<u{width}").tobytes())


def read_foreign(folder: Path) -> None:
    """Each as it is, said to be 16-bit, and 32-bit."""
    tokenizer = byte()
    lengths = tokenizer.byte_lengths()

    def read(path: Path, uint32: bool | None) -> None:
        file = foreign_shards.look_at(path, uint32, tokenizer.n_vocab)
        meter = ReadProgress(file.bytes, None)
        found = foreign_shards.read_through(file, tokenizer, lengths, meter)
        foreign_shards.document_ends([file.tokens], [found.eots], file.eot)

    try_all(
        functools.partial(read, path, uint32)
        for path in sorted(folder.glob("*.bin"))
        for uint32 in (None, False, True)
    )


def _documents(names: tuple[str, ...]) -> Callable[[Path], None]:
    """All documents of the folder's files of these endings, for each way to treat bad text."""

    def read_one(path: Path, form: Format, errors: Errors) -> None:
        find_sources(CORPORA["text"], [path])
        stop = path.stat().st_size
        if form.kind in ("parquet", "arrow"):
            stop = len(row_groups(path, form.kind, "text"))
        part = Part(path, form, 0, stop, "text" if form.has_fields else None, errors)
        for document in part.documents():
            "".join(document.text).encode()
            part.where(document)

    def read(folder: Path) -> None:
        known = ((path, format_of(path.name)) for path in sorted(folder.iterdir()))
        try_all(
            functools.partial(read_one, path, form, errors)
            for path, form in known
            if form is not None and path.name.endswith(names)
            for errors in ALL_ERRORS
        )

    return read


def make_lines(folder: Path) -> None:
    lines = [json.dumps(line, ensure_ascii=i % 2 == 0) for i, line in enumerate(LINES)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.json").write_text(json.dumps(LINES, indent=1))
    (folder / "c.json").write_text("\n".join(json.dumps(line, indent=2) for line in LINES))


def make_texts(folder: Path) -> None:
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.txt").write_bytes(TEXT.encode("utf-16"))
    (folder / "c.md").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    (folder / "d.txt").write_bytes(TEXT.encode("latin-1", "replace"))


def make_packed(folder: Path) -> None:
    import zstandard

    text = TEXT.encode() * 20
    lines = "\n".join(json.dumps(line) for line in LINES * 20).encode()
    for name, data in (("a.txt", text), ("b.jsonl", lines)):
        (folder / f"{name}.gz").write_bytes(gzip.compress(data, mtime=0) + gzip.compress(b"\n"))
        frame = zstandard.ZstdCompressor(write_checksum=True).compress(data)
        (folder / f"{name}.zst").write_bytes(frame + zstandard.compress(b"\n"))


def make_tables(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import ipc, parquet

    texts = [str(line["text"]) for line in LINES] * 10
    table = pa.table({"text": texts, "id": list(range(len(texts)))})
    parquet.write_table(table, folder / "a.parquet", row_group_size=7)
    plain = {"use_dictionary": False, "compression": "zstd", "data_page_version": "2.0"}
    parquet.write_table(table, folder / "b.parquet", **plain)
    with ipc.new_file(str(folder / "c.arrow"), table.schema) as file:
        file.write_table(table, 7)
    with ipc.new_stream(str(folder / "d.arrow"), table.schema) as stream:
        stream.write_table(table, 7)


def make_journal(folder: Path) -> None:
    """What prepare leaves when it is killed: made by a run that ends before its manifest."""
    make_data(folder)
    out = folder / "data"
    manifest = json.loads((out / "manifest.json").read_bytes())
    (out / "manifest.json").unlink()
    work = WorkFolder(out)
    for each in (work.units, work.shards):
        each.mkdir(parents=True)
    work.write_plan({"corpus": "data", "tokenizer": "byte"}, {"a.txt": ((1, 2, 3), "0" * 64)})
    for shard in manifest["splits"]["train"]["shards"]:
        name = shard["file"]["name"].removesuffix(".bin")
        (work.shards / f"{name}.json").write_text(json.dumps(shard))
    table = np.zeros(2, DOCUMENT).tobytes()
    record: dict[str, Any] = {"unit": 0, "plan": "", "train": [4, 1], "val": [0, 0]}
    (work.units / "000000.documents").write_bytes(table)
    record["documents"] = [len(table), zlib.crc32(table)]
    (work.units / "000000.json").write_text(json.dumps(record))
    work.run.write_text(json.dumps({"run": "torchrun:x", "holder": None}))
    (work.folder / "failed-1").write_text(json.dumps({"run": "x", "code": 65, "line": "no"}))
    (work.folder / LOCK).write_text(json.dumps({"host": "a", "pid": 1, "started": "2026"}))


def read_journal(folder: Path) -> None:
    work = WorkFolder(folder / "data")
    name = "data" if (work.out / "data_train_000000.bin").exists() else "source"
    ranks = Ranks(1, 2, "torchrun:x")
    looks: list[Callable[[], object]] = [
        work.read_plan,
        lambda: work.read(0),
        lambda: work.good_shards(name, "train"),
        lambda: ranks._announced(work),
        lambda: ranks.look_for_failures(work),
        lambda: lock_holder(work.folder / LOCK),
        lambda: read_json(work.run),
    ]
    try_all(looks)


PARSERS = [
    Parser("shard-header", make_headers, read_header, seal=seal_headers),
    Parser("data-folder", make_data, read_data, seal=seal_data),
    Parser("data-manifest", make_data, read_data, ("data/manifest.json",), seal_data),
    Parser("foreign-shards", make_foreign, read_foreign),
    Parser("jsonl", make_lines, _documents((".jsonl", ".json"))),
    Parser("text", make_texts, _documents((".txt", ".md"))),
    Parser("packed", make_packed, _documents((".gz", ".zst"))),
    Parser("tables", make_tables, _documents((".parquet", ".arrow"))),
    Parser(
        "prepare-journal", make_journal, read_journal, ("data/.prepare/**/*",), other_kinds=False
    ),
]
