"""A collection from its configuration: what is put together, how it is stopped, what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import signal
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from geopak.errors import ConfigError, SourceError, nearest_name
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.schema.collecting import CollectConfig
from geopak.sources import licenses, output
from geopak.sources.collector import Collector, Wishes
from geopak.sources.downloads import FOLDER, Downloader, PhotoLimits
from geopak.sources.http import USER_AGENT, HttpClient, Manners
from geopak.sources.ledger import Ledger
from geopak.sources.privacy import Privacy
from geopak.sources.progress import Progress, duration
from geopak.sources.quota import DailyQuota
from geopak.sources.records import Estimate, Source
from geopak.sources.registry import make_source

log = logging.getLogger(__name__)

LEDGER = "ledger.sqlite"
# A server that wants to be left alone for longer is taken to have a quota that is used up.
_LONGEST_WAIT_S = {"wait": 172_800.0, "stop": 3600.0}


@dataclass(frozen=True)
class Ended:
    """How a run of a collection ended.

    Attributes:
        summary: the numbers.
        signal: that stopped it.
        quota_spent: which quota is used up until when, in words.
    """

    summary: dict[str, Any] = field(default_factory=dict)
    signal: int | None = None
    quota_spent: str | None = None


@dataclass(frozen=True)
class _Setting:
    """What is decided by the configuration and the source together."""

    region: Region
    source: Source
    outlines: Outlines
    licenses: tuple[str, ...] | None
    rate_per_s: float
    quota: Mapping[str, int | None]

    @classmethod
    def of(cls, config: CollectConfig) -> _Setting:
        region = config.region.region()
        outlines = Outlines.of_region(region)
        assert config.source is not None
        source = make_source(dict(config.source), region, outlines)
        chosen: Any = config.licenses
        if chosen == "auto":
            chosen = getattr(source, "licenses", licenses.OPEN)
        rate: Any = config.rate_per_s
        if rate == "auto":
            rate = getattr(source, "rate_per_s", 1.0)
        quota = _quota_of(source, config.quota)
        return cls(
            region, source, outlines, None if chosen is None else tuple(chosen), float(rate),
            quota,
        )  # fmt: skip

    @property
    def names(self) -> dict[str, str]:
        return {province.key: province.name for province in self.region.provinces}


def _quota_of(source: Source, given: Mapping[str, int | None] | str) -> dict[str, int | None]:
    """The source's own limits, with those that are given in their place.

    Raises:
        ConfigError: a kind of request that the source does not have.
    """
    limits: dict[str, int | None] = dict(getattr(source, "quota", {}))
    if isinstance(given, str):
        return limits
    kinds = [*getattr(source, "kinds", ()), *(["download"] if source.photo_hosts else [])]
    for kind in given:
        if kind not in kinds:
            raise ConfigError(
                f"quota.{kind} is no kind of request of {source.name}."
                f"{nearest_name(kind, kinds)} Known: {', '.join(kinds) or 'none'}."
            )
    return {**limits, **given}


def collect(config: CollectConfig) -> Ended:
    """Collects, and writes what there is in the end, however it ends.

    Args:
        config: with a source.

    Raises:
        GeopakError: what is wrong with the configuration, the source or the folder.
    """
    setting = _Setting.of(config)
    privacy = Privacy(config.privacy)
    out = Path(config.out).expanduser().absolute()
    try:
        _check_apart(config.source or {}, out)
        out.mkdir(parents=True, exist_ok=True)
        return _collect_into(out, config, setting, privacy)
    except (OSError, sqlite3.Error) as error:
        raise SourceError(
            f"{out} cannot be read and written as a collection needs it: {error}. What was "
            "committed stays; the same command goes on when this is mended, or choose another "
            "out=FOLDER."
        ) from error


def _collect_into(out: Path, config: CollectConfig, setting: _Setting, privacy: Privacy) -> Ended:
    with _alone_in(out), Ledger(out / LEDGER) as ledger:
        if ledger.meta("region") is None:
            _check_photos(out)
        _check_region(ledger, setting.region, out)
        title = f"Photos of {setting.region.title}"
        ended = None
        try:
            ended = asyncio.run(_collect(config, setting, ledger, privacy, out))
        finally:
            summary = output.write_all(
                ledger, out, setting.names, title, config.table, config.privacy.coarsen_km
            )
            log.info("%s", _told(summary, out))
        return dataclasses.replace(ended, summary=summary)


async def _collect(
    config: CollectConfig, setting: _Setting, ledger: Ledger, privacy: Privacy, out: Path
) -> Ended:
    source, contact = setting.source, config.contact
    agent = f"{USER_AGENT} {contact}" if contact else USER_AGENT
    quota = DailyQuota(ledger, source.name, setting.quota, config.quota_timezone, config.on_quota)
    common = {
        "retries": config.retries, "timeout_s": config.timeout_s, "backoff_s": config.backoff_s,
        "outage_s": config.outage_s, "whole_timeout_s": config.whole_timeout_s,
        "longest_retry_after_s": _LONGEST_WAIT_S[config.on_quota],
    }  # fmt: skip
    private = config.allow_private_hosts
    wishes = Wishes(
        config.targets_by_province(), setting.licenses, config.min_side_px,
        concurrency=config.concurrency, downloads=config.downloads,
        pause_s=10 * config.backoff_s, outage_s=config.outage_s,
    )  # fmt: skip
    allowed = tuple(config.allowed_hosts)
    async with contextlib.AsyncExitStack() as opened:
        client = await opened.enter_async_context(
            HttpClient(
                (*source.api_hosts, *allowed),
                Manners(setting.rate_per_s, config.concurrency, **common),  # type: ignore[arg-type]
                quota=quota, user_agent=agent, allow_private=private,
            )
        )  # fmt: skip
        pictures = None
        if source.photo_hosts:
            pictures = await opened.enter_async_context(
                HttpClient(
                    (*source.photo_hosts, *allowed),
                    Manners(config.photos_per_s, config.downloads, **common),  # type: ignore[arg-type]
                    quota=quota, user_agent=agent, allow_private=private,
                )
            )  # fmt: skip
        limits = PhotoLimits(int(config.max_photo_mb * 1e6), config.max_pixels, config.min_side_px)
        downloader = Downloader(pictures, out, limits, privacy)
        collector = Collector(
            source, setting.region, setting.outlines, ledger, client, downloader, wishes
        )
        progress = Progress(
            ledger, source.name, setting.names, wishes.targets, quota, config.progress_s
        )
        shown = asyncio.create_task(progress.show())
        with _stopping(collector) as received:
            try:
                ending = await collector.run(
                    _fingerprint(config), config.retry_failed, _limits(config, source)
                )
            finally:
                shown.cancel()
                await asyncio.gather(shown, return_exceptions=True)
    if ending == "stopped":
        return Ended(signal=received[0] if received else signal.SIGTERM)
    return Ended(quota_spent=str(collector.spent) if ending == "quota" else None)


def dry_run(config: CollectConfig) -> dict[str, Any]:
    """Tells requests, time, quota and cost of a collection; asks nothing, and writes nothing.

    Returns:
        What was told, as numbers.
    """
    setting = _Setting.of(config)
    targets = config.targets_by_province()
    kept: dict[str, int] = {}
    path = Path(config.out).expanduser().absolute() / LEDGER
    begun = None
    if path.exists():
        with Ledger(path, writable=False) as ledger:
            _check_region(ledger, setting.region, path.parent)
            kept = {k: tally.kept for k, tally in ledger.tallies().items() if k is not None}
            begun = dict(ledger.query_numbers(setting.source.name))
    missing = {
        key: max(0, target - kept.get(key, 0))
        for key, target in targets.items()
        if target is not None
    }
    estimate = setting.source.estimate(missing)
    if setting.source.photo_hosts and "download" not in estimate.requests:
        estimate = _with_pictures(estimate, config, missing)
    text, numbers = _estimated(estimate, setting, config, missing)
    print(text)
    if begun:
        print(f"The ledger in {config.out} has {begun['done']:,} answered queries, "
              f"{begun['open']:,} are open.")  # fmt: skip
    return numbers


def _with_pictures(
    estimate: Estimate, config: CollectConfig, missing: Mapping[str, int]
) -> Estimate:
    """The estimate with the pictures, which the collector fetches, whatever the source."""
    section = config.source or {}
    found_per_kept = float(
        section.get("estimated_paid_per_kept") or section.get("estimated_found_per_kept") or 2
    )
    wished = sum(missing.values())
    unlimited = sum(1 for target in config.targets_by_province().values() if target is None)
    each = section.get("estimated_in_province") or section.get("estimated_unlimited") or 0
    most = math.ceil(wished * found_per_kept) + unlimited * int(each)
    told = f"Pictures: up to {found_per_kept:g} are fetched for one that is kept"
    if unlimited:
        told += (
            f", and up to {each:,} of a province without a target" if each else
            "; those of provinces without a target, whose number nobody knows, come on top"
        )  # fmt: skip
    return dataclasses.replace(
        estimate,
        requests={**estimate.requests, "download": (wished, most)},
        assumptions=(*estimate.assumptions, f"{told}."),
    )


def _estimated(
    estimate: Estimate, setting: _Setting, config: CollectConfig, missing: Mapping[str, int]
) -> tuple[str, dict[str, Any]]:
    name = setting.source.name
    lines = [f"{name}, {setting.region.title}: what a collection would take. Nothing was asked."]
    wished = ", ".join(f"{setting.names[key]} {number:,}" for key, number in missing.items())
    unlimited = len(setting.names) - len(missing)
    if unlimited:
        wished += f"{', and ' if wished else ''}all of {unlimited} provinces without a target"
    lines.append(f"  photos still wished for: {wished}")
    # Pictures are paced apart from the interface, and fetched meanwhile.
    pictures = estimate.requests.get("download", (0, 0))
    least_s, most_s = (
        max(
            sum(pair[k] for kind, pair in estimate.requests.items() if kind != "download")
            / setting.rate_per_s,
            pictures[k] / config.photos_per_s,
        )
        for k in (0, 1)
    )
    days = 0
    for kind, (low, high) in estimate.requests.items():
        limit = setting.quota.get(kind)
        of_quota = ""
        if limit:
            days = max(days, math.ceil(high / limit))
            of_quota = f"; {limit:,} a day, so up to {math.ceil(high / limit):,} days"
        elif limit == 0:
            of_quota = "; the quota allows none"
        lines.append(f"  {kind} requests: {_between(low, high)}{of_quota}")
    lines.append(
        f"  time at {setting.rate_per_s:g} requests and {config.photos_per_s:g} pictures a second: "
        f"{duration(least_s)} to {duration(most_s)}"
    )
    if estimate.cost_usd is None:
        lines.append("  cost: none to the source")
    else:
        low_usd, high_usd = estimate.cost_usd
        lines.append(f"  cost: {low_usd:,.2f} to {high_usd:,.2f} US dollars")
    lines += [f"  - {assumption}" for assumption in estimate.assumptions]
    numbers = {
        "requests": {kind: list(between) for kind, between in estimate.requests.items()},
        "cost_usd": estimate.cost_usd,
        "seconds": [least_s, most_s],
        "days_by_quota": days,
    }
    return "\n".join(lines), numbers


def _between(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _limits(config: CollectConfig, source: Source) -> dict[str, Any]:
    """Settings that a photo may be rejected by once it is fetched, by the reason they are for."""
    return {
        "forbidden_address": [
            sorted({*source.photo_hosts, *config.allowed_hosts}), config.allow_private_hosts,
        ],
        "too_large": config.max_photo_mb,
        "too_many_pixels": config.max_pixels,
        "too_small": config.min_side_px,
        "faces": config.privacy.faces,
        "plates": config.privacy.plates,
    }  # fmt: skip


def _fingerprint(config: CollectConfig) -> str:
    """What the first queries depend on: the region and the source's own options."""
    region = config.region.region().to_dict()
    # Settings of the model are not a matter of queries.
    provinces = [province["key"] for province in region["provinces"]]
    known = [region["name"], provinces, region["boundaries"], dict(config.source or {})]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _check_region(ledger: Ledger, region: Region, out: Path) -> None:
    """Keeps collections of two regions apart.

    Raises:
        SourceError: the ledger is of another region, or of other provinces.
    """
    now = json.dumps([region.name, [province.key for province in region.provinces]])
    then = ledger.meta("region")
    if then is None:
        if ledger.writable:
            ledger.remember("region", now)
    elif then != now:
        raise SourceError(
            f"{out} holds a collection of {json.loads(then)[0]!r} with the provinces "
            f"{', '.join(json.loads(then)[1])}. Choose another out=FOLDER."
        )


