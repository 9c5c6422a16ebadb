"""Files made to harm, at every reader of foreign ones: each is refused in one line, or read.

What tests/faults/fuzz_parsers.py has found stands here by name; beside it a few cases of each
reader.
"""

import dataclasses
import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt_dist import storage
from nanogpt_dist.checkpoint.tensors import index
from nanogpt_dist.data import DataFolder, verify_folder
from nanogpt_dist.data.importing import import_shards
from nanogpt_dist.errors import BadDataError, Exit, HubUnavailableError, explain
from nanogpt_dist.hub_retries import RetryPolicy, _refuse_paths, retrying
from nanogpt_dist.interop import init_from, nanogpt_ckpt
from nanogpt_dist.storage import json_lines
from nanogpt_dist.storage.json_lines import JsonLines
from nanogpt_dist.tokenizer import Tokenizer, byte
from prepare.readers.documents import Part
from prepare.readers.formats import Format
from prepare.readers.tables import row_groups, rows
from prepare.readers.text import TextPart
from tests.conftest import CLONE
from tests.faults.fuzz_parsers import PARSERS, fuzz
from tests.faults.parsers import data, models, runs
from tests.faults.parsers.formats import KINDS, _replace, good_files

DIGITS, HEX = b"9" * 5000, b"0x" + b"f" * 5000
DEEP = b"[" * 100_000
BEYOND = b"".join(
    b'{"step": %d, "loss": 1e308, "save_s": 1e300, "interval_s": 1e-300}\n' % step
    for step in range(1, 3000)
)
SLOW = {"checkpoint", "checkpoint-manifest", "hugging-face", "hf-tokenizer", "hub", "run-folder"}
UNIT = b'{"unit": 0, "plan": "", "train": [1e999, 1], "val": [0, 0], "documents": [0, 0]}'
STEP = "run/checkpoints/step-00000000"
KNOWN = [
    ("toml", "a.toml", b"seed = " + DIGITS),
    ("toml", "a.toml", b"seed = " + HEX),
    ("toml", "a.toml", b"tied_head = " + HEX + b"\ntie_embeddings = 1"),
    ("toml", "a.toml", b"seed = " + DEEP),
    ("checkpoint", f"{STEP}/config.toml", b"seed = " + DEEP),
    ("run-folder", "run/config.toml", b"seed = " + DIGITS),
    ("run-folder", "run/metrics.jsonl", BEYOND),
    ("run-folder", "run/metrics.jsonl", BEYOND.replace(b"1e-300", b"1")),
    ("nanogpt-config", "a.py", b"n_layer = " + b"-" * 20_000 + b"1"),
    ("nanogpt-config", "a.py", b"learning_rate = " + HEX),
    ("nanogpt-config", "a.py", b"n_layer = " + HEX),
    ("nanogpt-config", "a.py", b"dataset = __import__('os').system('touch X')"),
    ("meta-pkl", "4.pkl", pickle.dumps({"itos": {0: "a", "b": "c"}})),
    ("tasks", "task.yaml", b"task: ["),
    ("tasks", "task.yaml", b"task: !!python/object/apply:os.system [touch X]"),
    ("tasks", "hellaswag.jsonl", b'{"ctx": "a", "endings": ["b"], "label": "%b"}' % DIGITS),
    ("nodes", "answer.json", DEEP),
    ("nodes", "caller.json", DEEP[:9000]),
    ("nodes", "answer.json", b'{"nodes": [{"rank": "0"}]}'),
    ("nodes", "answer.json", b'{"nodes": []}'),
    ("prepare-journal", "data/.prepare/units/000000.json", UNIT),
    ("prepare-journal", "data/.prepare/units/000000.json", DEEP),
    ("prepare-journal", "data/.prepare/plan.json", DEEP),
    ("prepare-journal", "data/.prepare/failed-1", b"[1]"),
    ("hub", "info.json", b"[1]"),
    ("hub", "info.json", DEEP),
    ("hub", "info.json", b'{"id": "a/b", "sha": "../../x", "siblings": [{"rfilename": [1]}]}'),
    ("hub", "paths-info.json", b'[{"type": "directory", "oid": "x", "path": "README.md"}]'),
    ("hub", "note.json", b'{"repo": "a/b", "revision": 1, "files": [{"name": 1}]}'),
    ("environment", "environment.json", b'{"WORLD_SIZE": "x", "RANK": "0"}'),
    ("environment", "environment.json", b'{"WORLD_SIZE": "2", "RANK": "two"}'),
    ("environment", "environment.json", b'{"SLURM_ARRAY_TASK_COUNT": "4"}'),
    ("environment", "environment.json", b'{"TORCHELASTIC_RESTART_COUNT": "<script>"}'),
]


