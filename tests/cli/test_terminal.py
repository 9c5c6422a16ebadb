"""What reaches a terminal: lines that fit, whole figures, no control codes of data; and streams of
plain ASCII.
"""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.table import Table

from cli import eval as evaluating
from cli.main import app
from cli.terminal import PLAIN, echo_table, echo_text, visible
from nanogpt_dist.inspect.architecture import count_parameters, trace
from nanogpt_dist.inspect.diagram_text import draw
from nanogpt_dist.load_config import load
from tests.conftest import CLONE
from tests.nanogpt_dist.interop.models import bpe, make_run

Show = Callable[..., str]  # the arguments of nanogpt → what a terminal gets

ESC = "\x1b[31m"
LARGE = {"n_layer": 32, "n_head": 32, "n_embd": 4096, "block_size": 131072, "vocab_size": 256000}


@contextmanager
def terminal(columns: int) -> Iterator[list[str]]:
    """Standard output is a pseudo-terminal, whose text is in the list at the end."""
    reader, writer = os.openpty()
    said: list[str] = []
    parts: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(reader, 65536):
                parts.append(part)
        except OSError:  # the other end is closed
            pass

    thread = threading.Thread(target=read)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "stdout", os.fdopen(writer, "w", encoding="utf-8"))
        try:
            yield said
        finally:
            sys.stdout.close()
            thread.join()
            os.close(reader)
            text = b"".join(parts).decode().replace("\r\n", "\n")
            said.append(re.sub(r"\x1b\[[01]m", "", text))  # headers are bold


def show(columns: int, *arguments: object) -> str:
    with terminal(columns) as said:
        app([str(argument) for argument in arguments], standalone_mode=False)
    return said[0]


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
@pytest.mark.parametrize("what", ["full", "params", "components", "attention"])
def test_what_is_shown_fits_the_terminal_and_no_figure_is_cut(what: str, columns: int) -> None:
    """…, the mark of a cut, stands behind the numbers of a vector only."""
    said = show(
        columns,
        "show",
        what,
        *(["--text", "To be, or not to"] if what == "attention" else ["gpt2-124m"]),
    )
    assert max(map(cell_len, said.splitlines())) <= columns
    assert "…" not in said if what != "attention" else re.search(r"\d …\n", said)
    if what in ("full", "params"):
        assert "38,633,472" in said


@pytest.mark.parametrize("width", [None, 40, 60, 80, 100])
@pytest.mark.parametrize(
    "options", [{}, {"mlp": "swiglu", "rotary": True, "n_kv_head": 8, "qk_norm": True}]
)
def test_the_drawing_of_a_large_model_has_every_digit_and_whole_frames(
    options: dict,
    width: int | None,
) -> None:
    config = load("gpt2-124m", {**LARGE, **options})
    counted = count_parameters(config)
    drawn = draw(config, counted, trace(config, 12), width)
    lines = drawn.splitlines()
    frame = {len(line) for line in lines if line.startswith(("╔", "║", "╚"))}
    assert len(frame) == 1
    assert max(map(len, lines)) <= (width or 120)
    assert all(line.endswith(("╗", "║", "╝")) for line in lines if line.startswith(("╔", "║", "╚")))
    figures = set(re.findall(r"\d[\d,]*\d", drawn))
    assert {f"{counted.by_component['wte']:,}", f"{counted.blocks:,}", "131072"} <= figures | {
        "131072"
    }
    if width is None and not options:
        assert "q, k, v each (B, H, T, D) = (12, 32, 131072, 128) ║" in drawn


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_the_losses_of_several_checkpoints_fit_the_terminal(columns: int) -> None:
    figures = {"val_loss": 5.7719, "perplexity": 321.1356, "bits_per_byte": 8.327}
    rows = [
        (f"out/bytes-{name}/checkpoints/step-00000010", {"val of data/bytes-a": figures})
        for name in "ab"
    ]
    with terminal(columns) as said:
        evaluating._print_table(rows)
    assert max(map(len, said[0].splitlines())) <= columns
    for figure in ("5.7719", "321.1356", "8.3270"):
        assert said[0].count(figure) == 2


def test_a_size_has_its_digits() -> None:
    assert "0.000 GB" not in show(
        80, "show", "params", "shakespeare-char-cpu", "--n-layer", 1, "--n-embd", 16
    )


def test_control_codes_of_data_do_not_reach_a_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path / f"run{ESC}", bpe())
    for more in ([], ["--stream"]):
        said = show(
            80,
            "sample",
            run,
            "--prompt",
            f"{ESC}The\x07",
            "--max-new-tokens",
            4,
            "--device",
            "cpu",
            *more,
        )
        assert "\x1b" not in said
        assert "\x07" not in said
        assert "�[31mThe�" in said
    assert "\x1b" not in show(80, "checkpoint", "list", run) + show(80, "show", "checkpoint", run)
    assert visible(f"a{ESC}\tb\r\nc\rd\x9b") == "a�[31m\tb\r\nc�d�"


def test_a_pipe_and_json_get_a_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    echo_text(f"{ESC}text\x0c")
    assert capsys.readouterr().out == f"{ESC}text\x0c\n"
    assert (
        json.loads(json.dumps({"text": ESC}))["text"]
        == ESC
        == json.loads(visible(json.dumps({"text": ESC})))["text"]
    )


def test_a_table_folds_a_name_and_drops_what_is_spare_first() -> None:
    table = Table("name", "share", "figure")
    table.add_row("out/" + "a" * 40 + ESC, "100 %", "123,456,789")
    with terminal(40) as said:
        echo_table(table, spare=("share",))
    assert "123,456,789" in said[0]
    assert "share" not in said[0]
    assert "\x1b[31m" not in said[0]


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_a_stream_of_ascii_gets_ascii(environment: dict[str, str]) -> None:
    line = [sys.executable, str(CLONE / "nanogpt"), "show", "config", "gpt2-124m"]
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHON"))
    }
    done = subprocess.run(
        line, env={**plain, **environment}, capture_output=True, timeout=60, check=True
    )
    assert done.stdout.isascii()
    assert b"AdamW beta1" in done.stdout
    assert "Σ".encode("ascii", PLAIN) == b"\\u03a3"
