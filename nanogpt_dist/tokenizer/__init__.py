"""Text to token ids and back, as one name: `from nanogpt_dist import tokenizer`.

tokenizer.py          the class, and its own kinds: gpt2, byte, char, bpe:N
tokenizer_json.py     tokenizer.json as it was saved, read again
bpe.py                byte-pair encoding over tiktoken, and learning the merges
patterns.py           the regular expressions that split text into words
splintr.py            a faster encoder (extra `fast`), checked against tiktoken as it goes
loading.py            what --tokenizer names: tiktoken's, Hugging Face's and nanoGPT's files
tokenizer_config.py   Hugging Face's tokenizer_config.json and its kin: which ids end a text
hf_library.py         tokenizers that only Hugging Face's library can encode with
meta_pkl.py           nanoGPT's meta.pkl, read without executing anything
"""

from nanogpt_dist.tokenizer.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    bpe_size,
    byte,
    char,
    gpt2,
    id_type,
    safe_name,
    train_bpe,
)
from nanogpt_dist.tokenizer.tokenizer_json import load

__all__ = [
    "END_OF_TEXT",
    "Tokenizer",
    "bpe_size",
    "byte",
    "char",
    "gpt2",
    "id_type",
    "load",
    "safe_name",
    "train_bpe",
]
