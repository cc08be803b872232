"""How checkpoint files get onto the disk: whole, and the last beside the one before it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from geopak.checkpoint import LAST_NAME, PREVIOUS_NAME, sync_folder, write_whole
from geopak.errors import CheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes every checkpoint of a trainer under another name first, and renames it when complete.

    Whenever the process or the machine stops, a file that has its name is whole. ``last.ckpt``
    leaves the one that it replaces behind as ``last-previous.ckpt``: a disk may still break what
    was written to it.

    Args:
        continued_from: the checkpoint that this run goes on from: known to be whole. What other
            runs left is not kept, so that a broken ``last.ckpt`` never replaces the one before.
    """

    def __init__(self, continued_from: Path | None = None) -> None:
        self._whole = {continued_from} if continued_from else set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint.

        Raises:
            CheckpointError: no room on the disk, or no right to write there.
        """
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        try:
            write_whole(checkpoint, path)
            if path.name == f"{LAST_NAME}.ckpt" and path in self._whole:
                _keep(path, path.with_name(f"{PREVIOUS_NAME}.ckpt"))
            os.replace(partial, path)
            sync_folder(path.parent)
        # torch reports a full disk as a RuntimeError of its zip writer.
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            first_line = str(error).partition("\n")[0]
            raise CheckpointError(
                f"Cannot write the checkpoint {path}: {first_line}. Make room or mend access, then "
                "continue from the one before: the same command with resume_from=auto."
            ) from error
        self._whole.add(path)


def _keep(path: Path, previous: Path) -> None:
    """Gives a file a second name, so that the first one is never without a file."""
    link = previous.with_name(f"{previous.name}.partial")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        # A file system without links: for a moment the older name alone is there.
        os.replace(path, previous)
        return
    os.replace(link, previous)
