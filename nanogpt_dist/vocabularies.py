"""Tokenizers by name or out of a file: ours, tiktoken's encodings, byte-level BPEs of Hugging Face's tokenizer.json."""

import hashlib
import json
import random
import re
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

from nanogpt_dist import bpe, patterns
from nanogpt_dist.errors import BadDataError, HubUnavailableError, MissingInputError, UsageError, clipped
from nanogpt_dist.storage.durable import shown
from nanogpt_dist.tokenizer import (
    END_OF_TEXT,
    FORMAT,
    PROBE,
    Tokenizer,
    bpe_size,
    byte,
    gpt2,
    load,
    named,
    parse_object,
    read_file,
)

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
# What no token has that was learnt under GPT-2's pattern: letters at digits, a mark at a letter or a line's end.
NOT_GPT2S = re.compile(r"[A-Za-z][0-9]|[0-9][A-Za-z]|[!-&(-/:-@\[-`{-~][A-Za-z\r\n]")
# Letters, marks, contractions, digits, all kinds of space: what two patterns would cut in different ways.
PROBES = (
    PROBE,
    "I'LL we'll 1234567 a1b2\t\tx \n\n  y\r\n\r\nz  .\n ...!\n\u3000\u00a0q  ",
    "日本語、テスト。Ünïcödé ﬁ ǅ ² ½ ٣",
)
FETCH_S = 120.0


def open_tokenizer(spec: str) -> Tokenizer:
    """`gpt2`, `byte`, one of tiktoken's encodings by name, or a file: a tokenizer.json of ours or of Hugging Face's
    library, ranks as tiktoken writes them (then with GPT-2's pattern), or nanoGPT's meta.pkl.

    Raises UsageError for `char` and `bpe:N`, which need text; MissingInputError; BadDataError; HubUnavailableError.
    """
    if spec in ("gpt2", "byte"):
        return gpt2() if spec == "gpt2" else byte()
    if spec in TIKTOKEN:
        return of_tiktoken(spec)
    if spec == "char" or bpe_size(spec):
        raise UsageError(f"{spec} is made from text: type nanogpt prepare CORPUS --tokenizer {spec}")
    path = Path(spec)
    if not path.is_file():
        names = ", ".join(TIKTOKEN)
        raise MissingInputError(
            f"no tokenizer {spec}: give gpt2, byte, char, bpe:N, {names} or a .json, .tiktoken, meta.pkl"
        )
    name = named(path.stem)
    if path.suffix == ".pkl":
        return of_nanogpt_meta(path)
    if path.suffix == ".tiktoken":
        return _of_ranks(path, name)
    if path.suffix == ".model":
        wrong = "a SentencePiece model, or ranks without their pattern, is not read"
        raise BadDataError(f"{shown(path)}: {wrong}; give the model's tokenizer.json")
    content = parse_object(read_file(path))
    if content.get("format") != FORMAT and isinstance(content.get("model"), dict):
        return of_hugging_face(content, name, shown(path), end_in_configuration(path.parent, content))
    return load(path)


def _of_ranks(path: Path, name: str) -> Tokenizer:
    """The ranks in a .tiktoken file, which does not name its pattern: known by its sha256, else GPT-2's."""
    data = read_file(path)
    pattern, specials = RANKS.get(hashlib.sha256(data).hexdigest(), (None, None))
    tokens = bpe.parse_ranks(data, shown(path))
    if pattern is None:
        odd = next((token for token in tokens if NOT_GPT2S.search(token.decode("latin-1"))), None)
        named = re.match(r"cl100k|o200k|p50k", path.stem)
        if odd is not None or named:
            why = f"it is called {named[0]}, whose ranks it has not" if named else f"it has {ascii(odd)[:30]}"
            raise BadDataError(f"{shown(path)}: not learnt under GPT-2's pattern ({why}); give a tokenizer.json")
    return Tokenizer(name, "bpe", tokens, pattern, specials)


