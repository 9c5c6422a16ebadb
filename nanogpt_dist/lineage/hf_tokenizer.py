"""A tokenizer as the files that transformers' AutoTokenizer reads, and back. No torch.

In their files "<|endoftext|>" within a text is the special token; to `nanogpt prepare` it is ordinary text.
"""

import json
from pathlib import Path
from typing import Any

from nanogpt_dist import bpe, patterns, runs, storage
from nanogpt_dist.errors import BadDataError, MissingInputError
from nanogpt_dist.lineage.source import OPENAI, OURS, Source
from nanogpt_dist.tokenizer import END_OF_TEXT, Tokenizer, gpt2, load, named
from nanogpt_dist.vocabularies import end_in_configuration, of_hugging_face, open_tokenizer

ONE_CHARACTER = r"[\s\S]"


def of_source(source: Source) -> Tokenizer:
    """The tokenizer of the weights' text. Raises MissingInputError where there is none, BadDataError."""
    if source.ours:
        return load(source.folder / "tokenizer.json")
    if source.name in OPENAI:
        return gpt2()
    return of_folder(source.folder)


def of_folder(folder: Path) -> Tokenizer:
    """The tokenizer in a folder of Hugging Face's. Raises MissingInputError, BadDataError."""
    if (folder / OURS).is_file():
        return load(folder / OURS)
    if (folder / "tokenizer.json").is_file():
        return open_tokenizer(str(folder / "tokenizer.json"))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _of_two_files(folder)
    raise MissingInputError(f"{folder} has no tokenizer.json; copy the one that belongs to the model into it")


def _of_two_files(folder: Path) -> Tokenizer:
    """GPT-2's own way: ids in vocab.json, pairs in merges.txt, the pattern in the program."""
    vocabulary = runs.read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    end = vocabulary.pop(END_OF_TEXT, None)
    content = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "added_tokens": [] if end is None else [_special(END_OF_TEXT, end)],
    }
    return of_hugging_face(content, named(folder.name) or "gpt2", str(folder), end_in_configuration(folder, content))


def write(folder: Path, tokenizer: Tokenizer, block_size: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, of a BPE also vocab.json and merges.txt. Raises StorageError."""
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
        after = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        before = after
        if tokenizer.pattern is None or tokenizer.pattern.text != patterns.GPT2.text:
            text = tokenizer.pattern.text if tokenizer.pattern else ONE_CHARACTER
            before = {"type": "Sequence", "pretokenizers": [_split(text), {**after, "use_regex": False}]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(name, number) for name, number in tokenizer.specials.items()],
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
        "merges": [[bpe.to_printable(a), bpe.to_printable(b)] for a, b in bpe.merges_of(tokenizer.tokens)],
    }


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _special(name: str, number: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": name, **flags}


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        data = json.dumps(content, ensure_ascii=False, indent=1).encode()
    except UnicodeEncodeError as error:
        raise BadDataError(f"{path.name} cannot hold a token: {error}") from None
    storage.write_atomic(path, data + b"\n")
