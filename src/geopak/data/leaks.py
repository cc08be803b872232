"""How much of what a split asks in val and test can be seen in train.

Measured on photos with a split, whoever made it: photos with a train photo beside them, of the
author and day, or of the album, of a train photo, or that look like one. What the table does not
tell is reported as unknown, with the reason, and never as nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geopak.data.duplicates import HASH_BITS, HASH_BYTES, find_look_alikes, stack_hashes
from geopak.data.ties import Ties, distance_to_nearest_km, reached
from geopak.errors import ConfigError, TableError

DISTANCES_KM = (0.01, 0.1, 0.25, 1.0)
QUANTILES = (0.01, 0.1, 0.5)
_HEADLINE_KM = 0.25
_MAX_BITS = 32


@dataclass(frozen=True)
class LeakCounts:
    """Held-out photos that train gives away.

    Attributes:
        num_photos: held-out photos.
        within_km: distance in km -> photos with a train photo at most so far away.
        same_author_day: photos of an author and day that train has too; ``None``: unknown.
        same_album: photos of an album that train has too; ``None``: unknown.
        near_duplicate: photos that look like a train photo; ``None``: unknown.
        quantiles_km: share of the photos -> distance that their nearest train photos lie within;
            empty without photos or train photos.
    """

    num_photos: int
    within_km: dict[float, int]
    same_author_day: int | None
    same_album: int | None
    near_duplicate: int | None
    quantiles_km: dict[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        content = dataclasses.asdict(self)
        for key in ("within_km", "quantiles_km"):
            content[key] = {f"{k:g}": value for k, value in content[key].items()}
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LeakCounts:
        """The inverse of :meth:`to_dict`."""
        values = dict(content)
        for key in ("within_km", "quantiles_km"):
            values[key] = {float(k): value for k, value in values[key].items()}
        return cls(**values)


@dataclass(frozen=True, eq=False)
class HeldOutLeaks(LeakCounts):
    """What train gives away of one held-out split.

    Attributes:
        unknown: what cannot be told -> why, in words.
        partly: what can be told of some photos only -> in words.
        provinces: the same per province, where the table has ``province`` or ``province_id``.
        rows: (M,) positions of the photos in the table.
        nearest_train_km: (M,) to the nearest train photo; infinite without any. Neither of the two
            is part of :meth:`to_dict`; both are empty in a report read back.
    """

    unknown: dict[str, str] = field(default_factory=dict)
    partly: dict[str, str] = field(default_factory=dict)
    provinces: dict[str, LeakCounts] = field(default_factory=dict)
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    nearest_train_km: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def within(self, distance_km: float) -> int:
        """Photos with a train photo at most so far away.

        Raises:
            ConfigError: of a report read back, at a distance that it was not made for.
        """
        if distance_km in self.within_km:
            return self.within_km[distance_km]
        if len(self.rows) < self.num_photos:
            known = ", ".join(f"{km:g}" for km in self.within_km)
            raise ConfigError(
                f"The leak report does not tell how many photos have a train photo within "
                f"{distance_km:g} km, only within {known}. Make it anew with distances_km."
            )
        return int(reached(self.nearest_train_km, distance_km).sum())

    def median_km_by_province(self, photos: pd.DataFrame) -> dict[int, float]:
        """Median distance to the nearest train photo by ``province_id``.

        Args:
            photos: the table that the report was made of.
        """
        province = photos["province_id"].to_numpy(np.int64)[self.rows]
        medians = pd.Series(self.nearest_train_km).groupby(province).median()
        return dict(zip(medians.index.to_list(), medians.to_list(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        names = [f.name for f in dataclasses.fields(LeakCounts)]
        counts = LeakCounts(**{name: getattr(self, name) for name in names})
        return {
            **counts.to_dict(),
            "unknown": dict(self.unknown),
            "partly": dict(self.partly),
            "provinces": {name: part.to_dict() for name, part in self.provinces.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> HeldOutLeaks:
        """The inverse of :meth:`to_dict`, but for what is of single photos."""
        values = dict(content)
        unknown, partly, provinces = (values.pop(k) for k in ("unknown", "partly", "provinces"))
        return cls(
            **vars(LeakCounts.from_dict(values)),
            unknown=dict(unknown),
            partly=dict(partly),
            provinces={name: LeakCounts.from_dict(part) for name, part in provinces.items()},
        )


@dataclass(frozen=True)
class LeakReport:
    """What train gives away of the held-out splits.

    Attributes:
        train: names of the splits that count as seen.
        num_train: photos in them.
        near_duplicate_bits: photos look alike when at most so many bits of their hashes differ.
        held_out: name of a split -> what train gives away of it.
    """

    train: tuple[str, ...]
    num_train: int
    near_duplicate_bits: int
    held_out: dict[str, HeldOutLeaks]

    def headline(self, distance_km: float | None = None) -> str:
        """One line about the first held-out split, to stand beside every figure measured on it.

        Args:
            distance_km: the distance to name; ``None``: 250 m, or the largest measured.
        """
        name, leaks = next(iter(self.held_out.items()))
        if not leaks.num_photos:
            return f"leaks: there is no {name} photo"
        if distance_km is None:
            known = leaks.within_km
            distance_km = _HEADLINE_KM if _HEADLINE_KM in known else max(known)
        # The names of the splits that were seen, where 'a train photo' would not be all of it.
        seen = " or ".join(self.train)
        text = (
            f"leaks: {leaks.within(distance_km):,} of {leaks.num_photos:,} {name} photos have a "
            f"{seen} photo within {_length(distance_km)}"
        )
        return ", ".join([text, *_tie_texts(leaks)])

    def lines(self) -> list[str]:
        """All that is known, and what is not, in lines of text."""
        lines = []
        seen = " or ".join(self.train)
        for name, leaks in self.held_out.items():
            if not leaks.num_photos:
                lines.append(f"{name}: no photo")
                continue
            lines.append(
                f"{name}: {leaks.num_photos:,} photos against {self.num_train:,} of {seen}"
            )
            counts = ", ".join(
                f"{_length(km)}: {count:,} ({count / leaks.num_photos:.1%})"
                for km, count in leaks.within_km.items()
            )
            lines.append(f"  with a {seen} photo within {counts}")
            lines.append("  " + ", ".join(_tie_texts(leaks)))
            if leaks.quantiles_km:
                quantiles = ", ".join(
                    f"{'median' if share == 0.5 else f'{share:.0%} of them within'} {km:.3g} km"
                    for share, km in leaks.quantiles_km.items()
                )
                lines.append(f"  nearest {seen} photo: {quantiles}")
            lines += [f"  {text}" for text in (*leaks.unknown.values(), *leaks.partly.values())]
            lines += [
                f"  {province}: of {part.num_photos:,} photos "
                + ", ".join(f"{n:,} within {_length(km)}" for km, n in part.within_km.items())
                + ", "
                + ", ".join(_tie_texts(part))
                for province, part in leaks.provinces.items()
                if _gives_away(part)
            ]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return {
            "train": list(self.train),
            "num_train": self.num_train,
            "near_duplicate_bits": self.near_duplicate_bits,
            "held_out": {name: leaks.to_dict() for name, leaks in self.held_out.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LeakReport:
        """The inverse of :meth:`to_dict`, but for what is of single photos."""
        held_out = {k: HeldOutLeaks.from_dict(v) for k, v in content["held_out"].items()}
        return cls(
            tuple(content["train"]), content["num_train"], content["near_duplicate_bits"], held_out
        )


def leak_report(
    photos: pd.DataFrame,
    train: str | Sequence[str] = "train",
    held_out: str | Sequence[str] = ("test", "val"),
    distances_km: Sequence[float] = DISTANCES_KM,
    near_duplicate_bits: int = 16,
) -> LeakReport:
    """Measures what train gives away of the held-out splits.

    Args:
        photos: with ``latitude, longitude, split`` and, where present, ``author, captured_at,
            album``, ``phash`` (32 bytes, or 64 hexadecimal digits, or missing) and ``province`` or
            ``province_id``.
        train: the split that counts as seen, or several: ``("train", "val")`` where the model was
            chosen on val.
        held_out: splits to measure; the first is the one of the headline.
        distances_km: inclusive.
        near_duplicate_bits: photos look alike when at most so many of 256 bits differ.

    Raises:
        TableError: a column is missing, a coordinate or hash is none, no photo is in train or in
            any held-out split.
        ConfigError: options that make no sense.
    """
    seen = (train,) if isinstance(train, str) else tuple(train)
    asked = (held_out,) if isinstance(held_out, str) else tuple(held_out)
    distances = sorted({float(km) for km in distances_km})
    _check_options(seen, asked, distances, near_duplicate_bits)
    latlon_deg = _coordinates(photos)
    split = photos["split"].astype("string").fillna("").to_numpy(object)
    in_train = np.isin(split, seen)
    in_split = {name: split == name for name in asked}
    _check_splits(split, in_train, in_split, seen)

    # Only what is compared: others, such as buffer, are no one's business here.
    used = np.flatnonzero(in_train | np.isin(split, asked))
    part = photos.iloc[used].assign(latitude=latlon_deg[used, 0], longitude=latlon_deg[used, 1])
    links = Ties.of(part)
    in_train = in_train[used]
    asked_rows = np.flatnonzero(~in_train)
    nearest = np.full(len(used), np.inf)
    nearest[asked_rows] = distance_to_nearest_km(links.vectors, asked_rows, in_train)
    ties = _Seen.of(part, links, in_train, near_duplicate_bits)
    reports = {}
    for name, rows in in_split.items():
        here = np.flatnonzero(rows[used])
        unknown, partly = ties.gaps(name, here)
        reports[name] = HeldOutLeaks(
            **vars(_counts(here, nearest, ties, unknown, distances)),
            unknown=unknown,
            partly=partly,
            provinces={
                label: _counts(here[own], nearest, ties, unknown, distances)
                for label, own in _by_province(part.iloc[here])
            },
            rows=used[here],
            nearest_train_km=nearest[here],
        )
    return LeakReport(seen, int(in_train.sum()), near_duplicate_bits, reports)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Which photos are tied to a train photo, and of which that can be told.

    Attributes:
        tied: kind of tie -> (N,) bool.
        known: kind of tie -> (N,) bool.
        reasons: kind of tie -> why it is not known of some, or all.
        in_train: (N,) bool.
    """

    tied: dict[str, NDArray[np.bool_]]
    known: dict[str, NDArray[np.bool_]]
    reasons: dict[str, str]
    in_train: NDArray[np.bool_]

    @classmethod
    def of(
        cls, photos: pd.DataFrame, links: Ties, in_train: NDArray[np.bool_], max_bits: int
    ) -> _Seen:
        tied, known, reasons = {}, {}, dict(links.gaps)
        for kind in ("author and day", "album"):
            code = links.codes.get(kind, np.full(len(photos), -1))
            seen = np.zeros(code.max(initial=-1) + 2, bool)
            seen[code[in_train]] = True
            seen[-1] = False  # where -1, unknown, has led
            tied[kind], known[kind] = seen[code], code >= 0
        kind = "near-duplicates"
        tied[kind] = np.zeros(len(photos), bool)
        known[kind] = np.zeros(len(photos), bool)
        if "phash" not in photos.columns:
            reasons[kind] = f"{kind} unknown: no column phash"
            return cls(tied, known, reasons, in_train)
        rows, hashes = _hashes(photos["phash"].set_axis(_labels(photos)))
        known[kind][rows] = True
        looks = find_look_alikes(stack_hashes(hashes), max_bits)
        tied[kind][rows] = looks.near_any(in_train[rows])
        if not looks.exact:
            reasons[kind] = (
                f"{kind}: at least so many; {looks.num_crowded:,} photos resemble so many others "
                "that not all pairs of theirs were compared"
            )
        return cls(tied, known, reasons, in_train)

    def gaps(self, name: str, rows: NDArray[np.int64]) -> tuple[dict[str, str], dict[str, str]]:
        """What is unknown of the photos of a held-out split, and what is known in part."""
        unknown, partly = {}, {}
        for kind, known in self.known.items():
            lacking = int((~known[rows]).sum())
            what = {"album": "album", "near-duplicates": "perceptual hash"}.get(kind, kind)
            if not known.any():
                unknown[kind] = self.reasons.get(kind, f"{kind} unknown: no photo has a {what}")
            elif len(rows) and lacking == len(rows):
                unknown[kind] = f"{kind} unknown: no {name} photo has a known {what}"
            elif not known[self.in_train].any():
                unknown[kind] = f"{kind} unknown: no train photo has a known {what}"
            elif kind in self.reasons:
                partly[kind] = self.reasons[kind]
            elif lacking and kind != "album":
                partly[kind] = f"{kind}: {lacking:,} of {len(rows):,} have no known {what}"
        return unknown, partly


