"""From a corpus to a folder: exact figures, the same bytes however it is run, and what a finished
folder is worth.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanogpt_dist.data import DataFolder, Manifest, verify_folder
from nanogpt_dist.errors import (
    BadDataError,
    CannotCreateError,
    MissingInputError,
    NanogptError,
    UsageError,
)
from prepare.build import Machine
from prepare.build import build as run_build
from prepare.corpora import find
from prepare.options import PrepareConfig
from prepare.sources.local import find_sources
from prepare.units.ranks import Ranks
from tests.conftest import CLONE, SHARED, Run, build, command, hashes, write_jsonl

SHAKESPEARE = SHARED / "data" / "tinyshakespeare.txt"
needs_shakespeare = pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="the text is not here")


@needs_shakespeare
@pytest.mark.parametrize(
    ("corpus", "train", "val", "ids"),
    [("shakespeare", 301_966, 36_059, 50_257), ("shakespeare_char", 1_003_854, 111_540, 65)],
)
def test_shakespeare_is_nanogpts(
    corpus: str,
    train: int,
    val: int,
    ids: int,
    tmp_path: Path,
) -> None:
    manifest = build(corpus, tmp_path / "out", [SHAKESPEARE])
    data = DataFolder.open(tmp_path / "out")
    assert (data.split("train").tokens, data.split("val").tokens, data.split("val").n_vocab) == (
        train,
        val,
        ids,
    )
    text = SHAKESPEARE.read_text(encoding="utf-8")
    whole = np.concatenate([data.split("train").read(0, train), data.split("val").read(0, val)])
    assert data.tokenizer.decode(whole) == text
    assert sum(split.bytes for split in manifest.splits.values()) == 1_115_394
    assert data.tokenizer.eot_id not in whole


def test_documents_come_back(prepared: Path, documents: list[str]) -> None:
    data = DataFolder.open(prepared)
    found = []
    for split in data.splits.values():
        ids, ends = split.read(0, split.tokens), split.document_ends()
        assert np.array_equal(np.flatnonzero(ids == data.tokenizer.eot_id) + 1, ends)
        for start, end in zip([0, *ends], ends, strict=False):
            found.append(data.tokenizer.decode(ids[start : end - 1]))
        assert split.bytes == data.tokenizer.byte_lengths()[ids].sum()
    assert sorted(found) == sorted(documents)
    assert 200 < data.split("val").documents < 400  # a tenth of 3,000
    assert verify_folder(prepared) == []


def test_equal_documents_go_to_one_split(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {i % 10}" for i in range(1000)])
    data = DataFolder.open(
        build_there("text", tmp_path / "out", [source], tokenizer="byte", val_fraction=0.4)
    )
    assert [split.documents % 100 for split in data.splits.values()] == [0, 0]


def build_there(corpus: str, out: Path, sources: list[Path], **options: Any) -> Path:
    build(corpus, out, sources, **options)
    return out


def test_the_standard_library_is_a_corpus(tmp_path: Path) -> None:
    sources = find_sources(find("python-stdlib"), [])
    names = [file.name for file in sources.files]
    assert names == sorted(names)
    assert "argparse.py" in names
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    manifest = build("python-stdlib", tmp_path / "out", tokenizer="byte", workers=1)
    total = sum(split.documents for split in manifest.splits.values())
    assert total + manifest.counts.empty == len(names) == len(manifest.sources[0].files)
    assert manifest.splits["train"].bytes > 4_000_000


def test_workers_folder_locale_and_time_zone_do_not_show(
    source: Path,
    prepared: Path,
    tmp_path: Path,
) -> None:
    command = [sys.executable, str(CLONE / "nanogpt"), "prepare", "text"]
    options = [
        "--source",
        str(source),
        "--tokenizer",
        "bpe:300",
        "--workers",
        "2",
        "--out",
        str(tmp_path / "two"),
    ]
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "TZ": "Asia/Tokyo",
        "PYTHONHASHSEED": "7",
    }
    subprocess.run(command + options, env=environment, check=True, capture_output=True)
    assert hashes(tmp_path / "two") == hashes(prepared)


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_any_moment_the_next_run_goes_on(
    ranks: int,
    source: Path,
    prepared: Path,
    nanogpt: Run,
    tmp_path: Path,
) -> None:
    line = [
        "prepare",
        "text",
        "--source",
        source,
        "--tokenizer",
        "bpe:300",
        "--out",
        "out",
        "--workers",
        "2",
        "--json",
    ]
    out = tmp_path / "out"
    for wait_for in (
        "lock",
        "plan.json",
        "tokenizer.json",
        "000000.json",
        "000002.json",
        "000003.json",
    ):
        process = subprocess.Popen(
            command(*line, ranks=ranks if ranks > 1 else 0),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and wait_for not in file_names(out):
            time.sleep(0.002)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while in_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not in_session(process.pid), "workers outlived their parent"
        if not (out / "manifest.json").exists():
            with pytest.raises(BadDataError, match="run the same nanogpt prepare again"):
                DataFolder.open(out)
    nanogpt(*line)
    assert hashes(out) == hashes(prepared)


def file_names(folder: Path) -> set[str]:
    """Names of all files below `folder`, in which files and folders may vanish meanwhile."""
    return {name for _, _, names in os.walk(folder) for name in names}


def in_session(session: int) -> list[str]:
    """Processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[3] == str(session) and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_a_finished_folder_is_left_alone(source: Path, prepared: Path) -> None:
    before = hashes(prepared)
    build("text", prepared, [source], tokenizer="bpe:300")
    for options, message in (
        ({"tokenizer": "bpe:301"}, "tokenizer bpe:300, not bpe:301"),
        ({"tokenizer": "byte"}, "tokenizer bpe:300, not byte"),
        ({"tokenizer": "bpe:300", "val_fraction": 0.2}, "--val-fraction 0.1, not 0.2"),
        ({"tokenizer": "bpe:300", "seed": 1}, "--seed 2357, not 1"),
        ({"tokenizer": "bpe:300", "column": "body"}, "--column text, not body"),
    ):
        with pytest.raises(CannotCreateError, match=rf"{message}; choose another --out"):
            build("text", prepared, [source], **options)  # type: ignore[arg-type]
    with pytest.raises(CannotCreateError, match="corpus text, not python-stdlib"):
        build("python-stdlib", prepared)
    assert hashes(prepared) == before


