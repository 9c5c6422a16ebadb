"""The campaign itself: its short tier, a row that does not hold, one try again from its seed."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CLONE
from tests.faults import figures
from tests.faults.campaign import Campaign, chosen, table
from tests.faults.figures import Figure
from tests.faults.row import Missing, Row
from tests.faults.rows import ROWS


def test_the_short_tier_loses_nothing() -> None:
    line = [sys.executable, "-m", "tests.faults.campaign", "--short", "--seed", "1", "--json"]
    done = subprocess.run(line, cwd=CLONE, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(each["tried"] or each["lost"] == 0 for each in found.values())


def run(place: Path, *rows: Row, seed: int = 5, tries: int | None = None) -> Campaign:
    campaign = Campaign(place, seed, workers=2, tries=tries)
    campaign.run(rows, 60)
    return campaign


def held(choose: random.Random, folder: Path) -> float:
    (folder / "some").write_text("file")
    return choose.uniform(1, 2)


def unlucky(choose: random.Random, folder: Path) -> None:
    assert choose.random() < 0.5, "what was saved"


def hangs(choose: random.Random, folder: Path) -> None:
    subprocess.run(["sleep", "600"])


def needs_what_is_not_there(choose: random.Random, folder: Path) -> None:
    raise Missing("needs a tape drive")


def test_tries_are_counted_and_their_worst_time_kept(tmp_path: Path) -> None:
    found = run(tmp_path, Row(1, "a fault", "all", goal=9, attempt=held))
    figure = found.figures[1]
    assert (figure.tried, figure.lost, figure.goal) == (9, 0, 9)
    assert 1.5 < figure.worst_s < 2
    assert not list(tmp_path.iterdir()), "their folders are gone"


def test_a_loss_is_made_again_from_its_seed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    row = Row(7, "a fault", "all", goal=20, attempt=unlucky)
    found = run(tmp_path, row)
    lost = found.figures[7].lost
    assert 0 < lost < 20
    told = capfd.readouterr().out
    assert told.count("row 7 does not hold: AssertionError: what was saved") == lost
    seeds = [
        line.split("--seed ")[1].split()[0] for line in told.splitlines() if "  again: " in line
    ]
    for each in seeds:
        again = tmp_path / f"again-{each}"
        again.mkdir()
        assert run(again, row, seed=int(each), tries=1).figures[7].lost == 1


def test_a_try_that_hangs_is_lost_and_ends_with_all_it_started(tmp_path: Path) -> None:
    found = run(tmp_path, Row(3, "a fault", "all", goal=1, attempt=hangs, limit_s=0.5))
    assert found.figures[3].lost == 1
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert entry.read_bytes() != b"sleep\0600\0", "it sleeps on"
        except OSError:
            continue


def test_what_the_machine_lacks_is_said(tmp_path: Path) -> None:
    row = Row(4, "a fault", "all", goal=9, attempt=needs_what_is_not_there)
    found = run(tmp_path, row)
    assert "not tried here: needs a tape drive" in list(table([row], found))[1]


def test_the_page_is_that_of_the_figures() -> None:
    assert figures.PAGE.read_text() == figures.page(figures.kept())


def test_rows_have_numbers_of_their_own_and_are_chosen_by_them() -> None:
    numbers = [row.number for row in ROWS]
    assert numbers == sorted(set(numbers))
    assert [row.number for row in chosen("2,1")] == [1, 2]
    with pytest.raises(SystemExit, match="there is no row 999"):
        chosen("999")


def test_tests_that_are_named_are_there() -> None:
    for row in ROWS:
        assert row.attempt or row.tests
        for each in row.tests:
            path, _, name = each.partition("::")
            assert (CLONE / path).is_file(), each
            assert f"def {name.partition('[')[0]}" in (CLONE / path).read_text(), each


def test_figures_replace_those_that_are_kept_or_are_added_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "KEPT", tmp_path / "figures.json")
    monkeypatch.setattr(figures, "PAGE", tmp_path / "faults.md")
    figures.keep({1: Figure(5, 1, 2.0, 200), 2: Figure(3, 0, 1.0, 200)})
    figures.keep({1: Figure(4, 2, 1.5, 7), 3: Figure(1, 0, 0.5, 80)}, add=True)
    added = Figure(9, 3, 2.0, 200)
    assert figures.kept() == {1: added, 2: Figure(3, 0, 1.0, 200), 3: Figure(1, 0, 0.5, 80)}
    figures.keep({1: Figure(2, 0, 0.1, 200), 2: Figure()})
    assert figures.kept()[1] == Figure(2, 0, 0.1, 200)
    assert figures.kept()[2] == Figure(3, 0, 1.0, 200), "a row that was not tried stays"
    assert figures.PAGE.read_text() == figures.page(figures.kept())
