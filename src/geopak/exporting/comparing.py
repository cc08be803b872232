"""Whether an exported model answers as the checkpoint does, and what smaller numbers cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopak.data.images import load_image
from geopak.errors import ExportError
from geopak.exporting.onnx_model import INPUT, require_onnx
from geopak.geo.distance import haversine_km_array
from geopak.predictor import GeopakPredictor
from geopak.results import Answer, Prediction

TOLERANCE = 1e-4
_BATCH = 16
# Of random photos, relative to the model's square; the last as large beside it as a camera's.
_SIZES = ((1, 1), (2, 2), (1, 2), (3, 2), (9, 7))
Arrays = dict[str, NDArray[Any]]
Pixels = NDArray[np.uint8]


class Session:
    """An ONNX file in ONNX Runtime, on the CPU.

    Raises:
        ExportError: ONNX Runtime is not there, or cannot run the file.
    """

    def __init__(self, path: Path) -> None:
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no base but this
            reason = str(error).partition("\n")[0]
            raise ExportError(f"ONNX Runtime cannot run {path}: {reason}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, image: Pixels) -> Arrays:
        """(B, H, W, 3) -> the outputs by name."""
        return dict(zip(self.outputs, self._session.run(None, {INPUT: image}), strict=True))

    def squares(self, photos: Sequence[Any], size: int, framing: str) -> Arrays:
        """The outputs for photos of any kind that :func:`geopak.data.images.load_image` reads."""
        parts = []
        for start in range(0, len(photos), _BATCH):
            loaded = [load_image(p, size, framing) for p in photos[start : start + _BATCH]]
            parts.append(self(np.stack([image.permute(1, 2, 0).numpy() for image in loaded])))
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}


@dataclass
class Differences:
    """The largest difference of every output over photos.

    Attributes:
        largest: output -> absolute difference: degrees, probabilities, and for cells their number.
        num_photos: compared.
        num_tied: of them photos with hypotheses as probable as each other to within the tolerance,
            which either side puts into an order of its own: their place is not compared.
    """

    largest: dict[str, float] = field(default_factory=dict)
    num_photos: int = 0
    num_tied: int = 0

    @property
    def worst(self) -> float:
        """The largest of all."""
        return max(self.largest.values(), default=0.0)

    def add(self, want: Prediction, got: Mapping[str, NDArray[Any]]) -> None:
        """Compares the answers for one photo.

        Args:
            want: the predictor's.
            got: the outputs, without their batch axis.
        """
        self.num_photos += 1
        ids = [h.cell_id for h in want.hypotheses]
        num = len(ids)
        probability = np.array([h.probability for h in want.hypotheses])
        self._note("hypothesis_probability", probability, got["hypothesis_probability"][:num])
        self._note("hypothesis_probability", 0.0, got["hypothesis_probability"][num:])
        self._note(
            "province_probability",
            np.array(list(want.province_probabilities.values())),
            got["province_probability"],
        )
        for name in ("confidence", "answer_score", "gate"):
            if ids == got["hypothesis_cell_id"][:num].tolist():
                self._note(name, getattr(want, name), got[name])
        if ids != got["hypothesis_cell_id"][:num].tolist():
            # Their probabilities were compared, in order: the cells differ by less than tolerance.
            self.num_tied += 1
            return
        places = np.array([(h.lat, h.lon) for h in want.hypotheses])
        self._note("hypothesis_latlon_deg", places, got["hypothesis_latlon_deg"][:num])
        self._note("latlon_deg", np.array((want.lat, want.lon)), got["latlon_deg"])
        if want.region is not None:
            inside = set(np.flatnonzero(got["cell_in_region"]).tolist())
            self._note("cell_in_region", len(inside ^ set(want.region.cell_ids)), 0)
            area = max(want.region.area_km2, 1.0)
            self._note("region_area_km2 (relative)", 1.0, float(got["region_area_km2"]) / area)

    def _note(self, name: str, want: Any, got: Any) -> None:
        gap = np.abs(np.asarray(want, float) - np.asarray(got, float))
        # NaN is no agreement.
        largest = float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))
        self.largest[name] = max(self.largest.get(name, 0.0), largest)


def random_photos(num: int, size: int, seed: int) -> list[Pixels]:
    """Photos of patches of colour with noise on them, of several sizes; two of each in a row.

    Args:
        num: how many.
        size: side of the model's square.
        seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    photos = []
    for k in range(num):
        rounds, chosen = divmod(k // 2, len(_SIZES))
        rows, columns = _SIZES[chosen]
        # Every other time a row less, whose middle lies between two pixels.
        shape = (size * rows - rounds % 2, size * columns)
        coarse = rng.integers(0, 256, (rng.integers(2, 9), rng.integers(2, 9), 3))
        picked = [np.arange(n) * coarse.shape[axis] // n for axis, n in enumerate(shape)]
        noise = rng.normal(0, rng.uniform(0, 40), (*shape, 3))
        photos.append(np.clip(coarse[np.ix_(*picked)] + noise, 0, 255).astype(np.uint8))
    return photos


def compare(session: Session, predictor: GeopakPredictor, photos: Sequence[Pixels]) -> Differences:
    """Compares an ONNX file with the predictor, photo by photo alone and those of a size at once.

    Args:
        session: of the file.
        predictor: of the same model, rule and coverage, in float32 on the CPU.
        photos: pixels of any size.
    """
    found = Differences()
    answers = [_prediction(a) for a in predictor.predict(list(photos))]
    sizes: dict[tuple[int, ...], list[int]] = {}
    for k, photo in enumerate(photos):
        sizes.setdefault(photo.shape, []).append(k)
    for alike in sizes.values():
        for batch in [alike] if len(alike) == 1 else [alike, alike[:1]]:
            got = session(np.stack([photos[k] for k in batch]))
            for row, k in enumerate(batch):
                found.add(answers[k], {name: values[row] for name, values in got.items()})
    return found


def compare_answers(want: Sequence[Answer], got: Sequence[Answer]) -> Differences:
    """Compares the answers of two predictors for the same photos."""
    found, theirs = Differences(), arrays_of(got)
    for k, answer in enumerate(want):
        found.add(_prediction(answer), {name: values[k] for name, values in theirs.items()})
    return found


def arrays_of(answers: Sequence[Answer]) -> Arrays:
    """Answers in the form of an ONNX file's outputs; hypotheses that are none have cell -1."""
    found = [_prediction(answer) for answer in answers]
    most = max((len(a.hypotheses) for a in found), default=0)
    cells = [a.region.cell_ids if a.region else () for a in found]
    inside = np.zeros(
        (len(found), 1 + max((max(ids, default=0) for ids in cells), default=0)), bool
    )
    for row, ids in zip(inside, cells, strict=True):
        row[list(ids)] = True
    empty = (-1, 0.0, 0.0, 0.0)
    rows = [
        [(h.cell_id, h.probability, h.lat, h.lon) for h in a.hypotheses]
        + [empty] * (most - len(a.hypotheses))
        for a in found
    ]
    hypotheses = np.array(rows, float).reshape(len(found), most, 4)
    return {
        "latlon_deg": np.array([(a.lat, a.lon) for a in found]),
        **{k: np.array([a[k] for a in found]) for k in ("confidence", "answer_score", "gate")},
        "province_probability": np.array([list(a.province_probabilities.values()) for a in found]),
        "hypothesis_cell_id": hypotheses[..., 0].astype(np.int64),
        "hypothesis_probability": hypotheses[..., 1],
        "hypothesis_latlon_deg": hypotheses[..., 2:],
        "cell_in_region": inside,
        "region_area_km2": np.array([a.region.area_km2 if a.region else 0.0 for a in found]),
    }


def _prediction(answer: Answer) -> Prediction:
    if not isinstance(answer, Prediction):
        raise ExportError(f"A photo to compare with cannot be read: {answer.error}")
    return answer


def cost(
    session: Session,
    predictor: GeopakPredictor,
    photos: Sequence[Any],
    truth_deg: NDArray[np.float64] | None,
) -> dict[str, float]:
    """What an export in smaller numbers changes.

    Args:
        session: of the export.
        predictor: of the model it was made of, in float32.
        photos: of any kind.
        truth_deg: (N, 2) where they were taken; ``None``: not known.

    Returns:
        ``num_photos``; shares that agree in ``same_province`` and ``same_cell`` (the most probable
        one); ``moved_median_km`` and ``moved_p95_km``, how far answers lie from those of float32;
        ``confidence_change``, the mean; with a truth ``median_km_before``, ``median_km_after``,
        ``within_25km_before``, ``within_25km_after``.
    """
    want = [_prediction(a) for a in predictor.predict(list(photos))]
    model = predictor.trained.model
    got = session.squares(photos, model.image_size, model.framing)
    names = predictor.trained.region.names
    before = np.array([(a.lat, a.lon) for a in want])
    after = got["latlon_deg"].astype(float)
    moved = haversine_km_array(before, after)
    province = [names.index(a.province) for a in want]
    cell = [a.hypotheses[0].cell_id for a in want]
    confidence = np.array([a.confidence for a in want])
    found = {
        "num_photos": len(want),
        "same_province": float((got["province_probability"].argmax(1) == province).mean()),
        "same_cell": float((got["hypothesis_cell_id"][:, 0] == cell).mean()),
        "moved_median_km": float(np.median(moved)),
        "moved_p95_km": float(np.quantile(moved, 0.95)),
        "confidence_change": float(np.abs(got["confidence"] - confidence).mean()),
    }
    if truth_deg is not None:
        for name, places in (("before", before), ("after", after)):
            error_km = haversine_km_array(places, truth_deg)
            found[f"median_km_{name}"] = float(np.median(error_km))
            found[f"within_25km_{name}"] = float((error_km <= 25).mean())
    return found
