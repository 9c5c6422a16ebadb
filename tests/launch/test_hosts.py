"""Two hosts in network namespaces, whose names do not resolve; faults/hosts.py also lets them come
and go.
"""

import pytest

from tests.faults import hosts


@pytest.fixture
def two() -> hosts.Hosts:  # type: ignore[misc]
    if reason := hosts.missing():
        pytest.skip(reason)
    with hosts.two_hosts() as found:
        yield found


@pytest.mark.thorough
def test_a_training_over_two_hosts(two: hosts.Hosts) -> None:
    found = hosts.across(two)
    assert found["codes"] == [0, 0], found["told"]
    assert "node 0 (host0, 192.0.2.1), node 1 (host1, 192.0.2.2)" in found["told"][0]
    assert "2 × cpu float32, ddp" in found["told"][0]
    assert "all-reduce between the ranks: " in found["told"][0]


@pytest.mark.thorough
def test_a_cut_cable_ends_both_launchers_and_the_same_command_resumes(two: hosts.Hosts) -> None:
    found = hosts.cut_and_healed(two, timeout_s=10)
    assert found["codes"] == [74, 74]
    first, second = found["last_lines"]
    assert "lost rank 1" in first
    assert "on host1" in first
    assert "192.0.2.1:29511 does not answer" in second
    assert found["resumed_from"]
    assert found["codes_after"] == [75, 75]
