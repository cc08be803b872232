"""Collects photos of a region from a source into a photo table.

    python -m geopak.collect source=flickr region=pakistan out=FOLDER --dry-run
    python -m geopak.collect source=flickr region=pakistan out=FOLDER

``out`` gets ``ledger.sqlite``, ``photos/``, ``photos.csv``, ``rejected.csv``, ``attribution.csv``,
``attribution.html`` and ``summary.json``. A collection that was stopped, killed or has used up its
quota goes on when the same command is given again. The exit status is 0 when there is nothing more
to do, 69 when there is nothing more but queries failed or photos were not available
(``retry_failed=true`` tries them again), 75 when a quota is used up (``on_quota=stop``), and
128 + number of the signal after one.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from geopak.cli import entry_point
from geopak.errors import ConfigError, StoppedBySignalError
from geopak.options import options, plain

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Of sysexits.h: come again later.
_QUOTA_SPENT = 75
# Of the same: a service is not available.
_UNAVAILABLE = 69


@entry_point("collect")
def main(cfg: DictConfig) -> dict[str, Any]:
    """Collects, or tells what it would take; returns the summary."""
    from geopak.schema.collecting import CollectConfig
    from geopak.schema.sources import SOURCES
    from geopak.sources.running import collect, dry_run

    section = {k: v for k, v in plain(cfg).items() if k != "hydra"}
    config = options(CollectConfig, section, "")
    if config.source is None:
        raise ConfigError(f"Choose where photos come from: source={'|'.join(SOURCES)}.")
    if config.dry_run:
        return dry_run(config)
    ending = collect(config)
    if ending.signal:
        raise StoppedBySignalError(128 + ending.signal)
    if ending.quota_spent:
        print(f"{ending.quota_spent} The same command goes on then.", file=sys.stderr)
        raise SystemExit(_QUOTA_SPENT)
    name = str(config.source.get("name"))
    failed = ending.summary["sources"].get(name, {}).get("queries", {}).get("failed", 0)
    unavailable = ending.summary["rejected"].get("unavailable", 0)
    if failed or unavailable:
        print(
            f"{failed:,} queries failed, and {unavailable:,} photos were not available. "
            "retry_failed=true tries them again.",
            file=sys.stderr,
        )
        raise SystemExit(_UNAVAILABLE)
    return ending.summary


if __name__ == "__main__":
    main()
