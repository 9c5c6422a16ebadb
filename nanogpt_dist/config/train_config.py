"""The settings of a run: the architecture's, data, optimizer, output, machine, several ranks."""

import os
import re
from typing import Literal

from pydantic import field_validator, model_validator

from nanogpt_dist.config import ramps
from nanogpt_dist.config.model_config import ModelConfig
from nanogpt_dist.config.setting import setting

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)  # how s3://bucket and https://… begin
PATH = r"^[^\x00-\x1f]+$"  # a path that can stand in a TOML file and in a message


class TrainConfig(ModelConfig):
    """Everything that `nanogpt train` takes. Defaults are those of nanoGPT's train_gpt2 recipe."""

    init_from: str | None = setting(
        None,
        "Model",
        "Weights to begin with: gpt2 | gpt2-medium | gpt2-large | gpt2-xl | OWNER/NAME on the hub "
        "| FOLDER | RUN.",
        pattern=PATH,
        on_resume="ignore",
        scope="run",
    )

    # Data
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
        "Micro-batch: sequences in one forward pass of one rank; see join_micro_batches.",
        ge=1,
        le=2**20,
        on_resume="refuse_global_batch",
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

    # Optimizer
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
        6e-4, "Optimizer", "Peak learning rate.", gt=0, on_resume="note", scope="run"
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

    # Evaluation, logs and checkpoints
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

    # Machine
    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto",
        "Machine",
        "auto: cuda, else mps, else cpu.",
        on_resume="ignore",
        scope="machine",
    )
    dtype: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = setting(
        "auto",
        "Machine",
        "Autocast type; auto: bfloat16 where the device is fast in it; tf32: float32 with TF32 "
        "products, on GPUs that have them.",
        on_resume="note",
        scope="run",
    )
    fp8: bool = setting(
        False,
        "Machine",
        "Multiply the blocks' matrices in float8, on GPUs that have it (needs torchao): for models "
        "of 774M and more.",
        on_resume="note",
        scope="run",
    )
    compile: bool | None = setting(
        None,
        "Machine",
        "Run the model through torch.compile; unset: on cuda only.",
        on_resume="ignore",
        scope="run",
    )
    compile_mode: Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs"] = setting(
        "default",
        "Machine",
        "torch.compile's mode; reduce-overhead: CUDA graphs, for small models; max-autotune-…: "
        "kernels chosen by timing.",
        on_resume="ignore",
        scope="run",
    )

    cpu_fast: bool = setting(
        True,
        "Machine",
        "On a CPU in bfloat16: attention and head made for it, and micro-batches joined; off: "
        "torch's own.",
        on_resume="note",
        scope="run",
    )
    chunked_loss: bool | None = setting(
        None,
        "Machine",
        "Compute the head's loss some tokens at a time, without all of their logits: smaller; "
        "unset: on cuda where they are large.",
        on_resume="ignore",
        scope="run",
    )
    deterministic: bool = setting(
        False,
        "Machine",
        "Only algorithms that give the same bits each time, as a bitwise resume on cuda needs: "
        "slower.",
        on_resume="note",
        scope="run",
    )

    # Several ranks
    strategy: Literal["auto", "single", "ddp", "fsdp"] = setting(
        "auto",
        "Distributed",
        "ddp: a whole model on each rank; fsdp: weights, gradients and moments shared out; auto: "
        "what is fastest of those that fit.",
        on_resume="ignore",
        scope="run",
    )
    mesh: str | None = setting(
        None,
        "Distributed",
        "REPLICATExSHARD ranks of fsdp, e.g. 2x4: shared out over 4, copied twice; unset: shared "
        "out over all.",
        pattern=r"^[1-9][0-9]{0,5}x[1-9][0-9]{0,5}$",
        on_resume="ignore",
        scope="run",
    )
    bucket_cap_mb: int | None = setting(
        None,
        "Distributed",
        "ddp: MiB of gradients that are reduced at a time, while the backward pass goes on; unset: "
        "torch's 25.",
        ge=1,
        le=2**20,
        on_resume="ignore",
        scope="run",
    )
    reshard_after_forward: bool = setting(
        True,
        "Distributed",
        "fsdp: drop a block's gathered weights between forward and backward: slower, smaller.",
        on_resume="ignore",
        scope="run",
    )
    cpu_offload: bool = setting(
        False,
        "Distributed",
        "fsdp: keep weights, gradients and moments in CPU memory; AdamW runs there.",
        on_resume="ignore",
        scope="run",
    )
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = setting(
        "auto",
        "Distributed",
        "Compute activations again in the backward pass; selective: all but matrix products and "
        "attention; auto: on cuda as memory wants it.",
        on_resume="ignore",
        scope="run",
    )
    timeout_s: int = setting(
        300,
        "Distributed",
        "Seconds after which a rank that does not answer ends the run.",
        ge=1,
        le=10**6,
        on_resume="ignore",
        scope="upkeep",
    )

    @field_validator("init_from", "dataset", "out_dir")
    @classmethod
    def _is_a_path(cls, path: str | None) -> str | None:
        if path and ADDRESS.match(path):
            raise ValueError(
                "this is an address, not a path; mount or download it, and give a path"
            )
        return os.path.expanduser(path) if path else path  # in a TOML file no shell does it

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainConfig":
        if self.decay_lr and self.min_lr > self.learning_rate:
            raise ValueError(
                f"min_lr {self.min_lr:g} is above learning_rate {self.learning_rate:g}"
            )
        return self

    @field_validator("batch_ramp", "context_ramp")
    @classmethod
    def _is_a_ramp(cls, ramp: str | None) -> str | None:
        if ramp is not None:
            ramps.parse(ramp)
        return ramp

    @model_validator(mode="after")
    def _ramp_ends_at_block_size(self) -> "TrainConfig":
        lengths = [length for _, length in ramps.parse(self.context_ramp or "0:1")]
        if self.context_ramp is None or (
            lengths[-1] == self.block_size and max(lengths) == self.block_size
        ):
            return self
        raise ValueError(
            f"context_ramp {self.context_ramp[:80]} must end with block_size {self.block_size} and "
            f"have nothing longer; type another --context-ramp, or --block-size {max(lengths)}"
        )

    @property
    def ramp(self) -> ramps.Ramp:
        """The sequences of each step and their length."""
        sequences = self.batch_size * self.gradient_accumulation_steps
        return ramps.ramp(self.batch_ramp, self.context_ramp, sequences, self.block_size)

    @property
    def global_batch_size(self) -> int:
        """Sequences in one step, over all ranks; with a batch_ramp in the largest."""
        return max(piece.sequences for piece in self.ramp.pieces)

    def architecture(self) -> ModelConfig:
        """The part of the settings that fixes the shapes of the weights."""
        return ModelConfig(**self.model_dump(include=set(ModelConfig.model_fields)))
