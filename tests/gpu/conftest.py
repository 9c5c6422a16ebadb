"""One JSON file of what every test here has measured; written anew after each of them.

pytest -m gpu tests/gpu --gpu-results FILE     # else benchmarks/results/gpu-tests-DEVICE.json
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.machine import SIMULATED, about, results_file

HERE = Path(__file__).parent
TIMEOUT_S = 600  # of a test: some make a dozen processes, and each of these compiles


class Measured:
    """What a test measures, for the JSON file; a limit is asserted, and stands beside its value."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.not_checked: list[str] = []  # on a simulated device

    def note(self, **figures: Any) -> None:
        """Record figures that have no limit."""
        self.figures |= figures

    def at_most(self, limit: float, **figures: float) -> None:
        """Record figures, and require that none is above `limit`."""
        self.figures |= {
            name: {"value": value, "at_most": limit} for name, value in figures.items()
        }
        above = {name: value for name, value in figures.items() if not value <= limit}
        assert not above, f"at most {limit} is wanted"

    def on_hardware(self, ok: bool, what: str) -> None:
        """Require what only a real GPU can show; on a simulated one note that it was left out."""
        if SIMULATED:
            self.not_checked.append(what)
        else:
            assert ok, f"not so: {what}"


class Results:
    """The content of the file."""

    def __init__(self, path: Path | None) -> None:
        self.about = about()
        self.path = path or results_file("gpu-tests", self.about["device"])
        self.tests: dict[str, dict[str, Any]] = {}
        self.start = time.perf_counter()

    def add(self, name: str, report: pytest.TestReport, measured: Measured | None) -> None:
        """Take the report of a test's last phase so far, and write the file."""
        entry = self.tests.setdefault(name, {"outcome": "passed", "seconds": 0.0})
        entry["seconds"] = round(entry["seconds"] + report.duration, 2)
        if measured is not None:
            entry["figures"], entry["not_checked"] = measured.figures, measured.not_checked
        if report.outcome != "passed":
            entry["outcome"], entry["why"] = report.outcome, why(report)
        self.write()

    def write(self) -> None:
        """Write the file as it is now."""
        outcomes = [entry["outcome"] for entry in self.tests.values()]
        content = {
            "about": self.about,
            "seconds": round(time.perf_counter() - self.start, 1),
            **{name: outcomes.count(name) for name in ("passed", "failed", "skipped")},
            "tests": self.tests,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def why(report: pytest.TestReport) -> str:
    """In a line why a test failed or was skipped."""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E ")]
    return " ".join(line.removeprefix("E").strip() for line in lines)[:2000]


RESULTS = pytest.StashKey[Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-results", type=Path, help="the JSON file of what tests/gpu measures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


def pytest_runtest_setup(item: pytest.Item) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    if RESULTS not in item.config.stash:
        path = item.config.getoption("--gpu-results", None)
        item.config.stash[RESULTS] = Results(path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],
) -> Iterator[None]:
    report = yield
    assert isinstance(report, pytest.TestReport)
    results = item.config.stash.get(RESULTS, None)
    if results is not None:
        measured = getattr(item, "funcargs", {}).get("measured")
        results.add(item.nodeid.removeprefix("tests/gpu/"), report, measured)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash.get(RESULTS, None)
    if results is not None:
        terminalreporter.write_line(f"figures: {results.path}")


@pytest.fixture
def measured() -> Measured:
    """What this test measures."""
    return Measured()
