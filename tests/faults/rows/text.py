"""Texts that are empty, no UTF-8, or full of the names of special tokens."""

import json
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.data import DataFolder, Manifest
from nanogpt_dist.tokenizer import END_OF_TEXT, Tokenizer
from tests.conftest import build, command, hashes, write_jsonl
from tests.faults import commands, damage
from tests.faults.row import Row
from tests.prepare.test_fuzz import FINE, ODD, read_back

STRINGS = 100  # that a try prepares


def refused(source: Path, folder: Path, *words: str, **options: object) -> None:
    """`source` cannot be prepared: one line with these words, and nothing is left."""
    options |= {"tokenizer": "byte", "workers": 1}
    damage.refused(lambda: build("text", folder / "none", [source], **options), *words)
    assert not (folder / "none").exists(), "a folder is left"


def write_documents(folder: Path, texts: list[str], choose: random.Random) -> Path:
    """Documents as lines, rows, or files of their own."""
    kind = choose.choice(["lines", "rows", "files"])
    if kind == "lines":
        return write_jsonl(folder / "a.jsonl", texts)
    if kind == "rows":
        parquet.write_table(pa.table({"text": texts}), folder / "a.parquet")
        return folder / "a.parquet"
    (folder / "texts").mkdir()
    for number, text in enumerate(texts):
        (folder / "texts" / f"{number:05}.txt").write_text(text, encoding="utf-8", newline="")
    return folder / "texts"


def totals(manifest: Manifest) -> tuple[int, int]:
    """Documents and bytes of text in both splits."""
    splits = manifest.splits.values()
    return sum(split.documents for split in splits), sum(split.bytes for split in splits)


def empty_documents(choose: random.Random, folder: Path) -> None:
    """Documents without a character, and such as are white space alone."""
    blank = [" ", "\n", "\t\t", "\u3000", "\xa0", "\r\n", " " * 5000, "\x00"]
    share = choose.choice([0.05, 0.5, 0.95])
    texts = [
        "" if choose.random() < share else choose.choice([*blank, f"text {number}"])
        for number in range(200)
    ]
    full = [text for text in texts if text]
    source = write_documents(folder, texts, choose)
    if choose.random() < 0.2:  # a split, or all, without a document
        texts = [""] * choose.randrange(1, 50) + choose.choice([[], ["one"]])
        (folder / "few").mkdir()
        source = write_documents(folder / "few", texts, choose)
        refused(source, folder, "got none of" if "one" in texts else "no text in the sources")
        line = ["prepare", "text", "--source", source, "--tokenizer", "byte", "--out", "out"]
        damage.line_of(commands.run(*line, folder=folder, code=65))
        return
    options = {"tokenizer": "byte", "workers": 1, "val_fraction": 0.4, "split_by": "documents"}
    manifest = build("text", folder / "out", [source], **options)
    assert manifest.counts.empty == len(texts) - len(full), manifest.counts
    assert totals(manifest) == (len(full), sum(len(text.encode()) for text in full))
    assert read_back(folder / "out") == sorted(full)


def odd_bytes(choose: random.Random, folder: Path) -> None:
    """STRINGS byte strings, of which some are no UTF-8, as JSON lines."""
    documents = [odd_string(choose) for _ in range(STRINGS)]
    lines = [
        b'{"text": '
        + json.dumps(raw.decode("latin-1"), ensure_ascii=False).encode("latin-1")
        + b"}\n"
        for raw in documents
    ]
    (folder / "a.jsonl").write_bytes(b"".join(lines))
    bad = [number for number, raw in enumerate(documents) if not is_utf8(raw)]
    errors = choose.choice(["strict", "replace", "skip"])
    if errors == "strict" and bad:
        offset = first_bad_byte(lines[bad[0]])
        words = f"a.jsonl:{bad[0] + 1}:{offset}: byte {lines[bad[0]][offset]:#04x} is not UTF-8"
        refused(folder / "a.jsonl", folder, words, val_fraction=0.4)
        return
    options = {"errors": errors, "val_fraction": 0.4, "workers": 1}
    options["tokenizer"] = choose.choice(["byte", "byte", "gpt2"])
    manifest = build("text", folder / "out", [folder / "a.jsonl"], **options)
    texts = [
        raw.decode(errors="replace")
        for number, raw in enumerate(documents)
        if raw and (errors == "replace" or number not in bad)
    ]
    counts = manifest.counts
    found = (counts.empty, counts.replaced, counts.skipped)
    wanted = (len(bad), 0) if errors == "replace" else (0, len(bad))
    assert found == (documents.count(b""), *wanted), counts
    assert read_back(folder / "out") == sorted(texts)
    if choose.random() < 0.1:
        assert hashes(in_another_locale(folder, options)) == hashes(folder / "out")


