"""The published classes' ``state_dict`` as ours.

Our names lead: for every weight of ours there is a weight of theirs, or several that are laid upon
each other. What a checkpoint lacks, and what it has beyond that, is told by its own names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopak.errors import CheckpointError
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.models.geolocator import Geolocator
from geopak.models.weight_files import check_fit, listed
from geopak.published.cells import CellMetadata

_VISION = "encoder.clip_model.vision_model"
_SCENE = "encoder.scene_encoder"
_HEADS = "geocell_heads."
# Our name -> theirs, both without the ending .weight or .bias. Groups of the pattern are numbers.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"semantic\.visual\.conv1", f"{_VISION}.embeddings.patch_embedding"),
    # Spelled like this in transformers.
    (r"semantic\.visual\.ln_pre", f"{_VISION}.pre_layrnorm"),
    (r"semantic\.visual\.ln_post", f"{_VISION}.post_layernorm"),
    (r"semantic\.visual\.transformer\.resblocks\.(\d+)\.ln_([12])", r"{0}.layer_norm{1}"),
    (r"semantic\.visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj", "{0}.self_attn.out_proj"),
    (r"semantic\.visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc", "{0}.mlp.fc1"),
    (r"semantic\.visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj", "{0}.mlp.fc2"),
    (r"province_head\.layers\.0", "province_head.linear"),
    (r"province_head\.layers\.1", "province_head.norm"),
    (r"province_head\.layers\.4", "province_head.linear_out"),
    (r"(cell|province)_embedding", "{0}_embedding"),
    (r"offset_head\.norm_fused", "offset_head.norm_img"),
    (r"offset_head\.norm_cell", "offset_head.norm_cell"),
    (r"offset_head\.norm_province", "offset_head.norm_prov"),
    (r"offset_head\.enter\.0", "offset_head.linear1"),
    (r"offset_head\.enter\.1", "offset_head.norm1"),
    (r"offset_head\.residual\.0", "offset_head.linear2"),
    (r"offset_head\.residual\.1", "offset_head.norm2"),
    (r"offset_head\.leave\.0", "offset_head.linear3"),
    (r"offset_head\.output", "offset_head.linear_out"),
    (r"auxiliary_head\.layers\.0", "aux_head.linear1"),
    (r"auxiliary_head\.layers\.2", "aux_head.linear_out"),
)
_CELL_HEAD_LAYERS = {"0": "linear1", "1": "norm", "3": "linear_out"}
# What ours are made from by the cell table and the model's choices.
_OWN = re.compile(
    r"cell_center_deg|cell_province_id|offset_bound_km|auxiliary_head\.(center|scale)_deg"
)
# Parts of theirs that no prediction needs: a whole CLIP's other tower, and the numbers of the
# patches, which older transformers stored.
_UNUSED = re.compile(
    r"encoder\.clip_model\.(text_model|text_projection|visual_projection|logit_scale)\b"
    rf"|{re.escape(_VISION)}\.embeddings\.position_ids$"
)
_CENTER_TOLERANCE_DEG = 1e-4
_RADIUS_TOLERANCE_KM = 1e-3


@dataclass(frozen=True, eq=False)
class Layout:
    """Which of their cells each of ours is.

    Attributes:
        metadata_row: (N,) row of the :class:`CellMetadata`.
        embedding_row: (N,) row of their ``cell_embedding``.
        head_names: their name of each province's head, in our index order.
        buffers: keys that say where the cells are, which have been checked.
    """

    metadata_row: NDArray[np.int64]
    embedding_row: NDArray[np.int64]
    head_names: tuple[str, ...]
    buffers: frozenset[str]


def arrange(
    state: Mapping[str, Tensor], metadata: CellMetadata, region: Region, source: str
) -> Layout:
    """Finds the order of the cells, and checks the table against the checkpoint's buffers.

    The cells of a province come in the order of its head's output: by the checkpoint's
    local-to-global ids, or by ascending id where it has none.

    Args:
        state: theirs.
        metadata: the cells.
        region: its order of provinces is the order of the classes.
        source: name of the checkpoint, for messages.

    Raises:
        CheckpointError: no published checkpoint, other provinces or cells than the table's.
    """
    head_names = _head_names(state, region, source)
    if "cell_embedding.weight" not in state:
        raise CheckpointError(f"{source}: missing keys: cell_embedding.weight.")
    position = _position(metadata, len(state["cell_embedding.weight"]), "cell_embedding", source)
    buffers = _check_geometry(state, metadata, region, source)
    local_ids = _local_to_global(state, head_names, region, source)
    buffers |= {key for key, _ in local_ids.values()}
    rows: list[NDArray[np.int64]] = []
    for index, name in enumerate(head_names):
        own = np.flatnonzero(metadata.province_id == index)
        if index in local_ids:
            key, ids = local_ids[index]
            own = _rows_of_ids(metadata, own, ids, key, source)
        key = f"{_HEADS}{name}.linear_out.weight"
        if key in state and len(state[key]) != len(own):
            raise CheckpointError(
                f"{source}: {key} has {len(state[key])} cells, but {metadata.source} has "
                f"{len(own)} of {region.names[index]}. Take the table of cells that the "
                "checkpoint was trained with."
            )
        rows.append(own)
    order = np.concatenate(rows)
    return Layout(order, position[order], tuple(head_names), frozenset(buffers))


def province_temperature(beside: Mapping[str, Any], configured: float, source: str) -> float:
    """What the province logits are divided by: the published trainings keep it with the weights.

    Args:
        beside: what the checkpoint holds beside its weights.
        configured: of a checkpoint that does not say.
        source: name of the checkpoint, for messages.

    Raises:
        CheckpointError: no temperature.
    """
    stored = beside.get("temperature")
    if stored is None:
        return configured
    try:
        temperature = float(stored)
    except (TypeError, ValueError, RuntimeError):
        temperature = math.nan
    if not 0 < temperature < math.inf:
        raise CheckpointError(f"{source}: temperature={stored} is not a positive number.")
    return temperature


def load_published(
    model: Geolocator, state: Mapping[str, Tensor], layout: Layout, source: str
) -> list[str]:
    """Puts the published weights into a model of ours.

    Args:
        model: of the published choices and sizes, over the cells in the layout's order.
        state: theirs.
        layout: of :func:`arrange`.
        source: name of the checkpoint, for messages.

    Returns:
        Keys that no prediction needs and that were left out.

    Raises:
        CheckpointError: missing or unexpected keys, or wrong shapes, each by their name.
    """
    ours = model.state_dict()
    found: dict[str, Tensor] = {}
    used = set(layout.buffers) | _check_statistics(model, state, source)
    missing: list[str] = []
    shapes: list[str] = []
    for name, own in ours.items():
        if _OWN.fullmatch(name):
            found[name] = own
            continue
        keys = _sources(name, state, layout)
        used.update(keys)
        if name.endswith(".num_batches_tracked") and keys[0] not in state:
            # Files from before PyTorch 0.4.1 have no counts, which are not used either.
            found[name] = own
            continue
        lacking = [key for key in keys if key not in state]
        if lacking:
            missing += lacking
            continue
        parts = [state[key] for key in keys]
        if name == "cell_embedding.weight":
            parts = [parts[0][torch.from_numpy(layout.embedding_row)]]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        if value.shape != own.shape:
            wanted = (len(own) // len(keys), *own.shape[1:]) if own.dim() else ()
            shapes += [
                f"{key} {tuple(part.shape)} instead of {wanted}"
                for key, part in zip(keys, parts, strict=True)
            ]
            continue
        found[name] = value.to(own.dtype)
    rest = [key for key in state if key not in used]
    # Without it the class token is taken before this norm.
    unused = [k for k in rest if _UNUSED.match(k) or k.startswith(f"{_VISION}.post_layernorm.")]
    unexpected = sorted(set(rest) - set(unused))
    check_fit(
        f"{source} does not hold the weights of this model",
        missing,
        unexpected,
        shapes,
        "If it is one of the published kind with other encoders or widths, describe them with "
        "model.semantic.shape.*, model.scene.shape.* and model.sizes.*.",
    )
    model.load_state_dict(found)
    return unused


def _check_statistics(model: Geolocator, state: Mapping[str, Tensor], source: str) -> set[str]:
    """Compares the channel statistics that a checkpoint stores with the encoders' own.

    Returns:
        Their keys, which may be none.
    """
    checked: set[str] = set()
    for key, value in state.items():
        match = re.fullmatch(r"encoder\.(?:(\w*)_)?(mean|std)", key)
        if match is None or value.numel() != 3:
            continue
        whose = (match[1] or "").casefold()
        of_clip, of_scene = "clip" in whose, re.search("scene|places|resnet|imagenet", whose)
        names = ["semantic"] if of_clip else ["scene"] if of_scene else ["semantic", "scene"]
        for name in names:
            own = getattr(model.get_submodule(name), match[2])
            if not torch.allclose(own.flatten(), value.flatten().float(), atol=1e-4):
                numbers = ",".join(f"{x:g}" for x in value.flatten().tolist())
                raise CheckpointError(
                    f"{source}: {key} is not what the {name} encoder normalises with: pass "
                    f"model.{name}.shape.{match[2]}=[{numbers}]."
                )
        checked.add(key)
    return checked


def _sources(name: str, state: Mapping[str, Tensor], layout: Layout) -> list[str]:
    """The keys of theirs that hold a weight of ours, in the order they are laid together."""
    module, _, kind = name.rpartition(".")
    if name == "semantic.visual.class_embedding":
        return [f"{_VISION}.embeddings.class_embedding"]
    if name == "semantic.visual.positional_embedding":
        return [f"{_VISION}.embeddings.position_embedding.weight"]
    if attention := re.fullmatch(
        r"semantic\.visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name
    ):
        block = f"{_VISION}.encoder.layers.{attention[1]}.self_attn"
        return [f"{block}.{part}_proj.{attention[2]}" for part in "qkv"]
    if stage := re.fullmatch(r"scene\.network\.(conv1|bn1|layer([1-4]))(\..+)", name):
        # torchvision's children in order: conv1, bn1, relu, maxpool, layer1, …
        number = {"conv1": 0, "bn1": 1}.get(stage[1]) if stage[2] is None else 3 + int(stage[2])
        return [f"{_SCENE}.{number}{stage[3]}"]
    if projection := re.fullmatch(r"(semantic|scene)_projection\.([01])", module):
        theirs = "clip" if projection[1] == "semantic" else "scene"
        ndim = 2 if projection[2] == "0" else 1
        return [f"{_part(state, f'encoder.{theirs}_projection', ndim, projection[2])}.{kind}"]
    if module == "fusion.gate":
        return [f"{_part(state, 'encoder.fusion.gate', 2, '')}.{kind}"]
    if head := re.fullmatch(r"cell_heads\.heads\.(\d+)\.([013])", module):
        layer = _CELL_HEAD_LAYERS[head[2]]
        return [f"{_HEADS}{layout.head_names[int(head[1])]}.{layer}.{kind}"]
    for pattern, template in _NAMES:
        if match := re.fullmatch(pattern, module):
            first, *others = match.groups() or ("",)
            if ".resblocks." in module:
                first = f"{_VISION}.encoder.layers.{first}"
            return [f"{template.format(first, *others)}.{kind}"]
    raise CheckpointError(
        f"The published architecture has nothing like {name}. Choose model=published."
    )


def _part(state: Mapping[str, Tensor], prefix: str, ndim: int, usual: str) -> str:
    """The layer below a prefix whose weight has so many axes, whatever it is called there."""
    for key, value in state.items():
        if key.startswith(f"{prefix}.") and key.endswith(".weight") and value.dim() == ndim:
            return key.removesuffix(".weight")
    return f"{prefix}.{usual}" if usual else prefix


def _head_names(state: Mapping[str, Tensor], region: Region, source: str) -> list[str]:
    """Their name of each province's cell head, in our order."""
    names = dict.fromkeys(
        key.removeprefix(_HEADS).partition(".")[0] for key in state if key.startswith(_HEADS)
    )
    if not names:
        groups = sorted({key.partition(".")[0] for key in state})
        raise CheckpointError(
            f"{source} is no checkpoint of the published classes: it has no {_HEADS}*. It holds "
            f"{listed(groups)}."
        )
    found: dict[int, str] = {}
    for name in names:
        index = region.find(name)
        if index is None:
            raise CheckpointError(
                f"{source} has a head {_HEADS}{name}, which is no province of {region.title} "
                f"({', '.join(region.names)}). Choose the region= of the checkpoint, or add the "
                "name to region.provinces.<key>.aliases."
            )
        if index in found:
            raise CheckpointError(
                f"{source} has two heads for {region.names[index]}: {found[index]} and {name}."
            )
        found[index] = name
    lacking = [name for i, name in enumerate(region.names) if i not in found]
    if lacking:
        raise CheckpointError(
            f"{source} has no {_HEADS}* for {', '.join(lacking)}. Choose the region= of the "
            "checkpoint."
        )
    return [found[index] for index in range(region.num_provinces)]


