"""A pickle of plain values (nanoGPT's meta.pkl), read without executing, and written.

A pickle is a program for a small stack machine. Of its instructions only those are known here that
put strings, numbers and containers together; one that would look up a function or call it is
refused, as is any other.

Source: the documentation of Python's `pickletools`, which takes the instructions apart.
"""

import pickletools
from pathlib import Path
from typing import Any

from nanogpt_dist.errors import BadDataError, MissingInputError, clipped
from nanogpt_dist.storage.durable import shown, storage_errors

MAX_BYTES = 64 << 20
# Instructions that push a value which stands in them, and those that only frame the program.
VALUES = {
    *(
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "LONG4",
        "LONG",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
    ),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "FLOAT", "BINFLOAT"),
}
FRAMES = {"PROTO", "FRAME"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def read_plain_pickle(path: Path) -> Any:
    """The dict, list, str, int, float, bool or None in a pickle.

    Raises MissingInputError, BadDataError.
    """
    if not path.is_file():
        raise MissingInputError(f"{shown(path)} does not exist or is not a file; check the path")
    with storage_errors(path), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadDataError(
            f"{shown(path)} is longer than {MAX_BYTES:,} bytes: too long for a vocabulary"
        )
    try:
        return _run(data)
    except _RefusedError as error:
        raise BadDataError(
            f"{shown(path)} holds more than plain values ({error}); it was not executed"
        ) from None
    except Exception as error:  # pickletools has no error of its own
        raise BadDataError(
            f"{shown(path)} is no pickle of plain values: {clipped(str(error), 60)}"
        ) from None


class _RefusedError(Exception):
    """An instruction that is none of ours."""


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each mark: items of a container are a stack
    memo: dict[Any, Any] = {}
    for instruction, argument, _ in pickletools.genops(data):
        name = instruction.name
        if name in FRAMES:
            continue
        if name in VALUES:
            stack.append(CONSTANTS.get(name, argument))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("DICT", "SETITEMS", "LIST", "APPENDS", "TUPLE"):
            items, stack = stack, below.pop()
            _fill(stack, name, items)
        elif name == "SETITEM":
            key, value = stack[-2:]
            del stack[-2:]
            stack[-1][_plain_key(key)] = value
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name == "STOP":
            return stack.pop()
        else:
            raise _RefusedError(name)
    raise ValueError("it ends too soon")


def _fill(stack: list[Any], name: str, items: list[Any]) -> None:
    if name in ("DICT", "SETITEMS"):
        pairs = {_plain_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}
        if name == "DICT":
            stack.append(pairs)
        else:
            stack[-1].update(pairs)
    elif name in ("LIST", "APPENDS"):
        if name == "LIST":
            stack.append(items)
        else:
            stack[-1].extend(items)
    else:
        stack.append(tuple(items))


def _plain_key(key: Any) -> Any:
    if not isinstance(key, str | int):
        raise ValueError("a key is neither a string nor a number")
    return key


def to_plain_pickle(value: dict[Any, Any]) -> bytes:
    """A pickle of a dict of dicts, str and int below 2^31."""
    return b"\x80\x02" + _encoded(value) + b"."


def _encoded(value: Any) -> bytes:
    if isinstance(value, dict):
        return (
            b"}(" + b"".join(_encoded(key) + _encoded(item) for key, item in value.items()) + b"u"
        )
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return b"X" + len(data).to_bytes(4, "little") + data
    assert type(value) is int, value
    return b"J" + value.to_bytes(4, "little", signed=True)
