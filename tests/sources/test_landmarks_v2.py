"""Google Landmarks v2: which photos are of the region, by what Wikimedia says of landmarks."""

from __future__ import annotations

import asyncio
import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import shapely

from geopak.errors import RefusedQueryError, SourceError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.options import examine
from geopak.schema.sources.landmarks_v2 import LandmarksV2Options
from geopak.sources import wikimedia
from geopak.sources.http_errors import UnavailableError
from geopak.sources.landmarks_v2 import LandmarksV2
from geopak.sources.records import FoundPhoto
from tests.sources.asking import Asking, client, collect
from tests.sources.stand_in import as_json
from tests.sources.wikimedia_server import (
    Wiki,
    WikimediaServer,
    p301,
    p625,
    point,
    unknown_value,
)

WEST, EAST = shapely.box(60, 24, 66, 30), shapely.box(66, 24, 74, 34)
OUTLINES = Outlines((WEST, EAST))
AGENT = {"user_agent": "geopak-test/1 (me@example.org)"}
BY_SA = "https://creativecommons.org/licenses/by-sa/3.0/deed.en"
UPLOAD = "https://upload.wikimedia.org/wikipedia/commons/a/ab"


class Set:
    """A small data set in a folder: landmarks by title, each with some photos."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wiki = Wiki()
        self.labels: list[tuple[Any, str]] = []
        self.images: list[tuple[str, str, Any]] = []
        self.people: list[tuple[str, str, str, str, str]] = []
        self.rng = random.Random(1)

    def add(self, landmark: int, title: str, photos: int = 2, **page: Any) -> list[str]:
        """A landmark; ``page``: what Commons has of its category, if it has one."""
        url = "http://commons.wikimedia.org/wiki/" + quote(title.replace(" ", "_"), safe=":_")
        self.labels.append((landmark, url))
        if page:
            self.wiki.categories[title] = page
        made = []
        for k in range(photos):
            image, name = f"{self.rng.randrange(16**16):016x}", f"{title[9:]}, photo {k}.jpg"
            made.append(image)
            self.images.append((image, f"{UPLOAD}/{quote(name.replace(' ', '_'))}", landmark))
            self.people.append(
                (image, f"https://commons.wikimedia.org/wiki/File:{name}", "Old, Name", BY_SA, name)
            )
            self.wiki.files[f"File:{name[:1].upper()}{name[1:]}"] = {
                "width": 2000,
                "height": 1500,
                "extmetadata": {
                    "Artist": '<a href="//commons.wikimedia.org/wiki/User:A">Ana &amp; Bé</a>',
                    "LicenseShortName": "CC BY-SA 4.0",
                    "LicenseUrl": "https://creativecommons.org/licenses/by-sa/4.0",
                    "DateTimeOriginal": "2014-05-06 10:20:30",
                },
            }
        return made

    def write(self) -> None:
        """Writes the tables, photos in no order."""
        rows = list(self.images)
        random.Random(2).shuffle(rows)
        for name, header, table in (
            ("train_label_to_category.csv", ("landmark_id", "category"), self.labels),
            ("train.csv", ("id", "url", "landmark_id"), rows),
            (
                "train_attribution.csv",
                ("id", "url", "author", "license", "title"),
                sorted(self.people),
            ),
        ):
            with (self.folder / name).open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(header)
                writer.writerows(table)

    def options(self, server: WikimediaServer | None = None, **more: Any) -> LandmarksV2Options:
        base = server.url if server else "http://127.0.0.1:1"
        return LandmarksV2Options(
            **{
                "name": "landmarks_v2",
                "images": str(self.folder / "train.csv"),
                "labels": str(self.folder / "train_label_to_category.csv"),
                "commons_api": f"{base}/commons/w/api.php",
                "wikidata_api": f"{base}/wikidata/w/api.php",
                "contact": "me@example.org",
                **more,
            }
        )


@pytest.fixture
def region(region_config: dict[str, Any]) -> Region:
    del region_config["provinces"]["coast_land"]
    return Region.from_config(region_config)


@pytest.fixture
def data(tmp_path: Path) -> Set:
    return Set(tmp_path)


def run(data: Set, region: Region, **options: Any) -> tuple[Asking, WikimediaServer]:
    data.write()
    with WikimediaServer(data.wiki) as server:
        source = LandmarksV2(data.options(server, **options), region, OUTLINES)
        return collect(source, **AGENT), server


def places(driver: Asking) -> dict[str, tuple[float, float, float | None]]:
    assert len({p.source_id for p in driver.photos}) == len(driver.photos)
    return {p.source_id: (p.latitude, p.longitude, p.accuracy_km) for p in driver.photos}


def reasons(driver: Asking) -> Counter[str]:
    return Counter(refused.reason for refused in driver.refused)


def test_photos_of_landmarks_in_the_region_with_all_that_is_known(
    data: Set, region: Region
) -> None:
    inside = data.add(7, "Category:Lake Saiful Muluk", 3, coordinates=[point(25, 61, 20_000)])
    data.add(8, "Category:Königssee", 4, coordinates=[point(47.5, 12.9)])
    driver, server = run(data, region)
    assert places(driver) == dict.fromkeys(inside, (25.0, 61.0, 10.0))
    photo = next(p for p in driver.photos if p.source_id == inside[0])
    assert photo == FoundPhoto(
        source_id=inside[0], latitude=25.0, longitude=61.0, accuracy_km=10.0,
        url=f"{server.url}/commons/upload/thumb/Lake_Saiful_Muluk%2C_photo_0.jpg/"
        "960px-Lake_Saiful_Muluk%2C_photo_0.jpg",
        license="cc-by-sa-4.0", author="Ana & Bé", captured_at="2014-05-06T10:20:30",
        page_url="https://commons.wikimedia.org/wiki/File:Lake_Saiful_Muluk%2C_photo_0.jpg",
        title="Lake Saiful Muluk, photo 0", width=960, height=720, album="landmark 7",
    )  # fmt: skip
    # Nothing was asked about photos of other countries.
    asked = [r.query["titles"] for r in server.asked("/commons") if "imageinfo" in r.query["prop"]]
    assert [sorted(title.count("Saiful") for title in t.split("|")) for t in asked] == [[1, 1, 1]]
    assert reasons(driver) == {"landmark_outside_region": 1}


def test_a_query_for_photos_is_its_provinces(data: Set, region: Region) -> None:
    data.add(1, "Category:A", 1, coordinates=[point(25, 61)])
    data.add(2, "Category:B", 1, coordinates=[point(25, 70)])
    driver, _ = run(data, region)
    told = {
        (query.kind, query.province)
        for answer in driver.answers.values()
        for query in answer.more
        if query.kind in ("photos", "files")
    }
    assert told == {(k, p) for k in ("photos", "files") for p in ("capital", "desert")}


def test_wikidata_is_asked_where_commons_has_no_coordinate(data: Set, region: Region) -> None:
    wiki = data.wiki
    precise = data.add(1, "Category:Precise", 1, item="Q1")
    wiki.items["Q1"] = {"P625": [p625(25, 61, 1 / 3600)]}
    rough = data.add(2, "Category:Rough", 1, item="Q2")
    wiki.items["Q2"] = {"P625": [p625(26, 62, 0.1)]}
    # Of an item about a category, the topic's coordinate counts; of several, the preferred one.
    topic = data.add(3, "Category:Topic", 1, item="Q3")
    wiki.items["Q3"] = {"P301": [p301("Q30")]}
    wiki.items["Q30"] = {
        "P625": [
            p625(1, 1, rank="deprecated"), p625(2, 2), unknown_value("P625"),
            p625(27, 63, rank="preferred"),
        ]
    }  # fmt: skip
    merged = data.add(4, "Category:Merged", 1, item="Q4")
    wiki.merged["Q4"] = "Q40"
    wiki.items["Q40"] = {"P625": [p625(28, 64)]}
    data.add(5, "Category:On the Moon", 1, item="Q5")
    wiki.items["Q5"] = {"P625": [p625(25, 61, globe="http://www.wikidata.org/entity/Q405")]}
    data.add(6, "Category:Nowhere", 1, item="Q6")
    wiki.items["Q6"] = {}
    data.add(7, "Category:Gone item", 1, item="Q7")
    # A topic that is a category's item again is not followed for ever.
    data.add(8, "Category:Circle", 1, item="Q8")
    wiki.items["Q8"] = {"P301": [p301("Q8")]}
    driver, server = run(data, region)
    assert places(driver) == {
        precise[0]: (25.0, 61.0, 2.0),
        rough[0]: (26.0, 62.0, 11.12),
        topic[0]: (27.0, 63.0, 2.0),
        merged[0]: (28.0, 64.0, 2.0),
    }
    assert reasons(driver) == {"no_coordinate": 4}
    assert len(server.asked("/wikidata")) == 2


def test_without_wikidata_its_landmarks_are_refused(data: Set, region: Region) -> None:
    data.add(1, "Category:A", 1, item="Q1")
    driver, server = run(data, region, wikidata=False)
    assert reasons(driver) == {"no_coordinate": 1}
    assert not server.asked("/wikidata")


def test_titles_are_found_again_however_the_wiki_spells_them(data: Set, region: Region) -> None:
    wiki = data.wiki
    moved = data.add(1, "Category:Old name", 1)
    wiki.redirects["Category:Old name"] = "Category:New name"
    wiki.categories["Category:New name"] = {"coordinates": [point(25, 61)]}
    lower = data.add(2, "Category:lower case", 1)
    wiki.categories["Category:Lower case"] = {"coordinates": [point(26, 62)]}
    twice = data.add(3, "Category:New name", 1)
    data.add(4, "Category:Missing", 1)
    data.add(5, "Category:Moon", 1, coordinates=[point(25, 61, globe="moon")])
    comma = data.add(6, 'Category:Fort, "A" & B?', 1, coordinates=[point(27, 63)])
    data.labels.append(("x", "http://commons.wikimedia.org/wiki/Category:Bad"))
    data.labels.append((99, "http://example.org/no-wiki"))
    driver, _ = run(data, region)
    assert {key: value[:2] for key, value in places(driver).items()} == {
        moved[0]: (25.0, 61.0), twice[0]: (25.0, 61.0), lower[0]: (26.0, 62.0),
        comma[0]: (27.0, 63.0),
    }  # fmt: skip
    assert reasons(driver) == {"missing_category": 1, "no_coordinate": 1, "no_category": 2}


def test_many_landmarks_in_groups_and_answers_in_parts(data: Set, region: Region) -> None:
    rng, wanted = random.Random(5), {}
    for number in range(230):
        place = (rng.uniform(20, 38), rng.uniform(55, 80))
        long = " مینار" * (number % 40)
        made = data.add(number, f"Category:L{number}{long}", 1, coordinates=[point(*place)])
        if any(p.covers(shapely.Point(place[1], place[0])) for p in (WEST, EAST)):
            wanted[made[0]] = (*place, 2.0)
    data.wiki.part = 20
    driver, server = run(data, region)
    assert places(driver) == wanted
    assert 20 < len(wanted) < 200
    longest = max(len(record.request.target) for record in server.requests)
    assert longest < 8000
    # Every landmark is counted: photos, or outside.
    outside = sum(
        int(r.detail.split()[0]) for r in driver.refused if r.reason == "landmark_outside_region"
    )
    assert outside + len(wanted) == 230


def test_accuracy(data: Set, region: Region) -> None:
    (a,) = data.add(1, "Category:A", 1, coordinates=[point(25, 61, "30000")])
    (b,) = data.add(2, "Category:B", 1, coordinates=[point(25, 61, None)])
    driver, _ = run(data, region, least_accuracy_km=3.0)
    assert {key: value[2] for key, value in places(driver).items()} == {a: 15.0, b: 3.0}
    driver, _ = run(data, region, accuracy_km=7.5)
    assert {value[2] for value in places(driver).values()} == {7.5}


def test_files_that_commons_no_longer_has_are_refused(data: Set, region: Region) -> None:
    data.add(1, "Category:A", 4, coordinates=[point(25, 61)])
    files = data.wiki.files
    del files["File:A, photo 0.jpg"]
    files["File:A, photo 1.jpg"]["mime"] = "video/webm"
    files["File:A, photo 2.jpg"].update(width=300, height=200, extmetadata={})
    driver, server = run(data, region)
    assert reasons(driver) == {"gone": 1, "not_an_image": 1}
    small = next(p for p in driver.photos if p.title == "A, photo 2")
    # Commons makes no picture larger than the original, and knows nothing of this one.
    assert (small.width, small.height) == (300, 200)
    assert small.url == f"{server.url}/commons/upload/A%2C_photo_2.jpg"
    assert (small.license, small.author, small.captured_at) == (None, None, None)


def test_licences_of_the_data_set_where_commons_is_not_asked(data: Set, region: Region) -> None:
    made = data.add(1, "Category:A", 2, coordinates=[point(25, 61)])
    people = str(data.folder / "train_attribution.csv")
    driver, server = run(data, region, ask_files=False, attribution=people)
    assert {p.source_id for p in driver.photos} == set(made)
    photo = driver.photos[0]
    assert (photo.license, photo.author) == ("cc-by-sa-3.0", "Old, Name")
    assert photo.url is not None
    assert photo.url.startswith("https://upload.wikimedia.org/")
    assert (
        photo.page_url == f"https://commons.wikimedia.org/wiki/File:{photo.url[len(UPLOAD) + 1 :]}"
    )
    assert len(server.requests) == 1
    driver, _ = run(data, region, ask_files=False)
    assert {(p.license, p.author) for p in driver.photos} == {(None, None)}


def test_pictures_of_the_data_set_itself(data: Set, region: Region, tmp_path: Path) -> None:
    (image,) = data.add(1, "Category:A", 1, coordinates=[point(25, 61)])
    pictures = tmp_path / "train"
    pictures.mkdir()
    data.write()
    source = LandmarksV2(data.options(pictures=str(pictures)), region, OUTLINES)
    assert source.photo_hosts == ()
    driver, _ = run(data, region, pictures=str(pictures))
    (photo,) = driver.photos
    assert photo.url is None
    assert photo.license == "cc-by-sa-4.0"
    wanted = pictures / image[0] / image[1] / image[2] / f"{image}.jpg"
    assert asyncio.run(source.locate(photo, client())) == wanted.as_uri()
    missing = LandmarksV2(data.options(pictures=str(tmp_path / "no")), region, OUTLINES)
    with pytest.raises(SourceError, match=r"source\.pictures=.*no is no folder"):
        list(missing.start())


def test_a_lag_is_waited_out_and_requests_go_one_by_one(
    data: Set, region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wikimedia, "_PAUSE_S", 0.01)
    for number in range(6):
        data.add(number, f"Category:L{number}", 1, coordinates=[point(25, 61)])
    data.write()
    data.wiki.lag = 3
    with WikimediaServer(data.wiki) as server:
        source = LandmarksV2(data.options(server, titles_per_request=1), region, OUTLINES)

        async def all_at_once() -> None:
            async with client(source.api_hosts, **AGENT) as http:
                answer = await source.ask(next(iter(source.start())), http)
                await asyncio.gather(*(source.ask(query, http) for query in answer.more))

        asyncio.run(all_at_once())
        assert server.most_at_once == 1
        assert len(server.requests) == 6 + 3
        assert {r.query["maxlag"] for r in server.requests} == {"5"}
        data.wiki.lag = 99
        again = LandmarksV2(data.options(server, lag_attempts=2), region, OUTLINES)
        for _ in range(2):
            with pytest.raises(UnavailableError, match=r"too busy 3 times \(maxlag\)"):
                collect(again, **AGENT)
        # Nothing else is to be had: the queries wait for another day.
        with pytest.raises(SourceError, match=r"too busy 3 times \(maxlag\).* Start again later"):
            collect(again, **AGENT)


@pytest.mark.parametrize(
    "changes",
    [{"thumbnail_px": 330}, {"accuracy_km": 7.0}, {"least_accuracy_km": 3.0}, {"wikidata": False}],
)
def test_other_options_ask_anew(data: Set, region: Region, changes: dict[str, Any]) -> None:
    data.add(1, "Category:A", 2, coordinates=[point(25, 61)])
    data.write()
    with WikimediaServer(data.wiki) as server:
        asked = [
            set(collect(LandmarksV2(data.options(server, **more), region, OUTLINES),
                        **AGENT).answers)
            for more in ({}, changes)
        ]  # fmt: skip
    both = {json.loads(identity)[0] for identity in asked[0] & asked[1]}
    assert both == {"images"}
    assert {json.loads(identity)[0] for identity in asked[0]} >= {"labels", "photos", "files"}


def test_an_address_to_write_to_is_asked_for_before_any_request(data: Set, region: Region) -> None:
    data.add(1, "Category:A", 1, coordinates=[point(25, 61)])
    data.write()
    with WikimediaServer(data.wiki) as server:
        source = LandmarksV2(data.options(server, contact=None), region, OUTLINES)
        with pytest.raises(SourceError, match=r"contact=me@example\.org"):
            collect(source, **AGENT)
        assert not server.requests


def test_a_refusal_of_the_interface_is_told(data: Set, region: Region) -> None:
    data.add(1, "Category:A", 1, coordinates=[point(25, 61)])
    data.write()
    with WikimediaServer(data.wiki) as server:
        error = {"error": {"code": "toomanyvalues", "info": "Too many values supplied"}}
        server.faults.add(as_json(error), times=None)
        source = LandmarksV2(data.options(server), region, OUTLINES)
        with pytest.raises(RefusedQueryError, match="toomanyvalues, Too many values supplied"):
            collect(source, **AGENT)


def test_the_estimate_asks_nothing(data: Set, region: Region) -> None:
    for number in range(120):
        data.add(number, f"Category:L{number}", 1)
    data.write()
    estimate = LandmarksV2(data.options(contact=None), region, OUTLINES).estimate({"capital": 100})
    assert estimate.requests["coordinates"] == (3, 3)
    assert estimate.requests["items"] == (0, 6)
    assert estimate.cost_usd is None


@pytest.mark.parametrize("name", ["train.csv", "train_label_to_category.csv"])
def test_tables_that_are_none_are_named(data: Set, region: Region, name: str) -> None:
    data.write()
    (data.folder / name).write_text("a,b\n1,2\n")
    source = LandmarksV2(data.options(), region, OUTLINES)
    with pytest.raises(SourceError, match=rf"{name} line 1: its columns are a, b, in place of"):
        list(source.start())
    (data.folder / name).unlink()
    with pytest.raises(SourceError, match=rf"{name} cannot be read.*google-landmark/metadata"):
        list(source.start())


def test_a_table_that_changes_is_noticed(data: Set, region: Region) -> None:
    data.add(1, "Category:A", 1)
    data.write()
    source = LandmarksV2(data.options(), region, OUTLINES)
    query = next(iter(source.start()))
    data.add(2, "Category:B", 1)
    data.write()
    with pytest.raises(SourceError, match="another table than when"):
        asyncio.run(source.ask(query, client()))


def test_malformed_rows_of_photos_are_kept_with_their_line(data: Set, region: Region) -> None:
    (image,) = data.add(1, "Category:A", 1, coordinates=[point(25, 61)])
    data.write()
    path = data.folder / "train.csv"
    path.write_text(path.read_text() + "broken\n\nabc,http://x/y.jpg,z\n")
    with WikimediaServer(data.wiki) as server:
        driver = collect(LandmarksV2(data.options(server), region, OUTLINES), **AGENT)
    assert [p.source_id for p in driver.photos] == [image]
    bad = [r for r in driver.refused if r.reason == "malformed_line"]
    assert [r.source_id for r in bad] == ["train.csv line 3", "train.csv line 5"]


def test_options_without_tables_are_refused() -> None:
    section = {"name": "landmarks_v2", "images": None, "labels": None}
    _, problems = examine(LandmarksV2Options, section, "source")
    assert [problem.key for problem in problems] == ["source.images", "source.labels"]
