"""What lies beside a tokenizer.json: its end of text, more tokens; GPT-2's two files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nanogpt_dist.errors import BadDataError
from nanogpt_dist.storage.durable import shown
from nanogpt_dist.tokenizer import patterns
from nanogpt_dist.tokenizer.tokenizer import END_OF_TEXT
from nanogpt_dist.tokenizer.tokenizer_json import parse_object, read_file

NAMED = ("eos_token", "bos_token", "unk_token", "pad_token")
# Classes of transformers that read vocab.json and merges.txt under GPT-2's pattern, and the one
# with its own.
LIKE_GPT2 = (None, "GPT2Tokenizer", "CodeGenTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
QWEN2 = "Qwen2Tokenizer"
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def ends_of_text(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """The special tokens that end a text, the one between documents first.

    generation_config.json and config.json name them by id, tokenizer_config.json and
    special_tokens_map.json one by its name, which comes first where both have it. content: of the
    tokenizer.json.
    """
    names = {
        token.get("id"): token.get("content") for token in _added(content) if token.get("special")
    }
    end = next(_named(folder, ("eos_token",)), None)
    for file in ("generation_config.json", "config.json"):
        given = _beside(folder, file).get("eos_token_id")
        ids = given if isinstance(given, list) else [given]
        if ends := [
            str(names[number]) for number in ids if type(number) is int and number in names
        ]:
            return sorted(ends, key=lambda name: name != end)
    return [end] if end in names.values() and end is not None else []


def with_more_tokens(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with the added tokens of the files beside it, as AutoTokenizer adds them."""
    added = {token.get("content"): token for token in _added(content)}
    decoder = _beside(folder, "tokenizer_config.json").get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and (word := _content(token)) and word not in added:
            if not (number.isascii() and number.isdecimal()):
                file = shown(folder / "tokenizer_config.json")
                wrong = f"added_tokens_decoder has {ascii(number)[:20]}, which is no id"
                raise BadDataError(f"{file}: {wrong}; write ids in the digits 0 to 9")
            added[word] = {**token, "id": int(number)}
    vocab = content["model"].get("vocab")
    vocab = vocab if isinstance(vocab, dict) else {}
    for name in _named(folder, NAMED):
        if name in vocab and name not in added:
            added[name] = special(name, vocab[name])
    return {**content, "added_tokens": list(added.values())}


def gpt2_files_to_json(folder: Path) -> dict[str, Any]:
    """GPT-2's vocab.json and merges.txt as a tokenizer.json.

    The pattern is in GPT-2's program.

    Raises BadDataError for a folder of a class with another pattern.
    """
    about = _beside(folder, "tokenizer_config.json")
    name = about.get("tokenizer_class")
    kind = str(name).removesuffix("Fast") if name else None
    if kind not in (*LIKE_GPT2, QWEN2):
        raise BadDataError(
            f"{shown(folder)}: vocab.json and merges.txt of {kind[:40]} are not read; give "
            "tokenizer.json"
        )
    vocab = parse_object(read_file(folder / "vocab.json"))
    lines = read_file(folder / "merges.txt").decode("utf-8", errors="replace").split("\n")
    level: dict[str, Any] = {
        **LEVEL,
        "add_prefix_space": bool(about.get("add_prefix_space", False)),
    }
    content: dict[str, Any] = {
        "normalizer": None,
        "pre_tokenizer": level,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [
                line.rstrip("\r")
                for line in lines
                if line.strip() and not line.startswith("#version")
            ],
        },
        "decoder": LEVEL,
        "added_tokens": [],
    }
    if kind == QWEN2:
        split = {
            "type": "Split",
            "pattern": {"Regex": patterns.QWEN2.text},
            "behavior": "Isolated",
            "invert": False,
        }
        content["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [split, {**level, "use_regex": False}],
        }
        content["normalizer"] = {"type": "NFC"}
    specials = {END_OF_TEXT, *_named(folder, NAMED), *_additional(folder)}
    more = _beside(folder, "added_tokens.json")
    added = [
        {**special(word, number), "special": word in specials} for word, number in more.items()
    ]
    content["added_tokens"] = added + [
        special(word, vocab[word]) for word in sorted(specials & vocab.keys() - more.keys())
    ]
    content["model"]["vocab"] = {
        word: number for word, number in vocab.items() if word not in specials | more.keys()
    }
    return with_more_tokens(folder, content)


def special(name: str, number: int) -> dict[str, Any]:
    """A special token as added_tokens has it."""
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {"id": number, "content": name, **flags}


def _beside(folder: Path, name: str) -> dict[str, Any]:
    return parse_object(read_file(folder / name)) if (folder / name).is_file() else {}


def _added(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = content.get("added_tokens")
    return [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []


def _named(folder: Path, kinds: tuple[str, ...]) -> Iterator[str]:
    """The special tokens that the two files beside a tokenizer call by these names."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        about = _beside(folder, file)
        yield from filter(None, (_content(about.get(kind)) for kind in kinds))


def _additional(folder: Path) -> Iterator[str]:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        given = _beside(folder, file).get("additional_special_tokens")
        yield from filter(None, map(_content, given if isinstance(given, list) else []))


def _content(token: Any) -> str | None:
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None