def _position(metadata: CellMetadata, size: int, what: str, source: str) -> NDArray[np.int64]:
    """(N,) where an array of theirs holds each cell: by its rank, or by its id."""
    if size == metadata.num_cells:
        return np.arange(size)
    if size == metadata.cell_id[-1] + 1:
        return metadata.cell_id
    raise CheckpointError(
        f"{source}: {what} has {size} cells, but {metadata.source} has {metadata.num_cells}. Take "
        "the table of cells that the checkpoint was trained with."
    )


def _top_buffers(state: Mapping[str, Tensor], *words: str) -> list[str]:
    """Keys outside of any module of theirs whose names have one of some words in them."""
    return [
        key
        for key in state
        if "." not in key
        and any(word in key.casefold() for word in words)
        and "scale" not in key.casefold()
        and not _is_local(key)
    ]


def _is_local(key: str) -> bool:
    name = key.casefold()
    return ("local" in name and "global" in name) or "l2g" in name


def _check_geometry(
    state: Mapping[str, Tensor], metadata: CellMetadata, region: Region, source: str
) -> set[str]:
    """Compares centers, radii and provinces with the table's, as far as the checkpoint has them.

    Returns:
        The keys that were compared.
    """
    known: list[tuple[str, NDArray[np.float64], float]] = []
    for key in _top_buffers(state, "center", "centre"):
        parts = set(re.split(r"[^a-z]+", key.casefold()))
        if state[key].dim() == 2:
            wanted = metadata.center_latlon_deg
        elif parts & {"lat", "latitude", "lats"}:
            wanted = metadata.center_latlon_deg[:, 0]
        elif parts & {"lon", "lng", "longitude", "lons"}:
            wanted = metadata.center_latlon_deg[:, 1]
        else:
            continue
        known.append((key, wanted, _CENTER_TOLERANCE_DEG))
    known += [
        (key, metadata.radius_km, _RADIUS_TOLERANCE_KM) for key in _top_buffers(state, "radi")
    ]
    known += [
        (key, metadata.province_id.astype(float), 0)
        for key in _top_buffers(state, "province")
        if not state[key].is_floating_point()
    ]
    for key, wanted, tolerance in known:
        position = _position(metadata, len(state[key]), key, source)
        theirs = state[key].double().cpu().numpy()[position]
        if theirs.shape != wanted.shape:
            raise CheckpointError(
                f"{source}: {key} has the shape {tuple(state[key].shape)}, expected is "
                f"{wanted.shape}."
            )
        # float32 has seven digits.
        allowed = tolerance + 1e-6 * np.abs(wanted) if tolerance else 0
        apart = ~(np.abs(theirs - wanted) <= allowed)
        if apart.any():
            row = int(np.flatnonzero(apart.reshape(len(apart), -1).any(1))[0])
            hint = "" if tolerance else f" The order of provinces is {', '.join(region.names)}."
            raise CheckpointError(
                f"{source}: {key} of cell {metadata.cell_id[row]} is {theirs[row]}, in "
                f"{metadata.source} it is {wanted[row]}.{hint} Take the table of cells that the "
                "checkpoint was trained with."
            )
    return {key for key, _, _ in known}


