"""Google Places through the whole collector: paid for once, kept with all that is known, no key."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from geopak.errors import SourceError
from geopak.geo.boundaries import Outlines
from geopak.schema.collecting import CollectConfig
from geopak.sources.running import collect, dry_run
from tests.sources.collecting import checked, rows_of, typed
from tests.sources.places_server import KEY, TYPES, PlacesServer, places

# Pakistan's north, where four provinces meet.
BOX = (32.5, 71.5, 35.5, 75.0)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_MAPS_API_KEY", KEY)


def configured(server: PlacesServer, out: Path, **more: Any) -> CollectConfig:
    settings = {
        "source.api": server.url, "source.photo_hosts": "[127.0.0.1]",
        "source.types": f"[{','.join(TYPES[:3])}]", "source.accept_terms": "true",
        "source.start_radius_km": 50, "source.max_photos_per_place": 2, "quota": "{}", **more,
    }  # fmt: skip
    return checked(typed("google_places", out, **settings))


def test_photos_of_places_are_collected_once_and_kept_with_all_that_is_known(
    tmp_path: Path,
) -> None:
    some = places(120, BOX, seed=5)
    with PlacesServer(some) as server:
        config = configured(server, tmp_path)
        told = dry_run(config)
        assert not server.requests
        assert not list(tmp_path.iterdir())
        collect(config)
        requests = Counter(r.path.rpartition(":")[2].rpartition("/")[2] for r in server.requests)
        media = [r.path.split("x")[0] for r in server.asked("/v1/places/")]
        again = len(server.requests)
        collect(config)
        assert len(server.requests) == again
    region = config.region.region()
    province = Outlines.of_region(region).province_of([[p.latitude, p.longitude] for p in some])
    wanted = {
        place.id: min(place.photos, 2)
        for place, at in zip(some, province, strict=True)
        if at >= 0 and place.photos and place.type in TYPES[:3]
    }
    # Of each photo that is in the region one picture was paid for.
    assert len(media) == len(set(media)) == sum(wanted.values())
    assert requests["searchNearby"] > 10
    kept = rows_of(tmp_path / "photos.csv")
    assert Counter(row["album"] for row in kept) == wanted
    assert {row["license"] for row in kept} == {"google-places"}
    assert {row["accuracy_km"] for row in kept} == {"0.3"}
    assert {row["source"] for row in kept} == {"google_places"}
    assert all(row["author"].startswith("Visitor") for row in kept)
    assert told["cost_usd"][0] > 0
    everything = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert KEY.encode() not in everything


def test_photos_whose_names_expire_before_their_turn_are_not_lost(tmp_path: Path) -> None:
    with PlacesServer(places(40, BOX, seed=6)) as server:
        stopped = configured(server, tmp_path, quota="{photo_media: 5}", on_quota="stop")
        assert collect(stopped).quota_spent
        server.expire_names()
        server.requests.clear()
        assert not collect(configured(server, tmp_path, quota="{photo_media: 1000}")).quota_spent
        asked = [r.path for r in server.requests if r.path.count("/") == 3]
    assert len(asked) == len(set(asked)) > 3
    kept = rows_of(tmp_path / "photos.csv")
    rejected = rows_of(tmp_path / "rejected.csv")
    assert len(kept) > 10
    assert "refused" not in {row["reason"] for row in rejected}


def test_terms_that_are_not_accepted_end_the_collection_before_it_begins(tmp_path: Path) -> None:
    with PlacesServer(places(20, BOX)) as server:
        with pytest.raises(SourceError, match="accept_terms"):
            collect(configured(server, tmp_path, **{"source.accept_terms": "false"}))
        assert not server.requests
