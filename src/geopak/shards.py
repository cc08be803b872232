"""A prepared set's photos as tar shards to stream from: ``python -m geopak.prepare shards``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.errors import ConfigError, PreparedSetError
from geopak.options import options, plain
from geopak.schema.preparation import ExecutorSettings, ShardSettings

_SETTINGS = ("photos_per_shard", "shard_mb", "shorter_side_px", "quality")


def make_shards(cfg: DictConfig) -> dict[str, Any]:
    """Writes the shards of the prepared set that the configuration names.

    Args:
        cfg: configuration with the keys of ``conf/shards.yaml``.

    Returns:
        The content of ``index.json``.

    Raises:
        GeopakError: input that cannot be used; says which file or key, and the remedy.
    """
    # All that works on tables and pictures takes seconds to import, and --help needs none of it.
    from geopak.data.atomic import replaced_folder
    from geopak.data.dataset import PreparedSet
    from geopak.data.manifest import read_manifest
    from geopak.data.shard_writing import write_shards
    from geopak.data.shards import require_webdataset
    from geopak.geo.region import Region

    settings = options(ShardSettings, {key: plain(cfg[key]) for key in _SETTINGS}, "")
    executor = options(ExecutorSettings, plain(cfg.executor), "executor")
    require_webdataset()
    root, folder, out = Path(cfg.root), Path(cfg.prepared), Path(cfg.out)
    manifest = read_manifest(folder)
    region = Region.from_dict(manifest["region"])
    prepared = PreparedSet.read(folder, root, region)
    _check_out(out, root, folder)
    with replaced_folder(out) as new:
        return write_shards(prepared, region, new, settings, cfg.seed, executor, manifest["set_id"])


def _check_out(out: Path, root: Path, prepared: Path) -> None:
    """The folder ``out`` is replaced as a whole: it must be new, empty or hold earlier shards."""
    for key, folder in (("root", root), ("prepared", prepared)):
        if folder.resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"out={out} holds {key}={folder}; it would be replaced. Choose a folder of its own."
            )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _is_shards(out))):
        raise PreparedSetError(
            f"{out} exists and holds no shards; it is not replaced. Choose another out=FOLDER."
        )


def _is_shards(folder: Path) -> bool:
    from geopak.data.shards import INDEX_NAME

    try:
        return "splits" in json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def print_summary(index: Mapping[str, Any], out: Path) -> None:
    """Prints how many shards there are of what."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("photos of")
    for heading in ("shards", "photos", "MB"):
        table.add_column(heading, justify="right")
    splits = index["splits"]
    parts = {f"train, {key}": shards for key, shards in splits["train"].items()}
    parts |= {name: shards for name, shards in splits.items() if name != "train"}
    parts["all"] = [shard for shards in list(parts.values()) for shard in shards]
    for name, shards in parts.items():
        table.add_row(
            name,
            f"{len(shards):,}",
            f"{sum(shard['photos'] for shard in shards):,}",
            f"{sum(shard['bytes'] for shard in shards) / 1e6:,.1f}",
            style="bold" if name == "all" else None,
        )
    console = Console()
    console.print(table)
    console.print(f"shards: {out}", soft_wrap=True, highlight=False)
    console.print(
        f"train:  python -m geopak.train data=shards data.root=FOLDER data.shards={out}",
        soft_wrap=True,
        highlight=False,
    )


@entry_point("shards")
def main(cfg: DictConfig) -> dict[str, Any]:
    index = make_shards(cfg)
    print_summary(index, Path(cfg.out))
    return index


if __name__ == "__main__":
    main()
