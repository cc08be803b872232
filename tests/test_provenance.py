"""A run says what it was made with."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from geopak import provenance

PACKAGE = Path(provenance.__file__).parent
REPOSITORY = PACKAGE.parents[1]


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, check=False)
    return done.stdout.decode().strip()


def test_the_command_is_as_typed() -> None:
    typed = [str(PACKAGE / "train.py"), "phase=2", "name=a b"]
    assert provenance.command_line(typed) == "python -m geopak.train phase=2 'name=a b'"
    assert provenance.command_line(["/opt/bin/geopak-train", "-m"]) == "geopak-train -m"


def test_versions_are_those_installed() -> None:
    found = provenance.versions()
    assert found["torch"] == metadata.version("torch")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_library_that_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "LIBRARIES", ("torch", "no-such-library"))
    assert set(provenance.versions()) == {"python", "geopak", "torch"}


@pytest.mark.skipif(not git("ls-files", "src/geopak/provenance.py"), reason="not a checkout")
def test_git_state_is_the_checkouts() -> None:
    state = provenance.git_state()
    assert state is not None
    assert state["commit"] == git("rev-parse", "HEAD")
    assert state["dirty"] == bool(git("status", "--porcelain", "--untracked-files=no"))
    assert bool(provenance.git_diff()) == state["dirty"]


def test_outside_of_a_checkout_there_is_no_git_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # As in a virtual environment inside somebody's own repository.
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.git_state() is None
    # Nor are changes in that repository taken for its own.
    commit = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "own.txt").write_text("before")
    subprocess.run([*commit, "add", "own.txt"], check=True)
    subprocess.run([*commit, "commit", "-q", "-m", "own"], check=True)
    (tmp_path / "own.txt").write_text("after")
    assert provenance.git_diff() == ""
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state() is None


def test_the_dataset_is_known_by_its_manifest(tmp_path: Path) -> None:
    assert provenance.dataset_state(tmp_path)["manifest_sha256"] is None
    (tmp_path / "manifest.json").write_bytes(b"{}")
    state = provenance.dataset_state(tmp_path)
    assert state == {
        "folder": str(tmp_path),
        "manifest_sha256": hashlib.sha256(b"{}").hexdigest(),
    }
