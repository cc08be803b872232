"""Shards hold every photo once; streams of them are balanced, new, the same again, resumable."""

from __future__ import annotations

import functools
import http.server
import io
import json
import pickle
import shutil
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from geopak.data import shards as shards_module
from geopak.data.datamodule import GeopakDataModule, LoadingOptions
from geopak.data.dataset import PhotoDataset, PreparedSet
from geopak.data.partitions import ExecutorSettings
from geopak.data.shard_writing import ShardSettings, write_shards
from geopak.data.shards import (
    INDEX_NAME,
    ProvinceStream,
    Sample,
    Shard,
    ShardBatches,
    ShardBatchSampler,
    ShardIndex,
    ShardPhotos,
    ShardRowSampler,
    photos_sha256,
    shard_url,
)
from geopak.errors import ConfigError, PhotoError, PreparedSetError
from geopak.geo.region import Region
from geopak.schema.model import FRAMINGS, SQUEEZE
from geopak.types import Batch

from .test_datamodule import fit

QUOTAS = np.array([2, 2, 4])
SIZE = 32

# More loader processes than this machine has cores are meant.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def write(
    prepared: PreparedSet, region: Region, folder: Path, seed: int = 1, **settings: Any
) -> dict[str, Any]:
    folder.mkdir(parents=True)
    chosen = ShardSettings(**{"photos_per_shard": 3} | settings)
    return write_shards(prepared, region, folder, chosen, seed, ExecutorSettings(workers=1))


@pytest.fixture(scope="module")
def made(
    prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Shards of three photos at the most of the small prepared set, and their index."""
    from ..conftest import REGION_CONFIG

    region = Region.from_config(REGION_CONFIG)
    prepared = PreparedSet.read(prepared_folder / "prepared", prepared_folder, region)
    folder = tmp_path_factory.mktemp("made") / "shards"
    return folder, write(prepared, region, folder)


@pytest.fixture
def folder(made: tuple[Path, dict[str, Any]]) -> Path:
    return made[0]


@pytest.fixture
def index(folder: Path) -> ShardIndex:
    return ShardIndex.read(str(folder))


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy of the shards to break."""
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def batches(
    dataset: ShardBatches, num_batches: int, workers: int, start: int = 0, epoch: int = 0
) -> list[Batch]:
    sampler = ShardBatchSampler(num_batches)
    sampler.resume(epoch * num_batches + start)
    return list(DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers))


def rows(found: Sequence[Batch]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in found]


# --- writing --------------------------------------------------------------------------------------


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def test_every_photo_is_in_one_shard_of_its_split_and_province_with_its_own_bytes(
    made: tuple[Path, dict[str, Any]], prepared: PreparedSet, region: Region
) -> None:
    folder, content = made
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == sorted(
        [INDEX_NAME]
        + [s["name"] for part in content["splits"]["train"].values() for s in part]
        + [s["name"] for split in ("val", "test") for s in content["splits"][split]]
    )
    seen: list[int] = []
    for path in folder.rglob("*.tar"):
        part, _, number = path.stem.rpartition("-")
        entries = content["splits"]
        entries = entries["train"][part] if path.parent.name == "train" else entries[part]
        found = members(path)
        assert 1 <= len(found) <= 3
        assert entries[int(number)] == {
            "name": str(path.relative_to(folder)),
            "photos": len(found),
            "bytes": path.stat().st_size,
        }
        for name, data in found.items():
            row = int(name.removesuffix(".jpg"))
            photo = prepared.photos.iloc[row]
            assert data == (prepared.root / photo["path"]).read_bytes()
            if path.parent.name == "train":
                assert photo["split"] == "train"
                assert region.provinces[photo["province_id"]].key == part
            else:
                assert photo["split"] == part
            seen.append(row)
    assert sorted(seen) == list(range(48))


def test_train_is_mixed_and_the_rest_is_in_order(index: ShardIndex, prepared: PreparedSet) -> None:
    for split in ("val", "test"):
        found = [s.row for shard in index.held_out[split] for s in index.samples(shard)]
        assert found == prepared.rows(split).tolist()
    for part in index.train:
        found = [s.row for shard in part for s in index.samples(shard)]
        assert found != sorted(found)


