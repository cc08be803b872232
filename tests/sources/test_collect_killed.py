"""A collection that is killed at random moments ends as one that nobody disturbed."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

from tests.sources.collecting import (
    FaultyFlickr,
    collect_here,
    files_of,
    ledger_of,
    some_shots,
    start,
)

CONCURRENCY, DOWNLOADS = 3, 6
COUNT = 500
KILLS = 10
SETTINGS = {
    "targets": "{balochistan:60,punjab:70,sindh:5}", "concurrency": CONCURRENCY,
    "downloads": DOWNLOADS,
}  # fmt: skip


def server() -> FaultyFlickr:
    return FaultyFlickr(some_shots(COUNT), stumbles=True, cap=40, most_per_page=20)


def test_killed_ten_times_at_random_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    rng = random.Random(6)
    # The same one for both: its addresses are in the ledger.
    with server() as disturbed:
        collect_here(disturbed, calm, **SETTINGS)
        in_all = len(disturbed.requests)
        assert in_all > 300
        disturbed.begin_anew()
        survived = 0
        for _ in range(KILLS):
            # So many requests more, and then a moment.
            enough = len(disturbed.requests) + rng.randint(1, in_all // (KILLS + 2))
            process = start(disturbed, shaken, **SETTINGS)
            while process.poll() is None and len(disturbed.requests) < enough:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.02)
            process.kill()
            process.communicate()
            survived += process.returncode == 0
        assert survived == 0, "it ended before it could be killed"
        last = start(disturbed, shaken, **SETTINGS)
        output = last.communicate()[0]
        assert last.returncode == 0, output
    assert ledger_of(shaken) == ledger_of(calm)
    assert files_of(shaken) == files_of(calm)
    # Only what was on its way was asked again, and each was refused once on purpose.
    times = Counter(r.request.target for r in disturbed.requests)
    repeated = sum(n - 2 for target, n in times.items() if "/pictures/" not in target)
    assert repeated <= KILLS * CONCURRENCY
    again = sum(max(0, n - 2) for target, n in times.items() if "/pictures/" in target)
    assert again <= KILLS * DOWNLOADS
