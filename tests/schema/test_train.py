"""Which values of a training do not go together, and names that other modules share."""

from __future__ import annotations

import pytest
import torch

from geopak.cli import compose
from geopak.errors import ConfigError
from geopak.geo.region import Region
from geopak.metrics import GeolocationMetrics
from geopak.models.decode import MEAN_OF_DEGREES, REGRESSION, RULES
from geopak.models.geolocator import Geolocator
from geopak.schema.loading import FEATURE_DTYPES
from geopak.schema.training import (
    DECODING_RULES,
    ENCODERS,
    HEAD_GROUPS,
    validation_metrics,
)
from geopak.task import TASKS

from .refusals import refusal


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("phase.monitor=val/medain_km",
         "phase.monitor='val/medain_km' is no metric of validation (conf/phase/1.yaml). "
         "Did you mean 'val/median_km'?"),
        ("phase.monitor=val/province/sind/acc", "Did you mean 'val/province/sindh/acc'?"),
        ("phase.monitor=train/loss", "is no metric of validation"),
        ("phase.monitor_mode=max", "phase.monitor_mode=max would keep the worst of"),
        ("data.batch_size=33", "The nearest batch sizes that work: 32 and 40."),
        ("trainer=fsdp data.feature_cache=auto", "Set data.feature_cache=false"),
        ("trainer=fsdp trainer.compile=true", "trainer.compile=true compiles whole encoders"),
        ("resume_from=a.ckpt init_from=b.ckpt", "Give one of them."),
        ("phase=0 init_from=b.ckpt", "phase=0 starts from the pretrained encoders"),
        ("trainer.check_val_every_n_epoch=21", "is more than phase.epochs=20"),
        ("callbacks.checkpoint_every_n_batches=3 trainer.accumulate_grad_batches=2",
         "must be a multiple of trainer.accumulate_grad_batches=2"),
        ("callbacks.checkpoint_every_n_batches=0", "must be at least 1"),
        ("phase.train=[gate,province_head,offset_head,auxiliary_head]",
         "phase.losses names 'cell', and phase.train does not train its cell_heads"),
        ("phase=0 phase.losses=[province,auxiliary]", "does not train its auxiliary_head"),
        ("phase=0 phase.train=[offset_head,province_head] phase.losses=[offset]",
         "phase 0 makes none"),
        ("trainer=cpu trainer.precision=16-mixed", "trainer.precision=16-mixed needs a GPU"),
        ("logger=wandb logger.mode=offlin", "(conf/logger/wandb.yaml). Did you mean 'offline'?"),
        ("trainer.max_epochs=2 trainer.check_val_every_n_epoch=5", "max_epochs=2: no epoch"),
        ("phase.index=3", "phase.index=3: known phases are 0, 1, 2"),
        ("model.image_size=65", "is not a multiple of model.semantic.shape.patch_size=16"),
        ("model.semantic.shape.heads=7", "is not a multiple of model.semantic.shape.heads=7"),
        ("region.provinces.sindh.batch_quota=x",
         "region.provinces.sindh.batch_quota='x' must be an integer (conf/region/pakistan.yaml)."),
        ("+region.provinces.sindh.tau=3", "Did you mean 'tau_km'?"),
        ("region.provinces.sindh.tau_km=-3", "region.provinces.sindh.tau_km"),
        ("trainer.precision=17", "trainer.precision=17 must be one of 32-true, 16-mixed"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9] must be a list of 2 numbers"),
        ("optimizer.lr_scaling=squareroot", "must be one of none, linear, sqrt"),
        ("seed=x", "seed='x' must be an integer at least 0 (conf/train.yaml)."),
        ("data.prepared=${nowhere}", "data.prepared cannot be resolved"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_it_is_composed(overrides: str, message: str) -> None:
    given = () if overrides.startswith("phase=0") else ("phase=1",)
    assert message in refusal("train", overrides.split(), message, given)


def test_several_mistakes_are_told_together_each_with_its_file() -> None:
    with pytest.raises(ConfigError) as caught:
        compose("train", ["phase=1", "phase.epochs=ten", "data.batch_size=x", "lose.cell=1"])
    assert str(caught.value).splitlines() == [
        "Unknown configuration key 'lose.cell'. Did you mean 'loss.cell' (conf/loss/default.yaml)?",
        "data.batch_size='x' must be an integer (conf/data/photos.yaml).",
        "phase.epochs='ten' must be an integer (conf/phase/1.yaml).",
    ]


def test_what_may_be_is_composed_as_ever() -> None:
    cfg = compose("train", ["phase=1", "data.batch_size=32", "trainer.limit_train_batches=2",
                            "phase.monitor=val/within_25km", "phase.monitor_mode=max",
                            "name=${now:%Y}", "init_from=${oc.env:NO_SUCH_VARIABLE}"])  # fmt: skip
    assert cfg.trainer.limit_train_batches == 2
    assert cfg.data.batch_size == 32
    # An interrupted run that had started from a given checkpoint goes on with the same command.
    assert compose("train", ["phase=1", "init_from=a.ckpt", "resume_from=auto"]).init_from


def test_the_metrics_that_may_be_watched_are_those_that_validation_makes(region: Region) -> None:
    keys = tuple(p.key for p in region.provinces)
    metrics = GeolocationMetrics(keys)
    n = 12
    province_id = torch.arange(n) % len(keys)
    place = torch.stack((torch.linspace(25, 35, n), torch.linspace(62, 75, n)), 1)
    metrics.update(place, place, torch.eye(len(keys))[province_id], province_id,
                   torch.zeros(n), place, torch.arange(n) % 2 == 0, torch.arange(n))  # fmt: skip
    made = {f"val/{name}" for name in metrics.compute()}
    assert set(validation_metrics(keys)) == made | {"val/gate_mean"}


def test_names_are_those_of_the_modules_that_act_on_them(model: Geolocator) -> None:
    assert (*RULES, MEAN_OF_DEGREES, REGRESSION) == DECODING_RULES
    assert tuple(model.groups()) == (*ENCODERS, *HEAD_GROUPS)
    assert sorted(TASKS) == [0, 1, 2]
    assert all(hasattr(torch, name) for name in FEATURE_DTYPES)
