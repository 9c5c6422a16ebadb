"""Text from a model: choose the next token, append, repeat.

No id is drawn that the tokenizer cannot decode. What is drawn for the i-th sample after a prompt is
a function of the seed and i, not of what else is drawn with it.

Shape letters: B samples, V ids that the tokenizer has.

Sources: Fan et al. 2018, "Hierarchical Neural Story Generation", §5.2 (top-k); Holtzman et al.
2020, "The Curious Case of Neural Text Degeneration", §3.1 (top-p).
"""

import codecs
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_dist.errors import DivergedError
from nanogpt_dist.generation.decoder import Decoder
from nanogpt_dist.generation.settings import Settings
from nanogpt_dist.tokenizer import Tokenizer
from nanogpt_dist.transfers import Readout, upload


@dataclass(frozen=True)
class Sample:
    """What the model wrote after `prompt`.

    ids: up to the end-of-text token or the first stop text, both left out.
    """

    prompt: str
    text: str
    ids: list[int]


def generator_of(seed: int, index: int) -> torch.Generator:
    """The generator of the index-th sample; on the CPU, so that all devices draw the same."""
    digest = hashlib.sha256(f"sample/{seed}/{index}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The logits of all but the likeliest tokens set to −∞: (B, V) → (B, V).

    Kept is the smallest set, of at least one token, whose total probability is ≥ p.
    """
    ordered, index = logits.sort(descending=True)
    probability = ordered.softmax(-1)
    before = _running_sum(probability) - probability  # probability of all that is more likely
    out = (before >= p) & (before > 0)
    return logits.masked_fill(out.scatter(-1, index, out), float("-inf"))


def _running_sum(probability: Tensor) -> Tensor:
    """cumsum of each row: (B, K) → (B, K), of equal bits each time.

    CUDA adds up a single row in parts, in the order in which they happen to be ready; several rows
    each by one block of threads.
    """
    if probability.is_cuda and len(probability) == 1:
        return probability.expand(2, -1).cumsum(-1)[:1]
    return probability.cumsum(-1)


def choose(logits: Tensor, settings: Settings, generators: Sequence[torch.Generator]) -> Tensor:
    """One id per row, each with its own generator: (B, V) → (B, 1)."""
    if settings.temperature < 1e-5:  # what follows could not tell it from 0 in float32
        return logits.argmax(-1, keepdim=True)
    index = None
    if settings.top_k is not None and settings.top_k < logits.size(-1):
        logits, index = logits.topk(settings.top_k)  # (B, K): all else is done on these
    # ≤ 0: nothing overflows
    logits = (logits - logits.amax(-1, keepdim=True)) / settings.temperature
    if settings.top_p is not None:
        logits = keep_top_p(logits, settings.top_p)
    reached = _running_sum(logits.softmax(-1))  # (B, K)
    # (B, 1), in [0, 1)
    drawn = torch.cat([torch.rand(1, 1, generator=each) for each in generators])
    drawn = upload(drawn, reached.device)
    # the first that goes beyond
    chosen = torch.searchsorted(reached, drawn * reached[:, -1:], right=True)
    last = (reached < reached[:, -1:]).sum(-1, keepdim=True)  # the last that has a probability
    chosen = torch.minimum(chosen, last)
    return chosen if index is None else index.gather(1, chosen)


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    indices: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """The next token of every row, again and again: B prompts → max_new_tokens × (B,).

    prompts: none is empty. indices: which sample after its prompt a row is; None: each the first.
    The context is cropped to the last block_size tokens. The ids are the host's, (B,) int64; on a
    GPU they are all that is read from it, once a token, while it is at work on the next.

    Raises DivergedError for logits that are not finite, BadDataError for an id that the model has
    no row for.
    """
    on_cpu = decoder.device.type == "cpu"
    logits = decoder.start(prompts, settings.max_new_tokens)  # (B, V)
    generators = [generator_of(settings.seed, index) for index in indices or [0] * len(prompts)]
    for left in range(settings.max_new_tokens - 1, -1, -1):
        chosen = choose(logits, settings, generators)[:, 0]  # (B,)
        if on_cpu:
            yield chosen
        else:
            arriving = _Arriving(chosen, logits)
        if left:
            logits = decoder.next(chosen)
        if not on_cpu:
            yield arriving.ids()


class _Arriving:
    """Ids on their way from the device, (B,), and whether the logits they are of were finite."""

    def __init__(self, ids: Tensor, logits: Tensor) -> None:
        finite = torch.isfinite(logits).all()
        found = torch.cat([ids, finite[None].to(ids.dtype)])  # (B + 1,)
        # elsewhere than on CUDA the copy itself waits
        self._read = Readout(found).get if found.is_cuda else found.cpu

    def ids(self) -> Tensor:
        """The ids, on the host. Raises DivergedError."""
        *ids, finite = self._read().tolist()
        if not finite:
            raise DivergedError
        return torch.tensor(ids)


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids; of an empty one the end-of-text token, or else first_text()'s.

    In the training data a document follows each end of text.
    """
    ids = tokenizer.encode(prompt).tolist()
    if ids:
        return ids
    return (
        [tokenizer.eot_id]
        if tokenizer.eot_id is not None
        else tokenizer.encode(first_text(tokenizer)).tolist()
    )


def first_text(tokenizer: Tokenizer) -> str:
    """What a sample begins with without a prompt: a line break, or else the first character."""
    lacks = tokenizer.kind == "char" and b"\n" not in tokenizer.tokens
    return tokenizer.decode([0]) if lacks else "\n"


def sample(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    count: int,
    settings: Settings,
) -> list[Sample]:
    """`count` samples after each prompt, all in one batch."""
    each, indices = _repeated(prompts, count)
    rows = generate_ids(
        decoder, tokenizer, [encode_prompt(prompt, tokenizer) for prompt in each], settings, indices
    )
    return [
        to_sample(prompt, row, tokenizer, settings.stop)
        for prompt, row in zip(each, rows, strict=True)
    ]


def generate_ids(
    decoder: Decoder,
    tokenizer: Tokenizer,
    contexts: Sequence[Sequence[int]],
    settings: Settings,
    indices: Sequence[int] | None = None,
) -> list[list[int]]:
    """The ids that follow each context, up to the end of text or the end of a stop text."""
    rows: list[list[int]] = [[] for _ in contexts]
    done = [False] * len(rows)
    for new in generate(decoder, contexts, settings, indices):
        for row, chosen in enumerate(new.tolist()):
            if not done[row]:
                done[row] = chosen in tokenizer.stop_ids
                if not done[row]:
                    rows[row].append(chosen)
                    tail = _tail(rows[row], tokenizer, settings.stop)
                    done[row] = _find_stop(tail, settings.stop) is not None
        if all(done):
            break
    return rows


def stream(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    count: int,
    settings: Settings,
) -> Iterator[tuple[int, str]]:
    """sample()'s texts piece by piece: (number of the sample, piece).

    They come one sample after the other, at least one piece of each. They are drawn in one batch,
    as there: the pieces of all later samples wait.
    """
    each, indices = _repeated(prompts, count)
    texts = [_TextPieces(tokenizer, settings.stop) for _ in each]
    waiting, now = [""] * len(each), 0
    for new in generate(
        decoder, [encode_prompt(prompt, tokenizer) for prompt in each], settings, indices
    ):
        waiting = [
            had + text.add(chosen)
            for had, text, chosen in zip(waiting, texts, new.tolist(), strict=True)
        ]
        while now < len(each) and (texts[now].done or waiting[now]):
            yield now, waiting[now]
            waiting[now] = ""
            if not texts[now].done:
                break
            now += 1
        if now == len(each):
            return
    for number in range(now, len(each)):
        yield number, waiting[number] + texts[number].end()


def _repeated(prompts: Sequence[str], count: int) -> tuple[list[str], list[int]]:
    """Each prompt `count` times, and which sample after it each is."""
    return [prompt for prompt in prompts for _ in range(count)], list(range(count)) * len(prompts)


class _TextPieces:
    """The text of one sample as it comes.

    Held back: the first bytes of a character, and what may begin a stop text.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self.back = max(0, max((len(stop) for stop in stops), default=0) - 1)
        self.held, self.done = "", False

    def add(self, chosen: int) -> str:
        """The piece of text that is certain with this token, and was not before it."""
        if self.done:
            return ""
        if chosen in self.tokenizer.stop_ids:
            return self.end()
        self.held += self.decode(self.tokenizer.decode_bytes([chosen]))
        stop = _find_stop(self.held, self.stops)
        self.done = stop is not None
        certain = max(0, len(self.held) - self.back) if stop is None else stop
        text, self.held = self.held[:certain], self.held[certain:]
        return text

    def end(self) -> str:
        """What was held back, unless it is a stop text."""
        if self.done:
            return ""
        self.done = True
        return self.held + self.decode(b"", final=True)


def _find_stop(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the first stop text begins in `text`; None: there is none."""
    return min((start for stop in stops if (start := text.find(stop)) >= 0), default=None)


def _tail(ids: list[int], tokenizer: Tokenizer, stops: tuple[str, ...]) -> str:
    """The end of the text so far, as long as any stop text that the last token completes."""
    if not stops:
        return ""
    bytes_needed = 2 * max(len(stop.encode()) for stop in stops)
    return tokenizer.decode(ids[-bytes_needed - 1 :])  # every token has at least one byte


def to_sample(prompt: str, ids: list[int], tokenizer: Tokenizer, stops: tuple[str, ...]) -> Sample:
    """The Sample of generate_ids()'s ids, cut before the first stop text."""
    text = tokenizer.decode(ids)
    stop = _find_stop(text, stops)
    if stop is not None:
        text = text[:stop]
        while ids and not text.startswith(tokenizer.decode(ids)):
            ids = ids[:-1]
    return Sample(prompt, text, ids)
