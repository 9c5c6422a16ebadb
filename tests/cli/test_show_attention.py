"""`nanogpt show attention`: tables of one head."""

import json
from pathlib import Path

from cli import show_attention
from tests.conftest import Run
from tests.nanogpt_dist.interop.models import bpe, make_run


def test_the_head_of_a_preset_and_of_a_run_as_tables(tmp_path: Path, nanogpt: Run) -> None:
    said = nanogpt("show", "attention", "--text", "abc", "--head", "1").stdout
    assert "q kᵀ / √D" in said
    assert [line.count("▒") for line in said.splitlines() if "▒" in line and "│" in line] == [
        2,
        1,
        2,
        1,
    ]
    run = make_run(tmp_path / "run", bpe())
    shown = json.loads(nanogpt("show", "attention", run, "--text", "The end.", "--json").stdout)
    T = len(shown["tokens"])
    assert "".join(shown["tokens"]) == "The end."
    assert [sum(row) for row in shown["seen"]] == list(range(1, T + 1))
    assert len(shown["q"][0]) == 16
    refused = nanogpt("show", "attention", "--text", "x" * 17, code=2)
    assert "a table takes 1 to 16" in refused.stderr


def test_a_tokens_name_is_as_wide_as_its_column_and_holds_no_control_codes() -> None:
    from rich.cells import cell_len

    for token in ("a", "日本語です", "\x1b[31m", " ", "👍"):
        shown = show_attention._name(token, 8)
        assert cell_len(shown) == 8
        assert shown.isprintable()
