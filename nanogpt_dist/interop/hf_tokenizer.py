"""A tokenizer as the files that transformers' AutoTokenizer reads, and back. No torch.

In their files "<|endoftext|>" within a text is the special token; to `nanogpt prepare` it is
ordinary text.
"""

import json
from pathlib import Path
from typing import Any

from nanogpt_dist import storage
from nanogpt_dist.errors import BadDataError, MissingInputError
from nanogpt_dist.interop.init_from import OPENAI, OURS, Pretrained
from nanogpt_dist.tokenizer import Tokenizer, bpe, gpt2, load, patterns
from nanogpt_dist.tokenizer.hf_library import LibraryTokenizer
from nanogpt_dist.tokenizer.loading import from_gpt2_files, open_tokenizer
from nanogpt_dist.tokenizer.tokenizer_config import special

ONE_CHARACTER = r"[\s\S]"


def load_tokenizer(source: Pretrained) -> Tokenizer:
    """The tokenizer of pretrained weights.

    Raises MissingInputError where there is none, BadDataError.
    """
    if source.ours:
        return load(source.folder / "tokenizer.json")
    if source.name in OPENAI:
        return gpt2()
    return load_folder(source.folder)


def load_folder(folder: Path) -> Tokenizer:
    """The tokenizer in a folder of Hugging Face's. Raises MissingInputError, BadDataError."""
    if (folder / OURS).is_file():
        return load(folder / OURS)
    if (folder / "tokenizer.json").is_file():
        return open_tokenizer(str(folder / "tokenizer.json"))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return from_gpt2_files(folder)
    raise MissingInputError(
        f"{folder} has no tokenizer.json; copy the one that belongs to the model into it"
    )


def write(folder: Path, tokenizer: Tokenizer, block_size: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, of a BPE also GPT-2's two files.

    These are vocab.json and merges.txt. Raises StorageError.
    """
    content = to_hugging_face(tokenizer)
    _write(folder / "tokenizer.json", content)
    end = tokenizer.end_of_text
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        **({"bos_token": end, "eos_token": end, "unk_token": end} if end else {}),
    }
    _write(folder / "tokenizer_config.json", about)
    if tokenizer.kind == "bpe":
        _write(folder / "vocab.json", {**content["model"]["vocab"], **tokenizer.specials})
        pairs = "\n".join(" ".join(pair) for pair in content["model"]["merges"])
        storage.write_atomic(folder / "merges.txt", f"#version: 0.2\n{pairs}\n".encode())


def to_hugging_face(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json of Hugging Face's tokenizers: it gives the same ids. Raises BadDataError."""
    if isinstance(tokenizer, LibraryTokenizer):
        return tokenizer.content
    if tokenizer.kind == "char":
        model: dict[str, Any] = {
            "type": "WordLevel",
            "vocab": {token.decode(): number for number, token in enumerate(tokenizer.tokens)},
            "unk_token": "",
        }
        before: dict[str, Any] = _split(ONE_CHARACTER)
        after: dict[str, Any] = {"type": "Fuse"}
    else:
        model = _pairs(tokenizer)
        after = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        }
        before = after
        if tokenizer.pattern is None or tokenizer.pattern.text != patterns.GPT2.text:
            text = tokenizer.pattern.text if tokenizer.pattern else ONE_CHARACTER
            before = {
                "type": "Sequence",
                "pretokenizers": [_split(text), {**after, "use_regex": False}],
            }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special(name, number) for name, number in tokenizer.specials.items()],
        "normalizer": None,
        "pre_tokenizer": before,
        "post_processor": None,
        "decoder": after,
        "model": model,
    }


def _pairs(tokenizer: Tokenizer) -> dict[str, Any]:
    printable = [bpe.to_printable(token) for token in tokenizer.tokens]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,  # a whole piece that is a token is that token, as tiktoken has it
        "vocab": {token: number for number, token in enumerate(printable)},
        "merges": [
            [bpe.to_printable(a), bpe.to_printable(b)] for a, b in bpe.merges_of(tokenizer.tokens)
        ],
    }


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        data = json.dumps(content, ensure_ascii=False, indent=1).encode()
    except UnicodeEncodeError as error:
        raise BadDataError(f"{path.name} cannot hold a token: {error}") from None
    storage.write_atomic(path, data + b"\n")
