"""Text to token ids and back: GPT-2's byte-pair encoding, one trained on the spot, characters, or plain bytes.

All are one class: a list of byte strings, the ordinary token of each id, plus, except for characters, an end-of-text id
after them. What differs is only how text is cut into those tokens.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from nanogpt_dist import bpe
from nanogpt_dist.errors import BadDataError, MissingInputError, UsageError
from nanogpt_dist.storage.durable import shown, told, write_atomic

if TYPE_CHECKING:
    import tiktoken

Kind = Literal["byte", "char", "bpe"]

END_OF_TEXT = "<|endoftext|>"
FORMAT, VERSION = "nanogpt-tokenizer", 1
MAX_FILE_BYTES = 64 << 20  # of a tokenizer file; 200,000 ids need 3 MB
MAX_BPE = 1_000_000  # ids of a vocabulary trained here
NAME = re.compile(r"[A-Za-z0-9._:-]{1,80}")  # of a tokenizer: it is shown in messages
PIECE_CHARS = 1 << 20  # longer text is cut, where that does not change its ids

PROBE = "Hello, world! It's 1984: naïve café, 東京 🙂.\n\n\tdef f(x):    return x ** 2  # <|endoftext|>\r\n"


def id_type(n_vocab: int) -> np.dtype:
    """How an id is stored: uint16, or uint32 for vocabularies above 65,536; little-endian."""
    return np.dtype("<u2" if n_vocab <= 65_536 else "<u4")


class Tokenizer:
    """Ids 0 … len(tokens)-1 are `tokens`, byte strings; the next id is end of text, which characters do not have."""

    def __init__(self, name: str, kind: Kind, tokens: Sequence[bytes]) -> None:
        """Raises BadDataError where `tokens` cannot be a vocabulary of that kind."""
        self.name, self.kind, self.tokens = name, kind, list(tokens)
        _check_tokens(self)
        self.eot_id: int | None = None if kind == "char" else len(self.tokens)
        self.n_vocab = len(self.tokens) + (self.eot_id is not None)
        self.dtype = id_type(self.n_vocab)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides ids and bytes: kind, pattern, end of text, tokens; not of the name."""
        rule = [FORMAT, VERSION, self.kind, self._pattern, END_OF_TEXT if self.eot_id is not None else None]
        digest = hashlib.sha256(json.dumps(rule).encode())
        for token in self.tokens:
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, uint16 where n_vocab ≤ 65,536, else uint32; "<|endoftext|>" in it is ordinary text.

        Raises BadDataError for what has no ids: half of a surrogate pair, a character that is not in the vocabulary.
        """
        parts = [self._encode_piece(piece) for piece in self.pieces(text)]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    cuttable = True

    def pieces(self, text: str | Iterable[str]) -> Iterator[str]:
        """`text` in parts of about a million characters whose ids, one after the other, are the ids of `text`."""
        text = text if isinstance(text, str) else "".join(text)
        if self.kind == "bpe":
            return bpe.cut(text, PIECE_CHARS)
        return (text[i : i + PIECE_CHARS] for i in range(0, len(text), PIECE_CHARS))

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes that `ids` stand for; end of text as "<|endoftext|>". Raises BadDataError for an id ≥ n_vocab."""
        numbers = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64).ravel()
        wrong = numbers[(numbers < 0) | (numbers >= self.n_vocab)]
        if wrong.size:
            raise BadDataError(f"id {wrong[0]} is not in tokenizer {self.name}, whose ids are 0 to {self.n_vocab - 1}")
        return b"".join(map(self._bytes_of.__getitem__, numbers.tolist()))

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text that `ids` stand for; bytes that are not UTF-8 become U+FFFD. Raises as decode_bytes."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> np.ndarray:
        """(n_vocab,) int64: UTF-8 bytes of text that each id stands for; 0 for end of text, which is no text."""
        lengths = [len(token) for token in self.tokens] + [0] * (self.eot_id is not None)
        return np.array(lengths, dtype=np.int64)

    def probe(self) -> list[int]:
        """The ids of a fixed text (of those of its characters that a character vocabulary has)."""
        known = set(self.tokens)
        text = PROBE if self.kind != "char" else "".join(c for c in PROBE if c.encode() in known)
        return [int(i) for i in self.encode(text)]

    def to_json(self) -> bytes:
        """The tokenizer as `load` reads it: self-describing, the same bytes for the same tokenizer."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "kind": self.kind,
            "pattern": self._pattern,
            "end_of_text": END_OF_TEXT if self.eot_id is not None else None,
            "fingerprint": self.fingerprint,
            "tokens": [base64.b64encode(token).decode() for token in self.tokens],
        }
        return json.dumps(content, indent=0).encode() + b"\n"

    def save(self, path: Path) -> None:
        """Write to_json() to `path`, whole or not at all. Raises StorageError."""
        write_atomic(Path(path), self.to_json())

    @property
    def _pattern(self) -> str | None:
        return bpe.GPT2_PATTERN if self.kind == "bpe" else None

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        return self.tokens + [END_OF_TEXT.encode()] * (self.eot_id is not None)

    def _encode_piece(self, text: str) -> np.ndarray:
        try:
            if self.kind == "char":
                return self._encode_chars(text)
            if self.kind == "byte":
                return np.frombuffer(text.encode(), np.uint8).astype(self.dtype)
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
            return ids.astype(self.dtype)  # cannot wrap: every id is below n_vocab by construction
        except UnicodeEncodeError as error:
            code = f"U+{ord(text[error.start]):04X}"
            raise BadDataError(f"the text holds {code}, half of a surrogate pair, which UTF-8 cannot write") from None

    def _encode_chars(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        positions = np.searchsorted(self._code_points, codes).clip(max=len(self._code_points) - 1)
        unknown = codes[self._code_points[positions] != codes]
        if unknown.size:
            char = chr(unknown[0])
            raise BadDataError(f"character {char!r} (U+{unknown[0]:04X}) is not among {self.name}'s {self.n_vocab}")
        return positions.astype(self.dtype)

    @cached_property
    def _code_points(self) -> np.ndarray:
        return np.array([ord(token.decode()) for token in self.tokens], dtype=np.uint32)

    @cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        import tiktoken

        return tiktoken.Encoding(
            self.name,
            pat_str=bpe.GPT2_PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens={END_OF_TEXT: len(self.tokens)},
            explicit_n_vocab=len(self.tokens) + 1,
        )


def _check_tokens(tokenizer: Tokenizer) -> None:
    tokens, kind, name = tokenizer.tokens, tokenizer.kind, tokenizer.name
    singles = {bytes([i]) for i in range(256)}
    if not tokens or b"" in tokens or len(set(tokens)) != len(tokens):
        raise BadDataError(f"tokenizer {name}: tokens must be there, not empty, and different from each other")
    if kind == "byte" and tokens != sorted(singles):
        raise BadDataError(f"tokenizer {name}: a byte tokenizer has the 256 bytes in order, nothing else")
    if kind == "bpe" and not singles.issubset(tokens):
        raise BadDataError(f"tokenizer {name}: not every single byte has an id, so some text could not be encoded")
    if kind == "char":
        try:
            ordered = sorted({char for token in tokens for char in token.decode()})
        except UnicodeDecodeError:
            ordered = []
        if [char.encode() for char in ordered] != tokens:
            raise BadDataError(f"tokenizer {name}: a character vocabulary is one character per id, in order")


# ---- where tokenizers come from


def byte() -> Tokenizer:
    """UTF-8 bytes: ids 0-255, end of text 256."""
    return Tokenizer("byte", "byte", [bytes([i]) for i in range(256)])


def char(text: Iterable[str]) -> Tokenizer:
    """The distinct characters of `text` (a string or several) in order. Raises BadDataError if there is none."""
    chars: set[str] = set()
    for part in text:
        chars.update(part)
    try:
        return Tokenizer("char", "char", [c.encode() for c in sorted(chars)])
    except UnicodeEncodeError as error:
        raise BadDataError(f"the text holds U+{ord(error.object[0]):04X}, half of a surrogate pair") from None


def gpt2() -> Tokenizer:
    """GPT-2's 50,257 ids, rebuilt from the packaged merge list; no network."""
    return Tokenizer("gpt2", "bpe", bpe.gpt2_vocabulary())


