"""Flickr: every photo is found in spite of the cap, none is asked for twice, faults are told."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import httpx
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.errors import ConfigError, RefusedQueryError, SourceError
from geopak.options import options as read_options
from geopak.schema.sources.flickr import FlickrOptions
from geopak.sources.addresses import host_is_listed
from geopak.sources.flickr_levels import accuracy_km
from geopak.sources.http_errors import UnavailableError
from geopak.sources.licenses import base_key
from geopak.sources.records import FoundPhoto
from tests.sources.asking import Asking, collect
from tests.sources.flickr_server import (
    BEGIN,
    BOX,
    END,
    KEY,
    LAND,
    LICENSES,
    FlickrServer,
    Shot,
    changed,
    fail,
    shots,
    source_of,
)
from tests.sources.lands import inside as lying_inside
from tests.sources.stand_in import as_json, html_page, hung_up, too_many_requests, unavailable


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLICKR_API_KEY", KEY)


def inside(server: FlickrServer, *lands: shapely.Polygon) -> set[str]:
    """Ids of the photos in the region."""
    return {shot.id for shot in lying_inside(lands or (LAND,), server.shots)}


def found_inside(got: Asking, *lands: shapely.Polygon) -> set[str]:
    return {photo.source_id for photo in lying_inside(lands or (LAND,), got.by_id.values())}


def search_urls(server: FlickrServer) -> list[str]:
    return [
        r.request.target for r in server.requests if not r.fault and "search" in r.query["method"]
    ]


def test_every_photo_is_found_once_in_spite_of_the_cap() -> None:
    with FlickrServer(shots(4000, BOX, seed=1), cap=100, most_per_page=25) as server:
        source = source_of(server)
        got = collect(source)
        expected = inside(server)
        assert found_inside(got) == expected
        assert max(got.times_found.values()) == 1
        assert not got.refused
        # Nothing was asked for twice, and the driver counts as the server does.
        urls = search_urls(server)
        assert len(urls) == len(set(urls)) == got.requests - 1
        # The cap decided: pages beyond it, which repeat themselves, were never asked for.
        assert max(int(r.query["page"]) for r in server.requests[1:]) <= 4
        # It takes no more than the estimate says.
        bounds = source.estimate({"p0": len(expected)}).requests["search"]
        assert bounds[0] <= got.requests <= bounds[1]


@settings(max_examples=7)
@given(
    st.integers(0, 10**6), st.integers(8, 60), st.integers(4, 20), st.booleans(), st.integers(0, 3)
)
def test_every_photo_is_found_whatever_the_cap(
    seed: int, cap: int, per_page: int, clustered: bool, repeats: int
) -> None:
    some = shots(300, BOX, seed=seed, clustered=clustered)
    per_page = min(per_page, cap)
    with FlickrServer(some, cap, per_page, repeats, totals_as_text=bool(seed % 2)) as server:
        source = source_of(server)
        got = collect(source)
        assert found_inside(got) == inside(server)
        assert not got.refused
        urls = search_urls(server)
        assert len(urls) == len(set(urls))
        low, high = source.estimate({"p0": len(inside(server))}).requests["search"]
        assert low <= got.requests <= high


def test_time_is_split_where_area_cannot_be() -> None:
    rng = np.random.default_rng(5)
    crowd = [
        Shot(str(n), 25.4321, 67.5678, int(at))
        for n, at in enumerate(rng.integers(BEGIN, END, 1500))
    ]
    with FlickrServer([*crowd, *shots(500, BOX, 3, first_id=10**6)], 50, 25) as server:
        source = source_of(server, min_tile_km=50.0)
        got = collect(source)
        assert found_inside(got) == inside(server)
        assert set(got.times_found.values()) == {1}
        assert not got.refused
        windows = {tuple(q.params["uploaded"]) for q in got.asked if q.kind == "search"}
        assert len(windows) > 30
        least = min(q.params["tile"][2] - q.params["tile"][0] for q in got.asked[1:])
        assert least > 0.2 * 1e6
        low, high = source.estimate({"p0": len(inside(server))}).requests["search"]
        assert low <= got.requests <= high


def test_halves_of_time_leave_no_second_out() -> None:
    burst = [Shot(str(n), 25.4321, 67.5678, BEGIN + n) for n in range(300)]
    with FlickrServer(burst, cap=10, most_per_page=5) as server:
        got = collect(source_of(server, min_tile_km=300.0, min_window_s=1))
    assert set(got.by_id) == {shot.id for shot in burst}
    assert set(got.times_found.values()) == {1}


def test_what_neither_area_nor_time_can_split_is_counted() -> None:
    crowd = [Shot(str(n), 25.4321, 67.5678, BEGIN + 1000 + n // 50) for n in range(130)]
    others = shots(200, BOX, 3, first_id=10**6)
    with FlickrServer([*crowd, *others], cap=100, most_per_page=25) as server:
        got = collect(source_of(server, min_window_s=60))
    lost = inside(server) - found_inside(got)
    assert len(lost) == 30
    (told,) = got.refused
    assert (told.reason, told.detail[:35]) == (
        "beyond_cap",
        "30 of 130 photos cannot be reached;"[:35],
    )


def test_a_region_across_the_antimeridian() -> None:
    fiji = shapely.box(176.0, -19.0, 182.0, -16.0)
    east = shots(400, (-19.0, 176.0, -16.0, 180.0), seed=1)
    west = shots(400, (-19.0, -180.0, -16.0, -178.0), seed=2, first_id=10**4)
    edges = [Shot("90001", -17.0, 180.0, BEGIN + 5), Shot("90002", -17.0, -180.0, BEGIN + 6)]
    with FlickrServer([*east, *west, *edges], cap=60, most_per_page=20) as server:
        got = collect(source_of(server, fiji))
        assert found_inside(got, fiji) == inside(server, fiji) == {s.id for s in server.shots}
        assert set(got.times_found.values()) == {1}


def test_provinces_share_a_border_and_each_is_covered() -> None:
    left, right = shapely.box(66, 24, 68, 28), shapely.box(68, 24, 70, 28)
    with FlickrServer(shots(1500, BOX, seed=4), cap=80, most_per_page=20) as server:
        got = collect(source_of(server, left, right))
        assert found_inside(got, left, right) == inside(server, left, right)
    assert {q.province for q in got.asked} == {None, "p0", "p1"}


def test_licences_and_accuracy_are_asked_for_and_named() -> None:
    with FlickrServer(shots(800, BOX, seed=6)) as server:
        got = collect(source_of(server, licenses=("cc-by", "cc0"), min_accuracy=13))
        by_shot = {shot.id: shot for shot in server.shots}
    key = {"4": "cc-by-2.0", "9": "cc0", "12": "cc-by-4.0"}
    expected = {s.id for s in server.shots if s.license in key and s.accuracy >= 13}
    assert set(got.by_id) >= expected & inside(server)
    for photo in got.photos:
        shot = by_shot[photo.source_id]
        assert photo.license == key[shot.license]
        assert photo.accuracy_km == accuracy_km(shot.accuracy)
        assert base_key(photo.license or "") in ("cc-by", "cc0")
    asked = {r.query["license"] for r in server.requests[1:]}
    assert asked == {"4,9,12"}


def test_numbers_of_new_licences_are_flickr_s_own() -> None:
    with FlickrServer(shots(600, BOX, seed=7)) as server:
        got = collect(source_of(server))
    keys: dict[str, set[str | None]] = {code: set() for code in LICENSES}
    for photo in got.photos:
        (shot,) = (s for s in server.shots if s.id == photo.source_id)
        keys[shot.license].add(photo.license)
    assert keys["11"] == {"cc-by-sa-4.0"}
    assert keys["12"] == {"cc-by-4.0"}
    assert keys["7"] == {None}
    assert keys["0"] == {"all-rights-reserved"}
    assert keys["8"] == {"us-gov"}
    assert keys["10"] == {"pdm"}


def test_unknown_licences_can_be_asked_for() -> None:
    with FlickrServer([]) as server:
        collect(source_of(server, licenses=("unknown",)))
        assert server.requests[-1].query["license"] == "7"


def test_taken_dates_are_asked_for() -> None:
    some = [
        Shot(str(n), 25.0, 67.0, BEGIN + n, taken=f"{2000 + n}-06-01 00:00:00") for n in range(20)
    ]
    with FlickrServer(some) as server:
        got = collect(source_of(server, taken_from="2005-06-01", taken_until="2010-06-01"))
    assert {p.captured_at for p in got.photos} == {f"{y}-06-01T00:00:00" for y in range(2005, 2011)}


GOOD = Shot("77", 25.0, 67.0, BEGIN + 7)


def only(got: Asking) -> FoundPhoto:
    (photo,) = got.photos
    return photo


def test_all_that_is_known_of_a_photo_is_kept() -> None:
    with FlickrServer([GOOD]) as server:
        photo = only(collect(source_of(server)))
    assert photo == FoundPhoto(
        source_id="77",
        latitude=25.0,
        longitude=67.0,
        url=f"{server.url}/pictures/77_l.jpg",
        accuracy_km=0.1,
        license="cc-by-2.0",
        author="Author 1@N00",
        author_url="https://www.flickr.com/people/1@N00/",
        page_url="https://www.flickr.com/photos/1@N00/77/",
        captured_at="2014-05-06T10:11:12",
        title="Photo 77",
        width=1024,
        height=683,
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"latitude": None}, "no_coordinate"),
        ({"latitude": 0, "longitude": 0, "accuracy": 0}, "no_coordinate"),
        ({"latitude": "north"}, "no_coordinate"),
        ({"latitude": "95.0"}, "no_coordinate"),
        ({"owner": None}, "no_author"),
        ({"url_l": None, "url_z": None}, "no_picture"),
        ({"media": "video"}, "not_a_photo"),
        ({"accuracy": "11"}, "accuracy_too_low"),
        ({"id": None}, "malformed"),
    ],
)
def test_entries_that_cannot_be_used_are_kept_with_a_reason(
    changes: dict[str, Any], reason: str
) -> None:
    with FlickrServer([changed(GOOD, **changes), dataclasses.replace(GOOD, id="78")]) as server:
        got = collect(source_of(server, min_accuracy=13))
    assert [photo.source_id for photo in got.photos] == ["78"]
    assert [r.reason for r in got.refused] == [reason]


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"ownername": None}, "author", "1@N00"),
        ({"title": ""}, "title", None),
        ({"license": "99"}, "license", None),
        ({"license": None}, "license", None),
        ({"accuracy": None}, "accuracy_km", None),
        ({"latitude": 25.0, "longitude": 67.0}, "latitude", 25.0),
        ({"width_l": "1024", "height_l": "683"}, "width", 1024),
        ({"datetaken": "0000-00-00 00:00:00"}, "captured_at", None),
        ({"datetakenunknown": "1"}, "captured_at", None),
        ({"datetaken": None}, "captured_at", None),
        (
            {"datetakengranularity": "4", "datetaken": "2014-05-00 00:00:00"},
            "captured_at",
            "2014-05",
        ),
        ({"datetakengranularity": "6", "datetaken": "2014-00-00 00:00:00"}, "captured_at", "2014"),
        ({"datetakengranularity": "8", "datetaken": "1950-01-01 00:00:00"}, "captured_at", "1950"),
        ({"datetakengranularity": 0}, "captured_at", "2014-05-06T10:11:12"),
    ],
)
def test_fields_that_are_missing_or_vague(changes: dict[str, Any], field: str, value: Any) -> None:
    with FlickrServer([changed(GOOD, **changes)]) as server:
        photo = only(collect(source_of(server)))
    assert getattr(photo, field) == value


SIZES = (
    ("o", 6000, 4000),
    ("3k", 3072, 2048),
    ("k", 2048, 1365),
    ("l", 1024, 683),
    ("n", 320, 213),
)


@pytest.mark.parametrize(
    ("sizes", "max_side", "chosen"),
    [
        (SIZES, None, "o"),
        (SIZES[1:], None, "3k"),
        (SIZES, 2048, "k"),
        (SIZES, 2047, "l"),
        (SIZES, 10_000, "o"),
        (SIZES, 100, "n"),
        ((("o", 900, 600), ("c", 800, 533)), 2048, "o"),
        # A tall photo is long by its height.
        ((("k", 1365, 2048), ("l", 683, 1024)), 1500, "l"),
    ],
)
def test_the_largest_size_that_is_permitted(
    sizes: tuple[tuple[str, int, int], ...], max_side: int | None, chosen: str
) -> None:
    with FlickrServer([dataclasses.replace(GOOD, sizes=sizes)]) as server:
        photo = only(collect(source_of(server, max_side=max_side)))
    assert photo.url == f"{server.url}/pictures/77_{chosen}.jpg"


def test_sizes_without_pixels_have_their_usual_ones() -> None:
    bare = dict.fromkeys(("width_k", "height_k", "width_l", "height_l"))
    sizes = (("k", 2048, 1365), ("l", 1024, 683))
    with FlickrServer([changed(dataclasses.replace(GOOD, sizes=sizes), **bare)]) as server:
        photo = only(collect(source_of(server, max_side=1500)))
    assert (photo.url, photo.width) == (f"{server.url}/pictures/77_l.jpg", None)


@pytest.mark.parametrize("code", [10, 105, 106, 201])
def test_not_available_with_status_200_is_asked_again(code: int) -> None:
    with FlickrServer([GOOD]) as server:
        server.faults.add(fail(code, "Service currently unavailable"), times=3)
        assert only(collect(source_of(server))).source_id == "77"
        assert len(server.requests) == 5


def test_not_available_for_long_is_no_refusal() -> None:
    with FlickrServer([GOOD]) as server:
        server.faults.add(fail(105, "Service currently unavailable"), times=None)
        with pytest.raises(UnavailableError, match="105"):
            collect(source_of(server, attempts=3))
        assert len(server.requests) == 3


def test_faults_of_the_network_lose_nothing() -> None:
    with FlickrServer(shots(500, BOX, seed=8), cap=40, most_per_page=20, repeats=2) as server:
        server.faults.add(too_many_requests(0), every=7, times=None)
        server.faults.add(unavailable(503), every=11, times=None)
        server.faults.add(hung_up(), every=13, times=None)
        server.faults.add(html_page(), every=17, times=None)
        got = collect(source_of(server))
        assert found_inside(got) == inside(server)
        assert {r.status for r in server.requests} >= {0, 200, 429, 503}
        answered = [r.request.target for r in server.requests if not r.fault]
        assert len(answered) == len(set(answered))


def test_a_refusal_of_one_query_is_told_with_its_number() -> None:
    with FlickrServer([GOOD]) as server:
        server.faults.add(fail(4, "No permission"), when=lambda r: "search" in r.query["method"])
        with pytest.raises(RefusedQueryError, match="answers 4 'No permission'"):
            collect(source_of(server))


ODD = [{"photos": {}, "stat": "ok"}, {"stat": "ok"}, {"stat": "ok", "photos": 1}, [1], {"stat": 1}]


@pytest.mark.parametrize("answer", ODD)
def test_one_odd_answer_is_asked_again(answer: Any) -> None:
    with FlickrServer([GOOD]) as server:
        server.faults.add(as_json(answer), when=lambda r: "search" in r.query["method"], times=2)
        assert only(collect(source_of(server))).source_id == "77"
        assert len(server.requests) == 4


def test_odd_answers_cost_a_query_and_many_in_a_row_end_it() -> None:
    with FlickrServer([GOOD]) as server:
        source = source_of(server, attempts=1)
        searches = collect(source).asked[1:]
        server.faults.add(as_json({"stat": "ok"}), times=None)
        for _ in range(19):
            with pytest.raises(UnavailableError, match="documented form"):
                collect(source, first=searches)
        with pytest.raises(SourceError, match="20 times in a row"):
            collect(source, first=searches)


def test_a_server_that_is_no_flickr_is_told_soon() -> None:
    with FlickrServer([GOOD]) as server:
        server.faults.add(as_json({"hello": "world"}), times=None)
        source = source_of(server, attempts=2)
        for _ in range(2):
            with pytest.raises(UnavailableError):
                collect(source)
        with pytest.raises(SourceError, match=r"Is source.api right\?"):
            collect(source)


def test_an_odd_answer_that_repeats_the_request_shows_no_key() -> None:
    echo = {"request": {"pad": "x" * 130, "api_key": KEY, "url": f"https://a/?api_key={KEY}"}}
    odd = shots(1, BOX)[0]
    entry = changed(odd, id=None, echo=f"{'x' * 100}{KEY}")
    with FlickrServer([entry]) as server:
        source = source_of(server, attempts=1)
        [refused] = collect(source).refused
        assert KEY[:8] not in refused.detail
        for pad in range(50, 200, 11):
            echo["request"]["pad"] = "x" * pad
            server.faults.add(as_json(echo), times=None)
            with pytest.raises((UnavailableError, SourceError)) as told:
                collect(source)
            assert KEY[:8] not in str(told.value)
            server.faults.clear()


def test_other_pages_splits_and_sizes_are_asked_for_anew() -> None:
    with FlickrServer(shots(60, BOX, seed=3), cap=20) as server:
        first = collect(source_of(server, per_page=10))
        waiting = [q for q in first.asked if q.kind == "search" and q.params["page"] == 2]
        # What is gone on with has the pages that it began with, whatever the options are now.
        other = source_of(server, per_page=20)
        server.requests.clear()
        collect(other, first=waiting)
        assert {r.query["per_page"] for r in server.requests} == {"10"}
        for changes in (
            {"per_page": 5}, {"min_tile_km": 5.0}, {"min_window_s": 90}, {"max_side": 640},
        ):  # fmt: skip
            again = collect(source_of(server, **changes))
            assert not {q.identity for q in again.asked} & {q.identity for q in first.asked}
            assert found_inside(again) == found_inside(first)


def test_pictures_that_say_that_a_photo_is_gone_are_on_no_host_of_photos() -> None:
    hosts = FlickrOptions().photo_hosts
    assert host_is_listed("live.staticflickr.com", hosts)
    assert host_is_listed("farm9.staticflickr.com", hosts)
    assert not host_is_listed("combo.staticflickr.com", hosts)


def test_queries_hold_no_key_and_are_the_same_every_time() -> None:
    with FlickrServer(shots(300, BOX), cap=50, most_per_page=25) as server:
        first, second = collect(source_of(server)), collect(source_of(server))
    assert [q.identity for q in first.asked] == [q.identity for q in second.asked]
    assert KEY not in json.dumps([q.identity for q in first.asked])
    # Other options are another collection.
    assert first.asked[0].identity != next(iter(source_of(server, min_accuracy=9).start())).identity


def test_the_end_of_uploads_is_fixed_when_the_collection_begins() -> None:
    with FlickrServer([GOOD]) as server:
        got = collect(source_of(server, uploaded_until=None))
    (search,) = (q for q in got.asked if q.kind == "search")
    assert abs(search.params["uploaded"][1] - time.time()) < 60


def test_estimate_grows_with_the_targets_and_is_free() -> None:
    with FlickrServer([]) as server:
        source = source_of(server, estimated_in_province=100_000)
    assert source.estimate({"p0": 10**6}).requests["search"][1] > 4 * 10**6 // 250
    small, large = source.estimate({"p0": 100}), source.estimate({"p0": 100_000})
    assert small.requests["search"][0] == 2
    assert large.requests["search"][0] == 401
    assert small.requests["search"][1] < large.requests["search"][1]
    assert small.cost_usd is None
    assert small.assumptions
    assert source.estimate({"p0": 0}).requests["search"] == (1, 1)
    low, high = source.estimate({}).requests["search"]
    assert low == 2
    assert high > 100_000 // 250


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"uploaded_from": "last year"}, "uploaded_from='last year' is no date"),
        ({"uploaded_from": "2020-01-01", "uploaded_until": "2019-01-01"}, "lies after"),
        ({"licenses": []}, "null for any"),
        ({"licenses": ["cc-bye"]}, "cc-by"),
        ({"min_accuracy": 17}, "at most 16"),
        ({"per_page": 251}, "at most 250"),
        ({"result_cap": 5000}, "at most 4000"),
        ({"per_page": 200, "result_cap": 100}, "per_page=200"),
        ({"max_sides": 5}, "max_side"),
    ],
)
def test_options_that_cannot_be(section: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_options(FlickrOptions, {"name": "flickr", **section}, "source")


def test_the_stand_in_repeats_itself_beyond_the_cap() -> None:
    with FlickrServer(shots(100, BOX), cap=40, most_per_page=20) as server:
        ask = {
            "method": "flickr.photos.search", "api_key": KEY, "format": "json",
            "nojsoncallback": "1", "bbox": "60,20,80,40", "accuracy": "1",
        }  # fmt: skip
        pages = [
            httpx.get(server.api, params={**ask, "per_page": 20, "page": n}).json() for n in (2, 3)
        ]
    shown = [[entry["id"] for entry in page["photos"]["photo"]] for page in pages]
    assert shown[0] == shown[1]
    assert pages[0]["photos"]["total"] == 100
