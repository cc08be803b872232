"""What every command's configuration may hold, as dataclasses that import no heavy library.

An option is a field of one dataclass here: its type is checked, its default (where it has one)
makes the key optional, and ``__post_init__`` or ``problems`` refuses what cannot be. The modules
that use an option take the dataclass from here.
"""

from __future__ import annotations

from importlib import import_module

_PLACES = {
    "train": ("train", "TrainConfig"),
    "evaluate": ("commands", "EvaluateConfig"),
    "calibrate": ("commands", "CalibrateConfig"),
    "predict": ("commands", "PredictConfig"),
    "export": ("commands", "ExportConfig"),
    "app": ("commands", "AppConfig"),
    "prepare": ("commands", "PrepareConfig"),
    "collect": ("collecting", "CollectConfig"),
    "publish": ("publishing", "PublishConfig"),
    "doctor": ("commands", "DoctorConfig"),
    "leaks": ("commands", "LeaksConfig"),
    "shards": ("commands", "ShardsConfig"),
    "synthetic": ("commands", "SyntheticConfig"),
    "pretrain": ("commands", "PretrainConfig"),
    "compare": ("commands", "CompareConfig"),
    "workspace": ("commands", "WorkspaceConfig"),
    "sweep": ("commands", "SweepConfig"),
    "ablations": ("commands", "AblationsConfig"),
    "import_geopak": ("commands", "ImportConfig"),
    "demo": ("commands", "DemoConfig"),
}
COMMANDS = tuple(_PLACES)


def schema_of(command: str) -> type | None:
    """The dataclass of a command's whole configuration; ``None``: it is no command."""
    if command not in _PLACES:
        return None
    module, name = _PLACES[command]
    found: type = getattr(import_module(f"geopak.schema.{module}"), name)
    return found
