"""A server that wants to be left alone for hours: waited for, or the end of a run, as wished."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.sources.collecting import FaultyFlickr, collect_here, files_of, ledger_of, some_shots
from tests.sources.flickr_server import KEY
from tests.sources.stand_in import too_many_requests

HOUR_S = 3600.0
SHOTS = some_shots(60)


@dataclass
class Clock:
    """The clock of requests: a wait of minutes passes at once, and is noted."""

    slept_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return time.monotonic() + self.slept_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made, really = Clock(), asyncio.sleep

    async def sleep(seconds: float, result: Any = None) -> Any:
        if seconds < 60:
            return await really(seconds, result)
        begun = made.monotonic()
        made.waits_s.append(seconds)
        # Others that wait at the same time wait for the same hours.
        await really(0.01)
        made.slept_s += max(0.0, begun + seconds - made.monotonic())
        return result

    monkeypatch.setenv("FLICKR_API_KEY", KEY)
    monkeypatch.setattr("geopak.sources.downloads.os.fsync", lambda handle: None)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    for module in ("http", "pace"):
        shown = SimpleNamespace(monotonic=made.monotonic)
        monkeypatch.setattr(f"geopak.sources.{module}.time", shown)
    return made


@pytest.mark.parametrize("what", ["/services/", "/pictures/"])
@pytest.mark.parametrize("hours", [2.0, pytest.param(24.0, marks=pytest.mark.slow)])
def test_hours_are_waited_for(clock: Clock, tmp_path: Path, what: str, hours: float) -> None:
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    with FaultyFlickr(SHOTS) as server:
        collect_here(server, calm)
        server.forget()
        asked_s: list[float] = []

        def refuse(request: Any) -> Any:
            asked_s.append(clock.monotonic())
            return too_many_requests(hours * HOUR_S) if len(asked_s) == 1 else None

        server.faults.add(refuse, when=what, times=None)
        ended = collect_here(server, shaken, on_quota="wait", concurrency=1, downloads=1)
        # Nothing goes to the server before it may.
        assert asked_s[1] - asked_s[0] >= hours * HOUR_S
        # And nothing waits for much longer than was asked for.
        assert clock.slept_s < 1.01 * hours * HOUR_S
    assert ended.quota_spent is None
    assert ledger_of(shaken) == ledger_of(calm)
    assert files_of(shaken) == files_of(calm)


@pytest.mark.parametrize(
    ("on_quota", "hours"), [("stop", 2.0), ("wait", 49.0)], ids=["two hours", "more than two days"]
)
@pytest.mark.parametrize("what", ["/services/", "/pictures/"])
def test_what_is_not_waited_for_ends_the_run_and_costs_nothing(
    clock: Clock, tmp_path: Path, what: str, on_quota: str, hours: float
) -> None:
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    with FaultyFlickr(SHOTS) as server:
        collect_here(server, calm)
        server.forget()
        server.faults.add(too_many_requests(hours * HOUR_S), when=what, times=None)
        ended = collect_here(server, shaken, on_quota=on_quota, concurrency=1, downloads=1)
        assert ended.quota_spent is not None
        assert "is used up until 20" in ended.quota_spent
        assert not clock.waits_s
        assert len(server.asked(what)) == 1
        server.faults.clear()
        assert collect_here(server, shaken, on_quota=on_quota).quota_spent is None
    assert ledger_of(shaken) == ledger_of(calm)
    assert files_of(shaken) == files_of(calm)
