"""The model card of an export: what the model is, how it was trained, what it scored. No torch."""

from typing import TYPE_CHECKING

from nanogpt_dist import __version__
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nanogpt_dist.checkpoint import TrainState


def model_card(name: str, config: TrainConfig, state: "TrainState", tokenizer: Tokenizer, parameters: int) -> str:
    """README.md of the export, in Markdown with the hub's header."""
    loss = "not evaluated" if state.val_loss is None else f"{state.val_loss:.4f} nats/token"
    rows = {
        "parameters": f"{parameters:,}",
        "architecture": f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, "
        f"context {config.block_size:,}, {'with' if config.bias else 'without'} biases, {config.gelu} GELU",
        "tokenizer": f"{tokenizer.name}, {tokenizer.n_vocab:,} ids",
        "data": config.dataset,
        "updates": f"{state.step:,} of {config.global_batch_size * config.block_size:,} tokens",
        "tokens seen": f"{state.tokens:,}",
        "learning rate": f"{config.learning_rate:g}" + (f", down to {config.min_lr:g}" if config.decay_lr else ""),
        "weight decay, β1, β2": f"{config.weight_decay:g}, {config.beta1:g}, {config.beta2:g}",
        "loss on the val split": loss,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2]
---

# {name}

A GPT-2 pretrained with nanogpt-dist {__version__}.

| | |
|---|---|
{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=50, do_sample=True, temperature=0.8, top_k=200)[0]))
```

Rows of the token table beyond the tokenizer's ids, which padded it in training, are left out. `<|endoftext|>` within a
text is the special token to this tokenizer; in the training data it was ordinary text.
"""
