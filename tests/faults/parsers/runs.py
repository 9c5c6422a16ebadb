"""Readers of run folders, task files, the environment, other nodes and the hub."""

import functools
import json
import os
import platform
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import preflight, torchrun, verdict
from nanogpt_dist import start_again
from nanogpt_dist.checkpoint import TrainState
from nanogpt_dist.distributed import world
from nanogpt_dist.doctor import bundle
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.doctor.run_checks import check_run
from nanogpt_dist.doctor.scheduler import check_scheduler
from nanogpt_dist.doctor.variables import check_variables
from nanogpt_dist.errors import MissingInputError
from nanogpt_dist.estimate.mfu import read_bench
from nanogpt_dist.evaluation.tasks import harness, jsonl_tasks
from nanogpt_dist.evaluation.tasks.scoring import Scorer
from nanogpt_dist.html_report.page import page
from nanogpt_dist.inspect.compare_runs import read_curve, summary
from nanogpt_dist.inspect.run_record import read_run
from nanogpt_dist.inspect.standing import standing
from nanogpt_dist.ladder import results
from nanogpt_dist.ladder.sweep import Sweep, SweepRun
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.storage import run_checkpoints, run_folder
from nanogpt_dist.storage.events import note_event
from nanogpt_dist.tokenizer import byte
from nanogpt_dist.training import auto_layout, crash_loops, roll_back
from nanogpt_dist.training.metrics import cut_record
from prepare.units.ranks import Ranks
from prepare.units.schedule import default_workers
from tests.faults.parsers.formats import Parser, try_all
from tests.faults.parsers.models import tiny_config
from tests.faults.parsers.mutations import VALUES, mutated_json
from tests.nanogpt_dist.html_report.runs import write_run
from tests.nanogpt_dist.small import ONE

ENVIRONMENT = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "x",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "SLURM_JOB_ID": "17",
    "SLURM_NNODES": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "3",
    "SLURM_ARRAY_TASK_STEP": "1",
    "SLURM_ARRAY_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "2",
    "SLURM_GPUS_ON_NODE": "0",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTHONPATH": "a:b",
    "NANOGPT_FALL_BACKS": "1",
}
BENCH = {
    "mfu": 0.25,
    "peak_tflops": 2.0,
    "ms_per_update": 500.0,
    "first_step_seconds": 3.0,
    "parameters": 10_000_000,
    "ranks": 2,
    "device": "cpu",
    "evaluation_tokens_per_second": 900.0,
}
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("start", {"ranks": 2, "host": "a"}),
    ("save", {"seconds": 0.8, "bytes": 22_085_632}),
    ("spike", {"loss": 9.0, "normal": 2.0}),
    ("rollback", {"to": 100, "skipped": 20}),
    ("straggler", {"rank": 1, "factor": 1.5}),
    ("fail", {"message": "no", "code": 70}),
]


def make_run(folder: Path) -> None:
    platform.platform()  # asks a command for the processor, once
    samples = [{"step": 50, "time": 1.0, "prompt": "a", "text": "b <b>"}]
    write_run(folder / "run", samples=samples)
    run = folder / "run"
    for step, (kind, more) in enumerate(EVENTS):
        note_event(run, kind, 10 * step, **more)
    crash_loops.begun(run, 0, 0, "x")
    crash_loops.ended(run, "stopped")
    (run / "run.lock").write_text('{"host": "a", "pid": 1, "started": "2026-01-01"}\n')
    (run / "checkpoints/step-00000100").mkdir()
    (run / "checkpoints/latest").write_text("step-00000100\n")
    (run / "bench.json").write_text(json.dumps(BENCH))
    about, automatic = run_folder.read_json(run / "run.json"), tiny_config(auto_batch_size=True)
    layout = auto_layout.choose(automatic, ONE, auto_layout.Known(None, 0, ""))[0]
    chosen = auto_layout.to_remember(automatic, layout, ONE)
    left_out = roll_back.for_run_json(((40, 44),))
    run_folder.write_json(run / "run.json", {**about, **chosen, **left_out})
    launcher = folder / "launcher"
    launcher.mkdir()
    said = {"code": 1, "message": "x", "rank": 0, "agreed": True}
    (launcher / "verdict").write_text(json.dumps(said))
    (launcher / "run.json").write_text(json.dumps(["run", None]))


