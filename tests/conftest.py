"""What several tests share: a small prepared corpus, and the command run as a user runs it."""

import atexit
import functools
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

from nanogpt_dist.signals import SIGNALS

if TYPE_CHECKING:
    from nanogpt_dist.data import Manifest
    from tests.fork_server import Server

CLONE = Path(__file__).resolve().parents[1]
SHARED = CLONE.parent / "shared"  # corpora and vocabularies that stand beside the clone, if they do

# One thread per process: equal bits everywhere, and no two processes spinning on the same two
# cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("ours", deadline=None)  # a loaded machine is no failure
settings.load_profile("ours")

Run = Callable[..., subprocess.CompletedProcess[str]]

# A model that makes an update in milliseconds.
TINY = [
    *(
        "--n-layer",
        "2",
        "--n-head",
        "2",
        "--n-embd",
        "32",
        "--block-size",
        "32",
        "--batch-size",
        "4",
    ),
    *(
        "--gradient-accumulation-steps",
        "2",
        "--learning-rate",
        "1e-2",
        "--min-lr",
        "1e-3",
        "--warmup-iters",
        "5",
    ),
    *("--eval-iters", "2", "--device", "cpu", "--dtype", "float32"),
]


TORCHRUN = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node"]


def command(*arguments: object, ranks: int = 0) -> list[str]:
    """The command line of `nanogpt ARGUMENTS`, with ranks under torchrun."""
    torchrun = ["-m", "torch.distributed.run", *TORCHRUN, str(ranks)] if ranks else []
    return [sys.executable, *torchrun, str(CLONE / "nanogpt"), *map(str, arguments)]


@functools.cache
def fork_server() -> "Server":
    """Runs commands, each in a fork of a process that has loaded all it needs."""
    from tests.fork_server import Server

    folder = tempfile.TemporaryDirectory()
    server = Server(lambda **_: {}, Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(server.close)
    return server


def in_ranks(script: str, ranks: int, *arguments: object) -> str:
    """Run tests/ranks/SCRIPT.py under torchrun to a good end; what it wrote to standard error."""
    line = [*TORCHRUN, str(ranks), "-m", f"tests.ranks.{script}", *arguments]
    return fork_server().run(*line, folder=CLONE, torchrun=True).stderr


def start_ranks(script: str, ranks: int, *arguments: object) -> list["subprocess.Popen[str]"]:
    """tests/ranks/SCRIPT.py in that many processes, which no torchrun ends when one has died."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {name: str(ranks) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    return [
        subprocess.Popen(
            [sys.executable, "-m", f"tests.ranks.{script}", *map(str, arguments)],
            cwd=CLONE,
            env={**os.environ, **meeting, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def completed(
    *arguments: object,
    ranks: int,
    code: int | None,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`nanogpt ARGUMENTS` run in `folder` to its end; code: what it must return, None: anything."""
    done = subprocess.run(
        command(*arguments, ranks=ranks),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    assert code is None or done.returncode == code, (
        f"{arguments} returned {done.returncode}:\n{done.stderr[-3000:]}"
    )
    return done


@pytest.fixture
def nanogpt(tmp_path: Path) -> Run:
    """Run `nanogpt ARGUMENTS` in an empty folder of its own; ranks=N: under torchrun; code=C: what
    it must return. It is forked, or torchrun is, which saves loading torch; fork=False: as typed.
    """

    def run(
        *arguments: object,
        ranks: int = 0,
        code: int | None = 0,
        fork: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        if not fork:
            return completed(*arguments, ranks=ranks, code=code, folder=tmp_path)
        given = [*TORCHRUN, ranks, CLONE / "nanogpt", *arguments] if ranks else arguments
        done = fork_server().run(*given, folder=tmp_path, code=code, torchrun=bool(ranks))
        line = list(map(str, arguments))
        return subprocess.CompletedProcess(line, done.code, done.stdout, done.stderr)

    return run


HANDLERS = {number: signal.getsignal(number) for number in SIGNALS}  # pytest's own


@pytest.fixture(autouse=True)
def signal_handlers() -> None:
    """A command that runs in this process takes over its signals: each test begins without that."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def fake_gpu() -> Callable[..., dict[str, str]]:
    """fake_gpu(count=2, record=path, …): the variables by which a child process has the fake GPU.

    What they may be says tests/fakecuda/__init__.py. Skips where the fake GPU cannot be built.
    """
    from tests.fakecuda import build, hooks

    try:
        build.library()
    except build.CannotBuildError as error:
        pytest.skip(str(error))
    return hooks.environment


@pytest.fixture(scope="session")
def server(
    fake_gpu: Callable[..., dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator["Server"]:
    """Runs commands on the fake GPU, each in a fork of a process that has loaded all it needs."""
    from tests.fork_server import Server

    server = Server(fake_gpu, tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture
def nanogpt_on_gpu(tmp_path: Path, server: "Server") -> Run:
    """As `nanogpt`, on the fake GPU, in a tenth of the time: ranks are forked, not torchrun's.

    Further arguments say what the device is: memory=16e9, record=path.
    """

    def run(
        *arguments: object,
        ranks: int = 0,
        code: int | None = 0,
        **device: object,
    ) -> subprocess.CompletedProcess[str]:
        done = server.run(*arguments, folder=tmp_path, ranks=ranks, code=code, **device)
        return subprocess.CompletedProcess(
            list(map(str, arguments)), done.code, done.stdout, done.stderr
        )

    return run


def build(
    corpus: str,
    out: Path,
    sources: Sequence[Path] = (),
    mix: str | None = None,
    **given: Any,
) -> "Manifest":
    """prepare.build.build, with the fields of PrepareConfig and Machine as arguments."""
    from prepare import build as prepare_build
    from prepare.options import PrepareConfig

    options = {name: given.pop(name) for name in PrepareConfig.model_fields if name in given}
    named = {"mix": mix} if mix else {"corpus": corpus}
    config = PrepareConfig(**named, out=out, source=list(sources) or None, **options)
    manifest = prepare_build.build(config, prepare_build.Machine(**given))
    assert manifest is not None
    return manifest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data folder: some of Python's own sources, byte by byte, 257 ids."""
    folder = tmp_path_factory.mktemp("corpus")
    stdlib = Path(os.__file__).parent
    texts = [
        (stdlib / name).read_text(encoding="utf-8")
        for name in ("argparse.py", "ast.py", "bisect.py", "heapq.py")
    ]
    (folder / "stdlib.txt").write_text("\n".join(texts), encoding="utf-8")
    build("text", folder / "data", sources=[folder / "stdlib.txt"], tokenizer="byte", workers=1)
    return folder / "data"


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def write_jsonl(path: Path, documents: list[str], column: str = "text") -> Path:
    path.write_text(
        "".join(json.dumps({column: text}) + "\n" for text in documents), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """3,000 documents, 5 MB: enough that workers are started."""
    words = ["the ", "café ", "x = 1\n", "<|endoftext|>", "東京", "  ", "12345 ", "don't "]
    rng = np.random.default_rng(5)
    return ["".join(words[i] for i in rng.integers(0, len(words), 300)) for _ in range(3000)]


@pytest.fixture(scope="session")
def source(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("source") / "texts.jsonl", documents)


@pytest.fixture(scope="session")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "one"
    build("text", out, [source], tokenizer="bpe:300", workers=1)
    return out


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with checkpoints at 4 and 8; read it, or copy it."""
    from tests.nanogpt_dist.small import go, tiny

    run = tmp_path_factory.mktemp("trained") / "a"
    go(tiny(corpus, run))
    return run
