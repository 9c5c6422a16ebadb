"""The help of every command, found by walking the app."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.help import EXAMPLES, paragraphs
from cli.main import app
from cli.train import preset_table
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.inspect.architecture import count_parameters
from nanogpt_dist.load_config import load, with_vocabulary
from nanogpt_dist.presets import ABOUT, PRESETS
from tests.conftest import CLONE, Run
from tests.test_readme import understand


def walk(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group below `command`, itself first, each with the words that call it."""
    yield name, command
    for word, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*name, word))


COMMANDS = dict(walk(typer.main.get_command(app)))
every_command = pytest.mark.parametrize("name", COMMANDS, ids=" ".join)


def shown(*words: str, width: int = 100) -> str:
    """What `nanogpt WORDS` prints on a terminal of that width."""
    terminal = {"COLUMNS": str(width), "TERM": "dumb"}
    result = CliRunner().invoke(app, list(words), env=terminal)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_walk_finds_the_commands_that_there_are() -> None:
    assert len(COMMANDS) > 35
    named = {"prepare", "train", "eval", "sample", "launch", "show", "verify", "quickstart"}
    assert named | {"tokenizer", "import-shards"} <= {name[0] for name in COMMANDS if name}


def test_the_first_page_shows_every_command_in_four_panels(nanogpt: Run) -> None:
    text = nanogpt("--help").stdout
    assert all(name[0] in text for name in COMMANDS if name)
    panels = ["Data", "Models", "Runs", "Machines"]
    places = [text.index(f" {panel} ─") for panel in panels]
    assert places == sorted(places)
    found = {command.rich_help_panel for name, command in COMMANDS.items() if len(name) == 1}
    assert found == set(panels)


@every_command
def test_a_command_and_each_of_its_options_has_help(name: tuple[str, ...]) -> None:
    command = COMMANDS[name]
    assert command.help
    assert "\n" not in command.help.replace("\n\n", "")  # no line ends where the source's did
    for parameter in command.params:
        assert parameter.help, parameter.name
    assert "Usage:" in shown(*name, "--help")


@every_command
def test_help_ends_with_two_examples_of_the_command_that_are_understood(
    name: tuple[str, ...],
) -> None:
    lines = COMMANDS[name].epilog.partition(f"{EXAMPLES}\n\n")[2]
    examples = lines.splitlines()
    assert len(set(examples)) == 2
    for example in examples:
        assert example.startswith("$ ")
        assert f"nanogpt {' '.join(name)}".strip() in example
        for typed in example.removeprefix("$ ").split(" && "):
            words = shlex.split(typed.split(" > ")[0])
            understand(words[words.index("nanogpt") + 1 :])
    text = " ".join(shown(*name, "--help").split())
    assert text.endswith(" ".join(f"{EXAMPLES} {lines}".split()))


@every_command
def test_h_is_help(name: tuple[str, ...]) -> None:
    assert shown(*name, "-h") == shown(*name, "--help")


@every_command
def test_help_fits_a_narrow_terminal_and_cuts_nothing_short(name: tuple[str, ...]) -> None:
    text = shown(*name, "--help", width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert not re.search(r"--[\w-]+…", text)


def test_the_help_of_no_command_loads_torch() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from cli.main import app
for name in {list(COMMANDS)}:
    assert CliRunner().invoke(app, [*name, "--help"]).exit_code == 0
print({{"torch", "datasets", "transformers", "tiktoken"}} & set(sys.modules))
"""
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=CLONE, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_every_setting_of_train_is_a_flag_with_help() -> None:
    output = shown("train", "--help", width=300)
    for name in TrainConfig.model_fields:
        assert "--" + name.replace("_", "-") in output, name


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_of_presets_tells_what_the_model_has(preset: str) -> None:
    counted = count_parameters(with_vocabulary(load(preset)))
    [line] = [line for line in preset_table().splitlines() if line.split()[0] == preset]
    assert line.split()[1:] == [f"{counted.total / 1e6:,.1f}", "M", *ABOUT[preset].split()]
    assert " ".join(line.split()) in " ".join(shown("train", "--help").split())


def test_a_docstring_becomes_one_line_a_paragraph() -> None:
    assert paragraphs("One\n    two.\n\n    Three.\n    ") == "One two.\n\nThree."
