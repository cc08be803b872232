"""Pictures that are not photos, and photo-like ones that are easily taken for such."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

TEXT = (
    "the road goes over a bridge and along the river to the old town where market days are held "
    "each week under tall trees near school and mosque with water from hills far away"
)


def _line(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(TEXT.split(), words))


def _to_image(values: NDArray[np.float64]) -> Image.Image:
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, 2)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def spectrum(
    rng: np.random.Generator, size: tuple[int, int], falloff: float = 1.0
) -> NDArray[np.float64]:
    """Noise whose amplitude falls with frequency as in natural scenes; mean 0, deviation 1."""
    width, height = size
    y = np.fft.fftfreq(height)[:, None] * height
    x = np.fft.rfftfreq(width)[None] * width
    frequency = np.hypot(y, x)
    frequency[0, 0] = np.inf
    phases = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    field = np.fft.irfft2(phases / frequency**falloff, (height, width))
    return field / field.std()


# Not photos.


def chat(rng: np.random.Generator, size: tuple[int, int] = (540, 1170)) -> Image.Image:
    """A messenger on a phone."""
    dark = rng.random() < 0.4
    image = Image.new("RGB", size, (18, 27, 34) if dark else (236, 229, 221))
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.rectangle((0, 0, width, height // 12), fill=(32, 44, 51) if dark else (0, 128, 105))
    draw.text((60, height // 30), _line(rng, 2), "white", ImageFont.load_default(30))
    font, y = ImageFont.load_default(22), height // 12 + 20
    while y < height - 150:
        lines = int(rng.integers(1, 5))
        mine = rng.random() < 0.5
        left = width // 4 if mine else 15
        fill = ((0, 92, 75) if mine else (32, 44, 51)) if dark else (
            (217, 253, 211) if mine else (255, 255, 255))  # fmt: skip
        draw.rounded_rectangle((left, y, left + 370, y + 20 + 30 * lines), 14, fill=fill)
        for k in range(lines):
            ink = "white" if dark else (17, 27, 33)
            draw.text((left + 14, y + 8 + 30 * k), _line(rng, 6)[:32], ink, font)
        y += 40 + 30 * lines
    return image


def editor(rng: np.random.Generator, size: tuple[int, int] = (1280, 800)) -> Image.Image:
    """Source code, dark or light."""
    dark = rng.random() < 0.7
    image = Image.new("RGB", size, (30, 30, 30) if dark else (255, 255, 255))
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.rectangle((0, 0, 220, height), fill=(37, 37, 38) if dark else (243, 243, 243))
    draw.rectangle((0, height - 24, width, height), fill=(0, 122, 204))
    font = ImageFont.load_default(16)
    inks = [(86, 156, 214), (206, 145, 120), (181, 206, 168), (212, 212, 212)]
    for k, y in enumerate(range(12, height - 40, 22)):
        if k % 2:
            draw.text((20, y), _line(rng, 2), (150, 150, 150), font)
        x = 250 + 30 * int(rng.integers(0, 4))
        for _ in range(int(rng.integers(0, 7))):
            word = str(rng.choice(TEXT.split()))
            ink = inks[int(rng.integers(0, 4))]
            draw.text((x, y), word, ink if dark else tuple(c // 2 for c in ink), font)
            x += 12 + 9 * len(word)
    return image


def windows(rng: np.random.Generator, size: tuple[int, int] = (1366, 768)) -> Image.Image:
    """A desktop with windows, buttons and lists."""
    image = Image.new("RGB", size, tuple(rng.integers(30, 160, 3).tolist()))
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.rectangle((0, height - 40, width, height), fill=(32, 32, 32))
    font = ImageFont.load_default(15)
    for _ in range(int(rng.integers(2, 4))):
        x, y = int(rng.integers(0, width // 3)), int(rng.integers(0, height // 3))
        w, h = int(rng.integers(width // 2, width * 2 // 3)), int(rng.integers(350, 480))
        draw.rectangle((x, y, x + w, y + h), fill=(240, 240, 240), outline=(100, 100, 100))
        draw.rectangle((x, y, x + w, y + 30), fill=(255, 255, 255))
        draw.text((x + 10, y + 7), _line(rng, 3), "black", font)
        draw.rectangle((x + 8, y + 70, x + w // 4, y + h - 8), fill="white", outline="grey")
        for k in range((h - 90) // 22):
            draw.text((x + 14, y + 74 + 22 * k), _line(rng, 2), "black", font)
            draw.text((x + w // 4 + 20, y + 74 + 22 * k), _line(rng, 5), (40, 40, 40), font)
    return image


def web_page(rng: np.random.Generator, size: tuple[int, int] = (1280, 900)) -> Image.Image:
    """An article with a photo in it."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0], 64), fill=(36, 41, 47))
    draw.text((40, 18), _line(rng, 4), "white", ImageFont.load_default(26))
    image.paste(landscape(rng, (360, 240)), (860, 110))
    for k, y in enumerate(range(110, size[1] - 30, 26)):
        room = 75 if y < 370 else 115
        if k % 9 != 8:
            draw.text((60, y), _line(rng, 22)[:room], (30, 30, 30), ImageFont.load_default(17))
    return image


