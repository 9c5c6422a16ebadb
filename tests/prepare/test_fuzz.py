"""Ten thousand odd documents: decoding gives each back, the counts are exact, nothing crashes."""

import json
from pathlib import Path

import numpy as np
import pytest

from nanogpt_dist.data import DataFolder, verify_folder
from tests.conftest import build

# none is UTF-8
ODD = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf0\x9f\x99", b"\x80\x80", b"\xc0\xaf"]
FINE = [
    b"\x00",
    b"\xef\xbb\xbf",
    b"<|endoftext|>",
    b" ",
    b"\n",
    b"\t",
    b"\xc2\xa0",
    b"\xe3\x80\x80",
    b"the",
    b" cat",
]
FINE += [
    "é".encode(),
    "🙂".encode(),
    "東京".encode(),
    b"\r\n",
    b"1234",
    b"...",
    b"\x1c",
    b"\xc2\x85",
    b"'s",
]


def fuzzed(count: int) -> list[bytes]:
    rng = np.random.default_rng(11)
    made = [
        b"",
        b"\xef\xbb\xbf",
        b"\0",
        b" " * 1_000_000,
        b" " * 1_000_000 + b"x",
        b"\n" * 70_000 + b"y",
        b"a" * 100_000,
    ]
    while len(made) < count:
        alphabet = FINE + (ODD if rng.random() < 0.2 else [])
        made.append(
            b"".join(alphabet[i] for i in rng.integers(0, len(alphabet), rng.integers(0, 20)))
        )
    return made


def read_back(folder: Path) -> list[str]:
    data, found = DataFolder.open(folder), []
    for split in data.splits.values():
        ids, ends = split.read(0, split.tokens), split.document_ends()
        assert np.array_equal(np.flatnonzero(ids == data.tokenizer.eot_id) + 1, ends)
        for start, end in zip([0, *ends], ends, strict=False):
            found.append(data.tokenizer.decode_bytes(ids[start : end - 1]).decode())
    assert verify_folder(folder) == []
    return sorted(found)


@pytest.mark.parametrize("errors", ["replace", "skip"])
def test_fuzzed_lines(errors: str, tmp_path: Path) -> None:
    documents = fuzzed(10_000)
    lines = []
    for raw in documents:  # JSON with the raw bytes in it
        inside = json.dumps(raw.decode("latin-1"), ensure_ascii=False).encode("latin-1")
        lines.append(b'{"text": ' + inside + b"}\n")
    lines[3:3] = [b'{"text": "half \\ud800 a pair"}\n', b'{"text": "a \\ud83d\\ude42 pair"}\n']
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    manifest = build(
        "text", tmp_path / "out", [tmp_path / "a.jsonl"], tokenizer="gpt2", errors=errors
    )

    texts, bad, empty = ["a 🙂 pair"], 1, 0
    for raw in documents:
        text = raw.decode(errors="replace")
        if text.encode() != raw:
            bad += 1
        if not text:
            empty += 1
        elif errors == "replace" or text.encode() == raw:
            texts.append(text)
    texts += ["half \ufffd a pair"] if errors == "replace" else []
    counts = manifest.counts
    assert counts.empty == empty
    assert (counts.replaced, counts.skipped) == ((bad, 0) if errors == "replace" else (0, bad))
    assert counts.special == sum(text.count("<|endoftext|>") for text in texts)
    assert read_back(tmp_path / "out") == sorted(texts)
    assert sum(split.bytes for split in manifest.splits.values()) == sum(
        len(text.encode()) for text in texts
    )


def test_fuzzed_files(tmp_path: Path) -> None:
    """The same as files of text, where a byte order mark at the start is no text."""
    documents = [raw for raw in fuzzed(600) if raw != b" " * 1_000_000]
    (tmp_path / "texts").mkdir()
    for number, raw in enumerate(documents):
        (tmp_path / "texts" / f"{number}.txt").write_bytes(raw)
    manifest = build(
        "text", tmp_path / "out", [tmp_path / "texts"], tokenizer="gpt2", errors="replace"
    )
    texts = [raw.removeprefix(b"\xef\xbb\xbf").decode(errors="replace") for raw in documents]
    assert read_back(tmp_path / "out") == sorted(filter(None, texts))
    assert manifest.counts.empty == texts.count("")
