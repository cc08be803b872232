"""A checkpoint's content as JSON and safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from geopak.errors import CheckpointError
from geopak.model_folder import read_model_folder, write_model_folder

IDENTITY = {
    "format": 1,
    "nested": {"numbers": [1, 2.5, None, True], "tensor": torch.arange(3)},
    "list": [{"deep": torch.tensor([[True, False]])}, "text"],
    "scalar": torch.tensor(0.1, dtype=torch.float64),
}
STATE = {
    "conv.weight": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "count": torch.tensor(7),
}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_everything_comes_back_by_folder_and_by_file(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "m", IDENTITY, STATE)
    for path in (tmp_path / "m", tmp_path / "m" / "model.safetensors"):
        read = read_model_folder(path)
        assert same(read["geopak"], IDENTITY)
        assert same(read["state_dict"], {f"model.{k}": v for k, v in STATE.items()})
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors"}


def test_tensors_that_share_memory_are_written_both(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    write_model_folder(tmp_path, {"part": whole[:2]}, {"whole": whole})
    read = read_model_folder(tmp_path)
    assert read["geopak"]["part"].tolist() == [0, 1]
    assert read["state_dict"]["model.whole"].tolist() == list(range(6))


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        read_model_folder(tmp_path)
    write_model_folder(tmp_path, IDENTITY, STATE)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text[:40])
    with pytest.raises(CheckpointError, match=r"config\.json is no description"):
        read_model_folder(tmp_path)
    config.write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r"config\.json is no description"):
        read_model_folder(tmp_path)
    other = {**IDENTITY, "more": torch.zeros(1)}
    write_model_folder(tmp_path / "other", other, STATE)
    config.write_text((tmp_path / "other" / "config.json").read_text())
    with pytest.raises(CheckpointError, match="different models"):
        read_model_folder(tmp_path)
    config.write_text(text)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_model_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        read_model_folder(tmp_path)
