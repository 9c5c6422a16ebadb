"""Tokenizers by name or from a file: ours, tiktoken's, Hugging Face's byte-level BPEs."""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

from nanogpt_dist.errors import (
    BadDataError,
    HubUnavailableError,
    MissingInputError,
    UsageError,
    clipped,
)
from nanogpt_dist.storage.durable import shown
from nanogpt_dist.tokenizer import bpe, patterns
from nanogpt_dist.tokenizer.hf_library import from_library, read_by_library
from nanogpt_dist.tokenizer.proving import panics_told
from nanogpt_dist.tokenizer.tokenizer import (
    END_OF_TEXT,
    FORMAT,
    PROBES,
    Tokenizer,
    bpe_size,
    byte,
    gpt2,
    safe_name,
)
from nanogpt_dist.tokenizer.tokenizer_config import (
    ends_of_text,
    gpt2_files_to_json,
    with_more_tokens,
)
from nanogpt_dist.tokenizer.tokenizer_json import load, parse_object, read_file

TIKTOKEN = ("r50k_base", "cl100k_base", "o200k_base")
# What it is called where no configuration says so, the likeliest first.
ENDS_OF_TEXT = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "<|eot_id|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<EOS>",
    "<|im_end|>",
)
# sha256 of tiktoken's files: the pattern and the special tokens that belong to those ranks.
_FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
RANKS = {
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": (
        patterns.CL100K.text,
        {END_OF_TEXT: 100257, **_FIM, "<|endofprompt|>": 100276},
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": (
        patterns.O200K.text,
        {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
    ),
}
# What no token has that was learnt under GPT-2's pattern: letters at digits, a mark at a letter or
# a line's end.
NOT_GPT2S = re.compile(r"[A-Za-z][0-9]|[0-9][A-Za-z]|[!-&(-/:-@\[-`{-~][A-Za-z\r\n]")
FETCH_S = 120.0


