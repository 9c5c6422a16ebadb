"""What the options ask for: one corpus or a mix, and where it goes without --out."""

from pathlib import Path

import pytest

from nanogpt_dist.errors import UsageError
from prepare.options import PrepareConfig
from prepare.request import output_folder, parse_mix, requested_corpora


def test_a_mix_names_corpora_repositories_and_paths(tmp_path: Path) -> None:
    folder = tmp_path / "my texts"
    folder.mkdir()
    mix = f"python-stdlib=0.5,hf:ada/texts=0.3,{folder}=0.2"
    requests = requested_corpora(PrepareConfig(mix=mix))
    assert [(one.corpus.name, one.corpus.origin, one.weight) for one in requests] == [
        ("python-stdlib", "stdlib", 0.5),
        ("texts", "hub", 0.3),
        ("my-texts", "files", 0.2),
    ]
    assert requests[2].sources == (folder,)


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({"corpus": "shakespeare"}, "data/shakespeare"),
        ({"corpus": "hf", "repo": "ada/texts", "config": "en"}, "data/texts-en"),
        ({"mix": "a=0.5,b=0.5"}, "data/mix"),
        ({"corpus": "text", "out": Path("mine")}, "mine"),
    ],
)
def test_the_folder_is_named_after_the_corpus(given: dict[str, str], folder: str) -> None:
    assert output_folder(PrepareConfig(**given)) == Path(folder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("a=0.7", "two corpora or more"),
        ("a=0.7,b=0.4", "add up to 1"),
        ("a,b", "NAME=PART"),
        ("a=1.5,b=-0.5", "NAME=PART"),
        ("a=0.5,a=0.5", "NAME=PART"),
        ("a=nan,b=0.5", "NAME=PART"),
        ("", "NAME=PART"),
    ],
)
def test_weights_that_make_no_sense(mix: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_mix(mix)
