"""What `nanogpt plan` prints for people, its picture, and the line to type."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.terminal import echo, echo_table, echo_wrapped

if TYPE_CHECKING:
    from nanogpt_dist.estimate.memory_plan import Alternative
    from nanogpt_dist.estimate.training_plan import TrainingPlan

WIDTH = 120  # columns at most
GB = 1e9
MUCH = 0.1  # of a step
# of a rank's bytes in the table; the others stand together
PARTS = ("weights", "gradients", "moments", "activations", "logits")


def command(plan: "TrainingPlan", preset: str, settings: dict[str, Any]) -> str | None:
    """The line that makes this training; None: it does not fit."""
    from nanogpt_dist.ladder.sweep import flags

    if plan.best.advice is not None:
        return None
    added = shlex.split(plan.best.flags)
    stay = {name: value for name, value in settings.items() if not _is_in(name, added)}
    train = ["train", preset, *flags(stay), *added, *_branch(preset, settings)]
    kind, machines = plan.machines.device.kind, plan.machines
    if kind != "cuda" or plan.config.device not in ("auto", kind):  # a file's or a run's own
        train += ["--device", kind]
    ranks = ["--nproc-per-node", str(machines.ranks_per_node)]
    if machines.gpus == 1:
        line = ["nanogpt", *train]
    elif machines.nodes == 1:
        line = ["nanogpt", "launch", *ranks, *train]
    else:
        line = ["nanogpt", "launch", "--slurm", "--nnodes", str(machines.nodes), *ranks, *train]
    return shlex.join(line)


def _branch(preset: str, settings: dict[str, Any]) -> list[str]:
    """The folder of its own that a run needs which begins with a checkpoint."""
    from nanogpt_dist.storage import run_folder

    checkpoint = run_folder.as_checkpoint(preset)
    if checkpoint is None or "out_dir" in settings:
        return []
    return ["--out-dir", f"{run_folder.run_of(checkpoint)}-{checkpoint.resolve().name}"]


def _is_in(name: str, flags: list[str]) -> bool:
    """Whether flags set this setting."""
    flag = name.replace("_", "-")
    return f"--{flag}" in flags or f"--no-{flag}" in flags


def report(plan: "TrainingPlan", preset: str, line: str | None, every: bool) -> None:
    """Print the plan: memory as a table, then a line for each question, then the line to type."""
    for text in _head(plan, preset):
        echo_wrapped(text)
    echo_table(_table(plan, every), WIDTH, spare=("logits", "gradients", "moments", "weights"))
    echo_wrapped("\n".join(_fit(plan)) + "\n")
    for name, text in _lines(plan):
        echo_wrapped(f"{name:<12} {text}")
    echo("")
    if line is not None and not _has_data(plan):
        echo_wrapped(f"First: {_prepare(plan)}")
    if line is not None:
        echo(f"Next: {line}")


def _head(plan: "TrainingPlan", preset: str) -> Iterator[str]:
    from nanogpt_dist.estimate.quantities import short_bytes

    machines = plan.machines
    device, config = machines.device, plan.config
    nodes = f" on {machines.nodes:,} nodes" if machines.nodes > 1 else ""
    yield (
        f"{preset}: {plan.parameters:,} parameters, {config.n_layer} × {config.n_embd:,} · "
        f"{machines.gpus:,} × {device.name}{nodes}, {plan.dtype}"
    )
    ranks, memory = machines.ranks_per_node, short_bytes(device.memory_bytes)
    if device.kind != "cuda" and ranks > 1:
        memory += f" that {ranks:,} ranks share, {short_bytes(device.memory_bytes / ranks)} each"
    yield (
        f"{device.name}: {memory}, {device.peak_tflops:.4g} TFLOP/s, "
        f"{device.link} at {device.link_gb_per_second:.0f} GB/s ({device.source})"
    )


def _table(plan: "TrainingPlan", every: bool) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("strategy", no_wrap=True)
    table.add_column("recompute", no_wrap=True)
    table.add_column("sequences", justify="right", no_wrap=True)
    for name in (*PARTS, "other", "peak GB", "left GB"):
        table.add_column(name, justify="right", no_wrap=True)
    for way in plan.alternatives if every else shown_ways(plan):
        parts = [way.parts[name] for name in PARTS]
        layout = way.layout
        copies = f" {layout.replicate}x{layout.shard}" if way.strategy == "hsdp" else ""
        table.add_row(
            "→" if is_best(way, plan) else "",
            way.strategy + copies,
            layout.activation_checkpointing,
            f"{layout.batch_size:,} × {way.micro_batches:,}",
            *(f"{part / GB:,.2f}" for part in [*parts, way.peak - sum(parts)]),
            f"{way.peak / GB:,.2f}",
            f"{way.room / GB:,.2f}",
        )
    return table


def is_best(way: "Alternative", plan: "TrainingPlan") -> bool:
    """Whether it is the layout that the plan takes."""
    chosen, layout = plan.best.layout, way.layout
    return way.strategy == plan.best.strategy and (
        (layout.replicate, layout.shard, layout.activation_checkpointing, layout.batch_size)
        == (chosen.replicate, chosen.shard, chosen.activation_checkpointing, chosen.batch_size)
    )


def shown_ways(plan: "TrainingPlan") -> "list[Alternative]":
    """Of each strategy and checkpointing one: the plan's, else the largest that fits, or least."""
    found: dict[tuple[str, int, str], Alternative] = {}
    for way in plan.alternatives:  # of each the largest micro-batch first
        key = way.strategy, way.layout.shard, way.layout.activation_checkpointing
        known = found.get(key)
        settled = known is not None and (known.fits or is_best(known, plan))
        if known is None or is_best(way, plan) or (not settled and way.room > known.room):
            found[key] = way
    return list(found.values())


