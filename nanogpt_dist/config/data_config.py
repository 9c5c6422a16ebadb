"""The settings of what a run reads: first weights, data, the sequences of a step."""

from pydantic import field_validator

from nanogpt_dist.config import ramps
from nanogpt_dist.config.setting import PATH, Settings, setting


class DataConfig(Settings):
    """What a run begins with, and what each step reads."""

    init_from: str | None = setting(
        None,
        "Model",
        "Weights to begin with: gpt2 | gpt2-medium | gpt2-large | gpt2-xl | OWNER/NAME on the hub "
        "| FOLDER | RUN.",
        pattern=PATH,
        on_resume="ignore",
        scope="run",
    )

    dataset: str = setting(
        "data/openwebtext",
        "Data",
        "Folder that `nanogpt prepare` wrote.",
        pattern=PATH,
        on_resume="ignore",
        scope="machine",
    )
    batch_size: int = setting(
        12,
        "Data",
        "Micro-batch: sequences in one forward pass of one rank, see join_micro_batches; auto: the "
        "largest that fits, see auto_batch_size.",
        ge=1,
        le=2**20,
        on_resume="refuse_global_batch",
        scope="run",
    )
    auto_batch_size: bool = setting(
        False,
        "Data",
        "What --batch-size auto turns on: choose the largest micro-batch that fits, and a smaller "
        "one where memory ends nevertheless; the global batch stays.",
        on_resume="ignore",
        scope="run",
    )
    gradient_accumulation_steps: int = setting(
        40,
        "Data",
        "Micro-batches in one step, in total over all ranks; global batch = batch_size × this; "
        "with a batch_ramp they follow from it.",
        ge=1,
        le=2**20,
        on_resume="refuse_global_batch",
        scope="run",
    )
    join_micro_batches: bool = setting(
        True,
        "Data",
        "Make micro-batches as large as memory allows, on cuda and with cpu_fast; off: of "
        "batch_size.",
        on_resume="ignore",
        scope="run",
    )
    batch_ramp: str | None = setting(
        None,
        "Data",
        "Sequences in a step, from which step on, as STEP:SEQUENCES,…, e.g. 0:64,1000:128; unset: "
        "the same in all.",
        on_resume="refuse",
        scope="run",
    )
    context_ramp: str | None = setting(
        None,
        "Data",
        "Tokens of a sequence, from which step on, as STEP:TOKENS,…, e.g. 0:256,1000:1024, up to "
        "block_size; unset: block_size in all.",
        on_resume="refuse",
        scope="run",
    )
    align_documents: bool = setting(
        False,
        "Data",
        "Begin each sequence at the first document that starts in it, where one does; not those "
        "of an evaluation.",
        on_resume="refuse",
        scope="run",
    )
    seed: int = setting(
        1337,
        "Data",
        "Seed of the weights, the order of the data and dropout.",
        ge=0,
        le=2**63 - 1,
        on_resume="refuse",
        scope="run",
    )

    @field_validator("batch_ramp", "context_ramp")
    @classmethod
    def _is_a_ramp(cls, ramp: str | None) -> str | None:
        if ramp is not None:
            ramps.parse(ramp)
        return ramp
