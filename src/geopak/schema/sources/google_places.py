"""Options of collecting from the Google Places API (New)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from geopak.errors import ConfigError
from geopak.options import Count, Natural, NotNegative, Positive, Range

Sku = Literal["nearby_search", "text_search", "photo_media", "place_details"]


@dataclass(frozen=True)
class PlacePrices:
    """What requests cost, for the estimate. Prices change: look them up before spending.

    Attributes:
        as_of: date of the price list.
        usd_per_1000: of each kind of request, at the list's first tier.
        free_per_month: requests of each kind that cost nothing.
    """

    as_of: str = "2025-03-01"
    usd_per_1000: Mapping[Sku, NotNegative] = field(
        default_factory=lambda: {"nearby_search": 32.0, "text_search": 32.0, "photo_media": 7.0}
    )
    free_per_month: Mapping[Sku, Natural] = field(
        default_factory=lambda: {"nearby_search": 5000, "text_search": 5000, "photo_media": 1000}
    )


@dataclass(frozen=True)
class GooglePlacesOptions:
    """What is asked of Google Places, and how.

    Attributes:
        name: of the source.
        accept_terms: you have read docs/sources/google-places.md and Google's terms, and may do
            what you are about to do. Nothing is asked without it.
        api: address of the interface.
        photo_hosts: hosts that pictures lie on.
        searches: ``nearby`` asks for places of ``types`` around points, ``text`` for places that
            words describe.
        types: primary types of places that are asked for; empty: any.
        not_types: primary types that are not wanted.
        rank: which of the places within a circle come first.
        text_queries: words, each a search of its own.
        language: of names, as ``en``; ``None``: Google chooses.
        start_radius_km: of the first circles; places beyond the 20 of an answer are found in
            smaller ones.
        min_radius_km: circles are split down to this; then the types are.
        result_cap: places of an answer, at most.
        text_result_cap: places of a text search over all its pages, at most.
        max_photos_per_place: of the up to ten that Google gives.
        max_side: pictures are scaled to this, pixels.
        accuracy_km: how far from a place's coordinate its photos are taken to be, about.
        daily_requests: a day's requests by kind where the collection's ``quota`` is ``auto``: a
            brake on the bill.
        prices: for the estimate.
        estimated_found_per_kept: for the estimate: places with a photo that are looked through, at
            most, for one photo that is kept.
        estimated_paid_per_kept: for the estimate: pictures that are paid for, at most, for one
            that is kept.
        estimated_unlimited: for the estimate: photos of a province without a target.
    """

    name: Literal["google_places"] = "google_places"
    accept_terms: bool = False
    api: str = "https://places.googleapis.com"
    photo_hosts: tuple[str, ...] = ("*.googleusercontent.com",)
    searches: tuple[Literal["nearby", "text"], ...] = ("nearby",)
    types: tuple[str, ...] = (
        "tourist_attraction",
        "historical_landmark",
        "historical_place",
        "cultural_landmark",
        "monument",
        "plaza",
        "park",
        "national_park",
        "garden",
        "botanical_garden",
        "hiking_area",
        "beach",
        "marina",
        "observation_deck",
        "picnic_ground",
        "campground",
        "farm",
        "stadium",
        "mosque",
        "church",
        "hindu_temple",
        "train_station",
        "bus_station",
        "market",
        "gas_station",
    )
    not_types: tuple[str, ...] = ()
    rank: Literal["POPULARITY", "DISTANCE"] = "POPULARITY"
    text_queries: tuple[str, ...] = ("viewpoint", "historic site", "bazaar street", "lake", "fort")
    language: str | None = "en"
    start_radius_km: Annotated[float, Range(above=0, most=50)] = 25.0
    min_radius_km: Positive = 0.1
    result_cap: Annotated[int, Range(least=1, most=20)] = 20
    text_result_cap: Annotated[int, Range(least=1, most=60)] = 60
    max_photos_per_place: Annotated[int, Range(least=1, most=10)] = 3
    max_side: Annotated[int, Range(least=1, most=4800)] = 1600
    accuracy_km: Positive = 0.3
    daily_requests: Mapping[Sku, Natural] = field(
        default_factory=lambda: {
            "nearby_search": 500,
            "text_search": 200,
            "photo_media": 1000,
            "place_details": 1000,
        }
    )
    prices: PlacePrices = field(default_factory=PlacePrices)
    estimated_found_per_kept: Positive = 1.0
    estimated_paid_per_kept: Annotated[float, Range(least=1)] = 1.5
    estimated_unlimited: Count = 20_000

    def __post_init__(self) -> None:
        if not self.searches:
            raise ConfigError("searches=[] leaves nothing to do. Name nearby, text or both.")
        if "text" in self.searches and not self.text_queries:
            raise ConfigError("text_queries=[] leaves the text search nothing to look for.")
        for key in ("types", "not_types"):
            if len(getattr(self, key)) > 50:
                raise ConfigError(f"{key} has more than the 50 names that Google takes.")
        both = sorted(set(self.types) & set(self.not_types))
        if both:
            raise ConfigError(
                f"not_types and types both name {', '.join(both)}. Take it out of one."
            )
