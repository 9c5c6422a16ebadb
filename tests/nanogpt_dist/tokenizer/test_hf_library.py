"""What tiktoken cannot be of Hugging Face's files: the library's ids, whole or cut, or refused with
the reason.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers as oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import BadDataError, TextError
from nanogpt_dist.tokenizer import Tokenizer, bpe, patterns
from nanogpt_dist.tokenizer.hf_library import LibraryTokenizer
from nanogpt_dist.tokenizer.loading import PROBES, open_tokenizer
from nanogpt_dist.tokenizer.tokenizer_config import special

CORPUS = [
    path.read_text(encoding="utf-8") for path in sorted(Path(bpe.__file__).parents[1].glob("*.py"))
]
Content = dict[str, Any]
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BARE = {**LEVEL, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
ODD = [
    "e\u0301",
    "\u1e9b\u0323",
    "Å",
    "Ω",
    "か\u3099",
    "가",
    "\u1100\u1161",
    "<\u0338",
    "ﬁ",
    "\u2000",
    "\u0301",
    "q\u0307\u0323",
]
PIECES = [
    "\n",
    "\r\n",
    " ",
    "  ",
    "   ",
    "\t",
    "\t\t",
    "\u3000",
    "\x1c",
    "\x85",
    "\xa0",
    "a",
    "B",
    "é",
    "7",
    "1234",
    "'s",
]
PIECES += [
    "'LL",
    "don't",
    "!?",
    "return",
    "import",
    "<tool_call>",
    "[MOL]",
    "the ",
    "東京",
    "、",
    "。",
    "ー",
    "мир",
    "हि",
    "🙂",
]
PIECES += [
    "<|endoftext|>",
    "<|im_start|>",
    "²",
    "٣",
    "/",
    ".\n",
    "self.",
    "\u2028",
    "\u200b",
    "\0",
    *ODD,
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=40
)


def split(regex: str) -> Content:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def steps(*given: Content) -> Content:
    return {"type": "Sequence", "pretokenizers": list(given)}


def added(special: bool, *names: str) -> Callable[[Any], None]:
    def add(tokenizer: Any) -> None:
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(list(names))

    return add


def make(special_first: bool = False, *adds: Callable[[Any], None], **change: Any) -> Content:
    """A tokenizer.json learnt from CORPUS; special_first: with its special tokens as ids 0 and
    on.
    """
    trainer = oracle.trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=oracle.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>"] if special_first else [],
        show_progress=False,
    )
    tokenizer = oracle.Tokenizer(oracle.models.BPE())
    tokenizer.pre_tokenizer = oracle.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    for add in adds:
        add(tokenizer)
    content: Content = json.loads(tokenizer.to_str())
    model = {**content["model"], **change.pop("model", {})}
    return {**content, "model": model, **change}


def reversed_merges() -> Content:
    content = make(False, added(True, "<|endoftext|>"))
    content["model"]["merges"].reverse()
    return content


def without_a_merge() -> Content:
    content = make(False, added(True, "<|endoftext|>"), model={"ignore_merges": False})
    del content["model"]["merges"][-100::7]
    return content


SHAPES: dict[str, Callable[[], Content]] = {
    "qwen2": lambda: make(
        False,
        added(True, "<|endoftext|>", "<|im_start|>"),
        added(False, "<tool_call>", "</tool_call>"),
        normalizer={"type": "NFC"},
        pre_tokenizer=steps(split(patterns.QWEN2.text), BARE),
    ),
    "llama3": lambda: make(
        False,
        added(True, "<|begin_of_text|>", "<|end_of_text|>"),
        pre_tokenizer=steps(split(patterns.LLAMA3.text), BARE),
        model={"ignore_merges": True},
    ),
    "gpt-neox": lambda: make(
        False,
        added(True, "<|endoftext|>", "<|padding|>"),
        added(False, *(" " * n for n in range(24, 1, -1))),
        normalizer={"type": "NFC"},
    ),
    "phi": lambda: make(
        False,
        added(True, "<|endoftext|>"),
        added(False, *(" " * n for n in range(9, 1, -1)), "\t\t\t", "\t\t"),
    ),
    "smollm": lambda: make(True, pre_tokenizer=steps(DIGITS, LEVEL)),
    "deepseek": lambda: make(
        True,
        pre_tokenizer=steps(
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split(r"[一-龥]+"),
            split(r"\p{N}"),
            BARE,
        ),
    ),
    "falcon": lambda: make(
        True,
        pre_tokenizer=steps(
            {"type": "Punctuation", "behavior": "Contiguous"},
            LEVEL,
            DIGITS,
            split("[0-9][0-9][0-9]"),
        ),
    ),
    "gpt-4": lambda: make(
        False, added(True, "<|endoftext|>"), pre_tokenizer=steps(split(patterns.CL100K.text), BARE)
    ),
    "molecules": lambda: make(False, added(False, "[MOL]"), added(True, "<|endoftext|>")),
    "strip": lambda: make(
        False,
        lambda t: t.add_tokens(
            [oracle.AddedToken("[MOL]", rstrip=True, lstrip=True, single_word=True)]
        ),
    ),
    "reversed merges": reversed_merges,
    "words without a merge": without_a_merge,
}
WHOLE = {"deepseek", "falcon", "gpt-4", "strip"}  # encoded in one part


@pytest.fixture(scope="module", params=SHAPES)
def pair(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Tokenizer, Any]:
    """Ours and the library's, special tokens' names in a text being ordinary text."""
    content = SHAPES[request.param]()
    path = tmp_path_factory.mktemp("files") / "t.json"
    path.write_text(json.dumps(content))
    theirs = oracle.Tokenizer.from_str(json.dumps(content))
    theirs.encode_special_tokens = True
    return request.param, open_tokenizer(str(path)), theirs


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT, size=st.integers(1, 12))
def test_ids_are_the_librarys(pair: tuple[str, Tokenizer, Any], text: str, size: int) -> None:
    _, ours, theirs = pair
    expected = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text).tolist() == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanogpt_dist.tokenizer.tokenizer.PIECE_CHARS", size)
        pieces = list(ours.pieces(text))
    assert "".join(pieces) == text
    assert [number for piece in pieces for number in ours.encode(piece).tolist()] == expected


def test_real_text_has_the_librarys_ids_whether_cut_or_not(
    pair: tuple[str, Tokenizer, Any],
) -> None:
    shape, ours, theirs = pair
    assert ours.cuttable == (shape not in WHOLE)
    assert isinstance(ours, LibraryTokenizer) == (shape != "llama3")
    for text in [*CORPUS[:8], *PROBES]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nanogpt_dist.tokenizer.tokenizer.PIECE_CHARS", 300)
            ids = ours.encode(text).tolist()
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        if shape != "strip":
            normalized = theirs.normalizer.normalize_str(text) if theirs.normalizer else text
            assert ours.decode(ids) == normalized
            assert ours.byte_lengths()[ids].sum() == len(normalized.encode())


def test_what_is_saved_is_loaded(pair: tuple[str, Tokenizer, Any], tmp_path: Path) -> None:
    shape, ours, _ = pair
    ours.save(tmp_path / "tokenizer.json")
    loaded = tokenizers.load(tmp_path / "tokenizer.json")
    assert loaded.to_json() == ours.to_json()
    assert (loaded.fingerprint, loaded.eot_id, loaded.n_vocab) == (
        ours.fingerprint,
        ours.eot_id,
        ours.n_vocab,
    )
    assert loaded.probe() == ours.probe()
    assert (ours.eot_id is None) == (shape == "strip")


@pytest.fixture
def molecules(tmp_path: Path) -> LibraryTokenizer:
    (tmp_path / "mol.json").write_text(json.dumps(SHAPES["molecules"]()))
    opened = open_tokenizer(str(tmp_path / "mol.json"))
    assert isinstance(opened, LibraryTokenizer)
    return opened


def test_an_end_of_text_that_is_id_0_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(SHAPES["smollm"]()))
    ours = open_tokenizer(str(tmp_path / "t.json"))
    assert (ours.eot_id, ours.stop_ids, ours.byte_lengths()[0], ours.decode([0])) == (
        0,
        {0},
        0,
        "<|endoftext|>",
    )
    assert 0 not in ours.encode("<|endoftext|>")


def test_ids_that_nothing_has_are_told(molecules: LibraryTokenizer) -> None:
    with pytest.raises(
        BadDataError, match="id 902 is not in tokenizer mol, whose ids are 0 to 901"
    ):
        molecules.decode([902])


def test_half_of_a_surrogate_pair_is_told(molecules: LibraryTokenizer) -> None:
    with pytest.raises(TextError, match=r"U\+D800"):
        molecules.encode("a\ud800")


def test_a_document_that_cannot_be_cut_has_a_limit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "t.json").write_text(json.dumps(SHAPES["deepseek"]()))
    ours = open_tokenizer(str(tmp_path / "t.json"))
    monkeypatch.setattr(patterns, "MAX_UNBROKEN", 100)
    assert list(ours.pieces(iter(["a" * 50, "b" * 50]))) == ["a" * 50 + "b" * 50]
    with pytest.raises(
        TextError, match="more than 100 characters in one document, which t cannot encode in parts"
    ):
        list(ours.pieces("a" * 101))


def test_a_word_of_text_that_is_special_is_refused(tmp_path: Path) -> None:
    content = make(model={"ignore_merges": True})
    content["added_tokens"] = [special("self", content["model"]["vocab"]["self"])]
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(BadDataError, match="special token 'self' is a word of ordinary text"):
        open_tokenizer(str(tmp_path / "t.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"library": None},
        {"library": {}},
        {"library": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}},
        {"end_of_text": 7},
        {"name": "a b"},
        {"stops": 3},
        {"end_of_text": None},
    ],
)
def test_a_damaged_file_is_told(
    molecules: LibraryTokenizer,
    change: Content,
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({**json.loads(molecules.to_json()), **change}))
    with pytest.raises(BadDataError, match="make it again"):
        tokenizers.load(path)
