"""What each ingredient of the method is worth: ``python -m geopak.ablations``.

Trains every variant with every seed, measures each on the test split once, and writes the table of
docs/ablations.md. Epochs are chosen on val; nothing is chosen on test.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from geopak import __version__
from geopak.cli import CONFIG_DIR, IN_CHECKOUT, compose, entry_point
from geopak.errors import ConfigError, GeopakError, nearest_name
from geopak.options import plain

if TYPE_CHECKING:
    from geopak.report.ablations import Variant

log = logging.getLogger(__name__)

EXPERIMENTS = "experiment/ablation"
# Keys of the losses that a phase without the term does not look at.
_OF_TERM = {
    "cell": ("cell", "soft_labels", "cell_target"),
    "offset": ("offset", "offset_ramp_epochs", "offset_scale_km"),
    "auxiliary": ("auxiliary", "auxiliary_scale_km"),
}


@dataclass(frozen=True)
class Run:
    """One training, and where it lies.

    Attributes:
        overrides: of ``train``.
        folder: named after all that the result depends on, so that a finished one is used again.
        parent: the run that it starts from.
        evaluate: overrides of ``evaluate`` where it is measured.
    """

    overrides: tuple[str, ...]
    folder: Path
    parent: Run | None
    evaluate: tuple[str, ...] | None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def report(self) -> Path:
        return self.folder / "report-test" / "report.json"


def ablations(cfg: DictConfig) -> dict[str, Any]:
    """Trains and measures what is not finished yet, and writes the table.

    Returns:
        The content of ``ablations.json``, see :func:`geopak.report.ablations.summarize`.

    Raises:
        GeopakError: settings that cannot be run, or runs that failed.
    """
    from geopak.report.ablations import markdown, summarize

    variants, seeds, phases = check(cfg)
    page = page_of(cfg)
    photos_sha256 = hashlib.sha256(_photo_table(cfg).read_bytes()).hexdigest()
    decoded = {v: rule for v in variants[1:] if (rule := decoded_alone(cfg, v, variants[0]))}
    chains = {
        (variant, seed): plan(cfg, variant, seed, phases, photos_sha256)
        for seed in seeds
        for variant in variants
        if variant not in decoded
    }
    failed: dict[Path, str] = {}
    for phase in phases:
        runs = {c[phase].folder: c[phase] for c in chains.values() if phase in c}
        log.info("phase %d: %d runs", phase, len(runs))
        failed |= run_all(list(runs.values()), cfg.jobs, failed)
    reports = {
        key: json.loads(chain[phases[-1]].report.read_text(encoding="utf-8"))
        for key, chain in chains.items()
        if chain[phases[-1]].folder not in failed
    }
    rows = results(cfg, variants, seeds, decoded, reports)
    summary = summarize(rows, _context(cfg, variants[0], seeds, phases, photos_sha256))
    block = markdown(summary)
    folder = Path(cfg.paths.outputs) / cfg.name
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    (folder / "ablations.json").write_text(text + "\n", encoding="utf-8")
    (folder / "ablations.md").write_text(block, encoding="utf-8")
    if page is not None:
        _replace_table(page, block)
    print(block)
    log.info("results: %s", folder / "ablations.json")
    if failed:
        listed = "\n".join(f"  {folder}: {why}" for folder, why in failed.items())
        raise GeopakError(
            f"{len(failed)} runs failed and are not in the table; the same command tries them "
            f"again:\n{listed}"
        )
    return summary


def check(cfg: DictConfig) -> tuple[list[str], list[int], list[int]]:
    """The variants, seeds and phases asked for.

    Raises:
        ConfigError: one that cannot be run.
    """
    variants, seeds, phases = list(cfg.variants), list(cfg.seeds), list(cfg.phases)
    known = sorted(f.stem for f in (CONFIG_DIR / EXPERIMENTS).glob("*.yaml"))
    for variant in variants:
        if variant not in known:
            raise ConfigError(
                f"variants: {variant!r} is not in conf/{EXPERIMENTS}.{nearest_name(variant, known)}"
                f" Known: {', '.join(known)}."
            )
    if not variants or len(set(variants)) < len(variants):
        raise ConfigError("variants must name at least one, and none twice.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("seeds must name at least one, and none twice.")
    if phases not in ([0, 1], [0, 1, 2]):
        raise ConfigError(f"phases={phases} must be [0,1] or [0,1,2].")
    if cfg.jobs < 1:
        raise ConfigError(f"jobs={cfg.jobs} must be at least 1.")
    return variants, seeds, phases


def page_of(cfg: DictConfig) -> Path | None:
    """The page whose table is replaced.

    Raises:
        ConfigError: there is no such page.
    """
    if cfg.page is None or (cfg.page == "auto" and not IN_CHECKOUT):
        return None
    page = CONFIG_DIR.parent / "docs" / "ablations.md" if cfg.page == "auto" else Path(cfg.page)
    if not page.is_file():
        raise ConfigError(f"page={cfg.page}: there is no {page}. Use page=null to write none.")
    return page


def overrides_of(cfg: DictConfig, variant: str, phase: int) -> list[str]:
    """What ``train`` is given for a variant's phase, beside the seed."""
    return [
        f"phase={phase}",
        f"experiment={EXPERIMENTS.partition('/')[2]}/{variant}",
        f"name={cfg.name}",
        f"data.root={cfg.root}",
        f"trainer.threads={cfg.threads}",
        "callbacks.progress_bar=false",
        # An experiment that begins with phase 1 says so of every phase.
        *(["phase.parent=1"] if phase == 2 else []),
        *cfg.train[phase],
    ]


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """Composed once: a run of every seed asks for the same, and so do the table's rows."""
    composed = compose("train", overrides)
    OmegaConf.set_readonly(composed, True)
    return composed


