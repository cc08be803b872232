"""Google Places: every place is found in spite of caps, no photo is two, terms come first."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from typing import Any

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.errors import ConfigError, RefusedQueryError, SourceError
from geopak.options import options as read_options
from geopak.schema.sources.google_places import GooglePlacesOptions
from geopak.sources.http_errors import UnavailableError
from geopak.sources.records import FoundPhoto
from tests.sources.asking import Asking, collect, located
from tests.sources.lands import inside as lying_inside
from tests.sources.places_server import (
    BOX,
    KEY,
    LAND,
    TYPES,
    Place,
    PlacesServer,
    places,
    source_of,
)
from tests.sources.stand_in import as_json, hung_up, too_many_requests, unavailable


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_MAPS_API_KEY", KEY)


def expected(
    server: PlacesServer,
    *lands: shapely.Polygon,
    types: tuple[str, ...] = TYPES[:3],
    words: str = "",
) -> dict[str, int]:
    """Photos of each place in the region that the question is about, by looking at every one."""
    return {
        place.id: place.photos
        for place in lying_inside(lands or (LAND,), server.places)
        if place.photos and place.type in types and words in place.words
    }


def found(got: Asking, *lands: shapely.Polygon) -> dict[str, int]:
    """Photos of each place in the region that came, each counted once."""
    return Counter(str(p.album) for p in lying_inside(lands or (LAND,), got.by_id.values()))


def beyond(got: Asking) -> list[str]:
    return [r.detail for r in got.refused if r.reason == "beyond_cap"]


def questions(server: PlacesServer) -> list[bytes]:
    return [r.request.body for r in server.requests if not r.fault and "search" in r.path]


def test_every_place_is_found_in_spite_of_the_cap_of_nearby() -> None:
    with PlacesServer(places(900, BOX, seed=1)) as server:
        source = source_of(server)
        got = collect(source)
        assert found(got) == expected(server)
        assert not beyond(got)
        asked = questions(server)
        assert len(asked) == len(set(asked)) == got.requests
        low, high = source.estimate({"p0": sum(expected(server).values())}).requests[
            "nearby_search"
        ]
        assert low <= got.requests <= high
    radius = [json.loads(body)["locationRestriction"]["circle"]["radius"] for body in asked]
    assert max(radius) <= 50_000
    assert min(radius) < 2_000


@settings(max_examples=8)
@given(
    st.integers(0, 10**6),
    st.integers(4, 20),
    st.booleans(),
    st.sampled_from(["POPULARITY", "DISTANCE"]),
)
def test_every_place_is_found_whatever_the_cap(
    seed: int, cap: int, clustered: bool, rank: str
) -> None:
    with PlacesServer(places(150, BOX, seed, clustered), nearby_cap=cap) as server:
        source = source_of(server, rank=rank)
        got = collect(source)
        assert found(got) == expected(server)
        low, high = source.estimate({"p0": sum(expected(server).values())}).requests[
            "nearby_search"
        ]
        assert low <= got.requests <= high


@settings(max_examples=6)
@given(st.integers(0, 10**6), st.sampled_from([20, 40, 60]))
def test_every_place_is_found_by_text(seed: int, cap: int) -> None:
    with PlacesServer(places(400, BOX, seed), text_cap=cap) as server:
        source = source_of(server, searches=("text",))
        got = collect(source)
        assert found(got) == expected(server, types=TYPES, words="viewpoint")
        asked = questions(server)
        assert len(asked) == len(set(asked))
        target = sum(expected(server, types=TYPES, words="viewpoint").values())
        low, high = source.estimate({"p0": target}).requests["text_search"]
        assert low <= got.requests <= high


def test_a_photo_is_one_however_often_its_place_is_found() -> None:
    with PlacesServer(places(300, BOX, seed=2)) as server:
        got = collect(source_of(server, searches=("nearby", "text")))
    # Circles overlap, and both searches find the same: names differ, ids do not.
    assert max(got.times_found.values()) > 1
    names = {str(photo.extra["name"]) for photo in got.photos}
    assert len(names) == len(got.photos) > len(got.by_id)


def test_types_are_split_where_circles_cannot_be() -> None:
    crowd = [Place(f"c{n}", 25.1234, 67.1234, TYPES[n % 3]) for n in range(45)]
    with PlacesServer(crowd) as server:
        got = collect(source_of(server, min_radius_km=5.0))
        assert found(got) == expected(server)
        assert not beyond(got)
    types = {tuple(json.loads(body)["includedPrimaryTypes"]) for body in questions(server)}
    assert types == {
        ("park", "mosque", "plaza"),
        ("park",),
        ("mosque", "plaza"),
        ("mosque",),
        ("plaza",),
    }


def test_what_cannot_be_split_is_told() -> None:
    crowd = [Place(f"c{n}", 25.1234, 67.1234) for n in range(45)]
    with PlacesServer(crowd) as server:
        got = collect(source_of(server, min_radius_km=5.0))
    assert len(found(got)) == 20
    (told,) = {(r.reason, r.detail[:25]) for r in got.refused}
    assert told == ("beyond_cap", "an answer of 20 places, w")
    assert any(r.source_id.startswith("park in 25.") for r in got.refused)


def test_a_region_across_the_antimeridian() -> None:
    fiji = shapely.box(178.0, -18.0, 181.0, -17.0)
    both = [
        *places(80, (-18.0, 178.0, -17.0, 180.0), 3),
        *places(80, (-18.0, -180.0, -17.0, -179.0), 4),
    ]
    for searches, words in ((("nearby",), ""), (("text",), "viewpoint")):
        types = TYPES[:3] if searches == ("nearby",) else TYPES
        with PlacesServer(both) as server:
            got = collect(source_of(server, fiji, searches=searches))
            assert found(got, fiji) == expected(server, fiji, types=types, words=words)


GOOD = Place("ChIJgood", 25.0, 67.0, photos=1)


def test_all_that_is_known_of_a_photo_is_kept() -> None:
    with PlacesServer([GOOD]) as server:
        got = collect(source_of(server))
        (photo,) = got.by_id.values()
        assert photo == FoundPhoto(
            source_id=photo.source_id,
            latitude=25.0,
            longitude=67.0,
            accuracy_km=0.3,
            license="google-places",
            author="Visitor 0",
            author_url="https://maps.google.com/maps/contrib/0",
            page_url="https://www.google.com/maps/place//data=!3m4!1e2!ChIJgood-0",
            title="Place ChIJgood",
            width=4000,
            height=3000,
            album="ChIJgood",
            extra=photo.extra,
        )
        assert photo.source_id.startswith("ChIJgood/")
        assert located(source_of(server), photo) == f"{server.url}/pictures/ChIJgood-0=s1600"
        media = server.requests[-1]
        assert media.query == {
            "maxWidthPx": "1600", "maxHeightPx": "1600", "skipHttpRedirect": "true",
        }  # fmt: skip
        assert KEY not in media.request.target


def test_only_fields_that_are_used_are_asked_and_paid_for() -> None:
    with PlacesServer([GOOD]) as server:
        collect(source_of(server, searches=("nearby", "text")))
    masks = {r.path: r.request.headers["x-goog-fieldmask"] for r in server.requests}
    fields = "places.id,places.displayName,places.location,places.primaryType,places.photos"
    assert masks == {
        "/v1/places:searchNearby": fields,
        "/v1/places:searchText": f"{fields},nextPageToken",
    }


def test_few_photos_of_a_place_if_so_wished() -> None:
    with PlacesServer([dataclasses.replace(GOOD, photos=4)]) as server:
        assert len(collect(source_of(server, max_photos_per_place=3)).by_id) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"location": None}, "no_coordinate"),
        ({"location": {"latitude": 25.0}}, "no_coordinate"),
        ({"location": {"latitude": "x", "longitude": 1}}, "no_coordinate"),
        ({"photos": None}, "no_picture"),
        ({"photos": [{"widthPx": 5}]}, "no_picture"),
        ({"id": None}, "malformed"),
    ],
)
def test_places_that_cannot_be_used_are_kept_with_a_reason(
    changes: dict[str, Any], reason: str
) -> None:
    odd = dataclasses.replace(GOOD, id="odd", changes=tuple(changes.items()))
    with PlacesServer([odd, GOOD]) as server:
        got = collect(source_of(server))
    assert {photo.album for photo in got.photos} == {"ChIJgood"}
    assert {r.reason for r in got.refused} == {reason}


def test_photos_without_author_size_or_title() -> None:
    bare = {"photos": [{"name": "places/odd/photos/AUc7t0x1"}], "displayName": None}
    with PlacesServer([dataclasses.replace(GOOD, id="odd", changes=tuple(bare.items()))]) as server:
        (photo,) = collect(source_of(server)).by_id.values()
    assert (photo.author, photo.author_url, photo.title, photo.width) == (None, None, None, None)
    assert photo.page_url == "https://www.google.com/maps/place/?q=place_id:odd"


def test_a_name_that_is_no_longer_known_is_refused_and_others_go_on() -> None:
    with PlacesServer([GOOD]) as server:
        (photo,) = collect(source_of(server)).by_id.values()
        server.names_expired = True
        with pytest.raises(RefusedQueryError, match="400"):
            located(source_of(server), photo)
        for name in ("places/../../secret/photos/x", "places/a/photos/b/media?x=", "", None):
            count = len(server.requests)
            with pytest.raises(RefusedQueryError, match="odd name"):
                located(source_of(server), dataclasses.replace(photo, extra={"name": name}))
            assert len(server.requests) == count


def test_a_place_with_names_that_expired_is_asked_for_new_ones_once() -> None:
    with PlacesServer([dataclasses.replace(GOOD, photos=4, changes=())]) as server:
        source = source_of(server, max_photos_per_place=4)
        photos = list(collect(source).by_id.values())
        before = [located(source, photo) for photo in photos]
        server.expire_names()
        server.requests.clear()
        assert [located(source, photo) for photo in photos] == before
        details = [r for r in server.requests if not r.path.endswith("/media")]
        assert [r.path for r in details] == [f"/v1/places/{GOOD.id}"]
        assert details[0].request.headers["x-goog-fieldmask"] == "id,photos"
        # One attempt with the old name, then those with the new ones.
        assert len(server.requests) == 1 + 1 + len(photos)
        gone = dataclasses.replace(photos[0], source_id=f"{GOOD.id}/0123456789abcdef")
        with pytest.raises(RefusedQueryError, match="no longer has photo"):
            located(source, gone)


def test_media_without_an_address_is_refused() -> None:
    with PlacesServer([GOOD]) as server:
        (photo,) = collect(source_of(server)).by_id.values()
        without = as_json({"name": "x"})
        server.faults.add(without, when=lambda r: r.path.endswith("media"), times=None)
        with pytest.raises(RefusedQueryError, match="no address"):
            located(source_of(server), photo)


def test_a_page_token_that_expired_begins_the_search_again() -> None:
    with PlacesServer(places(200, BOX, seed=6)) as server:
        source = source_of(server, searches=("text",))
        server.faults.add(
            lambda r: as_json({"error": {"code": 400, "message": "old token"}}, 400),
            when=lambda r: "pageToken" in (r.json() if r.body else {}),
            times=3,
        )
        got = collect(source)
        assert found(got) == expected(server, types=TYPES, words="viewpoint")
    assert any("again" in q.params for q in got.asked)


def test_tokens_that_are_never_taken_end_in_a_refusal() -> None:
    with PlacesServer(places(200, BOX, seed=6)) as server:
        server.tokens_expired = True
        with pytest.raises(RefusedQueryError, match="token"):
            collect(source_of(server, searches=("text",)))


def test_faults_of_the_network_lose_nothing() -> None:
    with PlacesServer(places(300, BOX, seed=8)) as server:
        server.faults.add(too_many_requests(0), every=5, times=None)
        server.faults.add(unavailable(500), every=7, times=None)
        server.faults.add(hung_up(), every=11, times=None)
        got = collect(source_of(server))
        assert found(got) == expected(server)
        assert {r.status for r in server.requests} == {0, 200, 429, 500}


def test_terms_come_before_the_first_request() -> None:
    with PlacesServer([GOOD]) as server:
        source = source_of(server, accept_terms=False)
        # What it would cost is told all the same.
        assert source.estimate({"p0": 10}).cost_usd is not None
        with pytest.raises(SourceError, match=r"source\.accept_terms=true"):
            collect(source)
    assert not server.requests


def test_a_query_that_google_refuses_is_told() -> None:
    fault = {"error": {"code": 400, "message": "Unsupported types: sea_monster."}}
    with PlacesServer([GOOD]) as server:
        server.faults.add(as_json(fault, 400), times=None)
        with pytest.raises(RefusedQueryError, match="sea_monster"):
            collect(source_of(server))


@pytest.mark.parametrize("answer", [[], {"places": {"a": 1}}])
def test_an_answer_of_another_form_costs_its_query_and_many_end_it(answer: Any) -> None:
    with PlacesServer([GOOD]) as server:
        source = source_of(server)
        server.faults.add(as_json(answer), times=None)
        for _ in range(2):
            with pytest.raises(UnavailableError, match="documented form"):
                collect(source, at_once=1)
        with pytest.raises(SourceError, match="documented form"):
            collect(source, at_once=1)


def test_an_odd_answer_that_repeats_the_request_shows_no_key() -> None:
    with PlacesServer([GOOD]) as server:
        for pad in range(50, 200, 11):
            echo = {"pad": "x" * pad, "key": KEY}
            server.faults.add(as_json({"places": echo}), times=None)
            with pytest.raises(UnavailableError) as told:
                collect(source_of(server), at_once=1)
            assert KEY[:8] not in str(told.value)
            server.faults.clear()
            server.faults.add(as_json({"places": [echo]}), times=1)
            [refused] = collect(source_of(server), at_once=1).refused
            assert KEY[:8] not in refused.detail
            server.faults.clear()


def test_a_smaller_smallest_circle_asks_anew() -> None:
    with PlacesServer([GOOD]) as server:
        first, second = (collect(source_of(server, min_radius_km=r)) for r in (1.0, 0.5))
        assert not {q.identity for q in first.asked} & {q.identity for q in second.asked}


def test_queries_hold_no_key_and_are_the_same_every_time() -> None:
    with PlacesServer(places(150, BOX)) as server:
        first, second = collect(source_of(server)), collect(source_of(server))
    assert [q.identity for q in first.asked] == [q.identity for q in second.asked]
    assert KEY not in json.dumps([q.identity for q in first.asked])
    assert all(q.province == "p0" for q in first.asked)


def test_cost_by_kind_of_request() -> None:
    with PlacesServer([]) as server:
        source = source_of(server, max_photos_per_place=1, searches=("nearby",))
    told = source.estimate({"p0": 200_000})
    (low, high), (photos, paid) = told.requests["nearby_search"], told.requests["photo_media"]
    assert (low, photos, paid) == (10_000, 200_000, 300_000)
    assert told.cost_usd == (
        round((low - 5000) * 0.032 + (photos - 1000) * 0.007, 2),
        round(high * 0.032 + paid * 0.007, 2),
    )
    small = source.estimate({"p0": 20})
    assert small.cost_usd is not None
    assert small.cost_usd[0] == 0
    assert any("2025-03-01" in text for text in small.assumptions)
    assert source.estimate({"p0": 0}).requests["nearby_search"] == (0, 0)
    assert source.estimate({}).requests["photo_media"][0] == 20_000


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"searches": []}, "nearby, text or both"),
        ({"searches": ["nearly"]}, "nearby"),
        ({"searches": ["text"], "text_queries": []}, "nothing to look for"),
        ({"types": ["park"], "not_types": ["park"]}, "both name park"),
        ({"types": [f"t{n}" for n in range(51)]}, "more than the 50"),
        ({"start_radius_km": 51}, "at most 50"),
        ({"max_side": 5000}, "at most 4800"),
        ({"daily_requests": {"nearby": 5}}, "nearby_search"),
        ({"prices": {"usd_per_1000": {"photo_media": -1}}}, "at least 0"),
    ],
)
def test_options_that_cannot_be(section: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        read_options(GooglePlacesOptions, {"name": "google_places", **section}, "source")
