"""Vocabularies of others: tiktoken's by name, and Hugging Face's files, proven equal or refused."""

import base64
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tokenizers as oracle

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import BadDataError, HubUnavailableError
from nanogpt_dist.tokenizer import Tokenizer, bpe, loading, patterns
from nanogpt_dist.tokenizer.loading import open_tokenizer

SPLIT = {
    "type": "Split",
    "pattern": {"Regex": patterns.CL100K.text},
    "behavior": "Isolated",
    "invert": False,
}
REMOVES = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
CORPUS = [
    path.read_text(encoding="utf-8") for path in sorted(Path(bpe.__file__).parents[1].glob("*.py"))
]
OF_THEIR_OWN = r" ?[\p{L}\p{N}]+|\s|[^\p{L}\p{N}\s]+"  # no \w: the two libraries disagree on ²
R50K = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
R50K_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


def test_r50k_base_is_gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken's file of it follows from GPT-2's ranks byte for byte; its cache names it by the
    address.
    """
    data = bpe.format_ranks(tokenizers.gpt2().tokens)
    assert hashlib.sha256(data).hexdigest() == R50K_SHA256
    (tmp_path / hashlib.sha1(R50K.encode()).hexdigest()).write_bytes(data)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    opened = open_tokenizer("r50k_base")
    assert (opened.name, opened.n_vocab, opened.eot_id) == ("r50k_base", 50257, 50256)
    assert opened.fingerprint == tokenizers.gpt2().fingerprint


def test_what_cannot_be_fetched_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(
        HubUnavailableError, match="cl100k_base is not in TIKTOKEN_CACHE_DIR and cannot be fetched"
    ) as error:
        open_tokenizer("cl100k_base")
    assert len(str(error.value)) < 180
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: threading.Event().wait(60))
    monkeypatch.setattr(loading, "FETCH_S", 0.1)
    with pytest.raises(HubUnavailableError, match="cannot be fetched \\(TimeoutError\\)"):
        open_tokenizer("cl100k_base")


@pytest.fixture(scope="module")
def model() -> Any:
    return bpe.train_merges(iter(CORPUS), 999)


def test_special_tokens_may_leave_gaps(
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As cl100k_base has them: ranks below, end of text behind a gap, another behind a larger
    one.
    """
    tokens = bpe.tokens_by_id(model.get_vocab())
    specials = {"<|endoftext|>": 1000, "<|endofprompt|>": 70_000}
    theirs = tiktoken.Encoding(
        "cl100k_base",
        pat_str=patterns.CL100K.text,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens=specials,
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: theirs)
    ours = open_tokenizer("cl100k_base")
    assert (ours.n_vocab, ours.eot_id, ours.dtype.itemsize) == (70_001, 1000, 4)
    for text in [*CORPUS, *loading.PROBES]:
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text)
    assert ours.decode([0, 1000, 70_000]) == "!<|endoftext|><|endofprompt|>"
    for gap in (999, 1001, 69_999, 70_001):
        with pytest.raises(BadDataError, match=f"id {gap} is not in tokenizer cl100k_base"):
            ours.decode([gap])
    assert ours.byte_lengths().shape == (70_001,)
    assert ours.byte_lengths()[999:].sum() == 0
    ours.save(tmp_path / "t.json")
    assert tokenizers.load(tmp_path / "t.json").to_json() == ours.to_json()
    assert ours.fingerprint != Tokenizer("x", "bpe", tokens, patterns.CL100K.text).fingerprint


def save(given: Any, path: Path, **change: Any) -> Path:
    content = json.loads(given.to_str())
    path.write_text(json.dumps({**content, **change}))
    return path


@pytest.mark.parametrize(
    "pattern", [None, patterns.LLAMA3.text, patterns.QWEN2.text, patterns.O200K.text, OF_THEIR_OWN]
)
def test_hugging_faces_files(pattern: str | None, model: Any, tmp_path: Path) -> None:
    copied = oracle.Tokenizer.from_str(model.to_str())
    if pattern:
        split = oracle.pre_tokenizers.Split(oracle.Regex(pattern), "isolated")
        level = oracle.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        copied.pre_tokenizer = oracle.pre_tokenizers.Sequence([split, level])
    copied.add_special_tokens(["<|begin|>", "<|end_of_text|>"])
    ours = open_tokenizer(str(save(copied, tmp_path / "llama.json")))
    assert (ours.name, ours.n_vocab, ours.eot_id) == ("llama", 1001, 1000)
    assert ours.cuttable == (pattern != OF_THEIR_OWN)
    for text in CORPUS[:5]:
        assert ours.encode(text).tolist() == copied.encode(text).ids
    assert ours.decode(np.array([1000])) == "<|end_of_text|>"


