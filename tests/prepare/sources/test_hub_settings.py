"""What the environment says of the hub, and a machine without a network: told in a line, and
soon.
"""

import threading
from pathlib import Path

import pytest

from nanogpt_dist import hub
from nanogpt_dist.errors import BadDataError, HubUnavailableError, UsageError
from tests.conftest import build, write_jsonl


@pytest.mark.parametrize("token", ["hf_ü", "hf_x y", "hf_x\ny"])
def test_a_token_that_no_header_can_carry_is_told_and_not_shown(token: str) -> None:
    with pytest.raises(UsageError, match="set HF_TOKEN anew") as refused:
        hub._refuse_token(token)
    assert token not in str(refused.value)


@pytest.mark.parametrize(
    "endpoint",
    ["", "nonsense", "http://", "ftp://x", "http://x:99999", "http://[x", "http://ü", "http://a b"],
)
def test_an_address_that_is_none_is_told(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UsageError, match="is no address; type: unset HF_ENDPOINT"):
        hub.hub_library()


def test_a_hub_that_has_never_answered_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "_answered", threading.Event())
    monkeypatch.setattr(hub, "UNHEARD_S", 0.3)
    faults = hub.Faults("huggingface.co")

    def wait() -> None:
        for _ in range(9):
            faults.bear("Name or service not known")

    with pytest.raises(HubUnavailableError, match="it never answered; check the network; offline"):
        wait()


def test_the_advice_for_one_document_can_be_followed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "one.jsonl", ["hello world " * 9])
    with pytest.raises(BadDataError, match=r"give it as one \.txt, which is cut in two"):
        build("text", tmp_path / "out", [source], tokenizer="byte")
    text = tmp_path / "one.txt"
    text.write_text("hello world " * 9)
    assert build("text", tmp_path / "out", [text], tokenizer="byte").splits["val"].tokens
    with pytest.raises(BadDataError, match="split-by characters"):
        build("text", tmp_path / "o2", [text], tokenizer="byte", split_by="documents")
    assert (
        build("text", tmp_path / "o2", [text], tokenizer="byte", split_by="characters")
        .splits["val"]
        .tokens
    )
