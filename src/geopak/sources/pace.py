"""Requests go at even intervals."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """Lets requests go at even intervals, at most ``rate_per_s``; a late one is not caught up.

    Over any stretch of ``t`` seconds at most ``1 + t · rate`` requests go, plus what half an
    interval of lateness allows.

    Args:
        rate_per_s: requests a second.
    """

    def __init__(self, rate_per_s: float) -> None:
        self._interval = 1 / rate_per_s
        self._next = 0.0
        self._not_before = 0.0

    async def turn(self) -> None:
        """Returns when it is this request's turn."""
        while True:
            now = time.monotonic()
            # Timers wake late; without this slack every interval would be a little longer.
            slot = max(self._next, now - self._interval / 2)
            if self._not_before > max(slot, now):
                await asyncio.sleep(self._not_before - now)
                continue
            self._next = slot + self._interval
            break
        if slot > now:
            await asyncio.sleep(slot - now)

    def hold(self, seconds: float) -> None:
        """Lets nothing go for so long."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)
