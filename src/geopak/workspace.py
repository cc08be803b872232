"""The team's dashboard as code: ``python -m geopak.workspace project=geopak entity=TEAM``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.errors import ConfigError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

    from geopak.geo.region import Region


def build_workspace(region: Region, entity: str, project: str, name: str) -> Workspace:
    """Sections and panels over what a training logs; nothing is sent.

    Args:
        region: its provinces have panels of their own.
        entity: user or team.
        project: of W&B.
        name: of the view.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ConfigError(
            "The workspace needs the package wandb-workspaces: pip install 'geopak[wandb]'."
        ) from error
    from geopak.schema.training import LOSS_TERMS, THRESHOLDS_KM
    from geopak.tracking import panels

    def lines(title: str, *metrics: str, log_y: bool = False) -> Any:
        return wr.LinePlot(title=title, y=list(metrics), log_y=log_y or None)

    keys = [province.key for province in region.provinces]
    sections = {
        "Accuracy": [
            lines("median error, km", "val/median_km", log_y=True),
            lines("share within a distance", *(f"val/within_{t:g}km" for t in THRESHOLDS_KM)),
            lines("province, macro and micro", "val/province_macro_acc", "val/province_acc"),
            lines("mean and 90% error, km", "val/mean_km", "val/p90_km", log_y=True),
            lines("true cell among the first", "val/cell_top1", "val/cell_top5"),
            lines("given the true cell, km", "val/teacher_forced/median_km", log_y=True),
        ],
        "Provinces": [
            lines("median error, km", *(f"val/province/{k}/median_km" for k in keys), log_y=True),
            lines("right province", *(f"val/province/{k}/acc" for k in keys)),
            lines("urban and rural, km", "val/urban/median_km", "val/rural/median_km", log_y=True),
        ],
        "Training": [
            lines("loss", "train/loss"),
            lines("terms", *(f"train/loss/{term}" for term in LOSS_TERMS), log_y=True),
            lines("shares of the loss", *(f"train/share/{term}" for term in LOSS_TERMS)),
            lines("learning rates", *(f"lr-AdamW/{g}" for g in ("heads", "semantic", "scene"))),
        ],
        "Gate": [
            lines("mean", "train/gate_mean", "val/gate_mean"),
            lines("distribution", panels.GATE),
            *(lines(f"distribution, {k}", panels.GATE_OF_PROVINCE.format(key=k)) for k in keys),
        ],
        "Cells": [
            lines("cells ever predicted", panels.CELLS_PREDICTED),
            lines("shares", panels.CELLS_PREDICTED_SHARE, panels.CELLS_NEVER_PREDICTED),
            lines("predictions per cell", panels.CELLS_HISTOGRAM),
        ],
        "Pictures": [
            wr.MediaBrowser(title="error map", media_keys=[panels.ERROR_MAP]),
            wr.MediaBrowser(title="confusion of provinces", media_keys=[panels.CONFUSION]),
            wr.WeavePanelSummaryTable(table_name=panels.PHOTOS),
        ],
        "Runs": [wr.RunComparer(diff_only="split")],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=title, panels=content, is_open=title != "Runs")
            for title, content in sections.items()
        ],
    )


def save_workspace(workspace: Workspace) -> str:
    """Saves a new view, and returns its address.

    Raises:
        ConfigError: the server refuses, or cannot be reached.
    """
    try:
        return str(workspace.save().url)
    except Exception as error:  # of W&B, requests and the JSON of their answers
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"W&B does not take the workspace: {reason}. The project "
            f"{workspace.entity}/{workspace.project} must exist: log or sync a run to it first."
        ) from error


@entry_point("workspace")
def main(cfg: DictConfig) -> str:
    import wandb

    from geopak.geo.region import Region
    from geopak.options import plain

    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        raise ConfigError(f"W&B does not take the API key: {error}") from error
    if not has_key:
        raise ConfigError(
            "A workspace is saved on W&B's server, which needs an API key: run `wandb login`, or "
            "set WANDB_API_KEY."
        )
    if cfg.entity is None:
        raise ConfigError("entity has no default: set it, entity=USER_OR_TEAM.")
    region = Region.from_config(plain(cfg.region))
    url = save_workspace(build_workspace(region, cfg.entity, cfg.project, cfg.name))
    print(url)
    return url


if __name__ == "__main__":
    main()
