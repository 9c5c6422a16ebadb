"""What the next token of a row reads of the one before it, beside the caches of attention.

Shape letters: B rows, T tokens of the longest prompt, C = n_embd.
"""

import torch
from torch import Tensor

from nanogpt_dist.model.gpt import Transformer
from nanogpt_dist.model.positions import SequencePositions


class LastToken:
    """The id of each row's last token, and its embedding before the smear.

    Both stand at the parity of the token's position: a step reads one place and writes the other,
    so that to run it twice, as a recording does, leaves what to run it once would.
    """

    def __init__(self, rows: int, transformer: Transformer, device: torch.device) -> None:
        self.transformer = transformer
        self.ids = torch.zeros(rows, 2, dtype=torch.int64, device=device)
        self.x = torch.zeros(rows, 2, transformer.config.n_embd, device=device)
        self.each = torch.arange(rows, device=device)

    def embed_prompts(
        self,
        ids: Tensor,
        positions: SequencePositions,
        lengths: Tensor,
        rows: Tensor | None,
    ) -> Tensor:
        """What goes into the first block after prompts (B, T) of these lengths: (B, T, C).

        rows: the prompt of each row, of which the last token is kept; None: none is kept.
        """
        x = self.transformer.embed_tokens(ids, positions.position_ids)  # (B, T, C)
        if rows is not None:
            last = lengths[rows] - 1  # (B,)
            self.ids[self.each, last % 2] = ids[rows, last]
            self.x[self.each, last % 2] = x[rows, last]
        return self.transformer.smeared(x, positions.position_ids)

    def embed_next(self, ids: Tensor, last: Tensor) -> Tensor:
        """The same after one id of each row, (B,), at the positions `last`, (B,): (B, 1, C)."""
        before, here = (last + 1) % 2, last % 2
        ids_before = self.ids[self.each, before][:, None]  # (B, 1)
        x = self.transformer.embed_tokens(ids[:, None], last[:, None], ids_before)  # (B, 1, C)
        self.ids[self.each, here], self.x[self.each, here] = ids, x[:, 0]
        return self.transformer.smeared(x, last[:, None], self.x[self.each, before][:, None])
