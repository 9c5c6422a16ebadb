"""Text from a model: choose the next token, append, repeat. Never an id that the tokenizer cannot decode.

Shape letters: B samples, V ids that the tokenizer has.

Sources: Fan et al. 2018, "Hierarchical Neural Story Generation", §5.2 (top-k); Holtzman et al. 2020, "The Curious Case
of Neural Text Degeneration", §3.1 (top-p).
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanogpt_dist.decoding import Decoder
from nanogpt_dist.tokenizer import Tokenizer


@dataclass(frozen=True)
class Settings:
    """How to choose. temperature 0 takes the most probable token; top_k and top_p None are off."""

    max_new_tokens: int = 500
    temperature: float = 0.8
    top_k: int | None = 200
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int = 1337


@dataclass(frozen=True)
class Sample:
    """What the model wrote after `prompt`: `ids` end before the end-of-text token or the first stop text."""

    prompt: str
    text: str
    ids: list[int]


def reseeded(settings: Settings, index: int) -> Settings:
    """The settings for the index-th of several samples that are drawn one by one."""
    return replace(settings, seed=settings.seed + index)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """All but the smallest set of tokens, at least one, of total probability ≥ p set to −∞: (B, V) → (B, V)."""
    ordered, index = logits.sort(descending=True)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability  # probability of all that is more likely
    out = (before >= p) & (before > 0)
    return logits.masked_fill(out.scatter(-1, index, out), float("-inf"))


def choose(logits: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """One id per row: (B, V) → (B, 1)."""
    if settings.temperature < 1e-5:  # what follows could not tell it from 0 in float32
        return logits.argmax(-1, keepdim=True)
    index = None
    if settings.top_k is not None and settings.top_k < logits.size(-1):
        logits, index = logits.topk(settings.top_k)  # (B, K): all else is done on these
    logits = (logits - logits.amax(-1, keepdim=True)) / settings.temperature  # ≤ 0: nothing overflows
    if settings.top_p is not None:
        logits = keep_top_p(logits, settings.top_p)
    chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    return chosen if index is None else index.gather(1, chosen)


def generate(decoder: Decoder, prompts: Sequence[Sequence[int]], settings: Settings) -> Iterator[Tensor]:
    """The next token of every row, again and again: B prompts, none empty → max_new_tokens × (B,).

    The context is cropped to the model's last block_size tokens. Raises BadDataError for weights that diverged.
    """
    logits = decoder.start(prompts, settings.max_new_tokens)  # (B, V)
    generator = torch.Generator(logits.device).manual_seed(settings.seed)
    for left in range(settings.max_new_tokens - 1, -1, -1):
        chosen = choose(logits, settings, generator)[:, 0]  # (B,)
        yield chosen
        if left:
            logits = decoder.next(chosen)


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids; an empty prompt is the end-of-text token, which documents follow, or else a line break."""
    ids = tokenizer.encode(prompt).tolist()
    if ids:
        return ids
    return [tokenizer.eot_id] if tokenizer.eot_id is not None else tokenizer.encode("\n").tolist()


def sample(
    decoder: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], count: int, settings: Settings
) -> list[Sample]:
    """`count` samples after each prompt, all in one batch."""
    each = [prompt for prompt in prompts for _ in range(count)]
    rows: list[list[int]] = [[] for _ in each]
    done = [False] * len(each)
    for new in generate(decoder, [encode_prompt(prompt, tokenizer) for prompt in each], settings):
        for row, chosen in enumerate(new.tolist()):
            if not done[row]:
                done[row] = chosen in tokenizer.stop_ids
                if not done[row]:
                    rows[row].append(chosen)
                    done[row] = _find_stop(_tail(rows[row], tokenizer, settings.stop), settings.stop) is not None
        if all(done):
            break
    return [_finish(prompt, row, tokenizer, settings.stop) for prompt, row in zip(each, rows, strict=True)]


def stream(decoder: Decoder, tokenizer: Tokenizer, prompt: str, settings: Settings) -> Iterator[str]:
    """One sample, piece by piece as it comes; joined, the pieces are sample()'s text for the same seed."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode  # holds back a character's first bytes
    held = ""  # what may be the beginning of a stop text
    longest = max((len(stop) for stop in settings.stop), default=0)
    for new in generate(decoder, [encode_prompt(prompt, tokenizer)], settings):
        chosen = int(new.item())
        if chosen in tokenizer.stop_ids:
            break
        held += decode(tokenizer.decode_bytes([chosen]))
        if (found := _find_stop(held, settings.stop)) is not None:
            yield held[:found]
            return
        safe = len(held) - max(0, longest - 1)
        if safe > 0:
            yield held[:safe]
            held = held[safe:]
    yield held + decode(b"", final=True)


def _find_stop(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the first stop text begins in `text`."""
    return min((found for stop in stops if (found := text.find(stop)) >= 0), default=None)


def _tail(ids: list[int], tokenizer: Tokenizer, stops: tuple[str, ...]) -> str:
    """The end of the text so far, long enough to hold any stop text that the last token completed."""
    if not stops:
        return ""
    bytes_needed = 2 * max(len(stop.encode()) for stop in stops)
    return tokenizer.decode(ids[-bytes_needed - 1 :])  # every token has at least one byte


def _finish(prompt: str, ids: list[int], tokenizer: Tokenizer, stops: tuple[str, ...]) -> Sample:
    text = tokenizer.decode(ids)
    found = _find_stop(text, stops)
    if found is not None:
        text = text[:found]
        while ids and not text.startswith(tokenizer.decode(ids)):
            ids = ids[:-1]
    return Sample(prompt, text, ids)
