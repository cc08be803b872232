"""So many requests a day, of each kind."""

from __future__ import annotations

import asyncio
import datetime
import logging
import zoneinfo

import pytest

from geopak.errors import QuotaSpentError
from geopak.sources.ledger import Ledger
from geopak.sources.quota import DailyQuota


class Clock:
    """A clock that is set by hand."""

    def __init__(self, *moment: int) -> None:
        self.now = datetime.datetime(*moment, tzinfo=datetime.UTC)  # type: ignore[misc]

    def __call__(self) -> datetime.datetime:
        return self.now


def test_a_day_has_so_many_requests_of_a_kind_and_the_next_as_many(ledger: Ledger) -> None:
    clock = Clock(2024, 5, 6, 23, 59)
    limits = {"search": 3, "media": None}
    quota = DailyQuota(ledger, "maps", limits, "UTC", "stop", clock)

    async def use(kind: str, number: int) -> None:
        for _ in range(number):
            await quota.take(kind)

    asyncio.run(use("search", 3))
    asyncio.run(use("media", 20))
    asyncio.run(use("unknown", 2))
    with pytest.raises(
        QuotaSpentError, match="'search' requests is used up until 2024-05-07 00:00"
    ):
        asyncio.run(use("search", 1))
    # Another process counts on.
    again = DailyQuota(ledger, "maps", limits, "UTC", "stop", clock)
    with pytest.raises(QuotaSpentError):
        asyncio.run(again.take("search"))
    # Another source has its own.
    asyncio.run(DailyQuota(ledger, "other", limits, "UTC", "stop", clock).take("search"))
    clock.now += datetime.timedelta(minutes=2)
    asyncio.run(use("search", 3))
    assert ledger.requests("maps") == {"media": 20, "search": 6, "unknown": 2}


def test_a_day_ends_at_midnight_of_its_zone(ledger: Ledger) -> None:
    clock = Clock(2024, 5, 6, 6, 59)
    quota = DailyQuota(ledger, "maps", {"search": 1}, "America/Los_Angeles", "stop", clock)
    asyncio.run(quota.take("search"))
    with pytest.raises(QuotaSpentError, match="2024-05-06 00:00 PDT"):
        asyncio.run(quota.take("search"))
    clock.now += datetime.timedelta(minutes=1)
    asyncio.run(quota.take("search"))


def test_it_waits_for_the_next_day(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock, slept, waiting = Clock(2024, 5, 6, 23, 57), [], []
    quota = DailyQuota(ledger, "maps", {"search": 1}, "UTC", "wait", clock)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        waiting.append(quota.waiting_until)
        clock.now += datetime.timedelta(seconds=seconds)

    monkeypatch.setattr("geopak.sources.quota.asyncio.sleep", sleep)
    asyncio.run(quota.take("search"))
    asyncio.run(quota.take("search"))
    assert sum(slept) == pytest.approx(180, abs=1)
    assert max(slept) <= 60
    assert waiting[0] == datetime.datetime(2024, 5, 7, tzinfo=zoneinfo.ZoneInfo("UTC"))
    assert quota.waiting_until is None
    assert caplog.text.count("are used up; going on at 2024-05-07 00:00 UTC") == 1


def test_a_quota_of_none_is_not_waited_for(ledger: Ledger) -> None:
    quota = DailyQuota(ledger, "maps", {"media": 0}, "UTC", "wait")
    with pytest.raises(QuotaSpentError):
        asyncio.run(quota.take("media"))
