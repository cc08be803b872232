"""The commands from elsewhere: another working directory, and a built wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("GEOPAK_HOME", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_phase_is_chosen_by_number_from_any_directory(tmp_path: Path) -> None:
    done = run(["-m", "geopak.train", "phase=2", "phase.lr.heads=3e-4", "--cfg", "job"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "vision adaptation" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def wheel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    arguments = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = run(arguments, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_carries_configuration_and_assets(wheel_folder: Path, tmp_path: Path) -> None:
    for name in ("conf/train.yaml", "conf/phase/2.yaml", "assets/outlines/pakistan.geojson"):
        assert (wheel_folder / "geopak" / name).is_file()
    done = run(["-m", "geopak.train", "phase=1"], tmp_path, PYTHONPATH=str(wheel_folder))
    # Installed elsewhere, the working directory is the home.
    assert done.returncode == 2, done.stderr
    assert str(tmp_path / "outputs") in done.stderr
    assert "python -m geopak.train phase=0" in done.stderr


def test_import_is_light(tmp_path: Path) -> None:
    code = "import sys, geopak; assert 'torch' not in sys.modules; print(geopak.__version__)"
    done = run(["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
