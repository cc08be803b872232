"""Photos of every kind, wherever they come from, become the same square."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms

from geopak.data.images import load_image
from geopak.errors import ConfigError, PhotoError

T = Image.Transpose
# What a viewer does to show a file with this EXIF orientation, and its inverse.
STORED_AS = {
    1: None,
    2: T.FLIP_LEFT_RIGHT,
    3: T.ROTATE_180,
    4: T.FLIP_TOP_BOTTOM,
    5: T.TRANSPOSE,
    6: T.ROTATE_90,
    7: T.TRANSVERSE,
    8: T.ROTATE_270,
}


def picture(width: int = 64, height: int = 48) -> Image.Image:
    """Four quadrants of different colours: red, green / blue, yellow."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (200, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 180, 40)
    pixels[height // 2 :, : width // 2] = (40, 50, 190)
    pixels[height // 2 :, width // 2 :] = (210, 200, 40)
    return Image.fromarray(pixels)


def corners(image: torch.Tensor) -> torch.Tensor:
    """(4, 3) colours in the middle of the quadrants."""
    low, high = image.shape[-1] // 4, 3 * image.shape[-1] // 4
    return torch.stack([image[:, i, j] for i in (low, high) for j in (low, high)]).float()


def assert_alike(image: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    torch.testing.assert_close(corners(image), corners(expected), rtol=0, atol=tolerance)


@pytest.fixture
def upright() -> torch.Tensor:
    return load_image(picture(), 32)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_shown_upright(
    upright: torch.Tensor, tmp_path: Path, orientation: int, suffix: str
) -> None:
    turn = STORED_AS[orientation]
    stored = picture() if turn is None else picture().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {"quality": 95, "subsampling": 0}
    stored.save(path, exif=exif, **(options if suffix in ("jpg", "webp") else {}))
    assert_alike(load_image(path, 32), upright, 8)
    with Image.open(path) as opened:
        assert_alike(load_image(opened, 32), upright, 8)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "jpg"),
        ("RGB", "png"),
        ("RGB", "webp"),
        ("RGB", "bmp"),
        ("RGB", "tiff"),
        ("RGBA", "png"),
        ("RGBA", "webp"),
        ("CMYK", "jpg"),
        ("CMYK", "tiff"),
        ("P", "png"),
        ("P", "gif"),
        ("YCbCr", "jpg"),
    ],
)
def test_every_colour_mode_keeps_its_colours(
    upright: torch.Tensor, tmp_path: Path, mode: str, suffix: str
) -> None:
    path = tmp_path / f"photo.{suffix}"
    picture().convert(mode).save(path)
    assert_alike(load_image(path, 32), upright, 30)
    assert_alike(load_image(picture().convert(mode), 32), upright, 30)


GREY = np.tile(np.repeat(np.array([40, 200], np.uint8), 32), (48, 1))
GREY_IMAGES = {
    "L": lambda: Image.fromarray(GREY),
    "LA": lambda: Image.fromarray(GREY).convert("LA"),
    "I;16": lambda: Image.fromarray(GREY.astype(np.uint16) * 257),
    "I": lambda: Image.fromarray(GREY.astype(np.int32) * 257),
    "F to 1": lambda: Image.fromarray(GREY.astype(np.float32) / 255),
    "F to 255": lambda: Image.fromarray(GREY.astype(np.float32)),
    "F to 65535": lambda: Image.fromarray(GREY.astype(np.float32) * 257),
}
FORMATS = {"L": "jpg png webp gif tiff", "LA": "png", "I;16": "png tiff", "I": "tiff"}


@pytest.mark.parametrize("mode", GREY_IMAGES)
def test_every_grey_mode_keeps_its_greys(tmp_path: Path, mode: str) -> None:
    image = GREY_IMAGES[mode]()
    assert image.mode == mode.split(" ")[0]
    expected = torch.tensor([40.0, 200, 40, 200]).view(4, 1).expand(4, 3)
    sources: list[Any] = [image]
    for suffix in FORMATS.get(mode, "tiff").split():
        image.save(tmp_path / f"grey.{suffix}")
        sources.append(tmp_path / f"grey.{suffix}")
    for source in sources:
        torch.testing.assert_close(corners(load_image(source, 32)), expected, rtol=0, atol=4)


