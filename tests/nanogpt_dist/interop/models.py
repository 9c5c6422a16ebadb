"""Small models with all values drawn, of ours and of Hugging Face's, and tokenizers for them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.interop.import_run import ImportedModel, write_run
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.tokenizer import Tokenizer

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 48}
TEXTS = [
    "def read(self):\n    return self.lines",
    "It's 1984, naïve café; 東京 🙂",
    "\n\n  \t x",
    "The end.",
]


def bpe() -> Tokenizer:
    return tokenizers.train_bpe([text * 40 for text in TEXTS], 300)


def weights(config: TrainConfig, seed: int = 0) -> dict[str, Tensor]:
    """Values for all parameters, gains and biases too, large enough that logits differ clearly."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, parameter in GPT(config.architecture()).named_parameters():
        mean = 1.0 if name.endswith("weight") and parameter.ndim == 1 else 0.0
        drawn[name] = torch.empty(parameter.shape).normal_(mean, 0.2, generator=generator)
    return drawn


def make_run(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    """A run with one checkpoint of drawn weights; its token table is padded as nanoGPT pads it."""
    vocab = -(-tokenizer.n_vocab // 64) * 64
    config = resolve({**SIZES, "vocab_size": vocab, **settings})
    write_run(ImportedModel(config, weights(config), tokenizer, "a test"), folder)
    return folder


def ids(n_vocab: int, batch: int = 2, length: int = 20) -> Tensor:
    return torch.randint(n_vocab, (batch, length), generator=torch.Generator().manual_seed(3))