def _counts(
    rows: NDArray[np.int64],
    nearest_km: NDArray[np.float64],
    ties: _Seen,
    unknown: Mapping[str, str],
    distances_km: Sequence[float],
) -> LeakCounts:
    def count(kind: str) -> int | None:
        return None if kind in unknown else int(ties.tied[kind][rows].sum())

    away = nearest_km[rows]
    quantiles = np.quantile(away, QUANTILES, method="lower") if len(away) else np.zeros(0)
    return LeakCounts(
        num_photos=len(rows),
        within_km={km: int(reached(away, km).sum()) for km in distances_km},
        same_author_day=count("author and day"),
        same_album=count("album"),
        near_duplicate=count("near-duplicates"),
        quantiles_km=dict(zip(QUANTILES, np.round(quantiles, 6).tolist(), strict=False)),
    )


def _by_province(photos: pd.DataFrame) -> list[tuple[str, NDArray[np.int64]]]:
    """Name of a province -> positions of its photos."""
    column = next((c for c in ("province", "province_id") if c in photos.columns), None)
    if column is None:
        return []
    code, names = pd.factorize(photos[column].astype("string"), sort=True)
    return [(str(name), np.flatnonzero(code == k)) for k, name in enumerate(names)]


def _gives_away(leaks: LeakCounts) -> bool:
    near = [n for km, n in leaks.within_km.items() if km <= _HEADLINE_KM]
    return any((*near, leaks.same_author_day, leaks.same_album, leaks.near_duplicate))


