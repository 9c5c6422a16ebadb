"""A good file made wrong, by a seeded choice."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

MOST_BYTES = 1 << 20  # of what is made
HEX = "0x" + "f" * 5000  # an int that no decimal text may have
# values that JSON can spell and its writers do not
RAW = [
    *("1e999", "-1e999", "NaN", "-Infinity", "-0.0", "1e-400", "9" * 5000, "-" + "9" * 400),
    *("[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, '"\\ud800"', '"\\u0000"'),
    '{"a": 1, "a": 2}',
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 255, 256, 257, 65535, 65536, 2**31 - 1, 2**31, -(2**31)),
    *(2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**18, 10**30, 10**300, 0.5, -0.5, 1e308),
    *("", " ", "a", "\x00", "\n", "../x", "/etc/passwd", "..", ".", "a/b", "a" * 5000, "\ud800"),
    *("é", "\u202e", "0", "-1", "nan", "<script>", "'", '"', "%s{0}", "\x1b[31m", "=1+1"),
    *([], {}, [[]], [None], [0], [1, 2], {"a": 1}, {"": None}, [[1, [2, [3]]]]),
]
TOML = [
    *("nan", "inf", "-inf", "1e999", "9" * 5000, HEX, "-1", "0", "2.5", "true", '""', "[]", "{}"),
    *("1979-05-27T07:32:00Z", "9999-99-99", '"\\uD800"', '"\\u0000"', "'''", '"""', "1_000"),
    *("[" * 3000 + "]" * 3000, "{a=" * 500 + "1" + "}" * 500, "[1, 'a', [2]]", "{a.b = 1}", "#"),
    *('"../../x"', '"/dev/zero"', '"s3://a/b"', '"\\u202e"', str(2**64), "0o7", "00", "1e308"),
    *('"' + "a" * 5000 + '"', "[\n", "07:32:00", "'\x00'", '"0:1,2:3"', '"0:999999999"'),
]
PYTHON = [
    *("-" * 20_000 + "1", "(" * 150 + "1" + ")" * 150, "+".join("1" * 5000), "[" * 150 + "]" * 150),
    *("9**9**9", "2**63", "10**400", HEX, "'9' * 10**9", "1/0", "1e999", "1e308*10", "-1", "None"),
    *("__import__('os').system('touch X')", "open('X', 'w')", "lambda: 0", "f'{1}'", "1j", "b'x'"),
    *("{[]: 1}", "{1, 2}", "(1, 2)", "'\\ud800'", "'\\x00'", "'a' 'b'", "...", "x", "True", "''"),
    *("1 if 1 else 2", "[i for i in range(10)]", "a.b", "a[0]", "9" * 5000, "2.5", "'../x'", "~1"),
    *("9007199254740991**64", "2**-64", "7 % 2", "1 << 99999", "'%s' % 1", "not 1", "(1).real"),
]
NUMBERS = [0, 1, -1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63]

Mutate = Callable[[bytes, Sequence[bytes], random.Random], bytes]


