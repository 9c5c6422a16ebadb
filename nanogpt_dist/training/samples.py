"""Samples while a run goes on: the same prompts again and again, continued by the weights so far.

No cache of keys and values: each token is a forward pass of the model as an evaluation makes it, so
that one path serves all strategies; under fsdp each token gathers the weights once.

Shape letters: B prompts, T tokens of prompt and continuation (≤ block_size), V ids that the
tokenizer has.
"""

from dataclasses import dataclass

import numpy as np
import torch

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data import DataFolder
from nanogpt_dist.devices import autocast
from nanogpt_dist.distributed.strategy import reshard
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import NanogptError
from nanogpt_dist.generation.sampling import Sample, choose, encode_prompt, generator_of, to_sample
from nanogpt_dist.generation.settings import Settings
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.tokenizer import Tokenizer
from nanogpt_dist.transfers import upload

PROMPTS, PROMPT_TOKENS = 3, 16  # of the val split, and of each document's beginning
SEARCHED = 65536  # tokens in which a document is to begin
NEW_TOKENS = 96
DRAWN = Settings(max_new_tokens=NEW_TOKENS)
ALIGNED = 16  # T is a multiple, as products in float8 want it


@dataclass(frozen=True)
class Sampler:
    """Continues `prompts` every `interval` steps, and after the last one, `max_iters`.

    The draws are seeded for themselves: training's randomness is left alone.
    """

    prompts: list[str]
    begun: list[list[int]]  # their ids
    tokenizer: Tokenizer
    world: World
    dtype: torch.dtype
    interval: int
    max_iters: int

    def is_due(self, step: int) -> bool:
        """Whether samples are drawn after `step` steps."""
        return step % self.interval == 0 or step == self.max_iters

    @torch.no_grad()
    def __call__(self, model: GPT) -> list[Sample]:
        """A sample after each prompt, of the model in evaluation mode; all ranks call it together.

        Every rank draws all of them: as many passes as there are new tokens, whatever is drawn.
        """
        was_training, block_size = model.training, model.config.block_size
        model.eval()
        rows = [list(ids) for ids in self.begun]
        longest = max(map(len, rows)) + DRAWN.max_new_tokens
        T = min(-(-longest // ALIGNED) * ALIGNED, block_size)
        generators = [generator_of(DRAWN.seed, 0) for _ in rows]
        for _ in range(DRAWN.max_new_tokens):
            contexts = [row[-T:] for row in rows]
            # what stands behind a row's last token is seen by none before it
            ids = torch.tensor([context + [0] * (T - len(context)) for context in contexts])
            with autocast(self.world.device, self.dtype):
                logits = model.logits(upload(ids, self.world.device))  # (B, T, V or more)
            ends = [len(context) - 1 for context in contexts]
            last = torch.stack([row[end] for row, end in zip(logits, ends, strict=True)])  # (B, V)
            last = last[:, : self.tokenizer.n_vocab].float()
            chosen = choose(last, DRAWN, generators)[:, 0].tolist()
            for row, token in zip(rows, chosen, strict=True):
                row.append(token)
        reshard(model)
        model.train(was_training)
        new = [row[len(ids) :] for row, ids in zip(rows, self.begun, strict=True)]
        return [
            to_sample(prompt, self._until_stop(ids), self.tokenizer, ())
            for prompt, ids in zip(self.prompts, new, strict=True)
        ]

    def _until_stop(self, ids: list[int]) -> list[int]:
        stop = next((i for i, token in enumerate(ids) if token in self.tokenizer.stop_ids), None)
        return ids[:stop]


def make_sampler(
    config: TrainConfig,
    data: DataFolder,
    world: World,
    dtype: torch.dtype,
) -> Sampler | None:
    """The Sampler that `config` asks for; None: it asks for none.

    Raises BadDataError, and what encoding a prompt raises: better now than hours later.
    """
    if config.sample_interval is None:
        return None
    prompts = config.sample_prompt or val_beginnings(data)
    return Sampler(
        prompts,
        [_encode(prompt, data.tokenizer) for prompt in prompts],
        data.tokenizer,
        world,
        dtype,
        config.sample_interval,
        config.max_iters,
    )


def _encode(prompt: str, tokenizer: Tokenizer) -> list[int]:
    try:
        return encode_prompt(prompt, tokenizer)
    except NanogptError as error:
        raise type(error)(f"--sample-prompt: {error}") from None


def val_beginnings(data: DataFolder) -> list[str]:
    """The first words of documents that are spread over the val split, as prompts.

    Where documents are not told apart, or none begins within SEARCHED tokens, the words there.
    """
    split, eot_id = data.split("val"), data.tokenizer.eot_id
    found = []
    for i in range(PROMPTS):
        start = i * split.tokens // PROMPTS
        ids = split.read(start, min(SEARCHED, split.tokens - start))
        if eot_id is not None and i:
            ends = np.flatnonzero(ids == eot_id)  # in front of a document, or behind the one before
            ids = ids[ends[0] + 1 :] if ends.size and ends[0] + 1 < len(ids) else ids
        words = ids[: PROMPT_TOKENS + 1].tolist()
        words = words[1:] if words[:1] == [eot_id] else words[:PROMPT_TOKENS]
        if eot_id in words:
            words = words[: words.index(eot_id)]
        found.append(data.tokenizer.decode(words).strip("\ufffd"))  # half a character at an end
    return list(dict.fromkeys(found))
