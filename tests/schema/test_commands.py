"""Every command has a schema that fits its files, and its help, completion and information work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.global_hydra import GlobalHydra

from geopak import cli
from geopak.cli import CONFIG_DIR, PACKAGE_DIR
from geopak.composing import Purpose, composing
from geopak.schema import COMMANDS

from ..end_to_end.conftest import run_command
from ..test_startup import HEAVY
from .refusals import refusal

# Commands that are the first argument of another.
OF_PREPARE = ("doctor", "leaks", "shards")


def arguments(command: str) -> list[str]:
    return ["prepare", command] if command in OF_PREPARE else [command]


def test_every_command_of_conf_has_a_schema() -> None:
    assert set(COMMANDS) == {path.stem for path in CONFIG_DIR.glob("*.yaml")}


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("evaluate", "split=tst", "split='tst' must be one of train, val, test (conf/evaluate"),
        ("evaluate", "shards=x feature_cache=true", "feature_cache=true is for photo files"),
        ("evaluate", "bootstrap_resamples=0", "must be at least 1"),
        ("evaluate", "abstain_below=1.5", "must be at least 0 and at most 1"),
        ("calibrate", "shards=x feature_cache=true", "feature_cache=true is for photo files"),
        ("calibrate", "train_photos=2", "must be at least 3"),
        ("predict", "rule=medain", "Did you mean 'mean'?"),
        ("predict", "images=[a,b] map=c.png", "map= draws one photo, images= names 2"),
        ("prepare", "seed=1.5", "seed=1.5 must be an integer at least 0 (conf/prepare.yaml)."),
        ("prepare", "tables=[]", "there are no photos"),
        ("prepare", "split.val_fraction=0.9", "split.val_fraction and split.test_fraction"),
        ("prepare", "columns.id=5", "columns.id=5 must be a name or a list of names or null"),
        ("prepare", "+columns.identity=x", "columns.identity is not an option"),
        ("prepare", "cells.grain_km=0", "cells.grain_km must be positive (conf/prepare.yaml)."),
        ("prepare", "executor.scheduler=tcp://x", "is an address for executor=dask"),
        ("prepare", "executor=dsak", "Did you mean executor=dask?"),
        ("doctor", "thresholds.max_imbalance=x", "must be a number (conf/thresholds/default.yaml)"),
        ("leaks", "distances_km=[-1]", "distances_km[0]=-1 must be at least 0 (conf/leaks.yaml)."),
        ("shards", "quality=0", "quality=0 must be from 1 to 100 (conf/shards.yaml)."),
        ("synthetic", "+world.snowline=1", "world.snowline is not an option"),
        ("synthetic", "landscape=bangladesh", "landscape.region='bangladesh' is not the region"),
        ("synthetic", "landscape.styles.sindh.roof_rgb=red", "styles.sindh.roof_rgb='red' is no"),
        ("synthetic", "landscape.relief=[{at: [1], height: 2, radius_km: [1, 2]}]",
         "landscape.relief[0].at=[1] must be a list of 2 numbers"),
        ("synthetic", "workers=0", "workers=0 must be at least 1 (conf/synthetic.yaml)."),
        ("pretrain", "encoder=sene", "encoder='sene' must be one of semantic, scene"),
        ("pretrain", "+augmentation.rotation=9", "augmentation.rotation is not geography-safe"),
        ("demo", "evaluate=x", "evaluate='x' must be a list of names (conf/demo.yaml)."),
        ("demo", "++train={3: [a]}", "train.3 is not an option (conf/demo.yaml). Known: 0, 1, 2."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_it_is_composed(
    command: str, override: str, message: str
) -> None:
    parts = [override] if "{" in override else override.split()
    given = ("images=x",) if command == "predict" else ()
    assert message in refusal(command, parts, message, given)


def test_a_refused_command_imports_nothing_heavy_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import json, sys
from geopak.train import main
sys.argv = ["geopak.train", "-m", "phase=0,1", "phase.epochs=ten", "data.batch_size=33"]
try:
    main()
except SystemExit as stop:
    print(json.dumps([stop.code, [m for m in {HEAVY!r} if m in sys.modules]]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"GEOPAK_HOME": str(tmp_path)}, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(ran.stdout) == [2, []]
    assert ran.stderr.startswith("\nerror: phase.epochs='ten' must be an integer (conf/phase/0.yam")
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_does_with_which_groups(command: str) -> None:
    module, *first = arguments(command)
    shown = run_command(module, *first, "--help")
    assert shown.status == 0
    cfg = yaml.safe_load((CONFIG_DIR / f"{command}.yaml").read_text(encoding="utf-8"))
    defaults = [entry for entry in cfg["defaults"] if isinstance(entry, dict)]
    groups = [name.removeprefix("optional ") for entry in defaults for name in entry
              if not name.startswith("override")]  # fmt: skip
    for group in groups:
        if group != "paths":
            names = ", ".join(sorted(p.stem for p in (CONFIG_DIR / group).glob("*.yaml")))
            assert f": {names}" in shown.text, group
    assert f"python -m geopak.{' '.join(arguments(command))}" in shown.text
    assert "interpolation" not in shown.text.partition("Options of every command")[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_configuration_can_be_looked_at_before_all_of_it_is_given(command: str) -> None:
    module, *first = arguments(command)
    shown = run_command(module, *first, "--cfg", "job")
    assert shown.status == 0, shown.text
    cfg = yaml.safe_load(shown.text)
    assert "hydra" not in cfg
    assert "paths" in cfg


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("all", ["Config search path", "Defaults List", "phase/1", "epochs: 20"]),
        ("config", ["Defaults List", "phase/1", "epochs: 20"]),
        ("defaults", ["Defaults List", "phase/1", "_self_"]),
    ],
)
def test_information_is_given(kind: str, parts: list[str]) -> None:
    shown = run_command("train", "--info", kind, "phase=1")
    assert shown.status == 0
    for part in parts:
        assert part in shown.text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("phase=", ["phase=0", "phase=1", "phase=2"]),
        ("phas", ["phase.", "phase="]),
        ("phase.l", ["phase.losses.", "phase.lr."]),
        ("phase=2 trainer=a100_", ["trainer=a100_cluster", "trainer=a100_multi"]),
        ("phase.epochs=", ["phase.epochs=8"]),
        ("phase=2 phase.epochs=", ["phase.epochs=25"]),
        ("phase.epochs=ten decoding.rul", ["decoding.rule="]),
        ("model", ["model.", "model="]),
        ("init_f", ["init_from="]),
    ],
)
def test_the_shell_completes_keys_and_names(line: str, expected: list[str]) -> None:
    with cli._hydra_initialised(), composing(Purpose.ASK):
        completion = BashCompletion(GlobalHydra.instance().config_loader())
        assert completion._query(config_name="train", line=line) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_python_m() -> None:
    installed = run_command("train", "-sc", "install=bash")
    assert (installed.status, installed.value) == (0, None)
    script = f"""
{installed.text}
COMP_LINE="{sys.executable} -m geopak.prepare doctor thr"
COMP_POINT=${{#COMP_LINE}}
_geopak_complete
echo "${{COMPREPLY[@]}}"
"""
    ran = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE_DIR.parent)},
    )  # fmt: skip
    assert ran.stdout.split() == ["thresholds.", "thresholds="]
