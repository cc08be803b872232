"""What is left of a server's folder: nothing, however it ended."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from geopak.web.private_folder import private_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_nobody_else_looks_in_and_it_goes_with_the_server(temporary: Path) -> None:
    def serve() -> None:
        with private_folder() as folder:
            (folder / "a.jpg").write_bytes(b"x")
            assert (folder.parent.stat().st_mode & 0o777) == 0o700
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve()
    assert list(temporary.iterdir()) == []


def test_a_killed_servers_photos_go_with_the_next_and_a_living_ones_stay(temporary: Path) -> None:
    code = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from geopak.web.private_folder import private_folder\n"
        "with private_folder() as folder:\n"
        "    (folder / 'a.jpg').write_bytes(b'x'); print(folder, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(temporary)]
    servers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = []
    for server in servers:
        assert server.stdout is not None
        folders.append(Path(server.stdout.readline().strip()))
    killed, living = servers
    killed.kill()
    killed.wait(20)
    other = temporary / "geopak-app-of-another-kind"
    (other / "deep").mkdir(parents=True)
    (temporary / "elsewhere").mkdir()
    (temporary / "elsewhere/lock").write_text("kept")
    (temporary / "geopak-app-link").symlink_to(temporary / "elsewhere")
    assert (folders[0] / "a.jpg").is_file()
    with private_folder() as own:
        assert not folders[0].parent.exists()
        assert (folders[1] / "a.jpg").is_file()
        assert (other / "deep").is_dir()
        assert (temporary / "elsewhere/lock").read_text() == "kept"
        assert list(own.iterdir()) == []
    assert living.communicate("", 20) is not None
    assert not folders[1].parent.exists()
    assert killed.stdin is not None
    killed.stdin.close()
    assert killed.stdout is not None
    killed.stdout.close()
