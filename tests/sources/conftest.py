"""What tests of several sources begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from geopak.sources.ledger import Ledger


@pytest.fixture
def offline_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the hub of Hugging Face nor a cache of this machine is touched."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def parquet_set(tmp_path) -> Path:
    """Two splits, of two files and one, in groups of four rows."""
    from .hub_sets import rows_of, write_parquet

    folder = tmp_path / "set"
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", rows_of(10), 4)
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows_of(7, 10), 4)
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows_of(3, 17), 4)
    return folder


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite", durable=False) as opened:
        yield opened
