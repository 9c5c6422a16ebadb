"""The settings of the machine, and of several ranks."""

from typing import Literal

from nanogpt_dist.config.setting import Settings, setting


class MachineConfig(Settings):
    """On what a run computes, and how ranks share the work."""

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
    check_replicas_every: int = setting(
        500,
        "Distributed",
        "Steps between comparisons of the ranks' copies of weights and moments, which are compared "
        "before each save, too; 0: never.",
        ge=0,
        le=2**40,
        on_resume="ignore",
        scope="upkeep",
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