def _tie_texts(leaks: LeakCounts) -> list[str]:
    """``0 of the same author and day``, or that it is unknown; likewise album and look."""
    partly = getattr(leaks, "partly", {})
    texts = []
    for kind, count, what in (
        ("author and day", leaks.same_author_day, "of the same author and day"),
        ("album", leaks.same_album, "of the same album"),
        ("near-duplicates", leaks.near_duplicate, "near-duplicates"),
    ):
        if count is None:
            texts.append(f"{kind} unknown")
        else:
            some = " (not known of all)" if kind in partly else ""
            texts.append(f"{count:,} {what}{some}")
    return texts


def _length(distance_km: float) -> str:
    return f"{distance_km:g} km" if distance_km >= 1 else f"{distance_km * 1000:g} m"


def _check_options(
    seen: tuple[str, ...], asked: tuple[str, ...], distances_km: Sequence[float], bits: int
) -> None:
    both = set(seen) & set(asked)
    if both:
        raise ConfigError(
            f"{sorted(both)[0]!r} is in train and in held_out; a split is either seen or held out."
        )
    if not seen or not asked:
        raise ConfigError("train and held_out must each name a split.")
    if not distances_km or not 0 <= distances_km[0] <= distances_km[-1] < np.inf:
        raise ConfigError("distances_km must name at least one distance, none of them negative.")
    if not 0 <= bits <= _MAX_BITS:
        raise ConfigError(
            f"near_duplicate_bits is {bits}; it must be 0 to {_MAX_BITS} of the {HASH_BITS} bits."
        )


