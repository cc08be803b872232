"""Configuration as typed: integer phases, every shipped option, where things are."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch._utils import ExceptionWrapper

from geopak import cli
from geopak.cli import CONFIG_DIR, compose, entry_point, home, split_jobs
from geopak.errors import ConfigError, PhotoError

GROUPS = ("phase", "trainer", "model", "logger", "experiment", "data", "loss", "optimizer",
          "callbacks", "decoding", "region")  # fmt: skip
OPTIONS = [
    f"{group}={path.stem}"
    for group in GROUPS
    for path in sorted((CONFIG_DIR / group).glob("*.yaml"))
]


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_a_phase_is_chosen_by_its_number_as_typed(phase: int) -> None:
    assert compose("train", [f"phase={phase}"]).phase.index == phase


def test_settings_of_a_phase_are_overridden_together_with_its_choice() -> None:
    cfg = compose("train", ["phase=2", "phase.lr.heads=3e-4", "phase.epochs=3"])
    assert (cfg.phase.index, cfg.phase.lr.heads, cfg.phase.epochs) == (2, 3e-4, 3)
    cfg = compose("train", ["phase.lr.heads=3e-4", "phase=2"])
    assert (cfg.phase.index, cfg.phase.lr.heads) == (2, 3e-4)


def test_a_sweep_over_phases_runs_each_in_order() -> None:
    overrides = OverridesParser.create().parse_overrides(["phase=0,1,2", "seed=5"])
    [jobs] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    assert [compose("train", job).phase.index for job in jobs] == [0, 1, 2]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_shipped_option_composes_and_resolves(option: str) -> None:
    cfg = compose("train", [option, "data.root=photos", "model.scene.checkpoint=file"])
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)


@pytest.mark.parametrize("name", sorted(p.stem for p in CONFIG_DIR.glob("*.yaml")))
def test_every_command_composes(name: str) -> None:
    needed = {
        "predict": ["images=photo.jpg"],
        "import_geopak": ["checkpoint=model.pth", "cells=cells.csv"],
    }
    cfg = compose(name, needed.get(name, []))
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_the_published_experiment_is_the_method_at_full_size() -> None:
    cfg = compose("train", ["experiment=pakistan", "phase=2", "data.root=/photos", "trainer=a100"])
    assert cfg.model.name == "clip_places365"
    assert cfg.model.image_size == 224
    assert (cfg.data.batch_size, cfg.data.batches_per_epoch) == (64, 1300)
    assert cfg.data.prepared == "/photos/prepared"
    assert (cfg.phase.lr.semantic, cfg.phase.lr.scene, cfg.phase.lr.heads) == (1e-5, 5e-6, 5e-4)
    assert cfg.trainer.precision == "bf16-mixed"
    assert cfg.logger.kind == "wandb"
    assert cfg.logger.mode == "auto"
    quotas = [p.get("batch_quota", cfg.region.province_defaults.batch_quota)
              for p in cfg.region.provinces.values()]  # fmt: skip
    assert quotas == [16, 8, 8, 8, 8, 8, 8]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phase=7", r"phase=7: there is no file conf/phase/7\.yaml.* Known: 0, 1, 2\."),
        ("model=tyni", r"conf/model/tyni\.yaml. Did you mean model=tiny\?"),
        ("phase.lrs=1", r"key 'phase\.lrs'. Did you mean 'phase\.lr' \(conf/phase/0\.yaml\)"),
        ("epochs=1", r"'epochs'. Did you mean 'phase\.epochs' \(conf/phase/0\.yaml\)"),
        ("logger.mod=offline", r"'logger\.mod'"),
        ("nonsense=1", "Unknown configuration key 'nonsense'"),
        ("+nonsense=1", "nonsense is not an option. Known: paths, region"),
    ],
)
def test_an_unknown_option_or_key_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        compose("train", [override])


def test_home_is_the_variable_then_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GEOPAK_HOME", raising=False)
    assert (home() / "conf" / "train.yaml").is_file() or not cli.IN_CHECKOUT
    monkeypatch.setenv("GEOPAK_HOME", str(tmp_path / "elsewhere"))
    assert home() == tmp_path / "elsewhere"
    cfg = compose("train")
    assert cfg.paths.outputs == str(tmp_path / "elsewhere" / "outputs")
    assert cfg.data.root == str(tmp_path / "elsewhere" / "data" / "synthetic")


def test_home_of_an_installed_wheel_is_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GEOPAK_HOME", raising=False)
    monkeypatch.setattr(cli, "IN_CHECKOUT", False)
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path


def test_composing_works_from_any_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose("train", ["phase=1"]).phase.parent == 0
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_input_ends_a_command_with_its_message_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        hydra, "main", lambda *args, **kwargs: lambda function: lambda: function({})
    )

    @entry_point("train")
    def failing(cfg: object) -> None:
        raise ConfigError("Set the quota to 0.")

    @entry_point("train")
    def working(cfg: object) -> float:
        return 0.5

    with pytest.raises(SystemExit) as caught:
        failing()
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == "\nerror: Set the quota to 0.\n"
    assert "Traceback" not in captured.err
    assert working() == 0.5


@pytest.mark.parametrize("text", ["IMG (1).jpg", "it's", "a\\'b", "é\\", "\\\\'é\\\\", "'", "é, ü"])
def test_a_value_outside_the_grammar_arrives_as_typed(text: str) -> None:
    assert compose("predict", [f"images={text}"]).images == text
    assert compose("predict", ["images=x", f"++map={text}"]).map == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), max_size=12))
def test_quotes_keep_every_text(text: str) -> None:
    override = OverridesParser.create().parse_override(f"x={cli.quoted(text)}")
    assert override.value() == text


@pytest.mark.parametrize(
    "argument",
    [
        "phase=0", "phase=0,1,2", "phase.epochs=3", "~phase.lr", "+a.b=[1,2]", "a={b:1}", "a=",
        "x='q (1)'", "images=[a,b]", "images=choice(a,b)", "images=null", "a=${b}", "-m",
        "--config-dir=é", "é", "a b=é",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [[], ["-m"], ["hydra.mode=MULTIRUN"]])
def test_what_hydra_understands_or_explains_stays_as_typed(argument: str, mode: list[str]) -> None:
    assert cli.quote_overrides([argument, *mode]) == [argument, *mode]
    assert cli.quote_overrides(cli.quote_overrides(["x=é"])) == ["x='é'"]


def test_a_sweep_over_odd_names_stays_a_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.quote_overrides(["-m", "images=é.jpg,b.jpg"]) == ["-m", "images='é.jpg',b.jpg"]
    assert cli.quote_overrides(["-m", "images=a,b"]) == ["-m", "images=a,b"]
    (tmp_path / "é, b.jpg").touch()
    assert cli.quote_overrides(["-m", "images=é, b.jpg"]) == ["-m", "images='é, b.jpg'"]


def test_a_home_folder_is_found_behind_the_equals_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/zoë")
    assert compose("train", ["data.root=~/photos"]).data.root == "/home/zoë/photos"


def test_names_of_digits_are_text_where_files_are_named() -> None:
    cfg = compose("predict", ["images=1234", "map=5", "out=1e3", "name=2024", "batch_size=8"])
    assert (cfg.images, cfg.map, cfg.out, cfg.name) == ("1234", "5", "1e3", "2024")
    assert cfg.batch_size == 8


def test_errors_of_loader_processes_lose_their_traceback() -> None:
    original = "Cannot read the photo a.jpg: broken.\nIt was: geopak."
    try:
        raise PhotoError(original)
    except PhotoError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(PhotoError, match="Traceback") as caught:
        wrapped.reraise()
    assert str(cli.as_geopak_error(caught.value)) == original


def test_a_defect_keeps_its_traceback() -> None:
    assert cli.as_geopak_error(ValueError("defect")) is None
    error = ConfigError("plain")
    assert cli.as_geopak_error(error) is error


def test_a_key_may_have_the_name_of_another_commands_group() -> None:
    assert compose("evaluate", ["split=val"]).split == "val"
    assert compose("prepare", ["split=random"]).split.method == "random"
    assert compose("train", ["phase=2"]).phase.index == 2
    for command, override in (
        ("prepare", "split=nowhere"), ("evaluate", "phase=2"), ("train", "split=random"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            compose(command, [override])


def test_the_single_runs_of_a_multirun_are_those_of_hydra() -> None:
    one = ["phase=1", "experiment=pakistan", "trainer.devices=2"]
    assert cli.split_jobs(one) == [one]
    assert cli.split_jobs([]) == [[]]
    assert cli.split_jobs(["-m", "phase=0,1,2", "seed=3"]) == [
        [f"phase={phase}", "seed=3"] for phase in (0, 1, 2)
    ]
    assert cli.split_jobs(["seed=1,2", "phase=0,1", "--multirun"]) == [
        ["seed=1", "phase=0"], ["seed=1", "phase=1"], ["seed=2", "phase=0"], ["seed=2", "phase=1"],
    ]  # fmt: skip
    assert cli.split_jobs(["-m", "images=[a,b]"]) == [["images=[a,b]"]]
    with pytest.raises(ConfigError, match="--help is not an override"):
        cli.split_jobs(["--help"])
    with pytest.raises(ConfigError, match="phase"):
        cli.split_jobs(["-m", "phase"])


@pytest.mark.parametrize("value", ["2.0", "true"])
def test_a_group_takes_no_number_with_a_fraction_and_no_truth(value: str) -> None:
    with pytest.raises(ConfigError, match=f"phase={value}: a config group takes the name"):
        compose("train", [f"phase={value}"])


def test_a_group_of_another_command_is_an_unknown_key_of_this_one() -> None:
    with pytest.raises(ConfigError) as caught:
        compose("evaluate", ["phase=val", "splt=val", "split=val"])
    lines = str(caught.value).splitlines()
    assert [line.partition("Did")[0].strip() for line in lines] == [
        "Unknown configuration key 'phase'.",
        "Unknown configuration key 'splt'.",
    ]
    assert "'split' (conf/evaluate.yaml)" in lines[1].partition("Did")[2]


def test_a_sweep_over_files_is_refused_where_jobs_are_only_named() -> None:
    with pytest.raises(ConfigError, match=r"phase=glob\(\*\): name the values"):
        split_jobs(["-m", "phase=glob(*)"])


def test_arguments_without_a_key_become_the_list_of_a_command_that_has_one(tmp_path: Path) -> None:
    swept = tmp_path / "gate=0.1"
    swept.mkdir()
    (tmp_path / "IMG (1), it's").mkdir()
    typed = [
        "a/b", "--cfg", "job", str(swept), "split=val", "-m", "~paths", "+x=1",
        f"{tmp_path}/IMG (1), it's", "outputs/*/phase-1", "1234",
    ]  # fmt: skip
    named = cli.name_positional(typed, "runs")
    assert named[:-1] == ["--cfg", "job", "split=val", "-m", "~paths", "+x=1"]
    cfg = compose("compare", [named[-1]])
    assert list(cfg.runs) == [
        "a/b", str(swept), f"{tmp_path}/IMG (1), it's", "outputs/*/phase-1", "1234",
    ]  # fmt: skip
    assert cli.name_positional(["split=val"], "runs") == ["split=val"]
