"""Text to token ids and back: GPT-2's BPE, a learnt one, characters, or plain bytes.

All are one class: a list of byte strings, the ordinary token of each id, and special tokens behind
them, of which one is end of text, except for characters. What differs is only how text is cut into
those tokens.
"""

import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nanogpt_dist.errors import BadDataError, TextError, UsageError
from nanogpt_dist.storage.durable import write_atomic
from nanogpt_dist.tokenizer import bpe, patterns, proving, splintr

if TYPE_CHECKING:
    import tiktoken

Kind = Literal["byte", "char", "bpe", "library"]

END_OF_TEXT = "<|endoftext|>"
FORMAT, VERSION = "nanogpt-tokenizer", 2
MAX_ID = 1 << 24
MAX_BPE = 1_000_000  # ids of a vocabulary trained here
PIECE_CHARS = 1 << 20  # longer text is cut, where that does not change its ids

PROBE = (
    "Hello, world! It's 1984: naïve café, 東京 🙂.\n\n\tdef f(x):    return x ** 2  # "
    "<|endoftext|>\r\n"
)
# Letters, marks, contractions, digits, all kinds of space: what two patterns would cut in different
# ways.
PROBES = (
    PROBE,
    "I'LL we'll 1234567 a1b2\t\tx \n\n  y\r\n\r\nz  .\n ...!\n\u3000\u00a0q  ",
    "日本語、テスト。Ünïcödé ﬁ ǅ ² ½ ٣",
)


