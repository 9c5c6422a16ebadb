"""Sizes, rates and counts as people type them."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.errors import MAX_LINE, UsageError
from nanogpt_dist.estimate.quantities import (
    bytes_of,
    count_of,
    memory_of,
    rate_of,
    short_bytes,
    short_count,
    short_seconds,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80GB", 80 * 10**9),
        ("40GiB", 40 * 2**30),
        ("1000", 1000),
        ("1.5 tb", 1_500_000_000_000),
        ("1PiB", 2**50),
        ("1_000", 1000),
        ("1E3kB", 10**6),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert bytes_of(text, "--memory") == expected


def test_a_memory_without_its_unit_is_refused() -> None:
    assert memory_of("80GB", "--memory") == 80 * 10**9
    assert memory_of("85899345920", "--memory") == 80 * 2**30
    with pytest.raises(UsageError, match=r"--memory '80' is no memory: type e\.g\. --memory 80GB"):
        memory_of("80", "--memory")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("400gbit", 50e9),
        ("3.2Tbit/s", 400e9),
        ("100Gbps", 12.5e9),
        ("2GB/s", 2e9),
        ("500 MB/s", 5e8),
        ("1GiB/s", 2**30),
        ("400Gb/s", 50e9),
        ("400gb", 50e9),
        ("50GBps", 50e9),
        ("50GB", 50e9),
        ("8 Gibits/s", 2**30),
        ("400GBIT/S", 50e9),
    ],
)
def test_rates(text: str, expected: float) -> None:
    assert rate_of(text, "--network") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("9e9", 9e9), ("1e20", 1e20), ("9B", 9e9), ("500M", 5e8), ("1.5t", 1.5e12)],
)
def test_counts(text: str, expected: float) -> None:
    assert count_of(text, "--dataset-tokens") == expected


Read = Callable[[str, str], float]


def refusal(read: Read, text: str) -> str | None:
    """What is said where `text` is refused."""
    try:
        read(text, "--flag")
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("read", [bytes_of, rate_of, count_of])
@given(text=st.text(max_size=40))
def test_what_is_none_is_refused_in_one_line(read: Read, text: str) -> None:
    said = refusal(read, text)
    assert said is None or ("--flag" in said and len(said) <= MAX_LINE)


@pytest.mark.parametrize("read", [bytes_of, rate_of, count_of])
@pytest.mark.parametrize("number", ["1.2.3", "1e400", "1__0", "9" * 400])
def test_numbers_that_there_are_none_of_are_refused(read: Read, number: str) -> None:
    said = refusal(read, f"{number}GB/s" if read is rate_of else number)
    assert said is not None
    assert "--flag" in said


@pytest.mark.parametrize("read", [bytes_of, rate_of, count_of])
def test_nothing_is_refused(read: Read) -> None:
    with pytest.raises(UsageError, match="more than 0"):
        read("0B/s" if read is rate_of else "0", "--disk")


def test_they_are_shown_in_few_digits() -> None:
    assert [short_count(n) for n in (12, 1234, 1.24e8, 9.04e9, 2.5e12)] == [
        *("12", "1.23k", "124M", "9.04B", "2.5T")
    ]
    assert [short_count(n) for n in (999.7e6, 999.6)] == ["1B", "1k"]
    assert short_seconds(0.9998) == "1 s"
    assert short_bytes(1_492_000_000) == "1.49 GB"
    seconds = [short_seconds(s) for s in (0.0123, 5.25, 75, 3700, 200_000)]
    assert seconds == ["12.3 ms", "5.25 s", "1 min 15 s", "1 h 1 min", "2 d 7 h"]