def _fit(plan: "TrainingPlan") -> Iterator[str]:
    """Whether it fits, and what makes it fit."""
    best = plan.best
    layout = best.layout
    how = f"{best.strategy}, recompute {layout.activation_checkpointing}, {layout.batch_size} × "
    how += f"{best.micro_batches:,} sequences of a rank in a step"
    if best.advice is not None:
        least = f"{-best.room / GB:,.2f} GB are missing at least"
        yield f"Nothing fits; {least}{best.flags and f', with {best.flags}'}: {best.advice}"
    elif best.flags:
        yield f"As set it does not fit; {best.flags} does: {how}"
    else:
        yield f"It fits: {how}; training chooses this by itself"


def _lines(plan: "TrainingPlan") -> Iterator[tuple[str, str]]:
    from nanogpt_dist.estimate.quantities import short_bytes, short_count, short_seconds

    config, time, step = plan.config, plan.duration, plan.duration.step
    epochs = "" if plan.epochs is None else f", {plan.epochs:.3g} epochs of {_source(plan)}"
    yield (
        "steps",
        f"{config.max_iters:,} of {step.tokens:,} tokens: {short_count(plan.tokens)}{epochs}",
    )
    yield "FLOPs", _flops(plan)
    yield (
        "step",
        f"{short_seconds(step.seconds)}, {step.tokens_per_second:,.0f} tokens/s at an MFU of "
        f"{plan.mfu_here:.1%}, {_reached(plan)}",
    )
    if plan.mfu.share > 1:
        yield (
            "",
            "note: no MFU is above 100%: the peak was measured while others used the cores, "
            "bench again",
        )
    yield from _network(plan)
    if time.step.waits_seconds > MUCH * step.seconds and plan.mfu.kind == "given":
        yield (
            "",
            f"warning: {short_seconds(step.waits_seconds)} of it cannot be beside computing: will "
            f"{plan.mfu.share:.1%} be reached over this network?",
        )
    yield (
        "checkpoints",
        f"{time.checkpoints:,} of {short_bytes(time.checkpoint_bytes)}, "
        f"{short_seconds(time.save_seconds)} each; {short_bytes(_kept(plan))} on the disk",
    )
    if plan.host_bytes is not None:
        yield (
            "host",
            f"{short_bytes(plan.host_bytes)} of the memory of each node: weights, gradients and "
            "moments, which --cpu-offload keeps there",
        )
    evaluating = time.evaluations * time.evaluation_seconds
    yield (
        "time",
        f"{short_seconds(time.total_seconds)}: steps {short_seconds(time.steps_seconds)}, "
        f"{time.evaluations:,} evaluations {short_seconds(evaluating)}, waiting for saves "
        f"{short_seconds(time.waiting_seconds)}",
    )
    yield "cost", _cost(plan)
    yield "optimum", _optimum(plan)


def _flops(plan: "TrainingPlan") -> str:
    from nanogpt_dist.estimate.flops import model_flops_per_token, training_flops
    from nanogpt_dist.estimate.quantities import short_count

    per_token = model_flops_per_token(plan.config)
    layout = plan.best.layout
    model, hardware = training_flops(plan.config, layout.activation_checkpointing)
    again = f"; with what is recomputed {hardware:.3g}" if hardware > model else ""
    causal = training_flops(plan.config, attention="causal")[1]
    return (
        f"{model:.3g}, {short_count(per_token)} a token, attention in full, as an MFU counts; "
        f"{causal:.3g} with its causal half alone{again}"
    )


def _reached(plan: "TrainingPlan") -> str:
    """Where the MFU is from, and what it was there."""
    mfu, here = plan.mfu, f"{plan.mfu_here:.1%}"
    there = f" {mfu.share:.1%}" if f"{mfu.share:.1%}" != here else ""
    how = f" with recompute {mfu.activation_checkpointing}" if there else ""
    return f"{mfu.kind}{there}{how} ({mfu.source})"