def settings_list(rng: np.random.Generator, size: tuple[int, int] = (720, 1280)) -> Image.Image:
    """Settings of a phone: rows, separators, switches."""
    dark = rng.random() < 0.5
    image = Image.new("RGB", size, (0, 0, 0) if dark else (242, 242, 247))
    draw = ImageDraw.Draw(image)
    for y in range(140, size[1] - 80, 92):
        draw.rectangle((0, y, size[0], y + 90), fill=(28, 28, 30) if dark else "white")
        draw.rounded_rectangle(
            (24, y + 20, 74, y + 70), 10, fill=tuple(rng.integers(40, 230, 3).tolist())
        )
        ink = "white" if dark else "black"
        draw.text((100, y + 28), _line(rng, 3), ink, ImageFont.load_default(28))
        draw.rounded_rectangle((620, y + 28, 690, y + 62), 17, fill=(52, 199, 89))
        draw.ellipse((656, y + 30, 688, y + 60), fill="white")
    return image


def page(rng: np.random.Generator, size: tuple[int, int] = (1240, 1754)) -> Image.Image:
    """A printed page."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(24)
    for k, y in enumerate(range(140, size[1] - 140, 40)):
        if k % 8 == 7:
            continue
        line = _line(rng, 16)
        draw.text((130, y), line[: int(rng.integers(60, 80))], (20, 20, 20), font)
    return image


def form(rng: np.random.Generator, size: tuple[int, int] = (1000, 1400)) -> Image.Image:
    """A table with ruled lines."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.text((80, 60), _line(rng, 4), "black", ImageFont.load_default(36))
    font = ImageFont.load_default(22)
    for y in range(140, size[1] - 80, 48):
        draw.line((60, y, size[0] - 60, y), (60, 60, 60), 2)
        for x in (80, 400, 760):
            draw.text((x, y + 12), _line(rng, 3)[:18], "black", font)
    for x in (60, 380, 740, size[0] - 60):
        draw.line((x, 140, x, size[1] - 92), (60, 60, 60), 2)
    return image


def scan(rng: np.random.Generator, size: tuple[int, int] = (1000, 1400)) -> Image.Image:
    """A scanned page: turned a little, uneven light, grain, yellowish paper."""
    paper = np.array([244, 238, 222]) - rng.uniform(0, 25)
    turned = page(rng, size).rotate(
        rng.uniform(-1.5, 1.5), Image.Resampling.BICUBIC, fillcolor="white"
    )
    values = np.asarray(turned.filter(ImageFilter.GaussianBlur(0.8)), float) / 255 * paper
    ramp = np.linspace(0, rng.uniform(0, 18), size[0])[None, :, None]
    return _to_image(values - ramp + rng.normal(0, 4, (size[1], size[0], 1)))


