"""What nobody means by their settings, and what nothing reads: lines that warn before a run."""

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.training.schedule import rate_falls

MANY_EPOCHS = 100
# (a setting and its value without which others are not read, what to type, those others)
READ_WITH: tuple[tuple[str, object, str, tuple[str, ...]], ...] = (
    (
        *("optimizer", "muon", "--optimizer muon"),
        (
            *("muon_learning_rate", "muon_momentum", "muon_momentum_warmup"),
            *("muon_momentum_cooldown", "muon_coefficients", "muon_steps", "muon_scale"),
        ),
    ),
    ("schedule", "wsd", "--schedule wsd", ("decay_fraction",)),
    ("tied_head", False, "--no-tied-head", ("head_learning_rate",)),
    ("rotary", True, "--rotary", ("rotary_base",)),
)


def odd_settings(config: TrainConfig, epochs: float) -> list[str]:
    """Where settings are read by nothing, or the run never comes to what they say; a line each.

    epochs: that max_iters makes of the train split.
    """
    lines = unread(config)
    warmup, decay = config.warmup_iters, config.lr_decay_iters or config.max_iters
    if config.decay_lr and warmup >= config.max_iters > 1:
        lines.append(
            f"warming up takes {warmup:,} steps, the run makes {config.max_iters:,}: it never "
            f"reaches learning_rate {config.learning_rate:g}; lower --warmup-iters"
        )
    elif rate_falls(config) and warmup > decay:
        lines.append(
            f"warming up takes {warmup:,} steps, lr_decay_iters is {decay:,}: the rate falls from "
            "learning_rate to min_lr at once; lower --warmup-iters"
        )
    elif rate_falls(config) and decay > config.max_iters:
        lines.append(
            f"the rate reaches min_lr at step {decay:,}, the run makes {config.max_iters:,}: it "
            "never decays to its end; lower --lr-decay-iters"
        )
    elif rate_falls(config) and decay < config.max_iters and config.min_lr == 0:
        lines.append(
            f"from step {decay:,} on the rate is 0: the last {config.max_iters - decay:,} steps "
            "learn nothing; raise --lr-decay-iters, or --min-lr"
        )
    last = config.ramp.pieces[-1]
    if last.first >= config.max_iters:
        lines.append(
            f"the run makes {config.max_iters:,} steps, its ramp ends at step {last.first:,}: it "
            "never gets there; begin its last piece earlier"
        )
    if epochs > MANY_EPOCHS:
        lines.append(
            f"{epochs:,.0f} epochs: the same text is read as many times; prepare more of it, or "
            "lower --max-iters"
        )
    return lines


def unread(config: TrainConfig) -> list[str]:
    """Settings that have another value than their default and that nothing reads; a line each."""
    plain, lines = TrainConfig(), []
    for name, value, typed, others in READ_WITH:
        idle = [other for other in others if getattr(config, other) != getattr(plain, other)]
        if idle and getattr(config, name) != value:
            lines.append(f"nothing reads {', '.join(idle)} without {typed}")
    if config.sample_prompt and config.sample_interval is None:
        lines.append("nothing reads sample_prompt without --sample-interval")
    return lines
