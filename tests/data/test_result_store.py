"""The store: nothing is examined twice, nothing outdated or damaged is used, nothing piles up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.feather as feather
import pytest

from geopak.data import partitions, result_store
from geopak.data.partitions import ExecutorSettings, map_partitions
from geopak.errors import GeopakError
from tests.data.examiners import measure
from tests.data.results import naive, same, stored

HERE = ExecutorSettings(workers=1, partition_size=7)


def test_the_second_run_examines_nothing(files: list[str], calls: Callable, tmp_path: Path) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    first = map_partitions(examine, files, tmp_path / "store", HERE)
    assert sorted(calls()) == sorted(files)
    second = map_partitions(examine, files[::-1], tmp_path / "store", HERE)
    assert calls() == []
    pd.testing.assert_frame_equal(second[::-1].reset_index(drop=True), first, check_exact=True)


def test_only_what_is_new_or_changed_is_examined(
    files: list[str], calls: Callable, tmp_path: Path
) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    map_partitions(examine, files[:100], tmp_path / "store", HERE)
    calls()
    Path(files[5]).write_bytes(b"other content")
    state = os.stat(files[6])
    os.utime(files[6], ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    Path(files[-1]).write_bytes(b"there now")
    found = map_partitions(examine, files, tmp_path / "store", HERE)
    assert sorted(calls()) == sorted([files[5], files[6], *files[100:]])
    same(found, naive(files))


def test_another_version_or_argument_is_another_result(
    files: list[str], calls: Callable, tmp_path: Path
) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    items, store = files[:20], tmp_path / "store"
    map_partitions(examine, items, store, HERE, version=1)
    calls()
    map_partitions(examine, items, store, HERE, version=2)
    assert len(calls()) == 20
    map_partitions(partial(examine, pause_s=0.0001), items, store, HERE, version=2)
    assert len(calls()) == 20
    map_partitions(examine, items, store, HERE, version=1)
    assert calls() == []


@pytest.mark.parametrize("damage", ["truncated", "empty", "one byte"])
def test_a_damaged_file_is_made_again(
    files: list[str], calls: Callable, tmp_path: Path, damage: str
) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    store = tmp_path / "store"
    wanted = map_partitions(examine, files, store, HERE)
    calls()
    path = sorted(store.glob("*/*.arrow"))[2]
    content = bytearray(path.read_bytes())
    lost = [item.decode() for item in feather.read_table(path)["_item"].to_pylist()]
    if damage == "one byte":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"truncated": len(content) - 9, "empty": 0}.get(damage)])
    found = map_partitions(examine, files, store, HERE)
    assert sorted(calls()) == sorted(lost)
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    map_partitions(examine, files, store, HERE)
    assert calls() == []


def test_rows_for_the_moment_are_not_kept(
    files: list[str], calls: Callable, tmp_path: Path
) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    run = partial(
        map_partitions, examine, files, tmp_path / "store", HERE,
        passing=lambda rows: rows["error"] == "cannot be read",
    )  # fmt: skip
    same(run(), naive(files))
    calls()
    same(run(), naive(files))
    assert calls() == [files[-1]]


def test_many_files_become_few_and_the_outdated_go(
    files: list[str], calls: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "_SMALLEST_PARTITION", 1)
    monkeypatch.setattr(result_store, "_FILE_ROWS", 50)
    monkeypatch.setattr(result_store, "_FEW_FILES", 20)
    examine = partial(measure, calls=str(tmp_path / "calls"))
    store = tmp_path / "store"
    tiny = ExecutorSettings(workers=1, partition_size=2)
    map_partitions(examine, files, store, tiny)
    assert len(list(store.glob("*/*.arrow"))) == 61
    calls()
    Path(files[0]).write_bytes(b"changed")
    Path(files[1]).unlink()
    items = files[:60]
    same(map_partitions(examine, items, store, tiny), naive(items))
    assert calls() == files[:2]
    # 119 rows still hold, in three files, what another run uses among them; two were made anew.
    assert len(list(store.glob("*/*.arrow"))) == 5
    assert sorted(stored(store)) == sorted(files)
    same(map_partitions(examine, files, store, tiny), naive(files))
    assert calls() == []


def test_leftovers_of_killed_runs_and_of_old_versions_go(files: list[str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    map_partitions(measure, files, store, HERE, version="old")
    (old,) = (path for path in store.iterdir() if path.is_dir())
    (own := store / "holidays").mkdir()
    (own / "beach.jpg").touch()
    for folder in (old, own):
        os.utime(folder, (time.time() - 40 * 24 * 3600,) * 2)
    map_partitions(measure, files, store, HERE, version="new")
    assert not old.exists()
    assert (own / "beach.jpg").exists()
    (new,) = (path for path in store.iterdir() if path.is_dir() and path != own)
    for name, age_s in ((".geopak-a.part", 7200), (".geopak-b.part", 5)):
        (new / name).write_bytes(b"half")
        os.utime(new / name, (time.time() - age_s,) * 2)
    same(map_partitions(measure, files, store, HERE, version="new"), naive(files))
    assert [path.name for path in new.glob("*.part")] == [".geopak-b.part"]


def test_two_runs_share_a_store(files: list[str], tmp_path: Path) -> None:
    """At the same time, on overlapping items, one of them merging files all the while."""
    results: dict[int, pd.DataFrame] = {}
    examine = partial(measure, pause_s=0.0005)

    def work(number: int) -> None:
        items = files if number % 2 else files[::-1]
        settings = ExecutorSettings(workers=1, partition_size=3 + number)
        results[number] = map_partitions(examine, items, tmp_path / "store", settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result_store, "_FEW_FILES", 0)
        patch.setattr(partitions, "_SMALLEST_PARTITION", 1)
        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
            time.sleep(0.05)
        for worker in workers:
            worker.join()
    for number in range(4):
        same(results[number], naive(files if number % 2 else files[::-1]))
    assert set(stored(tmp_path / "store")) == set(files)


def test_a_store_that_cannot_be_written_is_named(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file, not a folder")
    with pytest.raises(GeopakError, match=r"store, where results are kept, cannot be used"):
        map_partitions(measure, files, tmp_path / "store", HERE)