def test_the_same_set_and_seed_make_the_same_bytes_and_another_seed_others(
    folder: Path, prepared: PreparedSet, region: Region, tmp_path: Path
) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    write(prepared, region, again)
    write(prepared, region, other, seed=2)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert all((again / n).read_bytes() == (folder / n).read_bytes() for n in names)
    assert any((other / n).read_bytes() != (folder / n).read_bytes() for n in names)


def test_several_processes_write_what_one_does(
    folder: Path, prepared: PreparedSet, region: Region, tmp_path: Path
) -> None:
    executor = ExecutorSettings(workers=2, items_per_worker=1)
    settings = ShardSettings(photos_per_shard=3)
    write_shards(prepared, region, tmp_path, settings, 1, executor)
    for path in folder.rglob("*.*"):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_shards_are_about_as_large_as_asked(
    prepared: PreparedSet, region: Region, tmp_path: Path
) -> None:
    sizes = {i: (prepared.root / p).stat().st_size for i, p in enumerate(prepared.photos["path"])}
    content = write(prepared, region, tmp_path / "s", photos_per_shard=1000, shard_mb=0.02)
    for province, part in enumerate(content["splits"]["train"].values()):
        own = [i for i in range(30) if i % 3 == province]
        expected = -(-sum(sizes[i] for i in own) // 20_000)
        assert len(part) == expected
        counts = [shard["photos"] for shard in part]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == len(own)


def test_photos_are_made_smaller_on_demand_and_never_larger(
    prepared: PreparedSet, region: Region, tmp_path: Path
) -> None:
    write(prepared, region, tmp_path / "s", shorter_side_px=50)
    kept = 0
    for path in (tmp_path / "s").rglob("*.tar"):
        for name, data in members(path).items():
            file = prepared.root / prepared.photos["path"].iloc[int(name.split(".")[0])]
            with Image.open(file) as before, Image.open(io.BytesIO(data)) as after:
                if min(before.size) <= 50:
                    assert data == file.read_bytes()
                    kept += 1
                    continue
                assert min(after.size) == 50
                ratio = before.size[0] / before.size[1]
                assert after.size[0] / after.size[1] == pytest.approx(ratio, rel=0.03)
    assert 0 < kept < 48


def test_a_photo_made_smaller_is_upright_without_exif(
    prepared: PreparedSet, region: Region, tmp_path: Path
) -> None:
    root = tmp_path / "photos"
    shutil.copytree(prepared.root, root)
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[:, :100] = (200, 20, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(root / "0/0.jpg", exif=exif)
    moved = PreparedSet(prepared.photos, prepared.cells, root)
    write(moved, region, tmp_path / "s", shorter_side_px=60)
    [data] = [
        content
        for path in (tmp_path / "s/train").glob("*.tar")
        for name, content in members(path).items()
        if name == "0.jpg"
    ]
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (60, 100)
        assert image.getpixel((30, 10))[0] > 150  # type: ignore[index]
        assert 0x0112 not in image.getexif()


def test_all_missing_photos_are_named_before_anything_is_written(
    prepared: PreparedSet, region: Region, tmp_path: Path
) -> None:
    gone = prepared.photos["path"].replace({"0/0.jpg": "0/gone.jpg", "1/40.jpg": "1"})
    changed = PreparedSet(prepared.photos.assign(path=gone), prepared.cells, prepared.root)
    with pytest.raises(PhotoError, match=r"^2 photos .* no shards were made") as caught:
        write(changed, region, tmp_path / "s")
    assert "gone.jpg: No such file" in str(caught.value)
    assert "/1: is no file" in str(caught.value)
    assert not list((tmp_path / "s").iterdir())


def test_photos_that_cannot_be_made_smaller_are_all_named(
    prepared: PreparedSet, region: Region, tmp_path: Path
) -> None:
    root = tmp_path / "photos"
    shutil.copytree(prepared.root, root)
    for i in range(7):
        (root / f"{i % 3}/{i}.jpg").write_bytes(b"no picture")
    moved = PreparedSet(prepared.photos, prepared.cells, root)
    with pytest.raises(PhotoError, match=r"7 photos .*(\n.*jpg: .*){5}\n  and 2 more"):
        write(moved, region, tmp_path / "s", shorter_side_px=20)


@pytest.mark.parametrize(
    ("key", "value"),
    [("photos_per_shard", 0), ("shard_mb", 0.0), ("shorter_side_px", 0), ("quality", 101)],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        ShardSettings(**{key: value})


# --- training streams -----------------------------------------------------------------------------


def make(prepared: PreparedSet, index: ShardIndex, **options: Any) -> ShardBatches:
    return ShardBatches(prepared, index, **{"quotas": QUOTAS, "size": SIZE, "seed": 0} | options)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_batch_is_what_files_would_give(
    index: ShardIndex, prepared: PreparedSet, framing: str
) -> None:
    files = PhotoDataset(prepared, SIZE, framing=framing)
    for batch in batches(make(prepared, index, framing=framing), 6, workers=0):
        expected = files[batch["row"].tolist()]
        assert batch.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(batch[key], value), key  # type: ignore[literal-required]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_every_batch_has_the_quotas(index: ShardIndex, prepared: PreparedSet, workers: int) -> None:
    found = batches(make(prepared, index), 11, workers)
    assert len(found) == 11
    for batch in found:
        assert torch.bincount(batch["province_id"], minlength=3).tolist() == QUOTAS.tolist()
        assert batch["row"].max() < 30


def test_a_province_without_a_quota_is_never_opened(broken: Path, prepared: PreparedSet) -> None:
    for path in broken.glob("train/desert-*"):
        path.unlink()
    index = ShardIndex.read(str(broken))
    for batch in batches(make(prepared, index, quotas=np.array([4, 0, 4])), 9, workers=0):
        assert set(batch["province_id"].tolist()) == {0, 2}


@pytest.mark.parametrize(("workers", "group"), [(1, 1), (1, 3), (2, 2), (3, 9)])
def test_all_photos_of_a_province_come_before_any_comes_again(
    index: ShardIndex, prepared: PreparedSet, workers: int, group: int
) -> None:
    found = batches(make(prepared, index, group=group), 30, workers)
    for lane in range(workers):
        for province in range(3):
            own = [i for i in range(30) if i % 3 == province]
            # Per batch the order is mixed; batches of a pass are told by counting.
            taken: list[int] = []
            for batch in found[lane::workers]:
                mine = batch["row"][batch["province_id"] == province].tolist()
                taken += mine
            quota = int(QUOTAS[province])
            for end in range(quota, len(taken) + 1, quota):
                count = Counter(taken[:end])
                fewest = min(count[row] for row in own)
                # A batch may straddle two passes, within it all orders are alike.
                assert max(count.values()) - fewest <= 1
            for number in range(len(taken) // len(own)):
                stretch = taken[number * len(own) : (number + 1) * len(own)]
                if quota * (len(own) // quota) == len(own):
                    assert sorted(stretch) == own


def test_passes_mix_shards_and_photos_anew(index: ShardIndex) -> None:
    stream = ProvinceStream(index, index.train[2], 2, (0, 0, 0, 0, 2)).samples()
    taken = [next(stream) for _ in range(50)]
    passes = [taken[i : i + 10] for i in range(0, 50, 10)]
    assert len({tuple(s.row for s in photos) for photos in passes}) == 5
    # Within a pass a shard is read in one go with its group, and not again.
    for photos in passes:
        first_group = list(dict.fromkeys(s.shard for s in photos))[:2]
        held = [s.shard in first_group for s in photos]
        assert held == sorted(held, reverse=True)
        assert sum(held) == sum(s.photos for s in index.train[2] if s.name in first_group)


def test_a_group_of_shards_is_mixed_evenly() -> None:
    """Where a photo stands in its pass says nothing of which photo it is, over many passes."""
    shards = [Shard(f"train/x-{i:06d}.tar", 4, 0) for i in range(3)]

    class Numbers:
        def samples(self, shard: Shard) -> list[Sample]:
            first = 4 * shards.index(shard)
            return [Sample(first + i, b"", shard.name) for i in range(4)]

    stream = ProvinceStream(Numbers(), shards, 3, (1, 0, 0, 0, 0)).samples()  # type: ignore[arg-type]
    count = np.zeros((12, 12))
    for _ in range(2000):
        for place in range(12):
            count[place, next(stream).row] += 1
    # Expected 2000 / 12 = 167 each, with a standard deviation of 12.
    assert abs(count - 2000 / 12).max() < 60


def test_streams_depend_on_seed_epoch_rank_and_number_of_workers_alone(
    index: ShardIndex, prepared: PreparedSet
) -> None:
    def stream(seed: int, epoch: int, rank: int, workers: int) -> list[list[int]]:
        return rows(batches(make(prepared, index, seed=seed, rank=rank), 6, workers, epoch=epoch))

    keys = [(0, 0, 0, 1), (1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1), (0, 0, 0, 2)]
    streams = [stream(*key) for key in keys]
    assert len({str(s) for s in streams}) == len(keys)
    assert stream(*keys[-1]) == streams[-1]
    assert stream(0, 0, 0, 0) == streams[0]
    # The lanes of two processes are two streams.
    assert streams[-1][0::2] != streams[-1][1::2]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_a_resumed_stream_is_the_rest_of_the_whole_one(
    index: ShardIndex, prepared: PreparedSet, workers: int, group: int
) -> None:
    dataset = make(prepared, index, group=group)
    whole = batches(dataset, 17, workers)
    for start in (1, 2, 5, 16):
        rest = batches(dataset, 17, workers, start)
        assert rows(rest) == rows(whole)[start:]
        assert torch.equal(rest[0]["image"], whole[start]["image"])


def test_any_batch_can_be_asked_for(index: ShardIndex, prepared: PreparedSet) -> None:
    dataset = make(prepared, index)
    whole = rows([dataset[0, number] for number in range(20)])
    for number in (7, 3, 3, 4, 19, 0):
        assert dataset[0, number]["row"].tolist() == whole[number]
    assert pickle.loads(pickle.dumps(dataset))[0, 5]["row"].tolist() == whole[5]


def test_what_is_skipped_is_not_opened(
    index: ShardIndex, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = ShardIndex.samples

    def samples(self: ShardIndex, shard: Shard) -> list[Sample]:
        opened.append(shard.name)
        return original(self, shard)

    monkeypatch.setattr(ShardIndex, "samples", samples)
    dataset = make(prepared, index, group=1)
    dataset[0, 1_000_000]
    # The group in which each province stands, and at most the next where the batch straddles two.
    assert 3 <= len(opened) <= 3 + 2 * 3
    opened.clear()
    # A province that is held as a whole is read once, however often it comes again.
    dataset = make(prepared, index, group=4)
    for number in range(40):
        dataset[0, number]
    assert max(Counter(opened).values()) == 1


def test_epochs_follow_the_sampler_though_processes_stay(
    index: ShardIndex, prepared: PreparedSet
) -> None:
    dataset = make(prepared, index)
    sampler = ShardBatchSampler(5)
    sampler.resume(3 * 5 + 2)
    loader = DataLoader(
        dataset, batch_size=None, sampler=sampler, num_workers=2, persistent_workers=True
    )
    assert len(loader) == 5
    for epoch, start in ((3, 2), (4, 0), (5, 0)):
        sampler.set_epoch(epoch)
        assert rows(list(loader)) == rows(batches(dataset, 5, 2, epoch=epoch))[start:]


# --- val and test ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("workers", [0, 1, 2, 5, 8])
def test_every_row_comes_once_over_ranks_and_from_its_process(
    batch_size: int, world_size: int, workers: int
) -> None:
    every = np.arange(100, 123)
    found: list[int] = []
    for rank in range(world_size):
        sampler = ShardRowSampler(every, batch_size, rank, world_size, workers)
        dealt = list(sampler)
        assert len(dealt) == len(sampler)
        # What a process gets by turns are batches side by side, and processes follow each other.
        by_process = [dealt[w :: max(1, workers)] for w in range(max(1, workers))]
        own = [row for process in by_process for batch in process for row in batch]
        assert own == sorted(own)
        assert all(len(batch) <= batch_size for batch in dealt)
        assert len(dealt) == -(-len(own) // batch_size)
        found += own
    assert found == every.tolist()


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "world_size"), [(9, 2, 4), (8, 4, 3), (5, 1, 5)]
)
def test_ranks_of_a_sharded_model_have_as_many_batches(
    num_rows: int, batch_size: int, world_size: int
) -> None:
    every = np.arange(num_rows)
    samplers = [
        ShardRowSampler(every, batch_size, rank, world_size, 2, same_number=True)
        for rank in range(world_size)
    ]
    assert len({len(sampler) for sampler in samplers}) == 1
    found = [row for sampler in samplers for batch in sampler for row in batch]
    assert set(found) == set(range(num_rows))
    assert len(found) - num_rows < world_size


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 3), (2, 2), (4, 2), (11, 0)])
@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_photos_come_as_from_files(
    index: ShardIndex, prepared: PreparedSet, split: str, world_size: int, workers: int
) -> None:
    files = PhotoDataset(prepared, SIZE)
    dataset = ShardPhotos(prepared, index, split, SIZE)
    assert len(dataset) == 9
    found: list[int] = []
    for rank in range(world_size):
        sampler = ShardRowSampler(dataset.rows, 2, rank, world_size, workers)
        loader = DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers)
        for batch in loader:
            found += batch["row"].tolist()
            for key, value in files[batch["row"].tolist()].items():
                assert torch.equal(batch[key], value), key
    assert sorted(found) == prepared.rows(split).tolist()


def test_rows_are_served_in_the_order_asked_for(index: ShardIndex, prepared: PreparedSet) -> None:
    dataset = ShardPhotos(prepared, index, "val", SIZE)
    asked = [38, 30, 30, 35]
    squeezed = ShardPhotos(prepared, index, "val", SIZE, SQUEEZE)[asked]["image"]
    files = PhotoDataset(prepared, SIZE, framing=SQUEEZE)
    assert torch.equal(squeezed, files[asked]["image"])
    batch = dataset[asked]
    assert not torch.equal(squeezed, batch["image"])
    assert batch["row"].tolist() == asked
    assert torch.equal(batch["image"], PhotoDataset(prepared, SIZE)[asked]["image"])
    with pytest.raises(IndexError):
        dataset[[30, 45]]
    with pytest.raises(PreparedSetError, match="split=train"):
        ShardPhotos(prepared, index, "train", SIZE)


# --- over the network -----------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """URL of the shards on a server of this machine, and what was asked of it."""
    if shutil.which("curl") is None:
        pytest.skip("WebDataset reads from http servers by curl, which is not installed")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(shards_module, "_PAUSE_S", 0.0)
    asked: list[str] = []
    handler = type("OwnHandler", (Handler,), {"asked": asked})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_gives_what_the_folder_gives(
    served: tuple[str, list[str]], index: ShardIndex, prepared: PreparedSet, workers: int
) -> None:
    url, asked = served
    there = ShardIndex.read(url + "/")
    local, remote = (batches(make(prepared, i), 9, workers) for i in (index, there))
    assert rows(local) == rows(remote)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(local, remote, strict=True))
    assert sum("/train/" in path for path in asked) >= 3
    photos = ShardPhotos(prepared, there, "val", SIZE)
    assert photos[[30, 38]]["row"].tolist() == [30, 38]


