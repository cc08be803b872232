"""Options of collecting from Flickr."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from geopak.errors import ConfigError
from geopak.options import Count, Positive, Range

FlickrLicense = Literal[
    "cc0",
    "pdm",
    "us-gov",
    "cc-by",
    "cc-by-sa",
    "cc-by-nd",
    "cc-by-nc",
    "cc-by-nc-sa",
    "cc-by-nc-nd",
    "all-rights-reserved",
    "unknown",
]


@dataclass(frozen=True)
class FlickrOptions:
    """What is asked of Flickr, and how.

    Attributes:
        name: of the source.
        api: address of the REST interface.
        photo_hosts: hosts that pictures lie on.
        licenses: asked for, in any version; ``None``: any.
        min_accuracy: least level of accuracy of a location, 1 (world) to 16 (street).
        outdoors_only: only photos whose owner says that they were taken outdoors; few say.
        uploaded_from: day (or moment, ISO 8601, UTC) of the earliest upload.
        uploaded_until: of the latest; ``None``: the moment when the collection begins.
        taken_from: earliest day or moment that a photo was taken, its own local time; ``None``:
            any.
        taken_until: latest.
        max_side: the largest of the offered sizes that is no longer than this, pixels; ``None``:
            the largest that the owner offers.
        per_page: photos a request; Flickr gives at most 250 where an area is asked for.
        result_cap: of one query Flickr gives so many different photos at most.
        min_tile_km: areas are split down to this side, then time is.
        min_window_s: times are split down to this, seconds.
        attempts: of a request that Flickr answers with 'not available now' in good form.
        pause_s: before the second of these attempts, about; then twice as long each time.
        estimated_found_per_kept: for the estimate: so many photos are looked through, at most, for
            one that is kept.
        estimated_in_province: for the estimate: photos that are asked for in the area of a
            province, at most.
    """

    name: Literal["flickr"] = "flickr"
    api: str = "https://api.flickr.com/services/rest/"
    # Not all of staticflickr.com: photos that are gone redirect to a picture that says so, on
    # combo.staticflickr.com, which is no photo of the place.
    photo_hosts: tuple[str, ...] = (
        "live.staticflickr.com",
        *(f"farm{k}.staticflickr.com" for k in (*range(1, 11), 66)),
    )
    licenses: tuple[FlickrLicense, ...] | None = (
        "cc0",
        "pdm",
        "us-gov",
        "cc-by",
        "cc-by-sa",
        "cc-by-nd",
        "cc-by-nc",
        "cc-by-nc-sa",
        "cc-by-nc-nd",
    )
    min_accuracy: Annotated[int, Range(least=1, most=16)] = 13
    outdoors_only: bool = False
    uploaded_from: str = "2004-02-10"
    uploaded_until: str | None = None
    taken_from: str | None = None
    taken_until: str | None = None
    max_side: Count | None = 2048
    per_page: Annotated[int, Range(least=1, most=250)] = 250
    result_cap: Annotated[int, Range(least=1, most=4000)] = 4000
    min_tile_km: Positive = 0.25
    min_window_s: Count = 60
    attempts: Count = 5
    pause_s: Positive = 2.0
    estimated_found_per_kept: Annotated[float, Range(least=1)] = 4.0
    estimated_in_province: Count = 100_000

    def __post_init__(self) -> None:
        for key in ("uploaded_from", "uploaded_until", "taken_from", "taken_until"):
            value = getattr(self, key)
            if value is not None:
                moment(key, value)
        for first, last in (("uploaded_from", "uploaded_until"), ("taken_from", "taken_until")):
            begin, end = getattr(self, first), getattr(self, last)
            if begin and end and moment(first, begin) > moment(last, end, last=True):
                raise ConfigError(f"{first}={begin!r} lies after {last}={end!r}.")
        if self.licenses is not None and not self.licenses:
            raise ConfigError("licenses=[] leaves nothing to ask for. Use null for any licence.")
        if self.per_page > self.result_cap:
            raise ConfigError(
                f"per_page={self.per_page} must not exceed result_cap={self.result_cap}."
            )


def moment(key: str, text: str, *, last: bool = False) -> datetime:
    """A day or moment as UTC.

    Args:
        key: of the option, for the message.
        text: ISO 8601.
        last: of a day its last second is meant, not its first.

    Raises:
        ConfigError: it is neither.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{key}={text!r} is no date. Write it as 2019-12-31, or 2019-12-31T18:00:00."
        ) from None
    if last and "T" not in text and " " not in text.strip():
        at = at.replace(hour=23, minute=59, second=59)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
