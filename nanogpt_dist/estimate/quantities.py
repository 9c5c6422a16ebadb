"""Sizes, rates and counts as people type them: 80GB, 2GB/s, 400gbit, 9e9, 1.5B. No torch."""

import math
import re
from typing import TypeVar

from nanogpt_dist.errors import UsageError

Number = TypeVar("Number", int, float)

DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40, "pi": 2**50}
COUNTS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
LEAST_MEMORY = 10**6  # bytes of a device
NUMBER = r"(\d+(?:_\d+)*(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)"


def bytes_of(text: str, flag: str) -> int:
    """80GB, 80GiB, 85899345920 → bytes. Raises UsageError, which names `flag`."""
    match = re.fullmatch(NUMBER + r" *([kmgtp]i?)?b?", text.strip().lower())
    if not match:
        raise UsageError(f"{flag} {text[:20]!r} is no size: type e.g. {flag} 80GB or 80GiB")
    unit = match[2] or ""
    size = _finite(float(match[1]) * (BINARY.get(unit) or DECIMAL[unit[:1]]), flag)
    return _positive(int(size), flag)


def memory_of(text: str, flag: str) -> int:
    """bytes_of() for the memory of a device. Raises UsageError for 80, which lacks its unit."""
    size = bytes_of(text, flag)
    if size < LEAST_MEMORY:
        raise UsageError(f"{flag} {text[:20]!r} is no memory: type e.g. {flag} 80GB or 80GiB")
    return size


def rate_of(text: str, flag: str) -> float:
    """400gbit, 400Gb/s, 3.2Tbps, 2GB/s → bytes per second. A small b is a bit, a capital B a byte.

    Raises UsageError, which names `flag`.
    """
    rate_unit = r" *((?i:[kmgtp]i?))?((?i:bits?)|[bB])(?i:/s|ps)?"
    match = re.fullmatch(NUMBER + rate_unit, text.strip())
    if not match:
        raise UsageError(f"{flag} {text[:20]!r} is no rate: type e.g. {flag} 2GB/s or 400gbit")
    unit, bits = (match[2] or "").lower(), match[3] != "B"
    rate = _finite(float(match[1]) * (BINARY.get(unit) or DECIMAL[unit[:1]]), flag)
    return _positive(rate / 8 if bits else rate, flag)


def flops_of(text: str, flag: str) -> float:
    """1e20 → FLOPs. Raises UsageError, which names `flag`."""
    return count_of(text, flag, "1e20")


def count_of(text: str, flag: str, example: str = "9e9 or 9B") -> float:
    """9e9, 9B, 500M → a number. Raises UsageError, which names `flag` and gives the example."""
    match = re.fullmatch(NUMBER + r" *([kmbt])?", text.strip().lower())
    if not match:
        raise UsageError(f"{flag} {text[:20]!r} is no number: type e.g. {flag} {example}")
    return _positive(_finite(float(match[1]) * COUNTS[match[2] or ""], flag), flag)


def _finite(number: float, flag: str) -> float:
    if not math.isfinite(number):
        raise UsageError(f"{flag}: that is more than any machine has")
    return number


def _positive(number: Number, flag: str) -> Number:
    if number <= 0:
        raise UsageError(f"{flag}: give more than 0")
    return number


def short_count(number: float) -> str:
    """1.24e8 → 124M; three digits."""
    number = float(f"{number:.3g}")  # 999.7e6 is 1B
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def short_bytes(number: float) -> str:
    """1.5e9 → 1.50 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number) >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f} B"


def short_seconds(seconds: float) -> str:
    """93784 → 1 d 2 h; two units."""
    if seconds < 0.9995:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 60:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    if hours < 48:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(days):,} d {int(hours % 24)} h"
