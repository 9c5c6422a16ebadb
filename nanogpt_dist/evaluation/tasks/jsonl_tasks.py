"""HellaSwag and LAMBADA from their own jsonl files, and bits per byte of any text.

Sources: Zellers et al. 2019, "HellaSwag"; Paperno et al. 2016, "The LAMBADA dataset"; Radford et
al. 2019, §3. GPT-2 124M's published HellaSwag, by tokens and without preprocessing, as acc_norm is
here: 0.294 (llm.c).
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_dist.errors import BadDataError, MissingInputError, UsageError
from nanogpt_dist.evaluation.tasks.scoring import Scorer, pair
from nanogpt_dist.storage.durable import shown

NAMES = ("hellaswag", "lambada")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects in a file, one on each line. Raises MissingInputError, BadDataError."""
    found = []
    for number, line in enumerate(_read(path).split("\n"), 1):
        line = line.removeprefix("\ufeff")  # of a file that `cat` put behind another
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise BadDataError(f"{shown(path)}:{number} is no JSON object")
        found.append(content)
    if not found:
        raise BadDataError(f"{shown(path)} is empty")
    return found


def _read(path: Path) -> str:
    """The text of a file of UTF-8, without a byte order mark.

    Raises MissingInputError, BadDataError.
    """
    if not path.is_file():
        raise MissingInputError(f"{shown(path)} does not exist or is not a file; check the path")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadDataError(
            f"{shown(path)} is not UTF-8 at byte {error.start}; convert it with iconv"
        ) from None


def check(name: str, path: Path) -> None:
    """Raises UsageError where `name` is none of NAMES, MissingInputError without the file."""
    if name not in NAMES:
        raise UsageError(
            f"{name}={path}: only {' and '.join(NAMES)} are scored from a file; others: PATH.yaml, "
            "lm-eval's"
        )
    if not path.exists() or path.is_dir():
        raise MissingInputError(f"{shown(path)} does not exist or is not a file; check the path")


def run(name: str, path: Path, scorer: Scorer, limit: int | None = None) -> dict[str, Any]:
    """The figures of one of NAMES on a jsonl file; all ranks together.

    limit: of the lines, the first that count. Raises as check(), and BadDataError.
    """
    check(name, path)
    return {"hellaswag": hellaswag, "lambada": lambada}[name](path, scorer, limit)


def hellaswag(path: Path, scorer: Scorer, limit: int | None = None) -> dict[str, Any]:
    """Which ending follows: acc by the likelihoods, acc_norm by the likelihoods per token.

    Each line is {ctx, endings, label}.
    """
    requests, counts, labels = [], [], []
    with scorer.world.raise_on_all_ranks():
        for number, example in enumerate(read_jsonl(path)[:limit], 1):
            context, endings, label = _ctx_endings_label(example, f"{shown(path)}:{number}")
            requests += [pair(scorer.tokenizer, context, f" {ending}") for ending in endings]
            counts.append(len(endings))
            labels.append(label)
    scores = iter(scorer(requests))
    likely, normed = [], []
    for count in counts:
        some = [next(scores) for _ in range(count)]
        likely.append(int(np.argmax([one.log_likelihood for one in some])))
        normed.append(int(np.argmax([one.log_likelihood / max(1, one.tokens) for one in some])))
    return {
        "acc": _share([a == b for a, b in zip(likely, labels, strict=True)]),
        "acc_norm": _share([a == b for a, b in zip(normed, labels, strict=True)]),
        "examples": len(labels),
    }


def _ctx_endings_label(example: dict[str, Any], where: str) -> tuple[str, list[str], int]:
    context, endings, label = example.get("ctx"), example.get("endings"), example.get("label")
    if isinstance(label, str) and label.isdecimal() and len(label) < 10:
        label = int(label)
    if (
        isinstance(context, str)
        and isinstance(endings, list)
        and all(isinstance(each, str) for each in endings)
        and isinstance(label, int)
        and 0 <= label < len(endings)
    ):
        return context, endings, label
    raise BadDataError(f"{where} has no ctx, endings and label, as HellaSwag's lines have")


def lambada(path: Path, scorer: Scorer, limit: int | None = None) -> dict[str, Any]:
    """The last word of a passage: its perplexity, and acc: each of its tokens is the likeliest.

    Each line is {text}.
    """
    requests = []
    with scorer.world.raise_on_all_ranks():
        for number, example in enumerate(read_jsonl(path)[:limit], 1):
            text = example.get("text")
            if not isinstance(text, str) or " " not in text.strip():
                raise BadDataError(
                    f"{shown(path)}:{number} has no text of several words, as LAMBADA's lines have"
                )
            context, _, word = text.strip().rpartition(" ")
            requests.append(pair(scorer.tokenizer, context, f" {word}"))
    scores = scorer(requests)
    mean = math.fsum(one.log_likelihood for one in scores) / len(scores)
    return {
        "acc": _share([one.greedy for one in scores]),
        "perplexity": math.exp(min(-mean, 700.0)),
        "examples": len(scores),
    }


def text(path: Path, scorer: Scorer) -> dict[str, Any]:
    """score_text() of a file. Raises MissingInputError, BadDataError."""
    with scorer.world.raise_on_all_ranks():
        read = _read(path)
    return score_text(read, shown(path), scorer)


def score_text(text: str, name: str, scorer: Scorer) -> dict[str, Any]:
    """Loss in nats/token, and in bits per byte, of a text as one document.

    Each token is predicted once. name: of the text, in a message. Raises BadDataError.
    """
    with scorer.world.raise_on_all_ranks():
        ids = scorer.tokenizer.encode(text).tolist()
        eot, size = scorer.tokenizer.eot_id, scorer.model.config.block_size
        whole = [*([eot] if eot is not None else []), *ids]
        if len(whole) < 2:
            raise BadDataError(f"{name} is too short: there is nothing to predict")
    # Windows of block_size tokens; the last token of one is the first input of the next.
    scores = scorer(
        [(whole[i : i + 1], whole[i + 1 : i + 1 + size]) for i in range(0, len(whole) - 1, size)]
    )
    nats = -math.fsum(one.log_likelihood for one in scores)
    tokens = sum(one.tokens for one in scores)
    # the first token is given
    unseen = 0 if eot is not None else int(scorer.tokenizer.byte_lengths()[whole[0]])
    nbytes = len(text.encode()) - unseen
    return {
        "loss": nats / tokens,
        "bits_per_byte": nats / math.log(2) / nbytes,
        "tokens": tokens,
        "bytes": nbytes,
    }


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)