def composed_of(cfg: DictConfig, variant: str, phase: int) -> DictConfig:
    """The configuration of a variant's phase, whatever the seed."""
    return _composed(tuple(overrides_of(cfg, variant, phase)))


def decoded_alone(cfg: DictConfig, variant: str, reference: str) -> str | None:
    """The decoding rule of a variant that differs from the reference in nothing else.

    Such a variant needs no training: an evaluation answers by every rule.
    """
    own, other = (plain(composed_of(cfg, v, 1)) for v in (variant, reference))
    rule = str(own["decoding"].pop("rule"))
    del other["decoding"]["rule"]
    return rule if own == other else None


def plan(
    cfg: DictConfig, variant: str, seed: int, phases: Sequence[int], photos_sha256: str
) -> dict[int, Run]:
    """The runs of one variant and seed by phase; without phase 0 where phase 1 has no parent."""
    root = Path(cfg.paths.outputs) / cfg.name
    chain: dict[int, Run] = {}
    begins_later = composed_of(cfg, variant, 1).phase.parent is None
    for phase in phases[1:] if begins_later else phases:
        overrides = (*overrides_of(cfg, variant, phase), f"seed={seed}")
        composed = composed_of(cfg, variant, phase)
        parent = chain.get(phase - 1)
        key = fingerprint(composed, seed, photos_sha256, parent)
        # Phase 0 of variants that differ in later phases alone is the same run.
        place = "shared" if phase == 0 else variant
        measured = None
        if phase == phases[-1]:
            is_reference = variant == cfg.variants[0]
            measured = (
                f"root={cfg.root}",
                f"retrieval={str(cfg.retrieval and is_reference).lower()}",
                *cfg.evaluate,
            )
        folder = root / place / f"seed-{seed}" / f"phase-{phase}-{key}"
        chain[phase] = Run(overrides, folder, parent, measured)
    return chain


def fingerprint(composed: DictConfig, seed: int, photos_sha256: str, parent: Run | None) -> str:
    """Names all that the weights of a run depend on: settings, seed, photos and parent."""
    from geopak.identity import portable_config

    config = portable_config(composed) | {"seed": seed}
    for key in ("name", "logger", "callbacks"):
        config.pop(key, None)
    config["trainer"].pop("threads")
    for term, keys in _OF_TERM.items():
        if term not in config["phase"]["losses"]:
            for key in keys:
                config["loss"].pop(key)
    if not config["phase"]["monitor"].endswith("_km"):
        # No coordinate has a say in which epoch is best.
        config.pop("decoding")
    parts = [config, photos_sha256, __version__, parent.folder.name if parent else None]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_all(runs: Sequence[Run], jobs: int, failed: Mapping[Path, str]) -> dict[Path, str]:
    """Makes runs, several at once; one that fails does not end the others.

    Returns:
        Folder -> reason of those that failed, or whose parent had.
    """
    outcomes: dict[Path, str] = {}
    waiting = []
    for run in runs:
        if run.parent is not None and run.parent.folder in failed:
            outcomes[run.folder] = "its parent failed"
        elif not is_finished(run):
            waiting.append(run)
    if jobs == 1 or len(waiting) < 2:
        reasons = [attempt(run) for run in waiting]
    else:
        from joblib import Parallel, delayed

        work = (delayed(attempt)(run) for run in waiting)
        reasons = Parallel(n_jobs=jobs, backend="loky")(work)
    failures = {r.folder: why for r, why in zip(waiting, reasons, strict=True) if why is not None}
    return outcomes | failures