def test_a_shard_that_the_server_lacks_is_named(
    served: tuple[str, list[str]], prepared: PreparedSet, folder: Path
) -> None:
    url, _ = served
    there = ShardIndex.read(url)
    there.train[1] = [Shard("train/desert-000099.tar", 3, 20480)]
    with pytest.raises(PreparedSetError, match=r"http://.*/train/desert-000099\.tar: .*22"):
        make(prepared, there)[0, 0]
    with pytest.raises(PreparedSetError, match=r"No shards at http://.*/nowhere"):
        ShardIndex.read(f"{url}/nowhere")


def test_a_broken_transfer_is_tried_again(
    folder: Path, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "_PAUSE_S", 0.0)
    index.place = "http://example"
    trials: list[str] = []

    def read(url: str) -> bytes:
        trials.append(url)
        content = (folder / url.removeprefix("http://example/")).read_bytes()
        return content if len(trials) == 3 else content[:700]

    monkeypatch.setattr(shards_module, "_read_url", read)
    shard = index.train[0][0]
    assert len(index.samples(shard)) == shard.photos
    assert len(trials) == 3
    trials += ["no more"] * 3
    with pytest.raises(PreparedSetError, match=r"it has 700 bytes, not"):
        index.samples(shard)
    assert len(trials) == 9


