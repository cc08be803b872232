"""The source that reads data sets of Hugging Face."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from geopak.cli import compose
from geopak.errors import RefusedQueryError, SourceError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.options import options, plain
from geopak.schema.sources.huggingface import HuggingFaceOptions
from geopak.sources.huggingface import HuggingFaceSource, _Pictures
from geopak.sources.publishing import parquet_schema

from .asking import Asked, ask_everything, located
from .hub_server import Hub, running
from .stand_in import Reply, StandIn

KARACHI, LAHORE, DELHI = (24.8607, 67.0011), (31.5497, 74.3436), (28.6139, 77.209)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """Neither the hub nor a cache of this machine is touched."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture(scope="module")
def outlines() -> Outlines:
    return Outlines.of_region(Region.from_config(plain(compose("collect"))["region"]))


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def rows_of(number: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows with pictures, a third of them in each of three cities."""
    places = (KARACHI, LAHORE, DELHI)
    return [
        {
            "image": {"bytes": picture(k), "path": f"{k}.jpg"},
            "id": f"{k:03d}",
            "latitude": places[k % 3][0] + k / 1e4,
            "longitude": places[k % 3][1],
            "license": "cc-by-4.0",
            "author": "Aisha",
        }
        for k in range(first, first + number)
    ]


SCHEMA_COLUMNS = {
    "id": pa.string(), "latitude": pa.float64(), "longitude": pa.float64(),
    "license": pa.string(), "author": pa.string(),
}  # fmt: skip


def write_parquet(path: Path, rows: list[dict], group: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, parquet_schema(SCHEMA_COLUMNS))
    pq.write_table(table, path, row_group_size=group)
    return path


@functools.cache
def shipped_section() -> dict[str, Any]:
    """``conf/source/huggingface.yaml``."""
    return plain(compose("collect", ["source=huggingface", "source.dataset=x"]))["source"]


def source_of(
    dataset: str | Path, outlines: Outlines | None = None, work: Path | None = None, **more: Any
) -> HuggingFaceSource:
    section = shipped_section() | {"dataset": str(dataset)}
    chosen = options(HuggingFaceOptions, section | more, "source")
    return HuggingFaceSource(chosen, None, outlines, work)


def content(source: HuggingFaceSource, photo: Any) -> bytes:
    url = urlsplit(located(source, photo))
    assert url.scheme == "file"
    return Path(unquote(url.path)).read_bytes()


def own_ids(asked: Asked) -> list[str]:
    return [photo.source_id.rpartition("/")[2] for photo in asked.photos]


@pytest.fixture
def parquet_set(tmp_path) -> Path:
    """Two splits, of two files and one, in groups of four rows."""
    folder = tmp_path / "set"
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", rows_of(10), 4)
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows_of(7, 10), 4)
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows_of(3, 17), 4)
    return folder


def test_a_parquet_set_is_read_by_row_groups(parquet_set):
    source = source_of(parquet_set)
    asked = ask_everything(source)
    assert own_ids(asked) == [f"{k:03d}" for k in range(20)]
    assert [q.kind for q in asked.queries] == ["open"] + ["file"] * 3 + ["group"] * (3 + 2 + 1)
    assert asked.seen == 20
    # In any order: the collector takes the rarest province first.
    for k in (19, 3, 11, 0, 4, 16, 3):
        assert content(source, asked.photos[k]) == picture(k)
    photo = asked.photos[5]
    assert (photo.latitude, photo.longitude) == (DELHI[0] + 5 / 1e4, DELHI[1])
    assert (photo.license, photo.author) == ("cc-by-4.0", "Aisha")
    assert photo.source_id.startswith("set-")


def test_large_row_groups_are_asked_in_parts(parquet_set):
    whole = ask_everything(source_of(parquet_set))
    parts = ask_everything(source_of(parquet_set, rows_per_query=3))
    assert sorted(parts.ids()) == sorted(whole.ids())
    assert len(parts.queries) > len(whole.queries)
    assert {p.source_id: p for p in parts.photos} == {p.source_id: p for p in whole.photos}


@pytest.mark.parametrize("stop", [1, 3, 7])
@pytest.mark.parametrize("form", ["parquet", "imagefolder"])
def test_a_collection_goes_on_where_it_was_stopped(tmp_path, parquet_set, form, stop):
    folder = parquet_set if form == "parquet" else image_folder(tmp_path / "folder", 20)
    whole = ask_everything(source_of(folder, rows_per_query=2))
    first = ask_everything(source_of(folder, rows_per_query=2), stop_after=stop)
    rest = ask_everything(source_of(folder, rows_per_query=2), waiting=first.waiting)
    assert first.photos + rest.photos == whole.photos
    assert first.queries + rest.queries == whole.queries
    # A photo that waited in the ledger is found by a process that has not asked for it.
    later = source_of(folder, rows_per_query=2)
    for photo in whole.photos[13::3]:
        assert content(later, photo) == picture(int(photo.source_id[-3:]))


def image_folder(folder: Path, number: int, split: str = "train") -> Path:
    """An ImageFolder whose table is JSON Lines, as people write them by hand."""
    inner = folder / split
    inner.mkdir(parents=True)
    lines = []
    for row in rows_of(number):
        name = f"é {row['id']}.jpg"
        (inner / name).write_bytes(row.pop("image")["bytes"])
        lines.append(json.dumps({"file_name": name} | row))
    (inner / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_an_image_folder_is_read_file_by_file(tmp_path):
    folder = image_folder(tmp_path / "folder", 7)
    source = source_of(folder, rows_per_query=3)
    asked = ask_everything(source)
    assert [q.params.get("start") for q in asked.queries] == [None, 0, 3, 6]
    assert own_ids(asked) == [f"{k:03d}" for k in range(7)]
    for k, photo in enumerate(asked.photos):
        assert content(source, photo) == picture(k)
        # No second copy of it was made.
        assert unquote(urlsplit(located(source, photo)).path).startswith(str(folder))


def test_parquet_files_alone(parquet_set):
    source = source_of(parquet_set / "data" / "train-*.parquet")
    asked = ask_everything(source)
    assert own_ids(asked) == [f"{k:03d}" for k in range(17)]
    assert content(source, asked.photos[12]) == picture(12)


def test_a_set_whose_pictures_are_in_neither(tmp_path):
    """Arrow files: read in a stream, pictures by going over the rows again."""
    import datasets

    table = pa.Table.from_pylist(rows_of(9), parquet_schema(SCHEMA_COLUMNS))
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    folder = tmp_path / "set"
    folder.mkdir()
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    arrow.rename(folder / "train.arrow")
    source = source_of(folder, rows_per_query=4)
    asked = ask_everything(source)
    assert own_ids(asked) == [f"{k:03d}" for k in range(9)]
    for k in (8, 0, 5):
        assert content(source, asked.photos[k]) == picture(k)


def test_rows_that_are_no_photos(tmp_path):
    good = rows_of(1)[0]
    bad = [
        {"latitude": None},
        {"latitude": float("nan")},
        {"latitude": 91.0},
        {"latitude": 0.0, "longitude": 0.0},
        {"longitude": 180.5},
    ]
    rows = [
        good,
        *(good | row | {"id": f"bad{k}"} for k, row in enumerate(bad)),
        good | {"id": None},
    ]
    source = source_of(write_parquet(tmp_path / "a.parquet", rows))
    asked = ask_everything(source)
    assert [r.reason for r in asked.refused] == [
        "no_coordinate",
        "coordinate_not_a_number",
        "coordinate_out_of_range",
        "coordinates_zero",
        "coordinate_out_of_range",
    ]
    # A row without an id is known by its place.
    assert own_ids(asked) == ["000", "6"]
    assert asked.photos[1].source_id.endswith("/train/0/0/6")
    assert asked.seen == 7


@pytest.mark.parametrize(
    "path",
    ["/etc/hostname", "../secret.jpg", "secret link.jpg", "https://example.org/a.jpg",
     "hf://datasets/other/set@main/a.jpg", "file:///etc/hostname", "nowhere.jpg", "", None],
)  # fmt: skip
def test_a_row_cannot_name_files_outside_the_data_set(tmp_path, path):
    folder = tmp_path / "set"
    row = rows_of(1)[0] | {"image": {"bytes": None, "path": path}}
    write_parquet(folder / "data" / "train.parquet", [row])
    (tmp_path / "secret.jpg").write_bytes(picture(1))
    (folder / "secret link.jpg").symlink_to(tmp_path / "secret.jpg")
    source = source_of(folder)
    [photo] = ask_everything(source).photos
    with pytest.raises(RefusedQueryError):
        located(source, photo)


def card_naming(place: str, key: str = "data_files") -> str:
    """The head of a card whose configuration reads files at a place."""
    files = place if key == "data_dir" else [{"split": "train", "path": place}]
    inner = {key: files, "config_name": "default"}
    return f"---\nconfigs:\n- {json.dumps(inner)}\n---\n"


@pytest.mark.parametrize("key", ["data_files", "data_dir"])
@pytest.mark.parametrize("kind", ["absolute", "above", "address", "chained", "home"])
def test_a_card_cannot_name_files_outside_the_data_set(tmp_path, kind, key):
    private = write_parquet(tmp_path / "other" / "private.parquet", rows_of(1))
    folder = tmp_path / "set"
    write_parquet(folder / "data" / "train.parquet", rows_of(1))
    with StandIn(lambda _: Reply(private.read_bytes())) as server:
        place = {
            "absolute": str(private),
            "above": "data/../../other/*.parquet",
            "address": f"{server.url}/private.parquet",
            "chained": f"zip://private.parquet::{server.url}/a.zip",
            "home": "~/private.parquet",
        }[kind]
        (folder / "README.md").write_text(card_naming(place, key))
        with pytest.raises(SourceError, match="names a file that is not its own"):
            ask_everything(source_of(folder))
        (folder / "README.md").unlink()
        yaml = card_naming(place, key).replace("---\n", "")
        (folder / ".huggingface.yaml").write_text(yaml)
        with pytest.raises(SourceError, match="names a file that is not its own"):
            ask_everything(source_of(folder))
        assert not server.requests


def test_a_link_out_of_the_data_set_is_not_followed(tmp_path):
    private = write_parquet(tmp_path / "other" / "private.parquet", rows_of(1))
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.parquet").symlink_to(private)
    with pytest.raises(SourceError, match="names a file that is not its own"):
        ask_everything(source_of(folder))
    # The hub's own cache is made of links.
    cached = tmp_path / "datasets--me--set" / "snapshots" / "0123"
    (cached / "data").mkdir(parents=True)
    blob = write_parquet(cached.parent.parent / "blobs" / "abc", rows_of(1))
    (cached / "data" / "train.parquet").symlink_to(blob)
    assert len(ask_everything(source_of(cached)).photos) == 1


def test_files_that_a_card_names_in_the_data_set(parquet_set):
    (parquet_set / "README.md").write_text(card_naming("data/train-*.parquet"))
    assert len(ask_everything(source_of(parquet_set)).photos) == 17


def test_a_row_may_name_a_file_of_the_data_set(tmp_path):
    folder = tmp_path / "set"
    row = rows_of(1)[0] | {"image": {"bytes": None, "path": "pictures/a.jpg"}}
    write_parquet(folder / "data" / "train.parquet", [row])
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.jpg").write_bytes(picture(7))
    source = source_of(folder)
    [photo] = ask_everything(source).photos
    assert content(source, photo) == picture(7)


def test_a_ledger_cannot_name_files_outside_the_data_set(tmp_path):
    folder = image_folder(tmp_path / "folder", 1)
    source = source_of(folder)
    [photo] = ask_everything(source).photos
    forged = type(photo)(**vars(photo) | {"extra": dict(photo.extra) | {"image": "/etc/hostname"}})
    with pytest.raises(RefusedQueryError, match="is no file of the data set"):
        located(source, forged)


def test_pictures_are_taken_out_only_where_they_are_wanted(parquet_set, tmp_path, outlines):
    work = tmp_path / "work"
    source = source_of(parquet_set, outlines, work)
    asked = ask_everything(source)
    # Looking through the rows takes no picture out.
    assert not work.exists()
    assert content(source, asked.photos[0]) == picture(0)
    # Of rows 0 to 3, the first group, only 2 is outside.
    written = {p.read_bytes() for p in work.rglob("*") if p.is_file()}
    assert written == {picture(k) for k in (0, 1, 3)}
    with pytest.raises(RefusedQueryError, match="row 2 holds no picture"):
        located(source, asked.photos[2])


def test_pictures_on_their_way_do_not_fill_the_disk(tmp_path):
    store = _Pictures(tmp_path, most_mb=0.01)
    parts = [f"part {k}" for k in range(_Pictures._FEWEST + 20)]
    for part in parts:
        store.one(part, lambda: iter([(0, b"x" * 1000), (1, b"y" * 1000)]), 1)
    kept = list((tmp_path / "pictures").iterdir())
    assert len(kept) == _Pictures._FEWEST
    # What was thrown away is made again.
    url = store.one(parts[0], lambda: iter([(0, b"again")]), 0)
    assert Path(urlsplit(url).path).read_bytes() == b"again"
    with pytest.raises(OSError, match="broken"):
        store.one("new", lambda: (_ for _ in ()).throw(OSError("broken")), 0)
    assert not list(tmp_path.rglob("*.new"))


def test_columns_by_other_names(tmp_path):
    table = pa.table(
        {
            "Photo": pa.array([picture(0), picture(1)]),
            "LAT": ["24.5", "x"],
            "Lng": ["67.5", "67"],
            "licence": ["https://creativecommons.org/licenses/by-sa/3.0/", "mine"],
            "owner": ["Aisha", ""],
            "taken_at": pa.array([0, None], pa.timestamp("s")),
            "width": [40.0, None],
            "url": ["https://example.org/1", "javascript:alert(1)"],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    source = source_of(tmp_path / "t.parquet")
    asked = ask_everything(source)
    [photo] = asked.photos
    assert (photo.latitude, photo.longitude) == (24.5, 67.5)
    assert (photo.license, photo.author, photo.width) == ("cc-by-sa-3.0", "Aisha", 40)
    assert photo.captured_at == "1970-01-01T00:00:00"
    assert photo.page_url == "https://example.org/1"
    assert content(source, photo) == picture(0)
    assert [r.reason for r in asked.refused] == ["coordinate_not_a_number"]
    chosen = source_of(tmp_path / "t.parquet", columns={"image": "Photo", "latitude": "LAT"})
    with pytest.raises(SourceError, match=r"no column for longitude .*It has: Photo, LAT, Lng"):
        # A mapping that is given whole takes the place of the known names.
        ask_everything(chosen)
    table = table.drop_columns(["licence", "owner"])
    pq.write_table(table, tmp_path / "t.parquet")
    [photo] = ask_everything(
        source_of(tmp_path / "t.parquet", license="cc0", author="Bilal")
    ).photos
    assert (photo.license, photo.author) == ("cc0", "Bilal")


def test_files_that_change_while_they_are_read(parquet_set):
    source = source_of(parquet_set)
    queries = list(source.start())
    write_parquet(parquet_set / "data" / "more-00000-of-00001.parquet", rows_of(1))
    with pytest.raises(SourceError, match=r"have changed since .* another out=FOLDER"):
        ask_everything(source, waiting=queries)
    # A collection that begins then reads the files of then.
    assert len(ask_everything(source_of(parquet_set)).photos) == 21


def test_a_licence_that_is_no_known_one_is_kept_as_text(tmp_path):
    rows = [rows_of(1)[0] | {"license": "ask me first"}]
    source = source_of(write_parquet(tmp_path / "a.parquet", rows), license="cc0")
    [photo] = ask_everything(source).photos
    # What a row says goes before the default, even where it is not understood.
    assert photo.license is None
    assert photo.extra["license_text"] == "ask me first"


def test_splits(parquet_set):
    assert own_ids(ask_everything(source_of(parquet_set, splits=["test"]))) == ["017", "018", "019"]
    with pytest.raises(SourceError, match=r"no split 'tests'\. Did you mean 'test'\?"):
        ask_everything(source_of(parquet_set, splits=["tests"]))


def test_names_that_are_none(tmp_path):
    for name in ("a/b/c", "https://huggingface.co/datasets/a/b", str(tmp_path / "*.parquet")):
        with pytest.raises(SourceError, match="is neither owner/name of the hub, nor a folder"):
            source_of(name)
    with pytest.raises(SourceError, match=r"source\.license='cc-bye' is no known licence"):
        source_of(tmp_path, license="cc-bye")


def test_the_hub_is_not_asked_where_that_is_forbidden():
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE forbids to ask it"):
        ask_everything(source_of("me/photos"))


def test_a_folder_that_is_no_data_set(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "set").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        ask_everything(source_of(tmp_path / "set"))


def test_a_broken_parquet_file(parquet_set):
    path = parquet_set / "data" / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    source = source_of(parquet_set)
    open_query = next(iter(source.start()))
    files = source._answer(open_query).more
    broken = next(q for q in files if q.params["split"] == "test")
    with pytest.raises(SourceError):
        source._translating(source._answer, broken)
    # Another one can be read.
    assert source._answer(next(q for q in files if q.params["split"] == "train")).more


def test_the_package_that_is_needed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match=r"pip install 'geopak\[hub\]'"):
        source_of(tmp_path)


def test_what_it_would_take(tmp_path):
    assert source_of(tmp_path).estimate({}).requests == {}
    estimate = source_of("me/photos").estimate({"sindh": 3})
    assert estimate.cost_usd is None
    assert any("huggingface_hub" in text for text in estimate.assumptions)


# Runs in a process of its own: the address of the hub is read when its client is imported.
SCRIPT = """
import json, sys
from pathlib import Path
from urllib.parse import unquote, urlsplit
import hashlib
from geopak.errors import GeopakError
from geopak.cli import compose
from geopak.options import options, plain
from tests.sources.asking import ask_everything, located
from tests.sources.test_huggingface import source_of
out = []
for job in json.loads(sys.argv[1]):
    try:
        if job["do"] == "publish":
            from geopak.schema.publishing import PublishConfig
            from geopak.sources.publishing import publish
            cfg = plain(compose("publish", job["overrides"]))
            cfg.pop("hydra", None)
            out.append(publish(options(PublishConfig, cfg, "")))
        else:
            source = source_of(job["dataset"], **job.get("options", {}))
            asked = ask_everything(source)
            pictures = {}
            for photo in asked.photos:
                content = Path(unquote(urlsplit(located(source, photo)).path)).read_bytes()
                pictures[photo.source_id] = hashlib.sha256(content).hexdigest()
            revisions = sorted({str(q.params["revision"]) for q in asked.queries[1:]})
            out.append({"pictures": pictures, "revisions": revisions})
    except GeopakError as error:
        out.append({"error": f"{type(error).__name__}: {error}"})
print(json.dumps(out))
"""


def with_hub(url: str, token: str | None, tmp_path: Path, *jobs: dict[str, Any]) -> list[Any]:
    """What jobs in a new process say, whose hub is at an address."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]),
    }  # fmt: skip
    if token:
        environment["HF_TOKEN"] = token
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(jobs)],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert not token or token.strip() not in ran.stdout + ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def hashes(numbers: range, name: str) -> dict[str, str]:
    return {f"{name}/{k:03d}": hashlib.sha256(picture(k)).hexdigest() for k in numbers}


