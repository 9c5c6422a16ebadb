"""The pages of the commands: what `--help` tells."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from cli.help import EXAMPLES
from cli.main import app
from docs.generate.text import code, escape, plain, prose, table

INDEX = """\
# Commands

Every command has `--help`, which tells the same, and `--debug`, which shows tracebacks.

{panels}
```{{toctree}}
:hidden:

{pages}
```
"""


def walk() -> Iterator[tuple[str, Any, Any]]:
    """Every command with its full name and its context; a group stands before its own."""
    root: Any = typer.main.get_command(app)
    top = root.make_context("nanogpt", [], resilient_parsing=True)
    for name, command in root.commands.items():
        context = command.make_context(name, [], parent=top, resilient_parsing=True)
        yield f"nanogpt {name}", command, context
        for below, sub in getattr(command, "commands", {}).items():
            inner = sub.make_context(below, [], parent=context, resilient_parsing=True)
            yield f"nanogpt {name} {below}", sub, inner


def command_pages() -> dict[str, str]:
    """A page for each command or group, and one that lists them."""
    found: dict[str, str] = {}
    panels: dict[str, list[tuple[str, str]]] = {}
    panel = ""
    for name, command, context in walk():
        words = name.split()
        page = f"commands/{words[1]}.md"
        found[page] = found.get(page, "") + command_section(name, command, context)
        if len(words) == 2:
            panel = command.rich_help_panel or "Commands"
        if not is_group(command):
            summary = escape(summary_of(command))
            panels.setdefault(panel, []).append((f"[`{name}`](#{anchor(name)})", summary))
    tables = [f"## {title}\n\n{table(('command', ''), rows)}" for title, rows in panels.items()]
    names = [path.removeprefix("commands/").removesuffix(".md") for path in found]
    index = INDEX.format(panels="\n".join(tables), pages="\n".join(names))
    return {**found, "commands/index.md": index}


def is_group(command: Any) -> bool:
    return hasattr(command, "commands")


def anchor(name: str) -> str:
    return name.replace(" ", "-")


def summary_of(command: Any) -> str:
    return plain(command.help or "").split("\n\n")[0].replace("\n", " ")


def command_section(name: str, command: Any, context: Any) -> str:
    """What `name --help` tells, as a section."""
    level = "#" * (len(name.split()) - 1)
    parts = [f"({anchor(name)})=\n{level} {name}\n"]
    if not is_group(command):
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        parts.append(f"```text\n{usage}\n```\n")
    parts.append(prose(plain(command.help or "")))
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if not parameter.hidden:
            entry = parameter_entry(parameter, context)
            panels.setdefault(panel_of(parameter), []).append(entry)
    for title, entries in panels.items():
        parts.append(f"{level}# {title}\n\n" + "\n".join(entries))
    if command.epilog:
        examples = plain(command.epilog).partition(EXAMPLES)[2].strip()
        parts.append(f"{level}# Examples\n\n```text\n{examples}\n```\n")
    return "\n".join(parts) + "\n"


def panel_of(parameter: Any) -> str:
    usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
    return parameter.rich_help_panel or usual


def parameter_entry(parameter: Any, context: Any) -> str:
    """One option or argument as an entry of a definition list."""
    text, default = plain(parameter.help or ""), None
    if said := re.search(r"\s*\[default: (.*)\]$", text):  # a setting's, in its help
        text, default = text[: said.start()], said[1]
    elif parameter.show_default and parameter.default not in (None, False, [], ()):
        default = getattr(parameter.default, "value", parameter.default)
    facts = [
        *([f"≥ {parameter.min}"] if parameter.min is not None else []),
        *([f"≤ {parameter.max:,}"] if parameter.max is not None else []),
        *([f"default {code(default)}"] if default is not None else []),
    ]
    behind = f" *({', '.join(facts)})*" if facts else ""
    return f"`{names_of(parameter, context)}`\n:   {escape(text)}{behind}\n"


def names_of(parameter: Any, context: Any) -> str:
    """`--out DIR`, `--fresh, --no-fresh` or, of an argument, `PRESET`."""
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name
    names = ", ".join(parameter.opts + parameter.secondary_opts)
    if parameter.is_bool_flag:
        return names
    kind = (parameter.metavar or parameter.display_type(context) or "").strip("<>[]")
    return f"{names} {kind if '|' in kind else kind.upper()}"
