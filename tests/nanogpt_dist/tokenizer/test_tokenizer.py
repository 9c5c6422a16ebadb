"""Tokenizers: equal to tiktoken's, exact where text is cut, and only loaded when whole."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import BadDataError, MissingInputError, NanogptError, UsageError
from nanogpt_dist.tokenizer import Tokenizer, bpe, patterns
from nanogpt_dist.tokenizer.loading import open_tokenizer
from tests.conftest import SHARED

TIKTOKEN_CACHE = SHARED / "tiktoken"
CORPUS = [
    path.read_text(encoding="utf-8") for path in sorted(Path(bpe.__file__).parents[1].glob("*.py"))
]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
WORDS = ["\n", " ", "\t", "\u3000", "\x1c", "\x85", "a", "é", "7", "'s", "!?", "<|endoftext|>"]
SPACED = st.lists(st.sampled_from(WORDS))


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return tokenizers.gpt2()


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return tokenizers.train_bpe(CORPUS, 600)


def test_gpt2_is_tiktokens_gpt2(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    if not TIKTOKEN_CACHE.is_dir():
        pytest.skip("tiktoken's own files are not here")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_CACHE))
    import tiktoken

    theirs = tiktoken.get_encoding("gpt2")
    assert theirs._mergeable_ranks == {token: rank for rank, token in enumerate(gpt2.tokens)}
    assert theirs._pat_str == patterns.GPT2.text
    assert theirs._special_tokens == {"<|endoftext|>": gpt2.eot_id}
    assert theirs.n_vocab == gpt2.n_vocab == 50257
    for text in CORPUS:
        assert gpt2.encode(text).tolist() == theirs.encode_ordinary(text)


def test_known_ids(gpt2: Tokenizer) -> None:
    assert gpt2.encode("hello world").tolist() == [31373, 995]
    assert tokenizers.byte().encode("é").tolist() == [195, 169]
    assert tokenizers.char("banana").encode("nab").tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", ["gpt2", "trained", "byte"])
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_decode_gives_back_any_text(
    kind: str,
    gpt2: Tokenizer,
    trained: Tokenizer,
    text: str,
) -> None:
    tokenizer = {"gpt2": gpt2, "trained": trained, "byte": tokenizers.byte()}[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())


@given(text=TEXT.filter(bool))
def test_decode_gives_back_characters(text: str) -> None:
    tokenizer = tokenizers.char(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.eot_id, tokenizer.n_vocab) == (None, len(set(text)))


@pytest.mark.parametrize("space", [" ", "\n", " \t", "\u3000", "\x85"])
@pytest.mark.parametrize("end", ["", "x", " ", "\n\ny"])
def test_long_runs_of_white_space_are_cut_exactly(gpt2: Tokenizer, space: str, end: str) -> None:
    text = "a" + space * (70_000 // len(space)) + end
    assert gpt2.encode(text).tolist() == gpt2._encoding(patterns.GPT2.text).encode_ordinary(text)


@pytest.mark.parametrize("end", ["text", ""])
def test_a_million_spaces_are_no_problem(gpt2: Tokenizer, end: str) -> None:
    text = " " * 1_100_000 + end
    assert gpt2.decode(gpt2.encode(text)) == text


def test_long_texts_are_cut_and_equal(trained: Tokenizer) -> None:
    text = "".join(CORPUS) * 20
    assert len(list(trained.pieces(text))) > 1
    assert trained.encode(text).tolist() == trained._encoding(patterns.GPT2.text).encode_ordinary(
        text
    )


def test_end_of_text_in_the_text_is_ordinary(gpt2: Tokenizer, trained: Tokenizer) -> None:
    for tokenizer in (gpt2, trained, tokenizers.byte()):
        ids = tokenizer.encode("<|endoftext|>")
        assert tokenizer.eot_id not in ids
        assert tokenizer.decode([*ids, tokenizer.eot_id]) == "<|endoftext|>" * 2


def test_what_has_no_ids_is_named(gpt2: Tokenizer) -> None:
    for tokenizer in (gpt2, tokenizers.byte(), tokenizers.char("ab")):
        with pytest.raises(BadDataError, match=r"U\+D800"):
            tokenizer.encode("a\ud800")
    with pytest.raises(BadDataError, match=r"'é' \(U\+00E9\)"):
        tokenizers.char("ab").encode("abé")


@pytest.mark.parametrize("wrong", [-1, 50257, 50303, 2**40])
def test_ids_outside_the_vocabulary_are_refused(gpt2: Tokenizer, wrong: int) -> None:
    with pytest.raises(BadDataError, match=f"id {wrong} is not"):
        gpt2.decode([0, wrong])


def test_broken_utf8_is_replaced() -> None:
    assert tokenizers.byte().decode([72, 255]) == "H\ufffd"


@pytest.mark.parametrize(
    ("size", "bits"), [(65_535, 16), (65_536, 16), (65_537, 32), (200_000, 32)]
)
def test_ids_never_wrap(size: int, bits: int) -> None:
    text = "".join(chr(i) for i in range(size + 2048) if not 0xD800 <= i < 0xE000)[:size]
    ids = tokenizers.char(text).encode(text)
    assert ids.dtype.itemsize * 8 == bits
    assert np.array_equal(ids, np.arange(size))


def test_training_is_a_function_of_the_text(trained: Tokenizer) -> None:
    assert tokenizers.train_bpe(iter(CORPUS), 600).fingerprint == trained.fingerprint
    assert trained.n_vocab == 600
    assert trained.eot_id == 599
    assert all(len(trained.encode(text)) < len(text.encode()) for text in CORPUS if text)


def test_too_little_text_to_train_on() -> None:
    with pytest.raises(BadDataError, match=r"only 259 of 5000 ids; type --tokenizer bpe:259"):
        tokenizers.train_bpe(["aaa"], 5000)


def test_sizes_of_a_vocabulary() -> None:
    assert tokenizers.bpe_size("bpe:257") == 257
    assert (
        tokenizers.bpe_size("gpt2")
        is tokenizers.bpe_size("bpe:x")
        is tokenizers.bpe_size("bpe:٣٠٠")
        is None
    )
    for spec in ("bpe:0", "bpe:256", "bpe:1000001", "bpe:" + "9" * 5000):
        with pytest.raises(UsageError, match="give bpe:257 to bpe:1000000"):
            tokenizers.bpe_size(spec)


def test_runs_without_a_border_are_cut_for_training() -> None:
    texts = ["ab " * 10, "=" * 2500 + "\n" * 1001 + "x"]
    cut = list(bpe._without_long_runs(texts))
    assert "".join(cut) == "".join(texts)
    assert max(map(len, cut)) <= 2 * 1000
    assert cut[0] == texts[0], "ordinary text stays whole"


def test_save_and_load(gpt2: Tokenizer, trained: Tokenizer, tmp_path: Path) -> None:
    for tokenizer in (gpt2, trained, tokenizers.byte(), tokenizers.char("héllo")):
        tokenizer.save(tmp_path / "tokenizer.json")
        loaded = open_tokenizer(str(tmp_path / "tokenizer.json"))
        assert loaded.to_json() == tokenizer.to_json()
        assert (loaded.name, loaded.kind, loaded.n_vocab) == (
            tokenizer.name,
            tokenizer.kind,
            tokenizer.n_vocab,
        )
        assert loaded.encode("héllo").tolist() == tokenizer.encode("héllo").tolist()
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_fingerprints_tell_vocabularies_apart_not_names(trained: Tokenizer) -> None:
    swapped = [*trained.tokens[:-2], trained.tokens[-1], trained.tokens[-2]]
    assert Tokenizer("other", "bpe", trained.tokens).fingerprint == trained.fingerprint
    assert Tokenizer(trained.name, "bpe", swapped).fingerprint != trained.fingerprint
    assert tokenizers.char("ab").fingerprint != tokenizers.char("ac").fingerprint


def test_damaged_files_never_load_as_another_tokenizer(trained: Tokenizer, tmp_path: Path) -> None:
    path, good, rng = tmp_path / "tokenizer.json", trained.to_json(), random.Random(7)
    for _ in range(300):
        bad = bytearray(good)
        if rng.random() < 0.3:
            del bad[rng.randrange(len(bad) - 2) :]
        else:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            loaded = tokenizers.load(path)
        except NanogptError:
            continue
        # the flip was in the name or in white space
        assert loaded.fingerprint == trained.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "has version 1"),
        ({"format": "pickle"}, "not a tokenizer.json"),
        ({"kind": "wordpiece"}, "missing or wrong"),
        ({"tokens": [1, 2]}, "not base64"),
        ({"tokens": ["YQ==", "YQ=="]}, "different from each other"),
        ({"tokens": ["YQ=="]}, "not every single byte"),
        ({"pattern": "(a+)+$"}, "leaves out part of a text"),
        ({"pattern": r"\S+|\s+"}, "do not match its fingerprint"),
        ({"pattern": None}, "missing or wrong"),
        ({"specials": {"<|endoftext|>": 3}}, "ids of their own, behind"),
        ({"specials": {"x": 600, "y": 600}}, "missing or wrong"),
        ({"fingerprint": "0" * 64}, "do not match its fingerprint"),
    ],
)
def test_wrong_files_are_refused(
    trained: Tokenizer,
    tmp_path: Path,
    change: dict[str, object],
    message: str,
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(trained.to_json()), **change}))
    with pytest.raises(BadDataError, match=message):
        tokenizers.load(path)


def test_files_that_are_no_json_are_refused(tmp_path: Path) -> None:
    for data in (b"", b"\xff", b"[" * 100_000, b"null", b"{}"):
        (tmp_path / "t.json").write_bytes(data)
        with pytest.raises(BadDataError, match=r"not a tokenizer\.json"):
            tokenizers.load(tmp_path / "t.json")


def test_ranks_files(gpt2: Tokenizer, tmp_path: Path) -> None:
    import base64

    path = tmp_path / "my ranks.tiktoken"
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(gpt2.tokens)]
    path.write_bytes(b"".join(lines))
    opened = open_tokenizer(str(path))
    assert (opened.name, opened.fingerprint) == ("my-ranks", gpt2.fingerprint)
    path.write_bytes(b"".join([*lines[:300], *lines[301:]]))
    with pytest.raises(
        BadDataError, match=r"tiktoken:301: expected a token in base64 and the rank 300"
    ):
        open_tokenizer(str(path))


def test_specs() -> None:
    assert open_tokenizer("byte").n_vocab == 257
    for spec in ("char", "bpe:4096"):
        with pytest.raises(UsageError, match="made from text"):
            open_tokenizer(spec)
    with pytest.raises(MissingInputError, match="no tokenizer gpt3"):
        open_tokenizer("gpt3")
