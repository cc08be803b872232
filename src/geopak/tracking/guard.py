"""Calls into W&B, none of which may end a training or hold it up for long."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)

# Ending what already failed.
_LAST_WORDS_S = 10.0


class StuckError(TimeoutError):
    """A call that did not come back within its time."""


def within(limit_s: float, function: Callable[[], T]) -> T:
    """What a function returns, or raises; waited for in a thread that nothing else waits for.

    Args:
        limit_s: seconds to wait.
        function: goes on running, unheard, where the time runs out.

    Raises:
        StuckError: it has not come back.
    """
    result: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="wandb-call", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise StuckError(f"no answer within {limit_s:g} s")
    if raised:
        raise raised[0]
    return result[0]


class Guard:
    """Makes calls until one fails; from then on none is made, and that is said once.

    Attributes:
        failed: whether one did.

    Args:
        limit_s: of a call that names none.
        when_failed: called once, to end what can still be ended; may fail as well.
    """

    def __init__(self, limit_s: float, when_failed: Callable[[], object]) -> None:
        self.failed = False
        self._limit_s = limit_s
        self._when_failed = when_failed

    def call(self, what: str, function: Callable[[], T], limit_s: float | None = None) -> T | None:
        """What the function returns; ``None`` where it, or a call before it, failed.

        Args:
            what: it does, for the warning.
            function: takes no arguments.
            limit_s: seconds; a call that takes longer has failed.
        """
        if self.failed:
            return None
        try:
            return within(self._limit_s if limit_s is None else limit_s, function)
        except Exception as error:
            self.fail(what, error)
            return None

    def attempt(self, what: str, function: Callable[[], T]) -> T | None:
        """As :meth:`call`, for what the rest can do without: other calls are made after it."""
        if self.failed:
            return None
        try:
            return within(self._limit_s, function)
        except Exception as error:
            log.warning("W&B goes without %s: %s", what, _in_words(error))
        return None

    def fail(self, what: str, error: Exception) -> None:
        """Warns, and makes no more calls."""
        self.failed = True
        log.warning(
            "W&B failed at %s: %s. The training goes on and writes its CSV log; W&B gets nothing "
            "more of this run.",
            what,
            _in_words(error),
        )
        try:
            if isinstance(error, StuckError):
                raise error
            within(_LAST_WORDS_S, self._when_failed)
        except Exception:
            stop_service()


def stop_service() -> None:
    """Ends W&B's service process, so that nothing waits for it at exit and the next starts anew."""
    import wandb
    from wandb.sdk.wandb_setup import singleton

    process: object = singleton()
    # W&B has no public way to its process. One that somebody else started has no such attribute.
    for name in ("_connection", "_proc", "_process"):
        process = getattr(process, name, None)
    if isinstance(process, subprocess.Popen):
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LAST_WORDS_S)
    # Raises, since the process is gone, but forgets it first.
    with contextlib.suppress(Exception):
        within(_LAST_WORDS_S, wandb.teardown)


def _in_words(error: Exception) -> str:
    first_line = (str(error).strip() or "no reason given").splitlines()[0]
    return f"{type(error).__name__}: {first_line}"
