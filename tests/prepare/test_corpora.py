"""The catalogue, and other repositories of the hub."""

import pytest

from nanogpt_dist.errors import UsageError
from prepare.corpora import CORPORA, find, from_hub, repository


def test_a_name_that_is_almost_right_gets_the_nearest_one() -> None:
    assert find("shakespeare") is CORPORA["shakespeare"]
    with pytest.raises(UsageError, match="did you mean tinystories"):
        find("tinystory")


@pytest.mark.parametrize("repo", ["texts", "ada/", "/texts", "ada/texts/more", "a b/c", "-a/b"])
def test_what_is_no_name_of_a_repository_is_refused(repo: str) -> None:
    with pytest.raises(UsageError, match="OWNER/NAME"):
        repository(repo)


def test_each_part_of_a_repository_has_a_name_of_its_own() -> None:
    texts = repository("ada/texts.v2")
    assert from_hub(texts, None, None, None).name == "texts-v2"
    assert from_hub(texts, "en", "train", None).name == "texts-v2-en"
    assert from_hub(texts, "en", "test", None).name == "texts-v2-en-test"
    assert from_hub(CORPORA["c4-en"], None, "validation", None).name == "c4-en"


def test_a_corpus_from_elsewhere_has_no_revision() -> None:
    with pytest.raises(UsageError, match="--revision is for corpora of the hub"):
        from_hub(CORPORA["python-stdlib"], None, None, "main")
