"""The modules that the promises hang on, and the tests that are to notice a change in each.

Named are those that call it in other processes, too: the tests that call the changed function in
their own come first by themselves.
"""

HERE = "tests/nanogpt_dist"
STORAGE = [
    *(f"{HERE}/storage/test_{name}.py" for name in ("durable", "events", "manifest", "sealed")),
    *(f"{HERE}/storage/test_{name}.py" for name in ("steps", "user_file", "run_folder", "runlock")),
    *(f"{HERE}/storage/test_{name}.py" for name in ("run_checkpoints", "crash_safety")),
]
RESUMING = [
    f"{HERE}/training/test_{name}.py"
    for name in ("resume", "saver", "loop", "decay", "crash_loops", "pending")
]
CHECKPOINT = [
    *(f"{HERE}/checkpoint/test_{name}.py" for name in ("state", "tensors", "consolidate")),
    f"{HERE}/checkpoint/test_bombs.py",
    "tests/cli/test_checkpoint.py",
    f"{HERE}/training/test_resume.py",
    *(f"{HERE}/training/test_{name}.py" for name in ("saver", "loop", "optim", "ema")),
    f"{HERE}/distributed/test_strategy.py",
]
DATA = [
    *(f"{HERE}/data/test_{name}.py" for name in ("batches", "format", "manifest", "reader")),
    *(f"{HERE}/data/test_{name}.py" for name in ("shards", "verify", "importing", "writer")),
    f"{HERE}/data/test_documents.py",
]
STEP = [
    f"{HERE}/training/test_{name}.py"
    for name in ("step", "optim", "spikes", "muon", "ema", "replicas", "loop")
]
SPIKES = [f"{HERE}/training/test_{name}.py" for name in ("spikes", "pending")]
RANKS = [
    f"{HERE}/distributed/test_{name}.py"
    for name in ("world", "strategy", "leaving", "process_group", "layout")
]
PREPARE = [
    *(f"tests/prepare/units/test_{name}.py" for name in ("plan", "limits", "split", "journal")),
    *(f"tests/prepare/units/test_{name}.py" for name in ("encode", "assemble", "manifest")),
    *(f"tests/prepare/units/test_{name}.py" for name in ("schedule", "ranks", "pool")),
    *("tests/prepare/test_build.py", "tests/prepare/readers/test_skipped.py"),
]

MODULES: dict[str, list[str]] = {
    **{
        f"nanogpt_dist/storage/{name}.py": STORAGE
        for name in ("durable", "events", "manifest", "sealed", "steps", "user_file")
    },
    "nanogpt_dist/storage/appending.py": [*STORAGE, f"{HERE}/storage/test_appending.py"],
    "nanogpt_dist/storage/shallow_json.py": [*STORAGE, f"{HERE}/storage/test_shallow_json.py"],
    "nanogpt_dist/storage/runlock.py": [*STORAGE, f"{HERE}/training/test_loop.py"],
    "nanogpt_dist/storage/run_checkpoints.py": [*STORAGE, *RESUMING, "tests/cli/test_eval.py"],
    "nanogpt_dist/storage/run_folder.py": [*STORAGE, *RESUMING, f"{HERE}/test_load_config.py"],
    **{
        f"nanogpt_dist/checkpoint/{name}.py": CHECKPOINT
        for name in ("consolidate", "state", "tensors")
    },
    **{
        f"nanogpt_dist/data/{name}.py": DATA
        for name in ("batches", "format", "manifest", "reader", "shard", "writer")
    },
    "nanogpt_dist/config/ramps.py": [f"{HERE}/data/test_batches.py", f"{HERE}/test_config.py"],
    "nanogpt_dist/training/resume.py": RESUMING,
    "nanogpt_dist/training/saver.py": [
        *RESUMING,
        *(f"{HERE}/training/test_{name}.py" for name in ("async_save", "telemetry")),
    ],
    "nanogpt_dist/training/loop.py": [
        *(*RESUMING, *SPIKES),
        *(f"{HERE}/training/test_{name}.py" for name in ("samples", "telemetry", "async_save")),
        f"{HERE}/training/test_replicas.py",
    ],
    "nanogpt_dist/training/decay.py": [f"{HERE}/training/test_decay.py"],
    "nanogpt_dist/training/pending.py": [*SPIKES, f"{HERE}/training/test_saver.py"],
    "nanogpt_dist/training/roll_back.py": SPIKES,
    "nanogpt_dist/training/spikes.py": SPIKES,
    "nanogpt_dist/training/replicas.py": [f"{HERE}/training/test_replicas.py"],
    "nanogpt_dist/training/step.py": STEP,
    "nanogpt_dist/training/optim.py": STEP,
    "nanogpt_dist/training/groups.py": [*STEP, f"{HERE}/training/test_width.py"],
    "nanogpt_dist/training/schedule.py": [
        f"{HERE}/training/test_schedule.py",
        f"{HERE}/training/test_decay.py",
    ],
    "nanogpt_dist/distributed/dealing.py": [
        f"{HERE}/distributed/test_dealing.py",
        f"{HERE}/training/test_muon.py",
    ],
    "nanogpt_dist/distributed/fsdp.py": [f"{HERE}/distributed/test_strategy.py"],
    "nanogpt_dist/distributed/layout.py": [
        f"{HERE}/distributed/test_layout.py",
        f"{HERE}/training/test_out_of_memory.py",
    ],
    "nanogpt_dist/distributed/strategy.py": [*RANKS, f"{HERE}/training/test_step.py"],
    "nanogpt_dist/distributed/watchdog.py": [f"{HERE}/distributed/test_watchdog.py"],
    "nanogpt_dist/distributed/world.py": [
        *(*RANKS, f"{HERE}/evaluation/test_loss.py", "tests/cli/test_main.py"),
    ],
    **{
        f"prepare/units/{name}.py": PREPARE
        for name in ("assemble", "encode", "journal", "limits", "manifest", "plan", "pool")
    },
    **{f"prepare/units/{name}.py": PREPARE for name in ("ranks", "schedule", "split", "worker")},
    "prepare/build.py": PREPARE,
}
