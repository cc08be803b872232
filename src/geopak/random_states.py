"""The states of all random number generators, kept in checkpoints: a resumed run draws on."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

_KEY = "random_states"


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the generators of torch (CPU and one GPU), NumPy and Python.

    Plain containers and tensors, as a checkpoint must hold them.

    Args:
        device: of the process; its generator is kept where it is a GPU.
    """
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one is what is kept
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, torch.tensor(words), gauss],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts the generators where :func:`random_state` found them."""
    torch.set_rng_state(state["torch"].cpu())
    name, keys, *rest = state["numpy"]
    numpy_state = (name, keys.numpy().astype(np.uint32), *rest)
    np.random.set_state(numpy_state)  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    cuda: Tensor | None = state.get("cuda")
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda.cpu(), device)


class RandomStates(L.Callback):
    """Every checkpoint holds the random states of all ranks; a resumed run sets them.

    Set when all is restored and the sanity check is over, just before the first batch. Loaders
    have generators of their own (see :mod:`geopak.data.datamodule`), so that between a
    checkpoint and the batch after it nothing is drawn here, in any run. A new run is seeded at the
    same moment: what was drawn before depends on what it found, such as a feature cache. Each rank
    draws dropout of its own.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._loaded: list[dict[str, Any]] | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        own = random_state(trainer.strategy.root_device)
        states: list[Any] = [own]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            dist.all_gather_object(states, own)
        checkpoint[_KEY] = states

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._loaded = checkpoint.get(_KEY)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        states, self._loaded = self._loaded, None
        if states is not None and len(states) == trainer.world_size:
            set_random_state(states[trainer.global_rank], trainer.strategy.root_device)
            return
        # Also where the number of ranks has changed, which have not as many states.
        source = [self.seed, trainer.global_rank, trainer.global_step]
        words = np.random.SeedSequence(source).generate_state(3)
        torch.manual_seed(int(words[0]))
        np.random.seed(int(words[1]))  # noqa: NPY002
        random.seed(int(words[2]))
