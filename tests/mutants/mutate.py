"""All mutants of a source: the changes that somebody makes by mistake, one each.

Left out: what only words depend on (f-strings, the arguments of a raise), annotations, decorators,
assertions, imports.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: (r"<", "<="),
    ast.LtE: (r"<=", "<"),
    ast.Gt: (r">", ">="),
    ast.GtE: (r">=", ">"),
    ast.Eq: (r"==", "!="),
    ast.NotEq: (r"!=", "=="),
    ast.Is: (r"\bis\b", "is not"),
    ast.IsNot: (r"\bis\s+not\b", "is"),
    ast.In: (r"\bin\b", "not in"),
    ast.NotIn: (r"\bnot\s+in\b", "in"),
}
TURNED = {"<": ">", "<=": ">", ">": "<", ">=": "<"}
ARITHMETIC = {
    ast.Add: (r"\+", "-"),
    ast.Sub: (r"-", "+"),
    ast.Mult: (r"\*", "//"),
    ast.FloorDiv: (r"//", "*"),
    ast.Div: (r"/", "*"),
    ast.Mod: (r"%", "//"),
    ast.LShift: (r"<<", ">>"),
    ast.RShift: (r">>", "<<"),
    ast.BitAnd: (r"&", "|"),
    ast.BitOr: (r"\|", "&"),
    ast.BitXor: (r"\^", "&"),
}
OTHERS = {"min": "max", "max": "min", "any": "all", "all": "any"}  # functions in place of functions
NO_NUMBERS = (ast.JoinedStr, ast.List, ast.ListComp, ast.Tuple, ast.Dict, ast.Set, ast.DictComp)
NOTHING = '__import__("contextlib").nullcontext()'
Functions = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Mutant:
    """source[start:stop], bytes, replaced by `put`.

    line: from 1. what: the change, in words. function: the first line of the function around it,
    its decorators included; None: of none.
    """

    line: int
    what: str
    start: int
    stop: int
    put: bytes
    function: int | None

    def of(self, source: bytes) -> bytes:
        """The source with this change."""
        return source[: self.start] + self.put + source[self.stop :]


def mutants(source: bytes) -> list[Mutant]:
    """All of them, by place."""
    return sorted(
        _Finder(source).found, key=lambda mutant: (mutant.start, mutant.stop, mutant.what)
    )


class _Finder:
    """Walks a syntax tree, and collects."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.begins = [0]  # of the lines, in bytes
        for line in source.splitlines(keepends=True):
            self.begins.append(self.begins[-1] + len(line))
        self.found: list[Mutant] = []
        self.functions: list[ast.AST] = []
        self._statements(ast.parse(source).body)

    def _place(self, node: ast.AST) -> tuple[int, int]:
        """Where a node begins and ends, in bytes."""
        begin = self.begins[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self.begins[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return begin, end

    def _text(self, node: ast.AST) -> str:
        begin, end = self._place(node)
        return self.source[begin:end].decode()

    def _add(self, node: ast.AST, what: str, place: tuple[int, int], put: str) -> None:
        function = None
        if self.functions:
            last: ast.AST = self.functions[-1]
            decorators = last.decorator_list  # type: ignore[attr-defined]
            function = min(each.lineno for each in (last, *decorators))  # type: ignore[attr-defined]
        lines = self.source[slice(*place)].count(b"\n") - put.count("\n")
        put += "\n" * lines if isinstance(node, ast.stmt) else ""
        line: int = node.lineno  # type: ignore[attr-defined]
        self.found.append(Mutant(line, what, *place, put.encode(), function))

    def _replace(self, node: ast.AST, put: str, what: str | None = None) -> None:
        self._add(node, what or f"{_short(self._text(node))} → {put}", self._place(node), put)

    def _between(self, node: ast.AST, left: ast.AST, right: ast.AST, token: str, put: str) -> None:
        """Replace the operator between two operands."""
        begin, end = self._place(left)[1], self._place(right)[0]
        found = re.search(token.encode(), self.source[begin:end])
        if found is not None:
            place = begin + found.start(), begin + found.end()
            what = f"{found[0].decode()} → {put} in {_short(self._text(node))}"
            self._add(node, what, place, put)

    # ---- statements

    def _statements(self, body: list[ast.stmt]) -> None:
        for at, statement in enumerate(body):
            is_docstring = at == 0 and _is_text(statement)
            if not is_docstring:
                self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Assert():
                return
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.functions.append(node)
                for default in (*node.args.defaults, *node.args.kw_defaults):
                    self._expression(default)
                self._statements(node.body)
                self.functions.pop()
                return
            case ast.ClassDef():
                self._statements(node.body)
                return
            case ast.Raise():
                self._replace(node, "pass", f"without {_short(self._text(node))}")
                return
            case ast.Expr(value=ast.Call()) | ast.Continue() | ast.AugAssign() | ast.Delete():
                self._replace(node, "pass", f"without {_short(self._text(node))}")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) if not self._in_init():
                self._replace(node, "pass", f"without {_short(self._text(node))}")
            case ast.Return(value=ast.expr() as value) if not _is_none(value):
                self._replace(node, "return None")
            case ast.With():
                for item in node.items:
                    if item.optional_vars is None:
                        what = f"without with {_short(self._text(item.context_expr))}"
                        self._replace(item.context_expr, NOTHING, what)
            case ast.If() | ast.While():
                self._condition(node.test)
        if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
            token, put = ARITHMETIC[type(node.op)]
            if not isinstance(node.value, NO_NUMBERS) and not _is_text(node.value):
                self._between(node, node.target, node.value, token, put)
        self._children(node)

    def _children(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                self._statements(value)
            else:
                for each in value if isinstance(value, list) else [value]:
                    self._any(each)

    def _any(self, node: object) -> None:
        if isinstance(node, ast.expr):
            self._expression(node)
        elif isinstance(node, ast.AST):
            self._children(node)

    def _in_init(self) -> bool:
        return bool(self.functions) and self.functions[-1].name == "__init__"  # type: ignore[attr-defined]

    # ---- expressions

    def _expression(self, node: ast.expr | None) -> None:
        match node:
            case None | ast.JoinedStr():
                return
            case ast.Constant():
                self._constant(node)
            case ast.Compare():
                operands = [node.left, *node.comparators]
                of_clock = "time.monotonic()" in self._text(node)  # which is never just equal
                for at, op in enumerate(node.ops):
                    token, put = COMPARISONS[type(op)]
                    put = TURNED.get(put, put) if of_clock else put
                    self._between(node, operands[at], operands[at + 1], token, put)
            case ast.BoolOp():
                token, put = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                for left, right in zip(node.values, node.values[1:], strict=False):
                    self._between(node, left, right, rf"\b{token}\b", put)
            case ast.UnaryOp(op=ast.Not()):
                begin, _ = self._place(node)
                self._add(
                    node, f"without not in {_short(self._text(node))}", (begin, begin + 3), ""
                )
            case ast.UnaryOp(op=ast.USub()):
                begin, _ = self._place(node)
                self._add(node, f"without - in {_short(self._text(node))}", (begin, begin + 1), "+")
            case ast.BinOp() if type(node.op) in ARITHMETIC:
                if not any(isinstance(e, NO_NUMBERS) or _is_text(e) for e in _sides(node)):
                    token, put = ARITHMETIC[type(node.op)]
                    self._between(node, node.left, node.right, token, put)
            case ast.IfExp():
                self._condition(node.test)
            case ast.Call():
                self._call(node)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                for generator in node.generators:
                    for test in generator.ifs:
                        self._condition(test)
        self._children(node)

    def _constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._replace(node, str(not value))
        elif isinstance(value, int):
            self._replace(node, str(value + 1))
            self._replace(node, str(value - 1))
        elif isinstance(value, float):
            self._replace(node, str(2 * value if value else 1.0))

    def _condition(self, test: ast.expr) -> None:
        """A condition that is no comparison, which others change, the other way round."""
        if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
            self._replace(test, f"(not ({self._text(test)}))", f"not ({_short(self._text(test))})")

    def _call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in OTHERS:
            self._replace(node.func, OTHERS[node.func.id])
            return
        first, second, *_ = [*node.args, None, None]
        if isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "hasattr", "getattr"):
            return
        if first is None or second is None or ast.dump(first) == ast.dump(second):
            return
        if isinstance(first, ast.Starred) or isinstance(second, ast.Starred):
            return
        one, other = self._text(first), self._text(second)
        place = self._place(first)[0], self._place(second)[1]
        between = self.source[self._place(first)[1] : self._place(second)[0]].decode()
        what = f"{_short(one)} and {_short(other)} exchanged in {_short(self._text(node))}"
        self._add(node, what, place, f"{other}{between}{one}")


def _sides(node: ast.BinOp) -> Iterator[ast.expr]:
    yield node.left
    yield node.right


def _is_text(node: ast.AST) -> bool:
    node = node.value if isinstance(node, ast.Expr) else node
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _short(text: str, most: int = 60) -> str:
    """A text in one line, clipped."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
