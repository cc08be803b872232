"""Makes a prepared set: photo tables in, clean split table and geocells out.

    python -m geopak.prepare root=FOLDER tables=[FOLDER/photos.csv]
    python -m geopak.prepare doctor prepared=FOLDER/prepared
    python -m geopak.prepare leaks table=FILE
    python -m geopak.prepare shards root=FOLDER

The first writes into ``out``: ``photos.parquet`` (what is trained and measured on),
``rejected.parquet`` (every other row, with its reason), ``label_disagreements.csv``,
``cells.parquet``, ``cells.geojson``, ``summary.json``, ``manifest.json`` and ``report.html``. The
second says what is wrong or weak in a prepared set, the third what any split shows of its test
photos in train. The fourth writes a set's photos as tar shards, to train from a stream.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from geopak.cli import entry_point

# Commands about sets, each in a module of its own with a ``main``.
_OTHERS = {"doctor": "geopak.doctor", "leaks": "geopak.leaks", "shards": "geopak.shards"}


@entry_point("prepare")
def _prepare(cfg: DictConfig) -> dict[str, Any]:
    # All that works on tables takes seconds to import, and --help needs none of it.
    from geopak.preparation import prepare, print_summary

    summary = prepare(cfg)
    print_summary(summary, Path(cfg.out))
    return summary


def main() -> Any:
    """Prepares a set, or runs the command about sets that the first argument names."""
    if sys.argv[1:] and sys.argv[1] in _OTHERS:
        typed = sys.argv
        sys.argv = [typed[0], *typed[2:]]
        try:
            return import_module(_OTHERS[typed[1]]).main()
        finally:
            sys.argv = typed
    return _prepare()


if __name__ == "__main__":
    main()