def refused_or_read(name: str, folder: Path) -> str:
    """The line of the error that a reader ends in, "" without one; never a bug's."""
    try:
        PARSERS[name].read(folder)
    except Exception as error:
        code, line = explain(error)
        if code == Exit.BUG:
            raise
        return line
    return ""


@pytest.mark.parametrize("name", PARSERS)
def test_cases_of_each_reader(name: str) -> None:
    made, faults = fuzz(PARSERS[name], 0, 8 if name in SLOW else 40, float("inf"))
    assert made, "the good files, at least"
    assert not faults, "\n".join(map(str, faults))


def test_a_case_that_cannot_be_made_ends_the_campaign() -> None:
    """It was tried again and again in silence, and its minutes were counted as of a reader."""

    def seal(folder: Path) -> None:
        raise BadDataError("not sealed")

    broken = dataclasses.replace(PARSERS["toml"], seal=seal)
    with pytest.raises(RuntimeError, match="not sealed"):
        fuzz(broken, 1, 40, float("inf"))


@pytest.mark.parametrize(("name", "file", "content"), KNOWN)
def test_what_was_found(name: str, file: str, content: bytes, tmp_path: Path) -> None:
    good_files(PARSERS[name], tmp_path / "case")
    (tmp_path / "case" / file).write_bytes(content)
    seal = PARSERS[name].seal
    if seal is not None:
        seal(tmp_path / "case")
    refused_or_read(name, tmp_path / "case")
    assert not (tmp_path / "X").exists()
    assert not Path("X").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("toml", "a.toml"),
        ("nanogpt-config", "a.py"),
        ("meta-pkl", "4.pkl"),
        ("tiktoken", "a.tiktoken"),
        ("safetensors", "whole.safetensors"),
        ("nanogpt-ckpt", "ckpt.pt"),
        ("tasks", "hellaswag.jsonl"),
        ("jsonl", "a.jsonl"),
        ("shard-header", "a.bin"),
    ],
)
def test_pipes_devices_and_links_in_place_of_files(
    name: str, file: str, kind: str, tmp_path: Path
) -> None:
    good_files(PARSERS[name], tmp_path / "case")
    _replace(tmp_path / "case" / file, kind)
    refused_or_read(name, tmp_path / "case")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["config.toml", "run.json", "metrics.jsonl", "run.lock"])
def test_pipes_devices_and_links_in_a_run_that_others_wrote(
    file: str, kind: str, tmp_path: Path
) -> None:
    good_files(PARSERS["run-folder"], tmp_path / "case")
    _replace(tmp_path / "case/run" / file, kind)
    refused_or_read("run-folder", tmp_path / "case")


@pytest.mark.parametrize("ending", ["crc32", "ends"])
def test_a_sidecar_that_ends_within_a_number(ending: str, tmp_path: Path) -> None:
    data.make_data(tmp_path)
    path = next((tmp_path / "data").glob(f"*_train_*.{ending}"))
    path.write_bytes(path.read_bytes()[:-1])
    data.seal_data(tmp_path)
    assert verify_folder(tmp_path / "data", threads=1)
    with pytest.raises(BadDataError, match="ends within a number"):
        data.read_data(tmp_path)


def test_a_manifest_that_promises_more_ids_than_the_tokenizer_has(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / f"raw_{split}.bin").write_bytes(b"\x20\x00" * 3000)
    files = [tmp_path / "raw_train.bin", tmp_path / "raw_val.bin"]
    import_shards(files, "byte", out=tmp_path / "data")
    path = tmp_path / "data/manifest.json"
    content = json.loads(path.read_bytes())
    content["tokenizer"]["n_vocab"] = 70_000
    path.write_text(json.dumps(content))
    with pytest.raises(BadDataError):
        DataFolder.open(tmp_path / "data")
    data.seal_manifest(path, content)
    with pytest.raises(BadDataError, match="has 257 ids"):
        DataFolder.open(tmp_path / "data")


