"""Parameters counted by hand: the arithmetic on an architecture, without a model and without torch.

Letters: T = block_size, C = n_embd, H = n_head, D = C / H, K = n_kv_head, F = width of the MLP,
R = bigram_rows, V = vocab_size. Components are named as in the checkpoint, without `transformer.`
and the number of the block: h.attn.c_attn. architecture.py counts the same on the model itself and
compares.
"""

import math

from nanogpt_dist.config import ModelConfig


def formulas(config: ModelConfig) -> dict[str, list[str]]:
    """Parameters of one instance of each component: terms to be added, products of letters."""
    C = "C"
    qkv = "3C" if config.kv_heads == config.n_head else "(H+2K)·D"
    KD = C if config.kv_heads == config.n_head else "K·D"
    F = "4C" if config.mlp_width == 4 * config.n_embd else "F"
    wide = f"2·{F}" if config.mlp == "swiglu" else F

    def linear(given: str, gives: str) -> list[str]:
        return [f"{given}·{gives}", *([gives] if config.bias else [])]

    def norm(name: str) -> dict[str, list[str]]:
        if not config.norm_weights:
            return {}
        return {name: [C, C] if config.bias and config.norm == "layernorm" else [C]}

    return {
        "wte": ["V·C"],
        **({} if config.rotary else {"wpe": ["T·C"]}),
        **({"bigram": ["R·C"]} if config.bigram_rows is not None else {}),
        **(norm("ln_emb") if config.embedding_norm else {}),
        **({"smear": [str(config.gate_width), "1"]} if config.smear else {}),
        **({"h.residual": ["2"]} if config.residual_scalars else {}),
        **norm("h.ln_1"),
        "h.attn.c_attn": linear(C, qkv),
        **({"h.attn.q_norm": ["D"], "h.attn.k_norm": ["D"]} if config.qk_norm else {}),
        **({"h.attn.value_embedding": [f"V·{KD}", "1"]} if config.value_embeddings else {}),
        "h.attn.c_proj": linear(C, C),
        **norm("h.ln_2"),
        "h.mlp.c_fc": linear(C, wide),
        "h.mlp.c_proj": linear(F, C),
        **norm("ln_f"),
        "lm_head": [] if config.tie_embeddings else ["V·C"],
    }


def count_by_arithmetic(config: ModelConfig) -> dict[str, int]:
    """{component: parameters}, summed over the blocks; the values add up to those of the model.

    config.vocab_size must be set.
    """
    sizes = letter_sizes(config, batch_size=1)
    sizes |= {"3C": 3 * sizes["C"], "4C": 4 * sizes["C"]}
    sizes["(H+2K)"] = config.n_head + 2 * config.kv_heads

    def count(terms: list[str]) -> int:
        return sum(math.prod(map(size, term.split("·"))) for term in terms)

    def size(letter: str) -> int:
        return int(letter) if letter.isdigit() else sizes[letter]

    return {
        name: count(terms) * instances(name, config.n_layer)
        for name, terms in formulas(config).items()
    }


def instances(name: str, n_layer: int) -> int:
    """How many times the model has this component."""
    if name == "h.attn.value_embedding":  # every other block, so that the last has one
        return (n_layer + 1) // 2
    return n_layer if name.startswith("h.") else 1


def letter_sizes(config: ModelConfig, batch_size: int) -> dict[str, int]:
    """What each shape letter stands for. config.vocab_size must be set."""
    assert config.vocab_size is not None
    letters = {
        "B": batch_size,
        "T": config.block_size,
        "C": config.n_embd,
        "H": config.n_head,
        "D": config.head_size,
    }
    if config.kv_heads != config.n_head:
        letters["K"] = config.kv_heads
    if config.bigram_rows is not None:
        letters["R"] = config.bigram_rows
    if config.mlp_width != 4 * config.n_embd:
        letters["F"] = config.mlp_width
    return {**letters, "V": config.vocab_size}
