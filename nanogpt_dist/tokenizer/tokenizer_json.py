"""tokenizer.json as Tokenizer.save wrote it, read again and checked."""

import binascii
import json
import re
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from nanogpt_dist.errors import BadDataError, MissingInputError
from nanogpt_dist.storage.durable import shown, storage_errors
from nanogpt_dist.tokenizer.hf_library import from_library
from nanogpt_dist.tokenizer.tokenizer import FORMAT, PROBES, VERSION, Kind, Tokenizer

MAX_FILE_BYTES = 64 << 20  # of a tokenizer file; 200,000 ids need 3 MB
NAME = re.compile(r"[A-Za-z0-9._:-]{1,80}")  # of a tokenizer: it is shown in messages


def load(path: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote. Raises MissingInputError, BadDataError."""
    path = Path(path)
    content = parse_object(read_file(path))
    if content.get("format") != FORMAT:
        raise BadDataError(
            f"{shown(path)} is not a tokenizer.json that nanogpt wrote; was it edited or cut off?"
        )
    if content.get("version") != VERSION:
        raise BadDataError(
            f"{shown(path)} has version {str(content.get('version'))[:20]}, this nanogpt reads "
            f"{VERSION}; make it again"
        )
    if content.get("kind") == "library":
        return _load_library(path, content)
    name, tokens, specials = content.get("name"), content.get("tokens"), content.get("specials")
    kind: Any = content.get("kind")
    pattern, end_of_text = content.get("pattern"), content.get("end_of_text")
    if (
        not isinstance(name, str)
        or not NAME.fullmatch(name)
        or kind not in get_args(Kind)
        or not isinstance(tokens, list)
        or not (
            isinstance(specials, dict) and all(type(number) is int for number in specials.values())
        )
        or not isinstance(pattern, str if kind == "bpe" else NoneType)
        or not (end_of_text is None or (isinstance(end_of_text, str) and end_of_text in specials))
        or not _are_texts(content.get("stops", []))
    ):
        raise BadDataError(
            f"{shown(path)}: name, kind, pattern or tokens are missing or wrong; make it again"
        )
    try:
        decoded = [binascii.a2b_base64(token, strict_mode=True) for token in tokens]
    except (binascii.Error, TypeError, ValueError):
        raise BadDataError(f"{shown(path)}: a token is not base64; make it again") from None
    try:
        tokenizer = Tokenizer(
            name, kind, decoded, pattern, specials, end_of_text, content.get("stops", [])
        )
    except BadDataError as error:
        raise BadDataError(f"{shown(path)}: {error}; give another file") from None
    return _with_its_fingerprint(path, content, tokenizer)


def _load_library(path: Path, content: dict[str, Any]) -> Tokenizer:
    """A tokenizer that Hugging Face's library is to encode. Raises BadDataError."""
    name, end_of_text, stops = (
        content.get("name"),
        content.get("end_of_text"),
        content.get("stops", []),
    )
    named = isinstance(name, str) and NAME.fullmatch(name)
    if not named or not isinstance(end_of_text, str | None) or not _are_texts(stops):
        raise BadDataError(
            f"{shown(path)}: name, end of text or stops are missing or wrong; make it again"
        )
    try:
        tokenizer = from_library(str(name), content["library"], end_of_text, stops, PROBES)
    except BadDataError as error:
        raise BadDataError(f"{shown(path)}: {error}; make it again") from None
    except (TypeError, KeyError, AttributeError, ValueError):
        raise BadDataError(
            f"{shown(path)}: its library's content is missing or wrong; make it again"
        ) from None
    return _with_its_fingerprint(path, content, tokenizer)


def _with_its_fingerprint(path: Path, content: dict[str, Any], tokenizer: Tokenizer) -> Tokenizer:
    if content.get("fingerprint") != tokenizer.fingerprint:
        raise BadDataError(
            f"{shown(path)}: its tokens do not match its fingerprint: edited or damaged; make it "
            "again"
        )
    return tokenizer


def _are_texts(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(one, str) for one in given)


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object that a file holds; an empty one where it holds none."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_file(path: Path) -> bytes:
    """The bytes of a file with a tokenizer.

    Raises MissingInputError, BadDataError for one that is far too long.
    """
    if not path.is_file():
        raise MissingInputError(
            f"{shown(path)} does not exist; every folder of nanogpt prepare has a tokenizer.json"
        )
    with storage_errors(path), path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BadDataError(
            f"{shown(path)} is longer than any tokenizer ({MAX_FILE_BYTES:,} bytes); name another "
            "file"
        )
    return data
