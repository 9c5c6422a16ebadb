"""Samples while a run goes on: the same prompts again and again, continued by the weights so far.

No cache of keys and values: each token is a forward pass of the model as an evaluation makes it, so
that one path serves all strategies; under fsdp each token gathers the weights once.

Shape letters: B prompts, T tokens of prompt and continuation (≤ block_size), V ids that the
tokenizer has.
"""

from dataclasses import dataclass

import torch

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data import DataFolder
from nanogpt_dist.data.documents import document_starts
from nanogpt_dist.devices import autocast
from nanogpt_dist.distributed.strategy import reshard
from nanogpt_dist.distributed.world import World
from nanogpt_dist.generation.sampling import Sample, choose, encode_prompt, generator_of, to_sample
from nanogpt_dist.generation.settings import Settings
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.tokenizer import Tokenizer
from nanogpt_dist.transfers import upload

PROMPTS, PROMPT_TOKENS = 3, 16  # of the val split, and of each document's beginning
NEW_TOKENS = 96
DRAWN = Settings(max_new_tokens=NEW_TOKENS)
ALIGNED = 16  # T is a multiple, as products in float8 want it


@dataclass(frozen=True)
class Sampler:
    """Continues `prompts` every `interval` steps, and after the last one, `max_iters`.

    The draws are seeded for themselves: training's randomness is left alone.
    """

    prompts: list[str]
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
        begun = [encode_prompt(prompt, self.tokenizer) for prompt in self.prompts]
        rows = [list(ids) for ids in begun]
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
        new = [row[len(ids) :] for row, ids in zip(rows, begun, strict=True)]
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
    """The Sampler that `config` asks for; None: it asks for none. Raises BadDataError."""
    if config.sample_interval is None:
        return None
    prompts = config.sample_prompt or val_beginnings(data, config.block_size)
    return Sampler(prompts, data.tokenizer, world, dtype, config.sample_interval, config.max_iters)


def val_beginnings(data: DataFolder, block_size: int) -> list[str]:
    """The first words of documents that are spread over the val split, as prompts.

    Where documents are not told apart, or are longer than a window, the words there.
    """
    split, eot_id = data.split("val"), data.tokenizer.eot_id
    ends_known = data.manifest.eot is not None and eot_id is not None
    starts = document_starts(data) if ends_known else None
    found = []
    for i in range(PROMPTS):
        start = i * split.tokens // PROMPTS
        length = min(block_size, split.tokens - start)
        if starts is not None and length > 0:
            start = starts.align(split, start, length)
        ids = split.read(start, min(PROMPT_TOKENS + 1, split.tokens - start)).tolist()
        ids = ids[1:] if ids[:1] == [eot_id] else ids[:PROMPT_TOKENS]
        if eot_id in ids:
            ids = ids[: ids.index(eot_id)]
        found.append(data.tokenizer.decode(ids).strip("\ufffd"))  # half a character at an end
    return list(dict.fromkeys(found))
