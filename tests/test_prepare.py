import dataclasses
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geopak.cli import compose
from geopak.data.diagnosis import Thresholds
from geopak.data.manifest import read_manifest
from geopak.errors import ConfigError, PreparedSetError, TableError
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.options import options, plain
from geopak.preparation import Settings, prepare

NUM_PHOTOS = 210


def hidden(folder):
    return {p.name for p in folder.iterdir() if p.name.startswith(".")}


def content(folder, *names):
    found = read_manifest(folder)["content"]
    return {name: found[name] for name in names}


def photo_table(root, seed=0):
    """Photos in every province, and one row of most kinds that must be caught."""
    region = Region.from_config(compose("prepare").region)
    outlines = Outlines.of_region(region)
    rng = np.random.default_rng(seed)
    (root / "photos").mkdir(parents=True)
    south, west, north, east = outlines.bounds_deg
    spots = []
    while len(spots) < 70:
        spot = rng.uniform((south, west), (north, east))
        province = int(outlines.province_of([spot])[0])
        wanted = len(spots) % region.num_provinces
        if wanted == 3:  # too small to be hit by chance
            spot, province = np.array([33.7, 73.1]) + rng.normal(0, 0.02, 2), 3
        if province == wanted:
            spots.append(spot)
    rows = []
    for k in range(NUM_PHOTOS):
        spot = spots[k % len(spots)]
        coarse = Image.fromarray(rng.integers(0, 255, (18, 24, 3), np.uint8))
        coarse.resize((96, 72)).save(root / f"photos/{k}.png")
        rows.append(
            {
                "id": f"p{k:03d}",
                "path": f"photos/{k}.png",
                "latitude": spot[0],
                "longitude": spot[1],
                "province": region.names[(k % len(spots)) % region.num_provinces],
                "author": f"author{k % len(spots)}",
                "captured_at": "2021-05-03T10:00:00",
            }
        )
    table = pd.DataFrame(rows)
    bad = table.iloc[[0, 1, 2, 3, 4, 5]].copy()
    bad["id"] = ["swapped", "sea", "missing", "q_label", "p001", "broken"]
    bad[["latitude", "longitude"]] = bad[["latitude", "longitude"]].astype(object)
    bad.iloc[0, [2, 3]] = bad.iloc[0, [3, 2]].to_numpy()
    bad.iloc[1, [2, 3]] = [20.01, 63.02]
    bad.iloc[2, 1] = "photos/none.png"
    bad.iloc[3, 4] = "Atlantis"
    bad.iloc[5, 1] = "photos/broken.png"
    (root / "photos/broken.png").write_bytes((root / "photos/5.png").read_bytes()[:900])
    pd.concat([table, bad]).to_csv(root / "photos.csv", index=False)
    return region


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    region = photo_table(root)
    frame = pd.read_csv(root / "photos.csv", dtype=str)
    frame.loc[10, "province"] = region.names[(10 + 1) % region.num_provinces]
    frame.loc[11, "province"] = "Atlantis"
    frame.to_csv(root / "photos.csv", index=False)
    return root, region, prepare(compose("prepare", [f"root={root}", "executor.workers=1"]))


def test_writes_everything(made):
    root, region, summary = made
    out = root / "prepared"
    assert {p.name for p in out.iterdir()} == {
        "photos.parquet", "rejected.parquet", "label_disagreements.csv", "cells.parquet",
        "cells.geojson", "summary.json", "manifest.json", "report.html", "figures",
    }  # fmt: skip
    assert hidden(root) == {".examined", ".prepared.lock"}
    assert json.loads((out / "summary.json").read_text()) == summary
    for name in ("summary.json", "manifest.json", "report.html", "cells.geojson"):
        assert str(root) not in (out / name).read_text()
    geojson = json.loads((out / "cells.geojson").read_text())
    assert len(geojson["features"]) == summary["cells"]["total"]
    assert CellTable.read(out / "cells.parquet").num_cells == summary["cells"]["total"]
    assert summary["region"] == region.name


def test_counts_add_up_and_exactly_the_bad_rows_are_rejected(made):
    root, _, summary = made
    rejected = pd.read_parquet(root / "prepared/rejected.parquet")
    assert dict(zip(rejected["id"], rejected["reason"], strict=True)) == {
        "swapped": "coordinates_swapped",
        "sea": "outside_region",
        "missing": "file_missing",
        "q_label": "exact_duplicate",
        "p001": "duplicate_id",
        "broken": "undecodable_truncated",
    }
    assert rejected["line"].to_list() == list(range(NUM_PHOTOS + 2, NUM_PHOTOS + 8))
    assert set(rejected["file"]) == {"photos.csv"}
    assert rejected["author"].notna().all()
    rows = summary["rows"]
    assert (rows["in"], rows["kept"], rows["rejected"]) == (NUM_PHOTOS + 6, NUM_PHOTOS, 6)
    assert sum(summary["split"]["total"].values()) == NUM_PHOTOS
    disagreements = pd.read_csv(root / "prepared/label_disagreements.csv")
    # A wrong label, and one that names no province: both photos stay, where their coordinates are.
    assert disagreements["id"].to_list() == ["p010", "p011"]
    assert disagreements["label_province"][1] == "Atlantis"
    assert disagreements["label_away_km"].isna().to_list() == [False, True]


