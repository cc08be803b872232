"""YFCC100M: which lines of the dump are photos of the region, however the dump is read."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest
import shapely

from geopak.errors import RefusedQueryError, SourceError
from geopak.geo.region import Region
from geopak.options import examine
from geopak.schema.sources.yfcc100m import Yfcc100mOptions
from geopak.sources import large_files
from geopak.sources.addresses import host_is_listed
from geopak.sources.records import Refused
from geopak.sources.yfcc100m import Yfcc100m
from geopak.sources.yfcc_lines import LAYOUTS
from tests.sources.asking import Asking, client, collect
from tests.sources.stand_in import Reply, StandIn, broken
from tests.sources.yfcc_dump import BOX, EAST, OUTLINES, WEST, Files, as_text, draw_dump, dump_line

OPTIONS = Yfcc100mOptions("yfcc100m", None)


def source(region: Region, files: Any, **options: Any) -> Yfcc100m:
    options = {"part_mb": 0.05, "threads": 1, **options}
    return Yfcc100m(Yfcc100mOptions("yfcc100m", files, **options), region, OUTLINES)


def naive(lines: list[bytes], columns: int = 23) -> tuple[dict[str, Any], Counter[str]]:
    """The photos of the region by identifier, and the reasons of all other lines."""
    photos, reasons = {}, Counter[str]()
    for line in lines:
        parts = line.split(b"\t")
        if len(parts) != columns:
            reasons["malformed_line"] += 1
            continue
        value = {n: unquote_plus(p.decode()) for n, p in zip(LAYOUTS[columns], parts, strict=True)}
        if not value["latitude"] or not value["longitude"]:
            reasons["no_coordinate"] += 1
            continue
        try:
            lat, lon = float(value["latitude"]), float(value["longitude"])
        except ValueError:
            lat = lon = float("nan")
        if not (-90 <= lat <= 90 and -180 <= lon <= 180):
            reasons["bad_coordinate"] += 1
        elif not (BOX[0] <= lat <= BOX[2] and BOX[1] <= lon <= BOX[3]):
            reasons["outside_box"] += 1
        elif value["marker"] == "1":
            reasons["video"] += 1
        elif not any(p.intersects(shapely.Point(lon, lat)) for p in (WEST, EAST)):
            reasons["outside_region"] += 1
        else:
            photos[value["id"]] = (lat, lon, value["title"])
    return photos, reasons


def reasons_of(refused: list[Refused]) -> Counter[str]:
    """Lines by reason; where they are only counted, the number is in the detail."""
    reasons: Counter[str] = Counter()
    for entry in refused:
        counted = entry.reason in ("no_coordinate", "outside_box")
        reasons[entry.reason] += int(entry.detail.split()[0].replace(",", "")) if counted else 1
    return reasons


def check(driver: Asking, lines: list[bytes], columns: int = 23) -> None:
    photos, reasons = naive(lines, columns)
    assert Counter(p.source_id for p in driver.photos) == Counter(photos.keys())
    found = {p.source_id: (p.latitude, p.longitude, p.title) for p in driver.photos}
    assert found == photos
    assert reasons_of(driver.refused) == reasons
    assert driver.seen == len(lines) == len(photos) + sum(reasons.values())


@pytest.fixture(scope="module")
def dumps(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, tuple[Path, list[bytes]]]:
    """A dump of each layout, of several blocks."""
    folder = tmp_path_factory.mktemp("dump")
    made = {}
    for columns in (23, 25):
        lines = draw_dump(3000, BOX, columns, columns)
        path = folder / f"yfcc100m_dataset-{columns}.bz2"
        path.write_bytes(bz2.compress(as_text(lines), 1))
        made[columns] = path, lines
    return made


@pytest.mark.parametrize("columns", [23, 25])
@pytest.mark.parametrize("part_mb", [0.02, 0.1, 100])
def test_photos_are_those_of_a_naive_filter(
    dumps: Any, region: Region, columns: int, part_mb: float
) -> None:
    path, lines = dumps[columns]
    check(collect(source(region, str(path), part_mb=part_mb)), lines, columns)


def test_parts_in_any_order_and_after_breaks_give_the_same(dumps: Any, region: Region) -> None:
    path, lines = dumps[23]
    asked, driver = source(region, str(path)), Asking()

    async def go() -> None:
        order = random.Random(3)
        async with client() as http:
            while True:
                # Every round is a process that was killed, with what it had committed.
                await driver.run(asked, http, order, most=3)
                if not driver.open:
                    return

    asyncio.run(go())
    assert len(driver.answers) > 6
    check(driver, lines)


def test_several_files_plain_text_and_streams(tmp_path: Path, region: Region) -> None:
    lines = draw_dump(900, BOX, 5)
    text = [as_text(lines[start : start + 300]) for start in (0, 300, 600)]
    (tmp_path / "dump-0.bz2").write_bytes(bz2.compress(text[0]))
    half = text[1].index(b"\n", 20_000) - 40
    (tmp_path / "dump-1.bz2").write_bytes(
        bz2.compress(text[1][:half], 1) + bz2.compress(text[1][half:], 2)
    )
    # Neither packed nor with a line feed at its end.
    (tmp_path / "dump-2.tsv").write_bytes(text[2].removesuffix(b"\n"))
    asked = source(region, [str(tmp_path / "dump-*.bz2"), str(tmp_path / "dump-2.tsv")])
    assert [Path(f).name for f in asked.files()] == ["dump-0.bz2", "dump-1.bz2", "dump-2.tsv"]
    check(collect(asked), lines)


def test_a_malformed_line_costs_no_other(tmp_path: Path, region: Region) -> None:
    lines = draw_dump(300, BOX, 6)
    lines[50] = b"\t".join(lines[50].split(b"\t")[:-3])
    lines[60] += b"\tmore"
    lines[70] = b"\xff\xfe nothing"
    path = tmp_path / "dump"
    path.write_bytes(as_text(lines))
    driver = collect(source(region, str(path)))
    assert driver.seen == 300
    bad = [r for r in driver.refused if r.reason == "malformed_line"]
    assert len(bad) == 3
    assert len({r.source_id for r in bad}) == 3
    assert "20 columns in place of 23" in bad[0].detail
    check(driver, lines)


@pytest.mark.parametrize("changes", [{"min_accuracy": 9}, {"size": "640"}, {"pictures": None}])
def test_other_options_read_the_dump_anew(
    tmp_path: Path, region: Region, changes: dict[str, Any]
) -> None:
    path = tmp_path / "dump.txt"
    path.write_bytes(as_text([dump_line(1, 25.5, 65.25)]))
    options = replace(OPTIONS, files=str(path))
    asked = [
        set(collect(Yfcc100m(some, region, OUTLINES)).answers)
        for some in (options, replace(options, **changes))
    ]
    assert len(asked[0]) == len(asked[1]) == 2
    assert not asked[0] & asked[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"id,url\n1,2\n", "line 1 is no line of the YFCC100M metadata: it has 1 columns"),
        (dump_line(1) + b"\n" + b"a\tb\n" * 3, "line 2 is no line .* 2 columns"),
        (bz2.compress(b"1\t2\n" * 9), "line 1 is no line .* 2 columns"),
        (b"BZh9" + b"nothing packed" * 9, "no whole block of bzip2"),
    ],
)
def test_a_file_that_is_no_dump(
    tmp_path: Path, region: Region, content: bytes, message: str
) -> None:
    path = tmp_path / "yfcc100m_dataset"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"yfcc100m_dataset.*{message}"):
        collect(source(region, str(path)))


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path, region: Region) -> None:
    with pytest.raises(SourceError, match=r"nowhere-\*\.bz2.*docs/sources/yfcc100m.md"):
        list(source(region, str(tmp_path / "nowhere-*.bz2")).start())


def test_options_without_files_are_refused() -> None:
    section = {"name": "yfcc100m", "files": None}
    _, problems = examine(Yfcc100mOptions, section, "source")
    assert [problem.key for problem in problems] == ["source.files"]
    built, problems = examine(Yfcc100mOptions, {**section, "files": "a.bz2"}, "source")
    assert not problems
    assert built is not None
    assert built.paths == ("a.bz2",)


def truncated(dumps: Any, folder: Path, share: float = 0.6) -> tuple[Path, bytes, list[bytes]]:
    path, lines = dumps[23]
    whole = path.read_bytes()
    cut = folder / "cut.bz2"
    cut.write_bytes(whole[: int(len(whole) * share)])
    return cut, whole, lines


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.9, 0.97])
def test_a_truncated_file_ends_in_an_error_that_names_byte_and_remedy(
    dumps: Any, region: Region, tmp_path: Path, share: float
) -> None:
    cut, whole, lines = truncated(dumps, tmp_path, share)
    driver, asked = Asking(), source(region, str(cut))

    async def go() -> None:
        async with client() as http:
            await driver.run(asked, http)

    with pytest.raises(
        SourceError, match=r"cut\.bz2 is truncated at byte [\d,]+ .*Download the file again"
    ):
        asyncio.run(go())
    # What came before is answered, and nothing but the end is open.
    assert {query.kind for query in driver.open.values()} <= {"rest", "end"}
    photos, _ = naive(lines[: driver.seen])
    assert {photo.source_id for photo in driver.photos} == set(photos)
    assert driver.seen > len(lines) * (share - 0.15)
    with pytest.raises(SourceError, match="truncated"):
        asyncio.run(go())
    # The same file, whole: what was missing is read, and nothing twice.
    cut.write_bytes(whole)
    asyncio.run(go())
    check(driver, lines)


def test_a_damaged_file_costs_its_block_and_is_mended(
    dumps: Any, region: Region, tmp_path: Path
) -> None:
    path, lines = dumps[23]
    whole, bad = path.read_bytes(), tmp_path / "bad.bz2"
    bad.write_bytes(whole[:100_000] + b"damage" + whole[100_006:])
    driver, asked = Asking(), source(region, str(bad))

    async def go(most: int | None = None) -> None:
        async with client() as http:
            await driver.run(asked, http, most=most)

    # One query is refused, and the collection can go on with the others.
    with pytest.raises(RefusedQueryError, match=r"bad\.bz2 is damaged at byte .*retry_failed=true"):
        asyncio.run(go())
    (name,) = (name for name, query in driver.open.items() if query.kind == "rest")
    rest = driver.open.pop(name)
    with contextlib.suppress(RefusedQueryError):
        asyncio.run(go())
    driver.open.pop(name, None)
    asyncio.run(go())
    assert 0.5 * len(lines) < driver.seen < len(lines)
    skipped = collect(source(region, str(bad), skip_damaged=True))
    assert {p.source_id for p in driver.photos} <= {p.source_id for p in skipped.photos}
    bad.write_bytes(whole)
    driver.open[name] = rest
    asyncio.run(go())
    check(driver, lines)


def test_a_truncated_file_can_be_taken_as_it_is(
    dumps: Any, region: Region, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut, _, lines = truncated(dumps, tmp_path)
    driver = collect(source(region, str(cut), skip_damaged=True))
    assert "cut.bz2 does not end as a bzip2 file does" in caplog.text
    (lost,) = [r for r in driver.refused if r.reason == "damaged_block"]
    assert "truncated at byte" in lost.detail
    assert {p.source_id for p in driver.photos} == set(naive(lines[: driver.seen])[0])


def test_another_file_of_the_same_name_is_noticed(
    dumps: Any, region: Region, tmp_path: Path
) -> None:
    path = tmp_path / "dump.bz2"
    path.write_bytes(dumps[23][0].read_bytes())
    driver, asked = Asking(), source(region, str(path))

    async def go() -> None:
        async with client() as http:
            await driver.run(asked, http, most=2)

    asyncio.run(go())
    path.write_bytes(dumps[25][0].read_bytes())
    driver.open = {k: q for k, q in driver.open.items() if q.kind == "block"}
    with pytest.raises(SourceError, match="another file than when this collection began"):
        asyncio.run(go())


def test_over_the_network(dumps: Any, region: Region) -> None:
    path, lines = dumps[23]
    with StandIn(Files({"/dump.bz2": path.read_bytes()})) as server:
        driver = collect(source(region, f"{server.url}/dump.bz2"))
        check(driver, lines)
        # A query reads its part and little more, not the whole file.
        assert all(r.status == 206 for r in server.requests)
        assert len(server.requests) == len(driver.answers)


def test_a_file_that_breaks_off_is_gone_on_with(dumps: Any, region: Region) -> None:
    path, lines = dumps[23]
    files = Files({"/dump.bz2": path.read_bytes()})
    with StandIn(files) as server:
        server.faults.add(lambda r: broken(files(r), 20_000), times=8, every=2)
        server.faults.add(lambda r: broken(files(r), 0), times=2, after=6)
        check(collect(source(region, f"{server.url}/dump.bz2")), lines)


def test_a_file_that_always_breaks_off_is_an_error(
    dumps: Any, region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_files, "_PAUSE_S", 0.001)
    files = Files({"/dump.bz2": dumps[23][0].read_bytes()})
    with StandIn(files) as server:
        # The headers come, and not a byte.
        nothing = Reply(b"x", 206, told_length=100, cut_after=1, headers={"ETag": files.version})
        server.faults.add(
            lambda r: replace(
                nothing,
                body=b"",
                headers={**nothing.headers, "Content-Range": _range(files(r))},
            ),
            after=1, times=None,
        )  # fmt: skip
        asked = source(region, f"{server.url}/dump.bz2", retries=2)
        with pytest.raises(SourceError, match=r"dump\.bz2 breaks off at byte 0 again and again"):
            collect(asked)
        assert len(server.requests) == 1 + 3


def _range(reply: Reply) -> str:
    return reply.headers["Content-Range"]


def test_a_server_without_ranges_is_refused(dumps: Any, region: Region) -> None:
    with (
        StandIn(Files({"/d": dumps[23][0].read_bytes()}, ranges=False)) as server,
        pytest.raises(SourceError, match="grants no ranges"),
    ):
        collect(source(region, f"{server.url}/d"))


def test_a_file_that_changes_on_its_server_is_noticed(dumps: Any, region: Region) -> None:
    files = Files({"/d": dumps[23][0].read_bytes()})
    driver = Asking()
    with StandIn(files) as server:
        asked = source(region, f"{server.url}/d")

        async def go() -> None:
            async with client(asked.api_hosts) as http:
                await driver.run(asked, http, most=2)

        asyncio.run(go())
        files.version = '"2"'
        with pytest.raises(SourceError, match="another file than when"):
            asyncio.run(go())


def test_parts_are_looked_through_at_once(dumps: Any, region: Region) -> None:
    path, lines = dumps[23]
    asked = source(region, str(path), threads=2)
    driver = Asking()

    async def go() -> None:
        async with client() as http:
            await driver.run(asked, http, most=1)
            queries = list(driver.open.values())
            answers = await asyncio.gather(*(asked.ask(query, http) for query in queries))
            for query, answer in zip(queries, answers, strict=True):
                driver.answers[query.identity] = answer

    asyncio.run(go())
    check(driver, lines)


def test_the_estimate_tells_lines_and_asks_nothing(dumps: Any, region: Region) -> None:
    local = source(region, str(dumps[23][0])).estimate({"capital": 5})
    assert local.requests == {"block": (0, 0)}
    assert local.cost_usd is None
    remote = source(region, "https://example.org/yfcc100m_dataset.bz2", part_mb=16).estimate({})
    assert remote.requests["block"][1] == 1 + -(-16_000_000_000 // (16 << 20))


def test_hosts(region: Region) -> None:
    asked = source(region, ["https://example.org/a.bz2", "b.bz2"], pictures="http://127.0.0.1:80/p")
    assert asked.api_hosts == ("example.org",)
    assert asked.photo_hosts == ("127.0.0.1:80",)
    dump = source(region, "b.bz2", pictures=None)
    for host, listed in {
        "farm8.staticflickr.com": True,
        "live.staticflickr.com": True,
        # Where a photo that is gone leads to.
        "combo.staticflickr.com": False,
        "s.yimg.com": False,
    }.items():
        assert host_is_listed(host, dump.photo_hosts) == listed
