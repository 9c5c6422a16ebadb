"""The settings of what a run writes: evaluations, logs, checkpoints."""

from pydantic import field_validator

from nanogpt_dist.config.setting import PATH, Settings, setting


class OutputConfig(Settings):
    """What a run evaluates, logs and saves, and when."""

    out_dir: str | None = setting(
        None,
        "Output",
        "Run folder; unset: out/PRESET.",
        pattern=PATH,
        on_resume="ignore",
        scope="report",
    )
    eval_interval: int = setting(
        2000,
        "Output",
        "Steps between evaluations.",
        ge=1,
        le=2**40,
        on_resume="note",
        scope="run",
    )
    eval_iters: int = setting(
        200,
        "Output",
        "Evaluation reads this many micro-batches, spread over the val split.",
        ge=1,
        le=2**40,
        on_resume="note",
        scope="run",
    )
    log_interval: int = setting(
        10,
        "Output",
        "Steps between log lines.",
        ge=1,
        le=2**40,
        on_resume="ignore",
        scope="upkeep",
    )
    save_interval: int | None = setting(
        None,
        "Output",
        "Steps between checkpoints; unset: at every evaluation.",
        ge=1,
        le=2**40,
        on_resume="note",
        scope="run",
    )
    always_save_checkpoint: bool = setting(
        True,
        "Output",
        "Save at every evaluation; off: only where the val loss is the best so far.",
        on_resume="note",
        scope="run",
    )
    keep_checkpoints: int = setting(
        2,
        "Output",
        "Newest checkpoints to keep, at least 2, beside the best one.",
        ge=2,
        le=2**20,
        on_resume="note",
        scope="upkeep",
    )
    keep_every: int | None = setting(
        None,
        "Output",
        "Keep for good each checkpoint at a multiple of this many steps, also when resumed "
        "without it; unset: none.",
        ge=1,
        le=2**40,
        on_resume="note",
        scope="run",
    )
    async_save: bool | None = setting(
        None,
        "Output",
        "Go on training while a checkpoint is written, from a copy of it in CPU memory; unset: "
        "where there is room.",
        on_resume="ignore",
        scope="run",
    )
    sample_interval: int | None = setting(
        None,
        "Output",
        "Steps between samples of the model in training, into samples.jsonl and TensorBoard; "
        "unset: none.",
        ge=1,
        le=2**40,
        on_resume="ignore",
        scope="report",
    )
    sample_prompt: list[str] | None = setting(
        None,
        "Output",
        "Text that such a sample goes on from; may be given again. Unset: beginnings of documents "
        "of the val split.",
        on_resume="ignore",
        scope="report",
    )
    tensorboard: bool = setting(
        True,
        "Output",
        "Write TensorBoard scalars into the run folder.",
        on_resume="ignore",
        scope="report",
    )

    wandb_log: bool = setting(
        False,
        "Output",
        "Log to Weights & Biases, too; WANDB_MODE=offline keeps it here.",
        on_resume="ignore",
        scope="report",
    )
    wandb_project: str = setting(
        "nanogpt",
        "Output",
        "Project at Weights & Biases.",
        pattern=PATH,
        on_resume="ignore",
        scope="report",
    )
    wandb_run_name: str | None = setting(
        None,
        "Output",
        "Name at Weights & Biases; unset: the run folder's.",
        pattern=PATH,
        on_resume="ignore",
        scope="report",
    )

    @field_validator("sample_prompt")
    @classmethod
    def _is_utf8(cls, prompts: list[str] | None) -> list[str] | None:
        try:
            "".join(prompts or []).encode()
        except UnicodeEncodeError:
            raise ValueError("is no UTF-8; type it in a terminal of UTF-8") from None
        return prompts
