"""Every setting of a run, declared once: name, type, default, bounds and help.

Flags and TOML files come from here.

Names are nanoGPT's where nanoGPT has them. `None` means off, or, where the help says so, derived.
"""

import difflib
import math
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nanogpt_dist.errors import ConfigError, MissingInputError

# Another name that flags and TOML files may give a setting; files are written with its own.
ALIASES = {"tie_embeddings": "tied_head"}

BEYOND_GPT2 = ("rotary", "norm", "mlp", "qk_norm", "n_kv_head", "tied_head", "intra_document")

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)  # how s3://bucket and https://… begin
PATH = r"^[^\x00-\x1f]+$"  # a path that can stand in a TOML file and in a message


OnResume = Literal["refuse", "refuse_global_batch", "note", "ignore"]
Scope = Literal["run", "machine", "report", "upkeep"]


def setting(
    default: Any,
    group: str,
    help: str,
    *,
    on_resume: OnResume | None = None,
    scope: Scope | None = None,
    metavar: str | None = None,
    **bounds: Any,
) -> Any:
    """A config field: its default, its group in --help, what it means with its unit, its bounds.

    metavar: the word for its value in --help; None: its type.

    Each setting of a run also declares on_resume and scope.

    on_resume, where a checkpoint has another value:
        refuse: it fixes the weights' shapes, or which tokens a step sees
        refuse_global_batch: it may change where global_batch_size does not
        note: the run goes on otherwise than it began, which is worth a line
        ignore: the run computes the same
    scope:
        run: the same on all ranks; after repeated crashes another value is worth another attempt
        machine: as run, but may differ between the ranks
        report: where a run reports; no part of what it computes
        upkeep: of no matter to a crash, as report, but runs are compared by it
    """
    declared = {"group": group, "on_resume": on_resume, "scope": scope, "metavar": metavar}
    extra: Any = {name: value for name, value in declared.items() if value is not None}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