def test_a_two_level_image_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / "bits.png")
    assert corners(load_image(tmp_path / "bits.png", 32))[:, 0].tolist() == [0, 255, 0, 255]


def test_broken_values_of_a_float_image_are_black() -> None:
    values = GREY.astype(np.float32) / 255
    values[:, :32] = np.nan
    image = load_image(Image.fromarray(values), 32)
    assert corners(image)[:, 0].tolist() == pytest.approx([0, 200, 0, 200], abs=4)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[:20, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    palette = Image.fromarray((np.arange(1600).reshape(40, 40) >= 800).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 10, 10, 10])
    palette.save(tmp_path / "p.png", transparency=1)
    palette.save(tmp_path / "p.gif", transparency=1)
    grey = Image.fromarray(np.repeat(np.array([0, 7], np.uint8), 800).reshape(40, 40))
    grey.save(tmp_path / "l.png", transparency=7)
    for source in [*sorted(tmp_path.iterdir()), rgba]:
        assert corners(load_image(source, 32))[:, 0].tolist() == [0, 0, 255, 255], source


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3000, 20), (7, 900)])
def test_every_size_and_aspect_becomes_the_square(tmp_path: Path, size: tuple[int, int]) -> None:
    colour = Image.new("RGB", size, (10, 120, 230))
    colour.save(tmp_path / "photo.png")
    colour.save(tmp_path / "photo.jpg", quality=95)
    for path in tmp_path.iterdir():
        image = load_image(path, 32)
        assert image.shape == (3, 32, 32)
        assert (image.float() - torch.tensor([10.0, 120, 230]).view(3, 1, 1)).abs().max() <= 4


def test_the_middle_of_a_wide_photo_is_kept_at_full_height() -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 105:195] = 255
    pixels[:10] = 128
    image = load_image(Image.fromarray(pixels), 100)
    assert (image[:, 20:, 8:92] == 255).all()
    assert (image[:, 50, 2] == 0).all()
    assert (image[:, 4, 50] == 128).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "turned.jpg", "large.jpg", "grey.png"])
def test_squeezed_photos_are_those_of_the_published_transform(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 40, (900, 1201, 3), dtype=np.uint8)
    shown = picture(1201, 900) if name == "large.jpg" else picture(101, 60)
    shown = Image.fromarray(np.asarray(shown) + noise[: shown.height, : shown.width])
    stored, exif = shown.convert("L") if name == "grey.png" else shown, Image.Exif()
    if name == "turned.jpg":
        stored, exif[0x0112] = shown.transpose(T.ROTATE_90), 6
    stored.save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    expected = torch.from_numpy(np.array(transforms.Resize((32, 32))(upright))).permute(2, 0, 1)
    content = (tmp_path / name).read_bytes()
    with Image.open(tmp_path / name) as opened:
        for source in (tmp_path / name, content, io.BytesIO(content), opened, np.array(upright)):
            assert torch.equal(load_image(source, 32, "squeeze"), expected)
    assert not torch.equal(load_image(content, 32), expected)
    with pytest.raises(ConfigError, match=r"framing='squeze' is unknown\. Did you mean"):
        load_image(content, 32, "squeze")


