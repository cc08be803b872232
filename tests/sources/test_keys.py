"""What holds of every source that needs a key."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from geopak.errors import RefusedQueryError, SourceError
from geopak.sources.records import Source
from tests.sources import flickr_server, places_server
from tests.sources.asking import collect
from tests.sources.flickr_server import FlickrServer
from tests.sources.places_server import PlacesServer


class Keyed(NamedTuple):
    """A source that needs a key, with a server that has one photo."""

    variable: str
    key: str
    server: Any
    source_of: Any
    hint: str


FLICKR = Keyed(
    "FLICKR_API_KEY",
    flickr_server.KEY,
    lambda: FlickrServer([flickr_server.Shot("77", 25.0, 67.0, flickr_server.BEGIN + 7)]),
    flickr_server.source_of,
    "apps/create",
)
PLACES = Keyed(
    "GOOGLE_MAPS_API_KEY",
    places_server.KEY,
    lambda: PlacesServer([places_server.Place("ChIJgood", 25.0, 67.0, photos=1)]),
    places_server.source_of,
    "GOOGLE_MAPS_API_KEY",
)
pytestmark = pytest.mark.parametrize("keyed", [FLICKR, PLACES], ids=["flickr", "google_places"])


def test_it_is_a_source(keyed: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keyed.variable, keyed.key)
    with keyed.server() as server:
        source: Source = keyed.source_of(server)
    assert source.api_hosts == ("127.0.0.1",)


@pytest.mark.parametrize("key", ["schlüssel-1234", "two words", "a\nb"])
def test_a_key_that_can_be_none_is_not_sent(
    keyed: Keyed, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(keyed.variable, key)
    with (
        keyed.server() as server,
        pytest.raises(SourceError, match=f"{keyed.variable} holds") as told,
    ):
        collect(keyed.source_of(server))
    assert key not in str(told.value)
    assert not server.requests


def test_without_a_key_nothing_is_asked(keyed: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keyed.variable, raising=False)
    with keyed.server() as server, pytest.raises(SourceError, match=keyed.hint):
        collect(keyed.source_of(server))
    assert not server.requests


def test_a_wrong_key_is_told_without_showing_it(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(keyed.variable, "secret-wrong-key")
    with keyed.server() as server, pytest.raises(SourceError) as told:
        collect(keyed.source_of(server), at_once=1)
    assert not isinstance(told.value, RefusedQueryError)
    assert keyed.variable in str(told.value)
    assert "secret-wrong-key" not in str(told.value)
    assert told.value.__cause__ is None
    assert len(server.requests) == 1