def _coordinates(photos: pd.DataFrame) -> NDArray[np.float64]:
    for column in ("latitude", "longitude", "split"):
        if column not in photos.columns:
            raise TableError(
                f"The table has no column {column!r}, which the leak report needs. Its columns: "
                f"{', '.join(map(str, photos.columns))}."
            )
    columns = photos[["latitude", "longitude"]].apply(pd.to_numeric, errors="coerce")
    latlon_deg = columns.to_numpy(float, na_value=np.nan)
    bad = ~(np.abs(latlon_deg) <= (90, 180)).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise TableError(
            f"Row {row + 1:,}{_named(photos, row)} has no usable coordinate (latitude "
            f"{photos['latitude'].iloc[row]}, longitude {photos['longitude'].iloc[row]}), as have "
            f"{int(bad.sum()):,} rows in all. Mend them or take them out."
        )
    return latlon_deg


def _labels(photos: pd.DataFrame) -> pd.Index:
    return pd.Index(photos["id"]) if "id" in photos.columns else photos.index


def _named(photos: pd.DataFrame, row: int) -> str:
    return f", photo {photos['id'].iloc[row]!s}," if "id" in photos.columns else ""


def _check_splits(
    split: NDArray[np.object_],
    in_train: NDArray[np.bool_],
    in_split: Mapping[str, NDArray[np.bool_]],
    seen: tuple[str, ...],
) -> None:
    there = ", ".join(sorted({str(name) or "(none)" for name in pd.unique(split)}))
    if not in_train.any():
        raise TableError(
            f"No photo is in split {' or '.join(seen)}; the table has: {there}. Name the split "
            "that was trained on: train=NAME."
        )
    if not any(rows.any() for rows in in_split.values()):
        raise TableError(
            f"No photo is in split {' or '.join(in_split)}; the table has: {there}. Name the split "
            "that was held out: held_out=[NAME]."
        )


def _hashes(phash: pd.Series) -> tuple[NDArray[np.int64], list[bytes]]:
    """Positions of the photos that have a perceptual hash, and the hashes."""
    rows, hashes = [], []
    for row, value in enumerate(phash.where(phash.notna(), b"").tolist()):
        # A photo that did not decode has an empty one.
        if not value:
            continue
        if isinstance(value, str):
            try:
                value = bytes.fromhex(value)
            except ValueError:
                value = b""
        if not isinstance(value, bytes) or len(value) != HASH_BYTES:
            raise TableError(
                f"Photo {phash.index[row]!s}: phash is no perceptual hash of {HASH_BYTES} bytes, "
                "or twice as many hexadecimal digits. Take the column out, or make it anew with "
                "hash_photos=true."
            )
        rows.append(row)
        hashes.append(value)
    return np.array(rows, np.int64), hashes
