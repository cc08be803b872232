"""A stand-in for the hub of Hugging Face: data sets that are read, made and written.

Answers what ``huggingface_hub`` asks when ``datasets`` opens a data set by name and when a folder
is uploaded: https://huggingface.co/docs/hub/api and, for the commit's lines, the documented client
(``HfApi.create_commit``). Files are sent with the commit: large-file storage is not stood in for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from .stand_in import Reply, Request, StandIn, as_json


def commit_of(number: int) -> str:
    """The name of a commit."""
    return hashlib.sha1(str(number).encode()).hexdigest()


@dataclass
class Hub:
    """Data sets by name, each a list of commits: path in it -> content.

    Attributes:
        token: that is asked for; ``None``: everything is open.
    """

    sets: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    token: str | None = None

    def add(self, name: str, folder: Path) -> str:
        """A commit of a folder's files; its name."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.sets.setdefault(name, []).append(files)
        return commit_of(len(self.sets[name]) - 1)

    def answer(self, request: Request) -> Reply:
        """What the hub says."""
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return _error(401, "RepoNotFound")
        path = request.path
        if path == "/api/repos/create":
            asked = request.json()
            name = f"{asked['organization']}/{asked['name']}"
            self.sets.setdefault(name, [{}])
            return as_json({"url": f"http://{request.headers['host']}/datasets/{name}"})
        if path == "/api/validate-yaml":
            return as_json({"errors": [], "warnings": []})
        if path == "/api/whoami-v2":
            return as_json({"name": "me", "type": "user", "orgs": []})
        found = re.fullmatch(r"(?:/api)?/datasets/([^/]+/[^/]+)(?:/(.*))?", path)
        if not found or found[1] not in self.sets:
            return _error(404, "RepoNotFound")
        name, rest = found[1], found[2] or ""
        action, _, more = rest.partition("/")
        if action == "commit":
            return self._committed(name, request)
        if action == "preupload":
            files = request.json()["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            return as_json({"files": [m | {"shouldIgnore": False} for m in modes]})
        revision, _, inner = (more or "main").partition("/")
        commit = self._commit(name, revision)
        if commit is None:
            return _error(404, "RevisionNotFound")
        files = self.sets[name][commit]
        if action == "resolve":
            return _resolved(files, inner, commit_of(commit), request)
        if action == "tree":
            return as_json(_tree(files, inner, request.query.get("recursive") == "true"))
        if action == "paths-info":
            return as_json([e for p in _asked_paths(request) for e in _entries(files, p)])
        if action in ("", "revision"):
            siblings = [{"rfilename": path} for path in files]
            return as_json(
                {"id": name, "sha": commit_of(commit), "private": False, "gated": False,
                 "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
            )  # fmt: skip
        return _error(404, "EntryNotFound")

    def _commit(self, name: str, revision: str) -> int | None:
        commits = range(len(self.sets[name]))
        if revision == "main":
            return commits[-1]
        return next((k for k in commits if commit_of(k) == revision), None)

    def _committed(self, name: str, request: Request) -> Reply:
        files = dict(self.sets[name][-1])
        for line in request.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        self.sets[name].append(files)
        commit = commit_of(len(self.sets[name]) - 1)
        url = f"http://{request.headers['host']}/datasets/{name}/commit/{commit}"
        return as_json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


def _error(status: int, code: str) -> Reply:
    return as_json({"error": code}, status, headers={"X-Error-Code": code})


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entries(files: Mapping[str, bytes], path: str) -> Iterator[dict[str, Any]]:
    if path in files:
        content = files[path]
        yield {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    elif any(name.startswith(f"{path}/") for name in files):
        yield {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}


def _tree(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    before = f"{folder}/" if folder else ""
    names = [name.removeprefix(before) for name in files if name.startswith(before)]
    inner: dict[str, None] = {}
    for name in names:
        parts = name.split("/")
        for depth in range(1, len(parts) + 1 if recursive else 2):
            inner["/".join(parts[:depth])] = None
    return [entry for name in inner for entry in _entries(files, before + name)]


def _asked_paths(request: Request) -> list[str]:
    if "json" in request.headers.get("content-type", ""):
        paths = request.json()["paths"]
        return paths if isinstance(paths, list) else [paths]
    return parse_qs(request.body.decode()).get("paths", [])


def _resolved(files: Mapping[str, bytes], path: str, commit: str, request: Request) -> Reply:
    if path not in files:
        return _error(404, "EntryNotFound")
    content = files[path]
    headers = {"X-Repo-Commit": commit, "ETag": f'"{_blob(content)}"', "Accept-Ranges": "bytes"}
    part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if part is None:
        return Reply(content, headers=headers)
    first, last = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Reply(content[first : last + 1], 206, headers=headers)


@contextmanager
def running(hub: Hub) -> Iterator[StandIn]:
    """The hub on a socket."""
    with StandIn(hub.answer) as server:
        yield server
