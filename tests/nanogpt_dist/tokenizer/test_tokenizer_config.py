"""Files beside a tokenizer of Hugging Face's: its ends of text, more tokens, and vocab.json with
merges.txt.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.interop import hf_tokenizer
from nanogpt_dist.tokenizer import Tokenizer, bpe
from nanogpt_dist.tokenizer.hf_library import LibraryTokenizer
from nanogpt_dist.tokenizer.loading import open_tokenizer

TEXTS = [
    "the [MOL] cat sat  on 1234 mats,\n\tthe cafe\u0301 is near.",
    "self.tokens  <think> [MOL][MOL]x",
]
CORPUS = [
    path.read_text(encoding="utf-8") for path in sorted(Path(bpe.__file__).parents[1].glob("*.py"))
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return tokenizers.train_bpe(CORPUS, 600)


def two_files(folder: Path, trained: Tokenizer, **files: Any) -> Path:
    """vocab.json and merges.txt alone, and what is given beside them."""
    folder.mkdir()
    hf_tokenizer.write(folder, trained, 1024)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_two_files_are_the_tokenizer_json_of_them(trained: Tokenizer, tmp_path: Path) -> None:
    folder = two_files(tmp_path / "a", trained)
    assert hf_tokenizer.load_folder(folder).fingerprint == trained.fingerprint
    assert open_tokenizer(str(folder / "vocab.json")).fingerprint == trained.fingerprint


def test_added_tokens_beside_two_files_are_found_in_text(
    trained: Tokenizer,
    tmp_path: Path,
) -> None:
    transformers = pytest.importorskip("transformers")
    special = {"eos_token": "<stop>", "additional_special_tokens": ["<think>"]}
    folder = two_files(
        tmp_path / "a",
        trained,
        added_tokens={"<stop>": 600, "[MOL]": 601, "<think>": 602},
        special_tokens_map=special,
    )
    ours = hf_tokenizer.load_folder(folder)
    assert (ours.eot_id, ours.n_vocab) == (600, 603)
    assert ours.specials == {"<|endoftext|>": 599, "<stop>": 600, "<think>": 602}
    theirs = transformers.GPT2Tokenizer.from_pretrained(folder)
    for text in TEXTS:
        plain = text.replace("<think>", "think")
        assert ours.encode(plain).tolist() == theirs(plain, add_special_tokens=False).input_ids


def test_qwens_two_files_have_its_pattern_and_nfc(trained: Tokenizer, tmp_path: Path) -> None:
    folder = two_files(
        tmp_path / "a", trained, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"}
    )
    ours = hf_tokenizer.load_folder(folder)
    assert isinstance(ours, LibraryTokenizer)
    assert ours.encode("e\u0301").tolist() == ours.encode("\u00e9").tolist()
    assert len(ours.encode("12")) == 2


def test_two_files_of_another_class_are_refused(trained: Tokenizer, tmp_path: Path) -> None:
    folder = two_files(
        tmp_path / "a", trained, tokenizer_config={"tokenizer_class": "CLIPTokenizer"}
    )
    with pytest.raises(BadDataError, match=r"of CLIPTokenizer are not read; give tokenizer\.json"):
        hf_tokenizer.load_folder(folder)


@pytest.mark.parametrize("content", [[], "x", {"a": 1}, {"<|endoftext|>": "x"}])
def test_two_files_that_are_damaged_are_told(
    trained: Tokenizer,
    tmp_path: Path,
    content: Any,
) -> None:
    folder = two_files(tmp_path / "a", trained, vocab=content)
    with pytest.raises(BadDataError):
        hf_tokenizer.load_folder(folder)


def with_configuration(folder: Path, trained: Tokenizer, **files: Any) -> Tokenizer:
    specials = {"<|endoftext|>": 599, "<|im_end|>": 600, "<|eot|>": 601}
    folder.mkdir()
    hf_tokenizer.write(folder, Tokenizer("x", "bpe", trained.tokens, None, specials), 1024)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return hf_tokenizer.load_folder(folder)


def test_a_sample_stops_at_each_of_several_ends(trained: Tokenizer, tmp_path: Path) -> None:
    about = {"eos_token": {"content": "<|im_end|>"}}
    ours = with_configuration(
        tmp_path / "a",
        trained,
        generation_config={"eos_token_id": [599, 600]},
        tokenizer_config=about,
    )
    assert (ours.eot_id, ours.stops, ours.stop_ids) == (600, ["<|endoftext|>"], {599, 600})
    ours.save(tmp_path / "t.json")
    assert tokenizers.load(tmp_path / "t.json").stop_ids == {599, 600}
    hf_tokenizer.write(tmp_path / "a", ours, 1024)
    assert hf_tokenizer.load_folder(tmp_path / "a").stop_ids == {599, 600}


def test_one_end_leaves_the_file_as_it_was(trained: Tokenizer, tmp_path: Path) -> None:
    ours = with_configuration(tmp_path / "a", trained, generation_config={"eos_token_id": 599})
    assert ours.stop_ids == {599}
    assert b'"stops"' not in ours.to_json()


def test_tokens_that_only_the_configuration_adds_are_taken(
    trained: Tokenizer,
    tmp_path: Path,
) -> None:
    transformers = pytest.importorskip("transformers")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "added_tokens_decoder": {"602": {"content": "[MOL]", **flags}},
    }
    ours = with_configuration(tmp_path / "a", trained, tokenizer_config=about)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    for text in TEXTS:
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False).input_ids
    assert 602 in ours.encode("[MOL]")


def test_what_the_library_encodes_is_exported_and_read_back(
    trained: Tokenizer,
    tmp_path: Path,
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = two_files(tmp_path / "a", trained, added_tokens={"[MOL]": 600})
    ours = hf_tokenizer.load_folder(folder)
    (tmp_path / "b").mkdir()
    hf_tokenizer.write(tmp_path / "b", ours, 1024)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    for text in TEXTS:
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False).input_ids
    assert hf_tokenizer.load_folder(tmp_path / "b").fingerprint == ours.fingerprint


@pytest.mark.parametrize("number", ["٦٠٢", "-1", "x", "", "６０２"])
def test_an_id_in_other_digits_is_none(number: str, trained: Tokenizer, tmp_path: Path) -> None:
    about = {"added_tokens_decoder": {number: {"content": "[MOL]", "special": True}}}
    with pytest.raises(BadDataError, match="is no id; write ids in the digits 0 to 9"):
        with_configuration(tmp_path / "a", trained, tokenizer_config=about)