def test_a_command_may_bring_the_shards(
    folder: Path, prepared: PreparedSet, index: ShardIndex
) -> None:
    program = "import sys; sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"
    there = ShardIndex.read(f'pipe:{sys.executable} -c "{program}" {folder}/{{name}}')
    assert rows(batches(make(prepared, there), 4, 0)) == rows(batches(make(prepared, index), 4, 0))


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://bucket/shards/", "s3://bucket/shards/val-000000.tar"),
        ("https://host/{name}?token=7", "https://host/val-000000.tar?token=7"),
        ("pipe:ssh host cat /s/{name}", "pipe:ssh host cat /s/val-000000.tar"),
        ("/data/shards", "/data/shards/val-000000.tar"),
    ],
)
def test_where_a_shard_is(place: str, url: str) -> None:
    assert shard_url(place, "val-000000.tar") == url


def test_s3_goes_through_the_command_of_amazon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "aws"
    program.write_text('#!/bin/sh\nprintf "%s," "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert shards_module._read_url("s3://bucket/a b.tar") == b"s3,cp,s3://bucket/a b.tar,-,"


# --- what is wrong is named -----------------------------------------------------------------------


def rewrite(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_shards_of_another_set_are_refused(
    index: ShardIndex, prepared: PreparedSet, region: Region, region_config: dict[str, Any]
) -> None:
    index.check(prepared, region)
    moved = prepared.photos.assign(latitude=0.0, cell_id=0)
    index.check(PreparedSet(moved, prepared.cells, prepared.root), region)
    for column, value in (("id", "p7"), ("split", "val"), ("path", "x.jpg"), ("province_id", 2)):
        photos = prepared.photos.copy()
        photos.loc[0, column] = value
        other = PreparedSet(photos, prepared.cells, prepared.root)
        with pytest.raises(PreparedSetError, match=r"another prepared set.*prepare shards root="):
            index.check(other, region)
    region_config["provinces"]["moon"] = region_config["provinces"].pop("coast_land")
    with pytest.raises(PreparedSetError, match="another region"):
        index.check(prepared, Region.from_config(region_config))


def test_a_photo_whose_content_changed_makes_another_set(prepared: PreparedSet) -> None:
    with_hashes = prepared.photos.assign(sha256="a")
    changed = with_hashes.copy()
    changed.loc[5, "sha256"] = "b"
    assert photos_sha256(with_hashes) != photos_sha256(changed)


def test_a_folder_without_shards_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(PreparedSetError, match=r"No shards at .*geopak\.prepare shards root="):
        ShardIndex.read(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=7), "of format 7, this version of geopak reads 1"),
        (lambda c: c.pop("splits"), "is no index of shards"),
        (lambda c: c["splits"]["val"][0].update(name="../x.tar"), "is no name of a shard"),
        (lambda c: c["splits"]["val"][0].update(name="val-000000.tar;ls"), "is no name of a shard"),
    ],
)
def test_an_index_that_cannot_be_used_is_refused(broken: Path, change: Any, message: str) -> None:
    rewrite(broken / INDEX_NAME, change)
    with pytest.raises(PreparedSetError, match=message):
        ShardIndex.read(str(broken))


