import os

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from geopak.data import photo_paths
from geopak.data.photo_paths import ResolvedPaths, _normal


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "a" / "deep").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.jpg").write_bytes(b"x")
    for name in ("a/1.jpg", "a/2.jpg", "b.jpg", "a/deep/3.jpg", "a/back\\slash.jpg"):
        (root / name).write_bytes(b"x")
    (root / "out").symlink_to(outside)
    (root / "out.jpg").symlink_to(outside / "x.jpg")
    (root / "in.jpg").symlink_to(root / "b.jpg")
    (root / "in").symlink_to(root / "a")
    (root / "gone.jpg").symlink_to(root / "nothing.jpg")
    (root / os.fsdecode(b"\xe4.jpg")).write_bytes(b"x")
    return root


EXPECTED = {
    "a/1.jpg": None,
    "./a//deep/../2.jpg": None,
    "a/back\\slash.jpg": None,
    "in.jpg": None,
    "in/1.jpg": None,
    "b.jpg/": None,
    "a": "file_missing",
    ".": "file_missing",
    "a/none.jpg": "file_missing",
    "A/1.jpg": "file_missing",
    "no/such/folder.jpg": "file_missing",
    "gone.jpg": "file_missing",
    "a\0b": "file_missing",
    "b.jpg/x.jpg": "file_missing",
    "x" * 5000: "file_missing",
    "\ufffd.jpg": "file_missing",
    "..": "path_outside_root",
    "../root/b.jpg": "path_outside_root",
    "a/../../x.jpg": "path_outside_root",
    "/etc/passwd": "path_outside_root",
    "C:\\x.jpg": "path_outside_root",
    "\\\\host\\x": "path_outside_root",
    "out/x.jpg": "path_outside_root",
    "out/none.jpg": "path_outside_root",
    "out.jpg": "path_outside_root",
}


def reasons(paths, root):
    resolved = ResolvedPaths(pd.Series(paths, dtype="string"), root)
    found = [None] * len(paths)
    for reason, rows, told in resolved.problems():
        for k, text in zip(rows.nonzero()[0], told, strict=True):
            assert found[k] is None
            assert repr(paths[k]) in text
            found[k] = reason
    return found, resolved.normal


@pytest.mark.parametrize("worth_listing", [1, 1000])
def test_every_guard_whether_folders_are_listed_or_not(root, monkeypatch, worth_listing):
    monkeypatch.setattr(photo_paths, "_WORTH_LISTING", worth_listing)
    found, normal = reasons(list(EXPECTED), root)
    assert dict(zip(EXPECTED, found, strict=True)) == EXPECTED
    assert normal[1] == "a/2.jpg"
    assert normal[5] == "b.jpg"


def test_a_folder_that_cannot_be_listed_is_looked_into_file_by_file(root, monkeypatch):
    monkeypatch.setattr(photo_paths, "_WORTH_LISTING", 1)

    def refuse(_):
        raise PermissionError

    monkeypatch.setattr(os, "scandir", refuse)
    found, _ = reasons(["a/1.jpg", "a/9.jpg"], root)
    assert found == [None, "file_missing"]


def test_windows_folders_get_a_hint(root):
    resolved = ResolvedPaths(pd.Series(["a\\1.jpg"], dtype="string"), root)
    (problem,) = resolved.problems()
    assert problem[2].item().endswith("write folders with /")


def test_a_listed_folder_is_not_searched_file_by_file(root, monkeypatch):
    for k in range(100):
        (root / "a" / f"n{k}.jpg").write_bytes(b"x")
    monkeypatch.setattr(ResolvedPaths, "_look_for", None)
    found, _ = reasons([f"a/n{k}.jpg" for k in range(100)], root)
    assert found == [None] * 100


@given(st.text(alphabet="a./é\n", min_size=1, max_size=12))
@example("./a/./b/../c//d/.")
@example("./.")
def test_normal_paths_are_those_of_the_standard_library(path):
    if path.startswith("/"):
        path = "a" + path
    assert _normal(pa.array([path], pa.large_string())).to_pylist() == [os.path.normpath(path)]
