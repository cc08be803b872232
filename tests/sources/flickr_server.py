"""Stands in for Flickr, its search with caps and its pictures; the source that asks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import shapely

from geopak.geo.boundaries import Outlines
from geopak.schema.sources.flickr import FlickrOptions
from geopak.sources.flickr import FlickrSource
from tests.sources.lands import region_of, scattered, with_changes
from tests.sources.stand_in import RateLimit, Reply, Request, StandIn, as_jpeg, as_json, jpeg

KEY = "0123456789abcdef-flickr-key"
BEGIN = int(datetime(2005, 1, 1, tzinfo=UTC).timestamp())
END = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())
LICENSES = {
    "0": ("All Rights Reserved", ""),
    "1": ("Attribution-NonCommercial-ShareAlike License", "licenses/by-nc-sa/2.0/"),
    "2": ("Attribution-NonCommercial License", "licenses/by-nc/2.0/"),
    "3": ("Attribution-NonCommercial-NoDerivs License", "licenses/by-nc-nd/2.0/"),
    "4": ("Attribution License", "licenses/by/2.0/"),
    "5": ("Attribution-ShareAlike License", "licenses/by-sa/2.0/"),
    "6": ("Attribution-NoDerivs License", "licenses/by-nd/2.0/"),
    "7": ("No known copyright restrictions", ""),
    "8": ("United States Government Work", ""),
    "9": ("Public Domain Dedication (CC0)", "publicdomain/zero/1.0/"),
    "10": ("Public Domain Mark", "publicdomain/mark/1.0/"),
    # Which number is which of the newer ones is for Flickr to tell.
    "11": ("Attribution-ShareAlike 4.0", "licenses/by-sa/4.0/"),
    "12": ("Attribution 4.0", "licenses/by/4.0/"),
}
BOX = (24.0, 66.0, 28.0, 70.0)
# A corner is cut off, so that tiles lie half outside.
LAND = shapely.Polygon([(66, 24), (70, 24), (70, 27), (69, 28), (66, 28)])
EVERY = {"licenses": None, "min_accuracy": 1, "uploaded_until": "2024-01-01"}


@dataclass(frozen=True)
class Shot:
    """A photo at the stand-in."""

    id: str
    latitude: float
    longitude: float
    uploaded: int
    accuracy: int = 16
    license: str = "4"
    owner: str = "1@N00"
    taken: str = "2014-05-06 10:11:12"
    granularity: str = "0"
    sizes: tuple[tuple[str, int, int], ...] = (("l", 1024, 683), ("z", 640, 427))
    changes: tuple[tuple[str, Any], ...] = ()


def shots(
    count: int,
    box: tuple[float, float, float, float],
    seed: int = 0,
    clustered: bool = True,
    first_id: int = 1,
) -> list[Shot]:
    """Photos at random, half of them close together as in a town.

    Args:
        count: how many.
        box: south, west, north, east.
        seed: of the random numbers.
        clustered: half lie in a hundredth of the box.
        first_id: of the ids.
    """
    rng = np.random.default_rng(seed)
    lat, lon = scattered(rng, count, box, clustered)
    uploaded = rng.integers(BEGIN, END, count)
    codes = rng.choice(list(LICENSES), count)
    levels = rng.choice([16, 15, 14, 13, 11, 6], count, p=[0.6, 0.1, 0.1, 0.1, 0.05, 0.05])
    return [
        Shot(
            str(first_id + n),
            round(float(lat[n]), 6),
            round(float(lon[n]), 6),
            int(uploaded[n]),
            int(levels[n]),
            str(codes[n]),
            f"{n % 17}@N0{n % 3}",
        )
        for n in range(count)
    ]


class FlickrServer(StandIn):
    """The server.

    Args:
        shots: its photos.
        cap: of distinct results a query; pages beyond it repeat the last.
        most_per_page: whatever is asked for.
        repeats: entries of the page before that each page has once more, and one twice.
        totals_as_text: as older answers have them.
        limit: of the rate.
    """

    def __init__(
        self,
        shots: Sequence[Shot],
        cap: int = 4000,
        most_per_page: int = 250,
        repeats: int = 0,
        totals_as_text: bool = False,
        limit: RateLimit | None = None,
    ) -> None:
        super().__init__(limit=limit)
        self.shots = sorted(shots, key=lambda shot: (shot.uploaded, shot.id))
        self.cap, self.most_per_page, self.repeats = cap, most_per_page, repeats
        self.totals_as_text = totals_as_text
        self._lat = np.array([shot.latitude for shot in self.shots])
        self._lon = np.array([shot.longitude for shot in self.shots])
        self._uploaded = np.array([shot.uploaded for shot in self.shots])
        self._level = np.array([shot.accuracy for shot in self.shots])
        self._license = np.array([shot.license for shot in self.shots], str)
        self._taken = np.array([shot.taken for shot in self.shots], str)

    @property
    def api(self) -> str:
        """Address of the REST interface."""
        return f"{self.url}/services/rest/"

    def respond(self, request: Request) -> Reply:
        """Answers calls, and gives pictures."""
        if request.path.startswith("/pictures/"):
            seed = int("".join(filter(str.isdigit, request.path.split("_")[0])) or 0)
            return as_jpeg(jpeg(seed=seed))
        if request.path != "/services/rest/":
            return as_json({"stat": "fail", "code": 404, "message": "not here"}, 404)
        query = request.query
        if query.get("api_key") != KEY:
            return fail(100, "Invalid API Key (Key has invalid format)")
        if query.get("format") != "json" or query.get("nojsoncallback") != "1":
            # What is asked for otherwise is XML, or a call of a function.
            return Reply(b'<?xml version="1.0"?><rsp stat="ok"/>', content_type="text/xml")
        if query.get("method") == "flickr.photos.licenses.getInfo":
            return as_json({"licenses": {"license": self._licenses()}, "stat": "ok"})
        if query.get("method") == "flickr.photos.search":
            return self._search(query)
        return fail(112, f'Method "{query.get("method")}" not found')

    def _licenses(self) -> list[dict[str, str]]:
        url = "https://creativecommons.org/"
        return [
            {"id": code, "name": name, "url": url + path if path else ""}
            for code, (name, path) in LICENSES.items()
        ]

    def _search(self, query: Any) -> Reply:
        if not any(key in query for key in ("bbox", "text", "tags", "min_upload_date")):
            return fail(3, "Parameterless searches have been disabled. Please use getRecent.")
        west, south, east, north = (float(edge) for edge in query["bbox"].split(","))
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            return fail(4, "Not a valid bounding box")
        hit = (self._lat >= south) & (self._lat <= north)
        hit &= (self._lon >= west) & (self._lon <= east)
        hit &= self._uploaded >= int(query.get("min_upload_date", 0))
        hit &= self._uploaded <= int(query.get("max_upload_date", 2**40))
        # Street level is what is searched unless one asks for less.
        hit &= self._level >= int(query.get("accuracy", 16))
        hit &= self._taken >= query.get("min_taken_date", "")
        hit &= self._taken <= query.get("max_taken_date", "9999")
        if query.get("license"):
            hit &= np.isin(self._license, query["license"].split(","))
        found = np.flatnonzero(hit)
        if query.get("sort", "date-posted-desc") == "date-posted-desc":
            found = found[::-1]
        per_page = min(int(query.get("per_page", 100)), self.most_per_page)
        page = max(1, int(query.get("page", 1)))
        last = max(1, -(-min(len(found), self.cap) // per_page))
        shown = min(page, last)
        entries = [self._entry(k) for k in found[(shown - 1) * per_page : shown * per_page]]
        if self.repeats and entries:
            before = found[max(0, (shown - 1) * per_page - self.repeats) : (shown - 1) * per_page]
            entries = [*(self._entry(k) for k in before), *entries, entries[-1]]
        total = len(found)
        return as_json(
            {
                "photos": {
                    "page": page,
                    "pages": -(-total // per_page),
                    "perpage": per_page,
                    "total": str(total) if self.totals_as_text else total,
                    "photo": entries,
                },
                "stat": "ok",
            }
        )

    def _entry(self, index: int) -> dict[str, Any]:
        shot = self.shots[index]
        entry = {
            "id": shot.id,
            "owner": shot.owner,
            "secret": "a1b2c3",
            "server": "65535",
            "farm": 66,
            "title": f"Photo {shot.id}",
            "ispublic": 1,
            "isfriend": 0,
            "isfamily": 0,
            "license": shot.license,
            "dateupload": str(shot.uploaded),
            "datetaken": shot.taken,
            "datetakengranularity": shot.granularity,
            "datetakenunknown": "0",
            "ownername": f"Author {shot.owner}",
            "latitude": str(shot.latitude),
            "longitude": str(shot.longitude),
            "accuracy": str(shot.accuracy),
            "context": 0,
            "media": "photo",
            "media_status": "ready",
        }
        for size, width, height in shot.sizes:
            entry[f"url_{size}"] = f"{self.url}/pictures/{shot.id}_{size}.jpg"
            entry[f"width_{size}"], entry[f"height_{size}"] = width, height
        return with_changes(entry, shot.changes)


def fail(code: int, message: str) -> Reply:
    """A fault as Flickr gives it: with status 200."""
    return as_json({"stat": "fail", "code": code, "message": message})


def changed(shot: Shot, **changes: Any) -> Shot:
    """The photo with other fields in its entry; ``None`` takes a field away."""
    return replace(shot, changes=tuple(changes.items()))


def source_of(
    server: FlickrServer, *lands: shapely.Polygon | shapely.MultiPolygon, **options: Any
) -> FlickrSource:
    """The source that asks a stand-in for photos of lands."""
    lands = lands or (LAND,)
    settled = FlickrOptions(
        api=server.api,
        photo_hosts=("127.0.0.1",),
        pause_s=0.01,
        **{
            "result_cap": server.cap,
            "estimated_in_province": max(1, len(server.shots)),
            "per_page": min(server.most_per_page, server.cap),
            **EVERY,
            **options,
        },
    )
    return FlickrSource(settled, region_of(lands), Outlines(lands))
