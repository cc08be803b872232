"""What a predictor answers: of every photo a place with how sure it is, or why there is none.

Each answer is a dataclass and a mapping at once: ``answer.lat`` for whoever wants types,
``answer["lat"]`` and ``answer.to_dict()`` for whoever wants a dict. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, eq=False)
class _Record(Mapping[str, Any]):
    """A dataclass whose fields are also the keys of a mapping, in their order."""

    def __getitem__(self, key: str) -> Any:
        if key in self.__dataclass_fields__:
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and texts all the way down, as JSON has them."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, _Record):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


@dataclass(frozen=True, eq=False)
class Hypothesis(_Record):
    """One candidate cell with its refined coordinate.

    Attributes:
        lat, lon: degrees.
        probability: joint probability, renormalised over the hypotheses.
        province: name.
        cell_id: global id.
        radius_km: of the cell.
    """

    lat: float
    lon: float
    probability: float
    province: str
    cell_id: int
    radius_km: float


@dataclass(frozen=True, eq=False)
class PlaceRegion(_Record):
    """Cells that hold the true place with a stated probability.

    Attributes:
        coverage: the promise, in (0, 1).
        area_km2: of the ground that the cells cover.
        cell_ids: global ids, most probable first.
    """

    coverage: float
    area_km2: float
    cell_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Prediction(_Record):
    """Where a photo was taken.

    Attributes:
        photo: path as it was given; ``None`` where the photo came as bytes, image or array.
        province: the most probable one.
        lat, lon: degrees, by the decoding rule.
        confidence: probability that the true place lies within ``confidence_km`` of them.
        confidence_km: kilometres.
        calibrated: whether probabilities and confidence were fitted to be true on val photos
            (``python -m geopak.calibrate``); else they are the network's own, often too sure.
        province_probabilities: by name.
        hypotheses: most probable first; their probabilities sum to 1.
        region: cells that hold the place with the asked coverage; ``None``: the checkpoint is not
            calibrated, or no region was asked for.
        gate: weight of the scene encoder in (0, 1).
        answer_score: how far the answer may be relied on, in [0, 1]: low for a photo that tells no
            place or is not from the region, see :func:`geopak.calibration.answer_score`.
        answered: false where that score lies below ``abstain_below``: do not trust the place.
        error: always ``None``; a :class:`PhotoFailure` says more.
    """

    photo: str | None
    province: str
    lat: float
    lon: float
    confidence: float
    confidence_km: float
    calibrated: bool
    province_probabilities: Mapping[str, float]
    hypotheses: tuple[Hypothesis, ...]
    region: PlaceRegion | None
    gate: float
    answer_score: float
    answered: bool
    error: None = None


@dataclass(frozen=True, eq=False)
class PhotoFailure(_Record):
    """A photo among many that could not be read.

    Attributes:
        photo: path as it was given; ``None`` where it was no path.
        error: what is wrong, with the photo's name.
        answered: always false.
    """

    photo: str | None
    error: str
    answered: bool = False


Answer = Prediction | PhotoFailure
