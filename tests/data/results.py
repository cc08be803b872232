"""What tests of partitions compare: rows made one by one, and the rows that a store holds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.feather as feather

from tests.data.examiners import measure


def naive(items: list[str]) -> pd.DataFrame:
    rows = [measure([item]) for item in items]
    return pd.concat(rows, ignore_index=True)


def same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Same values, and a missing value wherever one is wanted."""
    assert list(found.columns) == list(wanted.columns)
    assert isinstance(found.index, pd.RangeIndex)
    for column in wanted:
        theirs = [None if pd.isna(v) else v for v in wanted[column]]
        assert [None if pd.isna(v) else v for v in found[column]] == theirs, column


def stored(store: Path) -> list[str]:
    """Items that a store has rows for."""
    tables = [feather.read_table(path) for path in store.glob("*/*.arrow")]
    return [item.decode() for table in tables for item in table["_item"].to_pylist()]