def _network(plan: "TrainingPlan") -> Iterator[tuple[str, str]]:
    from nanogpt_dist.estimate.quantities import short_bytes, short_seconds

    for each in plan.duration.step.collectives:
        device, network = plan.machines.device, plan.machines.network
        over = (
            device.link if each.over == "link" else f"the network, {network * 8 / 1e9:,.0f} Gbit/s"
        )
        hidden = each.hidden_seconds / each.seconds
        yield (
            "network" if each is plan.duration.step.collectives[0] else "",
            f"{each.name}: {short_bytes(each.sent_bytes)} sent by a rank in a step, "
            f"{short_seconds(each.seconds)} over {over}, {hidden:.0%} of it beside computing",
        )


def _kept(plan: "TrainingPlan") -> int:
    from nanogpt_dist.estimate.training_plan import kept_bytes

    return kept_bytes(plan)


def _source(plan: "TrainingPlan") -> str:
    count = plan.data.train_tokens or 0
    return f"{Path(plan.config.dataset).name}'s {count:,} tokens"


def _cost(plan: "TrainingPlan") -> str:
    found, name = plan.cost, "GPU" if plan.machines.device.kind == "cuda" else "device"
    parts = [f"{_few_digits(found.gpu_hours)} {name}-hours"]
    if found.energy_kwh is not None:
        watts = plan.machines.device.power_watts
        parts.append(f"{_few_digits(found.energy_kwh)} kWh at most, at {watts} W each")
    if found.price is not None:
        parts.append(f"{found.price:,.2f} at {plan.machines.price_per_hour:g} an hour")
    else:
        parts.append("money: add --price-per-hour")
    return " · ".join(parts)


def _few_digits(number: float) -> str:
    return f"{number:,.1f}" if number >= 10 else f"{number:.2g}"


def _optimum(plan: "TrainingPlan") -> str:
    from nanogpt_dist.estimate.flops import training_flops
    from nanogpt_dist.estimate.quantities import short_count
    from nanogpt_dist.estimate.training_plan import compute_optimal

    found = compute_optimal(plan, training_flops(plan.config)[0])
    return (
        f"{short_count(found['tokens_for_this_size'])} tokens for this size, of which the plan has "
        f"{plan.tokens / found['tokens_for_this_size']:.3g} times as many; for these FLOPs "
        f"{short_count(found['parameters_for_these_flops'])} parameters and "
        f"{short_count(found['tokens_for_these_flops'])} tokens (Hoffmann et al. 2022, approach 1)"
    )


def _has_data(plan: "TrainingPlan") -> bool:
    return Path(plan.config.dataset).is_dir()


def _prepare(plan: "TrainingPlan") -> str:
    """What makes the data set that is not there yet."""
    from prepare.corpora import CORPORA

    folder = Path(plan.config.dataset)
    names = [name for name in (folder.name, folder.name.replace("_", "-")) if name in CORPORA]
    corpus = names[0] if names else "text"
    words = ["nanogpt", "prepare", corpus]
    if corpus == "text":
        words += ["--source", "TEXTS"]
    if folder != Path("data", corpus):
        words += ["--out", plan.config.dataset]
    return shlex.join(words)


def draw(plan: "TrainingPlan", preset: str, out: Path) -> None:
    """Write the picture of the table."""
    from nanogpt_dist.estimate.plots import plot_memory

    device = plan.machines.device
    title = f"{preset} on {plan.machines.gpus:,} × {device.name}"
    share = 1 if device.kind == "cuda" else plan.machines.ranks_per_node
    plot_memory(shown_ways(plan), device.memory_bytes // share, title, out)


def print_devices(as_json: bool) -> None:
    """Print the catalogue of devices."""
    from dataclasses import asdict

    from rich import box
    from rich.table import Table

    from nanogpt_dist.estimate.accelerators import ROWS, accelerator
    from nanogpt_dist.storage.run_folder import to_json

    found = [accelerator(name) for name in ROWS]
    if as_json:
        echo(to_json({"devices": [asdict(each) for each in found]}))
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("device", no_wrap=True)
    for name in ("memory GB", "TFLOP/s", "link", "GB/s", "W"):
        table.add_column(name, justify="left" if name == "link" else "right", no_wrap=True)
    table.add_column("source of links and power")
    for each in found:
        table.add_row(
            each.name,
            f"{each.memory_bytes / GB:,.1f}",
            f"{each.peak_tflops:,.4g}",
            each.link,
            f"{each.link_gb_per_second:,.0f}",
            str(each.power_watts),
            each.source,
        )
    echo_table(table, WIDTH)
