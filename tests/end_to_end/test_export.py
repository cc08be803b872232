"""A checkpoint taken elsewhere answers as it did at home."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from geopak import GeopakPredictor
from geopak.build import build_model
from geopak.checkpoint import read_checkpoint
from geopak.errors import CheckpointError, ExportError
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.models.decode import MEAN_OF_DEGREES, REGRESSION, RULES
from geopak.results import Prediction
from geopak.trained import load_trained

from .conftest import Outcome, run_command

onnx = pytest.importorskip("onnx")
CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="module")
def calibrated(phases: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phase 2's checkpoint with a calibration and, beside it, its report on test."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint = folder / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir()
    done = run_command("calibrate", f"ckpt={phases[2]}", f"out={checkpoint}")
    assert done.status == 0, done.text
    done = run_command("evaluate", f"ckpt={checkpoint}", "bootstrap_resamples=20")
    assert done.status == 0, done.text
    return checkpoint


@pytest.fixture(scope="module")
def photos(home: Path) -> list[Path]:
    return sorted((home / "data/synthetic/photos").rglob("*.jpg"))[:9]


def assert_same(want: list[Any], got: list[Any]) -> None:
    for a, b in zip(want, got, strict=True):
        assert isinstance(a, Prediction)
        assert isinstance(b, Prediction)
        assert a.province == b.province
        assert [h.cell_id for h in a.hypotheses] == [h.cell_id for h in b.hypotheses]
        for key in ("lat", "lon", "confidence", "answer_score", "gate"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), key
        assert a.region == b.region or a["region"]["cell_ids"] == b["region"]["cell_ids"]


@pytest.fixture(scope="module")
def exported(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("onnx") / "model.onnx"
    done = run_command("export", f"ckpt={calibrated}", f"out={out}", "rule=argmax", "coverage=0.8")
    assert done.status == 0, done.text
    return out, done


def largest_difference(done: Outcome) -> float:
    """What the command said, once the lines per output agree with it."""
    found = re.search(r"largest difference from the checkpoint: (\S+) \((\d+) answers\)", done.text)
    assert found, done.text
    lines = re.findall(r"^  \S+(?: \(relative\))?: (\S+)$", done.text, re.M)
    assert len(lines) >= 7
    assert max(map(float, lines)) == float(found[1])
    assert int(found[2]) >= 6
    return float(found[1])


def answers_of(path: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """What a stranger gets with ONNX Runtime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": image}), strict=True))


def test_an_onnx_file_answers_as_the_predictor(
    exported: tuple[Path, Outcome], calibrated: Path
) -> None:
    out, done = exported
    assert [p.name for p in out.parent.iterdir()] == ["model.onnx"]
    assert largest_difference(done) < 1e-4
    predictor = GeopakPredictor(calibrated, device="cpu", rule="argmax", coverage=0.8)
    names = predictor.trained.region.names
    rng = np.random.default_rng(3)
    for num, height, width in ((1, 64, 64), (7, 90, 120), (2, 33, 76), (1, 1500, 2001)):
        image = rng.integers(0, 256, (num, height, width, 3), dtype=np.uint8)
        found = answers_of(out, image)
        want = predictor.predict(list(image))
        assert len(found["latlon_deg"]) == num
        for k, answer in enumerate(want):
            assert isinstance(answer, Prediction)
            assert found["latlon_deg"][k] == pytest.approx([answer.lat, answer.lon], abs=1e-4)
            assert found["confidence"][k] == pytest.approx(answer.confidence, abs=1e-4)
            assert found["answer_score"][k] == pytest.approx(answer.answer_score, abs=1e-4)
            assert names[found["province_probability"][k].argmax()] == answer.province
            ids = found["hypothesis_cell_id"][k][found["hypothesis_probability"][k] > 0]
            assert ids.tolist() == [h.cell_id for h in answer.hypotheses]
            assert answer.region is not None
            assert set(np.flatnonzero(found["cell_in_region"][k])) == set(answer.region.cell_ids)
            assert found["region_area_km2"][k] == pytest.approx(answer.region.area_km2, rel=1e-5)


def test_an_onnx_file_says_what_its_numbers_mean(
    exported: tuple[Path, Outcome], calibrated: Path
) -> None:
    model = onnx.load(exported[0])
    said = json.loads({entry.key: entry.value for entry in model.metadata_props}["geopak"])
    trained = load_trained(calibrated)
    assert said["provinces"] == list(trained.region.names)
    assert said["cells"]["latitude"] == trained.cells.center_latlon_deg[:, 0].tolist()
    assert (said["rule"], said["coverage"], said["calibrated"]) == ("argmax", 0.8, True)
    assert said["framing"] == "crop"
    assert "the middle square" in said["input"]
    (image,) = model.graph.input
    dims = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert dims == ["batch", "height", "width", 3]


