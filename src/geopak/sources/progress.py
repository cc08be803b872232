"""How far a collection is: a table that is drawn anew on a terminal, lines of a log elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from geopak.sources.ledger import Ledger, Tally
from geopak.sources.quota import DailyQuota

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

log = logging.getLogger(__name__)

# Rates are those of so long.
_WINDOW_S = 600.0


def duration(seconds: float | None) -> str:
    """A duration in words short enough for a column."""
    if seconds is None:
        return "–"
    minutes = int(seconds // 60)
    if minutes < 1:
        return "< 1 min"
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes / 60
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


class Progress:
    """Shows a collection's numbers while it runs.

    Args:
        ledger: that the numbers are in.
        source: that is asked.
        names: display names of the provinces by key.
        targets: photos per province key.
        quota: says whether requests wait for the next day.
        every_s: between two lines of the log.
        console: that is drawn on where it is a terminal; ``None``: standard error.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        ledger: Ledger,
        source: str,
        names: Mapping[str, str],
        targets: Mapping[str, int | None],
        quota: DailyQuota | None = None,
        every_s: float = 30.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._source = source
        self._names = names
        self._targets = targets
        self._quota = quota
        self._every_s = every_s
        self._console = console
        self._clock = clock
        self._past: deque[tuple[float, dict[str, int]]] = deque()
        self._tallies: dict[str | None, Tally] = {}

    def update(self) -> None:
        """Reads the numbers anew."""
        self._tallies = self._ledger.tallies()
        now = self._clock()
        self._past.append((now, {key: self._tally(key).kept for key in self._names}))
        while len(self._past) > 2 and now - self._past[1][0] > _WINDOW_S:
            self._past.popleft()

    def _tally(self, key: str | None) -> Tally:
        return self._tallies.get(key, Tally())

    def rate_per_s(self, key: str) -> float | None:
        """Photos of a province that were kept a second, of late; ``None``: not known yet."""
        if len(self._past) < 2:
            return None
        (then, before), (now, kept) = self._past[0], self._past[-1]
        return max(0, kept[key] - before[key]) / (now - then) if now > then else None

    def seconds_left(self, key: str) -> float | None:
        """Until a province has its photos at the rate of late; ``None``: no one can say."""
        target, rate = self._targets.get(key), self.rate_per_s(key)
        if target is None:
            return None
        missing = target - self._tally(key).kept
        if missing <= 0:
            return 0.0
        return missing / rate if rate else None

    def table(self) -> Table:
        """The numbers as a table."""
        from rich.table import Table

        table = Table(title=self._title(), title_justify="left")
        for name in ("province", "found", "kept", "target", "rejected", "a minute", "left"):
            table.add_column(name, justify="left" if name == "province" else "right")
        for key, name in self._names.items():
            tally, target, rate = self._tally(key), self._targets.get(key), self.rate_per_s(key)
            left = self.seconds_left(key)
            table.add_row(
                name, f"{tally.found:,}", f"{tally.kept:,}",
                "all" if target is None else f"{target:,}", f"{tally.rejected:,}",
                "–" if rate is None else f"{60 * rate:.1f}",
                "done" if left == 0 else duration(left),
            )  # fmt: skip
        outside = self._tally(None).found
        if outside:
            table.add_row("outside", f"{outside:,}", "", "", f"{outside:,}", "", "")
        return table

    def _title(self) -> str:
        queries = self._ledger.query_numbers(self._source)
        text = f"{self._source}: {queries['done']:,} queries answered, {queries['open']:,} open"
        if queries["failed"]:
            text += f", {queries['failed']:,} failed"
        if self._quota is not None and self._quota.waiting_until is not None:
            text += f"; quota used up until {self._quota.waiting_until:%Y-%m-%d %H:%M %Z}"
        return text

    def line(self) -> str:
        """The numbers as a line of a log."""
        parts = []
        for key, name in self._names.items():
            tally, target = self._tally(key), self._targets.get(key)
            if tally.found or target:
                of = "" if target is None else f"/{target:,}"
                parts.append(f"{name} {tally.kept:,}{of}")
        lefts = [self.seconds_left(key) for key in self._names]
        known = [left for left in lefts if left]
        left = f"; {duration(max(known))} left" if known and None not in lefts else ""
        return f"{self._title()}; kept {', '.join(parts) or 'nothing'}{left}"

    async def show(self) -> None:
        """Shows the numbers until it is cancelled."""
        from rich.console import Console
        from rich.live import Live

        console = self._console or Console(stderr=True)
        self.update()
        if not console.is_terminal:
            with contextlib.suppress(asyncio.CancelledError):
                while True:
                    await asyncio.sleep(self._every_s)
                    self.update()
                    log.info("%s", self.line())
            return
        with (
            Live(self.table(), console=console, auto_refresh=False) as live,
            contextlib.suppress(asyncio.CancelledError),
        ):
            while True:
                began = time.monotonic()
                self.update()
                live.update(self.table(), refresh=True)
                # A large ledger takes a while to count: not more than a fiftieth of the time.
                await asyncio.sleep(max(1.0, 50 * (time.monotonic() - began)))
