"""Batches as training gets them: balanced, new every epoch, augmented in training alone."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from geopak.data.datamodule import GeopakDataModule, LoadingOptions
from geopak.data.dataset import PreparedSet
from geopak.data.images import load_image
from geopak.errors import ConfigError
from geopak.geo.region import Region
from geopak.types import Batch

OPTIONS: dict[str, Any] = {"batch_size": 8, "batches_per_epoch": 5, "num_workers": 0}


class Watcher(L.LightningModule):
    """Learns nothing and keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[Batch]] = {"train": [], "val": []}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def make(prepared: PreparedSet, region: Region, **options: Any) -> GeopakDataModule:
    return GeopakDataModule(prepared, region, LoadingOptions(**OPTIONS | options), image_size=32)


@pytest.mark.parametrize("cache", ["false", "true"])
def test_photos_are_framed_as_the_model_wants_them(
    prepared: PreparedSet, region: Region, cache: str
) -> None:
    options = LoadingOptions(**OPTIONS | {"memory_cache": cache})
    datamodule = GeopakDataModule(prepared, region, options, image_size=32, framing="squeeze")
    datamodule.setup("fit")
    for split, size in (("val", 32), ("train", round(32 * options.load_margin))):
        row = int(prepared.rows(split)[0])
        photo = prepared.root / prepared.photos["path"][row]
        found = datamodule.datasets[split][[row]]["image"][0]
        assert torch.equal(found, load_image(photo, size, "squeeze"))
        assert not torch.equal(found, load_image(photo, size, "crop"))


def fit(datamodule: GeopakDataModule, epochs: int = 2) -> Watcher:
    watcher = Watcher()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        use_distributed_sampler=False,
    )
    trainer.fit(watcher, datamodule=datamodule)
    return watcher