def test_a_wrong_export_is_no_export(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopak.exporting import comparing, onnx_model

    def nothing(trained: Any, path: Path, *_: Any) -> None:
        path.write_bytes(b"")

    class Wrong(comparing.Session):
        def __init__(self, path: Path) -> None:
            self.predictor = GeopakPredictor(calibrated, device="cpu", rule="argmax")

        def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
            parts = comparing.arrays_of(self.predictor.predict(list(image)))
            parts["latlon_deg"] = parts["latlon_deg"] + 0.001
            return parts

    monkeypatch.setattr(onnx_model, "write_onnx", nothing)
    monkeypatch.setattr(comparing, "Session", Wrong)
    done = run_command("export", f"ckpt={calibrated}", f"out={tmp_path}/m.onnx", "rule=argmax")
    assert done.status == 2
    assert "latlon_deg differs by 0.001" in done.text
    assert "Nothing is written" in done.text
    assert not list(tmp_path.iterdir())


def test_a_wrong_folder_does_not_take_the_place_of_a_right_one(
    phases: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopak.predictor import GeopakPredictor as Predictor

    arguments = (f"ckpt={phases[2]}", "format=safetensors", f"out={tmp_path}/m")
    assert run_command("export", *arguments).status == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    save = Predictor._save_pretrained

    def save_another(self: Predictor, save_directory: Path) -> None:
        with torch.no_grad():
            self.trained.model.province_head.layers[4].bias[0] += 1
            save(self, save_directory)
            self.trained.model.province_head.layers[4].bias[0] -= 1

    monkeypatch.setattr(Predictor, "_save_pretrained", save_another)
    done = run_command("export", *arguments)
    assert done.status == 2
    assert "answers otherwise than the checkpoint" in done.text
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before


def test_safetensors_come_back_as_the_same_predictor(
    calibrated: Path, photos: list[Path], tmp_path: Path
) -> None:
    done = run_command("export", f"ckpt={calibrated}", "format=safetensors", f"out={tmp_path}/m")
    assert done.status == 0, done.text
    assert largest_difference(done) < 1e-4
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    want = GeopakPredictor(calibrated, device="cpu").predict(photos)
    for path in (tmp_path / "m", tmp_path / "m" / "model.safetensors"):
        assert_same(want, GeopakPredictor(path, device="cpu").predict(photos))
    ours, theirs = (load_trained(p).model.state_dict() for p in (calibrated, tmp_path / "m"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_folder_that_holds_other_files_is_not_written_into(
    calibrated: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    done = run_command("export", f"ckpt={calibrated}", "format=safetensors", f"out={tmp_path}")
    assert done.status == 2
    assert "thesis.tex" in done.text
    done = run_command("export", f"ckpt={calibrated}", f"out={tmp_path}")
    assert done.status == 2
    assert f"{tmp_path} is a folder" in done.text
    for kind in ("onnx", "safetensors"):
        out = tmp_path / "thesis.tex" / kind / "model"
        done = run_command("export", f"ckpt={calibrated}", f"format={kind}", f"out={out}")
        assert done.status == 2
        assert f"out={out} cannot be written" in done.text
    done = run_command("export", f"ckpt={calibrated}", "format=safetensors", "precision=int8")
    assert done.status == 2
    assert "precision=int8 is for format=onnx" in done.text


def test_the_hubs_three_methods(
    calibrated: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    predictor = GeopakPredictor(calibrated, device="cpu")
    predictor.save_pretrained(tmp_path / "saved")
    back = GeopakPredictor.from_pretrained(tmp_path / "saved", device="cpu", abstain_below=1.0)
    assert back.abstain_below == 1.0
    assert_same(predictor.predict(photos), back.predict(photos))
    # The card goes along.
    back.save_pretrained(tmp_path / "again")
    cards = [(tmp_path / n / "README.md").read_text() for n in ("saved", "again")]
    assert cards[0] == cards[1]

    class Created:
        repo_id = "someone/where"

    uploads: list[dict[str, Any]] = []

    def upload(self: HfApi, *, folder_path: Path, **more: Any) -> str:
        shutil.copytree(folder_path, tmp_path / "hub")
        uploads.append(more)
        return "commit"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **_: Created)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert predictor.push_to_hub("where") == "commit"
    assert uploads[0]["repo_id"] == "someone/where"
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download",
        lambda repo_id, filename, **_: str(tmp_path / "hub" / filename),
    )
    monkeypatch.setattr("geopak.predictor.snapshot_download", lambda *_, **__: tmp_path / "hub")
    fetched = GeopakPredictor.from_pretrained(
        "someone/where", device="cpu", local_files_only=True, revision="main"
    )
    assert_same(predictor.predict(photos[:2]), fetched.predict(photos[:2]))
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        GeopakPredictor.from_pretrained(tmp_path, device="cpu")
    refused = run_command("calibrate", f"ckpt={tmp_path / 'hub'}")
    assert (refused.status, "out=FILE.ckpt" in refused.text) == (2, True), refused.text


def test_the_card_says_what_the_report_says(
    calibrated: Path, phases: dict[int, Path], home: Path, tmp_path: Path
) -> None:
    predictor = GeopakPredictor(calibrated, device="cpu")
    report = json.loads((calibrated.parents[1] / "report-test/report.json").read_text())
    card = predictor.generate_model_card().text
    lines = card.splitlines()
    for province in report["per_province"].values():
        (row,) = (
            line for line in lines if line.startswith(f"| {province['name']} | ") and "(" in line
        )
        cells = [c.strip() for c in row.strip("|").split("|")]
        assert cells[1] == str(province["num_photos"])
        assert cells[2].startswith(f"{province['median_km']['value']:.1f} (")
        assert cells[3] == f"{province['baselines']['densest_cell']['median_km']['value']:.1f}"
    assert f"| {report['end_to_end']['median_km']['value']:.1f} (" in card
    for part in ("## Intended use", "## Misuse", "## Limits", "## Data", "densest cell"):
        assert part in card
    # Of another split the figures would flatter; without a report nothing is claimed.
    report["context"]["split"] = "val"
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ExportError, match="of the val split"):
        predictor.generate_model_card(tmp_path / "report.json")
    with pytest.raises(ExportError, match="no report"):
        predictor.generate_model_card(tmp_path / "none.json")
    bare = tmp_path / "checkpoints" / "best.ckpt"
    bare.parent.mkdir()
    shutil.copy(calibrated, bare)
    assert (
        "has not been evaluated" in GeopakPredictor(bare, device="cpu").generate_model_card().text
    )
    # Nor are figures taken of a model that answers otherwise.
    shutil.copytree(calibrated.parents[1] / "report-test", tmp_path / "report-test")
    assert "densest cell" in GeopakPredictor(bare, device="cpu").generate_model_card().text
    shutil.copy(phases[2], bare)
    other = GeopakPredictor(bare, device="cpu")
    assert "has not been evaluated" in other.generate_model_card().text
    with pytest.raises(ExportError, match="is of another model"):
        other.generate_model_card(tmp_path / "report-test")
    done = run_command(
        "export", f"ckpt={calibrated}", "format=safetensors", f"out={tmp_path}/m",
        f"root={home}/data/synthetic", f"prepared={home}/data/synthetic/prepared",
        "license=cc-by-4.0",
    )  # fmt: skip
    assert done.status == 0, done.text
    text = (tmp_path / "m" / "README.md").read_text()
    assert "Licences of the photos" in text
    assert "## Licence\ncc-by-4.0" in text


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted({*RULES, MEAN_OF_DEGREES, REGRESSION} - {"argmax"}))
def test_every_rule(phases: dict[int, Path], tmp_path: Path, rule: str) -> None:
    out = tmp_path / "m.onnx"
    done = run_command("export", f"ckpt={phases[2]}", f"out={out}", f"rule={rule}")
    assert done.status == 0, done.text
    assert largest_difference(done) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_smaller_numbers_say_what_they_cost(
    calibrated: Path, home: Path, tmp_path: Path, precision: str
) -> None:
    whole = tmp_path / "whole.onnx"
    assert run_command("export", f"ckpt={calibrated}", f"out={whole}", "rule=argmax").status == 0
    out = tmp_path / "m.onnx"
    done = run_command(
        "export", f"ckpt={calibrated}", f"out={out}", "rule=argmax", f"precision={precision}",
        f"root={home}/data/synthetic", f"prepared={home}/data/synthetic/prepared",
    )  # fmt: skip
    assert done.status == 0, done.text
    # Of a tiny model the graph itself is most of the file.
    assert out.stat().st_size < whole.stat().st_size
    assert "on 36 val photos" in done.text
    agreed = re.search(
        r"same province (\S+)%, same cell (\S+)%; answers move by (\S+) km", done.text
    )
    assert agreed, done.text
    assert float(agreed[1]) >= (90 if precision == "float16" else 50)
    error = re.search(r"median error (\S+) km before, (\S+) km after", done.text)
    assert error, done.text
    assert float(error[1]) == pytest.approx(float(error[2]), abs=50)
    products = sum(node.op_type == "MatMulInteger" for node in onnx.load(out).graph.node)
    # Of each of four blocks: queries, keys and values at once, and both layers of the perceptron.
    assert products == (12 if precision == "int8" else 0)
    half = [t for t in onnx.load(out).graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert (len(half) > 20) == (precision == "float16")


@pytest.fixture(scope="module")
def full_size(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B/16 and ResNet-50 with random weights over the tiny set's cells."""
    checkpoint = read_checkpoint(calibrated)
    identity = checkpoint["geopak"]
    identity.pop("calibration")
    parts = [OmegaConf.load(CONF / f"model/{name}.yaml") for name in ("tiny", "clip_places365")]
    config: Any = OmegaConf.to_container(OmegaConf.merge(*parts))
    config["scene"]["shape"]["options"] = None
    identity["model"] = config
    torch.manual_seed(0)
    model = build_model(
        config, Region.from_dict(identity["region"]), CellTable.from_dict(identity["cells"])
    )
    out = tmp_path_factory.mktemp("full") / "full.ckpt"
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"geopak": identity, "state_dict": state}, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_full_size(full_size: Path, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "m.onnx"
    arguments = (f"ckpt={full_size}", f"out={out}", "check_photos=6", f"precision={precision}")
    done: Outcome = run_command("export", *arguments)
    assert done.status == 0, done.text
    if precision == "float32":
        assert largest_difference(done) < 1e-4
