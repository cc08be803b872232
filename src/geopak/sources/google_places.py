"""Google Places API (New): photos of places, found around points and by words.

The interface is that of https://developers.google.com/maps/documentation/places/web-service:
``places:searchNearby`` answers up to 20 places of a circle of up to 50 km and has no further pages;
``places:searchText`` answers 20 a page and 60 in all, with a token for the next page that works
with the very same question alone. Both take a field mask, which also decides the price, and give up
to ten photos of a place by name; ``{name}/media`` tells where a photo's picture is, for a while.

A full answer may hide places: its area is split into the parts that touch the province, and a
circle that is as small as it may be is asked for each half of the types. What is found on the way
is kept, as it is paid for.

Names of photos change with every answer, so a photo is known by its place, its author, its size
and, where those are the same, its turn among them. They are good for a while only: where one is
refused, the place is asked for its photos once more (``places/{id}``, with the photos alone in the
mask).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from geopak.errors import RefusedQueryError, SourceError
from geopak.schema.sources.google_places import GooglePlacesOptions
from geopak.sources.answers import Patience, key_of, shown
from geopak.sources.records import Answer, Estimate, FoundPhoto, Query, Refused
from geopak.sources.tiles import Tile, cover, parts

if TYPE_CHECKING:
    from geopak.geo.boundaries import Outlines
    from geopak.geo.region import Region
    from geopak.sources.client import Client

KEY_VARIABLE = "GOOGLE_MAPS_API_KEY"
LICENSE = "google-places"
# All of them are in the SKUs 'Nearby Search Pro' and 'Text Search Pro'.
_FIELDS = ("id", "displayName", "location", "primaryType", "photos")
_PAGE = 20
_NAME = re.compile(r"places/[^/?#]+/photos/[^/?#]+")
# For the estimate: in towns places lie closer together than on average, by up to 4^4 times; and
# circles around tiles overlap, so that a place is in one or two of a size.
_EXTRA_SPLITS = 4
_OVERLAP = 2
# A text search that forgot its next page is begun again so often.
_AGAIN = 2


class GooglePlacesSource:
    """Photos of Google Places.

    Args:
        options: what is asked for.
        region: whose provinces are collected.
        outlines: of the provinces.
    """

    name = "google_places"
    rate_per_s = 5.0
    licenses = (LICENSE,)
    kinds = ("nearby_search", "text_search", "photo_media", "place_details")

    def __init__(self, options: GooglePlacesOptions, region: Region, outlines: Outlines) -> None:
        self.options = options
        self.api_hosts: tuple[str, ...] = (urlsplit(options.api).hostname or "",)
        self.photo_hosts = options.photo_hosts
        self.quota = dict(options.daily_requests)
        self._patience = Patience()
        # Names by place and suffix, of places whose former names were refused.
        self._renewed: dict[str, Mapping[str, str]] = {}
        self._renewing = asyncio.Lock()
        self._polygons = {
            province.key: polygon
            for province, polygon in zip(region.provinces, outlines.polygons, strict=True)
        }

    def start(self) -> Iterable[Query]:
        """Circles that cover each province, and the same areas for each text."""
        o = self.options
        common = {"language": o.language, "photos": o.max_photos_per_place,
                  "min_radius_km": o.min_radius_km}  # fmt: skip
        for province, polygon in self._polygons.items():
            tiles = cover(polygon, o.start_radius_km)
            if "nearby" in o.searches:
                types = {"types": list(o.types), "not_types": list(o.not_types), "rank": o.rank}
                for tile in tiles:
                    yield Query("nearby", {**common, **types, "tile": tile.edges}, province)
            if "text" in o.searches:
                for text in o.text_queries:
                    for tile in tiles:
                        params = {**common, "text": text, "tile": tile.edges, "page": 1}
                        yield Query("text", params, province)

    async def ask(self, query: Query, client: Client) -> Answer:
        """See :meth:`geopak.sources.records.Source.ask`.

        Raises:
            SourceError: the terms are not accepted, no key, a wrong key, or a fault of the query.
        """
        if query.kind == "text":
            return await self._ask_text(query, client)
        told = await self._search(client, "nearby", _nearby(query, self.options.result_cap))
        places = self._places_of(told, "places:searchNearby")
        photos, refused = self._read(places, int(query.params["photos"]))
        more: tuple[Query, ...] = ()
        if len(places) >= self.options.result_cap:
            more = self._smaller(query)
            if not more:
                refused.append(_beyond(query, len(places)))
        return Answer(tuple(photos), more, tuple(refused), len(places))

    async def locate(self, photo: FoundPhoto, client: Client) -> str:
        """Where a photo's picture is at the moment; costs a request.

        Raises:
            RefusedQueryError: its name has another form, or its place no longer has it.
        """
        place, _, suffix = photo.source_id.rpartition("/")
        if place in self._renewed:
            return await self._media(photo, self._renewed[place].get(suffix), client)
        try:
            return await self._media(photo, str(photo.extra.get("name")), client)
        except RefusedQueryError:
            if not _NAME.fullmatch(str(photo.extra.get("name"))):
                raise
        # One at a time: photos of a place are often asked for together.
        async with self._renewing:
            if place not in self._renewed:
                self._renewed[place] = await self._names(place, client)
        return await self._media(photo, self._renewed[place].get(suffix), client)

    async def _names(self, place: str, client: Client) -> dict[str, str]:
        """The names that a place's photos have now, by what tells them apart."""
        told = await self._call(
            lambda key: client.get_json(
                f"{self.options.api.rstrip('/')}/v1/places/{quote(place, safe='')}",
                kind="place_details",
                headers={"X-Goog-FieldMask": "id,photos"},
                secret_headers={"X-Goog-Api-Key": key},
            )
        )
        photos = told.get("photos") if isinstance(told, Mapping) else None
        named = [photo for photo in photos or () if _is_named(photo)]
        return {suffix: str(photo["name"]) for photo, suffix in _told_apart(named)}

    async def _media(self, photo: FoundPhoto, name: str | None, client: Client) -> str:
        if name is None:
            raise RefusedQueryError(f"Its place no longer has photo {photo.source_id}.")
        if not _NAME.fullmatch(name):
            raise RefusedQueryError(f"Photo {photo.source_id} has the odd name {name[:80]!r}.")
        side = self.options.max_side
        told = await self._call(
            lambda key: client.get_json(
                f"{self.options.api.rstrip('/')}/v1/{quote(name)}/media",
                {"maxWidthPx": side, "maxHeightPx": side, "skipHttpRedirect": "true"},
                kind="photo_media",
                secret_headers={"X-Goog-Api-Key": key},
            )
        )
        url = told.get("photoUri") if isinstance(told, Mapping) else None
        if not url:
            raise RefusedQueryError(f"Google tells no address of photo {photo.source_id}.")
        return str(url)

    def estimate(self, targets: Mapping[str, int]) -> Estimate:
        """See :meth:`geopak.sources.records.Source.estimate`."""
        o = self.options
        wanted = {key: targets.get(key, o.estimated_unlimited) for key in self._polygons}
        wanted = {key: count for key, count in wanted.items() if count > 0}
        photos = sum(wanted.values())
        searched = {f"{name}_search": (0, 0) for name in ("nearby", "text") if name in o.searches}
        least = sum(
            math.ceil(count / (_PAGE * o.max_photos_per_place)) for count in wanted.values()
        )
        for kind in searched:
            most = sum(self._most_requests(kind, key, count) for key, count in wanted.items())
            # With both, either may find all.
            searched[kind] = (least if len(searched) == 1 else 0, most)
        requests = {
            **searched,
            "photo_media": (photos, math.ceil(photos * o.estimated_paid_per_kept)),
        }
        price, free = o.prices.usd_per_1000, o.prices.free_per_month
        cost = (
            sum(
                max(0, few - free.get(kind, 0)) * price.get(kind, 0.0)  # type: ignore[call-overload]
                for kind, (few, _) in requests.items()
            ),
            sum(many * price.get(kind, 0.0) for kind, (_, many) in requests.items()),  # type: ignore[call-overload]
        )
        return Estimate(
            requests=requests,
            cost_usd=(round(cost[0] / 1000, 2), round(cost[1] / 1000, 2)),
            assumptions=(
                f"Prices are those of {o.prices.as_of} (source.prices), first tier; they change: "
                "compare with https://developers.google.com/maps/billing-and-pricing/pricing.",
                "At least: all of a month's free requests are left, every answer is full, and "
                "every picture is kept.",
                "At most: no free request is left, "
                f"{o.estimated_found_per_kept:g} places with a photo are looked through "
                f"(source.estimated_found_per_kept) and {o.estimated_paid_per_kept:g} pictures "
                "paid for (source.estimated_paid_per_kept) for each photo that is kept, and areas "
                f"of more than {o.result_cap} places are split {_EXTRA_SPLITS} times oftener than "
                "if all were spread evenly.",
                f"A province without a target is taken to have {o.estimated_unlimited:,} photos "
                "(source.estimated_unlimited).",
            ),
        )

    def _most_requests(self, kind: str, province: str, target: int) -> int:
        o = self.options
        roots = len(cover(self._polygons[province], o.start_radius_km))
        places = math.ceil(target * o.estimated_found_per_kept)
        deepest = math.ceil(math.log2(max(1.0, o.start_radius_km / o.min_radius_km)))
        if kind == "text_search":
            crowded = places // o.text_result_cap
            split = _splits(roots, crowded, deepest)
            pages = math.ceil(o.text_result_cap / _PAGE)
            per_text = roots + 4 * split + (pages - 1) * (places // _PAGE + split)
            return len(o.text_queries) * per_text
        deepest += math.ceil(math.log2(max(1, len(o.types))))
        return roots + 4 * _splits(roots, _OVERLAP * places // o.result_cap, deepest)

    async def _ask_text(self, query: Query, client: Client) -> Answer:
        params, page = query.params, int(query.params["page"])
        try:
            told = await self._search(client, "text", _text(query))
        except RefusedQueryError:
            again = int(params.get("again", 0))
            if "token" not in params or again >= _AGAIN:
                raise
            # Tokens are good for a while only: after a pause of the collection the first page is
            # asked for again.
            first = {k: v for k, v in params.items() if k != "token"}
            afresh = {**first, "page": 1, "again": again + 1}
            return Answer(more=(Query("text", afresh, query.province),))
        places = self._places_of(told, "places:searchText")
        photos, refused = self._read(places, int(params["photos"]))
        more: tuple[Query, ...] = ()
        token = told.get("nextPageToken")
        if token:
            following = {**params, "page": page + 1, "token": str(token)}
            more = (Query("text", following, query.province),)
        elif (page - 1) * _PAGE + len(places) >= self.options.text_result_cap:
            more = self._smaller(query)
            if not more:
                refused.append(_beyond(query, self.options.text_result_cap))
        return Answer(tuple(photos), more, tuple(refused), len(places))

    def _smaller(self, query: Query) -> tuple[Query, ...]:
        """The parts of a query whose answer was full; none: it cannot be split."""
        assert query.province is not None
        tile = Tile.of(query.params["tile"])
        changes: list[dict[str, Any]] = []
        if tile.radius_km / 2 >= float(query.params["min_radius_km"]):
            smaller = parts(tile, self._polygons[query.province])
            changes = [{"tile": part.edges} for part in smaller]
        types = query.params.get("types", ())
        if not changes and len(types) > 1:
            half = len(types) // 2
            changes = [{"types": types[:half]}, {"types": types[half:]}]
        rest = {k: v for k, v in query.params.items() if k not in ("token", "again")}
        if "page" in rest:
            rest["page"] = 1
        return tuple(Query(query.kind, {**rest, **change}, query.province) for change in changes)

    def _places_of(self, told: Any, method: str) -> Sequence[Any]:
        # An answer without places lacks the field.
        places = told.get("places", []) if isinstance(told, Mapping) else None
        if not isinstance(places, list):
            raise self._patience.odd(
                f"Google's answer to {method} is not in the documented form "
                f"({shown(told, KEY_VARIABLE)}). Is source.api right?"
            )
        self._patience.good()
        return places

    def _read(self, places: Iterable[Any], most: int) -> tuple[list[FoundPhoto], list[Refused]]:
        photos: list[FoundPhoto] = []
        refused: list[Refused] = []
        for place in places:
            if not isinstance(place, Mapping) or not place.get("id"):
                refused.append(Refused("without id", "malformed", shown(place, KEY_VARIABLE)))
                continue
            place_id = str(place["id"])
            where: Any = place.get("location")
            try:
                latitude, longitude = float(where["latitude"]), float(where["longitude"])
            except (KeyError, TypeError, ValueError):
                refused.append(Refused(place_id, "no_coordinate", shown(where, KEY_VARIABLE)))
                continue
            named = [photo for photo in place.get("photos") or () if _is_named(photo)]
            if not named:
                refused.append(Refused(place_id, "no_picture", "a place without a photo"))
            photos += [
                self._photo(photo, suffix, place, latitude, longitude)
                for photo, suffix in list(_told_apart(named))[:most]
            ]
        return photos, refused

    def _photo(
        self,
        photo: Mapping[str, Any],
        suffix: str,
        place: Mapping[str, Any],
        latitude: float,
        longitude: float,
    ) -> FoundPhoto:
        place_id = str(place["id"])
        authors = _authors(photo)
        title = place.get("displayName")
        return FoundPhoto(
            source_id=f"{place_id}/{suffix}",
            latitude=latitude,
            longitude=longitude,
            accuracy_km=self.options.accuracy_km,
            license=LICENSE,
            author=", ".join(name for name, _ in authors) or None,
            author_url=next((url for _, url in authors if url), None),
            page_url=str(
                photo.get("googleMapsUri")
                or f"https://www.google.com/maps/place/?q=place_id:{quote(place_id)}"
            ),
            title=str(title.get("text") or "") or None if isinstance(title, Mapping) else None,
            width=_pixels(photo.get("widthPx")),
            height=_pixels(photo.get("heightPx")),
            album=place_id,
            extra={"name": str(photo["name"])},
        )

    async def _search(self, client: Client, kind: str, body: Mapping[str, Any]) -> Any:
        mask = ",".join(f"places.{field}" for field in _FIELDS)
        if kind == "text":
            mask += ",nextPageToken"
        method = {"nearby": "searchNearby", "text": "searchText"}[kind]
        return await self._call(
            lambda key: client.post_json(
                f"{self.options.api.rstrip('/')}/v1/places:{method}",
                dict(body),
                kind=f"{kind}_search",
                headers={"X-Goog-FieldMask": mask},
                secret_headers={"X-Goog-Api-Key": key},
            )
        )

    async def _call(self, send: Any) -> Any:
        """A request, once it may be sent; tells a wrong key from a wrong query."""
        if not self.options.accept_terms:
            raise SourceError(
                "Google's terms forbid to keep most of what its Places API gives, and requests "
                "cost money. Read docs/sources/google-places.md; if you may do what you are about "
                "to do, set source.accept_terms=true."
            )
        try:
            return await send(_key())
        except RefusedQueryError as error:
            text = str(error)
        if "API_KEY_INVALID" in text or "API key" in text:
            raise SourceError(f"{text} Set {KEY_VARIABLE} to a valid key of your project.")
        raise RefusedQueryError(text)


def _key() -> str:
    return key_of(
        KEY_VARIABLE,
        f"Google Places needs a key: set the environment variable {KEY_VARIABLE}. One gets a "
        "key for a project with billing, with the Places API (New) enabled, at "
        "https://console.cloud.google.com/google/maps-apis/credentials.",
    )


def _nearby(query: Query, most: int) -> dict[str, Any]:
    params, tile = query.params, Tile.of(query.params["tile"])
    latitude, longitude = tile.center_deg
    body: dict[str, Any] = {
        "maxResultCount": most,
        "rankPreference": params["rank"],
        "locationRestriction": {
            "circle": {
                "center": {"latitude": latitude, "longitude": longitude},
                "radius": math.ceil(tile.radius_km * 1000),
            }
        },
    }
    for key, name in (("types", "includedPrimaryTypes"), ("not_types", "excludedPrimaryTypes")):
        if params[key]:
            body[name] = list(params[key])
    if params["language"]:
        body["languageCode"] = params["language"]
    return body


def _text(query: Query) -> dict[str, Any]:
    params = query.params
    south, west, north, east = Tile.of(params["tile"]).box_deg
    body: dict[str, Any] = {
        "textQuery": params["text"],
        "pageSize": _PAGE,
        "locationRestriction": {
            "rectangle": {
                "low": {"latitude": south, "longitude": west},
                "high": {"latitude": north, "longitude": east},
            }
        },
    }
    if params["language"]:
        body["languageCode"] = params["language"]
    if "token" in params:
        body["pageToken"] = params["token"]
    return body


def _beyond(query: Query, count: int) -> Refused:
    south, west, north, east = Tile.of(query.params["tile"]).box_deg
    what = query.params.get("text") or ",".join(query.params.get("types", ())) or "any type"
    return Refused(
        f"{what} in {south:.6f},{west:.6f},{north:.6f},{east:.6f}",
        "beyond_cap",
        f"an answer of {count} places, which is the most; how many more there are is not told. "
        "Lower source.min_radius_km, which asks for all areas anew",
    )


def _is_named(photo: Any) -> bool:
    return isinstance(photo, Mapping) and bool(photo.get("name"))


def _told_apart(photos: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each photo of a place with what tells it from the others, whatever it is named today."""
    turns: Counter[str] = Counter()
    for photo in photos:
        authors = [url or name for name, url in _authors(photo)]
        known = repr((authors, photo.get("widthPx"), photo.get("heightPx")))
        turns[known] += 1
        yield photo, hashlib.sha256(f"{known} {turns[known]}".encode()).hexdigest()[:16]


def _authors(photo: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """(name, URL) of those whom a photo is attributed to."""
    out = []
    for author in photo.get("authorAttributions") or ():
        if isinstance(author, Mapping) and author.get("displayName"):
            url = str(author.get("uri") or "")
            # Some begin with the host.
            out.append((str(author["displayName"]), f"https:{url}" if url[:2] == "//" else url))
    return [(name, url or None) for name, url in out]


def _pixels(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _splits(roots: int, crowded: int, deepest: int) -> int:
    """Areas that are split, at most, where no level has more than so many crowded ones."""
    levels = min(deepest, math.ceil(math.log(max(crowded, 1), 4)) + _EXTRA_SPLITS)
    return sum(min(roots * 4**level, crowded) for level in range(levels))
