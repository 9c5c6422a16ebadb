"""The changes that are made: one at a time, each a program, on the line that it says."""

import ast

import pytest

from tests.conftest import CLONE
from tests.mutants.__main__ import attempts, equivalent
from tests.mutants.modules import MODULES
from tests.mutants.mutate import mutants

SOURCE = '''
@decorated
def save(path, fd, most=3):
    """Words < words."""
    assert fd > 0
    with errors(path):
        if not path.exists() and fd < most:
            raise ValueError(f"{fd + 1} of {len(path)}")
        os.fsync(
            fd,
        )
        self.count += 1
    return min(fd, most)
'''

QUICK = {"nanogpt_dist/storage/sealed.py", "prepare/units/pool.py"}  # modules looked at each time
CHANGES = {
    "3 → 4": "def save(path, fd, most=4):",
    "3 → 2": "def save(path, fd, most=2):",
    "without with errors(path)": '    with __import__("contextlib").nullcontext():',
    "without not in not path.exists()": "        if  path.exists() and fd < most:",
    "and → or in not path.exists() and fd < most": "        if not path.exists() or fd < most:",
    "< → <= in fd < most": "        if not path.exists() and fd <= most:",
    'without raise ValueError(f"{fd + 1} of {len(path)}")': "            pass",
    "without os.fsync( fd, )": "        pass",
    "without self.count += 1": "        pass",
    "+ → - in self.count += 1": "        self.count -= 1",
    "1 → 2": "        self.count += 2",
    "1 → 0": "        self.count += 0",
    "min(fd, most) → return None": "    return None",
    "min → max": "    return max(fd, most)",
}


def test_each_change_is_where_it_says_and_leaves_the_other_lines() -> None:
    before = SOURCE.splitlines()
    found = mutants(SOURCE.encode())
    assert {each.what.replace("return min", "min") for each in found} == CHANGES.keys()
    for each in found:
        after = each.of(SOURCE.encode()).decode().splitlines()
        assert len(after) == len(before)
        assert after[each.line - 1] == CHANGES[each.what.replace("return min", "min")]
        assert [a for a in after if a.strip() and a not in before] in ([], [after[each.line - 1]])
        assert each.function == 2  # its decorator


@pytest.mark.parametrize(
    "module",
    [
        *sorted(QUICK),
        *(pytest.param(one, marks=pytest.mark.thorough) for one in sorted(MODULES.keys() - QUICK)),
    ],
)
def test_each_change_of_a_module_is_another_program(module: str) -> None:
    source = (CLONE / module).read_bytes()
    found = mutants(source)
    before = ast.dump(ast.parse(source))
    assert found
    assert len({each.of(source) for each in found}) == len(found)
    assert all(ast.dump(ast.parse(each.of(source))) != before for each in found)


def test_each_module_has_tests_that_are_there() -> None:
    for module, files in MODULES.items():
        assert files, module
        for file in files:
            assert (CLONE / file).is_file(), file


def test_what_is_listed_as_no_change_is_one_that_is_made() -> None:
    for each in equivalent():
        assert each.keys() == {"file", "line", "change", "why"}
        lines = (CLONE / each["file"]).read_text(encoding="utf-8").splitlines()
        made = mutants((CLONE / each["file"]).read_bytes())
        assert (each["line"], each["change"]) in {
            (lines[mutant.line - 1].strip(), mutant.what) for mutant in made
        }
        kept = attempts(each["file"])
        assert (each["line"], each["change"]) not in {(one.line, one.mutant.what) for one in kept}
