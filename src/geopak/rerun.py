"""Repeating a run from what its folder holds: ``python -m geopak.train --rerun RUN_FOLDER``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from geopak.errors import ConfigError

FLAG = "--rerun"
# The configuration of a run as it was composed: with interpolations, such as those of paths.home.
COMPOSED = "config-composed.yaml"
START_RECORD, FINISH_RECORD = "provenance.json", "run.json"


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments by which Hydra composes the configuration that a run has stored, not that of conf/.

    Args:
        arguments: as typed, among them ``--rerun RUN_FOLDER``; the others are kept, and come last.

    Raises:
        ConfigError: no run folder, or one of a version that stored too little.
    """
    from omegaconf import OmegaConf

    from geopak.cli import CONFIG_DIR, quoted

    place = next(i for i, a in enumerate(arguments) if a.partition("=")[0] == FLAG)
    _, separator, value = arguments[place].partition("=")
    rest = list(arguments[place + 1 :])
    if not separator:
        value = rest.pop(0) if rest else ""
    folder = Path(value).expanduser().resolve()
    if not value or not (folder / COMPOSED).is_file() or not (folder / START_RECORD).is_file():
        raise ConfigError(
            f"{FLAG} {value}: not the folder of a run. It holds {COMPOSED} and {START_RECORD}, and "
            "is named outputs/<name>/phase-<k>/<run>."
        )
    # Where a run's folder goes is no part of its configuration.
    places = OmegaConf.load(CONFIG_DIR / "train.yaml").hydra
    kept = dict(_leaves(OmegaConf.to_container(places, resolve=False), "hydra"))
    parent = _parent(folder)
    return [
        f"--config-path={folder}",
        f"--config-name={Path(COMPOSED).stem}",
        f"hydra.searchpath=[{quoted(f'file://{CONFIG_DIR}')}]",
        "hydra/job_logging=console",
        "hydra/hydra_logging=console",
        *(f"++{key}={_text(value)}" for key, value in kept.items()),
        f"init_from={quoted(str(parent)) if parent else 'null'}",
        "resume_from=null",
        f"rerun.of={quoted(str(folder))}",
        *arguments[:place],
        *rest,
    ]


def _leaves(section: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(section, Mapping):
        for name, part in section.items():
            yield from _leaves(part, f"{key}.{name}")
    else:
        yield key, section


def _text(value: Any) -> str:
    from geopak.cli import quoted

    return quoted(value) if isinstance(value, str) else json.dumps(value)


def _parent(folder: Path) -> Path | None:
    """The checkpoint that a run started from, beside the run where outputs have moved."""
    recorded = _read(folder / START_RECORD)["parent"]
    if recorded is None:
        return None
    path = Path(recorded)
    moved = folder.parents[1].joinpath(*path.parts[-4:])
    return moved if not path.is_file() and moved.is_file() else path


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not a run record: {error}.") from error
    return record


def all_overrides(of: str, overrides: Sequence[str]) -> list[str]:
    """The overrides that a repetition stands for: those of the run it repeats, and its own.

    Of several for one key the last holds.
    """
    both = [*_read(Path(of) / START_RECORD)["overrides"], *overrides]
    return list({o.lstrip("+~").partition("=")[0]: o for o in both}.values())


def check(of: str, now: Mapping[str, Any], other_data: bool) -> None:
    """Says on what a repetition differs from the run that it repeats.

    Args:
        of: folder of that run.
        now: what this run records of itself.
        other_data: whether it may have another prepared set.

    Raises:
        ConfigError: it has another prepared set, and may not.
    """
    before = _read(Path(of) / START_RECORD)
    hashes = [record["dataset"]["manifest_sha256"] for record in (before, now)]
    if hashes[0] != hashes[1] and not other_data:
        raise ConfigError(
            f"{of} was trained on another prepared set: its manifest has the SHA-256 {hashes[0]}, "
            f"that of {now['dataset']['folder']} has {hashes[1]}. Give it with data.prepared=, or "
            "say rerun.other_data=true."
        )
    if lines := list(_differences(before, now)):
        print(f"warning: other than in {of}:", *lines, sep="\n    ", flush=True)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    parts = {
        "": ("cells",),
        "versions": (),
        "git": ("commit", "dirty"),
        "dataset": ("manifest_sha256",),
        "hardware": ("system", "processor", "threads", "gpus"),
    }
    for part, keys in parts.items():
        one, other = (record if not part else record.get(part) or {} for record in (before, now))
        for key in keys or sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                name = f"{part} {key}".strip()
                yield f"{name}: {one.get(key)} -> {other.get(key)}"
    if (before.get("git") or {}).get("dirty") and (now.get("git") or {}).get("dirty"):
        yield "git: both had changes that are not committed; compare their git.patch"


def compare_scores(of: str, monitor: str, score: float) -> str:
    """A line that says whether a repetition scored as the run that it repeats."""
    path = Path(of) / FINISH_RECORD
    if not path.is_file():
        return f"rerun: {of} did not finish, so that there is no score to compare with."
    recorded = float(_read(path)["score"])
    if score == recorded:
        return f"rerun: {monitor} = {score!r}, equal to that of {of}"
    return f"rerun: {monitor} = {score!r} differs from {recorded!r} of {of}"
