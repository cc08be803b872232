"""What ``predict`` writes: seven formats, as it goes, resumed, and a map that stands alone."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

from geopak import GeopakPredictor
from geopak.data.images import load_image
from geopak.errors import GeopakError
from geopak.geo.distance import haversine_km_array
from geopak.predict import GpsComparison
from geopak.predictor import GeopakPredictor as Predictor
from geopak.report import prediction_files, prediction_records
from geopak.report.page import small_jpeg
from geopak.report.prediction_map import page_record
from geopak.results import PhotoFailure, PlaceRegion

from .conftest import Outcome, run_command

Command = Callable[..., Outcome]
FORMATS = ("csv", "parquet", "json", "jsonl", "geojson", "kml", "html")
KML = "{http://www.opengis.net/kml/2.2}"


@pytest.fixture(scope="module")
def folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven photos under odd names, among them a broken one and one with GPS."""
    made = tmp_path_factory.mktemp("asked")
    names = ["a<b>&'c.jpg", 'd "e", f.jpg', "<script>.jpg", "=1+1.jpg"]
    names += [f"g/{k}.jpg" for k in range(5)]
    photos = sorted((home / "data/synthetic/photos").rglob("*.jpg"))
    for name, photo in zip(names, photos, strict=False):
        (made / name).parent.mkdir(exist_ok=True)
        with Image.open(photo) as image:
            # Without the GPS that rendered photos have.
            image.save(made / name)
    (made / "broken.jpg").write_bytes(photos[0].read_bytes()[:150])
    with Image.open(photos[9]) as image:
        exif = Image.Exif()
        exif[34853] = {1: "N", 2: (24.0, 51.0, 36.0), 3: "E", 4: (67.0, 0.0, 36.0)}
        image.save(made / "with gps.jpg", exif=exif, comment=b"secret")
    return made


