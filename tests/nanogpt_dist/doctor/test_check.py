"""Which exit code a list of findings has."""

import pytest

from nanogpt_dist.doctor.check import Check, exit_code
from nanogpt_dist.errors import Exit

OK, WARNING = Check("disk", "ok", "fine"), Check("clock", "warning", "3 s off", "chronyc makestep")
ERROR = Check("losses", "error", "nan", "nanogpt checkpoint list out/a", Exit.BAD_DATA)


@pytest.mark.parametrize(
    ("checks", "code"),
    [([], 0), ([OK], 0), ([OK, WARNING], 1), ([WARNING, ERROR], Exit.BAD_DATA)],
)
def test_the_gravest_finding_decides(checks: list[Check], code: int) -> None:
    assert exit_code(checks) == code
