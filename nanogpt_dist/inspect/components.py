"""What each component of a model takes, gives and does, in words and in shape letters. No torch.

Shape letters: B sequences in the batch, T = block_size, C = n_embd, H = n_head, K = n_kv_head,
D = C / H, F = width of the MLP, V = vocab_size. Components are named as in the checkpoint, without
`transformer.` and the block's number: h.attn.c_attn.
"""

from nanogpt_dist.config import ModelConfig

Description = tuple[str, str, str]  # letters of the input, letters of the output, what it does

NORMS = {
    "layernorm": "LayerNorm: each position to mean 0 and variance 1, then scaled.",
    "rmsnorm": "RMSNorm: each position to mean square 1, then scaled.",
}
ACTIVATIONS = {
    "gelu": "The non-linearity: GELU.",
    "relu2": "The non-linearity: ReLU, squared.",
    "swiglu": "SwiGLU: one half, through SiLU, is the gate of the other.",
}


def descriptions(config: ModelConfig) -> dict[str, Description]:
    """Component → its Description; trace() checks the letters against the sizes."""
    norm = NORMS[config.norm]
    if not config.norm_weights:
        norm = norm.replace(", then scaled", "")
    kind, normed = norm.split(":")[0], config.embedding_norm
    row = "Each position's row of the position embedding"
    wpe = ("T", "T C", f"{row}, added to every sequence.")
    if config.intra_document:
        wpe = ("B T", "B T C", f"{row}; positions begin anew with a document.")
    head = "the token embedding: weights are tied." if config.tie_embeddings else "its own."
    return {
        "GPT": (
            "B T",
            "B T V",
            "Token ids to logits: for each position, a score of every possible next token.",
        ),
        "wte": ("B T", "B T C", "Each id's row of the token embedding."),
        "wpe": wpe,
        **(
            {"bigram": ("B T", "B T C", "A row for each pair of the last two ids, added to it.")}
            if config.bigram_rows is not None
            else {}
        ),
        **({"ln_emb": ("B T C", "B T C", f"{kind} of the embedding.")} if normed else {}),
        **(
            {"smear": ("B T C", "B T C", "Adds the embedding before each, through a gate.")}
            if config.smear
            else {}
        ),
        "drop": ("B T C", "B T C", "Dropout; identity outside of training."),
        "h": (
            "B T C",
            "B T C",
            "A block, one of n_layer: attention, then MLP, each added to its own input.",
        ),
        **(
            {"h.residual": ("B T C", "B T C", "a·x + b·(the embedding), of two learnt scalars.")}
            if config.residual_scalars
            else {}
        ),
        "h.ln_1": ("B T C", "B T C", norm),
        **_attention(config),
        "h.ln_2": ("B T C", "B T C", f"{kind}, ahead of the MLP."),
        **_mlp(config),
        "ln_f": ("B T C", "B T C", f"{kind} of what the last block gives."),
        "lm_head": ("B T C", "B T V", f"Dot product with every row of {head}"),
        "loss": ("B·T V", "", "Mean cross-entropy in nats/token; untrained ≈ ln V."),
    }


def _attention(config: ModelConfig) -> dict[str, Description]:
    grouped = config.kv_heads != config.n_head
    qkv, K, part = ("(H+2K)·D", "K", "part") if grouped else ("3C", "H", "third")
    size = config.shortest_window
    window = "" if size is None else f"; {size} tokens in short layers"
    values = "Each id's row of a table of this block's own, added to the values."
    KD = "K·D" if grouped else "C"
    return {
        "h.attn": (
            "B T C",
            "B T C",
            "Causal self-attention: a position reads itself and those before it.",
        ),
        "h.attn.c_attn": (
            "B T C",
            f"B T {qkv}",
            "Queries, keys and values, in one matrix product.",
        ),
        "h.attn.q_norm": ("B H T D", "B H T D", "RMSNorm of each query."),
        "h.attn.k_norm": (f"B {K} T D", f"B {K} T D", "RMSNorm of each key."),
        **(
            {"h.attn.value_embedding": ("B T", f"B T {KD}", values)}
            if config.value_embeddings
            else {}
        ),
        "h.attn.q": (
            f"B T {qkv}",
            "B H T D",
            f"Queries: the first {part}, cut into heads. What a position looks for.",
        ),
        "h.attn.k": (
            f"B T {qkv}",
            f"B {K} T D",
            f"Keys: the second {part}. What a position offers to be found by.",
        ),
        "h.attn.v": (
            f"B T {qkv}",
            f"B {K} T D",
            f"Values: the last {part}. What a position hands over when found.",
        ),
        "h.attn.sdpa": (
            "B H T D",
            "B H T D",
            f"softmax(q kᵀ / √D + causal mask{window}) v, in each head by itself.",
        ),
        "h.attn.c_proj": (
            "B T C",
            "B T C",
            "The heads, side by side again, mixed into one update.",
        ),
        "h.attn.resid_dropout": ("B T C", "B T C", "Dropout of the update."),
    }


def _mlp(config: ModelConfig) -> dict[str, Description]:
    F = "4C" if config.mlp_width == 4 * config.n_embd else "F"
    wide = {"swiglu": "2" + ("F" if F == "F" else "·4C")}.get(config.mlp, F)
    wider = "Four times wider." if F == wide == "4C" else "Wider."
    return {
        "h.mlp": (
            "B T C",
            "B T C",
            "Two linear layers around a non-linearity, for each position by itself.",
        ),
        "h.mlp.c_fc": ("B T C", f"B T {wide}", wider),
        "h.mlp.act": (f"B T {wide}", f"B T {F}", ACTIVATIONS[config.mlp]),
        "h.mlp.c_proj": (f"B T {F}", "B T C", "Narrow again."),
        "h.mlp.dropout": ("B T C", "B T C", "Dropout of the update."),
    }
