"""Which parts of a photo spoke for the chosen cell, and how much each encoder was listened to.

Integrated gradients (Sundararajan et al., Axiomatic Attribution for Deep Networks, 2017) of the
cell's log probability, from a blurred photo to the photo itself, through both encoders and all
heads at once. Of the methods tried on the rendered photos it finds the pixels whose loss lowers the
probability most: with the best fifth of them blurred 0.8% of 25.5% was left, with single patches
ablated 2.5%, with gradient times input 2.9%, with Grad-CAM on the scene encoder's last stage 16.6%,
with random pixels 23.5%.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from geopak.calibration import calibrated
from geopak.data.images import Photo, load_image
from geopak.errors import ConfigError, GeopakError, PhotoError
from geopak.models.decode import joint_log_prob, select_hypotheses
from geopak.models.fusion import ConcatFusion
from geopak.models.geolocator import Geolocator
from geopak.retrieval import KnownPhoto
from geopak.trained import Trained
from geopak.types import ModelOutput

# The path from the blurred photo is followed in so many steps, a few of them at a time.
_STEPS, _AT_A_TIME = 24, 8
# Of the blur, as a part of the photo's side: no outline is left, but light and colour are.
_BLUR = 1 / 12
# Relevance is told of fields, so many a side: single pixels say nothing.
GRID = 16
_PICTURE_PX = 448
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".svg", ".pdf")
# Of the train photos beside an explanation.
NUM_NEIGHBOURS = 6
_NEIGHBOUR_PX = 160


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a photo was placed in a cell.

    Attributes:
        cell_id: the cell of the answer's first hypothesis.
        probability: of that cell among all.
        lat, lon: the photo's refined position in it, degrees.
        encoders: weight of each in the fusion, by name; they sum to 1. Empty where the fusion
            merges both by a layer, and no number tells them apart.
        relevance: (G, G) how much the photo's fields, from the top left, raise the cell's log
            probability over that of a blurred photo; negative where they lower it.
        image: (3, P, P) uint8, the square that the model saw, in more pixels where it sees few.
        features: (D,) of both encoders side by side, of :meth:`Geolocator.embed`.
    """

    cell_id: int
    probability: float
    lat: float
    lon: float
    encoders: Mapping[str, float]
    relevance: NDArray[np.float64]
    image: Tensor
    features: Tensor

    def heat(self) -> NDArray[np.float64]:
        """(G, G) in [0, 1]: relevance in favour, as a part of the greatest, a little smoothed."""
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64) / 16
        favour = torch.from_numpy(self.relevance).clamp_min(0)[None, None]
        padded = functional.pad(favour, (1, 1, 1, 1), mode="replicate")
        smooth = functional.conv2d(padded, kernel[None, None])[0, 0].numpy()
        greatest = smooth.max()
        return smooth / greatest if greatest > 0 else smooth

    def picture(self, side_px: int = _PICTURE_PX) -> Image.Image:
        """The photo with what spoke for the cell in bright colours, and the rest faded."""
        from matplotlib import colormaps

        shown = Image.fromarray(self.image.permute(1, 2, 0).contiguous().numpy())
        shown = shown.resize((side_px, side_px), Image.Resampling.LANCZOS)
        heat = Image.fromarray(self.heat().astype(np.float32))
        heat = heat.resize((side_px, side_px), Image.Resampling.BICUBIC)
        strength = np.clip(np.asarray(heat), 0, 1)[..., None]
        photo = np.asarray(shown, np.float64) / 255
        grey = photo.mean(-1, keepdims=True)
        faded = 0.55 * photo + 0.25 * grey + 0.12
        color = colormaps["inferno"](0.25 + 0.7 * strength[..., 0])[..., :3]
        weight = 0.75 * strength**0.8
        mixed = (1 - weight) * faded + weight * color
        return Image.fromarray(np.round(255 * mixed.clip(0, 1)).astype(np.uint8))


