"""Calls that fail, and calls that never come back."""

from __future__ import annotations

import threading
import time

import pytest

from geopak.tracking.guard import Guard, StuckError, within


def test_within_hands_on_what_a_call_returns_and_raises() -> None:
    assert within(5, lambda: 7) == 7
    with pytest.raises(KeyError, match="lost"):
        within(5, lambda: {}["lost"])


def test_a_call_that_hangs_is_waited_for_no_longer_than_its_limit() -> None:
    let_go = threading.Event()
    started = time.monotonic()
    with pytest.raises(StuckError, match=r"within 0\.2 s"):
        within(0.2, let_go.wait)
    assert 0.2 <= time.monotonic() - started < 5
    let_go.set()


def test_after_a_failure_no_call_is_made_and_one_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made: list[str] = []
    guard = Guard(5, when_failed=lambda: made.append("ended"))
    assert guard.call("counting", lambda: 3) == 3

    def fail() -> None:
        raise OSError("disk full\nsecond line")

    assert guard.call("logging", fail) is None
    assert guard.failed
    for _ in range(3):
        assert guard.call("logging", lambda: made.append("call")) is None
        assert guard.attempt("an artifact", lambda: made.append("attempt")) is None
    assert made == ["ended"]
    (warning,) = caplog.messages
    assert "W&B failed at logging: OSError: disk full." in warning
    assert "second line" not in warning


def test_an_attempt_that_fails_leaves_the_rest_alone(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(0.2, when_failed=lambda: pytest.fail("not ended"))
    let_go = threading.Event()
    assert guard.attempt("an artifact", lambda: 1 / 0) is None
    assert guard.attempt("another", let_go.wait) is None
    let_go.set()
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "W&B goes without an artifact",
        "W&B goes without another",
    ]
    assert guard.call("logging", lambda: 4) == 4
