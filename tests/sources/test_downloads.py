"""Names and contents of the files that are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from geopak.sources.downloads import file_stem, write_file


def test_names_of_files_are_ours_and_differ() -> None:
    stems = {
        file_stem(source, name)
        for source in ("a", "b")
        for name in ("1", "../../etc/passwd", "x" * 5000, "\0", "1 ", "é", "e\u0301")
    }
    assert len(stems) == 14
    assert all(len(stem) == 20 and stem.isalnum() for stem in stems)


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "x.csv"
    write_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("geopak.sources.downloads.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