@pytest.fixture(scope="module")
def calibrated(
    home: Path, phases: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    made = tmp_path_factory.mktemp("calibrated") / "best.ckpt"
    outcome = run_command("calibrate", f"ckpt={phases[1]}", f"out={made}", "num_workers=0")
    assert outcome.status == 0, outcome.text
    return made


def read(path: Path) -> list[dict[str, Any]]:
    """Photo, error, latitude, longitude and model of every record, by an independent reader."""
    suffix = path.suffix
    text = "" if suffix == ".parquet" else path.read_text(encoding="utf-8")
    if suffix == ".csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    elif suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    elif suffix == ".json":
        rows = json.loads(text)
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
    elif suffix == ".geojson":
        features = json.loads(text)["features"]
        rows = [f["properties"] for f in features if f["properties"]["kind"] != "region"]
        for row, f in zip(rows, (f for f in features if "model" in f["properties"]), strict=True):
            if f["geometry"]:
                assert f["geometry"]["coordinates"] == pytest.approx(
                    [row["lon"], row["lat"]], abs=1e-4
                )
    elif suffix == ".kml":
        rows = []
        for place in ElementTree.fromstring(text).iter(f"{KML}Folder"):
            data = {d.get("name"): d.findtext(f"{KML}value") for d in place.iter(f"{KML}Data")}
            point = place.find(f"{KML}Placemark/{KML}Point/{KML}coordinates")
            if point is not None:
                data["lon"], data["lat"] = str(point.text).split(",")
            rows.append(data)
    else:
        found = re.findall(r'<script type="application/json" class="photo">(.*)</script>', text)
        rows = [json.loads(record) for record in found]
    return [
        {
            "photo": row["photo"],
            "error": row.get("error") or None,
            "place": None if row.get("error") else (float(row["lat"]), float(row["lon"])),
            "model": row["model"],
        }
        for row in rows
    ]


@pytest.fixture(scope="module")
def expected(folder: Path, calibrated: Path) -> dict[str, Any]:
    return {a.photo: a for a in GeopakPredictor(calibrated, device="cpu").predict(folder)}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_holds_every_answer_in_order(
    folder: Path, calibrated: Path, command: Command, tmp_path: Path, form: str, expected: dict
) -> None:
    out = tmp_path / "new" / f"result.{form}"
    outcome = command("predict", f"images={folder}", f"ckpt={calibrated}", f"out={out}", "gps=true")
    assert outcome.status == 0, outcome.text
    assert "1 of 11 photos could not be read" in outcome.text
    assert "against the GPS of 1 photo:" in outcome.text
    rows = read(out)
    assert [row["photo"] for row in rows] == list(expected)
    for row in rows:
        answer = expected[row["photo"]]
        if answer.error is not None:
            assert "broken.jpg" in row["error"]
        else:
            assert row["error"] is None
            assert row["place"] == pytest.approx((answer.lat, answer.lon), abs=1e-3)
    # Nothing else is left.
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    before = out.read_bytes()
    again = command("predict", f"images={folder}", f"ckpt={calibrated}", f"out={out}", "gps=true")
    assert again.status == 0, again.text
    assert "11 photos are in it already, 0 are left" in again.text
    assert out.read_bytes() == before or form == "parquet"
    assert read(out) == rows


@pytest.mark.parametrize("form", FORMATS)
def test_an_interrupted_run_keeps_what_is_done_and_goes_on(
    folder: Path, calibrated: Path, command: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, form: str,
) -> None:  # fmt: skip
    out, whole = tmp_path / f"result.{form}", tmp_path / f"whole.{form}"
    arguments = [f"images={folder}", f"ckpt={calibrated}", "batch_size=2"]
    assert command("predict", *arguments, f"out={whole}").status == 0
    asked: list[str] = []
    original = Predictor._read

    def counted(self: Predictor, photo: Any) -> Any:
        asked.append(str(photo))
        return original(self, photo)

    def interrupted(self: Predictor, photos: Iterator[str]) -> Iterator[Any]:
        for number, answer in enumerate(stream(self, photos)):
            if number == 5:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr("geopak.predict._WRITE_AT", 2)
    stream = Predictor.stream
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "stream", interrupted)
        assert command("predict", *arguments, f"out={out}").status == 130
    if form != "parquet":
        # Whole at every moment, though not complete.
        assert read(out) == read(whole)[:5]
        # As if the machine had died within a write.
        content = out.read_bytes()
        end = content.rfind(b"\n", 0, len(content) - 20)
        out.write_bytes(content[: end - 7])
    monkeypatch.setattr(Predictor, "_read", counted)
    outcome = command("predict", *arguments, f"out={out}")
    assert outcome.status == 0, outcome.text
    assert "photos are in it already" in outcome.text
    assert 0 < len(asked) < 11
    assert read(out) == read(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([out.name, whole.name])


@pytest.mark.parametrize(
    "form",
    ["csv", "parquet", "html"]
    + [pytest.param(f, marks=pytest.mark.slow) for f in ("json", "jsonl", "geojson", "kml")],
)
def test_answers_of_other_photos_are_left_out_and_of_other_models_refused(
    folder: Path, phases: dict[int, Path], command: Command, tmp_path: Path, form: str
) -> None:
    out = tmp_path / f"result.{form}"
    own = [f"ckpt={phases[1]}", f"out={out}"]
    assert command("predict", f"images={folder / 'g'}", *own).status == 0
    assert command("predict", f"images={folder / 'g' / '[0-2].jpg'}", *own).status == 0
    assert [Path(r["photo"]).name for r in read(out)] == ["0.jpg", "1.jpg", "2.jpg"]
    for other in (f"ckpt={phases[2]}", "rule=argmax"):
        outcome = command("predict", f"images={folder / 'g'}", *own, other)
        assert outcome.status == 2
        assert "overwrite=true" in outcome.text
        assert len(read(out)) == 3
    outcome = command("predict", f"images={folder / 'g'}", *own, "rule=argmax", "overwrite=true")
    assert outcome.status == 0, outcome.text
    assert len(read(out)) == 5
    out.write_bytes(b"my thesis\n" * 3)
    outcome = command("predict", f"images={folder / 'g'}", *own)
    assert outcome.status == 2
    assert "is there already" in outcome.text
    assert out.read_bytes() == b"my thesis\n" * 3
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_the_page_stands_alone_and_shows_region_hypotheses_and_thumbnails(
    folder: Path, calibrated: Path, command: Command, tmp_path: Path, expected: dict
) -> None:
    out = tmp_path / "map.html"
    outcome = command(
        "predict", f"images={folder}", f"ckpt={calibrated}", f"out={out}", "gps=true", "rule=argmax"
    )
    assert outcome.status == 0, outcome.text
    text = out.read_text(encoding="utf-8")
    # No address is asked for anything: neither by markup nor, as the policy has it, by code.
    assert not re.search(r"(src|href)\s*=\s*[\"']?(?!data:)\w", text)
    assert "https:" not in text
    assert "default-src 'none'" in text
    records = [
        json.loads(r)
        for r in re.findall(r'<script type="application/json" class="photo">(.*)</script>', text)
    ]
    assert len(records) == 11
    assert len(re.findall("<script", text)) == 11 + 2
    for record in records:
        if record["error"]:
            continue
        answer = expected[record["photo"]]
        assert record["region"]["cells"] == list(answer.region.cell_ids)
        assert len(record["hypotheses"]) == len(answer.hypotheses)
        assert base64.b64decode(record["thumbnail"]) == small_jpeg(Path(record["photo"]), 200)
        assert "secret" not in str(record)
    (one,) = [r for r in records if r.get("gps")]
    assert (one["gps"]["lat"], one["gps"]["lon"]) == pytest.approx((24.86, 67.01))
    expected_km = haversine_km_array((24.86, 67.01), (one["lat"], one["lon"]))
    assert one["gps"]["error_km"] == pytest.approx(float(expected_km), abs=0.01)
    assert isinstance(one["gps"]["in_region"], bool)


def test_regions_are_drawn_with_the_area_that_they_claim(
    folder: Path, calibrated: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "r.geojson"
    command("predict", f"images={folder / 'g'}", f"ckpt={calibrated}", f"out={out}", "coverage=0.5")
    features = json.loads(out.read_text())["features"]
    regions = [f for f in features if f["properties"]["kind"] == "region"]
    assert len(regions) == 5
    for feature in regions:
        assert feature["properties"]["coverage"] == 0.5
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        # Square kilometres on the sphere: latitude enters by its sine.
        equal_area = shapely.transform(
            shapely.segmentize(shape, 0.05),
            lambda xy: np.stack(
                (np.radians(xy[:, 0]) * 6371.0088, np.sin(np.radians(xy[:, 1])) * 6371.0088), 1
            ),
        )
        assert equal_area.area == pytest.approx(feature["properties"]["area_km2"], rel=0.02)


def test_nothing_but_unreadable_photos_is_an_error_and_an_unknown_format_too(
    phases: dict[int, Path], command: Command, tmp_path: Path
) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"no photo")
    out = tmp_path / "r.csv"
    outcome = command("predict", f"images={tmp_path}", f"ckpt={phases[1]}", f"out={out}")
    assert outcome.status == 2
    assert "a.jpg" in outcome.text
    assert len(read(out)) == 2
    again = command("predict", f"images={tmp_path}", f"ckpt={phases[1]}", f"out={out}")
    assert again.status == 2
    assert "None of the photos" in again.text
    outcome = command("predict", f"images={tmp_path}", f"ckpt={phases[1]}", "out=r.geojsn")
    assert outcome.status == 2
    assert "Did you mean '.geojson'?" in outcome.text


@pytest.mark.parametrize(
    "form",
    ["csv", "parquet"]
    + [
        pytest.param(f, marks=pytest.mark.slow) for f in ("json", "jsonl", "geojson", "kml", "html")
    ],
)
def test_what_has_changed_since_is_asked_again_and_the_rest_is_counted(
    folder: Path, calibrated: Path, command: Command, tmp_path: Path, form: str
) -> None:
    photos, out = tmp_path / "photos", tmp_path / f"r.{form}"
    photos.mkdir()
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        (photos / name).write_bytes((folder / "g" / name).read_bytes())
    (photos / "3.jpg").write_bytes(b"not yet a photo")
    (photos / "4.jpg").write_bytes((folder / "with gps.jpg").read_bytes())
    (photos / "5.jpg").write_bytes(b"no photo")
    arguments = [f"images={photos}", f"ckpt={calibrated}", f"out={out}", "gps=true"]
    outcome = command("predict", *arguments, "abstain_below=1")
    assert outcome.status == 0, outcome.text
    before = {Path(row["photo"]).name: row for row in read(out)}
    # Another photo under the old name, and one that was mended.
    (photos / "1.jpg").write_bytes((folder / "g" / "4.jpg").read_bytes())
    (photos / "3.jpg").write_bytes((folder / "g" / "3.jpg").read_bytes())
    outcome = command("predict", *arguments, "abstain_below=1")
    assert outcome.status == 0, outcome.text
    assert "4 photos are in it already, 2 are left" in outcome.text
    # Of all photos, not of those of this run alone.
    assert "1 of 6 photos could not be read" in outcome.text
    assert "5 answers are below abstain_below" in outcome.text
    assert "against the GPS of 1 photo:" in outcome.text
    rows = {Path(row["photo"]).name: row for row in read(out)}
    assert len(read(out)) == len(rows) == 6
    fresh = {Path(a.photo).name: a for a in GeopakPredictor(calibrated).predict(photos)}
    for name, row in rows.items():
        if name == "5.jpg":
            assert row["error"]
            continue
        assert row["place"] == pytest.approx((fresh[name].lat, fresh[name].lon), abs=1e-3)
        assert (row == before[name]) == (name not in ("1.jpg", "3.jpg"))


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_full_disk_ends_in_words_and_leaves_a_whole_file_to_go_on_from(
    folder: Path, calibrated: Path, command: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, form: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("geopak.predict._WRITE_AT", 2)
    monkeypatch.setattr(prediction_files, "_PART_ROWS", 2)
    out = tmp_path / f"r.{form}"
    arguments = [f"images={folder}", f"ckpt={calibrated}", "batch_size=2", f"out={out}"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if form == "parquet" else 9000, limits[1]))
    try:
        outcome = command("predict", *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome.status == 2, outcome.text
    assert f"Cannot write out={out}: " in outcome.text
    assert "File too large. What was written before is kept: make room" in outcome.text
    if form != "parquet":
        assert 1 < len(read(out)) < 11
    outcome = command("predict", *arguments)
    assert outcome.status == 0, outcome.text
    assert len(read(out)) == 11
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_two_runs_do_not_write_one_file(calibrated: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / f"r.{form}"
    region = GeopakPredictor(calibrated).trained.region
    setting = prediction_records.Setting("model", region)
    first = prediction_files.open_answers(out, setting, ["a"])
    before = os.stat(out).st_ino if out.exists() else None
    with pytest.raises(GeopakError, match=r"is being written by another run"):
        prediction_files.open_answers(out, setting, {}, overwrite=True)
    assert (os.stat(out).st_ino if out.exists() else None) == before
    first.write([prediction_records.Entry(PhotoFailure("a", "is no photo"))])
    first.close(True)
    assert [row["photo"] for row in read(out)] == ["a"]
    prediction_files.open_answers(out, setting, {}).close(True)
    assert list(tmp_path.iterdir()) == [out]


def test_a_name_may_look_like_markup_and_a_model_lie_in_a_folder(
    folder: Path, calibrated: Path, command: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "[").mkdir()
    for name in ("[/a].jpg", "[bold].jpg", "[/b].jpg"):
        (tmp_path / name).write_bytes((folder / "g" / "0.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    outcome = command("predict", "images=.", f"ckpt={calibrated}")
    assert outcome.status == 0, outcome.text
    for name in ("[/a].jpg", "[bold].jpg", "[/b].jpg"):
        assert name in outcome.text
    assert "Not calibrated" not in outcome.text
    GeopakPredictor(calibrated).save_pretrained(tmp_path / "model")
    for number in (3, 0):
        outcome = command("predict", "images=.", "ckpt=model", "out=r.csv")
        assert outcome.status == 0, outcome.text
        assert ("are in it already" in outcome.text) == (number == 0)
    assert len(read(tmp_path / "r.csv")) == 3


def test_a_region_holds_a_photo_if_it_holds_the_cell_of_its_gps(
    folder: Path, calibrated: Path
) -> None:
    predictor = GeopakPredictor(calibrated)
    trained, photo = predictor.trained, str(folder / "with gps.jpg")
    answer = predictor.predict(photo)
    province = trained.outlines.province_of([(24.86, 67.01)])
    assert trained.region.names[province[0]] == "Sindh"
    own = np.flatnonzero(trained.cells.province_id == province[0])
    center = trained.cells.center_latlon_deg[own]
    true = int(own[haversine_km_array((24.86, 67.01), center).argmin()])
    place = GpsComparison(predictor)
    for cells in ((true,), (true + 1, true), (true + 1,), ()):
        region = PlaceRegion(0.5, 1.0, cells)
        gps, error_km, inside = place.of(answer.to_dict() | {"region": region})
        assert gps == pytest.approx((24.86, 67.01))
        expected_km = haversine_km_array((24.86, 67.01), (answer.lat, answer.lon))
        assert error_km == pytest.approx(float(expected_km))
        assert inside == (true in cells)
    assert place.of(answer.to_dict() | {"region": None})[2] is None


def test_answers_are_declined_by_their_score_and_areas_are_those_of_the_cells(
    folder: Path, calibrated: Path
) -> None:
    predictor = GeopakPredictor(calibrated, abstain_below=0.02, per_province=True)
    calibration = predictor.trained.calibration
    found = predictor.predict(folder / "g")
    assert len(found) == 5
    for answer in found:
        assert answer.answered == (answer.answer_score >= 0.02)
        area = calibration.cell_area_km2[list(answer.region.cell_ids)].sum()
        assert answer.region.area_km2 == pytest.approx(area)
    together = GeopakPredictor(calibrated).predict(folder / "g")
    assert [a.region.cell_ids for a in together] != [a.region.cell_ids for a in found]


def test_a_photo_is_shown_by_its_name_and_as_the_model_sees_it(tmp_path: Path) -> None:
    entry = prediction_records.Entry(PhotoFailure("d/a\\b\udce9.jpg", "is no photo"))
    record = page_record(entry, prediction_records.record_of(entry, "model"))
    assert record["name"] == r"$'a\\b\xe9.jpg'"
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "16 bits.png")
    with Image.open(io.BytesIO(small_jpeg(tmp_path / "16 bits.png", 64))) as image:
        shown = np.asarray(image).astype(int)
    seen = load_image(tmp_path / "16 bits.png", 64).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(shown - seen).max() < 20


def test_no_calibration_is_told_of_many_photos_too(
    folder: Path, phases: dict[int, Path], command: Command
) -> None:
    outcome = command("predict", f"images={folder / 'g'}", f"ckpt={phases[1]}", "coverage=0.5")
    assert outcome.status == 0, outcome.text
    assert "Not calibrated" in outcome.text


def test_every_text_can_be_written_in_one_line() -> None:
    # Different ones differently, for what is done is known by its name.
    texts = ("a\nb", "a\\nb", " a", "a", "a ", "$'a\\nb'", "a\\\nb", "a'\n", "a\\'\n")
    assert len({prediction_records.written(t) for t in texts}) == len(texts)
    assert prediction_records.written("a\nb\r\tc\x00") == r"$'a\nb\r\tc\x00'"
    assert prediction_records.written("caf\udce9.jpg") == r"$'caf\xe9.jpg'"
    assert prediction_records.written("back\\slash's.jpg") == "back\\slash's.jpg"
    assert prediction_records.written("é (1).jpg") == "é (1).jpg"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_reads_a_written_name_as_the_name_of_the_file() -> None:
    # Such as macOS gives to screenshots; and of a disk of another encoding.
    names = (
        "at 3.00\u202fPM.png",
        "a\xa0b",
        "a\x85\x07\x7f\nb",
        "\udce9\udca01é\n",
        "$'\\'",
        "\U000e0001",
    )
    for name in names:
        echo = ["bash", "-c", f"printf %s {prediction_records.written(name)}"]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        assert subprocess.check_output(echo, env=environment) == os.fsencode(name)