def _local_to_global(
    state: Mapping[str, Tensor], head_names: list[str], region: Region, source: str
) -> dict[int, tuple[str, NDArray[np.int64]]]:
    """The key and the ids of the cells of each province's head, where the checkpoint has them."""
    found: dict[int, tuple[str, NDArray[np.int64]]] = {}
    for key, value in state.items():
        inside = key.startswith(_HEADS) and not value.is_floating_point()
        if not inside and not _is_local(key):
            continue
        ids = value.cpu().numpy().astype(np.int64)
        if ids.ndim == 2 and len(ids) == len(head_names):
            found |= {i: (key, row[row >= 0]) for i, row in enumerate(ids)}
            continue
        index = (
            head_names.index(key.removeprefix(_HEADS).partition(".")[0])
            if key.startswith(_HEADS)
            else _province_in(key, region)
        )
        if index is None or ids.ndim != 1:
            raise CheckpointError(
                f"{source}: {key} {tuple(value.shape)} names no province of {region.title}, nor "
                f"has it a row for each."
            )
        found[index] = (key, ids)
    return found


def _province_in(key: str, region: Region) -> int | None:
    """The province whose name, key or alias is in a name; of several the longest."""

    def letters(text: str) -> str:
        return re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")

    spaced = f"_{letters(key)}_"
    spellings = [
        (len(spelling), index)
        for index, p in enumerate(region.provinces)
        for spelling in map(letters, (p.key, p.name, *p.aliases))
        if f"_{spelling}_" in spaced
    ]
    if spellings:
        return max(spellings)[1]
    number = re.search(r"_(\d+)_$", spaced)
    return int(number[1]) if number and int(number[1]) < region.num_provinces else None


