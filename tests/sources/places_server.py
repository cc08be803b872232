"""Stands in for the Google Places API (New), its searches and media; the source that asks it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from geopak.geo.boundaries import Outlines
from geopak.geo.distance import haversine_km_array
from geopak.schema.sources.google_places import GooglePlacesOptions
from geopak.sources.google_places import GooglePlacesSource
from tests.sources.lands import region_of, scattered, with_changes
from tests.sources.stand_in import RateLimit, Reply, Request, StandIn, as_jpeg, as_json, jpeg

KEY = "AIzaSy-places-key"
TYPES = ("park", "mosque", "plaza", "restaurant")
BOX = (24.0, 66.0, 26.0, 68.0)
LAND = shapely.Polygon([(66, 24), (68, 24), (68, 25.5), (67.5, 26), (66, 26)])


@dataclass(frozen=True)
class Place:
    """A place at the stand-in.

    Attributes:
        id: its place id.
        latitude, longitude: degrees.
        type: its primary type.
        photos: how many it has; author and size differ by their number, except of the first two.
        words: what a text search finds it by.
        changes: other values of fields; ``None`` takes one away.
    """

    id: str
    latitude: float
    longitude: float
    type: str = "park"
    photos: int = 2
    words: str = "viewpoint"
    changes: tuple[tuple[str, Any], ...] = ()


def places(
    count: int, box: tuple[float, float, float, float], seed: int = 0, clustered: bool = True
) -> list[Place]:
    """Places at random, half of them close together; ``box`` is south, west, north, east."""
    rng = np.random.default_rng(seed)
    lat, lon = scattered(rng, count, box, clustered)
    return [
        Place(
            f"ChIJ{seed}-{n}",
            round(float(lat[n]), 7),
            round(float(lon[n]), 7),
            str(rng.choice(TYPES)),
            int(rng.integers(0, 5)),
            str(rng.choice(["viewpoint", "bazaar"])),
        )
        for n in range(count)
    ]


class PlacesServer(StandIn):
    """The server.

    Args:
        places: in order of popularity.
        nearby_cap: places of an answer.
        text_cap: of a text search, over its pages of 20.
        limit: of the rate.
    """

    def __init__(
        self,
        places: Sequence[Place],
        nearby_cap: int = 20,
        text_cap: int = 60,
        limit: RateLimit | None = None,
    ) -> None:
        super().__init__(limit=limit)
        self.places = list(places)
        self.nearby_cap, self.text_cap = nearby_cap, text_cap
        self.tokens_expired = False
        self.names_expired = False
        self._expired_below = 0
        self._points = np.array([[p.latitude, p.longitude] for p in places], float).reshape(-1, 2)
        self._tokens: dict[str, tuple[dict[str, Any], int]] = {}
        self._numbers = itertools.count()

    def respond(self, request: Request) -> Reply:
        """Answers searches and media, and gives pictures."""
        if request.path.startswith("/pictures/"):
            return as_jpeg(jpeg(seed=zlib.crc32(request.path.encode())))
        key = request.headers.get("x-goog-api-key") or request.query.get("key")
        if not key:
            return fault(403, "PERMISSION_DENIED", "Method doesn't allow unregistered callers.")
        if key != KEY:
            return fault(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
        if request.path.endswith("/media"):
            return self._media(request)
        mask = request.headers.get("x-goog-fieldmask")
        if not mask:
            told = "FieldMask is a required parameter. See https://cloud.google.com/apis/docs"
            return fault(400, "INVALID_ARGUMENT", told)
        if request.method == "GET":
            return self._details(request.path.removeprefix("/v1/places/"), mask.split(","))
        search = {"/v1/places:searchNearby": self._nearby, "/v1/places:searchText": self._text}
        if request.path not in search:
            return fault(404, "NOT_FOUND", "No such method.")
        return search[request.path](request.json(), mask.split(","))

    def expire_names(self) -> None:
        """From now on, names of photos that were given until now are refused."""
        self._expired_below = next(self._numbers)

    def _details(self, place_id: str, mask: list[str]) -> Reply:
        place = next((place for place in self.places if place.id == place_id), None)
        if place is None:
            return fault(404, "NOT_FOUND", "The Place ID is no longer valid.")
        whole = self._entry(place)
        return as_json({name: value for name, value in whole.items() if name in mask})

    def _nearby(self, body: dict[str, Any], mask: list[str]) -> Reply:
        circle = body["locationRestriction"]["circle"]
        if not 0 < circle["radius"] <= 50_000:
            return fault(400, "INVALID_ARGUMENT", "Radius must be between 0 and 50,000 meters.")
        if not 1 <= body.get("maxResultCount", 20) <= 20:
            return fault(400, "INVALID_ARGUMENT", "Max result count must be between 1 and 20.")
        wanted = body.get("includedPrimaryTypes", [])
        unwanted = body.get("excludedPrimaryTypes", [])
        if set(wanted) & set(unwanted) or len(wanted) > 50:
            return fault(400, "INVALID_ARGUMENT", "Conflicting or too many types.")
        center = (circle["center"]["latitude"], circle["center"]["longitude"])
        km = haversine_km_array(np.array(center), self._points)
        found = [
            k
            for k in np.flatnonzero(km * 1000 <= circle["radius"]).tolist()
            if (not wanted or self.places[k].type in wanted) and self.places[k].type not in unwanted
        ]
        if body.get("rankPreference") == "DISTANCE":
            found.sort(key=lambda k: km[k])
        shown = found[: min(body.get("maxResultCount", 20), self.nearby_cap)]
        return self._list(shown, mask)

    def _text(self, body: dict[str, Any], mask: list[str]) -> Reply:
        begin, token = 0, body.get("pageToken")
        question = {name: value for name, value in body.items() if name != "pageToken"}
        if token is not None:
            known, begin = self._tokens.get(token, ({}, 0))
            if self.tokens_expired or known != question:
                return fault(400, "INVALID_ARGUMENT", "Request parameters do not match the token.")
        if not body.get("textQuery"):
            return fault(400, "INVALID_ARGUMENT", "Empty text_query.")
        box = body["locationRestriction"]["rectangle"]
        low, high = box["low"], box["high"]
        lat, lon = self._points.T
        hit = (lat >= low["latitude"]) & (lat <= high["latitude"])
        hit &= (lon >= low["longitude"]) & (lon <= high["longitude"])
        found = [k for k in np.flatnonzero(hit) if body["textQuery"] in self.places[k].words]
        found = found[: self.text_cap]
        end = begin + min(body.get("pageSize", 20), 20)
        following = None
        if end < len(found) and "nextPageToken" in mask:
            following = f"token-{next(self._numbers)}"
            self._tokens[following] = (question, end)
        return self._list(found[begin:end], mask, following)

    def _list(self, found: Sequence[int], mask: list[str], token: str | None = None) -> Reply:
        fields = {name.removeprefix("places.") for name in mask if name.startswith("places.")}
        shown = []
        for k in found:
            whole = self._entry(self.places[int(k)])
            shown.append({name: value for name, value in whole.items() if name in fields})
        # What is empty is left out.
        answer: dict[str, Any] = {"places": shown} if shown else {}
        if token:
            answer["nextPageToken"] = token
        return as_json(answer)

    def _entry(self, place: Place) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "id": place.id,
            "displayName": {"text": f"Place {place.id}", "languageCode": "en"},
            "location": {"latitude": place.latitude, "longitude": place.longitude},
            "primaryType": place.type,
            "formattedAddress": "not asked for",
        }
        if place.photos:
            entry["photos"] = [self._photo(place, n) for n in range(place.photos)]
        return with_changes(entry, place.changes)

    def _photo(self, place: Place, number: int) -> dict[str, Any]:
        # The name is another one in every answer; it still leads to the photo.
        name = f"places/{place.id}/photos/AUc7t{number}x{next(self._numbers)}"
        kind = max(0, number - 1)
        return {
            "name": name,
            "widthPx": 4000 + kind,
            "heightPx": 3000,
            "authorAttributions": [
                {
                    "displayName": f"Visitor {kind}",
                    "uri": f"//maps.google.com/maps/contrib/{kind}",
                    "photoUri": "//lh3.googleusercontent.com/a/x",
                }
            ],
            "googleMapsUri": f"https://www.google.com/maps/place//data=!3m4!1e2!{place.id}-{number}",
        }

    def _media(self, request: Request) -> Reply:
        sides = [request.query.get(key) for key in ("maxWidthPx", "maxHeightPx")]
        if not any(sides) or any(s and not 1 <= int(s) <= 4800 for s in sides):
            return fault(400, "INVALID_ARGUMENT", "maxWidthPx or maxHeightPx must be 1 to 4800.")
        name = request.path.removeprefix("/v1/").removesuffix("/media")
        serial = name.rpartition("x")[2]
        if self.names_expired or (serial.isdigit() and int(serial) < self._expired_below):
            return fault(400, "INVALID_ARGUMENT", "The photo resource in the request is invalid.")
        place, number = name.split("/")[1], name.split("/")[3].removeprefix("AUc7t").split("x")[0]
        url = f"{self.url}/pictures/{place}-{number}=s{sides[0]}"
        if request.query.get("skipHttpRedirect") != "true":
            return Reply(status=302, headers={"Location": url})
        return as_json({"name": f"{name}/media", "photoUri": url})


def fault(status: int, name: str, message: str) -> Reply:
    """A fault in Google's form."""
    return as_json({"error": {"code": status, "message": message, "status": name}}, status)


def source_of(server: PlacesServer, *lands: shapely.Polygon, **options: Any) -> GooglePlacesSource:
    """The source that asks a stand-in for photos of lands."""
    lands = lands or (LAND,)
    settled = GooglePlacesOptions(
        **{
            "accept_terms": True,
            "api": server.url,
            "photo_hosts": ("127.0.0.1",),
            "types": TYPES[:3],
            "text_queries": ("viewpoint",),
            "max_photos_per_place": 10,
            "result_cap": server.nearby_cap,
            "text_result_cap": server.text_cap,
            "start_radius_km": 50.0,
            **options,
        }
    )
    return GooglePlacesSource(settled, region_of(lands), Outlines(lands))