def end_in_configuration(folder: Path, content: Mapping[str, Any]) -> str | None:
    """The end of text that the files beside a tokenizer.json name: generation_config, config, tokenizer_config."""

    def beside(name: str) -> Any:
        return parse_object(read_file(folder / name)) if (folder / name).is_file() else {}

    added = content.get("added_tokens")
    specials = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    names = {token.get("id"): token.get("content") for token in specials if type(token.get("id")) is int}
    eos = beside("tokenizer_config.json").get("eos_token")
    end = eos.get("content") if isinstance(eos, dict) else eos
    for file in ("generation_config.json", "config.json"):
        given = beside(file).get("eos_token_id")
        ends = [names[i] for i in (given if isinstance(given, list) else [given]) if type(i) is int and i in names]
        if ends:
            return str(end if end in ends else ends[0])
    return end if isinstance(end, str) and end in names.values() else None


def of_nanogpt_meta(path: Path) -> Tokenizer:
    """The characters in nanoGPT's meta.pkl, which is read without executing anything. Raises as read_plain()."""
    from nanogpt_dist.lineage.pickles import read_plain

    meta = read_plain(path)
    names = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(names, dict) or sorted(names) != list(range(len(names))):
        raise BadDataError(f"{shown(path)} has no itos of ids 0, 1, 2 …: it is none of nanoGPT's")
    characters = [names[number] for number in range(len(names))]
    if not all(isinstance(character, str) and len(character) == 1 for character in characters):
        raise BadDataError(f"{shown(path)}: its itos does not name one character for each id")
    return Tokenizer("char", "char", [character.encode() for character in characters])


def of_tiktoken(name: str) -> Tokenizer:
    """One of tiktoken's encodings, from its cache (TIKTOKEN_CACHE_DIR) or its address. Raises HubUnavailableError."""
    import tiktoken

    fetched: Future[tiktoken.Encoding] = Future()

    def fetch() -> None:
        try:
            fetched.set_result(tiktoken.get_encoding(name))
        except Exception as error:  # requests' errors, a wrong sha256, a cache that cannot be written
            fetched.set_exception(error)

    Thread(target=fetch, daemon=True).start()  # the download has no time limit of its own
    try:
        encoding = fetched.result(FETCH_S)
    except Exception as error:
        missing = f"{name} is not in TIKTOKEN_CACHE_DIR and cannot be fetched ({type(error).__name__})"
        advice = "set it to a folder with tiktoken's files, or give its .tiktoken file"
        raise HubUnavailableError(f"{missing}; {advice}") from error
    ranks = encoding._mergeable_ranks
    tokens = sorted(ranks, key=ranks.__getitem__)
    return Tokenizer(name, "bpe", tokens, encoding._pat_str, encoding._special_tokens)


def of_hugging_face(content: Mapping[str, Any], name: str, shown: str, end: str | None = None) -> Tokenizer:
    """The byte-level BPE in a tokenizer.json; proven equal on probing texts. shown: the file, for messages.

    end: what its configuration calls the end of text; None: one of the usual names.

    Raises BadDataError for any other kind of tokenizer.
    """
    try:
        return _of_hugging_face(content, name, shown, end)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise _other(shown, f"it is not laid out as a tokenizer.json ({clipped(str(error), 40)})") from None


