"""An address or a token that no request to the hub can use is an error of one line."""

import pytest

from nanogpt_dist import hub
from nanogpt_dist.errors import UsageError


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