def test_an_index_that_is_no_json_is_refused(broken: Path) -> None:
    (broken / INDEX_NAME).write_bytes(b"\xff{")
    with pytest.raises(PreparedSetError, match="cannot be read"):
        ShardIndex.read(str(broken))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", ["gone", "cut", "header", "longer"])
def test_a_broken_shard_is_named_with_the_remedy(
    broken: Path, prepared: PreparedSet, workers: int, harm: str
) -> None:
    for path in broken.glob("train/capital-*.tar"):
        content = bytearray(path.read_bytes())
        if harm == "gone":
            path.unlink()
            continue
        if harm == "cut":
            content = content[:-512]
        elif harm == "longer":
            content += b"\0" * 512
        else:
            # The header of the second photo: tarfile alone would take it for the end.
            with tarfile.open(path) as tar:
                content[tar.getmembers()[1].offset + 5] ^= 0xFF
        path.write_bytes(content)
    dataset = make(prepared, ShardIndex.read(str(broken)))
    with pytest.raises(PreparedSetError, match=r"shard .*train/capital-\d+\.tar.*prepare shards"):
        batches(dataset, 2, workers)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_photo_that_cannot_be_decoded_is_named_with_its_shard(
    broken: Path, prepared: PreparedSet, split: str
) -> None:
    for path in broken.rglob("*.tar"):
        content = bytearray(path.read_bytes())
        with tarfile.open(path) as tar:
            for member in tar:
                content[member.offset_data : member.offset_data + 64] = bytes(64)
        path.write_bytes(content)
    index = ShardIndex.read(str(broken))
    message = rf"photo p(\d+) \(row \1, \d/\1\.jpg\) in the shard .*{split}.*prepare shards"
    if split == "train":
        dataset, asked = make(prepared, index), (0, 0)
    else:
        dataset, asked = ShardPhotos(prepared, index, "val", SIZE), [30]
    with pytest.raises(PhotoError, match=message):
        dataset[asked]


