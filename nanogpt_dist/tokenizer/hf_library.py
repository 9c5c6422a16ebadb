"""A byte-level BPE that tiktoken cannot be, encoded by Hugging Face's library.

That is slower.

Merges out of the order of the ids, words added to the vocabulary, an NFC normalizer, digits cut on
their own, special tokens in front: the ids are those of `tokenizers` without special tokens' names
in the text, which is ordinary text.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from nanogpt_dist.errors import BadDataError, TextError, clipped
from nanogpt_dist.tokenizer import bpe, patterns
from nanogpt_dist.tokenizer.proving import check_size, panics_told, regexes
from nanogpt_dist.tokenizer.tokenizer import FORMAT, MAX_ID, VERSION, Tokenizer

# Pre-tokenizers that keep every character. A Split may drop what it finds: see _steps.
LOSSLESS = {"ByteLevel", "Split", "Digits", "Punctuation"}
# Splits that end at a digit or next to one whatever stands around: they hide no border.
DIGITS = {r"\d", r"\d+", r"\d{1,3}", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"}
# Without look-around behind a line's end, which an added token may cover, and not in runs of white
# space, which digits end. No character on the left of it composes with one on the right: NFC sees
# the same in both parts.
BORDER = re.compile(f"[^{patterns.SPACE}](?=[{patterns._IN_LINE}])|{patterns._BORDERS[-1]}")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class LibraryTokenizer(Tokenizer):
    """A Tokenizer whose special tokens may have any ids.

    In `tokens` nothing stands in their places, nor in gaps.
    """

    def __init__(
        self,
        name: str,
        content: Mapping[str, Any],
        end_of_text: str | None,
        stops: Sequence[str] = (),
    ) -> None:
        """content: of a tokenizer.json.

        Raises BadDataError where its ids are not those of bytes.
        """
        self.content = _plain(content)
        added = {token["content"]: token for token in self.content["added_tokens"]}
        specials = {name: token["id"] for name, token in added.items() if token["special"]}
        words = {name: token["id"] for name, token in added.items() if not token["special"]}
        super().__init__(
            name,
            "library",
            _tokens(self.content["model"]["vocab"], specials, words),
            None,
            specials,
            end_of_text,
            stops,
        )
        self.pattern = patterns.Pattern("", "", BORDER if _has_borders(self.content) else None)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the end of text and all of the content that decides ids and bytes."""
        rule = [FORMAT, 1, self.kind, self.end_of_text, self.content]
        return hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()

    def pieces(self, text: str | Iterable[str]) -> Iterator[str]:
        """As Tokenizer.pieces.

        A text that has to stay whole may not be longer than a word without an end.
        """
        if self.cuttable:
            yield from super().pieces(text)
            return
        whole = ""
        for chunk in (text,) if isinstance(text, str) else text:
            whole += chunk
            if len(whole) > patterns.MAX_UNBROKEN:
                most = f"{patterns.MAX_UNBROKEN:,} characters"
                raise TextError(
                    f"more than {most} in one document, which {self.name} cannot encode in parts; "
                    "cut it"
                )
        if whole:
            yield whole

    def to_json(self) -> bytes:
        """The bytes of tokenizer.json, as `load` reads it; the same for the same tokenizer."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "kind": self.kind,
            "end_of_text": self.end_of_text,
            **({"stops": self.stops} if self.stops else {}),
            "fingerprint": self.fingerprint,
            "library": self.content,
        }
        return json.dumps(content, indent=0).encode() + b"\n"

    def library_ids(self, text: str) -> list[int]:
        """The ids of `text`, encoded whole."""
        with panics_told():
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
            return ids

    def _ids(self, text: str) -> np.ndarray:
        text.encode()  # raises UnicodeEncodeError
        return np.array(self.library_ids(text), self.dtype)

    @cached_property
    def _library(self) -> Any:
        library = read_by_library(self.content)
        library.encode_special_tokens = True  # as ordinary text
        return library


def read_by_library(content: Mapping[str, Any]) -> Any:
    """A `tokenizers.Tokenizer`. Raises BadDataError for what the library does not read."""
    from tokenizers import Tokenizer as Library

    steps = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
    check_size(text for step in steps for text in regexes(content.get(step)))
    try:
        with panics_told():
            return Library.from_str(json.dumps(content))
    except BadDataError:
        raise
    except Exception as error:  # the library has no other
        raise BadDataError(
            f"Hugging Face's tokenizers cannot read it ({clipped(str(error), 40)})"
        ) from None


@panics_told()
def from_library(
    name: str,
    content: Mapping[str, Any],
    end_of_text: str | None,
    stops: Sequence[str],
    probes: Iterable[str],
) -> LibraryTokenizer:
    """The tokenizer in a tokenizer.json, tested on `probes`. Raises BadDataError.

    Its ids stand for the bytes of the text, its added tokens have the ids that the file names, and
    no text gives a special token.
    """
    _check(content)
    tokenizer = LibraryTokenizer(name, content, end_of_text, stops)
    library = tokenizer._library
    for token in tokenizer.content["added_tokens"]:
        if library.token_to_id(token["content"]) != token["id"]:
            raise BadDataError(
                f"its added token {ascii(token['content'])[:30]} has another id to the library"
            )
    for special, number in tokenizer.specials.items():
        if number in tokenizer.library_ids(special):
            raise BadDataError(
                f"its special token {ascii(special)[:30]} is a word of ordinary text, too"
            )
    for probe in probes:
        expected = library.normalizer.normalize_str(probe) if library.normalizer else probe
        if tokenizer.decode(tokenizer.library_ids(probe)) != expected:
            raise BadDataError(
                f"its tokens do not give back {re.sub(r'[^ -~]', '?', probe[:20])!r} …"
            )
    return tokenizer


def _check(content: Mapping[str, Any]) -> None:
    """Check that it is a byte-level BPE whose steps keep the text.

    Raises BadDataError with the first reason against it.
    """
    model = content["model"]
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise BadDataError(f"it is no byte-level BPE but {str(model.get('type'))[:20]}")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise BadDataError(f"its model has {setting}")
    normalizers = _listed(content.get("normalizer"), "normalizers")
    odd = next(
        (str(step.get("type"))[:20] for step in normalizers if step.get("type") != "NFC"), None
    )
    if odd:
        raise BadDataError(f"its normalizer is {odd}; of these only NFC is read")
    steps = _steps(content)
    odd = next(
        (str(step.get("type"))[:20] for step in steps if step.get("type") not in LOSSLESS), None
    )
    if odd or any(step.get("behavior") == "Removed" for step in steps):
        raise BadDataError(
            f"its pre-tokenizer has {odd or 'a Split that removes'}, which does not keep the text"
        )
    levels = [step for step in steps if step["type"] == "ByteLevel"]
    if len(levels) != 1 or levels[0].get("add_prefix_space", True):
        raise BadDataError("its pre-tokenizer is not ByteLevel without a space in front")


def _listed(given: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a Sequence, or the one step that it is, or none."""
    if not given:
        return []
    return list(given[name]) if given.get("type") == "Sequence" else [given]


