"""JSON that somebody else may have written. No torch."""

import json
import math
from typing import Any

DEEPEST = 64  # lists and objects within each other; ours have a handful


def parse_json(data: bytes, finite: bool = False) -> Any:
    """What `data` says. Raises ValueError where it is no JSON or nested too deep.

    json.loads() reads more than Python can walk through afterwards, as to write it again.
    finite: neither does it hold NaN, infinity or a number that is too large for a float.
    """
    number = _finite if finite else None
    try:
        value = json.loads(data, parse_float=number, parse_constant=number)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if data.count(b"[") + data.count(b"{") > DEEPEST and _is_deep(value):
        raise ValueError("nested too deep")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)