def _rows_of_ids(
    metadata: CellMetadata,
    own: NDArray[np.int64],
    ids: NDArray[np.int64],
    key: str,
    source: str,
) -> NDArray[np.int64]:
    """Rows of the table for a province's ids, which are ids of the file or ranks among them."""
    for known in (metadata.cell_id[own], own):
        if np.array_equal(np.sort(known), np.sort(ids)):
            return own[np.argsort(known)][np.searchsorted(np.sort(known), ids)]
    strange = np.setdiff1d(ids, metadata.cell_id[own])
    lacking = np.setdiff1d(metadata.cell_id[own], ids)
    raise CheckpointError(
        f"{source}: {key} has {len(ids)} cells, {metadata.source} has {len(own)} of that province"
        + (f"; cell {strange[0]} is not among them" if len(strange) else "")
        + (f"; cell {lacking[0]} is missing" if len(lacking) else "")
        + ". Take the table of cells that the checkpoint was trained with."
    )


def original_cell_ids(metadata: CellMetadata, layout: Layout) -> Tensor:
    """(N,) int64: the file's id of each of our cells."""
    return torch.from_numpy(metadata.cell_id[layout.metadata_row].copy())


def imported_cells(metadata: CellMetadata, layout: Layout, region: Region) -> CellTable:
    """The cell table of ours, in the layout's order."""
    return metadata.table(layout.metadata_row, region)