def test_after_an_error_the_stream_stands_where_it_stood(
    broken: Path, folder: Path, prepared: PreparedSet, index: ShardIndex
) -> None:
    whole = rows(batches(make(prepared, index), 4, 0))
    dataset = make(prepared, ShardIndex.read(str(broken)))
    shutil.rmtree(broken / "train")
    with pytest.raises(PreparedSetError):
        dataset[0, 0]
    shutil.copytree(folder / "train", broken / "train")
    assert rows([dataset[0, i] for i in range(4)]) == whole


def test_held_out_photos_that_are_not_all_there_are_refused(
    broken: Path, prepared: PreparedSet
) -> None:
    rewrite(broken / INDEX_NAME, lambda c: c["splits"]["val"].pop())
    with pytest.raises(PreparedSetError, match="not all 9 val photos"):
        ShardPhotos(prepared, ShardIndex.read(str(broken)), "val", SIZE)


def test_rows_that_the_table_lacks_are_refused(prepared: PreparedSet, index: ShardIndex) -> None:
    few = PreparedSet(prepared.photos.iloc[:1], prepared.cells, prepared.root)
    with pytest.raises(PreparedSetError, match="the photo table has 1 rows"):
        make(few, index)[0, 0]


def test_without_webdataset_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ConfigError, match=r"pip install 'geopak\[shards\]'"):
        ShardIndex.read(str(folder))


