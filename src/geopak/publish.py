"""Publishes a photo table or prepared set in the form of Hugging Face.

    python -m geopak.publish root=FOLDER table=FOLDER/photos.csv to=OTHER
    python -m geopak.publish root=FOLDER to=OTHER repo=OWNER/NAME push=true

``to`` gets a data set with a card that ``datasets.load_dataset`` and ``source=huggingface`` read.
Photos whose licence does not permit it are left out and listed in ``to.left_out.csv``. Nothing goes
to the hub without ``push=true`` and a token in ``HF_TOKEN``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from geopak.cli import entry_point
from geopak.options import options, plain

if TYPE_CHECKING:
    from omegaconf import DictConfig


def print_summary(summary: Mapping[str, Any]) -> None:
    """Prints what was published and what was left out."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("photos")
    table.add_column("", justify="right")
    for split, number in summary["splits"].items():
        table.add_row(split, f"{number:,}")
    for reason, number in summary["left_out"].items():
        table.add_row(f"left out: {reason}", f"{number:,}")
    console = Console()
    console.print(table)
    console.print(f"data set: {summary['to']}", soft_wrap=True, highlight=False)
    if summary["left_out"]:
        console.print(f"left out: {summary['left_out_file']}", soft_wrap=True, highlight=False)
    if summary["url"]:
        console.print(f"on the hub: {summary['url']}", soft_wrap=True, highlight=False)


@entry_point("publish")
def main(cfg: DictConfig) -> dict[str, Any]:
    # All that works on tables takes seconds to import, and --help needs none of it.
    from geopak.schema.publishing import PublishConfig
    from geopak.sources.publishing import publish

    section = {k: v for k, v in plain(cfg).items() if k != "hydra"}
    summary = publish(options(PublishConfig, section, ""))
    print_summary(summary)
    return summary


if __name__ == "__main__":
    main()
