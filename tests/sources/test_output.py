"""The written tables and the page of authors."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from geopak.sources import copies, output
from geopak.sources.ledger import Download, Ledger
from geopak.sources.records import Answer, FoundPhoto, Query, Refused
from tests.sources.filling import NAMES


def test_what_people_write_in_titles_breaks_no_table_and_no_page(ledger: Ledger) -> None:
    nasty = 'x"><script>alert(1)</script>,\r\n;\u2028 لاہور'
    ledger.begin("made", [Query("q", {})])
    ledger.choose("made", [(None, 1)])
    (asked,) = ledger.unanswered("made")
    photo = FoundPhoto(
        "a/b:../c", 31.5, 74.3, url="https://x.example/1", license="cc0", author=nasty, title=nasty,
        page_url="javascript:alert(2)", author_url='https://x.example/"onclick=',
    )  # fmt: skip
    ledger.answered("made", asked, Answer((photo,)), ["north"], [None])
    (candidate,) = ledger.candidates("made", 2**62)
    copies.keep(ledger, candidate, Download("0", "photos/made/x.jpg", 10, 10, 5))
    rows = list(output.photo_rows(ledger, NAMES))
    written = io.StringIO()
    output.write_csv(written, rows, output.PHOTO_COLUMNS)
    text = written.getvalue()
    (read,) = csv.DictReader(io.StringIO(text))
    assert text.count("\n") == 2
    assert read["author"] == " ".join(nasty.split())
    assert read["province"] == "The North"
    assert "/" not in read["id"]
    page = "".join(output.attribution_page(output.attribution_rows(rows), "A <title>"))
    assert "<script>" not in page
    assert "javascript:" not in page
    assert '"onclick' not in page
    assert "لاہور" in page


@pytest.mark.parametrize("table", ["csv", "parquet"])
def test_what_is_written_need_not_fit_into_memory(
    table: str, ledger: Ledger, tmp_path: Path
) -> None:
    import tracemalloc

    number, detail = 20_000, "x" * 100
    ledger.begin("s", [Query("q", {})])
    ledger.choose("s", [(None, 1)])
    (asked,) = ledger.unanswered("s")
    refused = tuple(Refused(f"line {k}", "malformed", detail) for k in range(number))
    photos = tuple(FoundPhoto(f"p{k}", 25.0, 5.0, title=detail) for k in range(number // 4))
    answer, each = Answer(photos, (), refused), [None] * len(photos)
    ledger.answered("s", asked, answer, ["north"] * len(photos), each)
    ledger.db.execute("UPDATE photos SET state = 'downloaded', path = source_id")
    # What is imported once is no matter of this.
    output.write_all(ledger, tmp_path, NAMES, "Photos", table)
    tracemalloc.start()
    output.write_all(ledger, tmp_path, NAMES, "Photos", table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "rejected.csv").stat().st_size > number * len(detail)
    # A parquet's rows are gathered by ten thousand.
    assert peak < (1_000_000 if table == "csv" else 20_000_000)
