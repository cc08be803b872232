"""What a collection writes beside its photos: table, rejections, attribution, summary.

All of it is made from the ledger alone, at the end of every run and however the run ends, so the
ledger is what matters and these files can be made again.
"""

from __future__ import annotations

import csv
import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from geopak.data.atomic import whole_file
from geopak.sources import licenses
from geopak.sources.downloads import file_stem, write_file
from geopak.sources.ledger import Ledger
from geopak.sources.privacy import coarsened, coarsening_error_km

PHOTO_COLUMNS = (
    "id", "path", "latitude", "longitude", "province", "source", "license", "author",
    "captured_at", "url", "width", "height", "album", "accuracy_km", "title", "author_url",
    "license_url", "changes",
)  # fmt: skip
REJECTED_COLUMNS = (
    "source", "source_id", "reason", "detail", "province", "latitude", "longitude", "license",
    "url",
)  # fmt: skip
ATTRIBUTION_COLUMNS = (
    "id", "path", "title", "author", "author_url", "source", "url", "license", "license_url",
    "changes",
)  # fmt: skip
# Of the page's photos; the table beside it has them all.
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Numbers that may be coordinates, in texts of any form.
_COORDINATE = re.compile(r"\d\s?[.,°′']\s?\d")
# What spreadsheets take for a formula.
_FORMULA = ("=", "+", "-", "@")
_ROWS_AT_A_TIME = 10_000
_CHANGES = {
    "faces": "faces blurred",
    "plates": "number plates blurred",
    "metadata": "saved anew without metadata",
}


def photo_id(source: str, source_id: str) -> str:
    """A photo's id in the table: the source's own, where it can stand in a file name."""
    own = source_id if _PLAIN_ID.fullmatch(source_id) else file_stem(source, source_id)
    return f"{source}-{own}"