def mutated_bytes(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
    """A few changes of bytes; others: files that spans may come from."""
    changed = bytearray(data)
    for _ in range(choose.choice([1, 1, 1, 2, 3, 8])):
        _change(changed, others, choose)
    return bytes(changed[:MOST_BYTES])


def _change(data: bytearray, others: Sequence[bytes], choose: random.Random) -> None:
    at = choose.randrange(len(data) + 1)
    if data and choose.random() < 0.3:  # what decides stands at a file's start and its end
        at = choose.choice([choose.randrange(min(64, len(data))), -1 - at % 64]) % len(data)
    size = choose.choice([1, 2, 4, 8, 16, choose.randrange(1, 1 + max(1, len(data) // 2))])
    way = choose.randrange(10)
    if way == 0 and at < len(data):
        data[at] ^= 1 << choose.randrange(8)
    elif way == 1 and at < len(data):
        data[at] = choose.choice([0, 1, 0x20, 0x7F, 0x80, 0xFF, choose.randrange(256)])
    elif way == 2:
        del data[at:]
    elif way == 3:
        del data[at : at + size]
    elif way == 4:
        data[at:at] = choose.randbytes(min(size, 1024))
    elif way == 5:
        data[at:at] = data[at : at + size] * choose.choice([1, 2, 50])
    elif way == 6:
        data[at : at + size] = bytes(min(size, len(data) - at))
    elif way == 7:
        width, number = choose.choice([1, 2, 4, 8]), choose.choice(NUMBERS)
        order: Any = choose.choice(["little", "big"])
        data[at : at + width] = (number % (1 << (8 * width))).to_bytes(width, order)
    elif way == 8 and others:
        other = choose.choice(others)
        start = choose.randrange(len(other) + 1)
        data[at : at + choose.choice([0, size])] = other[start : start + size]
    else:
        data[at:at] = choose.choice(
            [b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b'"', b"9" * 5000]
        )


def mutated_json(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
    """A few changes of values; one in five is of bytes."""
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if content is None or choose.random() < 0.2:
        return mutated_bytes(data, others, choose)
    raw: list[str] = []
    for _ in range(choose.choice([1, 1, 1, 2, 3])):
        content = _with_change(content, raw, choose)
    text = json.dumps(content)
    for number, value in enumerate(raw):
        text = text.replace(f'"RAW-{number}"', value)
    return text.encode()[:MOST_BYTES]


def changed(content: Any, choose: random.Random) -> Any:
    """`content` with one value changed, of those that JSON can hold."""
    return _with_change(content, None, choose)


def _with_change(content: Any, raw: list[str] | None, choose: random.Random) -> Any:
    parent, key = choose.choice(list(_places(content)) or [(None, None)])
    if parent is None:
        return _value(content, raw, choose)
    way = choose.randrange(8)
    if way == 0:
        del parent[key]
    elif way == 1 and isinstance(parent, dict):
        parent[str(choose.choice(VALUES))] = parent.pop(key)
    elif way == 2 and isinstance(parent, dict):
        parent[choose.choice(["x", "sha256", "format", "version", "name"])] = choose.choice(VALUES)
    elif way == 3 and isinstance(parent, list):
        parent[key:key] = [parent[key]] * choose.choice([1, 2, 100])
    elif way == 4:
        other, place = choose.choice(list(_places(content)))
        parent[key] = json.loads(json.dumps(other[place]))
    else:
        parent[key] = _value(parent[key], raw, choose)
    return content


def _places(content: Any) -> Any:
    """Each container and key or index in it."""
    waiting = [content]
    while waiting:
        each = waiting.pop()
        if not isinstance(each, dict | list):
            continue
        for key in list(each) if isinstance(each, dict) else range(len(each)):
            yield each, key
            if isinstance(each[key], dict | list):
                waiting.append(each[key])


def _value(old: Any, raw: list[str] | None, choose: random.Random) -> Any:
    if raw is not None and choose.random() < 0.2:
        raw.append(choose.choice(RAW))
        return f"RAW-{len(raw) - 1}"
    if type(old) is int and choose.random() < 0.5:
        return old + choose.choice([1, -1, 2**16, -(2**16), 2**31, 2**32, 2**63, -2 * old])
    if isinstance(old, str) and old and choose.random() < 0.3:
        at = choose.randrange(len(old))
        return old[:at] + str(choose.choice(VALUES)) + old[at + choose.choice([0, 1]) :]
    return json.loads(json.dumps(choose.choice(VALUES)))


def mutated_lines(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
    """Lines of JSON: one of them, their order, their number."""
    lines = data.split(b"\n")
    at = choose.randrange(len(lines))
    way = choose.randrange(6)
    if way <= 2:
        lines[at] = mutated_json(lines[at], others, choose)
    elif way == 3:
        lines[at:at] = [lines[at]] * choose.choice([1, 3, 100])
    elif way == 4:
        del lines[at]
    else:
        return mutated_bytes(data, others, choose)
    return b"\n".join(lines)[:MOST_BYTES]


def _of_assignments(values: list[str]) -> Mutate:
    def mutate(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
        lines = data.decode(errors="replace").split("\n")
        for _ in range(choose.choice([1, 1, 2, 3])):
            at, way = choose.randrange(len(lines)), choose.randrange(7)
            name, equals, _ = lines[at].partition("=")
            if way <= 2 and equals:
                lines[at] = f"{name}= {choose.choice(values)}"
            elif way == 3:
                lines[at:at] = [lines[at]] * choose.choice([1, 2, 100])
            elif way == 4:
                lines[at:at] = [choose.choice(["[a]", "[[a]]", "x = 1", "import os", "def f(): 0"])]
            elif way == 5:
                lines[at] = f"{choose.choice(['x', 'a.b', '', '_', 'é'])} = {choose.choice(values)}"
            else:
                return mutated_bytes(data, others, choose)
        return "\n".join(lines).encode(errors="surrogatepass")[:MOST_BYTES]

    return mutate


mutated_toml = _of_assignments(TOML)
mutated_python = _of_assignments(PYTHON)


def by_name(name: str) -> Mutate:
    """How a file of that name is made wrong."""
    endings: dict[str, Mutate] = {
        ".json": mutated_json,
        ".jsonl": mutated_lines,
        ".toml": mutated_toml,
        ".py": mutated_python,
    }
    return next((way for ending, way in endings.items() if name.endswith(ending)), mutated_bytes)
