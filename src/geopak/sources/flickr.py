"""Flickr: photos by area, licence and time of upload, in spite of the cap on results.

The interface is that of https://www.flickr.com/services/api/: ``flickr.photos.search`` says of
itself that it returns at most the first 4,000 results of a query, 250 a page where an area is asked
for; ``flickr.photos.licenses.getInfo`` lists licences by number. Faults come with status 200 and
``{"stat": "fail", "code": …}``; of them 105, 106 and, as clients of it report, 10 and 201 mean that
it is not available at the moment.

A query is an area and a stretch of upload times. The first page tells the total: if that is more
than the cap, the answer is not photos but the parts of the area that touch the province, and once
an area is as small as it may be, the halves of the time. Upload times are whole seconds that Flickr
gives itself, so halves neither overlap nor leave a gap, and pages in order of upload do not shift
while new photos come in.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from geopak.errors import RefusedQueryError, SourceError
from geopak.schema.sources.flickr import FlickrOptions, moment
from geopak.sources.answers import Patience, key_of, shown
from geopak.sources.flickr_levels import accuracy_km
from geopak.sources.licenses import base_key, from_url
from geopak.sources.records import Answer, Estimate, FoundPhoto, Query, Refused
from geopak.sources.tiles import Tile, cover, parts

if TYPE_CHECKING:
    from geopak.geo.boundaries import Outlines
    from geopak.geo.region import Region
    from geopak.sources.client import Client

KEY_VARIABLE = "FLICKR_API_KEY"
# The numbers that licences have had for fifteen years; newer ones are asked for.
LICENSE_CODES: dict[str, str | None] = {
    "0": "all-rights-reserved",
    "1": "cc-by-nc-sa-2.0",
    "2": "cc-by-nc-2.0",
    "3": "cc-by-nc-nd-2.0",
    "4": "cc-by-2.0",
    "5": "cc-by-sa-2.0",
    "6": "cc-by-nd-2.0",
    # 'No known copyright restrictions' is a statement of a library, no licence.
    "7": None,
    "8": "us-gov",
    "9": "cc0",
    "10": "pdm",
}
# Sizes in falling order with their longer side; the original has any.
SIZES: dict[str, int | None] = {
    "o": None,
    "6k": 6144,
    "5k": 5120,
    "4k": 4096,
    "3k": 3072,
    "k": 2048,
    "h": 1600,
    "l": 1024,
    "c": 800,
    "z": 640,
    "m": 500,
    "n": 320,
}
_EXTRAS = ",".join(
    (
        "geo",
        "license",
        "date_taken",
        "date_upload",
        "owner_name",
        "media",
        "o_dims",
        *(f"url_{size}" for size in SIZES),
    )
)
T = TypeVar("T")
_UNAVAILABLE = {10, 105, 106, 201}
# Faults that every other query would have too: of the key, its rights, the method, the format.
_HOPELESS = {95, 96, 97, 98, 99, 100, 111, 112}
# For the estimate: in towns photos lie closer together than on average, by up to 4^6 times.
_EXTRA_SPLITS = 6
# How much of an ISO 8601 moment is known, by Flickr's granularity: second, month, year, circa.
_KNOWN = {"0": 19, "4": 7, "6": 4, "8": 4}


class FlickrSource:
    """Photos of Flickr.

    Args:
        options: what is asked for.
        region: whose provinces are collected.
        outlines: of the provinces.
    """

    name = "flickr"
    kinds = ("search",)
    # 3,600 an hour and key, with room for another program.
    rate_per_s = 0.95

    def __init__(self, options: FlickrOptions, region: Region, outlines: Outlines) -> None:
        self.options = options
        self.api_hosts: tuple[str, ...] = (urlsplit(options.api).hostname or "",)
        self.photo_hosts = options.photo_hosts
        self.licenses = options.licenses
        self._patience = Patience()
        self._polygons = {
            province.key: polygon
            for province, polygon in zip(region.provinces, outlines.polygons, strict=True)
        }

    def start(self) -> Iterable[Query]:
        """One question: which licences there are. All else follows from its answer."""
        o = self.options
        # All that decides over the answers is in the first query, so that other options begin
        # another collection instead of going on with this one's answers.
        wanted = None if o.licenses is None else sorted(o.licenses)
        yield Query(
            "licenses",
            {
                "wanted": wanted,
                "accuracy": o.min_accuracy,
                "outdoors": o.outdoors_only,
                "uploaded": [o.uploaded_from, o.uploaded_until],
                "taken": [o.taken_from, o.taken_until],
                "provinces": list(self._polygons),
                **self._paging(),
            },
        )

    def _paging(self) -> dict[str, Any]:
        """Which photos a page has and which of their sizes, and when an area is split."""
        o = self.options
        return {
            "per_page": o.per_page,
            "cap": o.result_cap,
            "smallest": [o.min_tile_km, o.min_window_s],
            "max_side": o.max_side,
        }

    async def ask(self, query: Query, client: Client) -> Answer:
        """See :meth:`geopak.sources.records.Source.ask`.

        Raises:
            SourceError: no key, a wrong key, or a fault of the query.
            UnavailableError: Flickr is not available now.
        """
        if query.kind == "licenses":
            return await self._ask_licenses(query, client)
        return await self._ask_photos(query, client)

    async def locate(self, photo: FoundPhoto, client: Client) -> str:
        """Never needed: photos come with their addresses."""
        raise SourceError(f"Flickr photo {photo.source_id} has no address.")

    def estimate(self, targets: Mapping[str, int]) -> Estimate:
        """See :meth:`geopak.sources.records.Source.estimate`."""
        o = self.options
        wanted = {key: targets.get(key) for key in self._polygons if targets.get(key) != 0}
        least = sum(math.ceil((count or 1) / o.per_page) for count in wanted.values())
        most = sum(self._most_requests(key, count) for key, count in wanted.items())
        return Estimate(
            requests={"search": (1 + least, 1 + most)},
            cost_usd=None,
            assumptions=(
                "Flickr's interface is free for non-commercial use; it permits 3,600 requests an "
                "hour and key.",
                f"At least: every page of {o.per_page} photos is full and every photo is kept.",
                f"At most: the area of a province holds {o.estimated_in_province:,} photos that "
                "are asked for (source.estimated_in_province), all of them wanted where it has no "
                f"target, and {o.estimated_found_per_kept:g} are looked through for each one that "
                "is kept (source.estimated_found_per_kept); they are so crowded that areas of more "
                f"than {o.result_cap:,} are split {_EXTRA_SPLITS} times oftener than if all were "
                "spread evenly.",
                "How many photos there are is known only to Flickr; a province that has fewer than "
                "its target ends sooner.",
            ),
        )

    def _most_requests(self, province: str, target: int | None) -> int:
        o = self.options
        there = max(target or 0, o.estimated_in_province)
        found = there if target is None else math.ceil(target * o.estimated_found_per_kept)
        roots = cover(self._polygons[province])
        span_s = max(2.0, self._until() - self._since())
        deepest = sum(
            max(0, math.ceil(math.log2(ratio)))
            for ratio in (max(t.side_km for t in roots) / o.min_tile_km, span_s / o.min_window_s)
        )
        # No level of splitting has more areas above the cap than this; all of them may be split
        # before the first photo comes.
        crowded = max(found, there) // (o.result_cap + 1)
        levels = min(deepest, math.ceil(math.log(max(crowded, 1), 4)) + _EXTRA_SPLITS)
        split = sum(min(len(roots) * 4**level, crowded) for level in range(levels))
        # Each has up to four parts, and each part a page that is not full.
        return len(roots) + 4 * split + math.ceil(found / o.per_page)

    def _since(self) -> int:
        return int(moment("uploaded_from", self.options.uploaded_from).timestamp())

    def _until(self) -> int:
        text = self.options.uploaded_until
        if text is None:
            return int(time.time())
        return int(moment("uploaded_until", text, last=True).timestamp())

    async def _ask_licenses(self, query: Query, client: Client) -> Answer:
        def read(told: Any) -> dict[str, str]:
            return {str(x["id"]): str(x.get("url") or "") for x in told["licenses"]["license"]}

        method = {"method": "flickr.photos.licenses.getInfo"}
        listed = await self._call(client, method, query, read)
        codes = {code: LICENSE_CODES.get(code, from_url(url)) for code, url in listed.items()}
        asked = [code for code in codes if self._is_wanted(codes[code])]
        if not asked:
            raise SourceError(
                f"Flickr has none of the licences {', '.join(self.options.licenses or ())} "
                "(source.licenses)."
            )
        params: dict[str, Any] = {
            "accuracy": self.options.min_accuracy,
            "outdoors": self.options.outdoors_only,
            # In the parameters, so that a collection that goes on tomorrow asks for the same.
            "uploaded": [self._since(), self._until()],
            "taken": [self.options.taken_from, self.options.taken_until],
            "page": 1,
            **self._paging(),
        }
        if self.options.licenses is not None:
            params["licenses"] = sorted(asked, key=int)
        newer = {c: key for c, key in codes.items() if c not in LICENSE_CODES and key is not None}
        if newer:
            params["codes"] = newer
        return Answer(
            more=tuple(
                Query("search", {**params, "tile": tile.edges}, province)
                for province, polygon in self._polygons.items()
                for tile in cover(polygon)
            )
        )

    def _is_wanted(self, key: str | None) -> bool:
        wanted = self.options.licenses
        return wanted is None or (base_key(key) if key else "unknown") in wanted

    async def _ask_photos(self, query: Query, client: Client) -> Answer:
        def read(told: Any) -> tuple[int, list[Any]]:
            return int(told["photos"]["total"]), list(told["photos"]["photo"])

        # Of the query, not of the options: its pages are those that it began with.
        params = query.params
        cap, per_page, page = int(params["cap"]), int(params["per_page"]), int(params["page"])
        total, entries = await self._call(client, self._search(query), query, read)
        beyond: list[Refused] = []
        capped = bool(params.get("capped"))
        if total > cap and not capped:
            smaller = self._smaller(query)
            if smaller:
                # What this page shows is in one of the parts again.
                return Answer(more=smaller)
            capped = True
            beyond = [_beyond(query, total, cap)]
        photos, refused = self._read(entries, params.get("codes") or {}, params["max_side"])
        more: tuple[Query, ...] = ()
        if page * per_page < min(total, cap):
            following = {**params, "page": page + 1, **({"capped": True} if capped else {})}
            more = (Query("search", following, query.province),)
        return Answer(photos, more, (*beyond, *refused), len(entries))

    def _search(self, query: Query) -> dict[str, Any]:
        params = query.params
        south, west, north, east = Tile.of(params["tile"]).box_deg
        asked: dict[str, Any] = {
            "method": "flickr.photos.search",
            "bbox": ",".join(f"{edge:.6f}" for edge in (west, south, east, north)),
            "has_geo": 1,
            "accuracy": params["accuracy"],
            "min_upload_date": params["uploaded"][0],
            "max_upload_date": params["uploaded"][1],
            "media": "photos",
            "content_type": 1,
            "safe_search": 1,
            "sort": "date-posted-asc",
            "extras": _EXTRAS,
            "per_page": params["per_page"],
            "page": params["page"],
        }
        if "licenses" in params:
            asked["license"] = ",".join(params["licenses"])
        if params["outdoors"]:
            asked["geo_context"] = 2
        for key, text, last in (
            ("min_taken_date", params["taken"][0], False),
            ("max_taken_date", params["taken"][1], True),
        ):
            if text is not None:
                asked[key] = f"{moment(key, text, last=last):%Y-%m-%d %H:%M:%S}"
        return asked

    def _smaller(self, query: Query) -> tuple[Query, ...]:
        """The parts of a query that has too many results; none: it cannot be split."""
        tile = Tile.of(query.params["tile"])
        changes: list[dict[str, Any]] = []
        assert query.province is not None
        least_km, least_s = query.params["smallest"]
        if tile.side_km / 2 >= least_km:
            smaller = parts(tile, self._polygons[query.province])
            changes = [{"tile": part.edges} for part in smaller]
        begin, end = query.params["uploaded"]
        if not changes and end - begin + 1 >= 2 * least_s:
            middle = (begin + end) // 2
            changes = [{"uploaded": [begin, middle]}, {"uploaded": [middle + 1, end]}]
        return tuple(
            Query("search", {**query.params, **change, "page": 1}, query.province)
            for change in changes
        )

    def _read(
        self, entries: Iterable[Any], newer: Mapping[str, str], max_side: int | None
    ) -> tuple[tuple[FoundPhoto, ...], tuple[Refused, ...]]:
        photos: dict[str, FoundPhoto] = {}
        refused = []
        for entry in entries:
            read = self._read_entry(entry, newer, max_side)
            if isinstance(read, Refused):
                refused.append(read)
            else:
                photos.setdefault(read.source_id, read)
        return tuple(photos.values()), tuple(refused)

    def _read_entry(
        self, entry: Any, newer: Mapping[str, str], max_side: int | None
    ) -> FoundPhoto | Refused:
        if not isinstance(entry, Mapping) or not entry.get("id"):
            return Refused("without id", "malformed", _shown(entry))
        photo_id = str(entry["id"])
        if str(entry.get("media", "photo")) != "photo":
            return Refused(photo_id, "not_a_photo", f"media {entry['media']!r}")
        level = _whole(entry.get("accuracy"))
        place = _place(entry)
        # Level 0 at 0, 0 is how a photo without a location is given.
        if place is None or level == 0:
            where = f"latitude {entry.get('latitude')!r}, longitude {entry.get('longitude')!r}"
            return Refused(photo_id, "no_coordinate", _shown(f"{where}, accuracy {level}"))
        if level is not None and level < self.options.min_accuracy:
            return Refused(photo_id, "accuracy_too_low", f"level {level}")
        owner = str(entry.get("owner") or "")
        if not owner:
            return Refused(photo_id, "no_author", "without an owner nobody can be named")
        offered = _sizes(entry)
        if not offered:
            return Refused(photo_id, "no_picture", "the owner offers no size")
        url, width, height = _best(offered, max_side)
        code = str(entry.get("license", ""))
        return FoundPhoto(
            source_id=photo_id,
            latitude=place[0],
            longitude=place[1],
            url=url,
            accuracy_km=accuracy_km(level),
            license=newer.get(code) or LICENSE_CODES.get(code),
            author=str(entry.get("ownername") or owner),
            author_url=f"https://www.flickr.com/people/{quote(owner, safe='@')}/",
            page_url=f"https://www.flickr.com/photos/{quote(owner, safe='@')}/{quote(photo_id)}/",
            captured_at=_captured_at(entry),
            title=str(entry.get("title") or "") or None,
            width=width,
            height=height,
        )

    async def _call(
        self,
        client: Client,
        params: Mapping[str, Any],
        query: Query,
        read: Callable[[Any], T],
    ) -> T:
        """A call of the interface; repeated while that says that it is not available.

        Args:
            client: to ask by.
            params: of the call.
            query: that it is for.
            read: takes what is wanted out of a good answer; what it stumbles over is none.

        Raises:
            SourceError: any other fault; a RefusedQueryError where other queries may do.
            UnavailableError: it stays unavailable.
        """
        from geopak.sources.http_errors import UnavailableError

        key = _key()
        fault = odd = ""
        for attempt in range(self.options.attempts):
            if attempt:
                # As after a 503: longer each time, and never all at once.
                grown = self.options.pause_s * 2 ** (attempt - 1)
                await asyncio.sleep(random.uniform(grown / 2, grown * 1.5))
            told = await client.get_json(
                self.options.api,
                {**params, "format": "json", "nojsoncallback": 1},
                kind="search",
                secrets={"api_key": key},
            )
            odd = f"Flickr's answer to {params['method']} is not in the documented form"
            fault = f"{odd} ({_shown(told)})"
            if not isinstance(told, Mapping) or told.get("stat") not in ("ok", "fail"):
                continue
            if told["stat"] == "ok":
                try:
                    answer = read(told)
                except (AttributeError, KeyError, TypeError, ValueError):
                    continue
                self._patience.good()
                return answer
            odd = ""
            code = _whole(told.get("code"))
            message = shown(str(told.get("message") or ""), KEY_VARIABLE)
            fault = f"Flickr answers {code} {message!r} to {params['method']}"
            if code == 100:
                raise SourceError(
                    f"{fault}. Set {KEY_VARIABLE} to a valid key from "
                    "https://www.flickr.com/services/apps/create/."
                )
            if code not in _UNAVAILABLE and "not currently available" not in message:
                refusal = SourceError if code in _HOPELESS else RefusedQueryError
                raise refusal(f"{fault} ({_shown(dict(query.params))}).")
        if odd:
            raise self._patience.odd(f"{fault}. Is source.api right?")
        raise UnavailableError(f"{fault}, {self.options.attempts} times.")


def _key() -> str:
    return key_of(
        KEY_VARIABLE,
        f"Flickr needs a key: set the environment variable {KEY_VARIABLE}. One gets a key, "
        "free for non-commercial use, at https://www.flickr.com/services/apps/create/.",
    )


def _beyond(query: Query, total: int, cap: int) -> Refused:
    south, west, north, east = Tile.of(query.params["tile"]).box_deg
    begin, end = query.params["uploaded"]
    where = f"bbox {west:.6f},{south:.6f},{east:.6f},{north:.6f} uploaded {begin}..{end}"
    return Refused(
        where,
        "beyond_cap",
        f"{total - cap:,} of {total:,} photos cannot be reached; lower source.min_tile_km or "
        "source.min_window_s",
    )


def _shown(value: object) -> str:
    return shown(value, KEY_VARIABLE)


def _whole(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None


def _place(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    try:
        latitude, longitude = float(entry["latitude"]), float(entry["longitude"])
    except (KeyError, TypeError, ValueError):
        return None
    on_globe = abs(latitude) <= 90 and abs(longitude) <= 180
    return (latitude, longitude) if on_globe and (latitude or longitude) else None


def _sizes(entry: Mapping[str, Any]) -> list[tuple[str, int | None, int | None, int | None]]:
    """(URL, longer side, width, height) of each offered size, the largest first."""
    found = []
    for size, side in SIZES.items():
        url = entry.get(f"url_{size}")
        if url:
            width, height = (_whole(entry.get(f"{axis}_{size}")) for axis in ("width", "height"))
            known = [length for length in (width, height) if length]
            found.append((str(url), max(known) if known else side, width or None, height or None))
    return found


def _best(
    offered: list[tuple[str, int | None, int | None, int | None]], max_side: int | None
) -> tuple[str, int | None, int | None]:
    """The largest that is no longer than the limit, else the smallest."""
    if max_side is None:
        url, _, width, height = offered[0]
        return url, width, height
    fitting = [size for size in offered if size[1] is not None and size[1] <= max_side]
    url, _, width, height = max(fitting, key=lambda size: size[1] or 0) if fitting else offered[-1]
    return url, width, height


def _captured_at(entry: Mapping[str, Any]) -> str | None:
    text = str(entry.get("datetaken") or "")
    if str(entry.get("datetakenunknown", "0")) == "1" or not re.match(r"[1-9]\d{3}-", text):
        return None
    known = text.replace(" ", "T", 1)[: _KNOWN.get(str(entry.get("datetakengranularity", "0")), 4)]
    # Months and days that are not known are zeros.
    return re.split(r"-00", known)[0]
