"""The configuration of a collection: what is kept, how politely it is asked for, where it goes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from geopak.errors import SourceError, nearest_name
from geopak.options import Count, Natural, NotNegative, Positive, Problem, Range, examine
from geopak.schema.paths import Paths
from geopak.schema.region import RegionOptions
from geopak.schema.sources import options_of

# The keys of geopak.sources.licenses, and what stands for a licence that is not told.
LICENSES = (
    "cc0", "pdm", "us-gov", "cc-by", "cc-by-sa", "cc-by-nd", "cc-by-nc", "cc-by-nc-sa",
    "cc-by-nc-nd", "all-rights-reserved", "google-places", "unknown",
)  # fmt: skip
# Options of sources that requests go to.
_ADDRESSES = {"api", "commons", "commons_api", "wikidata_api"}
Treatment = Literal["keep", "blur", "drop"]


@dataclass(frozen=True)
class PrivacyOptions:
    """What of a photo is not kept.

    Attributes:
        coarsen_km: coordinates are moved to the middle of squares of ground of this side; ``None``:
            they stay.
        faces: photos with faces stay, have them blurred, or are dropped.
        plates: the same of number plates.
        min_face_share: smallest face that is looked for, as a share of the shorter side.
        strip_metadata: take out what the file itself says of camera, owner and place. Changed and
            coarsened photos lose it anyway.
    """

    coarsen_km: Positive | None = None
    faces: Treatment = "keep"
    plates: Treatment = "keep"
    min_face_share: Annotated[float, Range(least=0.01, most=1)] = 0.02
    strip_metadata: bool = False


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """``conf/collect.yaml``, which explains each key, with its groups."""

    paths: Paths
    region: RegionOptions
    source: Mapping[str, Any] | None = None
    out: str
    dry_run: bool
    targets: Natural | Mapping[str, Natural | None] | None
    licenses: list[str] | Literal["auto"] | None
    min_side_px: Natural
    max_photo_mb: Positive
    max_pixels: Count
    quota: Mapping[str, Natural | None] | Literal["auto"]
    quota_timezone: str
    on_quota: Literal["wait", "stop"]
    rate_per_s: Positive | Literal["auto"]
    concurrency: Count
    photos_per_s: Positive
    downloads: Count
    retries: Natural
    backoff_s: Positive
    timeout_s: Positive
    whole_timeout_s: Positive
    outage_s: NotNegative
    retry_failed: bool
    contact: str | None
    allowed_hosts: list[str]
    allow_private_hosts: bool
    table: Literal["csv", "parquet"]
    privacy: PrivacyOptions = field(default_factory=PrivacyOptions)
    progress_s: Positive

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        region = self.region.region()
        keys = [province.key for province in region.provinces]
        if isinstance(self.targets, Mapping):
            for name in self.targets:
                if name not in keys:
                    yield Problem(
                        f"targets.{name}", f"targets.{name} is no province of {region.title}",
                        f"Known: {', '.join(keys)}.",
                    )  # fmt: skip
        if self.licenses == []:
            yield Problem(
                "licenses", "licenses=[] keeps no photo",
                "licenses=null keeps those of any licence, licenses=auto what the source says.",
            )  # fmt: skip
        contact = self.contact or ""
        if not (contact.isascii() and contact.isprintable()):
            yield Problem(
                "contact", f"contact={contact!r} has characters that no header of HTTP may have",
                "Write it in ASCII, such as joerg@example.org.",
            )  # fmt: skip
        if isinstance(self.licenses, list):
            for k, name in enumerate(self.licenses):
                if re.sub(r"-\d+(\.\d+)*$", "", name) not in LICENSES:
                    yield Problem(
                        f"licenses[{k}]", f"licenses[{k}]={name!r} is no licence",
                        f"{nearest_name(name, LICENSES)} Known: {', '.join(LICENSES)}.".strip(),
                    )  # fmt: skip
        try:
            import zoneinfo

            zoneinfo.ZoneInfo(self.quota_timezone)
        except (ValueError, OSError, KeyError):
            yield Problem(
                "quota_timezone", f"quota_timezone={self.quota_timezone!r} is no time zone",
                "Such as UTC or America/Los_Angeles.",
            )  # fmt: skip
        if self.source is not None:
            yield from source_problems(self.source)

    def targets_by_province(self) -> dict[str, int | None]:
        """Photos wished for per province key; ``None``: as many as there are."""
        keys = [province.key for province in self.region.region().provinces]
        if isinstance(self.targets, Mapping):
            return {key: self.targets.get(key) for key in keys}
        return dict.fromkeys(keys, self.targets)


def source_problems(section: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the section of a source."""
    try:
        kind = options_of(str(section.get("name")))
    except SourceError as error:
        yield Problem.of("source.name", error)
        return
    _, found = examine(kind, section, "source")
    yield from found
    for key in _ADDRESSES & set(section):
        if not re.fullmatch(r"https?://[^/\s?#@]+(/[^\s?#]*)?", str(section[key])):
            yield Problem(
                f"source.{key}", f"source.{key}={section[key]!r} is no address",
                "Such as https://example.org/api.",
            )  # fmt: skip
