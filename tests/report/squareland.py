"""A made-up country and evaluations in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from shapely.geometry import box

from geopak.geo.boundaries import Outlines
from geopak.geo.cells import NUM_NEIGHBOURS, CellTable
from geopak.geo.region import Province, Region
from geopak.report.evaluation import Evaluation

REGION = Region(
    name="squareland",
    title="Squareland <&> Sons",
    provinces=(
        Province(key="west", name="West | Coast"),
        Province(key="middle", name="Middle <b>"),
        Province(key="east", name="East"),
    ),
)
OUTLINES = Outlines((box(10, 40, 12, 44), box(12, 40, 14, 44), box(14, 40, 16, 44)))
CELLS = CellTable(
    province_id=np.array([0, 0, 1, 2]),
    center_latlon_deg=np.array([[41.0, 11.0], [43.0, 11.5], [42.0, 13.0], [42.0, 15.0]]),
    radius_km=np.full(4, 30.0),
    count=np.array([10, 40, 90, 5]),
    urban=np.array([True, False, True, False]),
    sparse=np.zeros(4, bool),
    neighbours=np.full((4, NUM_NEIGHBOURS), -1),
)
CONTEXT = {"split": "test", "checkpoint": Path("best.ckpt"), "decoding": {"within_km": 25}}


def make_evaluation(num: int, provinces: tuple[int, ...] = (0, 1), seed: int = 0) -> Evaluation:
    """Photos of the provinces given; one photo's file is missing, one is turned by EXIF."""
    rng = np.random.default_rng(seed)
    province_id = np.resize(provinces, num).astype(np.int64)
    cell_id = np.array([0, 2, 3])[province_id]
    truth = CELLS.center_latlon_deg[cell_id] + rng.normal(0, 0.1, (num, 2))
    hypotheses = truth[:, None] + rng.normal(0, 0.5, (num, 4, 2))
    probability = rng.dirichlet(np.ones(4), num)
    return Evaluation(
        id=[f"photo{row}" for row in range(num)],
        path=[f"{row}.jpg" for row in range(num)],
        latlon_deg=truth,
        province_id=province_id,
        cell_id=cell_id,
        urban=CELLS.urban[cell_id],
        predicted_latlon_deg={
            "mean": (hypotheses * probability[..., None]).sum(1),
            "argmax": hypotheses[np.arange(num), probability.argmax(1)],
        },
        rule="mean",
        province_prob=rng.dirichlet(np.ones(3), num),
        cell_rank=rng.integers(0, 8, num),
        top_cell_prob=rng.random(num),
        confidence=rng.random(num),
        confidence_km=25.0,
        teacher_forced_latlon_deg=truth + rng.normal(0, 0.02, (num, 2)),
        hypothesis_latlon_deg=hypotheses,
        hypothesis_probability=probability,
        gate=rng.random(num),
        answer_score=rng.random(num),
    )