def test_a_tensor_that_repeats_four_bytes_for_ever(tmp_path: Path) -> None:
    models.make_nanogpt(tmp_path)
    path = tmp_path / "ckpt.pt"
    content = torch.load(path, weights_only=True)
    content["model"]["transformer.wte.weight"] = torch.zeros(1).expand(10**11, 8)
    torch.save(content, path)
    assert path.stat().st_size < 1e6
    with pytest.raises(BadDataError, match=r"wte\.weight is no dense tensor"):
        nanogpt_ckpt.read(path, byte())


@pytest.mark.parametrize("offsets", [[0, 2**31 - 1], [5, 2], [-7, 3]])
def test_an_arrow_file_whose_texts_lie_elsewhere_in_memory(
    offsets: list[int], tmp_path: Path
) -> None:
    import pyarrow as pa

    path, table = tmp_path / "a.arrow", pa.record_batch([["abcdef"]], ["text"])
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_batch(table)
    written = path.read_bytes()
    at = written.rindex(struct.pack("<2i", 0, 6), 0, written.rindex(b"abcdef"))
    path.write_bytes(written[:at] + struct.pack("<2i", *offsets) + written[at + 8 :])
    with pytest.raises(BadDataError, match="no arrow file, or damaged"):
        list(rows(tmp_path / "a.arrow", "arrow", "text", 0, 1))


def test_a_table_of_nothing_without_end(tmp_path: Path) -> None:
    import pyarrow as pa

    path, most = tmp_path / "a.arrow", 2**31 - 1
    batch = pa.record_batch([pa.nulls(most)], ["text"])
    with pa.ipc.new_stream(str(path), batch.schema) as file:
        file.write_batch(batch)
    written = path.read_bytes()
    assert len(written) < 1000
    assert row_groups(path, "arrow", "text")[0].rows == most
    for length in (most + 1, 2**60, -1):
        path.write_bytes(written.replace(struct.pack("<q", most), struct.pack("<q", length)))
        with pytest.raises(BadDataError, match=r"arrow (claims|is no arrow file).*; get it"):
            row_groups(path, "arrow", "text")


def test_a_parquet_file_with_an_encrypted_column(tmp_path: Path) -> None:
    """Its other columns can be read; pyarrow ends a process that asks for the size of this one."""
    import base64

    import pyarrow as pa
    from pyarrow import parquet
    from pyarrow.parquet import encryption

    class Keys(encryption.KmsClient):
        def wrap_key(self, key: bytes, master: str) -> bytes:
            return base64.b64encode(key)

    path, table = tmp_path / "a.parquet", pa.table({"text": ["a", "b"], "secret": ["c", "d"]})
    properties = encryption.CryptoFactory(lambda _: Keys()).file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration(
            "1", column_keys={"2": ["secret"]}, plaintext_footer=True
        ),
    )
    with parquet.ParquetWriter(path, table.schema, encryption_properties=properties) as file:
        file.write_table(table)
    for column in ("text", "secret"):
        [group] = row_groups(path, "parquet", column)
        assert (group.rows, group.bytes > 0) == (2, True)
    assert list(rows(path, "parquet", "text", 0, 1)) == ["a", "b"]
    with pytest.raises(BadDataError, match="no parquet file, or damaged"):
        list(rows(path, "parquet", "secret", 0, 1))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_bomb_of_a_compressed_text_is_read_in_pieces(ending: str, tmp_path: Path) -> None:
    import gzip

    import zstandard

    size, zeros = 64 << 20, bytes(64 << 20)
    pack = gzip.compress if ending == ".gz" else zstandard.compress
    for name in (f"a.txt{ending}", f"a.jsonl{ending}"):
        (tmp_path / name).write_bytes(pack(zeros) + pack(b"x"))
        assert (tmp_path / name).stat().st_size < size / 900
    text = TextPart(tmp_path / f"a.txt{ending}", ending, 0, 0, "strict")
    lengths = [len(chunk) for chunk in text]
    assert sum(lengths) == size + 1
    assert max(lengths) <= 1 << 20
    lines = Part(tmp_path / f"a.jsonl{ending}", Format("lines", ending), 0, 0, "text", "strict")
    with pytest.raises(BadDataError, match="longer than"):
        list(lines.documents())


