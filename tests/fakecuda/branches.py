"""The program's branches for CUDA, and which command runs through each.

A branch is a line of code that names cuda, and the first line of what an `if` that names it guards.
test_branches.py asks that all are run through; by hand, `python -m pytest -m thorough -s
tests/fakecuda/test_branches.py` prints the table.
"""

import ast
import atexit
import io
import itertools
import os
import re
import sys
import threading
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

CLONE = Path(__file__).resolve().parents[2]
FOLDERS = ("cli", "launch", "nanogpt_dist", "prepare")
WORD = "cuda"
NEGATED = re.compile(r"!= 'cuda'|\bnot \S*cuda")  # the `if` guards what is not for CUDA

Line = tuple[str, int]  # a file of the clone, and the line's number


def branches() -> dict[Line, str]:
    """Every branch, and what stands there."""
    found = {}
    for path in sorted(path for folder in FOLDERS for path in (CLONE / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if WORD in source:
            text = source.splitlines()
            name = str(path.relative_to(CLONE))
            for number in _branches(source):
                found[name, number] = text[number - 1].strip()
    return found


def _branches(source: str) -> list[int]:
    named = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type in (tokenize.NAME, tokenize.STRING) and WORD in token.string
    }
    runs = set(_lines_of_functions(compile(source, "source", "exec", dont_inherit=True)))
    tree = ast.parse(source)
    docstrings = {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    guarded = {line for node in ast.walk(tree) for line in _guarded(node)}
    return sorted(((named - docstrings) | guarded) & runs)


def _guarded(node: ast.AST) -> Iterator[int]:
    """The first line behind each `if` of a block that names cuda: in it, or after `not: return`."""
    blocks = [getattr(node, "body", None), getattr(node, "orelse", None)]
    for block in (each for each in blocks if isinstance(each, list)):
        for each, following in itertools.pairwise([*block, None]):
            if not isinstance(each, ast.If) or WORD not in (test := ast.unparse(each.test)):
                continue
            if not NEGATED.search(test):
                yield each.body[0].lineno
            elif following is not None and isinstance(each.body[-1], ast.Return | ast.Raise):
                yield following.lineno


def _lines_of_functions(code: CodeType, inside: bool = False) -> Iterator[int]:
    """Lines that are run when a function is; a class or a module is run as it is imported."""
    if inside:
        # but for the line of the definition itself
        yield from (line for _, _, line in code.co_lines() if line and line > code.co_firstlineno)
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _lines_of_functions(each, inside or bool(each.co_flags & 2))  # a function's


def watch(path: Path) -> None:
    """Append to `path` each branch that this process runs through, once, when it ends."""
    from torch.autograd.function import BackwardCFunction

    wanted: dict[str, set[int]] = {}
    for name, number in branches():
        wanted.setdefault(str(CLONE / name), set()).add(number)
    seen: set[Line] = set()

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and frame.f_lineno in wanted[frame.f_code.co_filename]:
            seen.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        return local if frame.f_code.co_filename in wanted else None

    def write() -> None:
        sys.settrace(None)
        lines = [f"{Path(name).relative_to(CLONE)}:{number}\n" for name, number in sorted(seen)]
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    leave = os._exit

    def leave_after_writing(code: int) -> None:
        write()
        leave(code)

    os._exit = leave_after_writing  # type: ignore[assignment]
    atexit.register(write)
    backward = BackwardCFunction.apply

    def traced_backward(*arguments: Any) -> Any:
        sys.settrace(trace)  # autograd's own threads are none of Python's
        return backward(*arguments)

    BackwardCFunction.apply = traced_backward
    threading.settrace(trace)
    sys.settrace(trace)


def read(path: Path) -> set[Line]:
    """What watch() wrote."""
    if not path.exists():
        return set()
    parts = (line.rsplit(":", 1) for line in path.read_text().splitlines())
    return {(name, int(number)) for name, number in parts}
