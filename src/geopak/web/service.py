"""One model for many visitors: their requests wait in one line, of bounded length and time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from geopak.errors import GeopakError
from geopak.web.photos import Limits

T = TypeVar("T")
# Work calls it now and then; it raises where nobody waits for the result any more.
Proceed = Callable[[], None]


class BusyError(GeopakError):
    """Too many wait already."""


class TooSlowError(GeopakError):
    """The answer was not there in time."""


class Service:
    """Runs work on the model, one piece after another.

    Args:
        limits: on how many may wait, and how long.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(1, "model")
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = threading.Event()

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """The result of ``work(proceed, *arguments)``.

        Args:
            work: it calls ``proceed()`` between its parts, which ends it once it is late.
            arguments: further ones.

        Raises:
            BusyError: too many wait.
            TooSlowError: it took longer than allowed, waiting included. Work that has not begun is
                dropped, other work ends with the part it is at.
        """
        with self._lock:
            if self._waiting >= self._limits.max_waiting:
                raise BusyError("Too many photos are waiting. Please try again in a minute.")
            self._waiting += 1
        late = threading.Event()
        slow = TooSlowError(
            f"The answer took longer than {self._limits.timeout_s:g} seconds. Please try again."
        )

        def proceed() -> None:
            if late.is_set() or self._closed.is_set():
                raise slow

        job = self._pool.submit(work, proceed, *arguments)
        # What is timed out but at work still takes the model's time, and counts.
        job.add_done_callback(lambda _: self._one_less())
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await asyncio.wrap_future(job)
        except TimeoutError as error:
            raise slow from error
        finally:
            # However the waiting ended: a visitor may be gone too.
            late.set()
            job.cancel()

    def _one_less(self) -> None:
        with self._lock:
            self._waiting -= 1

    def close(self) -> None:
        """Drops all that waits, and ends what is at work."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
