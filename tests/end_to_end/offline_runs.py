"""Reads the files of offline W&B runs with W&B's own reader, ``wandb leet inspect``."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class OfflineRun:
    """An offline run, as its file has it.

    Attributes:
        folder: ``offline-run-…``.
        records: all of them, in order.
    """

    folder: Path
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> OfflineRun:
        """Reads ``offline-run-…``."""
        (path,) = folder.glob("*.wandb")
        read = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        return cls(folder, [json.loads(line) for line in read.stdout.splitlines()])

    @classmethod
    def below(cls, run_folder: Path) -> list[OfflineRun]:
        """Those of a run folder, oldest first."""
        return [cls.read(f) for f in sorted(run_folder.glob("wandb/offline-run-*"))]

    def of_type(self, name: str) -> list[dict[str, Any]]:
        return [record[name] for record in self.records if record["type"] == name]

    @property
    def run(self) -> dict[str, Any]:
        (first, *_) = self.of_type("run")
        return first

    @property
    def config(self) -> dict[str, Any]:
        return self.run["config"]["update"]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows; media are spread over keys such as ``val/photos._type``."""
        return [record["item"] for record in self.of_type("history")]

    @property
    def keys(self) -> set[str]:
        """Names under which anything was logged."""
        names = {key for row in self.history for key in row}
        return {name.removesuffix("._type") for name in names}

    @property
    def summary(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for record in self.of_type("summary"):
            merged |= record["update"]
        return merged

    @property
    def artifacts(self) -> list[dict[str, Any]]:
        return self.of_type("artifact")

    def models(self, used: bool) -> list[dict[str, Any]]:
        """Model artifacts that the run uses, or makes."""
        return [
            a
            for a in self.artifacts
            if a["type"] == "model" and a.get("use_after_commit", False) is used
        ]

    def table(self, key: str) -> list[dict[str, Any]]:
        """Rows of the last table logged under a key, from the copy that waits to be uploaded."""
        name = f"{key}.table.json"
        (*_, entry) = [
            entry
            for artifact in self.artifacts
            for entry in artifact["manifest"]["contents"]
            if entry["path"] == name
        ]
        content = json.loads(Path(entry["local_path"]).read_text(encoding="utf-8"))
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