def test_gpt2s_own_file(tmp_path: Path) -> None:
    merges = bpe.gzip.decompress(bpe.GPT2_MERGES.read_bytes()).decode().split("\n")[1:-1]
    printable = {value: key for key, value in bpe._PRINTABLE.items()}
    vocab = {
        "".join(printable[bytes([b])] for b in token): i
        for i, token in enumerate(tokenizers.gpt2().tokens)
    }
    model = oracle.Tokenizer(
        oracle.models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges])
    )  # type: ignore[misc]
    model.pre_tokenizer = oracle.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.add_special_tokens(["<|endoftext|>"])
    model.save(str(tmp_path / "tokenizer.json"))
    assert (
        open_tokenizer(str(tmp_path / "tokenizer.json")).fingerprint
        == tokenizers.gpt2().fingerprint
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"normalizer": {"type": "Lowercase"}},
            "normalizer is Lowercase; of these only NFC is read",
        ),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "byte-level BPE"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
            "without a space in front",
        ),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "has Whitespace, which does not keep the text"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [REMOVES, LEVEL]}},
            "has a Split that removes",
        ),
        ({"pre_tokenizer": None}, "not ByteLevel"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [LEVEL, LEVEL]}}, "not ByteLevel"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0, "b": 2}, "merges": []}},
            "not every single byte",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}, "the same id"),
        ({"model": {"type": "BPE", "vocab": {"東": 0}, "merges": []}}, "not bytes"),
        ({"model": {"type": "BPE", "vocab": [], "merges": []}}, "no byte-level BPE"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}},
            "its model has dropout",
        ),
        ({"added_tokens": [{"id": 7, "content": "[MOL]", "special": False}]}, "same id"),
        (
            {"added_tokens": [{"id": 9999, "content": "[MOL]", "special": False}]},
            "cannot read it|another id",
        ),
    ],
)
def test_other_tokenizers_are_refused(
    change: dict[str, Any],
    message: str,
    model: Any,
    tmp_path: Path,
) -> None:
    with pytest.raises(BadDataError, match=message) as error:
        open_tokenizer(str(save(model, tmp_path / "t.json", **change)))
    assert len(str(error.value)) < 200


def test_ranks_are_written_as_they_are_read() -> None:
    tokens = [bytes([i]) for i in range(256)] + [b"th"]
    assert bpe.parse_ranks(bpe.format_ranks(tokens), "x") == tokens
    assert bpe.format_ranks(tokens).splitlines()[256] == base64.b64encode(b"th") + b" 256"


def test_the_configuration_beside_it_names_the_end_of_text(model: Any, tmp_path: Path) -> None:
    copied = oracle.Tokenizer.from_str(model.to_str())
    copied.add_special_tokens(["<|endoftext|>", "<stop>", "<other>"])
    path = save(copied, tmp_path / "t.json")
    assert open_tokenizer(str(path)).end_of_text == "<|endoftext|>"
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<stop>"}})
    )
    assert open_tokenizer(str(path)).end_of_text == "<stop>"
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1001, 1000]}))
    assert open_tokenizer(str(path)).end_of_text == "<stop>"
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 1001}))
    assert open_tokenizer(str(path)).end_of_text == "<other>"


@pytest.mark.parametrize(
    ("name", "more"), [("cl100k_base", b"12"), ("mine", b"a1"), ("mine", b".get")]
)
def test_ranks_under_another_pattern_than_gpt2s_are_refused(
    name: str,
    more: bytes,
    tmp_path: Path,
) -> None:
    path = tmp_path / f"{name}.tiktoken"
    path.write_bytes(bpe.format_ranks([*(bytes([i]) for i in range(256)), more]))
    with pytest.raises(BadDataError, match="not learnt under GPT-2's pattern"):
        open_tokenizer(str(path))


def test_a_sentencepiece_model_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(BadDataError, match="a SentencePiece model"):
        open_tokenizer(str(tmp_path / "tokenizer.model"))


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_ranks_are_known_by_tiktokens_own_sha256(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tiktoken_ext import openai_public

    sums = []

    def note(address: str, expected_hash: str) -> dict[bytes, int]:
        sums.append(expected_hash)
        return {}

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", note)
    theirs = openai_public.ENCODING_CONSTRUCTORS[name]()
    assert loading.RANKS[sums[0]] == (theirs["pat_str"], theirs["special_tokens"])


def test_ranks_that_are_known_have_their_pattern_and_special_tokens(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = bpe.format_ranks([*(bytes([i]) for i in range(256)), b"12", b"123", b".get"])
    (tmp_path / "mine.tiktoken").write_bytes(data)
    known = {hashlib.sha256(data).hexdigest(): (patterns.CL100K.text, {"<|endoftext|>": 300})}
    monkeypatch.setattr(loading, "RANKS", known)
    opened = open_tokenizer(str(tmp_path / "mine.tiktoken"))
    assert (opened.eot_id, opened.pattern) == (300, patterns.CL100K)


def test_ranks_with_a_gap_are_told_as_p50ks(tmp_path: Path) -> None:
    lines = bpe.format_ranks(tokenizers.gpt2().tokens) + base64.b64encode(b"        ") + b" 50257\n"
    (tmp_path / "p50k_base.tiktoken").write_bytes(lines)
    with pytest.raises(BadDataError, match="p50k_base has end of text within its ranks"):
        open_tokenizer(str(tmp_path / "p50k_base.tiktoken"))