def _of_hugging_face(content: Mapping[str, Any], name: str, shown: str, end: str | None) -> Tokenizer:
    model = content["model"]
    if model.get("type") != "BPE" or content.get("normalizer") or not isinstance(model.get("vocab"), dict):
        raise _other(shown, "a byte-level BPE without normalizer is needed")
    odd = [setting for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(setting)]
    if odd:
        raise _other(shown, f"its model has {odd[0]}")
    for token in content.get("added_tokens") or []:
        if not token.get("special"):
            raise _other(
                shown, f"its added token {ascii(token['content'])[:30]} is not special, so it is found in text"
            )
    specials = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    ids = {token: number for token, number in model["vocab"].items() if token not in specials}
    if sorted(ids.values()) != list(range(len(ids))):
        raise _other(shown, "its ids are not 0, 1, 2 … with special tokens behind")
    try:
        tokens = bpe.vocabulary_of(ids)
    except KeyError:
        raise _other(shown, "its tokens are not bytes") from None
    _check_merges(tokens, ids, model, shown)
    end_of_text = end if end in specials else next((usual for usual in ENDS_OF_TEXT if usual in specials), None)
    pattern = _pattern(content.get("pre_tokenizer"), shown)
    tokenizer = Tokenizer(name, "bpe", tokens, pattern, specials, end_of_text)
    _prove(tokenizer, content, shown)
    return tokenizer


def _check_merges(tokens: list[bytes], ids: Mapping[str, int], model: Mapping[str, Any], shown: str) -> None:
    """Its merges come in the order of the ids and make every token, as if each pair's rank were its token's id."""
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    made = [ids.get("".join(pair), -1) for pair in pairs]
    if made != sorted(made) or -1 in made:
        raise _other(shown, "its merges do not come in the order of its ids")
    given = set(pairs)
    usual = [(bpe.to_printable(a), bpe.to_printable(b)) for a, b in bpe.merges_of(tokens)]
    lacking = next((pair for pair in usual if pair not in given), None)
    alone = len(usual) < sum(len(token) > 1 for token in tokens) and not model.get("ignore_merges")
    if lacking or alone:
        word = f" for {ascii(''.join(lacking))[:30]}" if lacking else ""
        raise _other(shown, f"a word of its vocabulary has no merge{word}")


def _generated(tokens: list[bytes]) -> list[str]:
    """Texts of tokens in a random but fixed order: what brings out merges that overlap."""
    chance = random.Random(1)
    return [b"".join(chance.choices(tokens, k=200)).decode(errors="replace") for _ in range(50)]


def _pattern(given: Any, shown: str) -> str:
    """The pattern of a pre-tokenizer: GPT-2's, built in, or one that a Split names."""
    steps = given.get("pretokenizers", [given]) if isinstance(given, dict) else []
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        raise _other(shown, "its pre-tokenizer is not ByteLevel without a space in front")
    if steps[-1].get("use_regex", True):
        if len(steps) == 1:
            return patterns.GPT2.text
    elif len(steps) == 2 and steps[0].get("type") == "Split" and not steps[0].get("invert"):
        pattern = steps[0].get("pattern", {})
        regex = pattern.get("Regex")
        if steps[0].get("behavior") == "Isolated" and isinstance(regex, str):
            if re.search(r"(?:[+*?]|\{[\d,]+\})\+", regex):
                raise _other(shown, "its pattern has possessive quantifiers, which the two libraries read in two ways")
            return regex
    raise _other(shown, "its pre-tokenizer is more than one pattern")


def _prove(tokenizer: Tokenizer, content: Mapping[str, Any], shown: str) -> None:
    """Both encode the probes equally, each special token's name aside, which is ordinary text here."""
    from tokenizers import Tokenizer as Oracle

    plain: dict[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    try:
        oracle = Oracle.from_str(json.dumps({**content, **plain}))
    except Exception as error:  # the library has no other
        raise _other(shown, f"Hugging Face's tokenizers cannot read it ({clipped(str(error), 40)})") from None
    for probe in (*PROBES, *_generated(tokenizer.tokens)):
        theirs = oracle.encode(probe, add_special_tokens=False).ids
        if tokenizer.encode(probe).tolist() != theirs:
            raise _other(shown, f"it encodes {re.sub(r'[^ -~]', '?', probe[:20])!r} … in another way than tiktoken")


def _other(shown: str, reason: str) -> BadDataError:
    return BadDataError(f"{shown}: {reason}; give another tokenizer, or ranks as a .tiktoken file")
