"""The pictures of docs/images are what docs/images/make.py draws today, and small."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from docs.images.data_flow import draw
from docs.images.make import PRESET
from tests.conftest import CLONE

IMAGES = CLONE / "docs" / "images"
MAX_BYTES = 200_000


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_is_small_and_stands_on_a_ground_of_its_own(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text) < MAX_BYTES
    assert "white" in text or "#ffffff" in text  # legible on a dark page, too


def test_the_way_of_the_data_is_drawn_as_it_stands() -> None:
    assert (IMAGES / "data.svg").read_text("utf-8") == draw()


def test_the_model_is_drawn_as_the_command_draws_it(tmp_path: Path) -> None:
    drawn = tmp_path / "model.svg"
    assert CliRunner().invoke(app, ["show", "full", PRESET, "--svg", str(drawn)]).exit_code == 0
    again = "type: nanogpt show full shakespeare-char-cpu --svg docs/images/model.svg"
    assert (IMAGES / "model.svg").read_bytes() == drawn.read_bytes(), again