# --- through the data module ----------------------------------------------------------------------


def module(prepared: PreparedSet, region: Region, folder: Path, **options: Any) -> GeopakDataModule:
    chosen = {"batch_size": 8, "batches_per_epoch": 5, "num_workers": 0, "shards": str(folder)}
    return GeopakDataModule(prepared, region, LoadingOptions(**chosen | options), image_size=SIZE)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_sees_the_stream_of_every_epoch(
    prepared: PreparedSet, region: Region, folder: Path, index: ShardIndex, workers: int
) -> None:
    datamodule = module(prepared, region, folder, num_workers=workers)
    seen = fit(datamodule, epochs=2).seen
    dataset = make(prepared, index)
    expected = [r for epoch in (0, 1) for r in rows(batches(dataset, 5, workers, epoch=epoch))]
    assert rows(seen["train"]) == expected
    assert {tuple(batch["image"].shape[1:]) for batch in seen["train"]} == {(3, SIZE, SIZE)}
    # Lightning tries the first batch before training.
    assert sorted(row for batch in rows(seen["val"])[1:] for row in batch) == sorted(
        2 * prepared.rows("val").tolist()
    )


def test_training_on_shards_is_prepared_before_it_begins(
    prepared: PreparedSet, region: Region, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(PreparedSetError, match="No shards at"):
        module(prepared, region, tmp_path)
    other = PreparedSet(prepared.photos.assign(id="x"), prepared.cells, prepared.root)
    with pytest.raises(PreparedSetError, match="another prepared set"):
        module(other, region, folder)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("shard_group", 0),
        ("sampling", "random"),
        ("memory_cache", "true"),
        ("feature_cache", "true"),
    ],
)
def test_what_shards_cannot_do_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{option}"):
        LoadingOptions(**{"shards": "somewhere", option: value})
