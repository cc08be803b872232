"""Pictures on their way to the collector."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from geopak.sources.picture_store import PictureStore


def test_pictures_on_their_way_do_not_fill_the_disk(tmp_path):
    store = PictureStore(tmp_path, most_mb=0.01)
    parts = [f"part {k}" for k in range(PictureStore._FEWEST + 20)]
    for part in parts:
        store.one(part, lambda: iter([(0, b"x" * 1000), (1, b"y" * 1000)]), 1)
    kept = list((tmp_path / "pictures").iterdir())
    assert len(kept) == PictureStore._FEWEST
    # What was thrown away is made again.
    url = store.one(parts[0], lambda: iter([(0, b"again")]), 0)
    assert Path(urlsplit(url).path).read_bytes() == b"again"
    with pytest.raises(OSError, match="broken"):
        store.one("new", lambda: (_ for _ in ()).throw(OSError("broken")), 0)
    assert not list(tmp_path.rglob("*.new"))
