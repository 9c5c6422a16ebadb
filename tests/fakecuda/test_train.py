"""`nanogpt train` on the fake GPU: the CPU's losses, and what a step copies and waits for."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import completed, fork_server
from tests.fakecuda.record import read
from tests.fakecuda.runs import (
    STEPS,
    TRAIN,
    difference,
    losses,
    plain_steps,
    reads,
    uploads,
    waits,
)
from tests.fork_server import Done, Server

Gpu = Callable[..., Done]
FP32 = ["--dtype", "float32"]
STRATEGIES: dict[str, tuple[int, list[str]]] = {
    "single": (0, []),
    "ddp": (2, ["--strategy", "ddp"]),
    "fsdp": (2, ["--strategy", "fsdp"]),
    "mesh": (4, ["--strategy", "fsdp", "--mesh", "2x2"]),
}
LONG_FSDP = pytest.param("fsdp", marks=pytest.mark.thorough)


class Trainings:
    """Each training once, however many tests look at it."""

    def __init__(self, server: Server, corpus: Path, folder: Path) -> None:
        self.servers = {"cuda": server, "cpu": fork_server()}
        self.corpus, self.folder = corpus, folder
        self.done: dict[str, Done] = {}

    def run(self, device: str, strategy: str = "single", *more: object) -> tuple[Path, Done]:
        """The run folder and how the command ended."""
        name = "_".join(map(str, [device, strategy, *more])).replace("/", "_")
        ranks, flags = STRATEGIES[strategy]
        if name not in self.done:
            line = [*TRAIN, *FP32, "--dataset", self.corpus, *flags, *more]
            self.done[name] = self.servers[device].run(
                *line, "--device", device, "--out-dir", name, folder=self.folder, ranks=ranks
            )
        return self.folder / name, self.done[name]


@pytest.fixture(scope="module")
def trainings(
    server: Server,
    corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trainings:
    return Trainings(server, corpus, tmp_path_factory.mktemp("trainings"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_and_weights_are_the_cpus(trainings: Trainings, strategy: str) -> None:
    """But for rounding, in attention and in the norm over all gradients.

    Where a gradient is nearly 0, AdamW's update amplifies that: a thousandth of a step of 1e-2.
    """
    ours, _ = trainings.run("cuda", strategy)
    theirs, _ = trainings.run("cpu", strategy)
    assert losses(ours) == pytest.approx(losses(theirs), rel=0, abs=1e-6)
    assert len(losses(ours)) == STEPS
    assert difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_host_reads_once_in_a_step(trainings: Trainings, strategy: str) -> None:
    for happenings in plain_steps(trainings.run("cuda", strategy)[1]):
        assert len(reads(happenings)) == 1, reads(happenings)
        assert waits(happenings) == [], "what it reads is that of the step before"


@pytest.mark.parametrize(
    "strategy",
    ["ddp", *(pytest.param(s, marks=pytest.mark.thorough) for s in STRATEGIES if s != "ddp")],
)
def test_muons_steps_are_the_cpus_and_wait_for_nothing(
    trainings: Trainings,
    strategy: str,
) -> None:
    ours, done = trainings.run("cuda", strategy, "--optimizer", "muon")
    theirs, _ = trainings.run("cpu", strategy, "--optimizer", "muon")
    assert losses(ours) == pytest.approx(losses(theirs), rel=0, abs=1e-5)
    for happenings in plain_steps(done):
        assert len(reads(happenings)) == 1, reads(happenings)
        assert waits(happenings) == [], "what it reads is that of the step before"
        assert len(uploads(happenings)) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_copy_goes_up_in_a_step_pinned_and_contiguous(
    trainings: Trainings,
    strategy: str,
) -> None:
    for happenings in plain_steps(trainings.run("cuda", strategy)[1]):
        assert [(up.pinned, up.contiguous, up.waits) for up in uploads(happenings)] == [
            (True, True, False)
        ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_rank_is_on_its_own_device(trainings: Trainings, strategy: str) -> None:
    """In all its threads: whoever pins memory in a thread takes device 0, if it is not told."""
    _, done = trainings.run("cuda", strategy)
    for rank in range(STRATEGIES[strategy][0] or 1):
        there = done.of_rank(rank)
        assert {each.device for each in there if each.kind in ("up", "down", "item")} == {rank}
        assert {each.device for each in there if each.kind == "pin"} == {rank}
        assert "race" not in {each.kind for each in there}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32"])
def test_other_types_lose_nearly_the_same(trainings: Trainings, dtype: str) -> None:
    ours, done = trainings.run("cuda", "single", "--dtype", dtype)
    theirs, _ = trainings.run("cpu")
    assert losses(ours) == pytest.approx(losses(theirs), abs=0.02)
    assert f"cuda {dtype}" in done.stderr + done.stdout
    for happenings in plain_steps(done):
        assert len(reads(happenings)) == 1, reads(happenings)


def test_float16_skips_a_step_that_overflows(gpu: Gpu, corpus: Path, tmp_path: Path) -> None:
    """A loss of one token, scaled by 2^16, has gradients beyond 65504: the scale is halved."""
    line = [*TRAIN, "--dataset", corpus, "--device", "cuda", "--dtype", "float16"]
    one = ["--block-size", 1, "--batch-size", 1, "--gradient-accumulation-steps", 1]
    done = gpu(*line, *one, "--out-dir", "run", "--always-save-checkpoint")
    words = done.stdout + done.stderr
    assert re.search(r"step \d+ skipped, its gradient's norm is (inf|nan)", words)
    facts = json.loads(next(tmp_path.glob("run/checkpoints/step-*/state.json")).read_text())
    assert facts["scaler"]["scale"] < 2**16
    skipped = words.count("skipped, its gradient's norm")
    assert facts["scaler"]["scale"] == 2 ** (16 - skipped)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("strategy", ["single", LONG_FSDP])
def test_compiled_is_not_another_model(
    server: Server,
    trainings: Trainings,
    strategy: str,
    backend: str,
    tmp_path: Path,
) -> None:
    plain, done = trainings.run("cuda", strategy, "--no-compile")
    assert "compile" not in {each.kind for each in done.record}
    ranks, flags = STRATEGIES[strategy]
    line = [*TRAIN, *FP32, "--dataset", trainings.corpus, "--device", "cuda", *flags, "--compile"]
    done = server.run(
        *line, "--out-dir", tmp_path / "run", folder=tmp_path, ranks=ranks, compile=backend
    )
    assert "compile" in {each.kind for each in done.record}
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), abs=1e-6)
    for happenings in plain_steps(done):
        assert len(reads(happenings)) == 1, reads(happenings)


@pytest.mark.parametrize("what", ["full", "selective"])
@pytest.mark.parametrize("strategy", ["single", LONG_FSDP])
def test_activation_checkpointing_changes_no_bit(
    trainings: Trainings,
    strategy: str,
    what: str,
) -> None:
    drops = ["--dropout", "0.1", "--no-compile"]
    ours, done = trainings.run("cuda", strategy, "--activation-checkpointing", what, *drops)
    theirs, _ = trainings.run("cuda", strategy, *drops)
    assert losses(ours) == losses(theirs)
    for happenings in plain_steps(done):
        assert len(reads(happenings)) == 1, reads(happenings)


def test_intra_document_is_flex_attention(
    server: Server,
    short_documents: Path,
    tmp_path: Path,
) -> None:
    line = [*TRAIN, *FP32, "--dataset", short_documents, "--intra-document", "--rotary"]
    gpu = ["--device", "cuda", "--out-dir", "gpu"]
    done = server.run(*line, *gpu, folder=tmp_path)
    fork_server().run(*line, "--device", "cpu", "--out-dir", "cpu", folder=tmp_path)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-5)
    # beside the step's own copy: -inf, which FlexAttention as plain operators makes on the host
    assert {up.bytes for up in uploads(plain_steps(done)[0]) if not up.pinned} == {4}
    server.run(*line, *gpu[:-1], "plain", "--no-intra-document", folder=tmp_path)
    assert losses(tmp_path / "gpu") != pytest.approx(losses(tmp_path / "plain"), abs=1e-3)
    for happenings in plain_steps(done):
        assert len(reads(happenings)) == 1, reads(happenings)


@pytest.mark.parametrize("more", [[], ["--intra-document"]], ids=["alone", "of documents"])
def test_windows_are_flex_attention(
    more: list[str],
    server: Server,
    short_documents: Path,
    tmp_path: Path,
) -> None:
    windows = ["--sliding-window", "5", "--window-pattern", "S", *more]
    line = [*TRAIN, *FP32, "--dataset", short_documents, "--rotary", *windows]
    server.run(*line, "--device", "cuda", "--out-dir", "gpu", folder=tmp_path)
    fork_server().run(*line, "--device", "cpu", "--out-dir", "cpu", folder=tmp_path)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-5)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_cpu_offload(gpu: Gpu, trainings: Trainings, ranks: int, tmp_path: Path) -> None:
    """Weights and optimizer state stay in pinned memory of the host."""
    line = [*TRAIN, *FP32, "--dataset", trainings.corpus, "--device", "cuda", "--cpu-offload"]
    done = gpu(*line, "--out-dir", "run", ranks=ranks)
    assert losses(tmp_path / "run") == pytest.approx(losses(trainings.run("cpu")[0]), abs=1e-5)
    kinds = {each.kind for each in done.record}
    assert "race" not in kinds
    weights_up = [up for step in plain_steps(done) for up in uploads(step) if up.bytes > 4096]
    assert weights_up
    assert all(up.pinned for up in weights_up)


@pytest.mark.parametrize("strategy", ["single", "fsdp"])
def test_resuming_is_exact(gpu: Gpu, trainings: Trainings, strategy: str) -> None:
    ranks, flags = STRATEGIES[strategy]
    line = [*TRAIN, "--dataset", trainings.corpus, "--device", "cuda", *flags, "--deterministic"]
    done = gpu(*line, "--dtype", "bfloat16", "--dropout", "0.1", "--check-resume", ranks=ranks)
    assert "resuming is exact here" in done.stdout + done.stderr


@pytest.mark.thorough
def test_a_run_goes_on_with_another_strategy(
    gpu: Gpu,
    trainings: Trainings,
    tmp_path: Path,
) -> None:
    line = [*TRAIN, *FP32, "--dataset", trainings.corpus, "--device", "cuda", "--out-dir", "run"]
    schedule = ["--lr-decay-iters", STEPS, "--eval-interval", 2]
    gpu(*line, *schedule, "--max-iters", 2, "--strategy", "fsdp", ranks=2)
    gpu(*line, *schedule, "--max-iters", 4, "--strategy", "ddp", ranks=2)
    done = gpu(*line, *schedule, "--max-iters", STEPS)
    assert "going on from step-00000004" in done.stdout + done.stderr
    whole, _ = trainings.run("cuda", "single", *schedule)
    assert difference(tmp_path / "run", whole) < 1e-6


def test_a_run_begins_with_the_weights_of_another(
    gpu: Gpu,
    trainings: Trainings,
    tmp_path: Path,
) -> None:
    first, _ = trainings.run("cuda")
    line = [*TRAIN, *FP32, "--dataset", trainings.corpus, "--device", "cuda", "--init-from", first]
    for ranks, flags in (STRATEGIES["single"], STRATEGIES["fsdp"]):
        gpu(*line, *flags, "--out-dir", f"run{ranks}", ranks=ranks)
        begun, ended = losses(tmp_path / f"run{ranks}")[0], losses(first)[0]
        assert begun < ended - 0.2


@pytest.mark.parametrize(
    ("name", "capability", "dtype"),
    [("Tesla T4", "7.5", "float16"), ("NVIDIA A100-SXM4-40GB", "8.0", "bfloat16")],
)
def test_auto_takes_the_type_that_the_card_has(
    gpu: Gpu,
    corpus: Path,
    name: str,
    capability: str,
    dtype: str,
) -> None:
    line = [*TRAIN, "--dataset", corpus, "--max-iters", 1, "--out-dir", "run"]
    done = gpu(*line, name=name, capability=capability)
    assert f"cuda {dtype}" in done.stdout + done.stderr


def test_more_ranks_than_gpus(gpu: Gpu, corpus: Path) -> None:
    done = gpu(*TRAIN, "--dataset", corpus, "--device", "cuda", ranks=2, count=1, code=78)
    assert "2 ranks on this machine, 1 GPUs found" in done.stderr


def test_a_gpu_that_is_full(gpu: Gpu, corpus: Path) -> None:
    """It takes the weights, and not what a step makes."""
    line = [*TRAIN, "--dataset", corpus, "--device", "cuda", "--out-dir", "run"]
    line += ["--strategy", "single"]  # what is chosen for the user would be refused
    done = gpu(*line, "--batch-size", 64, "--vocab-size", 50304, memory=30e6, code=70)
    assert "error: out of memory after step 0, with micro-batches of 64" in done.stderr
    assert "add --auto-batch-size, or type" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_of_two_gpus_is_full(gpu: Gpu, corpus: Path) -> None:
    """Rank 0 is not left waiting for the gradients of rank 1."""
    line = [*TRAIN, "--dataset", corpus, "--device", "cuda", "--out-dir", "run"]
    more = ["--strategy", "ddp", "--vocab-size", 50304, "--batch-size", 64, "--timeout-s", 20]
    done = gpu(*line, *more, ranks=2, memory="80e9,60e6", code=None)
    assert done.code != 0
    assert "out of memory" in done.stderr, done.stderr
    assert "rank 1" in done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["torchrun", "launch"])
def test_started_as_a_user_starts_it(
    fake_gpu: Callable[..., dict[str, str]],
    trainings: Trainings,
    tmp_path: Path,
    how: str,
) -> None:
    line = [*TRAIN, *FP32, "--dataset", trainings.corpus, "--device", "cuda", "--out-dir", "run"]
    record = tmp_path / "record.jsonl"
    launch = ["launch", "--nproc-per-node", 2] if how == "launch" else []
    completed(
        *launch,
        *line,
        ranks=0 if launch else 2,
        code=0,
        folder=tmp_path,
        environment=fake_gpu(record=record),
    )
    assert losses(tmp_path / "run") == losses(trainings.run("cuda", "ddp")[0])
    assert read(record, 1), "the second rank has the fake GPU, too"
