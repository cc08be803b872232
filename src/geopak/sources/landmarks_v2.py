"""Google Landmarks v2: photos of landmarks on Wikimedia Commons, at the landmark's coordinate.

The data set's tables (https://github.com/cvdfoundation/google-landmark) name 4.1 million photos of
200,000 landmarks, each a category of Commons. They have no coordinates. These come from Wikimedia:

1. ``labels``: the table of landmarks is cut into groups of 50. ``images``: that of photos is read.
2. ``coordinates``: a group's categories are asked for their primary coordinate and their Wikidata
   item (``prop=coordinates|pageprops`` of the GeoData and PageProps modules).
3. ``items``: items of categories that have no coordinate are asked for P625, those that are only
   about a category for P301, its main topic, first.
4. ``photos``: the photos of landmarks in the region are looked up in ``train.csv``.
5. ``files``: 50 of them at a time, Commons is asked for licence, author, date and address
   (``prop=imageinfo``), and which of them it no longer has.

All photos of a landmark get its one coordinate. How weak that is says ``accuracy_km``: half of the
landmark's ``dim`` (GeoData's extent in metres) or the precision of P625, and never less than some
kilometres, since one photographs a fort from afar.

How Wikimedia is asked: :mod:`geopak.sources.wikimedia`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import numpy as np

from geopak.errors import SourceError
from geopak.schema.sources.landmarks_v2 import LandmarksV2Options
from geopak.sources.client import Client
from geopak.sources.landmark_tables import (
    Attributions,
    ImageRow,
    Images,
    check_header,
    file_name_of,
    fingerprint,
    read_labels,
)
from geopak.sources.records import Answer, Estimate, FoundPhoto, Query, Refused
from geopak.sources.wikimedia import (
    Wikimedia,
    best_claim,
    captured_at,
    license_of,
    number,
    plain_text,
)

if TYPE_CHECKING:
    from geopak.geo.boundaries import Outlines
    from geopak.geo.region import Region

_EARTH = ("earth", "http://www.wikidata.org/entity/Q2", "https://www.wikidata.org/entity/Q2")
_KM_PER_DEGREE = 6371.0088 * math.pi / 180
# Titles of a request are in its address, which servers take up to some 8 kB of.
_TITLES_BYTES = 6000
_SIDES = ("width", "height")
_METADATA = ("Artist", "LicenseShortName", "LicenseUrl", "DateTimeOriginal")


@dataclass(frozen=True)
class _Place:
    latitude: float
    longitude: float
    accuracy_km: float


class LandmarksV2:
    """The source ``landmarks_v2``.

    Args:
        options: of the source.
        region: of which photos are wanted.
        outlines: of its provinces.
    """

    name = "landmarks_v2"
    kinds = ("coordinates", "items", "files")
    # One request after the other takes about so long anyway.
    rate_per_s = 5.0

    def __init__(self, options: LandmarksV2Options, region: Region, outlines: Outlines) -> None:
        self.options = options
        self.region = region
        self.outlines = outlines
        hosts = (urlsplit(api).netloc for api in (options.commons_api, options.wikidata_api))
        self.api_hosts = tuple(dict.fromkeys(hosts))
        self.photo_hosts: tuple[str, ...] = ("upload.wikimedia.org",)
        if options.pictures is not None:
            self.photo_hosts = ()
        self._wikimedia = Wikimedia(options)
        self._reading = asyncio.Lock()
        self._images: Images | None = None
        self._attributions: Attributions | None = None

    @property
    def _labels(self) -> Path:
        return Path(str(self.options.labels)).expanduser()

    def start(self) -> Iterable[Query]:
        """Two queries: the table of landmarks, and that of photos.

        Raises:
            SourceError: a table or folder is missing, or is another one.
        """
        options = self.options
        check_header(self._labels, ("landmark_id", "category"), "train_label_to_category.csv")
        images = Path(str(options.images)).expanduser()
        check_header(images, ("id", "url", "landmark_id"), "train.csv")
        if options.attribution is not None:
            check_header(
                Path(options.attribution).expanduser(),
                ("id", "url", "author", "license", "title"),
                "train_attribution.csv",
            )
        if options.pictures is not None and not Path(options.pictures).expanduser().is_dir():
            raise SourceError(
                f"source.pictures={options.pictures} is no folder. It is the one that the data "
                "set's tar files were extracted in, with folders 0 to f; null downloads from "
                "Commons."
            )
        labels = {"table": self._labels.name, "version": fingerprint(self._labels)}
        yield self._query("labels", labels)
        yield Query("images", {"table": images.name, "version": fingerprint(images)})

    def _query(self, kind: str, params: Mapping[str, Any], province: str | None = None) -> Query:
        """A query, with what decides over its answer and those that follow from it."""
        o = self.options
        reading = [
            o.least_accuracy_km, o.accuracy_km, o.wikidata, o.ask_files,
            o.thumbnail_px, o.pictures is not None,
        ]  # fmt: skip
        return Query(kind, {**params, "reading": reading}, province)

    async def ask(self, query: Query, client: Client) -> Answer:
        """Does one of the steps.

        Raises:
            SourceError: a table has changed or is broken, Wikimedia refuses, or there is no address
                to write to.
        """
        steps = {
            "labels": self._ask_labels,
            "images": self._ask_images,
            "coordinates": self._ask_coordinates,
            "items": self._ask_items,
            "photos": self._ask_photos,
            "files": self._ask_files,
        }
        return await steps[query.kind](query.params, client)

    async def locate(self, photo: FoundPhoto, client: Client) -> str:
        """The picture's address on Commons, or its file in the data set."""
        if self.options.pictures is None:
            assert photo.url is not None
            return photo.url
        image = photo.source_id
        folder = Path(self.options.pictures).expanduser().resolve()
        return (folder / image[0] / image[1] / image[2] / f"{image}.jpg").as_uri()

    def estimate(self, targets: Mapping[str, int]) -> Estimate:
        """Requests to Wikimedia; how many photos the region has, only they tell."""
        table = list(read_labels(self._labels))
        known = {landmark: title for _, landmark, title in table if landmark}
        groups = sum(1 for _ in self._groups(known.items()))
        requests = {"coordinates": (groups, groups)}
        if self.options.wikidata:
            # A group's items, and the main topics of those that are about categories.
            requests["items"] = (0, 2 * groups)
        if self.options.ask_files:
            most = sum(targets.values()) // self.options.titles_per_request + len(known)
            requests["files"] = (0, most)
        return Estimate(
            requests,
            None,
            (
                f"{len(known):,} landmarks are asked for {self.options.titles_per_request} at a "
                "time, wherever they are: the data set does not say",
                "most landmarks have their coordinate on Commons or, asked for in a second "
                "request, on Wikidata",
                "photos are asked for in groups of a province and of the landmarks of one "
                "request, so that at most every landmark takes a request of its own",
            ),
        )

    # --- step 1: landmarks ---------------------------------------------------------------------

    async def _ask_labels(self, params: Mapping[str, Any], client: Client) -> Answer:
        if fingerprint(self._labels) != params["version"]:
            raise SourceError(
                f"{self._labels} is another table than when this collection began. Put the former "
                "one back, or begin a new collection with another out=."
            )
        refused, known, seen = [], {}, 0
        for line, landmark, title in await asyncio.to_thread(
            lambda: list(read_labels(self._labels))
        ):
            seen += 1
            if landmark is None:
                refused.append(Refused(f"{self._labels.name} line {line}", "no_category", title))
            else:
                known[landmark] = title
        more = tuple(
            self._query("coordinates", {"landmarks": g}) for g in self._groups(known.items())
        )
        return Answer(more=more, refused=tuple(refused), seen=seen)

    def _groups(self, landmarks: Iterable[tuple[str, str]]) -> Iterator[dict[str, str]]:
        """Landmarks whose titles go into one request."""
        group: dict[str, str] = {}
        size = 0
        for landmark, title in landmarks:
            length = len(quote(title)) + 3
            full = len(group) == self.options.titles_per_request or size + length > _TITLES_BYTES
            if group and full:
                yield group
                group, size = {}, 0
            group[landmark] = title
            size += length
        if group:
            yield group

    async def _ask_images(self, params: Mapping[str, Any], client: Client) -> Answer:
        """Rows of the table of photos that are none; the others are counted as their turn comes."""
        images, _ = await self._tables()
        return Answer(
            refused=tuple(
                Refused(f"{images.path.name} line {line}", "malformed_line", text)
                for line, text in images.malformed
            ),
            seen=len(images.malformed),
        )

    # --- step 2: coordinates of categories ------------------------------------------------------

    async def _ask_coordinates(self, params: Mapping[str, Any], client: Client) -> Answer:
        landmarks: Mapping[str, str] = params["landmarks"]
        pages = await self._wikimedia.pages(
            client,
            "coordinates",
            list(dict.fromkeys(landmarks.values())),
            {
                "prop": "coordinates|pageprops",
                "coprimary": "primary",
                "coprop": "type|dim|globe",
                "colimit": "max",
                "ppprop": "wikibase_item",
            },
        )
        places: dict[str, _Place] = {}
        refused: list[Refused] = []
        items: dict[str, list[str]] = {}
        for landmark, title in landmarks.items():
            page = pages.get(title)
            place = self._place_of_page(page) if page else None
            item = (page or {}).get("pageprops", {}).get("wikibase_item")
            if place is not None:
                places[landmark] = place
            elif page is None or page.get("missing") or page.get("invalid"):
                refused.append(Refused(f"landmark {landmark}", "missing_category", title))
            elif item and self.options.wikidata:
                items.setdefault(item, []).append(landmark)
            else:
                refused.append(Refused(f"landmark {landmark}", "no_coordinate", title))
        more, outside = self._photo_queries(places)
        if items:
            more.append(self._query("items", {"items": items}))
        return Answer(more=tuple(more), refused=(*refused, *outside), seen=len(landmarks))

    def _place_of_page(self, page: Mapping[str, Any]) -> _Place | None:
        for found in page.get("coordinates", ()):
            if found.get("globe", "earth") in _EARTH:
                dim_km = number(found.get("dim")) / 1000
                return self._place(found.get("lat"), found.get("lon"), dim_km / 2)
        return None

    def _place(self, latitude: Any, longitude: Any, accuracy_km: float) -> _Place | None:
        lat, lon = number(latitude, math.nan), number(longitude, math.nan)
        if not (-90 <= lat <= 90 and -180 <= lon <= 180):
            return None
        options = self.options
        accuracy = options.accuracy_km or max(options.least_accuracy_km, accuracy_km)
        return _Place(lat, lon, round(accuracy, 3))

    def _photo_queries(self, places: Mapping[str, _Place]) -> tuple[list[Query], list[Refused]]:
        """Landmarks in the region by province, and how many are outside."""
        if not places:
            return [], []
        points = np.array([(p.latitude, p.longitude) for p in places.values()])
        provinces = self.outlines.province_of(points).tolist()
        found: dict[int, dict[str, list[float]]] = {}
        outside = []
        for (landmark, place), province in zip(places.items(), provinces, strict=True):
            if province < 0:
                outside.append(landmark)
                continue
            values = [place.latitude, place.longitude, place.accuracy_km]
            found.setdefault(province, {})[landmark] = values
        queries = [
            self._query("photos", {"landmarks": landmarks}, self.region.provinces[province].key)
            for province, landmarks in sorted(found.items())
        ]
        refused = []
        if outside:
            # Not photos, and nearly all of the world's: counted by request.
            name = f"landmarks {min(outside)} and {len(outside) - 1} more of a request"
            refused.append(Refused(name, "landmark_outside_region", f"{len(outside)} landmarks"))
        return queries, refused

    # --- step 3: coordinates of Wikidata's items --------------------------------------------------

    async def _ask_items(self, params: Mapping[str, Any], client: Client) -> Answer:
        items: Mapping[str, Sequence[str]] = params["items"]
        answer = await self._wikimedia.answer(
            client,
            self.options.wikidata_api,
            "items",
            {"action": "wbgetentities", "ids": "|".join(items), "props": "claims"},
        )
        entities = answer.get("entities", {})
        # An item that was merged into another one is given under the other's name.
        given = {e.get("redirects", {}).get("from", key): e for key, e in entities.items()}
        places: dict[str, _Place] = {}
        topics: dict[str, list[str]] = {}
        refused: list[Refused] = []
        for item, landmarks in items.items():
            claims = given.get(item, {}).get("claims") or {}
            place = self._place_of_claim(best_claim(claims.get("P625", ())))
            topic = (best_claim(claims.get("P301", ())) or {}).get("id")
            for landmark in landmarks:
                if place is not None:
                    places[landmark] = place
                elif topic and not params.get("topics"):
                    topics.setdefault(topic, []).append(landmark)
                else:
                    refused.append(Refused(f"landmark {landmark}", "no_coordinate", item))
        more, outside = self._photo_queries(places)
        if topics:
            more.append(self._query("items", {"items": topics, "topics": True}))
        return Answer(more=tuple(more), refused=(*refused, *outside), seen=len(items))

    def _place_of_claim(self, value: Any) -> _Place | None:
        if not isinstance(value, Mapping) or value.get("globe", _EARTH[1]) not in _EARTH:
            return None
        precision_km = number(value.get("precision")) * _KM_PER_DEGREE
        return self._place(value.get("latitude"), value.get("longitude"), precision_km)

    # --- step 4: photos of landmarks ------------------------------------------------------------

    async def _ask_photos(self, params: Mapping[str, Any], client: Client) -> Answer:
        images, attributions = await self._tables()
        refused, photos = [], []
        seen = 0
        rows: list[tuple[ImageRow, list[float]]] = []
        for landmark, place in params["landmarks"].items():
            found = await asyncio.to_thread(images.of, int(landmark))
            seen += len(found)
            if not found:
                refused.append(Refused(f"landmark {landmark}", "no_photos"))
            rows += [(row, place) for row in found]
        if self.options.ask_files:
            more = tuple(
                self._query("files", {"files": group}, self._province_key(group[0][3:5]))
                for group in self._file_groups(rows)
            )
            return Answer(more=more, refused=tuple(refused), seen=seen)
        for row, place in rows:
            told = attributions.of(row.image) if attributions else None
            photos.append(
                self._photo(
                    row.image, row.url, row.landmark, place,
                    license=license_of(told.license) if told else None,
                    author=(plain_text(told.author) or None) if told else None,
                )
            )  # fmt: skip
        return Answer(tuple(photos), (), tuple(refused), seen)

    def _province_key(self, point: Sequence[float]) -> str:
        return self.region.provinces[int(self.outlines.province_of([point])[0])].key

    async def _tables(self) -> tuple[Images, Attributions | None]:
        """The tables, read once."""
        options = self.options
        async with self._reading:
            if self._images is None:
                path = Path(str(options.images)).expanduser()
                self._images = await asyncio.to_thread(Images, path)
            if self._attributions is None and options.attribution is not None:
                path = Path(options.attribution).expanduser()
                self._attributions = await asyncio.to_thread(Attributions, path)
        return self._images, self._attributions

    def _file_groups(
        self, rows: Sequence[tuple[ImageRow, list[float]]]
    ) -> Iterator[list[list[Any]]]:
        group: list[list[Any]] = []
        size = 0
        for row, place in rows:
            length = len(quote(f"File:{file_name_of(row.url)}")) + 3
            full = len(group) == self.options.titles_per_request or size + length > _TITLES_BYTES
            if group and full:
                yield group
                group, size = [], 0
            group.append([row.image, row.url, row.landmark, *place])
            size += length
        if group:
            yield group

    def _photo(
        self, image: str, url: str, landmark: str, place: Sequence[float], **told: Any
    ) -> FoundPhoto:
        """A photo of the table, with what is told of it besides."""
        name = file_name_of(url)
        page = f"{self.options.commons.rstrip('/')}/wiki/File:{quote(name.replace(' ', '_'))}"
        picture = told.pop("picture", None) or url
        if picture.startswith("http://upload.wikimedia.org/"):
            picture = picture.replace("http://", "https://", 1)
        return FoundPhoto(
            source_id=image,
            latitude=place[0],
            longitude=place[1],
            url=None if self.options.pictures is not None else picture,
            accuracy_km=place[2],
            page_url=told.pop("page_url", None) or page,
            title=name.rpartition(".")[0] or name,
            album=f"landmark {landmark}",
            **told,
        )

    # --- step 5: what Commons says of the files ---------------------------------------------------

    async def _ask_files(self, params: Mapping[str, Any], client: Client) -> Answer:
        _, attributions = await self._tables()
        titles = {row[0]: f"File:{file_name_of(row[1])}" for row in params["files"]}
        asked: dict[str, Any] = {
            "prop": "imageinfo",
            "iiprop": "url|size|mime|extmetadata",
            "iiextmetadatafilter": "|".join(_METADATA),
        }
        if self.options.thumbnail_px is not None and self.options.pictures is None:
            asked["iiurlwidth"] = self.options.thumbnail_px
        pages = await self._wikimedia.pages(
            client, "files", list(dict.fromkeys(titles.values())), asked
        )
        photos, refused = [], []
        for image, url, landmark, *place in params["files"]:
            info = next(iter(pages.get(titles[image], {}).get("imageinfo", ())), None)
            if not info or info.get("filemissing"):
                refused.append(Refused(image, "gone", titles[image]))
                continue
            if not str(info.get("mime", "image/")).startswith("image/"):
                refused.append(Refused(image, "not_an_image", str(info["mime"])))
                continue
            told = attributions.of(image) if attributions else None
            data = {
                key: str(value.get("value", "")) if isinstance(value, Mapping) else ""
                for key, value in (info.get("extmetadata") or {}).items()
            }
            author = plain_text(data.get("Artist", "")) or (told.author if told else "")
            sizes = {}
            if self.options.pictures is None:
                sizes = {side: info.get(f"thumb{side}") or info.get(side) for side in _SIDES}
            photos.append(
                self._photo(
                    image,
                    url,
                    landmark,
                    place,
                    picture=info.get("thumburl") or info.get("url"),
                    page_url=info.get("descriptionurl"),
                    license=license_of(
                        data.get("LicenseUrl"),
                        data.get("LicenseShortName"),
                        otherwise=license_of(told.license if told else None),
                    ),
                    author=author[:500] or None,
                    captured_at=captured_at(data.get("DateTimeOriginal", "")),
                    **sizes,
                )
            )
        return Answer(tuple(photos), (), tuple(refused), len(params["files"]))
