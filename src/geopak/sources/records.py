"""What passes between a source of photos and the collector that asks it.

A collection is a set of queries. The collector takes one, the source answers it with photos and
with further queries (the next page, the parts of an area that holds too many photos), and the
ledger commits the answer and the end of the query in one transaction: a collection that is killed
at any moment begins again with the queries that have no answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from geopak.sources.client import Client


def storable(text: str) -> str:
    """A text as it can be stored and written to a file: halves of characters become ``?``.

    JSON and cut-off titles may hold such halves (lone surrogates), which UTF-8 has no form for.
    """
    return text.encode(errors="replace").decode()


@dataclass(frozen=True)
class Query:
    """One question to a source.

    Attributes:
        kind: what is asked, in the source's own words (``search``, ``block``).
        params: all that determines the answer, as JSON values and without any key or secret; with
            ``kind`` this is the query's identity: the ledger never holds the same one twice.
        province: key of the province that it serves; ``None``: of no one in particular.
    """

    kind: str
    params: Mapping[str, Any]
    province: str | None = None

    @property
    def identity(self) -> str:
        """The query as canonical JSON."""
        told = json.dumps([self.kind, dict(self.params)], sort_keys=True, ensure_ascii=False)
        return storable(told)


@dataclass(frozen=True)
class FoundPhoto:
    """A photo that a source knows of, before it is downloaded.

    Attributes:
        source_id: its id there, unique in the source.
        latitude: degrees, as the source gives it.
        longitude: degrees.
        url: where its picture is; ``None``: only :meth:`Source.locate` tells (and may cost).
        accuracy_km: how exact the coordinate is; ``None``: the source does not say.
        license: key of ``geopak.sources.licenses``; ``None``: not known.
        author: name of who made it.
        author_url: of the author.
        page_url: page of the photo, where its attribution leads.
        captured_at: ISO 8601, as far as known (``2014``, ``2014-05-06T10:00:00``).
        title: as given by the author.
        width: pixels, if the source says so before the download.
        height: pixels.
        album: what ties photos of one visit or place together, if the source tells.
        extra: what :meth:`Source.locate` needs, as JSON values.
    """

    source_id: str
    latitude: float
    longitude: float
    url: str | None = None
    accuracy_km: float | None = None
    license: str | None = None
    author: str | None = None
    author_url: str | None = None
    page_url: str | None = None
    captured_at: str | None = None
    title: str | None = None
    width: int | None = None
    height: int | None = None
    album: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """An entry of an answer that cannot be used: counted, and kept with its reason.

    Attributes:
        source_id: its id, or where it is in the source (``block 12 line 7``).
        reason: short, of a fixed vocabulary (``no_coordinate``).
        detail: what was there.
    """

    source_id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Answer:
    """What a source says to a query.

    Attributes:
        photos: found; those outside the region may be among them, the collector looks.
        more: queries that follow from it.
        refused: entries that are no photo that could be used.
        seen: entries that were looked through, for progress.
    """

    photos: tuple[FoundPhoto, ...] = ()
    more: tuple[Query, ...] = ()
    refused: tuple[Refused, ...] = ()
    seen: int = 0


@dataclass(frozen=True)
class Estimate:
    """What a collection would take, told before any request.

    Attributes:
        requests: by kind of request, at least and at most.
        cost_usd: at least and at most; ``None``: the source is free.
        assumptions: what the numbers rest on, a sentence each.
    """

    requests: Mapping[str, tuple[int, int]]
    cost_usd: tuple[float, float] | None = None
    assumptions: tuple[str, ...] = ()


class Source(Protocol):
    """A place that photos come from.

    Attributes:
        name: short lower-case name (``flickr``), the ``source`` column of the photos.
        api_hosts: hosts that its requests go to.
        photo_hosts: hosts that its pictures lie on (``*.staticflickr.com`` allowed); empty: its
            photos are no downloads but files, which :meth:`locate` names.

    A class may also say which ``kinds`` of requests it has (none), and what ``auto`` stands for in
    the configuration: ``rate_per_s``, a number of requests to its interface (1); ``quota``, of
    requests a day by kind (none); ``licenses``, keys of :mod:`geopak.sources.licenses` that are
    kept, ``None`` for any (those that permit photos to be passed on). And ``start_every_run``:
    whether its first queries can be others in a later run (no); those that are new are then asked.
    """

    name: str
    api_hosts: tuple[str, ...]
    photo_hosts: tuple[str, ...]

    def start(self) -> Iterable[Query]:
        """The first queries, in the order in which they are best asked; the same every time,
        unless the class says otherwise."""
        ...

    async def ask(self, query: Query, client: Client) -> Answer:
        """Answers a query.

        Raises:
            SourceError: the source refuses for good (a wrong key, a malformed query).
            httpx.HTTPError: as the client raises it, once its own attempts are used up.
        """
        ...

    async def locate(self, photo: FoundPhoto, client: Client) -> str:
        """The URL (or path of a local file, as ``file:`` URL) of a photo's picture."""
        ...

    def estimate(self, targets: Mapping[str, int]) -> Estimate:
        """What a collection of so many photos per province key would ask and cost.

        Args:
            targets: photos still wished for, by province; one that is missing has no limit.
        """
        ...
