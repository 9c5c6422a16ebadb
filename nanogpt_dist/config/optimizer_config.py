"""The settings of the optimizer and of its rates."""

from typing import Literal

from pydantic import model_validator

from nanogpt_dist.config.setting import Settings, setting


class OptimizerConfig(Settings):
    """Optimizer and schedule: nanoGPT's, then those of the recipes that came after it."""

    optimizer: Literal["adamw", "muon"] = setting(
        "adamw",
        "Optimizer",
        "muon: Muon for the matrices of the blocks, AdamW for all else.",
        on_resume="refuse",
        scope="run",
    )
    max_iters: int = setting(
        600_000, "Optimizer", "Steps to make.", ge=1, le=2**40, on_resume="note", scope="run"
    )
    learning_rate: float = setting(
        6e-4,
        "Optimizer",
        "Peak learning rate of all that has none of its own.",
        gt=0,
        on_resume="note",
        scope="run",
    )
    decay_lr: bool = setting(
        True,
        "Optimizer",
        "Warm up and decay the learning rate; off: constant.",
        on_resume="note",
        scope="run",
    )
    schedule: Literal["cosine", "linear", "wsd", "constant"] = setting(
        "cosine",
        "Optimizer",
        "How the rate falls to min_lr after warm-up; wsd: linearly, over the last decay_fraction.",
        on_resume="note",
        scope="run",
    )
    decay_fraction: float = setting(
        0.2,
        "Optimizer",
        "Share of the steps, at the end, over which wsd decays.",
        gt=0,
        le=1,
        on_resume="note",
        scope="run",
    )
    warmup_iters: int = setting(
        2000,
        "Optimizer",
        "Steps of linear warm-up.",
        ge=0,
        le=2**40,
        on_resume="note",
        scope="run",
    )
    lr_decay_iters: int | None = setting(
        None,
        "Optimizer",
        "Step at which min_lr is reached; unset: max_iters.",
        ge=1,
        le=2**40,
        on_resume="note",
        scope="run",
    )
    min_lr: float = setting(
        6e-5,
        "Optimizer",
        "Learning rate after the decay.",
        ge=0,
        on_resume="note",
        scope="run",
    )
    weight_decay: float = setting(
        0.1,
        "Optimizer",
        "Weight decay of the matrices (vectors are not decayed); muon: of the blocks' alone.",
        ge=0,
        on_resume="note",
        scope="run",
    )
    beta1: float = setting(0.9, "Optimizer", "AdamW β1.", ge=0, lt=1, on_resume="note", scope="run")
    beta2: float = setting(
        0.95, "Optimizer", "AdamW β2.", ge=0, lt=1, on_resume="note", scope="run"
    )
    grad_clip: float = setting(
        1.0,
        "Optimizer",
        "Clip the gradient's norm to this; 0: off.",
        ge=0,
        on_resume="note",
        scope="run",
    )
    on_spike: Literal["log", "skip", "rollback"] = setting(
        "log",
        "Optimizer",
        "Where loss or gradient stand out of the steps before. log: warn. skip: leave the weights "
        "as they are. rollback: go on from an earlier checkpoint without the last 10 steps.",
        on_resume="note",
        scope="run",
    )

    # Recipes: what came after nanoGPT's; all off by default
    muon_learning_rate: float = setting(
        0.02,
        "Recipe",
        "Muon's peak learning rate; all rates follow the schedule, to min_lr / learning_rate of "
        "their peak.",
        gt=0,
        on_resume="note",
        scope="run",
    )
    muon_momentum: float = setting(
        0.95, "Recipe", "Muon's momentum, Nesterov's.", ge=0, lt=1, on_resume="note", scope="run"
    )
    muon_momentum_warmup: int = setting(
        0,
        "Recipe",
        "Steps over which Muon's momentum rises from 0.85, linearly.",
        ge=0,
        le=2**40,
        on_resume="note",
        scope="run",
    )
    muon_momentum_cooldown: int = setting(
        0,
        "Recipe",
        "Last steps before max_iters, over which it falls back to 0.85.",
        ge=0,
        le=2**40,
        on_resume="note",
        scope="run",
    )
    muon_coefficients: Literal["newton_schulz", "polar_express"] = setting(
        "polar_express",
        "Recipe",
        "Coefficients of Muon's iteration.",
        on_resume="note",
        scope="run",
    )
    muon_steps: int = setting(
        5, "Recipe", "Steps of Muon's iteration.", ge=1, le=20, on_resume="note", scope="run"
    )
    muon_scale: Literal["original", "match_rms_adamw"] = setting(
        "original",
        "Recipe",
        "Factor of a matrix's rate; original: √max(1, rows/columns); match_rms_adamw: "
        "0.2·√max(rows, columns).",
        on_resume="note",
        scope="run",
    )
    embedding_learning_rate: float | None = setting(
        None,
        "Recipe",
        "Peak learning rate of the embeddings, a tied head included; unset: learning_rate.",
        gt=0,
        on_resume="note",
        scope="run",
    )
    head_learning_rate: float | None = setting(
        None,
        "Recipe",
        "Peak learning rate of a head of its own; unset: learning_rate.",
        gt=0,
        on_resume="note",
        scope="run",
    )
    scalar_learning_rate: float | None = setting(
        None,
        "Recipe",
        "Peak learning rate of vectors and scalars; unset: learning_rate.",
        gt=0,
        on_resume="note",
        scope="run",
    )
    cautious_weight_decay: bool = setting(
        False,
        "Recipe",
        "Decay a weight only where its step points to zero, too.",
        on_resume="note",
        scope="run",
    )
    base_width: int | None = setting(
        None,
        "Recipe",
        "Width at which the rates were found: AdamW's, of matrices and a head of its own, are "
        "multiplied by base_width / n_embd, their decay is not; unset: as they are.",
        ge=1,
        le=2**20,
        on_resume="note",
        scope="run",
    )
    ema_decay: float | None = setting(
        None,
        "Recipe",
        "Average the weights over the steps with this decay (EMA), saved beside them; unset: off.",
        gt=0,
        lt=1,
        on_resume="note",
        scope="run",
    )

    @model_validator(mode="after")
    def _schedule_fits(self) -> "OptimizerConfig":
        if self.decay_lr and self.min_lr > self.learning_rate:
            raise ValueError(
                f"min_lr {self.min_lr:g} is above learning_rate {self.learning_rate:g}; type "
                f"--min-lr {self.learning_rate:g} or less"
            )
        return self
