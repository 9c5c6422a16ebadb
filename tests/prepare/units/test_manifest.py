"""What a finished folder tells, and what to do where nothing or half of it came out."""

from pathlib import Path
from typing import Any

import pytest

from nanogpt_dist.errors import BadDataError, CannotCreateError
from tests.conftest import build, write_jsonl

END = "<|endoftext|>"


@pytest.mark.parametrize(
    ("names", "options", "advice"),
    [
        (["a.txt"], {}, "for a single text type --split-by characters"),
        (["a.md"], {}, "for a single text type --split-by characters"),
        (["a.jsonl"], {}, r"give it as one \.txt, which is cut in two"),
        (["a.txt", "empty.txt"], {}, r"give it as one \.txt, which is cut in two"),
        (["a.txt"], {"max_documents": 5}, "a part of it is not taken: leave limits and --mix out"),
        (["a.jsonl"], {"max_tokens": 99}, "a part of it is not taken: leave limits and --mix out"),
    ],
)
def test_the_advice_for_one_document_fits(
    names: list[str],
    options: dict[str, int],
    advice: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "a.md").write_text("some text")
    write_jsonl(tmp_path / "a.jsonl", ["some text"])
    with pytest.raises(BadDataError, match=rf"^the val split got none of 1 documents; .*{advice}"):
        build(
            "text",
            tmp_path / "out",
            [tmp_path / name for name in names],
            tokenizer="byte",
            split_by="documents",
            **options,
        )


def test_the_advice_for_a_split_that_got_nothing_fits(tmp_path: Path) -> None:
    two = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    one = tmp_path / "a.txt"
    one.write_text("x")  # of a single character cut in two train gets none
    for source, options, message in (
        (two, {"val_fraction": 1e-9}, r"the val split got none of 2 .* raise --val-fraction \(now"),
        (
            two,
            {"val_fraction": 1 - 1e-9},
            r"the train split got none of 2 documents; lower --val-fraction \(now 1\), or add text",
        ),
        (one, {}, r"the train split got none of 1 documents; lower --val-fraction \(now 0\.1\)"),
    ):
        with pytest.raises(BadDataError, match=message):
            build("text", tmp_path / "out", [source], tokenizer="byte", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["", ""], {}, r"there is no text in the sources \(2 empty documents\)"),
        (["", ""], {"max_documents": 5}, r"there is no text in the sources \(2 empty documents\)"),
        (["word"] * 9, {"max_tokens": 4}, "no document fits into --max-tokens 4; give more"),
        ([None, None], {"errors": "skip"}, r"every document was skipped \(2\); --errors strict"),
        (["", None], {"errors": "skip"}, r"every document was skipped \(1\); --errors strict"),
    ],
)
def test_why_there_is_nothing_is_told(
    texts: list[Any],
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(BadDataError, match=message):
        build("text", tmp_path / "out", [source], tokenizer="byte", **options)
    assert not (tmp_path / "out").exists()


def test_a_part_of_a_mix_without_text_is_told(tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "good.jsonl", ["one", "two"])
    none = write_jsonl(tmp_path / "none.jsonl", ["", ""])
    with pytest.raises(BadDataError, match="a part of the mix has no text, so nothing can be"):
        build("text", tmp_path / "out", mix=f"{good}=0.5,{none}=0.5", tokenizer="byte")


@pytest.mark.parametrize("spec", ["byte", "char"])
@pytest.mark.parametrize("eot", ["append", "prepend"])
def test_the_manifest_tells_what_is_in_the_folder(spec: str, eot: str, tmp_path: Path) -> None:
    texts = [f"document {n}" for n in range(40)] + [END, f"é{END}", "", "", ""]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    with source.open("ab") as file:
        file.write(b'{"text": "caf\xe9"}\n' * 2)
    out = tmp_path / "out"
    options = {"tokenizer": spec, "eot": eot, "errors": "replace", "val_fraction": 0.3}
    manifest = build("text", out, [source], max_documents=10**6, **options)  # type: ignore[arg-type]
    real = [text for text in texts if text] + ["caf\ufffd"] * 2
    ends = len(real) * (spec == "byte")
    bytes_ = sum(len(text.encode()) for text in real)
    splits = manifest.splits.values()
    assert sum(split.documents for split in splits) == len(real)
    assert sum(split.bytes for split in splits) == bytes_
    assert sum(split.tokens for split in splits) == ends + (
        bytes_ if spec == "byte" else sum(map(len, real))
    )
    counts = manifest.counts
    assert (counts.empty, counts.replaced, counts.skipped, counts.special) == (3, 2, 0, 2)
    [corpus] = manifest.sources
    assert corpus.documents == len(real)
    assert corpus.tokens == sum(split.tokens for split in splits)
    assert (manifest.tokenizer.spec, manifest.errors) == (spec, "replace")
    assert (manifest.max_documents, manifest.max_tokens) == (10**6, None)
    assert manifest.eot == (eot if spec == "byte" else None)
    # and the same folder is taken for what it is, also where the tokenizer is made of the text
    assert build("text", out, [source], max_documents=10**6, **options) == manifest  # type: ignore[arg-type]
    for name, other in (("eot", "append" if eot == "prepend" else "prepend"), ("errors", "skip")):
        if name == "errors" or spec == "byte":
            changed: dict[str, Any] = {**options, name: other}
            with pytest.raises(CannotCreateError, match=f"--{name} .*, not {other}"):
                build("text", out, [source], max_documents=10**6, **changed)
    for limits, message in (({"max_documents": 5}, "--max-documents"), ({}, "--max-documents")):
        with pytest.raises(CannotCreateError, match=message):
            build("text", out, [source], **{**options, **limits})  # type: ignore[arg-type]
