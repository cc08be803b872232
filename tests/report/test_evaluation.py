"""The evaluation report on made-up predictions in a made-up country."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geopak.errors import GeopakError
from geopak.geo.distance import haversine_km_array
from geopak.report.evaluation import summarize, write_report
from geopak.report.groups import PhotoGroups, group_photos

from .squareland import CELLS, CONTEXT, OUTLINES, REGION, make_evaluation

FILES = {
    "report.json", "report.md", "report.html", "predictions.parquet", "error_map.png",
    "error_curve.png", "confusion.png", "reliability.png", "photos.png", "silence.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def photo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for row in range(1, 40):
        image = Image.new("RGB", (64, 48), (6 * row, 120, 90))
        exif = Image.Exif()
        exif[0x0112] = 6 if row == 1 else 1
        image.save(folder / f"{row}.jpg", exif=exif)
    (folder / "2.jpg").write_bytes(b"not a photo")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, photo_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("out") / "new" / "report"
    write_report(
        folder, make_evaluation(40), REGION, OUTLINES, CELLS, CONTEXT, photo_root, num_resamples=200
    )
    return folder


def read(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def values(section: dict[str, Any]) -> dict[str, float]:
    return {k: v["value"] for k, v in section.items() if isinstance(v, dict) and "value" in v}


def test_every_file_is_written(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == FILES
    for path in written.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 300


def test_figures_of_the_whole_set_equal_recomputation(written: Path) -> None:
    report, ev = read(written), make_evaluation(40)
    error_km = haversine_km_array(ev.predicted_latlon_deg["mean"], ev.latlon_deg)
    hit = ev.province_prob.argmax(1) == ev.province_id
    by_province = [ev.province_id == p for p in (0, 1)]
    assert report["num_photos"] == 40
    assert values(report["end_to_end"]) == pytest.approx(
        {
            "median_km": np.median(error_km),
            "mean_km": error_km.mean(),
            "p90_km": np.quantile(error_km, 0.9),
            **{f"within_{t}km": (error_km <= t).mean() for t in (1, 5, 25, 200, 750)},
            "province_acc": hit.mean(),
            "province_macro_acc": np.mean([hit[inside].mean() for inside in by_province]),
            "macro_median_km": np.mean([np.median(error_km[inside]) for inside in by_province]),
            "cell_top1": (ev.cell_rank == 0).mean(),
            "cell_top5": (ev.cell_rank < 5).mean(),
        }
    )
    argmax_km = haversine_km_array(ev.predicted_latlon_deg["argmax"], ev.latlon_deg)
    assert report["rules"]["argmax"]["median_km"]["value"] == pytest.approx(np.median(argmax_km))
    assert report["rules"]["mean"]["median_km"] == report["end_to_end"]["median_km"]
    forced_km = haversine_km_array(ev.teacher_forced_latlon_deg, ev.latlon_deg)
    assert report["teacher_forced"]["median_km"]["value"] == pytest.approx(np.median(forced_km))
    assert report["gate"]["mean"] == pytest.approx(ev.gate.mean())
    assert report["context"] == {**CONTEXT, "checkpoint": "best.ckpt"}


def test_baselines_equal_recomputation(written: Path) -> None:
    baselines, ev = read(written)["baselines"], make_evaluation(40)
    densest_km = haversine_km_array([42.0, 13.0], ev.latlon_deg)
    assert baselines["densest_cell"]["p90_km"]["value"] == pytest.approx(
        np.quantile(densest_km, 0.9)
    )
    # On this scale the mean of degrees is the mean on the sphere, to within a kilometre.
    centroid = np.where(ev.province_id[:, None] == 0, [[42.6, 11.4]], [[42.0, 13.0]])
    assert baselines["province_centroid_true"]["mean_km"]["value"] == pytest.approx(
        haversine_km_array(centroid, ev.latlon_deg).mean(), abs=1
    )


def test_parts_equal_recomputation(written: Path) -> None:
    report, ev = read(written), make_evaluation(40)
    parts = {
        "west": (report["per_province"]["west"], ev.province_id == 0),
        "urban": (report["urban"], ev.urban),
    }
    for section, inside in parts.values():
        assert section["num_photos"] == inside.sum()
        got = values(section)
        assert got["median_km"] == pytest.approx(np.median(ev.error_km[inside]))
        assert got["cell_top5"] == pytest.approx((ev.cell_rank[inside] < 5).mean())
        assert section["baselines"]["densest_cell"]["median_km"]["value"] == pytest.approx(
            np.median(haversine_km_array([42.0, 13.0], ev.latlon_deg[inside]))
        )
    assert report["per_province"]["east"] == {"name": "East", "num_photos": 0}


def test_intervals_hold_their_value(written: Path) -> None:
    def check(section: dict[str, Any]) -> int:
        if "value" in section:
            assert section["low"] - 1e-9 <= section["value"] <= section["high"] + 1e-9
            return 1
        return sum(check(content) for content in section.values() if isinstance(content, dict))

    assert check(read(written)) > 80


def test_calibration_equals_recomputation(written: Path) -> None:
    calibration, ev = read(written)["calibration"], make_evaluation(40)
    correct = ev.error_km <= 25
    bins = (ev.confidence * 10).astype(int)
    gap = sum(
        abs(ev.confidence[bins == b].sum() - correct[bins == b].sum()) for b in np.unique(bins)
    )
    within = calibration["within_confidence_km"]
    assert within["expected_calibration_error"] == pytest.approx(gap / 40)
    assert sum(within["bins"]["count"]) == 40


def test_predictions_have_a_row_per_photo(written: Path) -> None:
    frame, ev = pd.read_parquet(written / "predictions.parquet"), make_evaluation(40)
    assert frame["id"].tolist() == ev.id
    assert frame["error_km"].to_numpy() == pytest.approx(ev.error_km)
    assert frame["error_km_mean"].equals(frame["error_km"])
    assert frame[["prob_west", "prob_middle", "prob_east"]].to_numpy() == pytest.approx(
        ev.province_prob
    )
    assert set(frame["province"]) == {"West | Coast", "Middle <b>"}
    assert len(frame["hypothesis_probability"][0]) == 4


def test_html_is_complete_in_one_file(written: Path) -> None:
    html = (written / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", html)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]+", "", html)
    assert "Middle &lt;b&gt;" in html
    assert "<b>" not in html


def test_markdown_tables_keep_their_columns(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    assert "West \\| Coast" in text
    assert set(re.findall(r"\]\(([^)]+)\)", text)) == {
        name for name in FILES if name.endswith(".png")
    }
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


def test_one_photo_only(tmp_path: Path, photo_root: Path) -> None:
    report = write_report(
        tmp_path, make_evaluation(1, (2,)), REGION, OUTLINES, CELLS, {}, photo_root
    )
    median = report["end_to_end"]["median_km"]
    assert median["low"] == median["value"] == median["high"]
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert "too few photos" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_same_seed_same_report_and_groups_widen_intervals() -> None:
    ev = make_evaluation(60, (0, 1, 2))
    alone = summarize(ev, REGION, CELLS, {}, seed=1)
    assert alone == summarize(ev, REGION, CELLS, {}, seed=1)
    assert alone["intervals"]["drawn"] == "photos"
    nearest = np.argsort(np.argsort(ev.error_km)) // 12
    groups = PhotoGroups(nearest, {"place": 1.0})
    grouped = summarize(dataclasses.replace(ev, groups=groups), REGION, CELLS, {}, seed=1)
    assert grouped["intervals"]["num_groups"] == 5
    assert grouped["intervals"]["largest_group"] == 12
    mean, wide = alone["end_to_end"]["mean_km"], grouped["end_to_end"]["mean_km"]
    assert wide["value"] == mean["value"]
    assert wide["high"] - wide["low"] > 1.5 * (mean["high"] - mean["low"])


def test_another_split_is_not_passed_off_as_test(tmp_path: Path, photo_root: Path) -> None:
    context = {"split": "val"}
    ev = make_evaluation(3)
    write_report(tmp_path, ev, REGION, OUTLINES, CELLS, context, photo_root, num_resamples=50)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "not the test split" in text
    assert "The test photos took no part" not in text


@pytest.mark.parametrize("split", ["test", "val"])
def test_another_set_is_not_passed_off_as_the_trainings(
    tmp_path: Path, photo_root: Path, split: str
) -> None:
    context = {"split": split, "same set as training": False}
    ev = make_evaluation(3)
    write_report(tmp_path, ev, REGION, OUTLINES, CELLS, context, photo_root, num_resamples=50)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"These {split} photos are of another prepared set" in text
    assert "took no part" not in text
    assert "has used these photos" not in text


@pytest.mark.parametrize(
    ("authors_known", "albums_known", "expected", "unexpected"),
    [
        (0, 0, "Not known, and so not grouped by: author and day, album.", "or author and day"),
        (20, 0, "2 km wide or author and day. Known only of a part of the photos: author and day "
         "for 50%. Not known, and so not grouped by: album.", "too narrow"),
        (40, 40, "of the same block of ground about 2 km wide, author and day or album.",
         "nown, and"),
    ],
)  # fmt: skip
def test_page_says_how_photos_were_grouped(
    tmp_path: Path,
    photo_root: Path,
    authors_known: int,
    albums_known: int,
    expected: str,
    unexpected: str,
) -> None:
    ev = make_evaluation(40)
    row = np.arange(40)
    photos = pd.DataFrame(ev.latlon_deg, columns=["latitude", "longitude"])
    photos["province_id"] = ev.province_id
    photos["author"] = ["Ann" if r < authors_known else None for r in row]
    photos["captured_at"] = [f"2021-05-{day:02d}" for day in 1 + row // 2]
    photos["album"] = [f"album {r}" if r < albums_known else None for r in row]
    groups = group_photos(photos)
    context = {"split": "test"}
    ev = dataclasses.replace(ev, groups=groups)
    write_report(tmp_path, ev, REGION, OUTLINES, CELLS, context, photo_root, num_resamples=50)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"{len(np.unique(groups.label))} groups of photos, the largest of" in text
    assert expected in text
    assert unexpected not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": []}, "holds no photos"),
        ({"rule": "median"}, "There are: mean|there are: mean"),
        ({"cell_rank": np.zeros(3)}, "cell_rank has 3 rows for 2 photos"),
        ({"confidence": np.array([0.1, np.nan])}, "confidence of photo photo1"),
        ({"predicted_latlon_deg": {"mean": np.full((2, 2), np.inf)}}, "prediction by mean"),
    ],
)
def test_broken_evaluations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GeopakError, match=message):
        dataclasses.replace(make_evaluation(2), **change)