def rows(batches: list[Batch]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


pytestmark = [
    # Lightning advises more loader processes, which a handful of photos does not need,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # and asks PyTorch's trees in a way that PyTorch is about to change.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


@pytest.fixture
def datamodule(prepared: PreparedSet, region: Region) -> GeopakDataModule:
    return make(prepared, region)


def test_batches_are_balanced_and_new_in_every_epoch_of_the_trainer(
    datamodule: GeopakDataModule,
) -> None:
    seen = fit(datamodule, epochs=3).seen["train"]
    assert len(seen) == 3 * 5
    for batch in seen:
        assert torch.bincount(batch["province_id"], minlength=3).tolist() == [2, 2, 4]
        assert batch["row"].max() < 30
    assert len({tuple(batch) for batch in rows(seen)}) == 15


def test_two_runs_see_the_same_batches_and_another_seed_others(
    prepared: PreparedSet, region: Region
) -> None:
    first, again, other = (fit(make(prepared, region, seed=s)) for s in (0, 0, 1))
    for a, b in zip(first.seen["train"], again.seen["train"], strict=True):
        assert torch.equal(a["row"], b["row"])
        assert torch.equal(a["image"], b["image"])
    assert rows(first.seen["train"]) != rows(other.seen["train"])


def test_training_augments_and_validation_does_not(
    datamodule: GeopakDataModule, prepared: PreparedSet
) -> None:
    watcher = fit(datamodule)
    for split in ("train", "val"):
        for batch in watcher.seen[split]:
            image = batch["image"]
            assert image.shape[1:] == (3, 32, 32)
            assert image.dtype == torch.float32
            assert 0 <= float(image.min()) <= float(image.max()) <= 1
    for batch in watcher.seen["val"]:
        plain = datamodule.datasets["val"][batch["row"].tolist()]["image"].float() / 255
        assert torch.equal(batch["image"], plain)
    # One photo drawn twice comes out in two versions.
    versions: dict[int, list[torch.Tensor]] = {}
    for batch in watcher.seen["train"]:
        for row, image in zip(batch["row"].tolist(), batch["image"], strict=True):
            versions.setdefault(row, []).append(image)
    repeated = [v for v in versions.values() if len(v) > 1]
    assert repeated
    assert not any(torch.equal(v[0], v[1]) for v in repeated)


def test_validation_covers_every_photo_once(datamodule: GeopakDataModule) -> None:
    seen = fit(datamodule, epochs=1).seen["val"]
    # Lightning tries the first batch before training.
    assert sorted(row for batch in rows(seen)[1:] for row in batch) == list(range(30, 39))


def test_the_test_split_is_out_of_reach(datamodule: GeopakDataModule) -> None:
    datamodule.setup("fit")
    assert datamodule.datasets.keys() == {"train", "val"}
    assert type(datamodule).test_dataloader is L.LightningDataModule.test_dataloader


def test_every_rank_draws_a_stream_of_its_own(datamodule: GeopakDataModule) -> None:
    streams = [tuple(map(tuple, datamodule.train_sampler(rank))) for rank in range(4)]
    assert len({batch for stream in streams for batch in stream}) == 4 * 5


def test_augmentation_depends_on_seed_epoch_rank_and_photos_alone(
    prepared: PreparedSet, region: Region
) -> None:
    def first(seed: int, epoch: int, rank: int, row: list[int]) -> float:
        module = make(prepared, region, seed=seed)
        return float(
            torch.rand(1, generator=module.augmentation_generator(torch.tensor(row), epoch, rank))
        )

    draws = [first(*key) for key in [(0, 0, 0, [1, 2]), (1, 0, 0, [1, 2]), (0, 1, 0, [1, 2]),
                                     (0, 0, 1, [1, 2]), (0, 0, 0, [2, 1])]]  # fmt: skip
    assert len(set(draws)) == 5
    assert first(0, 0, 0, [1, 2]) == draws[0]


def test_training_photos_are_loaded_larger_than_the_crops_need(
    prepared: PreparedSet, region: Region
) -> None:
    module = make(prepared, region, load_margin=1.5)
    module.setup("fit")
    assert module.datasets["train"].size == 48
    assert module.datasets["val"].size == 32


@pytest.mark.parametrize(
    ("memory_cache", "gigabytes", "cached"),
    [("true", 0.0, True), ("false", 9.0, False), ("auto", 1.0, True), ("auto", 1e-6, False)],
)
def test_photos_are_kept_in_memory_where_they_fit(
    prepared: PreparedSet, region: Region, memory_cache: str, gigabytes: float, cached: bool
) -> None:
    module = make(
        prepared, region, memory_cache=memory_cache, memory_cache_gb=gigabytes, num_workers=2
    )
    module.setup("fit")
    assert (module.datasets["train"].cache is not None) is cached
    assert module.train_dataloader().num_workers == (0 if cached else 2)


def test_loader_processes_serve_the_same_batches(prepared: PreparedSet, region: Region) -> None:
    with_cache = fit(make(prepared, region, batches_per_epoch=2), epochs=1)
    with_workers = fit(
        make(prepared, region, batches_per_epoch=2, memory_cache="false", num_workers=1), epochs=1
    )
    for a, b in zip(with_cache.seen["train"], with_workers.seen["train"], strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["latlon_deg"], b["latlon_deg"])


def test_an_epoch_is_as_long_as_configured_or_as_the_photos_fill(
    prepared: PreparedSet, region: Region
) -> None:
    assert make(prepared, region).num_batches == 5
    assert make(prepared, region, batches_per_epoch=None).num_batches == 30 // 8


def test_random_sampling_needs_no_quotas(prepared: PreparedSet, region: Region) -> None:
    module = make(prepared, region, sampling="random", batch_size=5)
    assert {len(batch) for batch in module.train_sampler(0)} == {5}


def test_quotas_that_do_not_fit_the_batch_are_refused_before_anything_is_loaded(
    prepared: PreparedSet, region: Region
) -> None:
    with pytest.raises(ConfigError, match=r"sum to 8, not to data\.batch_size=66"):
        make(prepared, region, batch_size=66)


def test_an_unsafe_transform_is_refused_unless_permitted(
    prepared: PreparedSet, region: Region
) -> None:
    augmentation = {"horizontal_flip": 0.5}
    with pytest.raises(ConfigError, match="not geography-safe"):
        make(prepared, region, augmentation=augmentation)
    make(prepared, region, augmentation=augmentation, allow_unsafe=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("batches_per_epoch", 0),
        ("sampling", "stratified"),
        ("memory_cache", "maybe"),
        ("load_margin", 0.9),
    ],
)
def test_options_out_of_range_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{option}"):
        LoadingOptions(**{option: value})


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 5), (1.0, 5), (0.5, 2), (0.01, 1), (2, 2), (1, 1), (9, 5)]
)
def test_a_limit_shortens_the_epoch_of_sampler_and_schedule(
    prepared: PreparedSet, region: Region, limit: float | None, expected: int
) -> None:
    options = LoadingOptions(**OPTIONS)
    limited = GeopakDataModule(prepared, region, options, 32, limit_train_batches=limit)
    whole = list(make(prepared, region).train_sampler(rank=0))
    assert limited.num_batches == expected
    assert list(limited.train_sampler(rank=0)) == whole[:expected]


@pytest.mark.parametrize("limit", [0, -1, 0.0, 1.5])
def test_a_limit_that_leaves_nothing_is_refused(
    prepared: PreparedSet, region: Region, limit: float
) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.limit_train_batches="):
        GeopakDataModule(prepared, region, LoadingOptions(**OPTIONS), 32, limit_train_batches=limit)


def test_the_batch_size_may_change_with_its_quotas(datamodule: GeopakDataModule) -> None:
    assert datamodule.smallest_batch_size == 4
    datamodule.batch_size = 16
    assert datamodule.quotas.tolist() == [4, 4, 8]
    assert {len(batch) for batch in datamodule.train_sampler(rank=0)} == {16}
    with pytest.raises(ConfigError, match=r"data\.batch_size=6"):
        datamodule.batch_size = 6
