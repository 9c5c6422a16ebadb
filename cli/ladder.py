"""`nanogpt ladder`: several sizes of a preset, the scaling law of their losses, larger ones."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completing, ladder_report, sweep_runs
from cli.options import Json, note, takes_settings
from cli.sweep import DryRun, FailFast, NprocPerNode, Plot, TableOnly, refuse_undrawable
from cli.terminal import echo
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError

if TYPE_CHECKING:
    from nanogpt_dist.ladder.ladder import Ladder


@takes_settings(TrainConfig)
def ladder(
    settings: dict[str, Any],
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|FILE.toml",
            autocompletion=completing.presets,
            help="What is trained at each size.",
        ),
    ],
    sizes: Annotated[
        str,
        typer.Option(
            metavar="SIZE,…",
            help="Widths, which get the preset's ratio of layers and its size of heads; or "
            "LAYERSxWIDTH.",
        ),
    ],
    tokens_per_parameter: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Tokens for each parameter; several, e.g. 5,10,20: a run for each, which a law "
            "in tokens wants.  [default: 20, unless --max-iters is given]",
            show_default=False,
        ),
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,…", help="Sizes that are trained, but not fitted: the law's error there."
        ),
    ] = None,
    predict: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N:D|PRESET",
            help="What N parameters after D tokens will reach, or a preset; may be given again.",
            show_default=False,
        ),
    ] = None,
    nproc_per_node: NprocPerNode = None,
    table: TableOnly = False,
    plot: Plot = None,
    fail_fast: FailFast = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a preset at several sizes, fit a scaling law, and say what a larger model will reach.

    The law is L(N, D) = E + A/N^α + B/D^β of Hoffmann et al. 2022, for N parameters after D tokens;
    where each size has one D, or D goes with N, it is E + A/N^α. N counts the head and no
    embedding. --out-dir is the folder of all runs, by default out/ladders/PRESET.

    Rates stay as they are at every width; --base-width W scales those of AdamW by W / n_embd.

    Type the same again to go on: runs that are done are skipped, others resumed.
    """
    from nanogpt_dist.ladder import reading, scaling_law

    sweep_runs.refuse_ranks()
    asked = [reading.wanted(each) for each in predict or []]
    found = _build(preset, settings, sizes, hold_out, tokens_per_parameter)
    if dry_run:
        for run in found.sweep.runs:
            echo(sweep_runs.command(found.sweep, run, nproc_per_node))
        return
    scaling_law.refuse_few(found.fitted_sizes)
    refuse_undrawable(plot)
    failures = []
    if not table:
        failures = sweep_runs.make_runs(found.sweep, found.sweep.runs, nproc_per_node, fail_fast)
    try:
        ladder_report.report(found, asked, plot, json)
    except ConfigError:  # too few runs are done, of which those that failed are a reason
        sweep_runs.tell(failures)
        raise
    sweep_runs.tell(failures)


def _build(
    preset: str,
    settings: dict[str, Any],
    sizes: str,
    hold_out: str | None,
    ratios: str | None,
) -> "Ladder":
    from nanogpt_dist import api, load_config
    from nanogpt_dist.ladder import ladder as ladders
    from nanogpt_dist.ladder.sweep import checked

    config = load_config.load(preset, settings)
    config = api.with_rows_of_data(preset, config, "vocab_size" in settings, lambda _: None)
    if ratios is None and "max_iters" not in settings:
        ratios = ladders.RATIO
    found = ladders.build(preset, config, settings, sizes, hold_out, ratios)
    checked(found.sweep, "give another --out-dir")
    if config.base_width is None and len({run.settings["n_embd"] for run in found.sweep.runs}) > 1:
        note("all widths have the same rates; --base-width W scales AdamW's, as found at width W")
    return found
