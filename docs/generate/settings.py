"""The pages of the settings and of the presets."""

from typing import Any

import tomli_w

from docs.generate.text import code, escape, table
from nanogpt_dist.config import ALIASES, TrainConfig
from nanogpt_dist.estimate.flops import model_flops_per_token
from nanogpt_dist.inspect.architecture import count_parameters
from nanogpt_dist.load_config import load, with_vocabulary
from nanogpt_dist.presets import ABOUT, DEFAULT_PRESET, PRESETS

TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "array": "list of texts",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
ON_RESUME = {
    "refuse": "fixed for a run",
    "refuse_global_batch": "fixed for a run, but for another cut of the same global batch",
    "note": "may change on resume, with a note",
    "ignore": "may change on resume",
}

SETTINGS = """\
# Settings

All settings of a run. Each is a flag of [`nanogpt train`](#nanogpt-train) (`--learning-rate 3e-4`,
or `--learning_rate=3e-4` as in nanoGPT) and a line of a TOML file (`learning_rate = 3e-4`);
`nanogpt show config PRESET` prints such a file. A flag takes precedence over a file or a preset,
and these over the defaults below. The flag that turns a setting off begins with `--no-`.

What a run has begun with is in its `config.toml`. Where a resumed run is given something else, a
setting that is *fixed for a run* is refused with exit code 78; of another a line says so, if it
changes what is computed.

{groups}
"""

PRESETS_PAGE = """\
# Presets

`nanogpt train PRESET` starts with one of these; flags go over it. `nanogpt show params PRESET`
counts its parameters by component.

- `gpt2-124m` … `gpt2-1558m`: GPT-2's sizes as nanoGPT trains them.
- `modern-124m` … `modern-1558m`: the same sizes with what came after GPT-2, for GPUs: Muon, rotary
  positions, norms without weights, squared ReLU, sliding windows. No GPU has trained them yet.
- `modern-char`: such a recipe for characters on a laptop. [Recipes](../../explanations/recipes.md)
  tells what each piece brings.
- `gpt2` … `gpt2-xl`: OpenAI's own architecture: biases, tanh GELU, 50,257 ids.
- `finetune-shakespeare`, `eval-gpt2` …: nanoGPT's, from OpenAI's weights.
- `shakespeare-char`, `shakespeare-char-cpu`: nanoGPT's character models.
- `quickstart`: two minutes on two cores.

{table}
## What they set

All else is as in [Settings](settings.md).

{sections}
"""


def settings_page() -> str:
    """Every setting of train, with its type, bounds, default and help."""
    groups: dict[str, list[str]] = {}
    for name, field in TrainConfig.model_json_schema()["properties"].items():
        groups.setdefault(field["group"], []).append(setting_entry(name, field))
    sections = [f"## {group}\n\n" + "\n".join(entries) for group, entries in groups.items()]
    return SETTINGS.format(groups="\n".join(sections))


def setting_entry(name: str, field: dict[str, Any]) -> str:
    """One setting as an entry of a definition list; field: its JSON schema."""
    kind = next(each for each in field.get("anyOf", [field]) if each.get("type") != "null")
    if "enum" in kind:
        told = " or ".join(map(code, kind["enum"]))
    else:
        bounds = [f"{sign} {kind[key]:,}" for key, sign in BOUNDS.items() if key in kind]
        told = ", ".join([TYPES[kind["type"]], *([" and ".join(bounds)] if bounds else [])])
    default = "unset" if field["default"] is None else code(field["default"])
    term, text = f"`{name}`{{#setting-{name}}}", escape(field["description"])
    also = "".join(f"; also {code(alias)}" for alias, own in ALIASES.items() if own == name)
    told = f"{told}; default {default}; {ON_RESUME[field['on_resume']]}{also}"
    return f"{term}\n:   {text} *({told})*\n"


def presets_page() -> str:
    """The presets: their sizes, and what differs from the defaults."""
    header = (
        "preset",
        "parameters",
        "blocks × width",
        "heads",
        "context",
        "tokens a step",
        "steps",
        "tokens",
        "FLOPs",
    )
    return PRESETS_PAGE.format(
        table=table(header, (preset_row(name) for name in PRESETS)),
        sections="\n".join(preset_section(name) for name in PRESETS),
    )


def preset_section(name: str) -> str:
    toml = tomli_w.dumps(PRESETS[name])
    return f"(preset-{name})=\n### {name}\n\n{ABOUT[name]}:\n\n```toml\n{toml}```\n"


def preset_row(name: str) -> tuple[str, ...]:
    """What distinguishes a preset; the architecture of OpenAI's weights is known without them."""
    weights = PRESETS[name].get("init_from", "")
    config = with_vocabulary(load(name, {**PRESETS.get(weights, {}), "init_from": None}))
    tokens = config.max_iters * config.global_batch_size * config.block_size
    default = " (default)" if name == DEFAULT_PRESET else ""
    return (
        f"[`{name}`](#preset-{name}){default}",
        f"{count_parameters(config).total:,}",
        f"{config.n_layer} × {config.n_embd:,}",
        f"{config.n_head}",
        f"{config.block_size:,}",
        f"{config.ramp.pieces[-1].tokens:,}",
        f"{config.max_iters:,}",
        f"{tokens:.2e}",
        f"{tokens * model_flops_per_token(config):.1e}",
    )
