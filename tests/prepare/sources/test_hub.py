"""The hub: what belongs to a split, every fault survived, nothing wrong let through, nothing
fetched twice.

The client runs in a process of its own: its libraries read HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE
at import.
"""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from pyarrow import parquet

from prepare.sources.hub import HubFile, HubFiles
from tests.conftest import CLONE
from tests.prepare.hub_repos import EXPORT, make_openwebtext
from tests.prepare.hub_server import Fault, Hub, hub

REPO = "Skylion007/openwebtext"
PRELUDE = """
import hashlib, json, sys
from pathlib import Path
from nanogpt_dist.errors import explain
from nanogpt_dist import hub_retries as retry
from prepare.sources import hub
from prepare.sources.prefetch import Fetcher
from prepare.sources.hub import HubFile, HubFiles, list_files, row_groups

retry.FIRST_WAIT_S, retry.FAULT_BUDGET_S = 0.02, {budget}

def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()

def load(text):
    known = json.loads(text)
    return HubFiles(known["repo"], known["revision"], tuple(HubFile(**file) for file in known["files"]))

def fetch(files, folder=None, indices=None):
    with Fetcher(files, folder) as fetcher:
        for index in range(len(files.files)) if indices is None else indices:
            assert sha256(fetcher.path(index)) == files.files[index].sha256

def show(files):
    print(json.dumps([files.revision, [[file.name, file.bytes, file.sha256] for file in files.files]]))
"""  # noqa: E501
ENDING = """
except Exception as error:
    code, line = explain(error)
    assert "\\n" not in line and len(line) <= 200, line
    print(line, file=sys.stderr)
    sys.exit(code)
"""


