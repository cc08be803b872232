"""The card of a published set: what is in it, whose it is, and what it is not good for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geopak.sources import licenses

# Names that the hub has for licences: https://huggingface.co/docs/hub/repositories-licenses
_ON_THE_HUB = {"cc0": "cc0-1.0", "pdm": "pdm"}
_UNVERSIONED = frozenset(
    {"cc-by", "cc-by-sa", "cc-by-nc", "cc-by-nd", "cc-by-nc-sa", "cc-by-nc-nd"}
)
_ON_THE_HUB_VERSIONS = frozenset({"2.0", "2.5", "3.0", "4.0"})
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))


@dataclass(frozen=True)
class Contents:
    """What a set holds, counted.

    Attributes:
        title: of the set.
        format: ``imagefolder`` or ``parquet``.
        splits: photos per split, in order.
        by_license, by_province, by_source: photos of each; ``unknown`` where it is not known.
        num_authors: different ones.
        num_bytes: of all photos.
        with_accuracy: photos that say how exact their coordinate is, and how many of these err by
            more than a kilometre.
        left_out: rows of the table that are not in the set, by reason.
        restricted: photos that may not be passed on were let in.
        columns: beside the picture.
        name: under which the set can be loaded.
    """

    title: str
    format: str
    splits: dict[str, int]
    by_license: dict[str, int]
    by_province: dict[str, dict[str, int]]
    by_source: dict[str, int]
    num_authors: int
    num_bytes: int
    with_accuracy: tuple[int, int]
    left_out: dict[str, int]
    restricted: bool
    columns: tuple[str, ...]
    name: str

    @classmethod
    def of(
        cls,
        title: str,
        format: str,
        photos: Sequence[tuple[str, Mapping[str, Any], int]],
        left_out: Mapping[str, int],
        restricted: bool,
        columns: Iterable[str],
        name: str,
    ) -> Contents:
        """Counts photos: split, row and bytes of each."""
        rows = [row for _, row, _ in photos]
        by_province: dict[str, Counter[str]] = {}
        for split, row, _ in photos:
            by_province.setdefault(row.get("province") or "unknown", Counter())[split] += 1
        errors = [row["accuracy_km"] for row in rows if row.get("accuracy_km") is not None]
        return cls(
            title=title,
            format=format,
            splits=dict(Counter(split for split, _, _ in photos)),
            by_license=_counted(row.get("license") for row in rows),
            by_province={key: dict(by_province[key]) for key in sorted(by_province)},
            by_source=_counted(row.get("source") for row in rows),
            num_authors=len({row.get("author") for row in rows} - {None}),
            num_bytes=sum(size for _, _, size in photos),
            with_accuracy=(len(errors), sum(error > 1 for error in errors)),
            left_out=dict(sorted(left_out.items())),
            restricted=restricted,
            columns=tuple(columns),
            name=name,
        )

    @property
    def num_photos(self) -> int:
        return sum(self.splits.values())


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value or "unknown" for value in values).most_common())


def card(contents: Contents) -> str:
    """The README of a set, with the header that the hub and ``datasets`` read."""
    import yaml

    header = yaml.safe_dump(_header(contents), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n{_body(contents)}"


def _header(contents: Contents) -> dict[str, Any]:
    size = next((name for most, name in _SIZES if contents.num_photos < most), "n>1M")
    pattern = "data/{}/**" if contents.format == "imagefolder" else "data/{}-*"
    return {
        "pretty_name": contents.title,
        **_license_header(list(contents.by_license)),
        "task_categories": ["image-classification"],
        "tags": ["geolocation", "geopak"],
        "size_categories": [size],
        # Without this, datasets would guess splits from the names, and 'val' would be another.
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": pattern.format(split)} for split in contents.splits
                ],
            }
        ],
    }


def _license_header(keys: Sequence[str]) -> dict[str, Any]:
    names = {_hub_name(key) for key in keys}
    if len(names) == 1 and None not in names:
        return {"license": names.pop()}
    return {"license": "other", "license_name": "per-photo", "license_link": "README.md"}


def _hub_name(key: str) -> str | None:
    base = licenses.base_key(key)
    if base in _ON_THE_HUB:
        return _ON_THE_HUB[base]
    if base not in _UNVERSIONED:
        return None
    version = key.removeprefix(base).removeprefix("-")
    return key if version in _ON_THE_HUB_VERSIONS else base if not version else None


def _body(contents: Contents) -> str:
    parts = [
        f"# {contents.title}",
        f"{contents.num_photos:,} geotagged photos ({contents.num_bytes / 1e6:,.1f} MB), for "
        "telling where in a country a photo was taken.",
        "```python\nfrom datasets import load_dataset\n\n"
        f'photos = load_dataset("{contents.name}")  # or the folder that this file is in\n```',
        "Each row has the photo (`image`) and "
        + ", ".join(f"`{c}`" for c in contents.columns)
        + ". "
        "Degrees are WGS 84.",
        "## Splits and provinces",
        _table(
            ["province", *contents.splits, "all"],
            [
                [name, *(numbers.get(s, 0) for s in contents.splits), sum(numbers.values())]
                for name, numbers in contents.by_province.items()
            ]
            + [["all", *contents.splits.values(), contents.num_photos]],
        ),
        "## Licences and attribution",
        _table(
            ["licence", "photos"],
            [[_license_cell(key), number] for key, number in contents.by_license.items()],
        ),
        "Every photo keeps its own licence: the columns `license`, `license_url`, `author`, "
        "`title` and `url` (where they are known) are its attribution, and who shows or passes on "
        f"a photo must give it. {contents.num_authors:,} authors are named.",
    ]
    if contents.restricted:
        parts.append(
            "**Photos whose licence does not permit it, or is not known, were let in by hand "
            "(`restricted=true`).** Whoever passes this set on must have the right to."
        )
    parts += [
        "## Where the photos come from",
        _table(["source", "photos"], contents.by_source.items()),
    ]
    known, coarse = contents.with_accuracy
    limits = [
        "Photos are where people take photos: towns, roads and sights are over-represented, and "
        "provinces are not represented by their area or people.",
        f"{known:,} photos say how exact their coordinate is; {coarse:,} of these may be more than "
        "a kilometre off. Of the others it is not known.",
        "Coordinates are those of the camera, the photographer or a place name, not of what is "
        "shown.",
        "People, homes and number plates may be seen. Who is shown may ask to be taken out.",
    ]
    parts += ["## Limits", "\n".join(f"- {text}" for text in limits)]
    if contents.left_out:
        told = ", ".join(f"{reason} ({number:,})" for reason, number in contents.left_out.items())
        parts.append(f"Left out of the table that this set was made from: {told}.")
    parts.append("Made with geopak.")
    return "\n\n".join(parts) + "\n"


def _license_cell(key: str) -> str:
    url = licenses.url_of(None if key == "unknown" else key)
    name = licenses.name_of(None if key == "unknown" else key)
    return f"[{name}]({url}) (`{key}`)" if url else f"{name} (`{key}`)"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(_cell, header)) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
