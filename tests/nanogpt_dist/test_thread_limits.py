"""How many more threads fit: in a container, below the user's and the system's limits."""

from pathlib import Path

import pytest

from nanogpt_dist.thread_limits import SPARE_THREADS, processes_left, threads_fit


def made(root: Path, **files: str) -> Path:
    """Files below `root`; __ in a name is /."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(("most", "fits"), [("600", False), ("4096", True), ("max", True)])
def test_a_container_that_gives_few_processes(tmp_path: Path, most: str, fits: bool) -> None:
    place = "sys__fs__cgroup__job__pids"
    files = {"proc__self__cgroup": "0::/job", f"{place}.current": "200", f"{place}.max": most}
    root = made(tmp_path, **files)
    assert processes_left(root) == (None if most == "max" else (200, int(most)))
    assert threads_fit(8, root) == fits


@pytest.mark.parametrize(("there", "fits"), [(100, True), (32768 - SPARE_THREADS, False)])
def test_a_system_that_is_nearly_full(tmp_path: Path, there: int, fits: bool) -> None:
    root = made(
        tmp_path,
        proc__loadavg=f"1.00 1.00 1.00 2/{there} 4711",
        proc__sys__kernel__pid_max="32768",
    )
    assert threads_fit(8, root) == fits


def test_a_system_that_promises_no_more_memory_than_it_has(tmp_path: Path) -> None:
    files = {"proc__sys__vm__overcommit_memory": "2"}
    little = "CommitLimit: 8000000 kB\nCommitted_AS: 7000000 kB"
    assert not threads_fit(8, made(tmp_path, **files, proc__meminfo=little))
    ample = "CommitLimit: 80000000 kB\nCommitted_AS: 7000000 kB"
    assert threads_fit(8, made(tmp_path, proc__meminfo=ample))
