"""How distances are worded."""

from __future__ import annotations

from geopak.report.wording import format_km


def test_distances_are_written_with_useful_digits() -> None:
    written = [format_km(km) for km in (0, 0.4219, 0.996, 3.14, 9.96, 57.2, 1204.4)]
    assert written == ["0.00", "0.42", "1.0", "3.1", "10", "57", "1,204"]