def test_a_photo_decoded_at_a_fraction_of_its_size_is_the_same_photo(tmp_path: Path) -> None:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))
    large = coarse.resize((800, 600), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as opened:
        opened.load()
        whole = load_image(opened.copy(), 32)
    drafted = load_image(tmp_path / "large.jpg", 32)
    assert (drafted.float() - whole.float()).abs().mean() < 3


@pytest.mark.parametrize(
    "array",
    [
        np.asarray(picture()),
        np.asarray(picture()).astype(np.uint16) * 257,
        np.asarray(picture()).astype(np.float32) / 255,
        np.asarray(picture()).astype(np.float64) / 255,
        np.dstack((np.asarray(picture()), np.full((48, 64), 255, np.uint8))),
        np.asarray(picture())[:, ::-1][:, ::-1],
    ],
    ids=["uint8", "uint16", "float32", "float64", "alpha", "strided"],
)
def test_an_array_is_the_same_photo(upright: torch.Tensor, array: np.ndarray) -> None:
    assert_alike(load_image(array, 32), upright, 1)


def test_a_grey_array_may_have_a_channel_or_none() -> None:
    assert torch.equal(load_image(GREY, 32), load_image(GREY[..., None], 32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), "must have shape"),
        (np.zeros((8,), np.uint8), "must have shape"),
        (np.zeros((2, 8, 8, 3), np.uint8), "must have shape"),
        (np.zeros((0, 8, 3), np.uint8), "is empty"),
        (np.full((8, 8, 3), 2.0), r"finite values in \[0, 1\]"),
        (np.full((8, 8, 3), np.nan), r"finite values in \[0, 1\]"),
        (np.zeros((8, 8, 3), np.int64), "must be uint8, uint16 or float"),
        (np.zeros((8, 8), bool), "must be uint8, uint16 or float"),
        (np.array([["a", "b"]]), "must be uint8, uint16 or float"),
    ],
)
def test_an_array_that_is_no_image_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(PhotoError, match=message):
        load_image(array, 32)


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"No photo at .*missing\.jpg"):
        load_image(tmp_path / "missing.jpg", 32)
    with pytest.raises(PhotoError, match="No photo at"):
        load_image(tmp_path, 32)
    (tmp_path / "text.jpg").write_text("not a photo")
    with pytest.raises(PhotoError, match=r"text\.jpg: not an image"):
        load_image(tmp_path / "text.jpg", 32)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(PhotoError, match=r"empty\.jpg: not an image"):
        load_image(tmp_path / "empty.jpg", 32)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "gif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_photo_is_refused_by_path_and_by_open_image(
    tmp_path: Path, suffix: str, share: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(PhotoError, match=rf"cut\.{suffix}"):
        load_image(path, 32)


def test_an_open_image_that_turns_out_truncated_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(PhotoError, match="truncated"):
        load_image(image, 32)


def test_bytes_and_open_files_are_read_like_the_file(tmp_path: Path) -> None:
    picture().save(tmp_path / "photo.jpg")
    content = (tmp_path / "photo.jpg").read_bytes()
    expected = load_image(tmp_path / "photo.jpg", 32)
    assert torch.equal(load_image(content, 32), expected)
    assert torch.equal(load_image(io.BytesIO(content), 32), expected)
    with (tmp_path / "photo.jpg").open("rb") as file:
        assert torch.equal(load_image(file, 32), expected)


def test_bytes_that_are_no_photo_are_counted_and_an_open_file_is_named(tmp_path: Path) -> None:
    picture().save(tmp_path / "photo.jpg")
    cut = (tmp_path / "photo.jpg").read_bytes()[:300]
    with pytest.raises(PhotoError, match="photo of 300 bytes"):
        load_image(cut, 32)
    with pytest.raises(PhotoError, match="photo of 0 bytes: not an image"):
        load_image(b"", 32)
    (tmp_path / "text.jpg").write_text("not a photo")
    with (
        (tmp_path / "text.jpg").open("rb") as file,
        pytest.raises(PhotoError, match=r"text\.jpg: not an image"),
    ):
        load_image(file, 32)


def test_an_open_jpeg_is_read_like_the_file_until_its_pixels_are_changed(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(path, quality=60)
    expected = load_image(path, 32)
    with Image.open(path) as image:
        assert torch.equal(load_image(image, 32), expected)
        assert torch.equal(load_image(image, 32), expected)
        image.paste((255, 255, 255), (0, 0, 120, 90))
        assert (load_image(image, 32) == 255).all()