def train_bpe(texts: Iterable[str], n_vocab: int) -> Tokenizer:
    """A byte-pair encoding of `n_vocab` ids, end of text included, learnt from `texts` under GPT-2's pattern.

    n_vocab ≥ 257. Raises BadDataError where the texts are too few for that many merges.
    """
    return Tokenizer(f"bpe:{n_vocab}", "bpe", bpe.train_vocabulary(texts, n_vocab - 1))


def bpe_size(spec: str) -> int | None:
    """N where `spec` is `bpe:N`, else None. Raises UsageError for an N that no vocabulary has."""
    if not (match := re.fullmatch(r"bpe:([0-9]+)", spec)):
        return None
    if len(match[1]) > len(str(MAX_BPE)) or not 257 <= int(match[1]) <= MAX_BPE:
        raise UsageError(f"{spec[:40]}: bytes and end of text alone are 257 ids; give bpe:257 to bpe:{MAX_BPE}")
    return int(match[1])


def open_tokenizer(spec: str) -> Tokenizer:
    """`gpt2`, `byte`, or a file: our tokenizer.json, or ranks as tiktoken writes them (then with GPT-2's pattern).

    Raises UsageError for `char` and `bpe:N`, which need text; MissingInputError; BadDataError.
    """
    if spec in ("gpt2", "byte"):
        return gpt2() if spec == "gpt2" else byte()
    if spec == "char" or bpe_size(spec):
        raise UsageError(f"{spec} is made from text: type nanogpt prepare CORPUS --tokenizer {spec}")
    path = Path(spec)
    if not path.is_file():
        raise MissingInputError(f"no tokenizer {spec}: give gpt2, byte, char, bpe:N or a file (.json, .tiktoken)")
    if path.suffix != ".tiktoken":
        return load(path)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)[:80]
    return Tokenizer(name, "bpe", bpe.parse_ranks(_read(path), shown(path)))


