"""`nanogpt show full --svg`: what a picture may be called, and where it may go."""

import os
import threading
from pathlib import Path

from typer.testing import CliRunner

from cli.main import app
from nanogpt_dist.errors import UsageError


def test_a_picture_under_a_name_of_pixels_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["show", "full", "shakespeare-char-cpu", "--svg", str(tmp_path / "x.png")]
    )
    assert isinstance(done.exception, UsageError)
    assert not list(tmp_path.iterdir())


def test_a_picture_goes_through_a_device_a_pipe_and_a_link(tmp_path: Path) -> None:
    def draw(path: Path) -> None:
        line = ["show", "full", "shakespeare-char-cpu", "--vocab-size", "65", "--svg", str(path)]
        assert CliRunner().invoke(app, line).exit_code == 0

    draw(Path(os.devnull))
    assert Path(os.devnull).is_char_device()
    os.mkfifo(pipe := tmp_path / "pipe.svg")
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(pipe.read_bytes()), daemon=True)
    reader.start()
    draw(pipe)
    reader.join(30)
    assert said[0].startswith(b"<svg ")
    assert pipe.is_fifo()
    (link := tmp_path / "link.svg").symlink_to("real.svg")
    draw(link)
    assert link.is_symlink()
    assert (tmp_path / "real.svg").read_bytes() == said[0]