def safe_name(text: str) -> str:
    """A file's or folder's name as the name of a tokenizer, which `load` reads back."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:80]


def id_type(n_vocab: int) -> np.dtype:
    """How an id is stored: uint16, or uint32 for vocabularies above 65,536; little-endian."""
    return np.dtype("<u2" if n_vocab <= 65_536 else "<u4")


class Tokenizer:
    """A vocabulary: ids 0 … len(tokens)-1 are `tokens`, byte strings; then come `specials`.

    The specials may leave gaps.

    eot_id: of end of text, the special token called `end_of_text`; None: there is none. n_vocab:
    the largest id + 1. stops: other special tokens that end a sample, as a chat's turn does.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        tokens: Sequence[bytes],
        pattern: str | None = None,
        specials: Mapping[str, int] | None = None,
        end_of_text: str | None = END_OF_TEXT,
        stops: Sequence[str] = (),
    ) -> None:
        """pattern: of a bpe, by default GPT-2's; specials: by default end of text alone.

        End of text then has the next id.

        Raises BadDataError where `tokens` or `specials` cannot be a vocabulary of that kind.
        """
        self.name, self.kind, self.tokens = name, kind, list(tokens)
        self.pattern = patterns.pattern_of(pattern or patterns.GPT2.text) if kind == "bpe" else None
        usual = {} if kind == "char" else {END_OF_TEXT: len(self.tokens)}
        self.specials = dict(usual if specials is None else specials)
        self.end_of_text = end_of_text if end_of_text in self.specials else None
        self.stops = [name for name in stops if name in self.specials and name != self.end_of_text]
        _check_tokens(self)
        self.eot_id = self.specials[self.end_of_text] if self.end_of_text else None
        self.n_vocab = max([len(self.tokens) - 1, *self.specials.values()]) + 1
        self.stop_ids = {
            self.specials[name] for name in [*filter(None, [self.end_of_text]), *self.stops]
        }
        self.dtype = id_type(self.n_vocab)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides ids and bytes; not of the name.

        That is kind, pattern, specials and tokens.
        """
        rule: list[Any] = [
            FORMAT,
            1,
            self.kind,
            self.pattern.text if self.pattern else None,
            self.end_of_text,
        ]
        if self.specials != ({} if self.kind == "char" else {END_OF_TEXT: len(self.tokens)}):
            rule.append(sorted(self.specials.items()))
        digest = hashlib.sha256(json.dumps(rule).encode())
        digest.update(b"".join(len(token).to_bytes(4, "little") + token for token in self.tokens))
        return digest.hexdigest()

    @property
    def cuttable(self) -> bool:
        """Whether a long text is encoded in parts; under a pattern that is not known it is not."""
        return self.pattern is None or self.pattern.border is not None

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, uint16 where n_vocab ≤ 65,536, else uint32.

        The name of end of text in it is ordinary text.

        Raises BadDataError for what has no ids: half of a surrogate pair, a character that is not
        in the vocabulary.
        """
        parts = [self._encode_piece(piece) for piece in self.pieces(text)]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    @property
    def warning(self) -> str:
        """What is odd in how this tokenizer has encoded in this process; mostly ""."""
        return self._encode_pairs.warning if "_encode_pairs" in self.__dict__ else ""

    def pieces(self, text: str | Iterable[str]) -> Iterator[str]:
        """`text` in parts of about a million characters whose ids, joined, are its ids.

        text: may come in chunks, cut anywhere, and then takes no more memory than a few parts.
        Raises BadDataError where a word is too long to be encoded.
        """
        if self.pattern:
            return patterns.cut(text, PIECE_CHARS, self.pattern)
        chunks = (text,) if isinstance(text, str) else text
        return (
            chunk[i : i + PIECE_CHARS]
            for chunk in chunks
            for i in range(0, len(chunk), PIECE_CHARS)
        )

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes that `ids` stand for; special ones by their names.

        Raises BadDataError for an id that is none.
        """
        numbers = (
            (ids if isinstance(ids, np.ndarray) else np.asarray(list(ids), dtype=np.int64))
            .ravel()
            .tolist()
        )
        try:
            return b"".join(map(self._bytes_of.__getitem__, numbers))
        except KeyError as error:
            wrong = f"id {error.args[0]} is not in tokenizer {self.name}"
            raise BadDataError(f"{wrong}, whose ids are 0 to {self.n_vocab - 1}") from None

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text that `ids` stand for; bytes that are not UTF-8 become U+FFFD.

        Raises as decode_bytes.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> np.ndarray:
        """(n_vocab,) int64: UTF-8 bytes of text that each id stands for.

        0 for special ones, which are no text.
        """
        lengths = np.zeros(self.n_vocab, dtype=np.int64)
        lengths[: len(self.tokens)] = [len(token) for token in self.tokens]
        return lengths

    def probe(self) -> list[int]:
        """The ids of a fixed text (of those of its characters that a character vocabulary has).

        Raises BadDataError where a foreign pattern does not come to an end over it.
        """
        if self.kind == "bpe":  # the faster way is not worth building for one text
            try:
                return [int(i) for i in self._encode_by_tiktoken(PROBE)]
            except ValueError:
                raise BadDataError(
                    f"tokenizer {self.name}: its pattern takes for ever over a line of text"
                ) from None
        known = set(self.tokens)
        text = PROBE if self.kind != "char" else "".join(c for c in PROBE if c.encode() in known)
        return [int(i) for i in self.encode(text)]

    def to_json(self) -> bytes:
        """The bytes of tokenizer.json, as `load` reads it; the same for the same tokenizer."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "kind": self.kind,
            "pattern": self.pattern.text if self.pattern else None,
            "specials": self.specials,
            "end_of_text": self.end_of_text,
            **({"stops": self.stops} if self.stops else {}),
            "fingerprint": self.fingerprint,
            "tokens": [binascii.b2a_base64(token, newline=False).decode() for token in self.tokens],
        }
        return json.dumps(content, indent=0).encode() + b"\n"

    def save(self, path: Path) -> None:
        """Write to_json() to `path`, whole or not at all. Raises StorageError."""
        write_atomic(Path(path), self.to_json())

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        tokens = {number: token for number, token in enumerate(self.tokens) if token}
        return tokens | {number: name.encode() for name, number in self.specials.items()}

    def _encode_piece(self, text: str) -> np.ndarray:
        try:
            return self._ids(text)
        except UnicodeEncodeError as error:
            code = f"U+{ord(text[error.start]):04X}"
            raise TextError(
                f"the text holds {code}, half of a surrogate pair, which UTF-8 cannot write"
            ) from None
        except ValueError:
            reason = (
                f"{len(text):,} characters, with a very long run of white space, are too much for "
                f"{self.name}"
            )
            raise TextError(f"{reason}; cut the document or leave it out") from None

    def _ids(self, text: str) -> np.ndarray:
        if self.kind == "char":
            return self._encode_chars(text)
        if self.kind == "byte":
            return np.frombuffer(text.encode(), np.uint8).astype(self.dtype)
        return self._encode_pairs(text).astype(self.dtype)  # cannot wrap: every id is below n_vocab

    @cached_property
    def _encode_pairs(self) -> splintr.SplintrEncoder:
        assert self.pattern is not None
        return splintr.SplintrEncoder(self.tokens, self.pattern, self._encode_by_tiktoken)

    def _encode_by_tiktoken(self, text: str) -> np.ndarray:
        assert self.pattern is not None
        try:
            return self._under(self.pattern.fast, text)
        except UnicodeEncodeError:
            raise
        except ValueError:  # the regular expression gave up
            return self._under(self.pattern.text, text)

    def _under(self, pattern: str, text: str) -> np.ndarray:
        """tiktoken's ids. Raises TextError for a text that a foreign pattern does not cover."""
        if self.cuttable:  # known
            return self._encoding(pattern).encode_to_numpy(text, disallowed_special=())
        wrong = f"the pattern of tokenizer {self.name} does not cut all of a text into words"
        wrong = f"{wrong}; take another tokenizer or leave the document out"
        try:
            with proving.panics_told("tiktoken"):
                ids = self._encoding(pattern).encode_to_numpy(text, disallowed_special=())
        except BadDataError:
            raise TextError(wrong) from None
        if self._lengths[ids].sum() != len(text.encode()):
            raise TextError(wrong)
        return ids

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(token) for token in self.tokens])

    def _encode_chars(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        positions = np.searchsorted(self._code_points, codes).clip(max=len(self._code_points) - 1)
        unknown = codes[self._code_points[positions] != codes]
        if unknown.size:
            char = chr(unknown[0])
            raise TextError(
                f"character {char!r} (U+{unknown[0]:04X}) is not among {self.name}'s {self.n_vocab}"
            )
        return positions.astype(self.dtype)

    @cached_property
    def _code_points(self) -> np.ndarray:
        return np.array([ord(token.decode()) for token in self.tokens], dtype=np.uint32)

    @cache  # noqa: B019  a tokenizer lives as long as its process
    def _encoding(self, pattern: str) -> "tiktoken.Encoding":
        import tiktoken

        return tiktoken.Encoding(
            self.name,
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens=self.specials,
        )


def _check_tokens(tokenizer: Tokenizer) -> None:
    tokens, kind, name = tokenizer.tokens, tokenizer.kind, tokenizer.name
    if kind == "library":  # checked where it is read
        return
    singles = {bytes([i]) for i in range(256)}
    if not tokens or b"" in tokens or len(set(tokens)) != len(tokens):
        raise BadDataError(
            f"tokenizer {name}: tokens must be there, not empty, and different from each other"
        )
    numbers = list(tokenizer.specials.values())
    if len(set(numbers)) != len(numbers) or not all(
        len(tokens) <= number < MAX_ID for number in numbers
    ):
        raise BadDataError(
            f"tokenizer {name}: special tokens need ids of their own, behind the {len(tokens)} "
            "others"
        )
    if kind == "byte" and tokens != sorted(singles):
        raise BadDataError(
            f"tokenizer {name}: a byte tokenizer has the 256 bytes in order, nothing else"
        )
    if kind == "bpe" and not singles.issubset(tokens):
        raise BadDataError(
            f"tokenizer {name}: not every single byte has an id, so some text could not be encoded"
        )
    if tokenizer.pattern and tokenizer.pattern.text not in patterns.KNOWN:
        try:
            proving.check_pattern(tokenizer.pattern.text, PROBE)
        except BadDataError as error:
            raise BadDataError(f"tokenizer {name}: {error}") from None
    if kind == "char":
        try:
            ordered = sorted({char for token in tokens for char in token.decode()})
        except UnicodeDecodeError:
            ordered = []
        if [char.encode() for char in ordered] != tokens:
            raise BadDataError(
                f"tokenizer {name}: a character vocabulary is one character per id, in order"
            )


# ---- where tokenizers come from


def byte() -> Tokenizer:
    """UTF-8 bytes: ids 0-255, end of text 256."""
    return Tokenizer("byte", "byte", [bytes([i]) for i in range(256)])


def char(text: Iterable[str]) -> Tokenizer:
    """The distinct characters of `text` (a string or several) in order.

    Raises BadDataError if there is none.
    """
    chars: set[str] = set()
    for part in text:
        chars.update(part)
    try:
        return Tokenizer("char", "char", [c.encode() for c in sorted(chars)])
    except UnicodeEncodeError as error:
        raise BadDataError(
            f"the text holds U+{ord(error.object[0]):04X}, half of a surrogate pair"
        ) from None


def gpt2() -> Tokenizer:
    """GPT-2's 50,257 ids, rebuilt from the packaged merge list; no network."""
    return Tokenizer("gpt2", "bpe", bpe.gpt2_vocabulary())


def train_bpe(texts: Iterable[str], n_vocab: int) -> Tokenizer:
    """A byte-pair encoding of `n_vocab` ids, end of text included, learnt from `texts`.

    Its pattern is GPT-2's.

    n_vocab ≥ 257. Raises BadDataError where the texts are too few for that many merges.
    """
    model = bpe.train_merges(texts, n_vocab - 1)
    return Tokenizer(f"bpe:{n_vocab}", "bpe", bpe.tokens_by_id(model.get_vocab()))


def bpe_size(spec: str) -> int | None:
    """N where `spec` is `bpe:N`, else None. Raises UsageError for an N that no vocabulary has."""
    if not (match := re.fullmatch(r"bpe:([0-9]+)", spec)):
        return None
    if len(match[1]) > len(str(MAX_BPE)) or not 257 <= int(match[1]) <= MAX_BPE:
        raise UsageError(
            f"{spec[:40]}: bytes and end of text alone are 257 ids; give bpe:257 to bpe:{MAX_BPE}"
        )
    return int(match[1])
