"""Which files are read, in which order; what is left out is told; the download."""

import hashlib
import os
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from nanogpt_dist.errors import (
    BadDataError,
    HubUnavailableError,
    MissingInputError,
)
from prepare.corpora import CORPORA, find
from prepare.sources import find_sources, on_disk, records
from tests.conftest import build, write_jsonl


def test_folders_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/é.jsonl", "B.txt", "a.csv", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')
    (tmp_path / "link").symlink_to(tmp_path / "a")
    sources = find_sources(find("text"), [tmp_path / "a", tmp_path / "b.txt"])
    assert [file.name for file in sources.files] == ["z.md", "é.jsonl", "b.txt"]
    sources = find_sources(find("text"), [tmp_path])
    assert [file.name for file in sources.files] == ["B.txt", "a/z.md", "a/é.jsonl", "b.txt"]
    assert sources.ignored == ("a.csv", "link")


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    for name in ("a.TXT", "b.csv", "c.csv.gz"):
        (tmp_path / name).write_text("some text " * 100)
    told: list[str] = []
    build("text", tmp_path / "out", [tmp_path], tokenizer="byte", note=told.append)
    assert told == ["not read, for an unknown ending or as a link to a folder (2): b.csv, c.csv.gz"]


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(MissingInputError, match="not a file"):
        find_sources(find("text"), [tmp_path])


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(100)])

    def change(what: str, done: int, total: int, tokens: int) -> None:
        source.write_text(source.read_text() + "\n")

    with pytest.raises(BadDataError, match="changed while it was read"):
        build("text", tmp_path / "out", [source], tokenizer="byte", progress=change)
    assert not (tmp_path / "out").exists()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = int(self.path[1:])
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"text" if status == 200 else b"")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.thorough
def test_downloads() -> None:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    good = replace(
        CORPORA["shakespeare"],
        address=f"http://127.0.0.1:{server.server_port}/200",
        bytes=4,
        sha256=hashlib.sha256(b"text").hexdigest(),
    )
    sources = find_sources(good, [])
    assert [(r.name, r.bytes, r.sha256) for r in records(good, sources)] == [("input.txt", 4, good.sha256)]
    with on_disk(good, sources) as there:
        path = there.files[0].path
        assert path is not None
        assert path.read_bytes() == b"text"
    assert not path.exists()
    for bad in (
        replace(good, sha256="0" * 64),
        replace(good, address=f"http://127.0.0.1:{server.server_port}/500"),
        replace(good, address="http://127.0.0.1:1/"),
        replace(good, address="http://no.such.host.invalid/"),
    ):
        with pytest.raises(HubUnavailableError, match=r"by hand and give --source FILE$"), on_disk(bad, sources):
            pass
    server.shutdown()
    server.server_close()


def test_the_real_address_fits_the_line() -> None:
    from prepare.sources import _download

    with pytest.raises(HubUnavailableError) as caught:
        _download(replace(CORPORA["shakespeare"], address="http://127.0.0.1:1" + "/" * 71))
    assert len(str(caught.value)) < 200
