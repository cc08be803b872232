"""Data sets by name, read from a hub and put on it over real connections."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .hub_server import Hub, running
from .hub_sets import card_naming, image_folder, picture, rows_of, write_parquet
from .stand_in import Reply, StandIn

pytestmark = pytest.mark.usefixtures("offline_hub")


# Runs in a process of its own: the address of the hub is read when its client is imported.
SCRIPT = """
import json, sys
from pathlib import Path
from urllib.parse import unquote, urlsplit
import hashlib
from geopak.errors import GeopakError
from geopak.cli import compose
from geopak.options import options, plain
from tests.sources.asking import ask_everything, located
from tests.sources.hub_sets import source_of
out = []
for job in json.loads(sys.argv[1]):
    try:
        if job["do"] == "publish":
            from geopak.schema.publishing import PublishConfig
            from geopak.sources.publishing import publish
            cfg = plain(compose("publish", job["overrides"]))
            cfg.pop("hydra", None)
            out.append(publish(options(PublishConfig, cfg, "")))
        else:
            source = source_of(job["dataset"], **job.get("options", {}))
            asked = ask_everything(source)
            pictures = {}
            for photo in asked.photos:
                content = Path(unquote(urlsplit(located(source, photo)).path)).read_bytes()
                pictures[photo.source_id] = hashlib.sha256(content).hexdigest()
            revisions = sorted({str(q.params["revision"]) for q in asked.asked[1:]})
            out.append({"pictures": pictures, "revisions": revisions})
    except GeopakError as error:
        out.append({"error": f"{type(error).__name__}: {error}"})
print(json.dumps(out))
"""


def with_hub(url: str, token: str | None, tmp_path: Path, *jobs: dict[str, Any]) -> list[Any]:
    """What jobs in a new process say, whose hub is at an address."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]),
    }  # fmt: skip
    if token:
        environment["HF_TOKEN"] = token
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(jobs)],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert not token or token.strip() not in ran.stdout + ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def hashes(numbers: range, name: str) -> dict[str, str]:
    return {f"{name}/{k:03d}": hashlib.sha256(picture(k)).hexdigest() for k in numbers}


def test_sets_by_name_over_a_socket(parquet_set, tmp_path):
    hub = Hub(token="hf_secretsecret")
    first = hub.add("me/parquet", parquet_set)
    write_parquet(parquet_set / "data" / "test-00000-of-00001.parquet", rows_of(1, 50), 4)
    second = hub.add("me/parquet", parquet_set)
    hub.add("me/files", image_folder(tmp_path / "folder", 5))
    table = tmp_path / "folder" / "table.csv"
    lines = ["id,path,latitude,longitude,license"]
    lines += [f"{k},train/é {k:03d}.jpg,24.5,67.{k},cc0" for k in range(5)]
    table.write_text("\n".join(lines))
    with running(hub) as server:
        read = {"do": "read"}
        publishing = [
            f"root={tmp_path / 'folder'}", f"table={table}", "repo=me/new", "push=true",
        ]  # fmt: skip
        got = with_hub(
            server.url,
            "hf_secretsecret",
            tmp_path,
            read | {"dataset": "me/parquet"},
            read | {"dataset": "me/parquet", "options": {"revision": first}},
            read | {"dataset": "me/files"},
            read | {"dataset": "me/nowhere"},
            read | {"dataset": "me/parquet", "options": {"revision": "0" * 40}},
            {
                "do": "publish",
                "overrides": [*publishing, f"to={tmp_path / 'a'}", "format=imagefolder"],
            },
            {"do": "publish", "overrides": [*publishing, f"to={tmp_path / 'b'}", "format=parquet"]},
            read | {"dataset": "me/new"},
        )
        [refused] = with_hub(server.url, None, tmp_path, read | {"dataset": "me/parquet"})
    assert got[0] == {
        "pictures": hashes(range(17), "me/parquet") | hashes(range(50, 51), "me/parquet"),
        "revisions": [second],
    }
    assert got[1] == {"pictures": hashes(range(20), "me/parquet"), "revisions": [first]}
    assert got[2]["pictures"] == hashes(range(5), "me/files")
    assert "SourceError" in got[3]["error"]
    assert "there is none of that name, or it is private" in got[3]["error"]
    assert "SourceError" in got[4]["error"]
    assert "has no such revision on the hub" in got[4]["error"]
    assert got[5]["splits"] == got[6]["splits"] == {"train": 5}
    # The second commit has taken the files of the first away.
    published = hub.sets["me/new"]
    assert {name.partition("/")[0] for name in published[-1]} >= {"README.md", "data"}
    assert [n for n in published[-1] if n.startswith("data/")] == [
        "data/train-00000-of-00001.parquet"
    ]
    assert any(name.endswith("metadata.parquet") for name in published[1])
    assert sorted(got[7]["pictures"].values()) == sorted(hashes(range(5), "x").values())
    assert "no token is in HF_TOKEN" in refused["error"]


def test_sets_and_tokens_that_the_hub_is_not_given(parquet_set, tmp_path):
    """A card that names other files, a token with a line break, a hub that breaks off."""
    hub = Hub(token="hf_secretsecret")
    with StandIn(lambda _: Reply()) as private:
        (parquet_set / "README.md").write_text(card_naming(f"{private.url}/x.parquet"))
        hub.add("evil/set", parquet_set)
        (parquet_set / "README.md").unlink()
        hub.add("me/good", parquet_set)
        table = tmp_path / "table.csv"
        (tmp_path / "a.jpg").write_bytes(picture(1))
        table.write_text("id,path,latitude,longitude,license\n1,a.jpg,24.5,67.1,cc0\n")
        given = [f"root={tmp_path}", f"table={table}", f"to={tmp_path / 'to'}", "push=true"]
        read = {"do": "read"}

        def answer(request):
            broken = request.path == "/api/repos/create" and b"nowhere" in request.body
            return Reply(cut_after=0) if broken else hub.answer(request)

        with StandIn(answer) as server:
            evil, good, nowhere, pushed = with_hub(
                server.url, "hf_secretsecret\n", tmp_path,
                read | {"dataset": "evil/set"}, read | {"dataset": "me/good"},
                {"do": "publish", "overrides": [*given, "repo=me/nowhere"]},
                {"do": "publish", "overrides": [*given, "repo=me/new"]},
            )  # fmt: skip
        assert "names a file that is not its own" in evil["error"]
        assert not private.requests
    assert len(good["pictures"]) == 20
    assert "The hub did not take me/nowhere" in nowhere["error"]
    assert pushed["url"]