def test_sets_by_name_over_a_socket(parquet_set, tmp_path):
    hub = Hub(token="hf_secretsecret")
    first = hub.add("me/parquet", parquet_set)
    write_parquet(parquet_set / "data" / "test-00000-of-00001.parquet", rows_of(1, 50), 4)
    second = hub.add("me/parquet", parquet_set)
    hub.add("me/files", image_folder(tmp_path / "folder", 5))
    table = tmp_path / "folder" / "table.csv"
    lines = ["id,path,latitude,longitude,license"]
    lines += [f"{k},train/é {k:03d}.jpg,24.5,67.{k},cc0" for k in range(5)]
    table.write_text("\n".join(lines))
    with running(hub) as server:
        read = {"do": "read"}
        publishing = [
            f"root={tmp_path / 'folder'}", f"table={table}", "repo=me/new", "push=true",
        ]  # fmt: skip
        got = with_hub(
            server.url,
            "hf_secretsecret",
            tmp_path,
            read | {"dataset": "me/parquet"},
            read | {"dataset": "me/parquet", "options": {"revision": first}},
            read | {"dataset": "me/files"},
            read | {"dataset": "me/nowhere"},
            read | {"dataset": "me/parquet", "options": {"revision": "0" * 40}},
            {
                "do": "publish",
                "overrides": [*publishing, f"to={tmp_path / 'a'}", "format=imagefolder"],
            },
            {"do": "publish", "overrides": [*publishing, f"to={tmp_path / 'b'}", "format=parquet"]},
            read | {"dataset": "me/new"},
        )
        [refused] = with_hub(server.url, None, tmp_path, read | {"dataset": "me/parquet"})
    assert got[0] == {
        "pictures": hashes(range(17), "me/parquet") | hashes(range(50, 51), "me/parquet"),
        "revisions": [second],
    }
    assert got[1] == {"pictures": hashes(range(20), "me/parquet"), "revisions": [first]}
    assert got[2]["pictures"] == hashes(range(5), "me/files")
    assert "SourceError" in got[3]["error"]
    assert "there is none of that name, or it is private" in got[3]["error"]
    assert "SourceError" in got[4]["error"]
    assert "has no such revision on the hub" in got[4]["error"]
    assert got[5]["splits"] == got[6]["splits"] == {"train": 5}
    # The second commit has taken the files of the first away.
    published = hub.sets["me/new"]
    assert {name.partition("/")[0] for name in published[-1]} >= {"README.md", "data"}
    assert [n for n in published[-1] if n.startswith("data/")] == [
        "data/train-00000-of-00001.parquet"
    ]
    assert any(name.endswith("metadata.parquet") for name in published[1])
    assert sorted(got[7]["pictures"].values()) == sorted(hashes(range(5), "x").values())
    assert "no token is in HF_TOKEN" in refused["error"]