def odd_string(choose: random.Random) -> bytes:
    if choose.random() < 0.1:
        return choose.randbytes(choose.randrange(40))
    alphabet = FINE + (ODD if choose.random() < 0.2 else [])
    return b"".join(choose.choices(alphabet, k=choose.randrange(20)))


def is_utf8(raw: bytes) -> bool:
    return raw.decode(errors="replace").encode() == raw


def first_bad_byte(line: bytes) -> int:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.start
    raise AssertionError(line)


def in_another_locale(folder: Path, options: dict[str, object]) -> Path:
    """The same by a new process in C's locale, where Python's own text is ASCII."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    line = command("prepare", "text", "--source", "a.jsonl", "--out", "c", *flags)
    other = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "7"}
    subprocess.run(line, cwd=folder, env={**os.environ, **other}, check=True, capture_output=True)
    return folder / "c"


def special_tokens(choose: random.Random, folder: Path) -> None:
    """The names of special tokens in texts, whole, cut and one in the other."""
    names = [END_OF_TEXT, "<|im_end|>"]
    parts = [*names, END_OF_TEXT[:5], END_OF_TEXT[5:], " ", "a", "<|", "|>", "<|endof" * 2, "\n"]
    texts = ["".join(choose.choices(parts, k=choose.randrange(1, 30))) or "-" for _ in range(200)]
    tokenizer = choose.choice([str(own_tokenizer(folder, names)), "byte", "gpt2", "bpe:270"])
    eot = choose.choice(["append", "prepend"])
    options = {"tokenizer": tokenizer, "eot": eot, "val_fraction": 0.4, "workers": 1}
    options["split_by"] = "documents"
    manifest = build("text", folder / "out", [write_documents(folder, texts, choose)], **options)
    assert manifest.counts.special == sum(text.count(END_OF_TEXT) for text in texts)
    data, found = DataFolder.open(folder / "out"), []
    specials = sorted(data.tokenizer.specials.values())
    for split in data.splits.values():
        ids, ends = split.read(0, split.tokens), split.document_ends()
        assert np.isin(ids, specials).sum() == split.documents == len(ends), "specials in a text"
        for start, end in zip([0, *ends], ends, strict=False):
            document = ids[start + 1 : end] if eot == "prepend" else ids[start : end - 1]
            found.append(data.tokenizer.decode(document))
    assert sorted(found) == sorted(texts)


def own_tokenizer(folder: Path, names: list[str]) -> Path:
    """A tokenizer of bytes with special tokens of those names."""
    specials = {name: 256 + number for number, name in enumerate(names)}
    Tokenizer("own", "bpe", tokenizers.byte().tokens, specials=specials).save(folder / "own.json")
    return folder / "own.json"


ROWS = [
    Row(
        number=31,
        fault="documents that are empty, or white space alone; a split without any",
        holds="counts exact, texts the same; an empty split is exit 65",
        goal=100,
        attempt=empty_documents,
        short=1,
    ),
    Row(
        number=32,
        fault="byte strings that are no UTF-8, with NUL, marks and half surrogates",
        holds="strict names line and byte; replaced and skipped are counted; any locale the same",
        goal=10_000,
        attempt=odd_bytes,
        short=2,
        each=STRINGS,
    ),
    Row(
        number=34,
        fault="names of special tokens in the text",
        holds="they are ordinary text, and counted; ends of text are as many as documents",
        goal=100,
        attempt=special_tokens,
        short=1,
    ),
]