def read_run_folder(folder: Path) -> None:
    """As watch, report, compare, sweeps, doctor, a launcher and training itself read a run."""
    run = folder / "run"
    automatic = tiny_config(out_dir=str(run), auto_batch_size=True)
    looks: list[Callable[[], object]] = [
        lambda: run_folder.to_json(standing(read_run(run), time.time())),
        lambda: page([read_run(run)]),
        lambda: check_run(run),
        lambda: run_folder.to_json(summary(read_curve(run))),
        lambda: run_folder.verdict_of(run),
        lambda: verdict.newest_checkpoint(run),
        lambda: verdict.read(folder / "launcher/verdict"),
        lambda: verdict.progress(folder / "launcher/verdict"),
        lambda: crash_loops.steps_back(run, 0, "x"),
        lambda: bundle.write_bundle(folder / "b.tar.gz", {}, Machine({}, root=folder), run),
        lambda: cut_record(run / "metrics.jsonl", 100),
        lambda: roll_back.left_out(run, ONE, TrainState()),
        lambda: auto_layout.choose(automatic, ONE, auto_layout.look_up(automatic, ONE)),
        lambda: run_checkpoints.is_new(run),
        lambda: results.read(Sweep("quickstart", folder, (SweepRun("run", {}, {}),))),
        lambda: read_bench(run / "bench.json").as_mfu("a file"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "versions", dict)  # of all packages: most of a case's time
        try_all(looks)


def _scorer() -> Scorer:
    torch.manual_seed(1)
    model = GPT(tiny_config().architecture()).eval()
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    return Scorer(model, byte(), ONE)


def make_tasks(folder: Path) -> None:
    questions = [{"ctx": "To be", "endings": ["or", "not"], "label": i % 2} for i in range(3)]
    (folder / "hellaswag.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n")
    passages = [{"text": "to be or not"}, {"text": "that is the question"}]
    (folder / "lambada.jsonl").write_text("\n".join(map(json.dumps, passages)) + "\n")
    (folder / "task.yaml").write_text("task: mine\ndataset_path: json\n")


def read_tasks(folder: Path) -> None:
    scorer = _scorer()
    looks: list[Callable[[], object]] = [
        lambda: jsonl_tasks.run("hellaswag", folder / "hellaswag.jsonl", scorer),
        lambda: jsonl_tasks.run("lambada", folder / "lambada.jsonl", scorer),
        lambda: jsonl_tasks.text(folder / "lambada.jsonl", scorer),
        lambda: harness._local(str(folder / "task.yaml")),
    ]
    try_all(looks)


def make_environment(folder: Path) -> None:
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))


