"""A hub on this machine that speaks the real one's protocol, gets into trouble on demand and counts
what it serves.

    with hub(root, faults=[Fault("reset", "*train-00001*")]) as server:
        subprocess.run(..., env=server.environment(home))

On disk: root/OWNER/NAME/REVISION/…, where the folder `main` is a branch and
`refs--convert--parquet` the hub's export. Files that end as LFS says are kept in LFS: their ETag is
their sha256, and they are served from another address.
"""

import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.prepare.hub_repos import LFS, Entry, Revision, read_revision


@dataclass
class Fault:
    """Trouble for requests with `method` whose path fits the pattern `path`, `times` times (None:
    always).

    status: an answer with that status. reset, cut, stall: after half of the body the connection is
    reset, closed, or silent for stall_s. corrupt: one wrong byte, the length is right.
    """

    kind: Literal["status", "reset", "cut", "stall", "corrupt"]
    path: str = "*"
    times: int | None = 1
    method: str = "GET"
    status: int = 500
    retry_after_s: int | None = None
    stall_s: float = 3.0

    def takes(self, method: str, path: str) -> bool:
        if method != self.method or self.times == 0 or not fnmatchcase(path, self.path):
            return False
        self.times = None if self.times is None else self.times - 1
        return True


@dataclass
class Hub:
    """What the running hub knows. requests: (method, path) → how often; sent: path → bytes of file
    content.
    """

    repos: dict[str, dict[str, Revision]]
    faults: list[Fault]
    gated: set[str]
    page: int  # entries of one answer about a tree
    address: str = ""
    lfs_address: str = ""
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for a process that is to use this hub, with `home` as its cache."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return {**kept, "HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}

    def asked(self, pattern: str, method: str = "GET") -> int:
        """How many requests there were whose path fits `pattern`."""
        with self.lock:
            return sum(
                n
                for (m, path), n in self.requests.items()
                if m == method and fnmatchcase(path, pattern)
            )

    def bytes_sent(self, pattern: str) -> int:
        """How many bytes of file content went out for paths that fit `pattern`."""
        with self.lock:
            return sum(n for path, n in self.sent.items() if fnmatchcase(path, pattern))

    def forget(self) -> None:
        """Sets the counters to zero."""
        with self.lock:
            self.requests.clear()
            self.sent.clear()


