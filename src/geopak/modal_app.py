"""``geopak.train`` on rented A100s: ``modal run src/geopak/modal_app.py --overrides "phase=1"``.

    modal run --detach src/geopak/modal_app.py --overrides "-m phase=0,1,2 experiment=pakistan" \\
        --gpus 4
    modal run --detach -m geopak.modal_app --overrides "…"

Photos are read from the Volume ``geopak-data``, runs are written to ``geopak-outputs``. Modal
starts an interrupted container again with the same input; a run's folder follows from that input
alone, so the training goes on from its last checkpoint, and one that is finished is left as it is.
See docs/cloud.md.
"""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
import shlex
import subprocess
import sys
import time
import zipfile
from collections import deque
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import modal

# $GEOPAK_HOME in the container, and where the code lies there: laid out like a checkout.
HOME = "/geopak"
CODE = "/opt/geopak"
LAST_LINES = 40
# Modal's longest; every attempt has as long again.
TIMEOUT_S = 24 * 60 * 60
MOST_ATTEMPTS = 10
CPUS_PER_GPU, MEMORY_MB_PER_GPU = 8.0, 32 * 1024


def make_image() -> modal.Image:
    """Python with the libraries of this environment, at their versions, and this very code."""
    package = Path(__file__).resolve().parent
    needed = [r for r in metadata.requires("geopak") or [] if "extra ==" not in r]
    names = [name[0] for r in needed if (name := re.match(r"[\w.-]+", r))]
    # data=shards needs it, and it is an extra.
    if importlib.util.find_spec("webdataset"):
        names.append("webdataset")
    # A build such as 2.11+cpu is of this machine.
    pinned = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]
    image = (
        modal.Image.debian_slim(python_version=f"{sys.version_info.major}.{sys.version_info.minor}")
        .uv_pip_install(*pinned)
        .env({"GEOPAK_HOME": HOME, "PYTHONPATH": f"{CODE}/src:{CODE}/entry"})
        .add_local_dir(package, f"{CODE}/src/geopak", ignore=["**/__pycache__"])
        # Under the name that `modal run FILE` knows this module by.
        .add_local_file(__file__, f"{CODE}/entry/modal_app.py")
    )
    beside = package.parent.parent / "conf"
    # A wheel carries conf/ inside the package.
    return image.add_local_dir(beside, f"{CODE}/conf") if beside.is_dir() else image


app = modal.App("geopak")
data_volume = modal.Volume.from_name("geopak-data", create_if_missing=True)
outputs_volume = modal.Volume.from_name("geopak-outputs", create_if_missing=True)


def train_all(overrides: Sequence[str], run_id: str, gpus: int) -> list[dict[str, Any]]:
    """Brings every run that the arguments of ``geopak.train`` ask for to its end.

    Args:
        overrides: arguments of ``geopak.train``; with ``-m`` the runs of a sweep, one by one.
        run_id: names the folders of these runs. What an earlier call with the same name has
            finished is not done again, what it has begun goes on.
        gpus: chooses the trainer where the overrides do not; 0: the CPU.

    Returns:
        Per run its ``folder`` and the content of its ``run.json``.

    Raises:
        ConfigError: arguments that cannot work, or whatever else the user has to mend.
        RuntimeError: a training that failed; with its exit status and last lines.
    """
    from geopak.cli import split_jobs

    if not any(o.startswith("trainer=") for o in overrides):
        trainer = "cpu" if gpus == 0 else "a100" if gpus == 1 else "a100_multi"
        overrides = [f"trainer={trainer}", *overrides]
    jobs = split_jobs(overrides)
    return [_finish(job, f"{run_id}-{number}") for number, job in enumerate(jobs)]