def mutated_environment(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
    """Some variables gone, or with other values; a NUL cannot be in one."""
    variables = json.loads(data)
    for name in choose.sample(sorted(variables), choose.choice([1, 1, 2, 8])):
        if choose.random() < 0.3:
            del variables[name]
        else:
            text = str(choose.choice([*VALUES, " 1", "1 ", "+1", "１", "1_0", "1.0", "0x1", "²"]))
            variables[name] = text.replace("\0", "").replace("\ud800", "\udcff")
    return json.dumps(variables).encode()


def read_environment(folder: Path) -> None:
    """As a rank, a task of an array, a launcher and doctor read the variables around them."""
    variables = json.loads((folder / "environment.json").read_text())
    before = dict(os.environ)
    looks: list[Callable[[], object]] = [
        lambda: Ranks.of(variables),
        lambda: [world._from_torchrun(name, 0) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")],
        default_workers,
        start_again.times,
        torchrun.gpus,
        lambda: torchrun.environment(2, 30, variables),
        lambda: torchrun.environment_of_nodes(torchrun.Nodes(), variables),
        lambda: list(check_variables(Machine(variables))),
        lambda: list(check_scheduler(Machine(variables))),
        lambda: verdict.write(verdict.Verdict(1, "x", 0, False)),
        _rank,
    ]
    try:
        os.environ.update(variables)
        for name in ENVIRONMENT.keys() - variables.keys():
            os.environ.pop(name, None)
        os.environ[verdict.VARIABLE] = str(folder / "verdict.json")
        try_all(looks)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _rank() -> int:
    from cli.options import rank

    return rank()


def make_nodes(folder: Path) -> None:
    me = {**preflight.asdict(preflight.describe(0, "127.0.0.1", ["train"])), "time": 1.0}
    (folder / "caller.json").write_text(json.dumps(me))
    (folder / "answer.json").write_text(json.dumps({"nodes": [me, {**me, "rank": 1}]}))


def read_nodes(folder: Path) -> None:
    """What a caller says to the first node, and what the first node answers."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(1)
        theirs.sendall((folder / "caller.json").read_bytes()[:60_000] + b"\n")
        theirs.close()
        node = preflight._read(ours)
    answer = (folder / "answer.json").read_bytes()
    nodes = preflight._understood(answer, "127.0.0.1:1")
    for each in [*nodes, *filter(None, [node])]:
        str(each)
    preflight.refuse_different(nodes, 1.0)


# ---- the hub


class _Info:
    """What the hub's client makes of an answer about a repository."""

    def __init__(self, content: Any) -> None:
        self.__dict__.update(content)


def make_answers(folder: Path) -> None:
    name = "data/train-00000.parquet"
    lfs = {"oid": "0" * 64, "size": 3, "pointerSize": 134}
    file = {"type": "file", "oid": "0" * 40, "size": 3, "path": name, "lfs": lfs}
    readme = {"type": "file", "oid": "0" * 40, "size": 3, "path": "README.md"}
    siblings = [
        {"rfilename": name, "size": 3, "blobId": "0" * 40, "lfs": {**lfs, "sha256": "0" * 64}},
        {"rfilename": "README.md", "size": 3, "blobId": "0" * 40},
    ]
    siblings += [{"rfilename": "config.json", "size": 3, "blobId": "0" * 40}]
    siblings += [{"rfilename": "model.safetensors", "size": 3, "blobId": "0" * 40}]
    about = {"_id": "1", "id": "a/b", "sha": "1" * 40, "siblings": siblings, "private": False}
    (folder / "info.json").write_text(json.dumps({**about, "gated": False, "tags": []}))
    (folder / "paths-info.json").write_text(json.dumps([file, readme]))
    (folder / "tree.json").write_text(json.dumps([file, readme]))
    known = {"name": name, "bytes": 3, "sha256": "0" * 64}
    note = {"repo": "a/b", "revision": "1" * 40, "files": [known]}
    (folder / "note.json").write_text(json.dumps(note))


def read_answers(folder: Path) -> None:
    """What the hub's client, fed these answers, hands on; no byte goes through a network."""
    from nanogpt_dist import hub, hub_retries
    from nanogpt_dist.interop import init_from
    from prepare.sources import hub as sources

    def ask(look: Callable[[], object]) -> None:
        with hub_retries.retrying(hub_retries.RetryPolicy()), hub.hub_errors("a/b"):
            look()

    looks: list[Callable[[], object]] = [
        lambda: list(sources._facts("a/b", "1" * 40, ["README.md", "data/train-00000.parquet"])),
        lambda: init_from._fetched("a/b", True),
        lambda: _recalled(folder),
    ]
    with answering(folder):
        try_all(functools.partial(ask, look) for look in looks)


@contextmanager
def answering(folder: Path) -> Iterator[None]:
    """The hub's client gets the files of `folder` for answers, and keeps its own there."""
    import httpx

    def answer(request: httpx.Request) -> httpx.Response:
        steps = request.url.path.strip("/").split("/")
        name = "info"
        if "agent-harnesses" in steps:  # the library remembers it as long as the process lives
            return httpx.Response(404)
        if "tree" in steps:
            name = "tree"
        elif "paths-info" in steps:
            name = "paths-info"
        elif "resolve" in steps:
            headers = {"X-Repo-Commit": "1" * 40, "ETag": '"x"', "Content-Length": "3"}
            return httpx.Response(200, headers=headers, content=b"{}\n")
        body = (folder / f"{name}.json").read_bytes()
        return httpx.Response(200, content=body, headers={"Content-Type": "application/json"})

    with _client_in(folder, lambda: httpx.Client(transport=httpx.MockTransport(answer))):
        yield


@contextmanager
def _client_in(folder: Path, client: Callable[[], Any]) -> Iterator[None]:
    """The hub's client with its files in `folder`, which gives up at once; as it was behind it."""
    from huggingface_hub import close_session, constants
    from huggingface_hub.utils import _http

    from nanogpt_dist import hub_retries
    from nanogpt_dist.interop import init_from

    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in (("FIRST_WAIT_S", 0.0), ("FAULT_BUDGET_S", 0.01), ("UNHEARD_S", 0.01)):
            patch.setattr(hub_retries, name, seconds)
        patch.setattr(hub_retries, "_answered", threading.Event())
        patch.setattr(init_from, "HUB_BUDGET_S", 0.01)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name, file in (
            ("HF_HOME", "."),
            ("HF_HUB_CACHE", "hub"),
            ("HF_TOKEN_PATH", "token"),
            ("HF_STORED_TOKENS_PATH", "stored_tokens"),
            ("AGENT_HARNESSES_PATH", "harnesses.json"),
        ):
            patch.setattr(constants, name, str(folder / file), raising=False)
        patch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", client)
        close_session()
        yield
        close_session()


def _recalled(folder: Path) -> object:
    from prepare.sources import hub as sources

    place = sources._notes("a/b") / sources._note_name(None, "train", None)
    place.parent.mkdir(parents=True)
    if not (folder / "note.json").is_file():
        raise MissingInputError("no note")
    place.write_bytes((folder / "note.json").read_bytes())
    known = sources._recall("a/b", None, "train", None)
    return known and sum(file.bytes + len(file.name) + len(file.sha256) for file in known.files)


PARSERS = [
    Parser("run-folder", make_run, read_run_folder, ("run/**/*",)),
    Parser("tasks", make_tasks, read_tasks),
    Parser(
        "environment",
        make_environment,
        read_environment,
        mutate=mutated_environment,
        other_kinds=False,
    ),
    Parser("nodes", make_nodes, read_nodes, mutate=mutated_json, other_kinds=False),
    Parser("hub", make_answers, read_answers, other_kinds=False),
]
