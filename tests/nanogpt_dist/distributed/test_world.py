"""Agreement of real ranks under a real torchrun: see ranks/agreement.py for what each of them
does.
"""

import json
import math
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nanogpt_dist.distributed.world import World, _store, connect
from nanogpt_dist.errors import BadDataError, CannotCreateError, ConfigError, StorageError
from tests.conftest import CLONE, TINY, Run, command


def test_ranks_agree(tmp_path: Path) -> None:
    line = [
        str(CLONE / "tests/ranks/agreement.py") if part.endswith("/nanogpt") else part
        for part in command(ranks=2)
    ]
    done = subprocess.run(
        [*line, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=CLONE
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first == {
        "sum": [3.0, 30.0],
        "any": [False, True],
        "text": ["", "grüße"],
        "one fails": [65, "rank 1: bad shard", True],
        "both fail": [78, "of rank 0", True],
        "flags": [False, True, True, True],
        "vote": [[True, False], [[0.5, 0.0, 3.0], [1.5, 2.0, 3.0]]],
        "ints": [1, 11],
        "texts": [["", "éé"], ["b", ""]],
        "shares": [
            [[], [["a", True]], [["a", True], ["c", True]], [["a", True], ["c", True]]],
            [[], [["a", False]], [["b", True], ["c", False]], [["b", True], ["d", True]]],
        ],
        "differ": [
            "no difference",
            "rank 1 has another dropout than rank 0: 0.1 and 0.0; start all of them with the same "
            "command and installation",
        ],
        "loaded": [["by rank 0", "by rank 1", "0 1 "], ["no such file", "no such file", "0 "]],
        "after": 2.0,
    }


def test_after_an_error_the_process_may_meet_the_others_again() -> None:
    """As in a notebook, whose process goes on."""
    for _ in range(2):
        with (
            pytest.raises(BadDataError, match="here"),
            connect("cpu", timeout_s=30, group=True),
        ):
            raise BadDataError("here")
        assert not dist.is_initialized()


def patience(group: dist.ProcessGroup | None) -> float:
    """Seconds that the ranks of a group wait for each other."""
    assert group is not None
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("timeout_s", "at_first"), [(60, 1800), (3600, 3600)])
def test_the_ranks_have_half_an_hour_until_they_have_settled_and_a_day_to_save(
    timeout_s: int, at_first: int
) -> None:
    with connect("cpu", timeout_s, group=True) as world:
        more = dist.new_group(backend="gloo")
        world.add_groups(more)
        for settled, seconds in ((None, at_first), (True, timeout_s), (False, at_first)):
            if settled is not None:
                world.settle(settled)
            assert patience(dist.group.WORLD) == patience(more) == seconds
            assert world.watchdog.timeout_s == seconds
            assert patience(world.with_long_timeout.group) == 24 * 3600
        world.settle()
        assert patience(dist.group.WORLD) == timeout_s
        assert (world.rank, world.size, world.local_size) == (0, 1, 1)
        assert world.with_long_timeout == replace(world, group=world.long_timeout_group)
        with (
            pytest.raises(ConfigError, match="in a process group already"),
            connect("cpu", 60, True),
        ):
            pass
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "x"}, "RANK='x' is not what torchrun sets: unset it"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK='-1' is not"),
        ({"WORLD_SIZE": "1234567890"}, "WORLD_SIZE='1234567890' is not"),
        ({"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE='' is not"),
        ({"RANK": "٠", "WORLD_SIZE": "١"}, "RANK='٠' is not what torchrun sets"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE='9{40}' is not"),
        ({"RANK": "1"}, "RANK=1, but WORLD_SIZE is 1: unset RANK"),
        ({"RANK": "123456789"}, "RANK=123456789, but WORLD_SIZE is 1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, but not MASTER_ADDR and MASTER_PORT"),
        ({"WORLD_SIZE": "2", "MASTER_PORT": "1"}, "WORLD_SIZE is set, but not MASTER_ADDR"),
    ],
    ids=str,
)
def test_an_environment_that_torchrun_does_not_make_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), connect("cpu", timeout_s=5):
        pass


@pytest.mark.parametrize(("size", "group"), [("1", True), ("2", False), ("3", False)])
def test_a_device_without_collectives_is_for_one_process_alone(
    size: str, group: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    meeting = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in meeting.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match="mps has no collectives"),
        connect("mps", timeout_s=5, group=group),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with connect("mps", timeout_s=5) as world:
        assert (world.device.type, world.backend) == ("mps", None)


def test_a_rank_works_on_the_gpu_of_its_number_whose_memory_grows_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", calls.append, raising=False)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with connect("cuda", timeout_s=5) as world:
        assert world.device == torch.device("cuda", 1)
    assert calls[-1] == torch.device("cuda", 1)
    assert calls[:-1] == (["expandable_segments:True"] if sys.platform == "linux" else [])