class ModelConfig(BaseModel):
    """The architecture: GPT-2. Equal ModelConfigs have checkpoints of equal shapes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    block_size: int = setting(
        1024, "Model", "Context length, in tokens.", ge=1, le=2**24, on_resume="refuse", scope="run"
    )
    vocab_size: int | None = setting(
        None,
        "Model",
        "Rows of the token embedding; unset: the data set's ids, up to a multiple of 64 "
        "(characters: just theirs).",
        ge=1,
        le=2**24,
        on_resume="refuse",
        scope="run",
    )
    n_layer: int = setting(
        12, "Model", "Transformer blocks.", ge=1, le=2**16, on_resume="refuse", scope="run"
    )
    n_head: int = setting(
        12,
        "Model",
        "Attention heads per block; divides n_embd.",
        ge=1,
        le=2**20,
        on_resume="refuse",
        scope="run",
    )
    n_embd: int = setting(
        768,
        "Model",
        "Width of the residual stream.",
        ge=1,
        le=2**20,
        on_resume="refuse",
        scope="run",
    )
    dropout: float = setting(
        0.0,
        "Model",
        "Dropout probability; 0 for pretraining, 0.1 and more on little data.",
        ge=0,
        lt=1,
        on_resume="note",
        scope="run",
    )
    bias: bool = setting(
        False,
        "Model",
        "Biases in the linear layers and LayerNorms, as OpenAI's GPT-2 has them.",
        on_resume="refuse",
        scope="run",
    )
    gelu: Literal["exact", "tanh"] = setting(
        "exact",
        "Model",
        "Form of GELU; OpenAI's weights want tanh.",
        on_resume="refuse",
        scope="run",
    )

    # What came after GPT-2; all off by default.
    rotary: bool = setting(
        False,
        "Model options",
        "Rotary positions in every head, in place of the position embedding.",
        on_resume="refuse",
        scope="run",
    )
    rotary_base: float = setting(
        10_000.0,
        "Model options",
        "Base of the rotary wavelengths.",
        gt=1,
        on_resume="refuse",
        scope="run",
    )
    norm: Literal["layernorm", "rmsnorm"] = setting(
        "layernorm",
        "Model options",
        "Normalisation of the stream.",
        on_resume="refuse",
        scope="run",
    )
    mlp: Literal["gelu", "swiglu", "relu2"] = setting(
        "gelu",
        "Model options",
        "relu2: squared ReLU; swiglu: gated, 8/3 wide instead of 4, to a multiple of 64.",
        on_resume="refuse",
        scope="run",
    )
    qk_norm: bool = setting(
        False,
        "Model options",
        "RMSNorm of each query and key before the dot product.",
        on_resume="refuse",
        scope="run",
    )
    n_kv_head: int | None = setting(
        None,
        "Model options",
        "Heads of keys and values, each for a group of queries; unset: n_head.",
        ge=1,
        le=2**20,
        on_resume="refuse",
        scope="run",
    )
    tied_head: bool = setting(
        True,
        "Model options",
        "The head's matrix is the token embedding; off: one of its own.",
        on_resume="refuse",
        scope="run",
    )
    intra_document: bool = setting(
        False,
        "Model options",
        "Attention and positions begin anew at each end-of-text token.",
        on_resume="refuse",
        scope="run",
    )
    eot_id: int | None = setting(
        None,
        "Model options",
        "The end-of-text id of intra_document; unset: the data set's.",
        ge=0,
        le=2**24,
        on_resume="refuse",
        scope="run",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_their_own_names(cls, values: Any) -> Any:
        return by_own_names(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelConfig":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.n_head % self.kv_heads:
            raise ValueError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}"
            )
        if self.rotary and self.head_size % 2:
            raise ValueError(
                f"rotary turns pairs, a head of {self.head_size} cannot be halved; change n_head"
            )
        return self

    @property
    def tie_embeddings(self) -> bool:
        """Whether the head's matrix is the token embedding."""
        return self.tied_head

    @property
    def head_size(self) -> int:
        """Width of one head, D."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def mlp_width(self) -> int:
        """Width of the MLP where it is widest.

        Three matrices of SwiGLU's have as many weights as two 4 C wide.
        """
        return math.ceil(8 * self.n_embd / 3 / 64) * 64 if self.mlp == "swiglu" else 4 * self.n_embd

    def beyond_gpt2(self) -> list[str]:
        """The options that are on, which no GPT-2 has."""
        plain = ModelConfig()
        return [name for name in BEYOND_GPT2 if getattr(self, name) != getattr(plain, name)]


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
        "Micro-batches in one step, in total over all ranks; global batch = batch_size × this.",
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
        "Learning rate after the cosine decay.",
        ge=0,
        on_resume="note",
        scope="run",
    )
    weight_decay: float = setting(
        0.1,
        "Optimizer",
        "AdamW weight decay of the matrices (vectors are not decayed).",
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

    @property
    def global_batch_size(self) -> int:
        """Sequences in one step, over all ranks."""
        return self.batch_size * self.gradient_accumulation_steps

    def architecture(self) -> ModelConfig:
        """The part of the settings that fixes the shapes of the weights."""
        return ModelConfig(**self.model_dump(include=set(ModelConfig.model_fields)))


def settings_where(
    model: type[ModelConfig] = TrainConfig, **declared: OnResume | Scope
) -> list[str]:
    """The settings of `model` that declare this, in order: settings_where(on_resume="note")."""
    extras: dict[str, Any] = {
        name: field.json_schema_extra for name, field in model.model_fields.items()
    }
    return [name for name, extra in extras.items() if declared.items() <= extra.items()]


def resolve(
    values: dict[str, Any],
    overrides: dict[str, Any] | None = None,
    name: str | None = None,
) -> TrainConfig:
    """A validated TrainConfig from a preset's or file's `values` with `overrides` on top.

    name: of that preset or file. Raises ConfigError naming every wrong setting at once, an unknown
    one with the nearest name, and where it stands, if it is none of `overrides`.
    """
    mine, place = by_own_names(overrides or {}), f"{name}: " if name else ""
    try:
        return TrainConfig(**{**by_own_names(values), **mine})
    except ValidationError as error:
        wrong = [
            ("" if mine.keys() & problem["loc"] else place) + _explain(problem)
            for problem in error.errors()
        ]
        raise ConfigError("; ".join(wrong)) from None


def by_own_names(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with each alias replaced by the setting's own name.

    Raises ConfigError where a setting stands under both names, with different values.
    """
    found = {name: value for name, value in values.items() if name not in ALIASES}
    for alias in ALIASES.keys() & values.keys():
        name, value = ALIASES[alias], values[alias]
        if found.setdefault(name, value) != value:
            raise ConfigError(
                f"{alias} = {value!r} and {name} = {found[name]!r} are the same setting: leave one "
                "of them out"
            )
    return found


def _explain(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if name and isinstance(problem["input"], dict):
        return f"settings stand at the top of the file, without a section [{name}]"
    if problem["type"] == "extra_forbidden":
        known = [*TrainConfig.model_fields, *ALIASES]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        return f"unknown setting {name}" + (
            f", did you mean {near[0]}?" if near else "; `nanogpt train --help` lists them"
        )
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{name} = {problem['input']!r}: {reason[0].lower()}{reason[1:]}" if name else reason


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, by their own names. Raises MissingInputError, ConfigError."""
    try:
        # Notepad writes a byte order mark
        return by_own_names(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (FileNotFoundError, IsADirectoryError):
        raise MissingInputError(
            f"{path} does not exist or is not a file; type: nanogpt show config > FILE.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def to_toml(config: BaseModel) -> str:
    """`config` as TOML that read_toml gives back; unset (None) settings are left out."""
    import tomli_w

    return tomli_w.dumps(config.model_dump(exclude_none=True))


def to_run_toml(config: TrainConfig) -> str:
    """to_toml() without out_dir, which is the folder in which the file lies.

    Also once it was moved or copied.
    """
    return to_toml(config.model_copy(update={"out_dir": None}))
