"""Who started how many processes, and what a rank concludes from the others' heartbeats."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from geopak import ranks
from geopak.cli import CONFIG_DIR
from geopak.errors import ConfigError
from geopak.models.freezing import set_frozen
from geopak.options import plain

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_JOB_NUM_NODES": "3"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, (2, 4)),
        (SLURM, (3, 2)),
        # torchrun within a job of Slurm: what torchrun says.
        ({**SLURM, **TORCHRUN}, (2, 4)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, (1, 1)),
    ],
)
def test_processes_are_as_many_as_were_started(
    environ: dict[str, str], expected: tuple[int, int]
) -> None:
    assert ranks.launched_processes(environ) == expected


def test_without_a_launcher_the_ways_to_start_are_named() -> None:
    with pytest.raises(ConfigError, match=r"torchrun --nproc_per_node .* hydra/launcher=slurm"):
        ranks.launched_processes({"SLURM_JOB_ID": "1"})


def test_unequal_nodes_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 processes with 3 on a node"):
        ranks.launched_processes({**SLURM, "SLURM_NTASKS": "5", "SLURM_JOB_NUM_NODES": "2"})


def pulses(heartbeat_s: float) -> tuple[torch.distributed.Store, list[ranks._Pulse]]:
    store = torch.distributed.HashStore()
    for rank in range(3):
        store.set(f"geopak/heartbeat/{rank}", "0")
    return store, [ranks._Pulse(rank, 3, heartbeat_s) for rank in range(3)]


def test_hearts_that_beat_are_alive_and_one_that_stops_is_dead() -> None:
    store, (first, second, third) = pulses(0.3)
    began = time.monotonic()
    while time.monotonic() - began < 0.6:
        assert first.feel(store) is None
        assert second.feel(store) is None
        assert third.feel(store) is None
        time.sleep(0.02)
    while (reason := first.feel(store)) is None:
        assert second.feel(store) is None or time.monotonic() - began > 0.8
        assert time.monotonic() - began < 5
        time.sleep(0.02)
    assert reason.startswith("rank 2 has shown no sign of life for")


def test_a_rank_that_is_done_is_not_missed_and_one_that_failed_is_named() -> None:
    store, (first, second, _) = pulses(0.05)
    store.set("geopak/heartbeat/2", "done")
    for _ in range(8):
        time.sleep(0.02)
        assert second.feel(store) is None
        assert first.feel(store) is None
    store.set("geopak/heartbeat/2", "failed")
    assert "rank 2 failed" in str(first.feel(store))


def test_a_child_that_ended_well_or_still_runs_is_no_reason() -> None:
    good = subprocess.Popen([sys.executable, "-c", ""])
    good.wait()
    bad = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    bad.wait()
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert ranks._ended_child([good, running]) is None
        assert "local rank 3 (process" in str(ranks._ended_child([good, running, bad]))
        assert "ended with status 3" in str(ranks._ended_child([good, running, bad]))
    finally:
        running.kill()
        running.wait()
    assert "killed by signal 9 (SIGKILL)" in str(ranks._ended_child([running]))


def test_statistics_are_averaged_over_ranks_where_they_train(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.LayerNorm(2)])
    set_frozen([module[1]], True)
    for norm in list(module)[:2]:
        norm.running_mean.copy_(torch.tensor([1.0, 2.0]))

    def all_reduce(statistic: torch.Tensor) -> None:
        statistic.add_(torch.tensor([3.0, 6.0]))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    ranks.average_statistics(module)
    assert module[0].running_mean.tolist() == [2.0, 4.0]
    assert module[0].running_var.tolist() == [2.0, 3.5]
    assert module[1].running_mean.tolist() == [1.0, 2.0]
    assert module[1].running_var.tolist() == [1.0, 1.0]


def test_the_slurm_preset_asks_for_a_process_on_each_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that submitit would hand to sbatch."""
    submitit = pytest.importorskip("submitit")
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        overrides = ["hydra/launcher=slurm", "trainer=a100_cluster", "hydra.launcher.nodes=2"]
        cfg = compose("train", overrides, return_hydra_config=True)
        launcher: dict[str, Any] = OmegaConf.to_container(cfg.hydra, resolve=False)["launcher"]
        chosen = {
            name: plain(cfg.hydra.launcher[name])
            for name in launcher
            if name not in ("_target_", "submitit_folder", "name", "max_num_timeout")
        }
    common = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes"}
    # An executor looks for sbatch.
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    executor = submitit.AutoExecutor(tmp_path, cluster="slurm")
    executor.update_parameters(
        **{
            name if name in {*common, "stderr_to_stdout"} else f"slurm_{name}": value
            for name, value in chosen.items()
        }
    )
    lines = executor._executor._make_submission_file_text("run", "id").splitlines()
    for line in ("--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=4", "--requeue"):
        assert f"#SBATCH {line}" in lines
    assert "#SBATCH --signal=USR2@120" in lines
    assert "export SLURM_KILL_BAD_EXIT=1" in lines
