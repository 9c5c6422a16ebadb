"""How long requests to the hub are retried."""

import threading

import pytest

from nanogpt_dist import hub_retries
from nanogpt_dist.errors import HubUnavailableError


def test_a_hub_that_has_never_answered_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_retries, "_answered", threading.Event())
    monkeypatch.setattr(hub_retries, "UNHEARD_S", 0.3)
    retries = hub_retries.Retries("huggingface.co")

    def wait() -> None:
        for _ in range(9):
            retries.wait("Name or service not known")

    with pytest.raises(HubUnavailableError, match="it never answered; check the network; offline"):
        wait()


def test_what_comes_through_ends_a_row_of_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_retries._answered.set()
    clock = iter([0, 200, 400, 699, 701])  # seconds; something comes through after the second fault
    monkeypatch.setattr(hub_retries, "FIRST_WAIT_S", 0)
    monkeypatch.setattr(hub_retries.time, "monotonic", lambda: next(clock))
    retries = hub_retries.Retries("hub")
    retries.wait("HTTP 500")
    retries.wait("HTTP 500")
    retries.reset()
    retries.wait("reset")
    retries.wait("HTTP 500")
    with pytest.raises(
        HubUnavailableError, match=r"^hub unavailable for 5 min \(HTTP 500, hub\); run the same"
    ):
        retries.wait("HTTP 500")