def open_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer that --tokenizer names.

    `gpt2`, `byte`, one of tiktoken's encodings by name, or a file: a tokenizer.json of ours or of
    Hugging Face's library, ranks as tiktoken writes them (then with GPT-2's pattern), or nanoGPT's
    meta.pkl.

    Raises UsageError for `char` and `bpe:N`, which need text; MissingInputError; BadDataError;
    HubUnavailableError.
    """
    if spec in ("gpt2", "byte"):
        return gpt2() if spec == "gpt2" else byte()
    if spec in TIKTOKEN:
        return from_tiktoken(spec)
    if spec == "char" or bpe_size(spec):
        raise UsageError(
            f"{spec} is made from text: type nanogpt prepare CORPUS --tokenizer {spec}"
        )
    path = Path(spec)
    if not path.is_file():
        names = ", ".join(TIKTOKEN)
        raise MissingInputError(
            f"no tokenizer {spec}: give gpt2, byte, char, bpe:N, {names} or a .json, .tiktoken, "
            "meta.pkl"
        )
    name = safe_name(path.stem)
    if path.suffix == ".pkl":
        return from_nanogpt_meta(path)
    if path.suffix == ".tiktoken":
        return _from_ranks_file(path, name)
    if path.suffix == ".model":
        wrong = "a SentencePiece model, or ranks without their pattern, is not read"
        raise BadDataError(f"{shown(path)}: {wrong}; give the model's tokenizer.json")
    content = parse_object(read_file(path))
    if content.get("format") != FORMAT and isinstance(content.get("model"), dict):
        return from_hugging_face(content, name, path.parent, shown(path))
    if path.name == "vocab.json" and (path.parent / "merges.txt").is_file():
        return from_gpt2_files(path.parent)
    return load(path)


def from_gpt2_files(folder: Path) -> Tokenizer:
    """The tokenizer in vocab.json and merges.txt. Raises BadDataError."""
    name = safe_name(folder.resolve().name) or "gpt2"
    return from_hugging_face(gpt2_files_to_json(folder), name, folder, shown(folder / "vocab.json"))


def _from_ranks_file(path: Path, name: str) -> Tokenizer:
    """The ranks in a .tiktoken file.

    It does not name its pattern: known by its sha256, else GPT-2's.
    """
    data = read_file(path)
    pattern, specials = RANKS.get(hashlib.sha256(data).hexdigest(), (None, None))
    if re.search(rb" 50255\n\S+ 50257\n", data):
        wrong = "p50k_base has end of text within its ranks, which is not read"
        raise BadDataError(
            f"{shown(path)}: {wrong}; give gpt2, which has all but its runs of spaces"
        )
    tokens = bpe.parse_ranks(data, shown(path))
    if pattern is None:
        odd = next((token for token in tokens if NOT_GPT2S.search(token.decode("latin-1"))), None)
        named = re.match(r"cl100k|o200k|p50k", path.stem)
        if odd is not None or named:
            why = (
                f"it is called {named[0]}, whose ranks it has not"
                if named
                else f"it has {ascii(odd)[:30]}"
            )
            raise BadDataError(
                f"{shown(path)}: not learnt under GPT-2's pattern ({why}); give a tokenizer.json"
            )
    return Tokenizer(name, "bpe", tokens, pattern, specials)


def from_nanogpt_meta(path: Path) -> Tokenizer:
    """The characters in nanoGPT's meta.pkl, of which nothing is executed.

    Raises as read_plain_pickle().
    """
    from nanogpt_dist.tokenizer.meta_pkl import read_plain_pickle

    meta = read_plain_pickle(path)
    names = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(names, dict) or set(names) != set(range(len(names))):
        raise BadDataError(f"{shown(path)} has no itos of ids 0, 1, 2 …: it is none of nanoGPT's")
    characters = [names[number] for number in range(len(names))]
    if not all(isinstance(character, str) and len(character) == 1 for character in characters):
        raise BadDataError(f"{shown(path)}: its itos does not name one character for each id")
    half = next((c for c in characters if "\ud800" <= c <= "\udfff"), None)
    if half:
        wrong = f"U+{ord(half):04X} in its itos is half of a surrogate pair, no character"
        raise BadDataError(f"{shown(path)}: {wrong}; make it again, with prepare.py")
    return Tokenizer("char", "char", [character.encode() for character in characters])


def from_tiktoken(name: str) -> Tokenizer:
    """One of tiktoken's encodings, from its cache (TIKTOKEN_CACHE_DIR) or its address.

    Raises HubUnavailableError.
    """
    import tiktoken

    fetched: Future[tiktoken.Encoding] = Future()

    def fetch() -> None:
        try:
            fetched.set_result(tiktoken.get_encoding(name))
        except (
            Exception
        ) as error:  # requests' errors, a wrong sha256, a cache that cannot be written
            fetched.set_exception(error)

    Thread(target=fetch, daemon=True).start()  # the download has no time limit of its own
    try:
        encoding = fetched.result(FETCH_S)
    except Exception as error:
        missing = (
            f"{name} is not in TIKTOKEN_CACHE_DIR and cannot be fetched ({type(error).__name__})"
        )
        advice = "set it to a folder with tiktoken's files, or give its .tiktoken file"
        raise HubUnavailableError(f"{missing}; {advice}") from error
    ranks = encoding._mergeable_ranks
    tokens = sorted(ranks, key=ranks.__getitem__)
    return Tokenizer(name, "bpe", tokens, encoding._pat_str, encoding._special_tokens)


def from_hugging_face(content: Mapping[str, Any], name: str, folder: Path, shown: str) -> Tokenizer:
    """The byte-level BPE in a tokenizer.json: as ranks where these are equal, else the library.

    folder: where its configuration lies, which may name the end of text and more tokens. shown: the
    file, for messages.

    Raises BadDataError for any other kind of tokenizer.
    """
    try:
        content = with_more_tokens(folder, content)
        ends = ends_of_text(folder, content)
        names = {token["content"] for token in content["added_tokens"] if token.get("special")}
        ends = ends or [usual for usual in ENDS_OF_TEXT if usual in names][:1]
        end, stops = (ends[0], ends[1:]) if ends else (None, [])
        try:
            return _as_ranks(content, name, end, stops)
        except BadDataError:  # ranks cannot say it
            return from_library(name, content, end, stops, PROBES)
    except BadDataError as error:
        raise BadDataError(f"{shown}: {error}; give another tokenizer") from None
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        wrong = f"it is not laid out as a tokenizer.json ({clipped(str(error), 40)})"
        raise BadDataError(f"{shown}: {wrong}; give another tokenizer") from None


def _as_ranks(
    content: Mapping[str, Any],
    name: str,
    end: str | None,
    stops: Sequence[str],
) -> Tokenizer:
    """A tokenizer.json that is no more than ranks, a pattern and special tokens.

    Proven equal on probing texts.

    Raises BadDataError with what ranks cannot say.
    """
    model = content["model"]
    if (
        model.get("type") != "BPE"
        or content.get("normalizer")
        or not isinstance(model.get("vocab"), dict)
    ):
        raise BadDataError("a byte-level BPE without normalizer is needed")
    odd = [
        setting
        for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if model.get(setting)
    ]
    if odd:
        raise BadDataError(f"its model has {odd[0]}")
    for token in content["added_tokens"]:
        if not token.get("special"):
            raise BadDataError(
                f"its added token {ascii(token['content'])[:30]} is not special: it is found in "
                "text"
            )
    specials = {token["content"]: token["id"] for token in content["added_tokens"]}
    ids = {token: number for token, number in model["vocab"].items() if token not in specials}
    if sorted(ids.values()) != list(range(len(ids))):
        raise BadDataError("its ids are not 0, 1, 2 … with special tokens behind")
    try:
        tokens = bpe.tokens_by_id(ids)
    except KeyError:
        raise BadDataError("its tokens are not bytes") from None
    _check_merges(tokens, ids, model)
    tokenizer = Tokenizer(
        name, "bpe", tokens, _pattern(content.get("pre_tokenizer")), specials, end, stops
    )
    _prove(tokenizer, content)
    return tokenizer


def _check_merges(tokens: list[bytes], ids: Mapping[str, int], model: Mapping[str, Any]) -> None:
    """Check that merges are in the order of the ids and make every token.

    Then each pair's rank is its token's id.
    """
    pairs = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]
    ]
    made = [ids.get("".join(pair), -1) for pair in pairs]
    if made != sorted(made) or -1 in made:
        raise BadDataError("its merges do not come in the order of its ids")
    given = set(pairs)
    usual = [(bpe.to_printable(a), bpe.to_printable(b)) for a, b in bpe.merges_of(tokens)]
    lacking = next((pair for pair in usual if pair not in given), None)
    alone = len(usual) < sum(len(token) > 1 for token in tokens) and not model.get("ignore_merges")
    if lacking or alone:
        word = f" for {ascii(''.join(lacking))[:30]}" if lacking else ""
        raise BadDataError(f"a word of its vocabulary has no merge{word}")


def _generated(tokens: list[bytes]) -> list[str]:
    """Texts of tokens in a random but fixed order: what brings out merges that overlap."""
    chance = random.Random(1)
    return [b"".join(chance.choices(tokens, k=200)).decode(errors="replace") for _ in range(50)]


def _pattern(given: Any) -> str:
    """The pattern of a pre-tokenizer: GPT-2's, built in, or one that a Split names."""
    steps = given.get("pretokenizers", [given]) if isinstance(given, dict) else []
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        raise BadDataError("its pre-tokenizer is not ByteLevel without a space in front")
    if steps[-1].get("use_regex", True):
        if len(steps) == 1:
            return patterns.GPT2.text
    elif len(steps) == 2 and steps[0].get("type") == "Split" and not steps[0].get("invert"):
        pattern = steps[0].get("pattern", {})
        regex = pattern.get("Regex")
        if steps[0].get("behavior") == "Isolated" and isinstance(regex, str):
            if re.search(r"(?:[+*?]|\{[\d,]+\})\+", regex):
                raise BadDataError(
                    "its pattern has possessive quantifiers, which the two libraries read in two "
                    "ways"
                )
            return regex
    raise BadDataError("its pre-tokenizer is more than one pattern")


def _prove(tokenizer: Tokenizer, content: Mapping[str, Any]) -> None:
    """Check that both encode the probes equally.

    Each special token's name aside, which is ordinary text here.
    """
    plain: dict[str, Any] = {
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    oracle = read_by_library({**content, **plain})
    for probe in (*PROBES, *_generated(tokenizer.tokens)):
        with panics_told():
            theirs = oracle.encode(probe, add_special_tokens=False).ids
        if tokenizer.encode(probe).tolist() != theirs:
            raise BadDataError(
                f"it encodes {re.sub(r'[^ -~]', '?', probe[:20])!r} … in another way than tiktoken"
            )