def load(path: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote. Raises MissingInputError, BadDataError."""
    path = Path(path)
    try:
        content: Any = json.loads(_read(path))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadDataError(f"{shown(path)} is not a tokenizer.json that nanogpt wrote; was it edited or cut off?")
    if content.get("version") != VERSION:
        raise BadDataError(
            f"{shown(path)} has version {str(content.get('version'))[:20]}, this nanogpt reads {VERSION}; update it"
        )
    name, tokens = content.get("name"), content.get("tokens")
    kind: Any = content.get("kind")
    if (
        not isinstance(name, str)
        or not NAME.fullmatch(name)
        or kind not in get_args(Kind)
        or not isinstance(tokens, list)
    ):
        raise BadDataError(f"{shown(path)}: name, kind or tokens are missing or wrong; make it again")
    try:
        tokenizer = Tokenizer(name, kind, [base64.b64decode(token, validate=True) for token in tokens])
    except (binascii.Error, TypeError, ValueError):
        raise BadDataError(f"{shown(path)}: a token is not base64; make it again") from None
    if content.get("pattern") != tokenizer._pattern:
        raise BadDataError(f"{shown(path)}: its pattern is not GPT-2's, the only one that this nanogpt cuts text with")
    if content.get("fingerprint") != tokenizer.fingerprint:
        raise BadDataError(f"{shown(path)}: its tokens do not match its fingerprint: edited or damaged; make it again")
    return tokenizer


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise MissingInputError(f"{shown(path)} does not exist; every folder of nanogpt prepare has a tokenizer.json")
    with told(path), path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BadDataError(f"{shown(path)} is longer than any tokenizer ({MAX_FILE_BYTES:,} bytes); name another file")
    return data