def test_sets_and_tokens_that_the_hub_is_not_given(parquet_set, tmp_path):
    """A card that names other files, a token with a line break, a hub that breaks off."""
    hub = Hub(token="hf_secretsecret")
    with StandIn(lambda _: Reply()) as private:
        (parquet_set / "README.md").write_text(card_naming(f"{private.url}/x.parquet"))
        hub.add("evil/set", parquet_set)
        (parquet_set / "README.md").unlink()
        hub.add("me/good", parquet_set)
        table = tmp_path / "table.csv"
        (tmp_path / "a.jpg").write_bytes(picture(1))
        table.write_text("id,path,latitude,longitude,license\n1,a.jpg,24.5,67.1,cc0\n")
        given = [f"root={tmp_path}", f"table={table}", f"to={tmp_path / 'to'}", "push=true"]
        read = {"do": "read"}

        def answer(request):
            broken = request.path == "/api/repos/create" and b"nowhere" in request.body
            return Reply(cut_after=0) if broken else hub.answer(request)

        with StandIn(answer) as server:
            evil, good, nowhere, pushed = with_hub(
                server.url, "hf_secretsecret\n", tmp_path,
                read | {"dataset": "evil/set"}, read | {"dataset": "me/good"},
                {"do": "publish", "overrides": [*given, "repo=me/nowhere"]},
                {"do": "publish", "overrides": [*given, "repo=me/new"]},
            )  # fmt: skip
        assert "names a file that is not its own" in evil["error"]
        assert not private.requests
    assert len(good["pictures"]) == 20
    assert "The hub did not take me/nowhere" in nowhere["error"]
    assert pushed["url"]