def _finish(job: list[str], name: str) -> dict[str, Any]:
    """Trains one run, from wherever an earlier attempt has left it."""
    from geopak.checkpoint import CHECKPOINT_FOLDER
    from geopak.cli import compose

    cfg = compose("train", job)
    folder = Path(cfg.run_root, f"phase-{cfg.phase.index}", name)
    record = folder / "run.json"
    if not record.is_file():
        command = [sys.executable, "-m", "geopak.train", *job, f"hydra.run.dir={folder}"]
        if last := _newest_checkpoint(folder / CHECKPOINT_FOLDER):
            command.append(f"resume_from={last}")
        _run(command)
    return {"folder": str(folder), **json.loads(record.read_text(encoding="utf-8"))}


def _newest_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint of an interrupted run."""
    from geopak.checkpoint import BEST_NAME, LAST_NAME, PREVIOUS_NAME

    files = [folder / f"{name}.ckpt" for name in (LAST_NAME, PREVIOUS_NAME, BEST_NAME)]
    return next((f for f in files if zipfile.is_zipfile(f)), None)


def _run(command: Sequence[str]) -> None:
    """Runs a command to its end, its output passed on line by line.

    The processes of DDP are started by copies of the command, which a function cannot be.
    """
    from geopak.errors import ConfigError

    print(shlex.join(command), flush=True)
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                last.append(line)
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    if status:
        said = "".join(last).strip()
        if status == 2:
            # A mistake of the user, who is told so; the same again would end the same way.
            raise ConfigError(said.rpartition("error: ")[2])
        raise RuntimeError(f"geopak.train ended with status {status}. Its last lines:\n{said}")


@app.function(
    # In the container the image is there already, and this environment is not.
    image=make_image() if modal.is_local() else None,
    gpu="A100",
    cpu=CPUS_PER_GPU,
    memory=MEMORY_MB_PER_GPU,
    volumes={f"{HOME}/data": data_volume, f"{HOME}/outputs": outputs_volume},
    timeout=TIMEOUT_S,
    retries=modal.Retries(max_retries=MOST_ATTEMPTS, initial_delay=10.0),
    # An attempt after a crash starts in a container of its own.
    single_use_containers=True,
    # It would be put where `geopak` is found without its conf/.
    include_source=False,
)
def train_remotely(overrides: list[str], run_id: str, gpus: int) -> dict[str, Any]:
    """Returns ``runs`` as of :func:`train_all`, or the ``error`` that the user has to mend.

    Such an error is returned, lest Modal try again what cannot work.
    """
    from geopak.errors import GeopakError

    try:
        return {"runs": train_all(overrides, run_id, gpus)}
    except GeopakError as error:
        return {"error": str(error)}
    finally:
        # Modal commits in the background as well, every few seconds.
        if not modal.is_local():
            outputs_volume.commit()


@app.local_entrypoint()
def main(
    overrides: str = "",
    gpus: int = 1,
    gpu: str = "A100",
    run_id: str = "",
    wandb_secret: str = "",
) -> None:
    """Trains on Modal.

    Args:
        overrides: arguments of geopak.train, as one would type them.
        gpus: how many, all in one container.
        gpu: their kind, such as A100-80GB.
        run_id: of an earlier call, to go on with it.
        wandb_secret: Modal secret that holds WANDB_API_KEY.
    """
    if gpus < 1:
        raise SystemExit("error: --gpus must be at least 1.")
    run_id = run_id or f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"
    print(f"run {run_id}; to go on with it later: the same command and --run-id {run_id}")
    function = train_remotely.with_options(
        gpu=f"{gpu}:{gpus}",
        cpu=CPUS_PER_GPU * gpus,
        memory=MEMORY_MB_PER_GPU * gpus,
        secrets=[modal.Secret.from_name(wandb_secret)] if wandb_secret else None,
    )
    outcome = function.remote(shlex.split(overrides), run_id, gpus)
    if "error" in outcome:
        print(f"\nerror: {outcome['error']}", file=sys.stderr)
        raise SystemExit(2)
    for run in outcome["runs"]:
        path = Path(run["folder"]).relative_to(f"{HOME}/outputs")
        print(f"phase {run['phase']}: {run['monitor']} = {run['score']:.4g}")
        print(
            f"    modal volume get geopak-outputs {path.as_posix()}/checkpoints/{run['best']}.ckpt"
        )
