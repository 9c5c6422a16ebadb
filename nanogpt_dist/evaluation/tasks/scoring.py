"""Log-likelihoods of continuations, on all ranks together, the same on any number of them.

Shape letters: B requests in a batch, T tokens of the longest, V ids that the tokenizer has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_dist.devices import autocast
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import DivergedError
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.tokenizer import Tokenizer
from nanogpt_dist.transfers import Readout, upload

# ids of a context, which is not empty, and of what follows
Request = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Score:
    """Of a continuation: its log_likelihood in nats, and how many tokens it has.

    greedy: whether each of them is the likeliest.
    """

    log_likelihood: float
    greedy: bool
    tokens: int


@dataclass(frozen=True)
class Scorer:
    """A model that scores, and how. Ids that the tokenizer does not have are no candidates.

    Where a request is longer than block_size, the last tokens of its context count.
    """

    model: GPT
    tokenizer: Tokenizer
    world: World
    batch_size: int = 16
    dtype: torch.dtype = torch.float32

    @torch.no_grad()
    def __call__(self, requests: Sequence[Request]) -> list[Score]:
        """The Score of each request; all ranks call it together, with the same requests.

        Batches do not depend on the ranks, and each rank adds its own to zeros: so the sums are
        exact. The device is waited for once, at the end. Raises DivergedError; BadDataError for an
        id without a row in the token embedding.
        """
        rows = [self._row(context, following) for context, following in requests]
        self.model.refuse_unknown(max((max(ids) for ids, _ in rows), default=0))
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), i))  # the longest first
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        found = torch.zeros(2, len(rows), dtype=torch.float64)
        mine: list[int] = []  # of which request
        scores: list[Tensor] = []  # (2, B) each
        for batch, counts in self.world.split_over_ranks(batches):
            scored = self._batch([rows[i] for i in batch])
            if counts:
                mine += batch
                scores.append(scored)
        if scores:
            whole = Readout(torch.cat(scores, 1), self.world.watchdog.wait).get()
            found[:, mine] = whole.double()  # mps has no float64
        found = self.world.sum(found)
        if not torch.isfinite(found).all():
            raise DivergedError
        return [
            Score(float(s), bool(g), len(following))
            for s, g, (_, following) in zip(*found, requests, strict=True)
        ]

    def _row(self, context: Sequence[int], following: Sequence[int]) -> tuple[list[int], int]:
        """The ids, cut to block_size and one more; and how many at the end are to be predicted."""
        assert context, "a context has at least one token"
        ids = [*context, *following][-(self.model.config.block_size + 1) :]
        return ids, min(len(following), len(ids) - 1)

    def _batch(self, rows: list[tuple[list[int], int]]) -> Tensor:
        """Log-likelihoods and whether greedy: (2, B) float32, on the device."""
        T = max(len(ids) for ids, _ in rows) - 1
        padded = torch.tensor([[*ids, *[0] * (T + 1 - len(ids))] for ids, _ in rows])
        padded = upload(padded, self.world.device)
        with autocast(self.world.device, self.dtype):
            # (B, T, V); what stands behind a row changes nothing in it
            logits = self.model.logits(padded[:, :-1])
        found = []
        for row, (ids, n), answer in zip(logits, rows, padded, strict=True):
            last = slice(len(ids) - 1 - n, len(ids) - 1)
            wanted = answer[1:][last]  # (n,)
            log_p = F.log_softmax(row[last, : self.tokenizer.n_vocab].float(), dim=-1)  # (n, V)
            likely = log_p.gather(1, wanted[:, None]).sum()
            found.append(torch.stack([likely, (log_p.argmax(1) == wanted).all().to(likely.dtype)]))
        return torch.stack(found, 1)


def pair(tokenizer: Tokenizer, context: str, following: str) -> Request:
    """Ids of a context and of what follows, cut where lm-eval cuts.

    The spaces between them belong to what follows.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, following = context[:-spaces], context[-spaces:] + following
    whole = tokenizer.encode(context + following).tolist()
    length = len(tokenizer.encode(context))
    if length:
        return whole[:length], whole[length:]
    eot = tokenizer.eot_id  # which documents follow
    return ([eot], whole) if eot is not None else (whole[:1], whole[1:])
