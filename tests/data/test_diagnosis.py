"""The doctor: nothing to say of a good set, and the right word for each thing that is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from geopak.data.diagnosis import LEVELS, Diagnosis, Thresholds, diagnose
from geopak.data.leaks import leak_report
from geopak.geo.cells import CellTable
from geopak.geo.outline_report import OutlineReport, Overlap
from geopak.geo.region import Province, Region

REGION = Region(
    "here",
    "Here",
    tuple(Province(k, k.title(), min_cluster_size=10, target_cells=4) for k in ("east", "west")),
)
PER_SPLIT = {"train": 240, "val": 60, "test": 60, "buffer": 10}
LIMITS = Thresholds()


def photos() -> pd.DataFrame:
    """Two provinces, every split at a town of its own, authors and days apart."""
    parts = []
    for province, name in enumerate(REGION.names):
        for k, (split, num) in enumerate(PER_SPLIT.items()):
            rng = np.random.default_rng([province, k])
            parts.append(
                pd.DataFrame(
                    {
                        "latitude": 25 + 0.1 * k + rng.normal(0, 0.01, num),
                        "longitude": 60 + 8 * province + rng.normal(0, 0.01, num),
                        "province": name,
                        "province_id": province,
                        "label_province": name,
                        "near_border": False,
                        "split": split,
                        "author": [f"{name}{split}{i}" for i in range(num)],
                        "captured_at": "2021-05-03",
                        "source": np.where(np.arange(num) % 2, "one", "other"),
                        "album": pd.NA,
                    }
                )
            )
    table = pd.concat(parts, ignore_index=True)
    table["id"] = [f"p{k}" for k in range(len(table))]
    table["phash"] = [np.random.default_rng(k).bytes(32) for k in range(len(table))]
    return table


def cells(**changed: Any) -> CellTable:
    whole: dict[str, Any] = {
        "province_id": np.repeat([0, 1], 4),
        "center_latlon_deg": np.stack((25 + 0.01 * np.arange(8), 60 + np.arange(8)), 1),
        "radius_km": np.full(8, 3.0),
        "count": np.full(8, 60),
        "urban": np.ones(8, bool),
        "sparse": np.zeros(8, bool),
        "neighbours": np.full((8, 8), -1),
    }
    return CellTable(**{**whole, **changed})


def rejected(num: int = 3) -> pd.DataFrame:
    return pd.DataFrame({"reason": ["blurred"] * num, "detail": ["x"] * num})


def outlines(**changed: Any) -> OutlineReport:
    clean: dict[str, Any] = {
        "area_km2": {"East": 10.0, "West": 10.0}, "overlaps": (), "gaps": (), "repaired": (),
        "ignored": (), "several_features": {},
    }  # fmt: skip
    return OutlineReport(**{**clean, **changed})


def look(table: pd.DataFrame | None = None, **changed: Any) -> Diagnosis:
    table = photos() if table is None else table
    given: dict[str, Any] = {
        "rejected": rejected(), "cells": cells(), "outlines": outlines(), "violations": [],
        "split_method": "places", "min_distance_km": 0.25, "thresholds": LIMITS, **changed,
    }  # fmt: skip
    return diagnose(
        table,
        given["rejected"],
        given["cells"],
        REGION,
        leak_report(table),
        given["violations"],
        given["outlines"],
        split_method=given["split_method"],
        min_distance_km=given["min_distance_km"],
        thresholds=given["thresholds"],
    )


def found(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.topic: finding.level for finding in diagnosis.findings}


def test_a_good_set_has_nothing_wrong_or_weak() -> None:
    diagnosis = look()
    assert found(diagnosis) == {}
    assert diagnosis.lines()[0] == "0 wrong, 0 weak, 0 to note"


def few_train(table: pd.DataFrame) -> pd.DataFrame:
    drop = table.index[(table["split"] == "train") & (table["province"] == "West")][:50]
    return table.drop(drop)


def beside_train(table: pd.DataFrame) -> pd.DataFrame:
    row = table.index[table["split"] == "test"][0]
    train = table.index[(table["split"] == "train")][0]
    table.loc[row, ["latitude", "longitude"]] = table.loc[train, ["latitude", "longitude"]]
    return table


def same_walk(table: pd.DataFrame) -> pd.DataFrame:
    row = table.index[table["split"] == "val"][0]
    table.loc[row, "author"] = table.loc[table["split"] == "train", "author"].iloc[0]
    return table


def wrong_labels(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[table.index[:30], "label_province"] = "West"
    return table


def border_labels(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[table.index[:30], ["label_province", "near_border"]] = ["West", True]
    return table


def near_borders(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[table.index[:300], "near_border"] = True
    return table


def one_author(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[table["split"] == "train", "author"] = "ali"
    return table


def no_source(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(source=pd.NA)


def no_days(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(captured_at=pd.NA)


def no_test(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["split"] != "test"]


def far_test(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[table["split"] == "test", "latitude"] += 3
    return table


def much_buffer(table: pd.DataFrame) -> pd.DataFrame:
    rows = table.index[(table["split"] == "val") & (table["province"] == "East")]
    table.loc[rows, "split"] = "buffer"
    return table


@pytest.mark.parametrize(
    ("change", "topic", "level", "words"),
    [
        (few_train, "few train photos", "weak", "West (190)"),
        (beside_train, "leaks", "wrong", "1 (0.8%) within 250 m of a train photo"),
        (same_walk, "leaks", "wrong", "val photos 1 (0.8%) of an author and day"),
        (wrong_labels, "label noise", "weak", "West said, East found: 30"),
        (border_labels, "label noise", "note", "0 of them away from any border"),
        (near_borders, "borders", "weak", "41% of the photos"),
        (one_author, "one author", "weak", "from the author 'ali'"),
        (no_source, "source unknown", "note", "No photo has a source"),
        (no_days, "unknown ties", "weak", "unknown for 100% of the photos"),
        (no_test, "empty split", "wrong", "There is no test photo"),
        (far_test, "thin coverage", "weak", "East (3"),
        (much_buffer, "buffer", "note", "East (19%)"),
    ],
)
def test_each_weakness_is_told(change: Any, topic: str, level: str, words: str) -> None:
    diagnosis = look(change(photos()))
    assert found(diagnosis)[topic] == level
    text = next(f.text for f in diagnosis.findings if f.topic == topic)
    assert words in text
    levels = [LEVELS.index(finding.level) for finding in diagnosis.findings]
    assert levels == sorted(levels)


def test_cells_are_looked_at() -> None:
    sparse = np.zeros(8, bool)
    sparse[:3] = True
    diagnosis = look(cells=cells(sparse=sparse))
    assert found(diagnosis) == {"sparse cells": "weak"}
    assert "East (3 of 4, minimum 10)" in diagnosis.findings[0].text
    crowded = look(cells=cells(count=np.array([200, 1, 1, 1, 60, 60, 60, 60])))
    assert "East (99%)" in crowded.findings[0].text
    large = look(cells=cells(radius_km=np.array([40.0, 3, 3, 3, 3, 3, 3, 3])))
    assert found(large) == {"large cells": "weak"}
    overlap = Overlap(("East", "West"), 3.0, 0.3, (25.0, 60.0))
    assert found(look(outlines=outlines(overlaps=(overlap,)))) == {"outlines": "weak"}
    broken = look(violations=["Cell 3 is of two provinces."])
    assert found(broken) == {"broken cells": "wrong"}


def test_split_rejections_and_imbalance() -> None:
    assert found(look(split_method="random"))["random split"] == "wrong"
    assert found(look(rejected=rejected(400)))["many rejected"] == "weak"
    strict = dataclasses.replace(LIMITS, max_imbalance=1.1)
    assert found(look(few_train(photos()), thresholds=strict))["imbalance"] == "weak"


def test_advice_names_the_province_that_lacks_most() -> None:
    table = photos()
    drop = table.index[(table["split"] == "train") & (table["province"] == "West")][:220]
    advice = look(table.drop(drop)).advice
    assert len(advice) == 1
    assert advice[0].startswith("20 more train photos in West: it has 20")
    assert "need 40" in advice[0]