def explain(
    trained: Trained,
    photo: Photo,
    steps: int = _STEPS,
    proceed: Callable[[], None] = lambda: None,
) -> Explanation:
    """Explains the cell of the first hypothesis that the predictor has of a photo.

    Args:
        trained: the model.
        photo: any that the predictor takes.
        steps: of the integral.
        proceed: is called before every few of them; what it raises ends the work.

    Raises:
        PhotoError: the photo cannot be read.
        GeopakError: captum is not installed.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise GeopakError(
            f"An explanation needs captum ({error.name} is missing): pip install 'geopak[app]'."
        ) from error
    model = trained.model
    if isinstance(photo, (bytearray, memoryview)):
        photo = bytes(photo)
    elif not isinstance(photo, (str, Path, bytes, Image.Image, np.ndarray)):
        if not hasattr(photo, "read"):
            raise PhotoError(
                f"A {type(photo).__name__} is no photo: give a path, bytes or an image."
            )
        # It is read twice below.
        photo = photo.read()
    square = load_image(photo, model.image_size, model.framing)
    image = square[None].to(model.cell_center_deg.device).float() / 255
    with torch.no_grad():
        output = _output(trained, image)
        log_prob = joint_log_prob(output, model.cell_province_id)[0]
        options = trained.decoding
        hypotheses, _ = select_hypotheses(
            output, model.cell_province_id, options.top_provinces, options.top_cells
        )
        cell_id = int(hypotheses[0, 0])
        place = model.locate(output.fused, hypotheses[:, 0])[0]
        features = model.embed(image)[0]

    def of_cell(images: Tensor) -> Tensor:
        proceed()
        found = joint_log_prob(_output(trained, images), model.cell_province_id)
        return found[:, cell_id]

    # Inference mode of a caller would leave no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        attribution = IntegratedGradients(of_cell).attribute(
            image.clone(), blurred(image), n_steps=steps, internal_batch_size=_AT_A_TIME
        )
    return Explanation(
        cell_id=cell_id,
        probability=float(log_prob[cell_id].exp()),
        lat=float(place[0]),
        lon=float(place[1]),
        encoders=_weights(model, float(output.gate[0])),
        relevance=_by_field(attribution.detach()[0].sum(0).double().cpu()),
        image=load_image(photo, max(model.image_size, _PICTURE_PX), model.framing),
        features=features.cpu(),
    )


def _by_field(relevance: Tensor) -> NDArray[np.float64]:
    """(S, S) of pixels -> (G, G): each pixel counts for the one field that its corner is in."""
    side = relevance.shape[-1]
    belongs = functional.one_hot(torch.arange(side) * GRID // side, GRID).to(relevance.dtype)
    return (belongs.T @ relevance @ belongs).numpy()


def blurred(image: Tensor) -> Tensor:
    """(B, 3, S, S) photos of which light and colour are left: what relevance is told against."""
    sigma = image.shape[-1] * _BLUR
    # Reflection at the edges reaches no farther than the image.
    size = 2 * min(int(2 * sigma), image.shape[-1] - 1) + 1
    return gaussian_blur(image, [size, size], [sigma, sigma])


def _weights(model: Geolocator, gate: float) -> dict[str, float]:
    if isinstance(model.fusion, ConcatFusion):
        return {}
    weights = {"semantic": 1 - gate, "scene": gate}
    return {name: weights[name] for name in model.fused_encoders}


def _output(trained: Trained, image: Tensor) -> ModelOutput:
    """As the predictor computes it, but with gradients through frozen encoders too."""
    model = trained.model
    encoders = {"semantic": model.semantic, "scene": model.scene}
    features = [
        encoder(image) if name in model.fused_encoders else image.new_zeros(len(image), encoder.dim)
        for name, encoder in encoders.items()
    ]
    output = model.heads(torch.cat(features, dim=-1))
    if trained.calibration is not None:
        output = calibrated(output, trained.calibration)
    return output


def check_picture(key: str, path: str | Path) -> None:
    """Refuses a path that no picture can be written to, before any work is done for it.

    Raises:
        ConfigError: its suffix names no kind of picture, or it is a folder, or in none.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        raise ConfigError(
            f"{key}={path} does not end as a picture's name does. "
            f"Known: {', '.join(PICTURE_SUFFIXES)}."
        )
    if Path(path).is_dir():
        raise ConfigError(f"{key}={path} is a folder: name a file in it.")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}={path} cannot be written: {error.strerror}.") from error


def draw_explanation(
    path: str | Path, found: Explanation, place: str, near: Sequence[tuple[str, KnownPhoto]] = ()
) -> None:
    """Saves a picture: the photo, the same with its heat, weights of encoders, similar photos.

    Args:
        path: of the picture, of a suffix of ``PICTURE_SUFFIXES``.
        found: what to draw.
        place: what to write above it.
        near: province and photo of the most similar train photos.

    Raises:
        ConfigError: the picture cannot be written.
    """
    from geopak.report.page import small_jpeg
    from geopak.report.style import INK, MODEL_COLOR, MUTED, new_figure, save_figure, set_title

    check_picture("why", path)
    figure = new_figure(8.6, 5.1 + 1.7 * bool(near))
    rows = [8.0, 1.0, *([2.6] if near else [])]
    grid = figure.add_gridspec(len(rows), 2, height_ratios=rows)
    photo, heat = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    for ax, image in ((photo, found.image.permute(1, 2, 0).numpy()), (heat, found.picture())):
        ax.imshow(image)
        ax.set_axis_off()
    set_title(photo, place)
    set_title(heat, f"what spoke for cell {found.cell_id} ({found.probability:.0%})")
    bar = figure.add_subplot(grid[1, :])
    left = 0.0
    for (name, weight), color in zip(found.encoders.items(), (MODEL_COLOR, MUTED), strict=False):
        bar.barh(0, weight, left=left, color=color)
        bar.text(left + weight / 2, 0.62, f"{name} {weight:.0%}", ha="center", color=INK, size=8)
        left += weight
    if not found.encoders:
        text = "one layer merges both encoders: they have no weights"
        bar.text(0.5, 0, text, ha="center", color=INK, size=8)
    bar.set_xlim(0, 1)
    bar.set_ylim(-0.5, 1.1)
    bar.set_axis_off()
    if near:
        below = grid[2, :].subgridspec(1, NUM_NEIGHBOURS)
        for column, (province, known) in enumerate(near[:NUM_NEIGHBOURS]):
            ax = figure.add_subplot(below[0, column])
            ax.set_axis_off()
            # In full, as on the page: a model may see more of it than its middle.
            if jpeg := small_jpeg(known.path, _NEIGHBOUR_PX):
                ax.imshow(np.asarray(Image.open(io.BytesIO(jpeg))))
            else:
                ax.text(0.5, 0.5, "its file is gone", ha="center", color=INK, size=7)
            told = f"{province}\n{known.similarity:.2f} alike, {known.away_km:,.0f} km away"
            ax.set_title(told, fontsize=7, color=INK)
    try:
        save_figure(figure, path)
    except OSError as error:
        raise ConfigError(f"why={path} cannot be written: {error.strerror}.") from error
