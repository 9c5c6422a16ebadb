"""`nanogpt tokenizer train|compare`: a vocabulary learnt from text, and two compared."""

import json
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.help import command, group
from cli.next_step import to_prepare
from cli.options import Json
from cli.terminal import echo
from nanogpt_dist.errors import BadDataError, CannotCreateError, UsageError

if TYPE_CHECKING:
    from nanogpt_dist.tokenizer import Tokenizer

COMPARE_BYTES = 20 << 20  # of text, at most
HELD_OUT = 20  # one document in so many is not learnt from

tokenizer_app = group(
    "nanogpt tokenizer train python-stdlib --vocab-size 4096 --out code.tiktoken",
    "nanogpt tokenizer compare gpt2 cl100k_base python-stdlib",
)
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE…", help="Files or folders as prepare reads them, or python-stdlib."
    ),
]
Column = Annotated[str, typer.Option(help="Field or column that holds the text.", metavar="NAME")]


@command(
    tokenizer_app,
    "train",
    "nanogpt tokenizer train python-stdlib --vocab-size 4096 --out code.tiktoken",
    "nanogpt tokenizer train texts/ --vocab-size 32000 --out mine.json",
)
def train(
    source: Sources,
    vocab_size: Annotated[
        int, typer.Option(min=257, max=1_000_000, metavar="N", help="Ids, end of text included.")
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="FILE.tiktoken: ranks; FILE.json: a tokenizer.json."),
    ],
    column: Column = "text",
    as_json: Json = False,
) -> None:
    """Learn a byte-pair encoding from text, and prove it on text that it was not learnt from."""
    from nanogpt_dist.storage.user_file import write_user_file
    from nanogpt_dist.tokenizer import Tokenizer, bpe, safe_name
    from prepare.texts import read_texts

    _refuse_output(out)
    held_out: list[str] = []

    def learnt_from() -> Iterator[str]:
        for number, text in enumerate(read_texts(source, column)):
            if number % HELD_OUT == HELD_OUT - 1 and sum(map(len, held_out)) < COMPARE_BYTES:
                held_out.append(text)
            else:
                yield text

    model = bpe.train_merges(learnt_from(), vocab_size - 1, "--vocab-size ")
    tokenizer = Tokenizer(safe_name(out.stem), "bpe", bpe.tokens_by_id(model.get_vocab()))
    proof = held_out or [
        text for text, _ in zip(read_texts(source, column), range(100), strict=False)
    ]
    tokens = 0
    for text in proof:
        ids = tokenizer.encode(text).tolist()
        tokens += len(ids)
        if ids != model.encode(text).ids:
            raise BadDataError(
                f"not proven: the ranks encode {text[:20]!r} … in another way than the trainer; "
                "report it"
            )
    write_user_file(
        out,
        bpe.format_ranks(tokenizer.tokens) if out.suffix == ".tiktoken" else tokenizer.to_json(),
    )
    size = sum(len(text.encode()) for text in proof)
    figures = {
        "out": str(out),
        "vocab_size": tokenizer.n_vocab,
        "held_out_tokens": tokens,
        "bytes_per_token": round(size / max(1, tokens), 4),
        "equal": True,
    }
    if as_json:
        echo(json.dumps(figures))
        return
    what = "held-out text" if held_out else "the text (too few documents to hold some out)"
    echo(
        f"{out}: {tokenizer.n_vocab:,} ids; {figures['bytes_per_token']:.2f} bytes per token on "
        f"{what},"
    )
    echo(f"the same {tokens:,} ids there as the trainer's own.")
    echo(f"Next: {to_prepare(source, column, out)}")


def _refuse_output(out: Path) -> None:
    """Raises UsageError, CannotCreateError: told before the learning, which may take hours."""
    from nanogpt_dist.storage.durable import shown

    if out.suffix not in (".tiktoken", ".json"):
        raise UsageError(
            f"{out.name[-40:]} is neither a .tiktoken nor a .json file; choose one by its ending"
        )
    if out.is_file() or out.is_dir():  # a device or a pipe takes it
        raise CannotCreateError(f"{shown(out)} exists; choose another --out")
    if not out.parent.is_dir():
        raise CannotCreateError(
            f"{shown(out.parent)} is no folder; make it, or choose another --out"
        )


@command(
    tokenizer_app,
    "compare",
    "nanogpt tokenizer compare gpt2 cl100k_base python-stdlib",
    "nanogpt tokenizer compare gpt2 code.tiktoken texts/ --json",
)
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="gpt2, byte, cl100k_base …, or a file (.tiktoken, .json)."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    source: Sources,
    column: Column = "text",
    as_json: Json = False,
) -> None:
    """What two tokenizers make of the same text: bytes per token, and MB/s in one process."""
    from nanogpt_dist.tokenizer.loading import open_tokenizer

    tokenizers = [open_tokenizer(a), open_tokenizer(b)]
    texts = _some_texts(source, column)
    size = sum(len(text.encode()) for text in texts)
    rows = [_measure(tokenizer, texts, size) for tokenizer in tokenizers]
    if as_json:
        echo(json.dumps({"bytes": size, "tokenizers": rows}))
        return
    echo(f"{size:,} bytes of text")
    for row in rows:
        echo(
            f"{row['name']:20} {row['vocab_size']:>9,} ids {row['tokens']:>12,} tokens "
            f"{row['bytes_per_token']:6.3f} bytes per token {row['mb_per_second']:7.1f} MB/s"
        )
    echo(
        f"{rows[1]['name']} needs {rows[1]['tokens'] / rows[0]['tokens']:.3f} times the tokens of "
        f"{rows[0]['name']}"
    )


def _some_texts(sources: list[str], column: str) -> list[str]:
    from prepare.texts import read_texts

    texts: list[str] = []
    size = 0
    for text in read_texts(sources, column):
        texts.append(text[: COMPARE_BYTES - size])
        size += len(texts[-1].encode())
        if size >= COMPARE_BYTES:
            break
    if not size:
        raise BadDataError("there is no text in the sources; give others")
    return texts


def _measure(tokenizer: "Tokenizer", texts: list[str], size: int) -> dict[str, Any]:
    tokenizer.encode(texts[0][:1000])  # the first call builds tables
    started = time.perf_counter()
    tokens = sum(map(len, map(tokenizer.encode, chain(texts))))
    seconds = time.perf_counter() - started
    return {
        "name": tokenizer.name,
        "vocab_size": tokenizer.n_vocab,
        "tokens": tokens,
        "bytes_per_token": round(size / max(1, tokens), 4),
        "mb_per_second": round(size / 1e6 / seconds, 2),
    }
