"""The seeded bugs can still be put into the tree, and the tests that must notice them are there.

That they do notice is `python -m tests.seeded.run`.
"""

import subprocess

import pytest

from tests.conftest import CLONE
from tests.seeded.run import Bug, bugs, how
from tests.seeded.tree import git


@pytest.mark.parametrize("bug", bugs(), ids=lambda bug: bug.name)
def test_a_bug_applies_and_names_tests_that_are_there(bug: Bug) -> None:
    assert bug.head.splitlines()[0].endswith("."), "the first line says what the bug does"
    assert bug.tests
    for test in bug.tests:
        name, _, function = test.partition("::")
        assert f"def {function.partition('[')[0]}(" in (CLONE / name).read_text(encoding="utf-8")
    try:
        git("apply", "--check", str(bug.path))
    except FileNotFoundError:
        pytest.skip("git is not installed")
    except subprocess.CalledProcessError as error:
        pytest.fail(f"make the patch anew: {error.stderr}")


def test_numbers_are_in_order() -> None:
    assert [bug.number for bug in bugs()] == list(range(1, len(bugs()) + 1))


def test_a_test_that_stays_green_is_named() -> None:
    tests = ["a.py::test_one", "a.py::test_two"]
    assert how(1, ["a.py::test_one[x]", "a.py::test_two"], tests) == "red"
    assert how(1, ["a.py::test_one[x]"], tests) == "GREEN: a.py::test_two"
    assert how(4, [], tests).startswith("NOT RUN")
