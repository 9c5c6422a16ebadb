"""Named presets: what differs from the defaults in config/; flags go on top.

A preset is a plain dict.

Sources: nanoGPT's config/ files; Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners", table 2; of the modern ones Jordan et al. 2024, "modded-nanogpt", and Karpathy 2025,
"nanochat" (architecture, rates, batch, tokens for each parameter).
"""

from typing import Any

DEFAULT_PRESET = "gpt2-124m"

MEDIUM = {"n_layer": 24, "n_head": 16, "n_embd": 1024}
LARGE = {"n_layer": 36, "n_head": 20, "n_embd": 1280}
XL = {"n_layer": 48, "n_head": 25, "n_embd": 1600}

# nanoGPT's train_gpt2: the vocabulary padded from 50257 to a multiple of 64, no biases, exact GELU.
PRETRAIN = {"vocab_size": 50304}
# The architecture of OpenAI's released weights.
OPENAI = {"vocab_size": 50257, "bias": True, "gelu": "tanh"}
OPENAI_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {**OPENAI},
    "gpt2-medium": {**OPENAI, **MEDIUM},
    "gpt2-large": {**OPENAI, **LARGE},
    "gpt2-xl": {**OPENAI, **XL},
}

# What came after GPT-2, of which each piece can be turned off again.
MODERN: dict[str, Any] = {
    "rotary": True,
    "norm": "rmsnorm",
    "norm_weights": False,
    "embedding_norm": True,
    "mlp": "relu2",
    "tied_head": False,
    "init": "fan_in",
    "zero_init": True,
    "optimizer": "muon",
    "schedule": "wsd",
}
# For GPUs: 512 Ki tokens a step, 12 tokens for each parameter of the blocks and the head; the rate
# falls to a twentieth over the last 65 %.
MODERN_GPU: dict[str, Any] = {
    **PRETRAIN,
    **MODERN,
    "rotary_base": 100_000.0,
    "qk_norm": True,
    "logit_softcap": 15.0,
    "residual_scalars": True,
    "block_size": 2048,
    "sliding_window": 512,
    "batch_size": 16,
    "gradient_accumulation_steps": 16,
    "learning_rate": 0.01,
    "min_lr": 0.0005,
    "muon_learning_rate": 0.02,
    "muon_momentum_warmup": 300,
    "embedding_learning_rate": 0.3,
    "head_learning_rate": 0.008,
    "beta1": 0.8,
    "weight_decay": 0.1,
    "cautious_weight_decay": True,
    "warmup_iters": 40,
    "decay_fraction": 0.65,
    "eval_interval": 250,
}

PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-124m": {**PRETRAIN, "eval_interval": 1000},
    "gpt2-350m": {
        **PRETRAIN,
        **MEDIUM,
        "eval_interval": 1000,
        "learning_rate": 3e-4,
        "min_lr": 3e-5,
    },
    "gpt2-774m": {
        **PRETRAIN,
        **LARGE,
        "eval_interval": 1000,
        "learning_rate": 2.5e-4,
        "min_lr": 2.5e-5,
    },
    "gpt2-1558m": {**PRETRAIN, **XL, "eval_interval": 1000, "learning_rate": 2e-4, "min_lr": 2e-5},
    "modern-124m": {**MODERN_GPU, "n_head": 6, "max_iters": 2830},
    "modern-350m": {**MODERN_GPU, **MEDIUM, "n_head": 8, "max_iters": 8090},
    "modern-1558m": {**MODERN_GPU, **XL, "max_iters": 35_600},
    **OPENAI_SIZES,
    # nanoGPT's finetune_shakespeare and eval_gpt2…: OpenAI's weights; evaluated over the whole val
    # split.
    "finetune-shakespeare": {
        "init_from": "gpt2-xl",
        "dataset": "data/shakespeare",
        "batch_size": 1,
        "gradient_accumulation_steps": 32,
        "max_iters": 20,
        "learning_rate": 3e-5,
        "decay_lr": False,
        "eval_interval": 5,
        "eval_iters": 40,
        "log_interval": 1,
        "always_save_checkpoint": False,
    },
    **{f"eval-{name}": {"init_from": name, "batch_size": 8} for name in OPENAI_SIZES},
    "shakespeare-char": {
        "dataset": "data/shakespeare_char",
        "vocab_size": 65,
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "block_size": 256,
        "dropout": 0.2,
        "batch_size": 64,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "min_lr": 1e-4,
        "beta2": 0.99,
        "warmup_iters": 100,
        "max_iters": 5000,
        "eval_interval": 250,
        "always_save_checkpoint": False,
    },
    "shakespeare-char-cpu": {
        "dataset": "data/shakespeare_char",
        "vocab_size": 65,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "block_size": 64,
        "batch_size": 12,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "min_lr": 1e-4,
        "beta2": 0.99,
        "warmup_iters": 100,
        "max_iters": 2000,
        "eval_interval": 250,
        "eval_iters": 20,
        "always_save_checkpoint": False,
    },
    # nanoGPT's loss on a laptop, in a tenth of its steps.
    "modern-char": {
        **MODERN,
        "norm": "layernorm",
        "dataset": "data/shakespeare_char",
        "vocab_size": 65,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "block_size": 64,
        "batch_size": 16,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.01,
        "min_lr": 0.0,
        "muon_learning_rate": 0.05,
        "muon_momentum": 0.8,
        "embedding_learning_rate": 0.04,
        "weight_decay": 0.0,
        "warmup_iters": 5,
        "decay_fraction": 0.7,
        "max_iters": 180,
        "eval_interval": 180,
        "eval_iters": 110,
        "log_interval": 20,
        "always_save_checkpoint": False,
    },
    # For two CPU cores and two minutes: many small steps teach more than few large ones.
    "quickstart": {
        **MODERN,
        "norm": "layernorm",
        "smear": True,
        "dataset": "data/python-stdlib",
        "vocab_size": 4096,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "block_size": 128,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "min_lr": 0.0,
        "muon_learning_rate": 0.02,
        "muon_momentum": 0.8,
        "embedding_learning_rate": 0.03,
        "head_learning_rate": 0.015,
        "weight_decay": 0.0,
        "warmup_iters": 5,
        "decay_fraction": 0.7,
        "max_iters": 1000,
        "eval_interval": 250,
        "eval_iters": 50,
        "log_interval": 20,
    },
}

ABOUT: dict[str, str] = {  # what each preset is, in a few words
    "gpt2-124m": "GPT-2 small, from scratch",
    "gpt2-350m": "GPT-2 medium, from scratch",
    "gpt2-774m": "GPT-2 large, from scratch",
    "gpt2-1558m": "GPT-2 XL, from scratch",
    "modern-124m": "what came after GPT-2, small",
    "modern-350m": "what came after GPT-2, medium",
    "modern-1558m": "what came after GPT-2, XL",
    "gpt2": "small, as OpenAI built it",
    "gpt2-medium": "medium, as OpenAI built it",
    "gpt2-large": "large, as OpenAI built it",
    "gpt2-xl": "XL, as OpenAI built it",
    "finetune-shakespeare": "OpenAI's XL, fine-tuned",
    "eval-gpt2": "OpenAI's weights: small",
    "eval-gpt2-medium": "OpenAI's weights: medium",
    "eval-gpt2-large": "OpenAI's weights: large",
    "eval-gpt2-xl": "OpenAI's weights: XL",
    "shakespeare-char": "characters, on a GPU",
    "shakespeare-char-cpu": "characters, on a laptop",
    "modern-char": "characters, on a laptop, in seconds",
    "quickstart": "two minutes on two cores",
}