def test_photos_fit_cells_and_provinces(made):
    root, region, _ = made
    photos = pd.read_parquet(root / "prepared/photos.parquet")
    cells = CellTable.read(root / "prepared/cells.parquet")
    province_id = photos["province_id"].to_numpy()
    assert (photos["province"].to_numpy() == np.array(region.names)[province_id]).all()
    cell_id = photos["cell_id"].to_numpy()
    assert (cells.province_id[cell_id] == province_id).all()
    assert (cells.urban[cell_id] == photos["urban"].to_numpy()).all()
    train = (photos["split"] == "train").to_numpy(bool)
    assert (np.bincount(cell_id[train], minlength=cells.num_cells) == cells.count).all()
    latlon = photos[["latitude", "longitude"]].to_numpy()
    assert (cells.nearest(latlon[~train], province_id[~train]) == cell_id[~train]).all()
    assert photos["id"].is_monotonic_increasing


def test_another_order_of_rows_makes_the_same_set(made, tmp_path):
    root, _, _ = made
    frame = pd.read_csv(root / "photos.csv", dtype=str)
    first = frame.drop_duplicates("id").sample(frac=1, random_state=0)
    pd.concat([first, frame[frame["id"].duplicated()]]).to_csv(tmp_path / "t.csv", index=False)
    overrides = [f"root={root}", f"tables=[{tmp_path}/t.csv]", f"out={tmp_path}/out"]
    prepare(compose("prepare", overrides))
    assert content(tmp_path / "out", "photos", "photo_files", "cells") == content(
        root / "prepared", "photos", "photo_files", "cells"
    )
    prepare(compose("prepare", [*overrides, "seed=5"]))
    assert content(tmp_path / "out", "photo_files") == content(root / "prepared", "photo_files")
    assert content(tmp_path / "out", "photos") != content(root / "prepared", "photos")


def test_the_command_reports_errors_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "geopak.prepare", f"root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert f"error: No photo table at {tmp_path}/photos.csv" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_leaves_the_old_set(made, monkeypatch):
    root, _, summary = made

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("geopak.preparation.write_preparation_report", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare(compose("prepare", [f"root={root}", "executor.workers=1", "seed=3"]))
    assert json.loads((root / "prepared/summary.json").read_text()) == summary
    assert hidden(root) == {".examined", ".prepared.lock"}


def test_foreign_folders_are_not_replaced(made, tmp_path):
    root, _, _ = made
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(PreparedSetError, match="is not a prepared set; it is not replaced"):
        prepare(compose("prepare", [f"root={root}", f"out={tmp_path}"]))
    with pytest.raises(ConfigError, match="holds the data root"):
        prepare(compose("prepare", [f"root={root}", f"out={root}"]))


def test_nothing_usable_says_why(tmp_path):
    (tmp_path / "photos.csv").write_text(
        "id,path,latitude,longitude\n1,a.jpg,25.01,67.02\n2,../a.jpg,25.01,67.02\n"
    )
    with pytest.raises(PreparedSetError, match="None of the 2 rows") as caught:
        prepare(compose("prepare", [f"root={tmp_path}"]))
    assert "1 file_missing, such as: there is no file 'a.jpg'" in str(caught.value)
    assert not (tmp_path / "prepared").exists()


def test_a_province_without_photos_is_named(made, tmp_path):
    root, region, _ = made
    frame = pd.read_csv(root / "photos.csv", dtype=str)
    frame[frame["province"] != region.names[6]].to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(PreparedSetError, match=f"No photo is left in {region.names[6]}"):
        prepare(
            compose("prepare", [f"root={root}", f"tables=[{tmp_path}/t.csv]", f"out={tmp_path}/o"])
        )


def test_unknown_setting_and_missing_column(made, tmp_path):
    root, _, _ = made
    with pytest.raises(ConfigError, match=r"split\.blok_km is not .* Did you mean 'block_km'"):
        prepare(compose("prepare", [f"root={root}", "+split.blok_km=3"]))
    (tmp_path / "t.csv").write_text("id,path,latitud,longitude\n1,a,2,3\n")
    with pytest.raises(TableError, match="no column 'latitude'"):
        prepare(compose("prepare", [f"root={root}", f"tables=[{tmp_path}/t.csv]"]))


def test_configuration_and_code_agree_on_defaults():
    settings = Settings.from_config(compose("prepare"))
    for field in dataclasses.fields(settings):
        section = getattr(settings, field.name)
        if dataclasses.is_dataclass(section):
            assert section == type(section)(), field.name
    thresholds = compose("prepare").thresholds
    assert options(Thresholds, plain(thresholds), "thresholds") == Thresholds()