def photo_rows(
    ledger: Ledger, names: Mapping[str, str], coarsen_km: float | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of the photo table, in the order in which the photos were found.

    Args:
        ledger: of the collection.
        names: display names of the provinces by key.
        coarsen_km: side of the squares that coordinates are moved into.
    """
    rows = ledger.each(
        "SELECT photos.source, source_id, record, province, path, width, height, changes "
        "FROM photos JOIN sources ON name = source "
        "WHERE state = 'downloaded' AND barred IS NULL ORDER BY rank, query_seq, position"
    )
    for source, source_id, text, province, path, width, height, changes in rows:
        record = json.loads(text)
        lat, lon = record["latitude"], record["longitude"]
        accuracy = record.get("accuracy_km")
        if coarsen_km is not None:
            lat, lon = coarsened(lat, lon, coarsen_km)
            accuracy = round((accuracy or 0.0) + coarsening_error_km(coarsen_km), 3)
        key = record.get("license")
        yield {
            "id": photo_id(source, source_id),
            "path": path,
            "latitude": lat,
            "longitude": lon,
            "province": names.get(province, province),
            "source": source,
            "license": key,
            "author": record.get("author"),
            "captured_at": record.get("captured_at"),
            "url": record.get("page_url") or record.get("url"),
            "width": width,
            "height": height,
            "album": record.get("album"),
            "accuracy_km": accuracy,
            "title": record.get("title"),
            "author_url": record.get("author_url"),
            "license_url": licenses.url_of(key),
            "changes": changes or None,
        }


def rejected_rows(ledger: Ledger, coarsen_km: float | None = None) -> Iterator[dict[str, Any]]:
    """Every photo that is not in the table and does not wait, and every entry that is no photo.

    Args:
        ledger: of the collection.
        coarsen_km: side of the squares that coordinates are moved into; details that may hold some
            are left out then.
    """
    rows = ledger.each(
        "SELECT photos.source, source_id, coalesce(barred, reason), "
        "CASE WHEN barred IS NULL THEN detail END, province, record "
        "FROM photos JOIN sources ON name = source "
        "WHERE state = 'rejected' OR barred IS NOT NULL ORDER BY rank, query_seq, position"
    )
    for source, source_id, reason, detail, province, text in rows:
        record = json.loads(text)
        lat, lon = record["latitude"], record["longitude"]
        if coarsen_km is not None:
            lat, lon = coarsened(lat, lon, coarsen_km)
        yield {
            "source": source,
            "source_id": source_id,
            "reason": reason,
            "detail": _without_place(detail, coarsen_km),
            "province": province,
            "latitude": lat,
            "longitude": lon,
            "license": record.get("license"),
            "url": record.get("page_url") or record.get("url"),
        }
    entries = ledger.each(
        "SELECT source, source_id, reason, detail FROM refused JOIN sources ON name = source "
        "ORDER BY rank, query_seq, position, source_id, reason"
    )
    for source, source_id, reason, detail in entries:
        yield {
            "source": source, "source_id": source_id, "reason": reason,
            "detail": _without_place(detail, coarsen_km),
        }  # fmt: skip


def _without_place(detail: str | None, coarsen_km: float | None) -> str | None:
    hidden = coarsen_km is not None and detail and _COORDINATE.search(detail)
    return "left out (privacy.coarsen_km)" if hidden else detail


def write_csv(out: TextIO, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Writes rows as CSV, one by one; what is missing is empty."""
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        # A carriage return in a title would end the row for some readers.
        writer.writerow({k: _one_line(v) for k, v in row.items()})


def _one_line(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else value


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the photo table as Parquet, some rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[str, Any] = dict.fromkeys(PHOTO_COLUMNS, pa.string())
    kinds |= dict.fromkeys(("latitude", "longitude", "accuracy_km"), pa.float64())
    kinds |= dict.fromkeys(("width", "height"), pa.int32())
    schema = pa.schema([(name, kinds[name]) for name in PHOTO_COLUMNS])
    waiting = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while listed := list(itertools.islice(waiting, _ROWS_AT_A_TIME)):
            columns = [pa.array([row[k] for row in listed], kinds[k]) for k in PHOTO_COLUMNS]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def attribution_rows(photos: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Title, author, source and licence of each photo, as Creative Commons asks for it."""
    for photo in photos:
        changes = [_CHANGES.get(c, c) for c in (photo["changes"] or "").split(",") if c]
        yield {
            **{name: photo.get(name) for name in ATTRIBUTION_COLUMNS},
            "title": photo["title"] or "untitled",
            "license": licenses.name_of(photo["license"]),
            "changes": ", ".join(changes),
        }


def _as_text(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows with an apostrophe before what a spreadsheet would compute."""
    for row in rows:
        yield {
            k: f"'{v}" if isinstance(v, str) and v.lstrip().startswith(_FORMULA) else v
            for k, v in row.items()
        }


def attribution_page(rows: Iterable[Mapping[str, Any]], title: str) -> Iterator[str]:
    """The attribution as a page, part by part, to be put beside a published set."""
    yield (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        f"<title>{html.escape(title)}</title>\n"
        "<style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "li{margin:.2em 0}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n<ul>\n"
    )
    for row in rows:
        author = _link(row["author"] or "unknown author", row["author_url"])
        changes = f"; changed: {html.escape(row['changes'])}" if row["changes"] else ""
        yield (
            f"<li>{_link(row['title'], row['url'])} by {author}, "
            f"{_link(row['license'], row['license_url'])}{changes} "
            f"<small>({html.escape(row['id'])})</small></li>\n"
        )
    yield "</ul>\n</html>\n"


def _link(text: str, url: str | None) -> str:
    shown = html.escape(_one_line(text))
    # What a source gives as an address may be anything; a page must not run it.
    if url is None or not url.startswith(("http://", "https://")):
        return shown
    return f'<a href="{html.escape(url, quote=True)}" rel=nofollow>{shown}</a>'


def summary(ledger: Ledger, names: Mapping[str, str]) -> dict[str, Any]:
    """Numbers of a collection: photos by province, source and licence, rejections, requests."""
    provinces = {}
    for key, tally in ledger.tallies().items():
        if key is not None:
            provinces[key] = {
                "name": names.get(key, key), "found": tally.found, "kept": tally.kept,
                "rejected": tally.rejected, "waiting": tally.waiting,
            }  # fmt: skip
    order = list(names)
    sources = [name for (name,) in ledger.rows("SELECT name FROM sources ORDER BY rank")]
    kept = ledger.rows(
        "SELECT coalesce(license, 'unknown'), count(*) FROM photos "
        "WHERE state = 'downloaded' AND barred IS NULL GROUP BY 1 ORDER BY 1"
    )
    rejected = ledger.rows(
        "SELECT coalesce(barred, reason) AS why, count(*) FROM photos "
        "WHERE state = 'rejected' OR barred IS NOT NULL GROUP BY why ORDER BY why"
    )
    refused = ledger.rows("SELECT reason, count(*) FROM refused GROUP BY reason ORDER BY reason")
    return {
        "provinces": {k: provinces[k] for k in order if k in provinces},
        "licenses": dict(kept),
        "rejected": dict(rejected),
        "refused_entries": dict(refused),
        "sources": {
            name: {
                "queries": dict(ledger.query_numbers(name)), "requests": ledger.requests(name),
            }
            for name in sources
        },
    }  # fmt: skip


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        write_csv(file, rows, columns)


def write_all(
    ledger: Ledger,
    out: Path,
    names: Mapping[str, str],
    title: str,
    table: str = "csv",
    coarsen_km: float | None = None,
) -> dict[str, Any]:
    """Writes the photo table and all that goes with it; each file whole or not at all.

    Returns:
        The summary.
    """

    # Read anew for each file: a collection may be larger than memory.
    def photos() -> Iterator[dict[str, Any]]:
        return photo_rows(ledger, names, coarsen_km)

    if table == "parquet":
        with whole_file(out / "photos.parquet") as partial:
            write_parquet(partial, photos())
    else:
        _write_csv(out / "photos.csv", photos(), PHOTO_COLUMNS)
    # The other format would be of an earlier run, and someone would read it.
    (out / ("photos.csv" if table == "parquet" else "photos.parquet")).unlink(missing_ok=True)
    _write_csv(out / "rejected.csv", rejected_rows(ledger, coarsen_km), REJECTED_COLUMNS)
    credits = _as_text(attribution_rows(photos()))
    _write_csv(out / "attribution.csv", credits, ATTRIBUTION_COLUMNS)
    with (
        whole_file(out / "attribution.html") as partial,
        partial.open("w", encoding="utf-8") as file,
    ):
        file.writelines(attribution_page(attribution_rows(photos()), title))
    numbers = summary(ledger, names)
    text = json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"
    write_file(out / "summary.json", text.encode())
    return numbers
