"""The model card of an export: what the model is, where it comes from, what it scored. No torch."""

import json
import re
from pathlib import PurePath
from typing import TYPE_CHECKING

from nanogpt_dist import __version__
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import one_line
from nanogpt_dist.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nanogpt_dist.checkpoint import TrainState

REPOSITORY = re.compile(r"Hugging Face: (\w[\w.-]*(?:/\w[\w.-]*)?)", re.ASCII)


def model_card(
    name: str,
    config: TrainConfig,
    state: "TrainState",
    tokenizer: Tokenizer,
    parameters: int,
    origin: str | None = None,
    as_imported: bool = False,
) -> str:
    """README.md of the export, in Markdown with the hub's header.

    origin: whose weights the run began with, None for its own; as_imported: they have not been
    trained since. Of weights of others nothing is told but what is known: what their training read,
    and at which rate, is theirs to say.
    """
    rows = {
        "parameters": f"{parameters:,}",
        "architecture": f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, "
        f"context {config.block_size:,}, {'with' if config.bias else 'without'} "
        f"biases, {config.gelu} GELU",
        "tokenizer": f"{tokenizer.name}, {tokenizer.n_vocab:,} ids",
    }
    if not as_imported:
        rows |= _training(config, state, origin)
    elif state.step:
        rows["updates"] = f"{state.step:,}, as its checkpoint says"
    table = "\n".join(f"| {key} | {_in_table(value)} |" for key, value in rows.items())
    base = REPOSITORY.fullmatch(origin or "")
    more = f"base_model: {base[1]}\n" if base else ""
    python = json.dumps(name, ensure_ascii=False)
    special = "" if as_imported else "; in the training data it was ordinary text"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{more}tags: [gpt2]
---

# {one_line(name)}

{_told(origin, as_imported)}

| | |
|---|---|
{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained({python}), AutoTokenizer.from_pretrained({python})
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=50, do_sample=True, temperature=0.8, top_k=200)[0]))
```

Rows of the token table beyond the tokenizer's ids, which padded it in training, are left out. `<|endoftext|>` within a
text is the special token to this tokenizer{special}.
"""  # noqa: E501


def _training(config: TrainConfig, state: "TrainState", origin: str | None) -> dict[str, str]:
    """What the run did.

    Of one that goes on with nanoGPT's checkpoint the count of steps is of both.
    """
    loss = "not evaluated" if state.val_loss is None else f"{state.val_loss:.4f} nats/token"
    decays = config.decay_lr and config.schedule != "constant"
    continued = (origin or "").startswith("nanoGPT:")
    updates = (
        f"{state.step:,}, those of nanoGPT's included; now" if continued else f"{state.step:,}"
    )
    return {
        "data": config.dataset,
        "updates": f"{updates} of {_tokens(config)} tokens",
        **({} if continued else {"tokens seen": f"{state.tokens:,}"}),
        "learning rate": f"{config.learning_rate:g}"
        + (f", down to {config.min_lr:g}" if decays else ""),
        "weight decay, β1, β2": f"{config.weight_decay:g}, {config.beta1:g}, {config.beta2:g}",
        "loss on the val split": loss,
    }


def _tokens(config: TrainConfig) -> str:
    """Of a step; of the smallest and the largest where they differ."""
    sizes = sorted({piece.tokens for piece in config.ramp.pieces})
    return " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))


def _told(origin: str | None, as_imported: bool) -> str:
    if origin is None:
        return f"A GPT-2 pretrained with nanogpt-dist {__version__}."
    kind, _, where = origin.rpartition(": ")
    # a path is nobody's business
    whose = where if REPOSITORY.fullmatch(origin) else PurePath(where).name or where
    base = f"`{one_line(whose).replace('`', '')}`" + (f" ({kind})" if kind else "")
    if as_imported:
        return (
            f"The weights of {base}, as they came; nanogpt-dist {__version__} wrote them in this "
            "form."
        )
    return (
        f"A GPT-2 that began with the weights of {base} and was trained further with nanogpt-dist "
        f"{__version__}."
    )


def _in_table(value: str) -> str:
    return one_line(value).replace("|", "\\|")