def test_ranks_that_do_not_meet_say_who_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0"}
        for name, value in meeting.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(CannotCreateError, match=f"MASTER_PORT {port} is taken by another"):
            connect("cpu", timeout_s=1).__enter__()
    with pytest.raises(
        StorageError, match=f"only 1 of 2 ranks came to 127.0.0.1:{port} within 1 s"
    ):
        connect("cpu", timeout_s=1).__enter__()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(
        StorageError, match=f"rank 1 of 2 found no rank 0 at 127.0.0.1:{port} within"
    ):
        connect("cpu", timeout_s=1).__enter__()


def test_ranks_that_start_again_do_not_read_what_the_dead_have_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun's store outlives them. One that is made anew each time needs no such place."""
    keeper = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**meeting, "MASTER_PORT": str(keeper.port)}.items():
        monkeypatch.setenv(name, value)
    left = []
    for shared, restarts in ((None, None), ("True", "0"), ("True", "1"), ("False", "2")):
        for name, value in (("USE_AGENT_STORE", shared), ("RESTART_COUNT", restarts)):
            if value is None:
                monkeypatch.delenv(f"TORCHELASTIC_{name}", raising=False)
            else:
                monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
        store, rank, size = _store(2, timedelta(seconds=5))
        assert (rank, size) == (1, 2)
        left.append(store.add("ranks that were here", 1))
    assert left == [1, 2, 1, 3]


def test_the_speed_of_a_sum_is_what_is_summed_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum of 16 MiB that takes two seconds; the first, which connects, takes a hundred."""
    times = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: times[-1])

    class Slow(World):
        def sum(self, values: torch.Tensor) -> torch.Tensor:
            assert values.nbytes == 16 << 20
            times.append(times[-1] + (100 if len(times) == 1 else 2))
            return values

    assert Slow(0, 0, 1, torch.device("cpu"), None).all_reduce_speed() == 8 << 20


def test_a_world_of_one_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with connect("cpu", timeout_s=5) as world:
        assert world == World(0, 0, 1, torch.device("cpu"), None)
        assert world.is_rank0
        assert world.local_size == 1
        by_itself = World(0, 0, 1, torch.device("cpu"), None).watchdog
        assert (by_itself.rank, by_itself.size, by_itself.timeout_s) == (0, 1, math.inf)
        assert (world.watchdog.rank, world.watchdog.size, world.watchdog.timeout_s) == (0, 1, 5)
        assert not dist.is_initialized()
        assert world.vote([True, False], [0.5, 2]) == ([True, False], [[0.5, 2]])
        assert world.any_of_each(True, False) == [True, False]
        assert world.gather_ints(7) == [7]
        assert list(world.split_over_ranks("ab")) == [("a", True), ("b", True)]
        assert world.local_rank0_first(lambda: "loaded") == "loaded"
        assert world.any(True)
        assert world.broadcast_text("x") == "x"
        assert world.sum(torch.ones(2)).tolist() == [1, 1]
        with pytest.raises(BadDataError, match="here"), world.raise_on_all_ranks():
            raise BadDataError("here")


@pytest.mark.thorough
def test_evaluation_and_bad_data_on_two_ranks(nanogpt: Run, corpus: Path, tmp_path: Path) -> None:
    flags = ["--dataset", corpus, *TINY, "--max-iters", "3", "--out-dir", "run", "--no-tensorboard"]
    one = json.loads(nanogpt("train", *flags, "--json", ranks=2).stdout)
    assert one["step"] == 3
    alone, both = (
        json.loads(nanogpt("eval", "run", "--json", ranks=ranks).stdout) for ranks in (0, 2)
    )
    assert alone == both
    shard = next(corpus.glob("*_train_000000.bin"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in corpus.iterdir():
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[:-10] if path == shard else data)
    failed = nanogpt(
        "launch",
        "--nproc-per-node",
        2,
        "train",
        "--dataset",
        broken,
        *TINY,
        "--out-dir",
        "x",
        code=65,
    )
    assert [
        line for line in failed.stderr.splitlines() if "error" in line
    ] == failed.stderr.splitlines()
    assert len(failed.stderr.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_ranks_of_different_settings_are_refused(corpus: Path, tmp_path: Path) -> None:
    line = command(
        "train",
        "--dataset",
        corpus,
        *TINY,
        "--max-iters",
        "3",
        "--out-dir",
        tmp_path / "run",
        ranks=2,
    )
    script = tmp_path / "odd"
    script.write_text(
        "import os, runpy, sys\n"
        "sys.argv += ['--dropout', '0.' + os.environ['RANK']]\n"
        f"sys.argv[0] = {str(CLONE / 'nanogpt')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    line = [str(script) if part == str(CLONE / "nanogpt") else part for part in line]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=CLONE)
    errors = [text for text in done.stderr.splitlines() if text.startswith("nanogpt")]
    assert len(errors) == 1
    assert "rank 1 has another dropout than rank 0: 0.1 and 0.0" in errors[0]
    assert not (tmp_path / "run").exists()
