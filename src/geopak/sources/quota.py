"""The requests of a day: counted before they are sent, and waited for when they are used up."""

from __future__ import annotations

import asyncio
import datetime
import logging
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Literal

from geopak.errors import QuotaSpentError
from geopak.sources.ledger import Ledger

log = logging.getLogger(__name__)

# A machine that was asleep, or a clock that was set, is noticed after so long.
_LONGEST_SLEEP_S = 60.0


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class DailyQuota:
    """Counts a source's requests by kind and day in the ledger.

    Args:
        ledger: that keeps the numbers.
        source: whose requests.
        limits: requests a day by kind; a kind that is missing, or ``None``, has no limit.
        timezone: whose midnight ends a day.
        when_spent: ``wait`` for the next day, or ``stop``.
        now: tells the time, for tests.
    """

    def __init__(
        self,
        ledger: Ledger,
        source: str,
        limits: Mapping[str, int | None],
        timezone: str = "UTC",
        when_spent: Literal["wait", "stop"] = "wait",
        now: Callable[[], datetime.datetime] = _now,
    ) -> None:
        self._ledger = ledger
        self._source = source
        self._limits = dict(limits)
        self._zone = zoneinfo.ZoneInfo(timezone)
        self._when_spent = when_spent
        self._now = now
        self._told: set[tuple[str, datetime.datetime]] = set()
        self._waiting: dict[str, datetime.datetime] = {}

    async def take(self, kind: str) -> None:
        """Counts a request that is about to be sent.

        Raises:
            QuotaSpentError: the day's are used up, and nothing is waited for.
        """
        while True:
            now = self._now().astimezone(self._zone)
            limit = self._limits.get(kind)
            if self._ledger.count_request(self._source, kind, now.date().isoformat(), limit):
                return
            midnight = datetime.datetime.combine(
                now.date() + datetime.timedelta(days=1), datetime.time(), self._zone
            )
            if limit == 0 or self._when_spent == "stop":
                raise QuotaSpentError(kind, f"{midnight:%Y-%m-%d %H:%M %Z}")
            # Several wait at once, each many times.
            if (kind, midnight) not in self._told:
                self._told.add((kind, midnight))
                log.info(
                    "The %s %r requests of today are used up; going on at %s.",
                    f"{limit:,}", kind, f"{midnight:%Y-%m-%d %H:%M %Z}",
                )  # fmt: skip
            self._waiting[kind] = midnight
            try:
                left = (midnight - self._now()).total_seconds()
                await asyncio.sleep(min(_LONGEST_SLEEP_S, max(left, 0.05)))
            finally:
                self._waiting.pop(kind, None)

    @property
    def waiting_until(self) -> datetime.datetime | None:
        """Until when requests wait; ``None``: they do not."""
        return max(self._waiting.values(), default=None)
