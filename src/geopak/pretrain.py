"""Makes the tiny model's stand-ins for pretrained weights: ``geopak.pretrain encoder=scene``.

The encoders learn from rendered scenes whose parameters are drawn at random, with no place, region
or coordinate behind them: the semantic encoder what is in the picture, the scene encoder what kind
of scene it is. So the default run does what a real one does: load, freeze, adapt.
"""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from geopak.cli import entry_point

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# What the scene encoder is asked; the semantic encoder is asked everything.
SCENE_NUMBERS = ("relief", "snow", "jagged", "vegetation", "density", "trees", "flags")
SCENE_COLOURS = ("soil", "vegetation", "ridge", "wall", "roof", "tree")
SCENE_CLASSES = ("kind", "weather", "ground", "water", "tree", "landmark")


def render_scenes(
    indices: range, size: int, seed: int, difficulty: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """Renders random scenes with their targets.

    Args:
        indices: each scene depends on (seed, index) alone.
        size: side, pixels.
        seed, difficulty: of the drawing.

    Returns:
        Images (N, size, size, 3), numbers (N, F) with NaN and classes (N, C) with -1 where the
        thing asked for is not in the picture.
    """
    import numpy as np

    from geopak.render.scene_drawing import draw
    from geopak.render.scene_prior import random_scene
    from geopak.render.scene_targets import content_targets

    images, numbers, classes = [], [], []
    for index in indices:
        rng = np.random.default_rng([seed, index])
        scene = random_scene(rng, difficulty)
        images.append(draw(scene, size, size, rng))
        number, category = content_targets(scene)
        numbers.append(list(number.values()))
        classes.append(list(category.values()))
    return np.stack(images), np.array(numbers, np.float32), np.array(classes, np.int64)


def pretrain(cfg: DictConfig) -> dict[str, Any]:
    """Renders, trains one encoder, measures it on held-out scenes, and writes its weights.

    Returns:
        The log that is written beside the weights.
    """
    import lightning as L
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from torch import nn
    from torch.nn import functional

    from geopak.data.augment import Augmenter
    from geopak.models.encoders import SceneEncoder, SemanticEncoder
    from geopak.options import plain
    from geopak.render.scene_prior import random_scene
    from geopak.render.scene_targets import CATEGORIES, content_targets
    from geopak.task import learning_rate_factor

    began = time.time()
    torch.set_num_threads(cfg.threads)
    L.seed_everything(cfg.seed, verbose=False)
    model_config = plain(cfg.model)
    size = model_config["image_size"]
    encoder: SemanticEncoder | SceneEncoder
    if cfg.encoder == "semantic":
        encoder = SemanticEncoder(image_size=size, **model_config["semantic"]["shape"])
    else:
        encoder = SceneEncoder(**model_config["scene"]["shape"])

    names = [list(part) for part in content_targets(random_scene(np.random.default_rng(0), 0.5))]
    asked_numbers, asked_classes = names
    if cfg.encoder == "scene":
        colours = {f"{c}_{channel}" for c in SCENE_COLOURS for channel in "rgb"}
        asked_numbers = [n for n in names[0] if n in SCENE_NUMBERS or n in colours]
        asked_classes = list(SCENE_CLASSES)
    number_columns = [names[0].index(n) for n in asked_numbers]
    class_columns = [names[1].index(n) for n in asked_classes]

    total = cfg.num_scenes + cfg.num_val_scenes
    load_size = round(size * cfg.load_margin)
    chunks = [range(i, min(i + 500, total)) for i in range(0, total, 500)]
    work = partial(render_scenes, size=load_size, seed=cfg.seed, difficulty=cfg.difficulty)
    with ProcessPoolExecutor(cfg.workers) as pool:
        rendered = list(pool.map(work, chunks))
    image, numbers, classes = (np.concatenate(part) for part in zip(*rendered, strict=True))
    log.info("rendered %d scenes in %.0f s", total, time.time() - began)

    images = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous()
    number = torch.from_numpy(numbers[:, number_columns])
    category = torch.from_numpy(classes[:, class_columns])
    train = slice(0, cfg.num_scenes)
    mean = number[train].nanmean(0)
    std = (number[train] - mean).square().nanmean(0).sqrt().clamp_min(1e-3)
    number = (number - mean) / std
    widths = [len(CATEGORIES[name]) for name in asked_classes]

    head = nn.Linear(encoder.dim, len(asked_numbers) + sum(widths))
    augmenter = Augmenter(size, plain(cfg.augmentation))

    def loss_of(out: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        wanted = number[rows]
        seen = wanted.isfinite()
        error = functional.smooth_l1_loss(
            out[:, : wanted.shape[1]], wanted.nan_to_num(), reduction="none"
        )
        loss = (error * seen).sum() / seen.sum().clamp_min(1) * cfg.number_weight
        logits = out[:, wanted.shape[1] :].split(widths, dim=1)
        for i, logit in enumerate(logits):
            target = category[rows, i]
            if (target >= 0).any():
                loss = loss + functional.cross_entropy(logit, target, ignore_index=-1) / len(widths)
        return loss

    network = nn.Sequential(encoder, head)
    steps_per_epoch = cfg.num_scenes // cfg.batch_size
    num_steps = cfg.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, num_steps, "cosine", cfg.warmup)
    )
    generator = torch.Generator().manual_seed(cfg.seed)
    for epoch in range(cfg.epochs):
        network.train()
        order = torch.randperm(cfg.num_scenes, generator=generator)
        running = 0.0
        for step in range(steps_per_epoch):
            rows = order[step * cfg.batch_size : (step + 1) * cfg.batch_size]
            loss = loss_of(network(augmenter(images[rows], generator)), rows)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), cfg.gradient_clip)
            optimizer.step()
            schedule.step()
            running += float(loss.detach())
        log.info(
            "epoch %d/%d: loss %.4f, %.0f s",
            epoch + 1,
            cfg.epochs,
            running / steps_per_epoch,
            time.time() - began,
        )

    network.eval()
    still = Augmenter(size, dict.fromkeys(plain(cfg.augmentation), 0) | {"crop_scale": [1, 1]})
    rows = torch.arange(cfg.num_scenes, total)
    with torch.inference_mode():
        out = torch.cat([network(still(images[r], generator)) for r in rows.split(256)])
    scores: dict[str, float] = {}
    for i, name in enumerate(asked_numbers):
        truth = number[rows, i]
        seen = truth.isfinite()
        residual = (out[seen, i] - truth[seen]).square().mean() / truth[seen].var()
        scores[f"r2/{name}"] = round(1 - float(residual), 3)
    for i, logit in enumerate(out[:, len(asked_numbers) :].split(widths, dim=1)):
        target = category[rows, i]
        seen = target >= 0
        right = logit[seen].argmax(1) == target[seen]
        scores[f"accuracy/{asked_classes[i]}"] = round(float(right.float().mean()), 3)

    weights = Path(cfg.out)
    weights.parent.mkdir(parents=True, exist_ok=True)
    state = {
        k: v.half().contiguous() if v.is_floating_point() else v.contiguous()
        for k, v in encoder.body().state_dict().items()
    }
    save_file(state, weights)
    record = {
        "encoder": cfg.encoder,
        "seed": cfg.seed,
        "num_scenes": cfg.num_scenes,
        "epochs": cfg.epochs,
        "batch_size": cfg.batch_size,
        "lr": cfg.lr,
        "shape": model_config[cfg.encoder]["shape"],
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "seconds": round(time.time() - began),
        "held_out_scenes": cfg.num_val_scenes,
        "scores": scores,
    }
    weights.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    log.info("wrote %s (%.1f MB)", weights, weights.stat().st_size / 1e6)
    return record


@entry_point("pretrain")
def main(cfg: DictConfig) -> None:
    pretrain(cfg)


if __name__ == "__main__":
    main()
