"""`nanogpt show …`: what presets, data and runs stand for."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.help import command, group
from cli.options import Json, Preset, Settings, takes_settings
from cli.show_attention import attention
from cli.show_checkpoint import checkpoint
from cli.show_data import data
from cli.terminal import columns, echo, echo_table, echo_wrapped
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError, UsageError
from nanogpt_dist.load_config import load, read, with_vocabulary
from nanogpt_dist.presets import DEFAULT_PRESET
from nanogpt_dist.storage.run_folder import as_run

if TYPE_CHECKING:
    from rich.table import Table

    from nanogpt_dist.inspect.architecture import Component, Parameters

WIDTH = 100  # columns at most; a narrower terminal gets narrower tables
# what is not SVG
PIXELS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tiff", ".pdf", ".eps", ".ps")


show_app = group(
    "nanogpt show full gpt2-124m",
    "nanogpt show data data/openwebtext",
)
model_flags = takes_settings(
    TrainConfig, panel="Settings to override", groups=("Model", "Model options")
)


@command(
    show_app,
    "params",
    "nanogpt show params gpt2-124m",
    "nanogpt show params gpt2-124m --n-layer 24 --json",
)
@model_flags
def params(settings: Settings, preset: Preset = DEFAULT_PRESET, as_json: Json = False) -> None:
    """Parameters, component by component, and the memory they take."""
    config = _load_architecture(preset, settings)
    from nanogpt_dist.inspect.architecture import count_parameters

    counted = count_parameters(config)
    if as_json:
        _print_json(asdict(counted))
        return
    echo_wrapped(
        f"{preset}: {counted.total:,} parameters, {counted.non_embedding:,} without the position "
        "embedding\n"
    )
    echo_table(_component_table(counted), WIDTH, spare=("by hand", "share", "times", "each"))
    echo_wrapped("\n" + "\n".join(_facts(counted, config.optimizer)))


@command(
    show_app,
    "components",
    "nanogpt show components gpt2-124m",
    "nanogpt show components quickstart --rotary",
)
@model_flags
def components(settings: Settings, preset: Preset = DEFAULT_PRESET, as_json: Json = False) -> None:
    """What flows into and out of every component, in the order of execution."""
    config = _load_architecture(preset, settings)
    from nanogpt_dist.inspect.architecture import trace
    from nanogpt_dist.inspect.formulas import letter_sizes

    traced, sizes = trace(config, config.batch_size), letter_sizes(config, config.batch_size)
    if as_json:
        _print_json({"letters": sizes, "components": [asdict(component) for component in traced]})
        return
    echo_wrapped(f"{preset}\n{_legend(sizes)}\n")
    echo_table(_shape_table(traced), WIDTH)


@command(
    show_app,
    "full",
    "nanogpt show full gpt2-124m",
    "nanogpt show full quickstart --svg quickstart.svg",
)
@model_flags
def full(
    settings: Settings,
    preset: Preset = DEFAULT_PRESET,
    svg: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the drawing as a picture, too, which browsers show."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """A drawing of the whole model, with shapes and parameters."""
    if svg is not None and svg.suffix.lower() in PIXELS:
        raise UsageError(
            f"--svg writes SVG, which is no {svg.suffix[-8:]}: type --svg {svg.stem[-60:]}.svg"
        )
    config = _load_architecture(preset, settings)
    from nanogpt_dist.inspect.architecture import count_parameters, trace
    from nanogpt_dist.inspect.diagram_text import draw
    from nanogpt_dist.inspect.formulas import letter_sizes

    counted, traced = count_parameters(config), trace(config, config.batch_size)
    sizes = letter_sizes(config, config.batch_size)
    if svg is not None:
        from nanogpt_dist.inspect.diagram_svg import draw_svg
        from nanogpt_dist.storage import write_user_file

        write_user_file(svg, draw_svg(config, counted, traced, preset).encode())
    if as_json:
        shapes = [asdict(component) for component in traced]
        _print_json({"letters": sizes, "parameters": asdict(counted), "components": shapes})
        return
    echo_wrapped(f"{preset}: {counted.total:,} parameters\n{_legend(sizes)}\n")
    echo(draw(config, counted, traced, columns()))


@command(
    show_app,
    "config",
    "nanogpt show config gpt2-124m > mine.toml",
    "nanogpt show config out/gpt2-124m",
)
@model_flags
def config(settings: Settings, preset: Preset = DEFAULT_PRESET, as_json: Json = False) -> None:
    """Every setting, as a TOML file that `nanogpt train` takes."""
    resolved = load(preset, settings)
    if as_json:
        _print_json(resolved.model_dump())
    else:  # the file's own name will say where its run goes
        said = "out_dir" in settings or ("out_dir" in read(preset) and as_run(preset) is None)
        unset = {} if said else {"out_dir": None}
        echo(commented_toml(resolved.model_copy(update=unset), preset), nl=False)


command(
    show_app,
    "data",
    "nanogpt show data data/openwebtext",
    "nanogpt show data data/openwebtext --step 0 --run out/gpt2-124m",
)(data)
command(
    show_app,
    "attention",
    "nanogpt show attention shakespeare-char-cpu --text 'To be or'",
    "nanogpt show attention out/quickstart --text 'def read' --layer 1 --head 2",
)(attention)
command(
    show_app,
    "checkpoint",
    "nanogpt show checkpoint out/gpt2-124m",
    "nanogpt show checkpoint out/gpt2-124m --best --json",
)(checkpoint)


def commented_toml(config: TrainConfig, name: str) -> str:
    """`config` as TOML that read_toml gives back, each setting with its help.

    One that is not the default has a star.

    name: what the first line calls it.
    """
    import tomli_w

    lines = [
        f"# {name}, for `nanogpt train FILE.toml`. A star: not the default. A # in front: not set."
    ]
    group = None
    for key, field in TrainConfig.model_fields.items():
        extra, value = field.json_schema_extra, getattr(config, key)
        assert isinstance(extra, dict)
        if extra["group"] != group:
            group = extra["group"]
            lines += ["", f"# {group}"]
        assignment = f"# {key} =" if value is None else tomli_w.dumps({key: value}).strip()
        star = " " if value == field.default else "*"
        lines.append(f"{assignment:<36} # {star} {field.description}")
    return "\n".join(lines) + "\n"


def _load_architecture(preset: str, settings: Settings) -> TrainConfig:
    """The config, its vocab_size known; otherwise ConfigError."""
    config = load(preset, settings)
    if config.vocab_size is None:
        raise ConfigError(
            f"{preset} leaves vocab_size to the data set; add --vocab-size, e.g. --vocab-size 50304"
        )
    return with_vocabulary(config)  # which id ends a text makes no difference to shapes


def _component_table(counted: "Parameters") -> "Table":
    from rich import box
    from rich.table import Table

    from nanogpt_dist.inspect.formulas import instances

    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("component", "total")
    for header, footer in {
        "by hand": "",
        "each": "",
        "times": "",
        "parameters": f"{counted.total:,}",
        "share": "100.0 %",
    }.items():
        table.add_column(header, footer, justify="right")
    for name, count in counted.by_component.items():
        times = instances(name, counted.n_layer)
        label = "lm_head (is wte)" if name == "lm_head" and not count else name
        table.add_row(
            label,
            counted.by_hand[name],
            f"{count // times:,}",
            f"× {times}",
            f"{count:,}",
            f"{100 * count / counted.total:.1f} %",
        )
    return table


def _facts(counted: "Parameters", optimizer: str) -> list[str]:
    name, decayed, others = {
        "adamw": ("AdamW", "matrices and embeddings", "biases and LayerNorms"),
        "muon": ("Muon", "the blocks' matrices", "all else"),
    }[optimizer]
    if not counted.decayed:
        decayed, others = "weight_decay is 0", "all"
    return [
        f"blocks       {counted.blocks:,}; 12·n_layer·n_embd² = {counted.rule_of_thumb:,}"
        f" ({counted.rule_of_thumb_error:+.3f} %)",
        f"decayed      {counted.decayed:,} in {counted.decayed_tensors} tensors ({decayed})",
        f"not decayed  {counted.not_decayed:,} in {counted.not_decayed_tensors} tensors ({others})",
        f"weights      {_size(counted.fp32_bytes)} in fp32, {_size(counted.bf16_bytes)} in bf16",
        f"{name:<12} {_size(counted.training_bytes)} for weights, gradients and moments in fp32; "
        "activations on top",
    ]


def _size(count: int) -> str:
    """Bytes in the unit that shows three digits of them or more."""
    unit, name = next(
        (each for each in ((10**9, "GB"), (10**6, "MB")) if count >= each[0] // 10), (10**3, "kB")
    )
    return f"{count / unit:,.3f} {name}"


def _shape_table(traced: "list[Component]") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("component", no_wrap=True)
    table.add_column("input → output", no_wrap=True)
    table.add_column("what it does")
    for component in traced:
        depth = 0 if component.name == "GPT" else component.name.count(".") + 1
        letters = f"{_tuple(component.input_letters)} → {_tuple(component.output_letters)}"
        sizes = f"{_tuple(component.input)} → {_tuple(component.output)}"
        table.add_row(
            "  " * depth + component.name.split(".")[-1], f"{letters}\n{sizes}", component.about
        )
    return table


def _tuple(items: tuple[object, ...]) -> str:
    return f"({', '.join(map(str, items))})" if items else "scalar"


def _legend(sizes: dict[str, int]) -> str:
    B, T, C, H, D, V = (sizes[letter] for letter in "BTCHDV")
    more = {"K": "heads of keys and values", "F": "in the MLP", "R": "rows of bigrams"}
    rest = ", ".join(
        f"{letter} = {sizes[letter]} {text}" for letter, text in more.items() if letter in sizes
    )
    return (
        f"B = {B} sequences, T = {T} tokens, C = {C} channels, H = {H} heads of D = {D}, V = {V} "
        "ids" + (f"\n{rest}" if rest else "")
    )


def _print_json(value: dict[str, Any]) -> None:
    echo(json.dumps(value))