SCREENSHOTS: dict[str, Callable[..., Image.Image]] = {
    "chat": chat, "editor": editor, "windows": windows, "web_page": web_page,
    "settings_list": settings_list,
}  # fmt: skip
DOCUMENTS: dict[str, Callable[..., Image.Image]] = {"page": page, "form": form, "scan": scan}


# Photos, more or less.


def landscape(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Sky over textured ground with a few buildings, and sensor noise."""
    width, height = size
    horizon = int(height * rng.uniform(0.25, 0.75))
    texture = spectrum(rng, size)
    tint = spectrum(rng, size, 1.5)
    ground = rng.uniform(70, 150, 3) + 40 * texture[..., None] + 12 * tint[..., None]
    rows = np.arange(height)[:, None, None]
    sky = rng.uniform([110, 150, 190], [190, 215, 250]) + 25 * rows / horizon
    sky = sky + rng.choice([0, 2, 12]) * spectrum(rng, size, 1.6)[..., None]
    values = np.where(rows < horizon, sky, ground)
    for _ in range(int(rng.integers(0, 8))):
        left = int(rng.integers(0, width - width // 8))
        right = left + int(rng.integers(width // 20, width // 5))
        top = int(rng.integers(horizon // 2, horizon + 1))
        bottom = int(rng.integers(horizon + 5, height))
        wall = rng.uniform(50, 210, 3) + 12 * texture[top:bottom, left:right, None]
        values[top:bottom, left:right] = wall
        step = max(6, width // 50)
        for y in range(top + step, bottom - step, 2 * step):
            for x in range(left + step, min(right, width) - step, 2 * step):
                values[y : y + step, x : x + step * 2 // 3] = wall.mean((0, 1)) * 0.4
    return _to_image(values + rng.normal(0, rng.uniform(0.5, 5), values.shape))


def clear_sky(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Nine tenths of noiseless sky."""
    rows = np.linspace(0, 1, size[1])[:, None, None]
    values = np.array([90, 140, 210]) + rows * np.array([70, 60, 35]) + np.zeros((1, size[0], 1))
    start = int(size[1] * 0.9)
    values[start:] = 80 + 30 * spectrum(rng, size)[start:, :, None]
    return _to_image(values)


def snow(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A snow field with dark trees."""
    values = 244 + 5 * spectrum(rng, size, 1.4) + rng.normal(0, 1.5, size[::-1])
    image = _to_image(values)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 60))):
        x, y = int(rng.integers(0, size[0])), int(rng.integers(size[1] // 4, size[1]))
        tall, grey = int(rng.integers(8, 60)), int(rng.integers(20, 90))
        draw.line((x, y, x + int(rng.integers(-3, 4)), y - tall), (grey,) * 3, 1 + tall // 20)
        for k in range(0, tall, 5):
            draw.line((x - k // 3, y - tall + k, x + k // 3, y - tall + k), (grey,) * 3)
    return image


def fog(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A landscape that fades away upwards."""
    base = np.asarray(landscape(rng, size), float)
    veil = np.linspace(0.97, 0.6, size[1])[:, None, None]
    return _to_image(base * (1 - veil) + 215 * veil + rng.normal(0, 1, base.shape))


def night(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Pure black with lamps and lit windows."""
    image = Image.new("RGB", size, "black")
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(10, 120))):
        x, y = int(rng.integers(0, size[0])), int(rng.integers(size[1] // 3, size[1]))
        radius = int(rng.integers(1, 9))
        lamp = (255, int(rng.integers(180, 250)), int(rng.integers(80, 220)))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=lamp)
    halo = np.asarray(image.filter(ImageFilter.GaussianBlur(9)), float)
    return _to_image(np.maximum(np.asarray(image.filter(ImageFilter.GaussianBlur(1))), halo))


def branches(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Bare twigs before an overexposed sky: dark strokes on pure white."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)

    def grow(x: float, y: float, angle: float, length: float) -> None:
        if length < 5:
            return
        end = x + length * np.cos(angle), y - length * np.sin(angle)
        draw.line((x, y, *end), (40, 34, 30), max(1, int(length / 12)))
        for _ in range(int(rng.integers(2, 4))):
            grow(*end, angle + rng.normal(0, 0.5), length * rng.uniform(0.6, 0.8))

    for x in range(60, size[0], 170):
        grow(x, size[1], np.pi / 2 + rng.normal(0, 0.2), size[1] / 5)
    return image.filter(ImageFilter.GaussianBlur(0.6))


def wall(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A white wall with a door and a shadow."""
    values = 232 + 3 * spectrum(rng, size, 1.2) + np.linspace(0, 14, size[0])
    image = _to_image(values + rng.normal(0, 1.5, size[::-1]))
    draw = ImageDraw.Draw(image)
    x = int(rng.integers(50, size[0] - 200))
    draw.rectangle((x, size[1] // 3, x + 110, size[1]), fill=(96, 70, 48))
    draw.rectangle((x + 14, size[1] // 3 + 18, x + 96, size[1] - 20), outline=(60, 44, 30), width=3)
    return image


def bricks(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Courses of bricks with light mortar: lines as regular as text."""
    image = Image.new("RGB", size, (205, 200, 190))
    draw = ImageDraw.Draw(image)
    for row, y in enumerate(range(0, size[1], 22)):
        for x in range(-30 * (row % 2), size[0], 60):
            shade = int(rng.integers(-25, 25))
            draw.rectangle((x + 2, y + 2, x + 56, y + 18), fill=(150 + shade, 80 + shade, 60))
    values = np.asarray(image, float) + 9 * spectrum(rng, size)[..., None]
    return _to_image(values + rng.normal(0, 3, values.shape))


def facade(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A white block of flats: a straight grid of dark windows."""
    image = Image.new("RGB", size, (236, 234, 228))
    draw = ImageDraw.Draw(image)
    for y in range(30, size[1] - 40, 46):
        for x in range(20, size[0] - 40, 58):
            grey = int(rng.integers(40, 130))
            draw.rectangle((x, y, x + 30, y + 26), fill=(grey, grey, grey + 15))
    values = np.asarray(image, float) + 4 * spectrum(rng, size)[..., None]
    return _to_image(values + rng.normal(0, 2, values.shape))


def silhouette(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Black roofs before a smooth evening sky."""
    rows = np.linspace(0, 1, size[1])[:, None, None]
    values = np.array([70, 60, 110]) + rows * np.array([180, 110, 10]) + np.zeros((1, size[0], 1))
    x = 0
    while x < size[0]:
        wide = int(rng.integers(20, 90))
        values[int(size[1] * rng.uniform(0.55, 0.85)) :, x : x + wide] = 6
        x += wide
    return _to_image(values)


def signboard(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A street sign with writing, in a landscape."""
    image = landscape(rng, size)
    draw = ImageDraw.Draw(image)
    draw.rectangle((140, 90, 500, 300), fill=(0, 90, 60), outline="white", width=5)
    for y in range(110, 280, 48):
        draw.text((165, y), _line(rng, 3)[:18], "white", ImageFont.load_default(34))
    values = np.asarray(image, float) + rng.normal(0, 3, (size[1], size[0], 3))
    return _to_image(values)


def shutter(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A white roller shutter: lines as regular as text, on one background."""
    values = np.full(size[::-1], 225.0) + 2 * spectrum(rng, size)
    values[:: int(rng.integers(12, 24))] -= 110
    values[1 :: int(rng.integers(40, 60))] -= 60
    return _to_image(values + rng.normal(0, 2, values.shape))


def blown_out(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Houses before a sky that is pure white."""
    image = np.asarray(landscape(rng, size), float)
    rows = np.arange(size[1])[:, None, None]
    return _to_image(np.where(rows < size[1] * rng.uniform(0.4, 0.75), 400, image))


PHOTO_LIKE: dict[str, Callable[..., Image.Image]] = {
    "landscape": landscape, "clear_sky": clear_sky, "snow": snow, "fog": fog, "night": night,
    "branches": branches, "wall": wall, "bricks": bricks, "facade": facade,
    "silhouette": silhouette, "signboard": signboard, "shutter": shutter, "blown_out": blown_out,
}  # fmt: skip