@contextmanager
def hub(
    root: Path,
    faults: Sequence[Fault] = (),
    lfs: tuple[str, ...] = LFS,
    gated: Sequence[str] = (),
    page: int = 1000,
) -> Iterator[Hub]:
    """A hub that serves the repositories under `root`, as they are now, on a free port."""
    repos = {
        "/".join(repo.relative_to(root).parts): {
            tree.name.replace("--", "/"): read_revision(tree, lfs)
            for tree in sorted(repo.iterdir())
        }
        for repo in sorted(root.glob("*/*"))
    }
    state = Hub(repos, list(faults), set(gated), page)

    class Handler(_Handler):
        hub = state

    with _serving(Handler) as state.address, _serving(Handler) as state.lfs_address:
        yield state


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server, which ends with the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    """status, X-Error-Code, text"""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.requests[self.command, path] += 1
            fault = next(
                (fault for fault in self.hub.faults if fault.takes(self.command, path)), None
            )
        with suppress(ConnectionError):  # who asked has gone
            if fault and fault.kind == "status":
                wait = (
                    {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
                )
                self._send(fault.status, b"trouble", wait)
                return
            try:
                steps = [unquote(step) for step in parts.path.strip("/").split("/")]
                if steps[:2] in (["api", "datasets"], ["api", "models"]):
                    self._api(steps[2:], query, body, fault)
                elif steps[:1] == ["datasets"] and steps[3:4] == ["resolve"]:
                    self._resolve(
                        f"{steps[1]}/{steps[2]}", steps[4], "/".join(steps[5:]), path, fault
                    )
                elif steps[2:3] == ["resolve"]:  # of a model
                    self._resolve(
                        f"{steps[0]}/{steps[1]}", steps[3], "/".join(steps[4:]), path, fault
                    )
                elif steps[:1] == ["lfs"]:
                    revision = self._find(f"{steps[1]}/{steps[2]}", steps[3])
                    self._file(revision.files["/".join(steps[4:])], {}, path, fault)
                else:
                    raise _Refused(404, "EntryNotFound", "no such address")
            except _Refused as refused:
                status, code, text = refused.args
                self._send(status, text.encode(), {"X-Error-Code": code, "X-Error-Message": text})

    def _find(self, repo: str, name: str) -> Revision:
        # the real one does not say whether it is private or not there
        if repo not in self.hub.repos:
            raise _Refused(401, "RepoNotFound", "Invalid username or password.")
        for branch, revision in self.hub.repos[repo].items():
            if name in (branch, revision.sha):
                return revision
        raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {name}")

    def _resolve(self, repo: str, name: str, file: str, path: str, fault: Fault | None) -> None:
        revision = self._find(repo, name)
        if repo in self.hub.gated:
            raise _Refused(
                401,
                "GatedRepo",
                f"Access to dataset {repo} is restricted. Log in to get access to it.",
            )
        if file not in revision.files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        entry = revision.files[file]
        headers = {"X-Repo-Commit": revision.sha, "ETag": f'"{entry.etag}"'}
        if entry.lfs:
            where = f"{self.hub.lfs_address}/lfs/{repo}/{revision.sha}/{quote(file)}"
            linked = {
                "X-Linked-Size": str(entry.size),
                "X-Linked-ETag": f'"{entry.sha256}"',
                "Location": where,
            }
            self._send(302, b"Found", headers | linked)
        else:
            self._file(entry, headers, path, fault)

    def _file(self, entry: Entry, headers: dict[str, str], path: str, fault: Fault | None) -> None:
        data, status = entry.path.read_bytes(), 200
        headers |= {"ETag": f'"{entry.etag}"', "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data, status = data[start:stop], 206
        self._send(status, data, headers, fault, path)

    def _api(
        self,
        steps: list[str],
        query: dict[str, list[str]],
        body: bytes,
        fault: Fault | None,
    ) -> None:
        repo, rest = "/".join(steps[:2]), steps[2:]
        match rest:
            case ["refs"]:
                self._find(repo, "main")
                kinds: dict[str, list[dict[str, str]]] = {
                    "branches": [],
                    "converts": [],
                    "tags": [],
                }
                for name, revision in self.hub.repos[repo].items():
                    kind, ref = (
                        ("converts", name)
                        if name.startswith("refs/")
                        else ("branches", f"refs/heads/{name}")
                    )
                    kinds[kind].append(
                        {"name": name.split("/")[-1], "ref": ref, "targetCommit": revision.sha}
                    )
                self._json(kinds, fault)
            case [] | ["revision", _]:
                revision = self._find(repo, rest[1] if rest else "main")
                facts = {
                    "_id": "1",
                    "id": repo,
                    "sha": revision.sha,
                    "private": False,
                    "disabled": False,
                }
                facts |= {
                    "gated": "auto" if repo in self.hub.gated else False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                }
                blobs = "blobs" in query
                siblings = [
                    entry.sibling(name) if blobs else {"rfilename": name}
                    for name, entry in revision.files.items()
                ]
                self._json(facts | {"siblings": siblings}, fault)
            case ["paths-info", name]:
                revision = self._find(repo, name)
                names = parse_qs(body.decode())["paths"]
                self._json(
                    [revision.files[name].told(name) for name in names if name in revision.files],
                    fault,
                )
            case ["tree", name, *folder]:
                self._tree(self._find(repo, name), "/".join(folder), query, fault)
            case _:
                raise _Refused(404, "EntryNotFound", "no such question")

    def _tree(
        self,
        revision: Revision,
        folder: str,
        query: dict[str, list[str]],
        fault: Fault | None,
    ) -> None:
        before = f"{folder}/" if folder else ""
        inside = {name: entry for name, entry in revision.files.items() if name.startswith(before)}
        if not inside:
            raise _Refused(404, "EntryNotFound", f"{folder} does not exist on the revision")
        deep = query.get("recursive", ["false"])[0].lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for name, entry in inside.items():
            steps = name.removeprefix(before).split("/")
            for depth in range(1, len(steps) if deep else min(2, len(steps))):
                path = before + "/".join(steps[:depth])
                oid = hashlib.sha1(path.encode()).hexdigest()
                entries[path] = {"type": "directory", "oid": oid, "size": 0, "path": path}
            if deep or len(steps) == 1:
                entries[name] = entry.told(name)
        ordered = [entries[name] for name in sorted(entries)]
        start = int(query.get("cursor", ["0"])[0])
        page, headers = ordered[start : start + self.hub.page], {}
        if start + self.hub.page < len(ordered):
            address = f"{self.hub.address}{urlsplit(self.path).path}?recursive={deep}&cursor={start + self.hub.page}"  # noqa: E501
            headers["Link"] = f'<{address}>; rel="next"'
        self._json(page, fault, headers)

    def _json(
        self,
        facts: object,
        fault: Fault | None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._send(
            200,
            json.dumps(facts).encode(),
            {"Content-Type": "application/json", **(headers or {})},
            fault,
        )

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str],
        fault: Fault | None = None,
        path: str | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.kind == "corrupt" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        breaks = fault is not None and fault.kind in ("reset", "cut", "stall")
        part = data[: len(data) // 2] if breaks else data
        if path is not None:
            with self.hub.lock:
                self.hub.sent[path] += len(part)
        self.wfile.write(part)
        if fault and breaks:
            self.wfile.flush()
            self.close_connection = True
            if fault.kind == "stall":
                time.sleep(fault.stall_s)
            if fault.kind == "reset":  # closing discards instead of sending the end of the stream
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                os.close(self.connection.detach())
