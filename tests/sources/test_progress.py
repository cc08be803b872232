"""What a collection tells while it goes on."""

from __future__ import annotations

import asyncio
import io
import logging
from typing import Any

import pytest
from rich.console import Console

from geopak.sources.ledger import Ledger
from geopak.sources.progress import Progress, duration
from tests.sources.filling import NAMES, fill


def test_progress_tells_rates_and_the_time_that_is_left(ledger: Ledger) -> None:
    now = [0.0]
    progress = Progress(ledger, "made", NAMES, {"north": 100, "south": None}, clock=lambda: now[0])
    fill(ledger, 10, 5)
    progress.update()
    assert progress.rate_per_s("north") is None
    assert progress.seconds_left("north") is None
    fill(ledger, 20)
    now[0] = 40.0
    progress.update()
    assert progress.rate_per_s("north") == 0.5
    assert progress.seconds_left("north") == 70 / 0.5
    assert progress.seconds_left("south") is None
    line = progress.line()
    assert "made: 2 queries answered, 0 open" in line
    assert "The North 30/100" in line
    console = Console(width=120, file=io.StringIO())
    console.print(progress.table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("The North", "35", "30", "100", "30.0", "2 min", "The South", "all"):
        assert part in shown
    # What is long ago does not count.
    now[0] = 5000.0
    progress.update()
    now[0] = 6000.0
    progress.update()
    assert progress.rate_per_s("north") == 0


def test_on_a_terminal_it_is_drawn_elsewhere_it_is_told(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fill(ledger, 3)

    def shown(**how: Any) -> str:
        console = Console(width=100, file=io.StringIO(), **how)
        progress = Progress(ledger, "made", NAMES, {}, every_s=0.01, console=console)

        async def run() -> None:
            task = asyncio.create_task(progress.show())
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(run())
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    assert "The North" in shown(force_terminal=True)
    assert not caplog.records
    assert shown(force_terminal=False) == ""
    assert "kept The North 3" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (5, "< 1 min"), (3000, "50 min"), (7200, "2 h"), (200_000, "2 days")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
