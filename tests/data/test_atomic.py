"""A folder that is replaced whole: seen old or new, never in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geopak.data.atomic import replaced_folder
from geopak.errors import PreparedSetError


def hidden(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.name.startswith(".")}


def fill(out: Path, text: str) -> None:
    with replaced_folder(out) as folder:
        (folder / "content").write_text(text)


def fail_halfway(out: Path) -> None:
    with replaced_folder(out) as folder:
        (folder / "content").write_text("half")
        raise OSError("disk full")


def test_makes_and_replaces(tmp_path: Path) -> None:
    out = tmp_path / "a" / "set"
    fill(out, "one")
    assert (out / "content").read_text() == "one"
    (out / "stray").write_text("")
    fill(out, "two")
    assert [p.name for p in out.iterdir()] == ["content"]
    assert (out / "content").read_text() == "two"
    assert hidden(out.parent) <= {".set.lock"}


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "set"
    fill(out, "one")
    with pytest.raises(OSError, match="disk full"):
        fail_halfway(out)
    assert (out / "content").read_text() == "one"
    assert hidden(tmp_path) <= {".set.lock"}


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "set"
    with replaced_folder(out) as folder:
        (folder / "content").write_text("first")
        with pytest.raises(PreparedSetError, match="Another process is preparing"):
            fill(out, "second")
    assert (out / "content").read_text() == "first"


CHILD = """
import sys, time
from pathlib import Path
from geopak.data.atomic import replaced_folder
with replaced_folder(sys.argv[1]) as folder:
    (folder / "content").write_text("unfinished")
    Path(sys.argv[2]).write_text("")
    time.sleep(60)
"""


def test_a_killed_run_leaves_the_old_folder_and_the_next_clears_up(tmp_path: Path) -> None:
    out, started = tmp_path / "set", tmp_path / "started"
    fill(out, "one")
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(out), str(started)])
    try:
        until = time.monotonic() + 30
        while not started.exists() and time.monotonic() < until:
            time.sleep(0.02)
        with pytest.raises(PreparedSetError, match="Another process"):
            fill(out, "meanwhile")
    finally:
        child.kill()
        child.wait()
    assert (out / "content").read_text() == "one"
    assert ".set.new" in hidden(tmp_path)
    fill(out, "two")
    assert (out / "content").read_text() == "two"
    assert hidden(tmp_path) <= {".set.lock"}


def test_a_run_killed_between_the_renames_is_mended(tmp_path: Path) -> None:
    out = tmp_path / "set"
    fill(out, "one")
    os.rename(out, tmp_path / ".set.old")
    with pytest.raises(OSError, match="disk full"):
        fail_halfway(out)
    assert (out / "content").read_text() == "one"


def test_a_record_is_replaced_whole_by_whoever_writes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    program = (
        "import sys; from pathlib import Path; from geopak.data.atomic import write_json\n"
        "for n in range(200): write_json(Path(sys.argv[1]), {'text': 'é' * 500, 'n': n})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert json.loads(path.read_text("utf-8")) == {"text": "é" * 500, "n": 199}
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]
