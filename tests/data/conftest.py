"""Files to examine, and a note of which were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """120 files, some with equal content, and one that is missing."""
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(120):
        (folder / f"{i}.bin").write_bytes(b"%d" % (i % 50) * (i % 13))
    return [str(folder / f"{i}.bin") for i in range(120)] + [str(folder / "missing.bin")]


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[str]]:
    """Items examined since the last look, in order; noted in ``calls``."""
    path = tmp_path / "calls"

    def since() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return since
