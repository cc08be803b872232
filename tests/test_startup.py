"""What a process imports before it answers; ``benchmarks.startup`` measures how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from torch import nn

from geopak import cli
from geopak.build import build_model
from geopak.checkpoint import WithoutInitialisation
from geopak.cli import compose
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.options import plain

COMMANDS = (
    "train", "evaluate", "compare", "predict", "app", "prepare", "synthetic", "pretrain", "demo",
    "workspace", "ablations", "collect", "publish", "import_geopak",
)  # fmt: skip
HEAVY = (
    "torch", "torchvision", "lightning", "timm", "open_clip", "numpy", "scipy", "pandas", "pyarrow",
    "sklearn", "hdbscan", "matplotlib", "PIL", "shapely", "pyproj", "geopandas", "wandb", "rich",
    "torchmetrics", "webdataset", "modal", "dask",
)  # fmt: skip


def imported_by(code: str, names: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of some modules a new process has imported when it has run some code."""
    ending = f"import sys, json; print(json.dumps([m for m in {names!r} if m in sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ending}"], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_the_package_alone_imports_no_library() -> None:
    assert imported_by("import geopak; geopak.__version__", (*HEAVY, "hydra", "omegaconf")) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_library_that_only_the_work_needs(command: str) -> None:
    code = f"""
import sys
from geopak.{command} import main
sys.argv = ["geopak.{command}", "--help"]
try:
    main()
except SystemExit as stop:
    assert stop.code == 0
"""
    assert imported_by(code) == []


def test_encoders_leave_alone_what_their_libraries_can_do_without() -> None:
    # Installed here, as it is where others train text models: importing it takes seconds.
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    code = """
import geopak.models.encoders
from importlib.util import find_spec
# Still to be had by whoever asks next.
assert find_spec("transformers") and find_spec("wandb")
"""
    assert imported_by(code, ("transformers", "wandb")) == []


def test_help_lists_the_groups_that_hydra_itself_would_list() -> None:
    original = ConfigLoaderImpl.get_group_options.__wrapped__
    with cli._hydra_initialised():
        loader = GlobalHydra.instance().config_loader()
        groups = ["", "phase", "hydra", "hydra/launcher", "nowhere"]
        for group in groups:
            for kind in (ObjectType.GROUP, ObjectType.CONFIG):
                asked = loader.get_group_options(group, kind)
                assert asked == original(loader, group, kind)
        assert loader.get_group_options("phase") == ["0", "1", "2"]
        # Where overrides may add places to look at, Hydra answers.
        elsewhere = [f"hydra.searchpath=[file://{cli.CONFIG_DIR / 'phase'}]"]
        more = loader.get_group_options("", ObjectType.CONFIG, "train", elsewhere)
        assert {"0", "1", "2"} <= set(more)
        assert "0" not in loader.get_group_options("", ObjectType.CONFIG)


def test_a_model_made_without_initialisation_has_the_same_shape_and_constants(
    cells: CellTable, region: Region
) -> None:
    cfg = compose("train")
    usual = build_model(plain(cfg.model), region, cells)
    with WithoutInitialisation():
        quick = build_model(plain(cfg.model), region, cells)
    shapes = {name: value.shape for name, value in usual.state_dict().items()}
    assert {name: value.shape for name, value in quick.state_dict().items()} == shapes
    saved = set(shapes)
    constants = {n: b for n, b in usual.named_buffers() if n not in saved}
    assert constants
    for name, value in quick.named_buffers():
        if name in constants:
            assert torch.equal(value, constants[name]), name
    quick.load_state_dict(usual.state_dict())
    image = torch.rand(2, 3, usual.image_size, usual.image_size)
    with torch.inference_mode():
        expected = usual.eval()(image).province_logits
        assert torch.equal(quick.eval()(image).province_logits, expected)


def test_weights_are_drawn_again_after_a_model_made_without_initialisation() -> None:
    with WithoutInitialisation():
        weight = torch.zeros(3)
        assert nn.init.normal_(weight) is weight
        assert nn.init.normal_(tensor=weight) is weight
        for draw in (nn.init.uniform_, nn.init.trunc_normal_):
            assert draw(weight) is weight
    assert weight.tolist() == [0, 0, 0]
    assert nn.init.normal_(weight).abs().sum() > 0