def test_a_hard_link_in_a_sealed_folder_is_as_good_as_its_bytes(tmp_path: Path) -> None:
    """What lies behind a name cannot be told from a copy: the sha256 decides."""
    models.make_checkpoint(tmp_path)
    (step,) = storage.list_steps(tmp_path / "run/checkpoints")
    outside = tmp_path / "outside"
    outside.write_bytes((step / "state.json").read_bytes())
    (step / "state.json").unlink()
    (step / "state.json").hardlink_to(outside)
    assert not storage.verify(step)
    outside.write_bytes(b"{}")
    assert storage.verify(step)


def test_the_tests_that_the_page_of_threats_names_are_there() -> None:
    page = (CLONE / "docs/explanations/threats.md").read_text()
    names = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert len(names) > 10
    assert not {name for name in names if not (CLONE / name).is_file()}


def test_a_header_of_safetensors_that_claims_ten_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 10 * 10**9) + b"{}")
    with pytest.raises(BadDataError):
        index([path])


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", 'W/"../x"', "a\0b", "..", '"/root/.bashrc"']
)
def test_a_hub_cannot_choose_where_its_files_go(name: str) -> None:
    """The client's library makes a file's name of each of these headers."""
    for header in ("etag", "x-linked-etag", "x-repo-commit"):
        with pytest.raises(HubUnavailableError, match="answers with a path"):
            _refuse_paths({header: name}, "hub")


@pytest.mark.parametrize("commit", ["/etc/x", "../../x", "main", "f" * 39, "", None, ["f" * 40]])
def test_a_hub_cannot_choose_it_by_the_name_of_a_commit_either(
    commit: object, tmp_path: Path
) -> None:
    """The library writes refs/NAME and snapshots/NAME/ in its cache."""
    runs.make_answers(tmp_path)
    about = json.loads((tmp_path / "info.json").read_text())
    (tmp_path / "info.json").write_text(json.dumps({**about, "sha": commit}))
    before = {path.name for path in tmp_path.iterdir()}
    with (
        runs.answering(tmp_path),
        pytest.raises(HubUnavailableError, match="answers with a commit that is none"),
        retrying(RetryPolicy()),
    ):
        init_from._fetched("a/b", True)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_usual_answers_of_a_hub_pass() -> None:
    for etag in ('"d41d8cd98f-12"', 'W/"0815"', "a" * 64, "", "ab/cd+ef=="):
        _refuse_paths({"etag": etag, "x-repo-commit": "f" * 40}, "hub")


def test_a_line_without_an_end_is_not_held_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(json_lines, "MOST_BYTES", 2 * json_lines.BLOCK)
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(5 * json_lines.BLOCK)
        file.seek(0, 2)
        file.write(b'\n{"step": 1}\n')
    assert JsonLines(path).read() == [{"step": 1}]


def test_a_pattern_that_is_none_or_takes_for_ever() -> None:
    bytes_ = [bytes([i]) for i in range(256)]
    for pattern in ("(", r"\p{Nothing}"):
        with pytest.raises(BadDataError, match="its pattern is no regular expression"):
            Tokenizer("odd", "bpe", bytes_, pattern)
    slow = Tokenizer("odd", "bpe", bytes_, r"(?:(?=(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5~{9}))x|.")
    with pytest.raises(BadDataError, match="takes for ever"):
        slow.probe()
    with pytest.raises(BadDataError, match="cut the document or leave it out"):
        slow.encode("To be, or not to be, that is the question. " * 3)


def test_a_panic_of_the_library_is_an_error_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from nanogpt_dist.tokenizer import hf_library, loading

    class PanicException(BaseException):
        pass

    class Library:
        def __getattr__(self, name: str) -> Any:
            raise PanicException("range end index 5 out of range")

    models.make_hf_tokenizers(tmp_path)
    monkeypatch.setattr(hf_library, "read_by_library", lambda content: Library())
    with pytest.raises(BadDataError):
        loading.open_tokenizer(str(tmp_path / "hf/library.json"))