def _steps(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _listed(content.get("pre_tokenizer"), "pretokenizers")


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the ids, in one form: no truncation, padding or template, merges as pairs."""
    model = dict(content["model"])
    model["merges"] = [
        pair.split(" ") if isinstance(pair, str) else list(pair) for pair in model["merges"]
    ]
    added = [
        {
            "id": token["id"],
            "content": token["content"],
            **{flag: bool(token.get(flag)) for flag in FLAGS},
        }
        for token in sorted(content.get("added_tokens") or [], key=lambda token: token["id"])
    ]
    nothing = {"truncation": None, "padding": None, "post_processor": None}
    kept = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")}
    return {"version": "1.0", **nothing, "added_tokens": added, **kept, "model": model}


def _tokens(
    vocab: Mapping[str, int],
    specials: Mapping[str, int],
    words: Mapping[str, int],
) -> list[bytes]:
    """The bytes of each id; none for a special token and for an unused id."""
    ordinary = {
        token: number
        for token, number in vocab.items()
        if token not in specials and token not in words
    }
    numbers = [*ordinary.values(), *specials.values(), *words.values()]
    if not all(type(number) is int and 0 <= number < MAX_ID for number in numbers):
        raise BadDataError("its ids are not whole numbers from 0")
    if len(set(numbers)) != len(numbers):
        raise BadDataError("two of its tokens have the same id")
    tokens = [b""] * (max(numbers, default=-1) + 1)
    try:
        for token, number in ordinary.items():
            tokens[number] = bpe.from_printable(token)
    except KeyError:
        raise BadDataError(f"its token {ascii(token)[:30]} is not bytes") from None
    if not {bytes([i]) for i in range(256)}.issubset(tokens):
        raise BadDataError("not every single byte has an id, so some text could not be encoded")
    for word, number in words.items():
        tokens[number] = word.encode()
    return tokens


def _has_borders(content: Mapping[str, Any]) -> bool:
    """Whether a pre-token ends at each BORDER, and no added token is found across one."""
    *before, last = _steps(content)
    known = [pattern.text for pattern in (patterns.LLAMA3, patterns.QWEN2, patterns.O200K)]
    split = [step.get("pattern", {}).get("Regex") for step in before if step["type"] == "Split"]
    told = [
        step
        for step in before
        if step["type"] == "Digits" or step.get("pattern", {}).get("Regex") in DIGITS
    ]
    whole = [regex for regex in split if regex in known]
    if last["type"] != "ByteLevel" or len(told) + len(whole) != len(before):
        return False
    if any(step.get("invert") or step.get("behavior", "Isolated") != "Isolated" for step in before):
        return False
    if not (whole or last.get("use_regex", True)):
        return False
    return not any(
        token["rstrip"] or BORDER.search(token["content"]) for token in content["added_tokens"]
    )