def attempt(run: Run) -> str | None:
    """Makes a run; returns why it failed, if it did."""
    try:
        make(run)
    except Exception as error:  # others go on, and the reason is shown at the end
        log.error("%s failed", run.folder, exc_info=not isinstance(error, GeopakError))
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def make(run: Run) -> None:
    """Trains, and measures where it is the last phase; what is finished stays."""
    from geopak.evaluate import evaluate
    from geopak.train import train

    if not _is_trained(run):
        # A run that was killed begins again: it takes a minute.
        shutil.rmtree(run.folder, ignore_errors=True)
        overrides = list(run.overrides)
        if run.parent is not None:
            overrides.append(f"init_from={run.parent.checkpoint}")
        log.info("\n$ python -m geopak.train %s", " ".join(overrides))
        train(compose("train", overrides), run.folder, overrides)
    if run.evaluate is not None:
        arguments = [f"ckpt={run.checkpoint}", f"out={run.report.parent}", *run.evaluate]
        log.info("$ python -m geopak.evaluate %s", " ".join(arguments))
        evaluate(compose("evaluate", arguments))


def is_finished(run: Run) -> bool:
    """Whether a run is trained, and measured where it is to be."""
    # The page is written last.
    measured = run.evaluate is None or (run.report.parent / "report.html").is_file()
    return _is_trained(run) and measured


def _is_trained(run: Run) -> bool:
    try:
        json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return run.checkpoint.is_file()


def results(
    cfg: DictConfig,
    variants: Sequence[str],
    seeds: Sequence[int],
    decoded: Mapping[str, str],
    reports: Mapping[tuple[str, int], Mapping[str, Any]],
) -> list[Variant]:
    """The rows of the table, in the order of the variants, retrieval last."""
    from geopak.report.ablations import Variant
    from geopak.report.evaluation import NEAREST

    reference = variants[0]
    rows = []
    for variant in variants:
        source = reference if variant in decoded else variant

        def own(report: Mapping[str, Any], variant: str = variant) -> dict[str, Any]:
            answer = {**report["end_to_end"]}
            if variant in decoded:
                answer |= report["rules"][decoded[variant]]
            if not tells_provinces(cfg, variant):
                answer.pop("province_macro_acc")
            return answer

        values = _values(reports, source, seeds, own)
        rows.append(Variant(variant, about(variant), values))
    if cfg.retrieval and (found := [r for (v, _), r in reports.items() if v == reference]):
        values = _values(reports, reference, seeds, lambda report: report["baselines"][NEAREST])
        interval = {
            metric: (value["low"], value["high"])
            for metric, value in found[0]["baselines"][NEAREST].items()
            if value["low"] is not None
        }
        what = "Where the train photo was taken that looks most alike to the encoders."
        rows.append(Variant("retrieval", what, values, interval))
    return rows


def _values(
    reports: Mapping[tuple[str, int], Mapping[str, Any]],
    variant: str,
    seeds: Sequence[int],
    section: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> dict[int, dict[str, float]]:
    return {
        seed: {metric: v["value"] for metric, v in section(reports[variant, seed]).items()}
        for seed in seeds
        if (variant, seed) in reports
    }


def tells_provinces(cfg: DictConfig, variant: str) -> bool:
    """Whether a variant trains anything to tell provinces apart."""
    loss = composed_of(cfg, variant, 1).loss
    return bool(loss.province > 0 or (loss.cell > 0 and loss.cell_target == "region"))


def about(variant: str) -> str:
    """The sentence that an experiment's file begins with."""
    lines = (CONFIG_DIR / EXPERIMENTS / f"{variant}.yaml").read_text(encoding="utf-8").splitlines()
    return next(x for x in lines if x.startswith("# ") and "@package" not in x).removeprefix("# ")


def _photo_table(cfg: DictConfig) -> Path:
    table = Path(cfg.root) / "prepared" / "photos.parquet"
    if not table.is_file():
        raise ConfigError(
            f"No prepared set at {table.parent}: make one with python -m geopak.synthetic and "
            "python -m geopak.prepare, or pass root=FOLDER."
        )
    return table


def _context(
    cfg: DictConfig, reference: str, seeds: list[int], phases: list[int], photos_sha256: str
) -> dict[str, Any]:
    """What was measured, for the table's reader."""
    import pandas as pd

    split = pd.read_parquet(_photo_table(cfg), columns=["split"])["split"].value_counts()
    composed = [composed_of(cfg, reference, phase) for phase in phases]
    cells = pd.read_parquet(_photo_table(cfg).with_name("cells.parquet"), columns=["province_id"])
    return {
        **{f"num_{name}": int(split.get(name, 0)) for name in ("train", "val", "test")},
        "num_cells": len(cells),
        "num_provinces": int(cells["province_id"].nunique()),
        "model": composed[0].model.name,
        "phases": phases,
        "epochs": [c.phase.epochs for c in composed],
        "seeds": seeds,
        "version": __version__,
        "photos_sha256": photos_sha256,
        "split": "test",
    }


def _replace_table(page: Path, block: str) -> None:
    from geopak.report.ablations import with_block

    page.write_text(with_block(page.read_text(encoding="utf-8"), block), encoding="utf-8")


@entry_point("ablations")
def main(cfg: DictConfig) -> None:
    ablations(cfg)


if __name__ == "__main__":
    main()