def _check_apart(section: Mapping[str, Any], out: Path) -> None:
    """Keeps the photos that are read and those that are written apart.

    Raises:
        SourceError: one folder lies in the other, or photos would be written through a link.
    """
    photos = out / FOLDER
    if photos.is_symlink():
        raise SourceError(
            f"{photos} is a link. Photos are only written into a folder of the collection's own: "
            "choose an out=FOLDER on the disk that they are to lie on."
        )
    written = photos.resolve()
    for key in ("root", "pictures", "dataset"):
        value = section.get(key)
        read = Path(str(value)).expanduser() if value else None
        if read is None or not read.is_dir():
            continue
        read = read.resolve()
        if read == written or read in written.parents or written in read.parents:
            raise SourceError(
                f"source.{key}={value} and {photos}, where the collection keeps its photos, are "
                "one folder or lie in each other. Choose an out=FOLDER apart from it."
            )


def _check_photos(out: Path) -> None:
    """Looks for photos that are someone else's.

    Raises:
        SourceError: there are some, and no ledger that knows them.
    """
    photos = out / FOLDER
    if photos.exists() and (not photos.is_dir() or any(photos.iterdir())):
        raise SourceError(
            f"{photos} is there already, and {out / LEDGER} knows nothing of what is in it. If the "
            "ledger was lost, restore it from a copy; else choose another out=FOLDER."
        )


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    lock = FileLock(out / f".{LEDGER}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SourceError(
            f"Another process collects into {out} at this moment. Wait for it, or choose another "
            "out=FOLDER."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _stopping(collector: Collector) -> Iterator[list[int]]:
    """Lets a signal end the collection in good order, a second one at once.

    Yields:
        The signals that came.
    """
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def note(number: int) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        log.warning(
            "%s: what is on its way comes in, then it ends; once more ends it at once.",
            signal.Signals(number).name,
        )
        collector.stop("stopped")

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        # Not on Windows, nor in another thread than the main one.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, note, number)
    try:
        yield received
    finally:
        for number in numbers:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)


def _told(summary: Mapping[str, Any], out: Path) -> str:
    kept = {p["name"]: p["kept"] for p in summary["provinces"].values()}
    each = ", ".join(f"{name} {number:,}" for name, number in kept.items())
    rejected = {**summary["rejected"], **summary["refused_entries"]}
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in rejected.items())
    return (
        f"{sum(kept.values()):,} photos in {out}: {each or 'none'}. Not kept: {reasons or 'none'}."
    )
