"""An array on disk, whole or missing chunk by chunk, whoever makes it and however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from geopak.data.feature_store import FeatureStore, hash_folder
from geopak.errors import FeatureCacheError

ROWS, DIM, CHUNK = 23, 5, 4


def make(root: Path, dtype: str = "float32", **about: Any) -> FeatureStore:
    return FeatureStore(root, "key", ROWS, DIM, dtype, CHUNK, about)


def values(rows: slice) -> Tensor:
    return torch.arange(rows.start, rows.stop).unsqueeze(1) + torch.arange(DIM) / 8


def fill(store: FeatureStore, most: int = 1000) -> int:
    """Writes up to so many missing chunks; returns how many."""
    count = 0
    for claim in store.claim_missing():
        with claim:
            if count == most:
                break
            store.write(claim.chunk, values(store.rows_of(claim.chunk)))
            count += 1
    return count


def test_what_is_written_is_read_and_chunks_cover_every_row_once(tmp_path: Path) -> None:
    store = make(tmp_path)
    assert not store.complete
    rows = [r for c in range(store.num_chunks) for r in range(ROWS)[store.rows_of(c)]]
    assert rows == list(range(ROWS))
    assert fill(store) == store.num_chunks == 6
    assert store.complete
    torch.testing.assert_close(store.open(), values(slice(0, ROWS)), rtol=0, atol=0)


def test_a_second_run_makes_only_what_the_first_left(tmp_path: Path) -> None:
    assert fill(make(tmp_path), most=2) == 2
    again = make(tmp_path)
    assert again.done().sum() == 2
    assert fill(again) == 4
    assert fill(make(tmp_path)) == 0
    torch.testing.assert_close(make(tmp_path).open(), values(slice(0, ROWS)), rtol=0, atol=0)


def test_a_chunk_claimed_by_one_is_not_given_to_another(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    claims = list(first.claim_missing())
    assert [c.chunk for c in claims] == list(range(6))
    assert list(second.claim_missing()) == []
    claims[3].release()
    taken = list(second.claim_missing())
    assert [c.chunk for c in taken] == [3]


@pytest.mark.parametrize("damage", ["data.bin", "done.bin", "about.json"])
def test_a_damaged_folder_is_made_anew(tmp_path: Path, damage: str) -> None:
    fill(make(tmp_path))
    path = tmp_path / "key" / damage
    path.write_bytes(path.read_bytes()[:-2])
    store = make(tmp_path)
    assert not store.done().any()
    fill(store)
    torch.testing.assert_close(store.open(), values(slice(0, ROWS)), rtol=0, atol=0)


def test_another_shape_under_the_same_key_is_made_anew(tmp_path: Path) -> None:
    fill(make(tmp_path))
    assert not make(tmp_path, photos="others").done().any()


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_is_as_exact_as_its_bits(tmp_path: Path, dtype: str, error: float) -> None:
    store = make(tmp_path, dtype)
    generator = torch.Generator().manual_seed(0)
    for claim in store.claim_missing():
        with claim:
            rows = store.rows_of(claim.chunk)
            exact = torch.randn(rows.stop - rows.start, DIM, generator=generator)
            store.write(claim.chunk, exact)
            stored = store.open()[rows].float()
            assert ((stored - exact).abs() <= error * exact.abs()).all()
    assert (tmp_path / "key" / "data.bin").stat().st_size == ROWS * DIM * 2


def test_values_that_half_precision_cannot_hold_are_refused_and_stay_missing(
    tmp_path: Path,
) -> None:
    store = make(tmp_path, "float16")
    claim = next(store.claim_missing())
    with claim, pytest.raises(FeatureCacheError, match=r"feature_dtype=float32"):
        store.write(claim.chunk, 1e6 + values(store.rows_of(claim.chunk)))
    with claim, pytest.raises(FeatureCacheError, match=r"feature_dtype=float32"):
        store.write(claim.chunk, 1e-8 * values(store.rows_of(claim.chunk)).add(1))
    assert not store.done().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    store = make(tmp_path)
    claim = next(store.claim_missing())
    content = values(store.rows_of(claim.chunk))
    content[1, 2] = bad
    with claim, pytest.raises(FeatureCacheError, match="not finite"):
        store.write(claim.chunk, content)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_ends_before_any_work_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(FeatureCacheError, match=r"needs 4 MB, and .* kB free"):
        FeatureStore(small_disk, "key", 1000, 1000, "float32", 10)
    assert {p.name for p in small_disk.iterdir()} <= {"key.lock"}


def test_a_disk_that_fills_up_meanwhile_cannot_break_the_array(small_disk: Path) -> None:
    store = FeatureStore(small_disk, "key", 400, 100, "float32", 100)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "other").write_bytes(bytes(1 << 20))
    for claim in store.claim_missing():
        with claim:
            store.write(claim.chunk, torch.ones(100, 100))
    assert store.complete
    assert (store.open() == 1).all()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureCacheError, match=r"file.*feature_folder="):
        make(tmp_path / "file" / "features")


def _fill_slowly(root: Path, done: Any) -> None:
    store = make(root)
    while not store.complete:
        for claim in store.claim_missing():
            with claim:
                time.sleep(0.02)
                store.write(claim.chunk, values(store.rows_of(claim.chunk)))
                done.put((os.getpid(), claim.chunk))
        store.wait()
    store.close_making()


def test_processes_divide_the_chunks_and_none_is_made_twice(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    done: Any = context.Queue()
    workers = [context.Process(target=_fill_slowly, args=(tmp_path, done)) for _ in range(3)]
    for worker in workers:
        worker.start()
    chunks = sorted(done.get(timeout=60)[1] for _ in range(6))
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert chunks == list(range(6))
    assert done.empty()
    torch.testing.assert_close(make(tmp_path).open(), values(slice(0, ROWS)), rtol=0, atol=0)
    assert not (tmp_path / "key.locks").exists()


def test_the_chunk_of_a_killed_process_is_made_by_another(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        from geopak.data.feature_store import FeatureStore, hash_folder
        store = FeatureStore(Path(sys.argv[1]), "key", {ROWS}, {DIM}, "float32", {CHUNK}, {{}})
        claims = store.claim_missing()
        claim = next(claims)
        print("claimed", claim.chunk, flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed 0\n"
        store = make(tmp_path)
        assert fill(store) == 5
        assert not store.complete
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert fill(store) == 1
    assert store.complete


def test_a_complete_array_is_opened_where_nothing_can_be_written(small_disk: Path) -> None:
    fill(make(small_disk))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    torch.testing.assert_close(make(small_disk).open(), values(slice(0, ROWS)), rtol=0, atol=0)
    with pytest.raises(FeatureCacheError, match="Read-only"):
        FeatureStore(small_disk, "other", ROWS, DIM, "float32", CHUNK)
    with pytest.raises(FeatureCacheError, match=r"cannot be used.*feature_folder="):
        hash_folder(small_disk)


def test_a_disk_without_room_for_another_file_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "nr_inodes=7", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        store = make(folder)
        with pytest.raises(FeatureCacheError, match=r"is full"):
            list(store.claim_missing())
    finally:
        subprocess.run(["umount", str(folder)], check=True)