def test_changed_sources_are_noticed(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("some text " * 100)
    build("text", tmp_path / "out", [source], tokenizer="byte")
    source.write_text("some test " * 100)
    with pytest.raises(CannotCreateError, match="other source files"):
        build("text", tmp_path / "out", [source], tokenizer="byte")


def test_a_damaged_folder_is_noticed_and_says_how_to_go_on(
    source: Path,
    prepared: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    shard = next(out.glob("*_train_*.bin"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BadDataError, match="rm -r it, then run the same command"):
        build("text", out, [source], tokenizer="bpe:300")
    (out / "manifest.json").write_text('{"name": "somebody\'s"}')
    with pytest.raises(CannotCreateError, match="choose another --out"):
        build("text", out, [source], tokenizer="bpe:300")


@pytest.mark.parametrize(
    ("corpus", "options", "error", "message"),
    [
        ("text", {}, UsageError, "needs --source"),
        ("text", {"sources": ["missing.txt"]}, MissingInputError, "missing.txt"),
        ("text", {"sources": ["empty"]}, MissingInputError, "nothing to read"),
        ("text", {"sources": ["a.csv"]}, UsageError, "cannot read"),
        ("text", {"sources": ["bad.txt"]}, BadDataError, "bad.txt:2:3: byte 0xff"),
        (
            "text",
            {"sources": ["a.txt"], "tokenizer": "gpt3"},
            MissingInputError,
            "no tokenizer gpt3",
        ),
        ("text", {"sources": ["a.txt"], "tokenizer": "bpe:100"}, UsageError, "bpe:257"),
        ("text", {"sources": ["a.txt"], "val_fraction": 1.0}, UsageError, "--val-fraction"),
        (
            "text",
            {"sources": ["a.jsonl"], "split_by": "characters"},
            UsageError,
            "--split-by documents",
        ),
        (
            "text",
            {"sources": ["a.jsonl"], "val_fraction": 1e-9},
            BadDataError,
            "raise --val-fraction",
        ),
        (
            "text",
            {"sources": ["a.jsonl"], "val_fraction": 1 - 1e-9},
            BadDataError,
            "lower --val-fraction",
        ),
        ("text", {"sources": ["a.jsonl"], "column": "body"}, BadDataError, "--column"),
        ("text", {"sources": ["nothing.txt"]}, BadDataError, "there is no text"),
        ("shakespear", {}, UsageError, "did you mean shakespeare"),
        ("python-stdlib", {"sources": ["a.txt"]}, UsageError, "takes no --source"),
        ("shakespeare", {"sources": ["a.txt", "a.txt"]}, UsageError, "one file"),
    ],
)
def test_nothing_is_written_where_nothing_can_be_read(
    corpus: str,
    options: dict[str, Any],
    error: type[NanogptError],
    message: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.txt").write_bytes(b"good\nbad\xff")
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "nothing.txt").write_text("")
    (tmp_path / "a.txt").write_text("some text " * 100)
    write_jsonl(tmp_path / "a.jsonl", ["one", "two", "three"])
    before = sorted(tmp_path.rglob("*"))
    sources = [tmp_path / name for name in options.pop("sources", [])]
    with pytest.raises(error, match=message) as caught:
        build(corpus, tmp_path / "out", sources, **{"tokenizer": "byte", **options})
    assert sorted(tmp_path.rglob("*")) == before
    assert len(str(caught.value)) < 200


STDIN_LINE = "several ranks cannot share standard input; write it to a file"


@pytest.mark.parametrize("given", ["-", "-.jsonl"])
def test_standard_input_is_for_one_process(given: str, source: Path, tmp_path: Path) -> None:
    config = PrepareConfig(corpus="text", out=tmp_path / "out", source=[source, Path(given)])
    with pytest.raises(UsageError, match=STDIN_LINE):
        run_build(config, Machine(ranks=Ranks(0, 2, "slurm:7:0")))
    assert not (tmp_path / "out").exists()


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    """Of the vocabulary, then of the ids; the tokens are those of the manifest."""
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {n}" for n in range(300)])
    size = source.stat().st_size
    told: list[tuple[str, int, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prepare.units.plan.UNIT_BYTES", (1500, 1500))
        manifest = build(
            "text",
            tmp_path / "out",
            [source],
            tokenizer="char",
            workers=1,
            progress=lambda *figures: told.append(figures),
        )
    read = [min(size, 1500 * n) for n in range(1, -(-size // 1500) + 1)]
    tokens = sum(split.tokens for split in manifest.splits.values())
    vocabulary = [figures for figures in told if figures[0] == "vocabulary"]
    assert vocabulary == [("vocabulary", done, size, 0) for done in read]
    ids = told[len(vocabulary) :]
    assert [figures[:3] for figures in ids] == [("tokens", done, size) for done in [0, *read]]
    assert ids[0][3] == 0
    assert ids[-1][3] == tokens


def test_the_tokenizer_of_an_unfinished_folder_is_made_once(tmp_path: Path) -> None:
    """It is read again, and not learnt again: of the tokenizer all ids that are there depend."""
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {n}" for n in range(300)])
    whole = build("text", tmp_path / "whole", [source], tokenizer="char", workers=1)
    for stop_after, learns in ((1, False), (0, True)):
        out = tmp_path / f"out-{stop_after}"
        told: list[str] = []

        def stop(what: str, done: int, total: int, tokens: int) -> None:
            told.append(what)  # noqa: B023
            if what == "tokens" and told.count(what) > stop_after:  # noqa: B023
                raise KeyboardInterrupt

        options: dict[str, Any] = {"tokenizer": "char", "workers": 1}
        with pytest.raises(KeyboardInterrupt):
            build("text", out, [source], progress=stop, **options)
        assert (out / "tokenizer.json").exists() is not learns
        told.clear()
        found = build("text", out, [source], progress=lambda *of: told.append(of[0]), **options)  # noqa: B023
        assert found == whole
        assert ("vocabulary" in told) is learns
        assert hashes(out) == hashes(tmp_path / "whole")


def test_a_plan_that_is_gone_on_with_may_be_less_strict_only(tmp_path: Path) -> None:
    """What was done under strict holds under any; what was replaced or skipped does not."""
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {n}" for n in range(300)])

    def stop(what: str, done: int, total: int, tokens: int) -> None:
        if done:
            raise KeyboardInterrupt

    for first, then, good in (
        ("strict", "replace", True),
        ("strict", "skip", True),
        ("strict", "strict", True),
        ("skip", "skip", True),
        ("skip", "replace", False),
        ("replace", "strict", False),
    ):
        out = tmp_path / f"{first}-{then}"
        options: dict[str, Any] = {"tokenizer": "byte", "workers": 1}
        with pytest.raises(KeyboardInterrupt):
            build("text", out, [source], progress=stop, errors=first, **options)
        notes: list[str] = []
        if good:
            manifest = build("text", out, [source], errors=then, note=notes.append, **options)
            assert notes == ["going on: 1 of 1 units were done before"]
            assert manifest.errors == then
        else:
            with pytest.raises(
                CannotCreateError,
                match=f"holds an unfinished prepare with --errors {first}, not {then}; finish it",
            ):
                build("text", out, [source], errors=then, **options)


def test_a_finished_folder_says_what_to_do(tmp_path: Path) -> None:
    """--fresh has nothing to drop; what a kill at the very end has left goes."""
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {n}" for n in range(300)])
    out = tmp_path / "out"
    manifest = build("text", out, [source], tokenizer="byte")
    before = hashes(out)
    (out / ".prepare" / "units").mkdir(parents=True)
    notes: list[str] = []
    assert build("text", out, [source], tokenizer="byte", note=notes.append) == manifest
    assert notes == []
    assert hashes(out) == before
    build("text", out, [source], tokenizer="byte", note=notes.append, fresh=True)
    assert [note.partition(" is ")[2] for note in notes] == [
        "finished, so --fresh has nothing to drop; rm -r it to make it again"
    ]
    (out / "manifest.json").write_bytes(b"{}")
    with pytest.raises(CannotCreateError, match="its folder is left alone: remove it, or choose"):
        build("text", out, [source], tokenizer="byte")


def test_what_has_no_plan_is_begun_anew(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {n}" for n in range(300)])
    build("text", tmp_path / "whole", [source], tokenizer="char")
    out = tmp_path / "out"
    (out / ".prepare" / "units").mkdir(parents=True)
    (out / ".prepare" / "units" / "000000.json").write_text("{}")
    (out / "tokenizer.json").write_text("{}")
    (out / "text_train_000000.bin").write_text("of whatever it was")
    build("text", out, [source], tokenizer="char")
    assert hashes(out) == hashes(tmp_path / "whole")


def test_ranks_in_one_process_make_the_same_folder(tmp_path: Path) -> None:
    """The second one encodes its share, and the first one puts all together."""
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {n}" for n in range(300)])
    config = {"corpus": "text", "source": [source], "tokenizer": "byte", "workers": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prepare.units.plan.UNIT_BYTES", (500, 500))
        patch.setattr("prepare.units.ranks.POLL_S", 0.005)
        alone = build("text", tmp_path / "alone", [source], tokenizer="byte", workers=1)
        out = tmp_path / "out"
        share: list[int] = []

        def run(rank: int) -> Manifest | None:
            def progress(what: str, done: int, total: int, tokens: int) -> None:
                share.append(tokens)

            machine = Machine(ranks=Ranks(rank, 2, "slurm:7:0"), progress=progress)
            return run_build(PrepareConfig(out=out, **config), machine)  # type: ignore[arg-type]

        with ThreadPoolExecutor(2) as threads:
            second, first = threads.map(run, (1, 0))
    assert second is None
    assert first == alone
    assert hashes(out) == hashes(tmp_path / "alone")
    tokens = sum(split.tokens for split in alone.splits.values())
    assert 0.3 * tokens < max(share) < 0.7 * tokens, "the first has encoded its own share only"


def test_a_rank_that_follows_another_plan_is_refused(tmp_path: Path) -> None:
    """Started with other options than the first one: its units would be none of the folder's."""
    source = write_jsonl(tmp_path / "a.jsonl", [f"document {n}" for n in range(300)])
    out = tmp_path / "out"
    told: list[str] = []

    def follow(what: str, done: int, total: int, tokens: int) -> None:
        """As rank 0 tells its first progress, its plan is there."""
        if told:
            return
        told.append("")
        config = PrepareConfig(
            corpus="text", out=out, source=[source], tokenizer="byte", val_fraction=0.3
        )
        with pytest.raises(CannotCreateError, match=r"--val-fraction 0\.1, not 0\.3") as caught:
            run_build(config, Machine(ranks=Ranks(1, 2, "slurm:7:0")))
        told[0] = str(caught.value)

    config = PrepareConfig(corpus="text", out=out, source=[source], tokenizer="byte", workers=1)
    machine = Machine(ranks=Ranks(0, 2, "slurm:7:0"), progress=follow)
    with pytest.raises(CannotCreateError, match=r"^rank 1: "):
        run_build(config, machine)
    assert told[0]


def test_a_part_that_gives_nothing_is_called_by_its_corpus(tmp_path: Path) -> None:
    many = write_jsonl(tmp_path / "many.jsonl", [f"page {n}" for n in range(30)])
    notes: list[str] = []
    build(
        "text",
        tmp_path / "out",
        mix=f"{many}=0.9,python-stdlib=0.1",
        tokenizer="byte",
        val_fraction=0.2,
        workers=1,
        max_tokens=100,
        note=notes.append,
    )
    assert notes == [
        "python-stdlib gave no tokens: its first document is larger than its part of the mix"
    ]
