"""When a training is warned of, on numbers that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from geopak.errors import ConfigError
from geopak.health import (
    ValidationVitals,
    Vitals,
    add_to_record,
    find_warnings,
)
from geopak.schema.monitoring import HealthOptions

PROVINCES = ("Capital", "Desert", "Coast")
SOUND = Vitals(
    predicted=[30, 30, 40],
    true=[20, 30, 50],
    hits=[15, 20, 35],
    offset_ratio=0.4,
    gate_mean=0.4,
    gate_std=0.1,
    auxiliary_share=0.2,
)
OPTIONS = HealthOptions()


def kinds(vitals: Vitals, options: HealthOptions = OPTIONS) -> list[str]:
    return [warning.kind for warning in find_warnings(vitals, PROVINCES, options)]


def test_a_sound_model_gets_no_warning() -> None:
    assert kinds(SOUND) == []


@pytest.mark.parametrize(
    ("change", "kind", "switch"),
    [
        # Never predicted; and rarely predicted, never right.
        ({"predicted": [0, 60, 40], "hits": [0, 20, 35]}, "province_collapse", "province_collapse"),
        ({"predicted": [50, 2, 48], "hits": [15, 1, 35], "true": [20, 60, 50]},
         "province_collapse", "province_collapse"),
        # The coast takes 45 of the 50 photos of the others.
        ({"predicted": [2, 3, 95], "hits": [2, 3, 50]}, "province_swallow", "province_swallow"),
        ({"auxiliary_share": 0.6}, "auxiliary_share", "auxiliary_share"),
        ({"offset_ratio": 0.95}, "offset_bound", "offset_bound"),
        ({"gate_mean": 0.01}, "gate_stuck", "gate_extreme"),
        ({"gate_mean": 0.99}, "gate_stuck", "gate_extreme"),
        ({"gate_mean": 0.95, "gate_std": 0.001}, "gate_stuck", "gate_flat_extreme"),
    ],
)  # fmt: skip
def test_each_ailment_has_its_warning_and_its_switch(
    change: dict[str, object], kind: str, switch: str
) -> None:
    ill = replace(SOUND, **change)  # type: ignore[arg-type]
    assert kinds(ill) == [kind]
    assert kinds(ill, replace(OPTIONS, **{switch: None})) == []


@pytest.mark.parametrize(
    "change",
    [
        # Rarely predicted, but most of them found; too few photos to judge; nearly no swallowing.
        {"predicted": [16, 44, 40]},
        {"predicted": [0, 50, 50], "true": [4, 46, 50], "hits": [0, 40, 45]},
        {"predicted": [8, 12, 80], "hits": [8, 12, 41]},
        # A gate that says the same of all photos, in the middle; nothing to judge.
        {"gate_mean": 0.5, "gate_std": 0.0},
        {"gate_mean": 0.05, "gate_std": 0.05},
        {"gate_mean": None, "gate_std": None, "offset_ratio": None, "auxiliary_share": None},
    ],
)
def test_what_is_no_ailment_is_not_warned_of(change: dict[str, object]) -> None:
    assert kinds(replace(SOUND, **change)) == []  # type: ignore[arg-type]


def test_all_collapsed_provinces_are_named_once_and_keys_to_try() -> None:
    lost = replace(SOUND, predicted=[0, 0, 100], hits=[0, 0, 50])
    collapse, swallow = find_warnings(lost, PROVINCES, OPTIONS)
    assert collapse.value == 2
    assert "Capital (predicted 0 times, right 0 times, of 20 photos), Desert" in collapse.message
    assert "region.provinces.<key>.batch_quota" in collapse.message
    assert swallow.value == 1
    assert "Coast takes 100%" in swallow.message


def test_vitals_of_two_processes_are_those_of_all_photos() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=generator)
    truth = torch.randint(3, (40,), generator=generator)
    gate = torch.rand(40, generator=generator)
    ratio = torch.rand(25, generator=generator)
    one, other = ValidationVitals(3), ValidationVitals(3)
    one.update(logits[:30], truth[:30], ratio[:20], gate[:30])
    other.update(logits[30:], truth[30:], ratio[20:], gate[30:])
    one.merge_state(other)
    vitals = one.compute()
    chosen = logits.argmax(1)
    for province in range(3):
        assert vitals.predicted[province] == sum(int(c) == province for c in chosen)
        assert vitals.true[province] == sum(int(t) == province for t in truth)
        both = zip(chosen.tolist(), truth.tolist(), strict=True)
        assert vitals.hits[province] == sum(c == t == province for c, t in both)
    assert vitals.offset_ratio == pytest.approx(float(ratio.mean()))
    assert vitals.gate_mean == pytest.approx(float(gate.mean()))
    assert vitals.gate_std == pytest.approx(float(gate.std(correction=0)))


def test_a_model_without_offset_or_gate_has_no_such_vitals() -> None:
    metric = ValidationVitals(3)
    metric.update(torch.eye(3), torch.tensor([0, 1, 1]))
    vitals = metric.compute()
    assert vitals.hits == [1, 1, 0]
    assert (vitals.offset_ratio, vitals.gate_mean, vitals.gate_std) == (None, None, None)


def test_the_record_grows_and_a_broken_one_is_made_anew(tmp_path: Path) -> None:
    add_to_record(tmp_path, "warnings", [{"epoch": 1}])
    add_to_record(tmp_path, "stops", [{"epoch": 2}])
    add_to_record(tmp_path, "warnings", [{"epoch": 3}])
    path = tmp_path / "health.json"
    assert json.loads(path.read_text()) == {
        "warnings": [{"epoch": 1}, {"epoch": 3}],
        "stops": [{"epoch": 2}],
    }
    path.write_text("{")
    add_to_record(tmp_path, "warnings", [{"epoch": 4}])
    assert json.loads(path.read_text())["warnings"] == [{"epoch": 4}]


@pytest.mark.parametrize(
    "options",
    [
        {"check_every_n_steps": 0},
        {"repeat_epochs": 0},
        {"auxiliary_share": 1.5},
        {"offset_bound": -0.1},
    ],
)
def test_thresholds_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"callbacks\.health\.{next(iter(options))}"):
        HealthOptions(**options)  # type: ignore[arg-type]