def client(
    server: Hub,
    home: Path,
    code: str,
    budget: float = 60,
    returns: int = 0,
    **environment: str,
) -> Any:
    """Runs `code` against the hub; what it prints last, as JSON, or with `returns` its line of
    error.
    """
    source = PRELUDE.replace("{budget}", str(budget)) + "try:\n" + indent(code, "    ") + ENDING
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=CLONE,
        env={**server.environment(home), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == returns, done.stderr[-3000:]
    assert done.stderr.count("\n") == (1 if returns else 0), done.stderr
    lines = done.stdout.splitlines()
    return done.stderr.strip() if returns else json.loads(lines[-1]) if lines else None


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    make_openwebtext(folder)
    return folder


def known(server: Hub, repo: str = REPO, revision: str = "main") -> HubFiles:
    """What list_files is to find: the .parquet files of a revision."""
    tree = server.repos[repo][revision]
    files = [
        HubFile(n, entry.size, entry.sha256)
        for n, entry in tree.files.items()
        if n.endswith(".parquet")
    ]
    return HubFiles(repo, tree.sha, tuple(files))


def as_code(files: HubFiles) -> str:
    facts = {
        "repo": files.repo,
        "revision": files.revision,
        "files": [vars(file) for file in files.files],
    }
    return f"files = load({json.dumps(facts)!r})\n"


FAULTS = {
    "500 on GET": Fault("status", "/lfs/*"),
    "503 on HEAD": Fault("status", "/datasets/*", method="HEAD", status=503),
    "429": Fault("status", "/lfs/*", status=429, retry_after_s=1),
    "reset": Fault("reset", "/lfs/*"),
    "cut": Fault("cut", "/lfs/*"),
    "stall": Fault("stall", "/lfs/*"),
    "corrupt": Fault("corrupt", "/lfs/*"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_survived(root: Path, tmp_path: Path, name: str) -> None:
    """File 0 comes to the user's cache, file 1 to a folder; each meets the fault once."""
    fault = FAULTS[name]
    both = [
        Fault(**{**vars(fault), "path": f"{fault.path}{file}*"})
        for file in ("train-00000", "train-00001")
    ]
    with hub(root, faults=both) as server:
        files = known(server)
        timeout = "retry.TIMEOUT_S = 0.5\n" if name == "stall" else ""
        code = (
            as_code(files)
            + timeout
            + f"fetch(files, None, [0])\nfetch(files, Path({str(tmp_path / 'x')!r}), [1])"
        )
        client(server, tmp_path / "home", code)
        assert not any(fault.times for fault in server.faults), "a fault has not happened"
        if name == "cut":  # it goes on where it broke
            assert server.bytes_sent("*train-00000*") == files.files[0].bytes
            assert server.asked("/lfs/*train-00000*") == 2


def test_faults_while_listing_are_survived(root: Path, tmp_path: Path) -> None:
    faults = [
        Fault("status", "/api/datasets/Skylion007/openwebtext", status=500),
        Fault("status", "*/README.md", method="HEAD", status=502),
        Fault("reset", "*/README.md"),
        Fault("cut", "*/tree/*", times=2),
        Fault("status", "*/paths-info/*", method="POST", status=429, retry_after_s=0),
    ]
    with hub(root, faults=faults, page=2) as server:
        expected = known(server)
        for config in ("None", "'plain_text'"):
            revision, names = client(
                server, tmp_path, f"show(list_files({REPO!r}, {config}, 'train'))"
            )
            assert (revision, len(names)) == (expected.revision, 3)
            assert names == [[file.name, file.bytes, file.sha256] for file in expected.files]
        assert not any(fault.times for fault in server.faults), "a fault has not happened"


@pytest.mark.parametrize("place", ["cache", "folder"])
def test_a_rerun_fetches_what_is_missing(root: Path, tmp_path: Path, place: str) -> None:
    """The hub fails for good; then again, where one of the files that came is damaged meanwhile."""
    folder, cache = (
        (tmp_path / "x", tmp_path / "x") if place == "folder" else (None, tmp_path / "home" / "hub")
    )
    fetch = f"fetch(files, {f'Path({str(folder)!r})' if folder else None})"
    with hub(root, faults=[Fault("status", "*train-00002*", times=None)]) as server:
        files = known(server)
        line = client(server, tmp_path / "home", as_code(files) + fetch, budget=0.5, returns=69)
        assert "HTTP 500" in line
        assert line.endswith("run the same command again: it fetches only what is missing")
    damaged = next(cache.rglob("train-00001*"))
    data = damaged.read_bytes()
    damaged.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with hub(root) as server:
        client(server, tmp_path / "home", as_code(files) + fetch)
        assert [server.bytes_sent(f"*train-0000{i}*") for i in range(3)] == [
            0,
            *(f.bytes for f in files.files[1:]),
        ]
        server.forget()
        client(server, tmp_path / "home", as_code(files) + fetch)
        assert not server.requests


def test_wrong_bytes_are_never_taken(root: Path, tmp_path: Path) -> None:
    with hub(root, faults=[Fault("corrupt", "/lfs/*", times=None)]) as server:
        line = client(server, tmp_path, as_code(known(server)) + "fetch(files)", returns=69)
        assert "serves wrong bytes for plain_text/train-00000-of-00003.parquet" in line
        assert server.asked("/lfs/*train-00000*") == 3


def test_leaving_does_not_wait_for_the_next_file(root: Path, tmp_path: Path) -> None:
    """The hub is in trouble over the next file, and five minutes of patience are left."""
    with hub(root, faults=[Fault("status", "*train-00001*", times=None)]) as server:
        code = as_code(known(server)) + "with Fetcher(files) as fetcher:\n    fetcher.path(0)"
        client(server, tmp_path, code, budget=300)


def test_trouble_that_lasts_is_told(root: Path, tmp_path: Path) -> None:
    with hub(root, faults=[Fault("status", "/lfs/*", times=4)]) as server:
        code = (
            "notes = []\nwith Fetcher(files, note=notes.append) as fetcher:\n    fetcher.path(0)\n"
        )
        notes = client(
            server, tmp_path, as_code(known(server)) + code + "print(json.dumps(notes))", budget=300
        )
        assert notes == ["hub: HTTP 500 from 127.0.0.1; trying for 5 min more"]


def test_release_removes_from_the_folder_only(root: Path, tmp_path: Path) -> None:
    code = """
for folder in (None, Path("FOLDER")):
    with Fetcher(files, folder) as fetcher:
        for index in range(3):
            fetcher.path(index)
            fetcher.release(index)
"""
    with hub(root) as server:
        client(
            server,
            tmp_path / "home",
            as_code(known(server)) + code.replace("FOLDER", str(tmp_path / "x")),
        )
    assert len(list((tmp_path / "home").rglob("*.parquet"))) == 3
    assert not [
        path
        for path in (tmp_path / "x").rglob("*")
        if path.suffix == ".parquet" or path.parent.name == "blobs"
    ]


def test_row_groups(root: Path, tmp_path: Path) -> None:
    """Of the hub and of the local copy, in one piece and where the footer is longer than what is
    fetched at once.
    """
    code = (
        "first = [[group.rows, group.bytes] for i in range(3) for group in row_groups(files, i, "
        "'text')]\n"
    )
    again = code.replace("first", "second") + "assert first == second\n"
    with hub(root) as server:
        code = as_code(known(server)) + "hub.FOOTER_BYTES = 64\n" + code
        groups = client(
            server,
            tmp_path,
            code + "hub.FOOTER_BYTES = 1 << 16\n" + again + "print(json.dumps(first))",
        )
        client(server, tmp_path, code + "fetch(files)\nhub._footer = None\n" + again)
        line = client(
            server, tmp_path, as_code(known(server)) + "row_groups(files, 0, 'txet')", returns=65
        )
    assert line.endswith("no text column txet; it has: text; choose one with --column")
    expected = []
    for path in sorted(root.rglob("*.parquet")):
        footer = parquet.read_metadata(path)
        for i in range(footer.num_row_groups):
            group = footer.row_group(i)
            expected.append([group.num_rows, group.total_byte_size])
    assert groups == expected
    assert len(groups) == 12


def test_a_repository_with_a_loading_script(tmp_path: Path) -> None:
    """Its files are those of the hub's export, whose commit can be asked for again."""
    make_openwebtext(tmp_path / "root", documents_per_file=20, script=True)
    with hub(tmp_path / "root") as server:
        expected = known(server, revision="refs/convert/parquet")
        for home, config, revision in (
            ("a", "None", None),
            ("b", "'plain_text'", expected.revision),
        ):
            code = f"show(list_files({REPO!r}, {config}, 'train', {revision!r}))"
            found, names = client(server, tmp_path / home, code)
            assert found == expected.revision
            assert names == [
                [f"plain_text/train/000{i}.parquet", *list(vars(f).values())[1:]]
                for i, f in enumerate(expected.files)
            ]
        line = client(
            server, tmp_path / "a", f"list_files({REPO!r}, 'plain_text', 'test')", returns=2
        )
        assert line.endswith("has no split test; choose one of: train")
        line = client(server, tmp_path / "a", f"list_files({REPO!r}, 'plain', 'train')", returns=2)
        assert line.endswith("has no configuration plain; choose one of: plain_text")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One repository of packed lines in two configurations, one that is gated, one of tables that
    are no text.
    """
    folder = tmp_path_factory.mktemp("several")
    main = folder / "some" / "lines" / "main"
    for config in ("en", "de"):
        for split in ("train", "validation"):
            path = main / config / f"{split}.00000-of-00001.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(
                gzip.compress(f'{{"text": "{config} {split}"}}\n'.encode() * 50, mtime=0)
            )
    configs = "".join(
        f"- config_name: {config}\n  data_files:\n"
        f"  - split: train\n    path: {config}/train.*\n  - split: validation\n    path: "
        f"{config}/validation.*\n"
        for config in ("en", "de")
    )
    (main / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for path in (
        "closed/main/train.txt",
        "tables/main/train.csv",
        "script/main/script.py",
        "large/main/large.py",
        f"large/{EXPORT}/default/partial-train/0000.parquet",
    ):
        (folder / "some" / path).parent.mkdir(parents=True)
        (folder / "some" / path).write_text("text\none\n")
    return folder


def test_a_repository_outside_of_lfs(several: Path, tmp_path: Path) -> None:
    """Its files have no sha256: they come while they are listed, and what came wrong does not
    count.
    """
    faults = [Fault("corrupt", "*jsonl.gz"), Fault("reset", "*/en/train*")]
    with hub(several, faults=faults) as server:
        assert not any(entry.lfs for entry in server.repos["some/lines"]["main"].files.values())
        revision, names = client(server, tmp_path, "show(list_files('some/lines', 'en', 'train'))")
        data = (several / "some/lines/main/en/train.00000-of-00001.jsonl.gz").read_bytes()
        assert names == [
            ["en/train.00000-of-00001.jsonl.gz", len(data), hashlib.sha256(data).hexdigest()]
        ]
        assert not any(fault.times for fault in server.faults), "a fault has not happened"
        server.forget()
        client(server, tmp_path, f"fetch(list_files('some/lines', 'en', 'train', {revision!r}))")
        assert not server.requests


@pytest.mark.parametrize(
    ("asked", "code", "line"),
    [
        (
            "'some/lines', 'fr', 'train'",
            2,
            "some/lines has no configuration fr; choose one of: de, en",
        ),
        (
            "'some/lines', None, 'train'",
            2,
            "some/lines has no configuration by default; choose one of: de, en",
        ),
        (
            "'some/lines', 'en', 'test'",
            2,
            "some/lines has no split test; choose one of: train, validation",
        ),
        (
            "'some/lines', 'en', 'train', 'v9'",
            2,
            "has no revision v9; give a branch, a tag or a commit",
        ),
        (
            "'some/where', None, 'train'",
            66,
            "no dataset some/where on the hub, or it is private or gated; check",
        ),
        (
            "'some/closed', None, 'train'",
            66,
            "no dataset some/closed on the hub, or it is private or gated; check",
        ),
        (
            "'some/script', None, 'train'",
            66,
            "some/script has a loading script and no parquet export",
        ),
        (
            "'some/large', None, 'train'",
            66,
            "the hub's parquet export has only a part of some/large, its split partial-train",
        ),
        (
            "'some/tables', None, 'train'",
            2,
            "cannot read train.csv of some/tables; files are to end in .parquet",
        ),
        ("'a/b/c', None, 'train'", 2, "'a/b/c' is no name of a dataset; give OWNER/NAME"),
    ],
)
def test_what_is_not_there_is_told(
    several: Path,
    tmp_path: Path,
    asked: str,
    code: int,
    line: str,
) -> None:
    with hub(several, gated=["some/closed"]) as server:
        assert line in client(server, tmp_path, f"list_files({asked})", returns=code)


def test_offline(root: Path, tmp_path: Path) -> None:
    with hub(root) as server:
        code = f"files = list_files({REPO!r}, None, 'train')\nfetch(files)"
        line = client(server, tmp_path, code, returns=69, HF_HUB_OFFLINE="1")
        assert "not all in the cache, and HF_HUB_OFFLINE is set" in line
        assert not server.requests
        client(server, tmp_path, code)
        server.forget()
        client(server, tmp_path, code, HF_HUB_OFFLINE="1")
        assert not server.requests


def test_no_hub_at_all(root: Path, tmp_path: Path) -> None:
    with hub(root) as server:
        pass
    line = client(server, tmp_path, f"list_files({REPO!r}, None, 'train')", budget=0.5, returns=69)
    assert line.startswith("hub unavailable for")
