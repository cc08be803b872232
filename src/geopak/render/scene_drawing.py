"""Draws a scene: from its description to pixels.

Places in the picture are given as ``u`` (0 left edge, 1 right edge) and ``v`` (height above the
horizon in units of the image height, negative below it).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from geopak.render.scene import RGB, Scene, hsv, mix

Points = list[tuple[float, float]]


def _disc(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 1.0
) -> Points:
    turn = np.linspace(2 * np.pi * start, 2 * np.pi * stop, 11)
    return list(
        zip((x + rx * np.cos(turn)).tolist(), (y + ry * np.sin(turn)).tolist(), strict=True)
    )


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


# Shapes in a box that is 1 wide, centred on x = 0, with y from 0 (ground) to 1 (top); each part
# is a colour (body, trim, dark, glass) and a polygon.
_Part = tuple[str, Points]
_VEHICLE_SHAPES: dict[str, list[_Part]] = {
    "truck": [
        ("body", _box(-0.5, 0.16, 0.28, 0.86)),
        ("trim", _box(-0.5, 0.42, 0.28, 0.6)),
        ("body", _box(0.28, 0.16, 0.5, 0.72)),
        ("trim", [(0.16, 0.8), (0.54, 0.74), (0.56, 1.0), (0.2, 1.0)]),
        ("glass", _box(0.34, 0.46, 0.48, 0.68)),
        ("dark", _disc(-0.3, 0.14, 0.1, 0.15)),
        ("dark", _disc(0.32, 0.14, 0.1, 0.15)),
    ],
    "bus": [
        ("body", _box(-0.5, 0.14, 0.5, 0.9)),
        ("trim", _box(-0.5, 0.3, 0.5, 0.44)),
        ("glass", _box(-0.46, 0.52, 0.48, 0.78)),
        ("trim", _box(-0.42, 0.9, 0.3, 1.0)),
        ("dark", _disc(-0.3, 0.13, 0.08, 0.14)),
        ("dark", _disc(0.3, 0.13, 0.08, 0.14)),
    ],
    "rickshaw": [
        ("body", [(-0.34, 0.15), (0.32, 0.15), (0.4, 0.45), (-0.34, 0.5)]),
        ("trim", [(-0.38, 0.72), (0.22, 0.72), (0.14, 0.98), (-0.3, 0.98)]),
        ("dark", _box(-0.36, 0.48, -0.3, 0.75)),
        ("dark", _box(0.16, 0.44, 0.22, 0.75)),
        ("dark", _disc(-0.2, 0.13, 0.1, 0.13)),
        ("dark", _disc(0.28, 0.13, 0.1, 0.13)),
    ],
    "car": [
        ("body", [(-0.5, 0.16), (0.5, 0.16), (0.5, 0.46), (-0.5, 0.52)]),
        ("glass", [(-0.3, 0.5), (0.26, 0.48), (0.14, 0.8), (-0.2, 0.8)]),
        ("trim", _box(-0.2, 0.76, 0.15, 0.84)),
        ("trim", _box(-0.5, 0.24, 0.5, 0.3)),
        ("dark", _disc(-0.28, 0.14, 0.1, 0.15)),
        ("dark", _disc(0.28, 0.14, 0.1, 0.15)),
    ],
    "jeep": [
        ("body", [(-0.46, 0.2), (0.5, 0.2), (0.5, 0.5), (0.2, 0.56), (-0.46, 0.56)]),
        ("trim", [(-0.46, 0.56), (0.2, 0.56), (0.14, 0.96), (-0.42, 0.96)]),
        ("glass", _box(-0.2, 0.6, 0.12, 0.84)),
        ("dark", _disc(-0.28, 0.18, 0.12, 0.19)),
        ("dark", _disc(0.3, 0.18, 0.12, 0.19)),
    ],
}
# Width and height of a vehicle relative to the common size.
_VEHICLE_SIZES = {
    "truck": (1.0, 0.62),
    "bus": (1.15, 0.55),
    "rickshaw": (0.6, 0.56),
    "car": (0.8, 0.36),
    "jeep": (0.75, 0.48),
}
_LANDMARK_SHAPES: dict[str, list[_Part]] = {
    "minaret": [
        ("body", _box(-0.22, 0.0, 0.22, 0.76)),
        ("trim", _box(-0.36, 0.6, 0.36, 0.68)),
        ("trim", [(-0.26, 0.76), (0.26, 0.76), (0.2, 0.88), (0.0, 1.0), (-0.2, 0.88)]),
    ],
    "dome": [
        ("body", _box(-0.9, 0.0, 0.9, 0.42)),
        ("trim", _disc(0.0, 0.42, 0.66, 0.46, 0.0, 0.5)),
        ("trim", _box(-0.05, 0.86, 0.05, 1.0)),
        ("dark", _box(-0.2, 0.0, 0.2, 0.26)),
    ],
    "clock_tower": [
        ("body", _box(-0.36, 0.0, 0.36, 0.8)),
        ("trim", [(-0.44, 0.8), (0.44, 0.8), (0.0, 1.0)]),
        ("glass", _disc(0.0, 0.68, 0.24, 0.08)),
    ],
    "water_tower": [
        ("body", _box(-0.12, 0.0, 0.12, 0.6)),
        (
            "trim",
            [(-0.14, 0.56), (0.14, 0.56), (0.62, 0.76), (0.62, 0.94), (-0.62, 0.94), (-0.62, 0.76)],
        ),
        ("body", [(-0.62, 0.94), (0.62, 0.94), (0.0, 1.0)]),
    ],
    "arch": [
        ("body", _box(-0.9, 0.0, -0.5, 0.8)),
        ("body", _box(0.5, 0.0, 0.9, 0.8)),
        ("trim", _box(-1.0, 0.72, 1.0, 0.9)),
        ("trim", [(-0.3, 0.9), (0.3, 0.9), (0.0, 1.0)]),
    ],
    "obelisk": [
        ("trim", _box(-0.6, 0.0, 0.6, 0.1)),
        ("body", [(-0.34, 0.1), (0.34, 0.1), (0.12, 0.9), (-0.12, 0.9)]),
        ("trim", [(-0.16, 0.9), (0.16, 0.9), (0.0, 1.0)]),
    ],
    "fort": [
        ("body", _box(-1.1, 0.0, 1.1, 0.46)),
        ("body", _box(-1.3, 0.0, -0.86, 0.62)),
        ("body", _box(0.86, 0.0, 1.3, 0.62)),
        ("trim", _box(-0.4, 0.0, 0.4, 0.7)),
        ("trim", _box(-1.36, 0.58, -0.8, 0.68)),
        ("trim", _box(0.8, 0.58, 1.36, 0.68)),
    ],
    "mast": [
        ("body", [(-0.4, 0.0), (-0.28, 0.0), (0.06, 1.0), (-0.06, 1.0)]),
        ("body", [(0.4, 0.0), (0.28, 0.0), (-0.06, 1.0), (0.06, 1.0)]),
        ("trim", _box(-0.34, 0.3, 0.34, 0.36)),
        ("trim", _box(-0.26, 0.6, 0.26, 0.66)),
    ],
}
# Where painted rings go on a landmark: lowest and highest y, half width.
_LANDMARK_SHAFTS = {
    "minaret": (0.06, 0.58, 0.22),
    "dome": (0.06, 0.4, 0.9),
    "clock_tower": (0.06, 0.58, 0.36),
    "water_tower": (0.06, 0.54, 0.12),
    "arch": (0.74, 0.9, 1.0),
    "obelisk": (0.14, 0.6, 0.24),
    "fort": (0.08, 0.44, 1.1),
    "mast": (0.08, 0.9, 0.16),
}
# Broad landmarks are drawn lower, so that all kinds cover a similar area.
_LANDMARK_HEIGHTS = {"dome": 0.72, "fort": 0.62, "arch": 0.72}
_HAZE: dict[str, tuple[RGB, float, float]] = {
    # colour, share of it far away, share of it close by
    "clear": ((0.72, 0.8, 0.9), 0.12, 0.0),
    "overcast": ((0.74, 0.76, 0.79), 0.25, 0.06),
    "dust": ((0.82, 0.7, 0.5), 0.5, 0.16),
    "fog": ((0.84, 0.86, 0.88), 0.62, 0.2),
    "rain": ((0.55, 0.6, 0.66), 0.4, 0.16),
}
_SKIES: dict[str, tuple[RGB, RGB]] = {
    # at the top, at the horizon
    "clear": ((0.3, 0.52, 0.86), (0.74, 0.86, 0.96)),
    "overcast": ((0.62, 0.66, 0.71), (0.79, 0.81, 0.83)),
    "dust": ((0.72, 0.66, 0.54), (0.86, 0.77, 0.6)),
    "fog": ((0.76, 0.79, 0.82), (0.86, 0.88, 0.89)),
    "rain": ((0.42, 0.47, 0.53), (0.6, 0.64, 0.68)),
}
_ASPHALT: RGB = (0.36, 0.36, 0.38)
_DARK: RGB = (0.1, 0.1, 0.12)
_GLASS: RGB = (0.62, 0.78, 0.9)
_SNOW: RGB = (0.96, 0.97, 1.0)


class _Canvas:
    """Maps (u, v) to pixels under the camera's horizon, roll and zoom, and mixes colours."""

    def __init__(self, scene: Scene, width: int, height: int, rng: np.random.Generator) -> None:
        self.scene, self.rng = scene, rng
        self.width, self.height = width, height
        camera = scene.camera
        self.haze, self.far, self.near = _HAZE[camera.weather]
        top, low = _SKIES[camera.weather]
        dusk = (0.95, 0.62, 0.42)
        warmth = 0.6 * max(0.0, 0.5 - camera.daylight)
        down = np.minimum(np.arange(height) / (camera.horizon * height), 1.0)[:, None]
        rows = np.array(top) * (1 - down) + np.array(mix(low, dusk, warmth)) * down
        sky = np.repeat((rows * 255).astype(np.uint8)[:, None], width, axis=1)
        self.image = Image.fromarray(sky)
        self._draw = ImageDraw.Draw(self.image)
        # One unit of object size: objects keep their proportions in portrait and landscape.
        self.unit = math.sqrt(width * height) * camera.zoom
        self._zoom_x, self._zoom_y = width * camera.zoom, height * camera.zoom
        self._horizon_y = camera.horizon * height

    def pixel(self, u: float, v: float) -> tuple[float, float]:
        x = 0.5 * self.width + (u - 0.5) * self._zoom_x
        y = self._horizon_y - v * self._zoom_y + self.scene.camera.roll * (x - 0.5 * self.width)
        return x, y

    def ink(self, rgb: RGB, distance: float = 0.0, shade: float = 1.0) -> tuple[int, int, int]:
        a = self.far * distance + self.near * (1.0 - distance)
        h, keep = self.haze, (1.0 - a) * shade
        return (
            min(255, int(255 * (keep * rgb[0] + a * h[0]))),
            min(255, int(255 * (keep * rgb[1] + a * h[1]))),
            min(255, int(255 * (keep * rgb[2] + a * h[2]))),
        )

    def polygon(self, points: Points, ink: tuple[int, int, int]) -> None:
        """Fills a polygon of (u, v) points."""
        self._draw.polygon([self.pixel(u, v) for u, v in points], fill=ink)

    def rectangle(
        self, u0: float, v0: float, u1: float, v1: float, ink: tuple[int, int, int]
    ) -> None:
        x0, y0 = self.pixel(u0, v0)
        x1, y1 = self.pixel(u1, v1)
        if x1 >= x0 and y0 >= y1:
            self._draw.rectangle((x0, y1, x1, y0), fill=ink)

    def shape(
        self,
        foot: tuple[float, float],
        width: float,
        height: float,
        parts: list[_Part],
        inks: dict[str, tuple[int, int, int]],
    ) -> None:
        """Draws parts in a box of ``width`` x ``height`` units standing at ``foot`` (u, v)."""
        x, y = self.pixel(*foot)
        w, h = width * self.unit, height * self.unit
        for colour, points in parts:
            self._draw.polygon([(x + px * w, y - py * h) for px, py in points], fill=inks[colour])

    def blob(self, foot: tuple[float, float], rx: float, ry: float, ink: tuple[int, ...]) -> None:
        """An ellipse of radii in units, resting on ``foot`` (u, v)."""
        x, y = self.pixel(*foot)
        rx, ry = rx * self.unit, ry * self.unit
        self._draw.ellipse((x - rx, y - 2 * ry, x + rx, y), fill=ink)

    def line(
        self, a: tuple[float, float], b: tuple[float, float], ink: tuple[int, ...], width: float
    ) -> None:
        """A line between two (u, v) points, ``width`` in units."""
        pixels = max(1, round(width * self.unit))
        self._draw.line([self.pixel(*a), self.pixel(*b)], fill=ink, width=pixels)


def skyline_heights(
    skyline: tuple[float, ...], jagged: float, u: NDArray[np.float64], ridge: int
) -> NDArray[np.float64]:
    """Heights in [0, 1] of the ``ridge``-th ridge (0 the farthest) at places ``u``.

    All ridges come from the same coefficients, each with its own signs, so that one sees the shape
    in every ridge that is not hidden.
    """
    order = np.arange(1, len(skyline) + 1)
    phase = 1.3 * ridge * order
    waves = np.cos(np.pi * order * u[:, None] * (1 + 0.25 * ridge) + phase) / np.sqrt(order)
    smooth = waves @ np.asarray(skyline)
    # Folding the fine waves gives sharp crests.
    fine = np.abs((u * (7 + 4 * ridge) + skyline[0] + ridge) % 1.0 - 0.5) * 2
    finer = np.abs((u * (17 + 6 * ridge) + skyline[1]) % 1.0 - 0.5) * 2
    rough = jagged * (0.75 * fine + 0.35 * finer)
    heights: NDArray[np.float64] = np.clip(
        0.5 + 0.42 * np.tanh(0.7 * smooth) + 0.35 * (rough - 0.5 * jagged), 0.05, 1.0
    )
    return heights


def _draw_sky(c: _Canvas) -> None:
    if c.scene.camera.weather not in ("clear", "overcast"):
        return
    for _ in range(int(c.rng.integers(0, 5))):
        u, v = c.rng.uniform(0, 1), c.rng.uniform(0.2, 0.45)
        size = c.rng.uniform(0.06, 0.16)
        ink = c.ink((0.95, 0.95, 0.97), 0.2)
        c.blob((u, v), size, size * 0.22, ink)
        c.blob((u + size * 0.4, v + 0.02), size * 0.6, size * 0.25, ink)


def _draw_ridges(c: _Canvas) -> None:
    s = c.scene
    if s.relief < 0.02:
        return
    margin = 0.8
    u = np.linspace(0.5 - margin, 0.5 + margin, 57)
    for ridge, (scale, distance) in enumerate(((1.0, 1.0), (0.66, 0.75), (0.36, 0.45))):
        v = 0.4 * s.relief * scale * skyline_heights(s.skyline, s.jagged, u, ridge)
        rgb = mix(s.ridge_rgb, mix(s.soil_rgb, s.vegetation_rgb, s.vegetation), 0.3 * ridge)
        top = list(zip(u.tolist(), v.tolist(), strict=True))
        c.polygon([*top, (u[-1], -0.05), (u[0], -0.05)], c.ink(rgb, distance))
        # The slopes that look away from the light.
        shaded = c.ink(rgb, distance, 0.8)
        for k in range(1, len(u) - 4, 3):
            if v[k] > v[k - 1] and v[k] >= v[k + 1]:
                foot = 0.45 * v[k]
                c.polygon([(u[k], v[k]), (u[k + 3], v[k + 3]), (u[k + 2], foot)], shaded)
        line = 0.4 * s.relief * (1.0 - s.snow)
        if s.snow > 0 and v.max() > line:
            wiggle = line + 0.03 * s.relief * np.cos(np.arange(len(u)) * 2.4 + ridge)
            base = np.minimum(v, wiggle)
            low = list(zip(u.tolist(), base.tolist(), strict=True))
            c.polygon([*top, *reversed(low)], c.ink(_SNOW, distance * 0.5, 1.0 - 0.06 * ridge))


def _draw_ground(c: _Canvas) -> None:
    s, rng = c.scene, c.rng
    cover = s.vegetation
    if s.ground == "sand":
        base, cover = mix(s.soil_rgb, (0.92, 0.84, 0.66), 0.35), cover * 0.4
    elif s.ground in ("grass", "crops"):
        base = mix(s.soil_rgb, s.vegetation_rgb, 0.35 + 0.6 * cover)
    elif s.ground == "paving":
        base = mix((0.58, 0.57, 0.56), s.soil_rgb, 0.3)
    else:
        base = mix(s.soil_rgb, s.vegetation_rgb, 0.45 * cover)
    steps = (0.0, 0.05, 0.13, 0.26, 0.45, 1.0)
    for k, depth in enumerate(steps[:-1]):
        distance = 0.7 * (1.0 - k / 4)
        c.polygon(_box(-0.6, -depth, 1.6, -1.2), c.ink(base, distance, 1.0 - 0.03 * k))
    if s.ground in ("crops", "paving"):
        meet = (0.5 + 0.9 * (s.row_slant - 0.5), -0.005)
        half = 0.05 + 0.14 * s.row_spacing
        ink = (
            mix(s.soil_rgb, s.vegetation_rgb, 0.1)
            if s.ground == "crops"
            else mix(base, _DARK, 0.22)
        )
        width = half * (0.9 if s.ground == "crops" else 0.35)
        for k in range(-9, 10):
            at = meet[0] + 2.2 * k * half
            c.polygon([meet, (at - width, -0.62), (at + width, -0.62)], c.ink(ink, 0.15))
        if s.ground == "paving":
            for k in range(1, 5):
                depth = 0.035 * (1.2 + 1.6 * s.row_spacing) ** k
                c.line((-0.6, -depth), (1.6, -depth), c.ink(ink, 0.15), 0.008)
    else:
        tuft = s.vegetation_rgb if s.ground != "sand" else mix(s.vegetation_rgb, s.soil_rgb, 0.3)
        count = int(4 + 26 * cover)
        us, depths = rng.uniform(-0.1, 1.1, count), 0.5 * rng.random(count) ** 1.6
        for u, depth in zip(us, np.sort(depths), strict=True):
            size = 0.01 + 0.09 * depth
            c.blob((u, -depth), size, size * 0.3, c.ink(tuft, 0.5 - depth, 0.92))
        if s.ground == "sand":
            for k in range(5):
                depth = 0.06 + 0.09 * k + 0.04 * rng.random()
                at = rng.uniform(-0.1, 0.6)
                c.polygon(
                    [(at, -depth), (at + 0.3, -depth + 0.035), (at + 0.65, -depth - 0.01)],
                    c.ink(base, 0.3, 1.1),
                )


def _draw_water(c: _Canvas) -> None:
    s = c.scene
    if s.water == "none":
        return
    blue = mix((0.2, 0.46, 0.62), s.soil_rgb, 0.0 if s.water == "sea" else 0.35)
    near, far = (0.17, -0.005) if s.water == "sea" else (0.15, 0.055)
    c.polygon([(-0.6, -far), (1.6, -far), (1.6, -near), (-0.6, -near * 0.9)], c.ink(blue, 0.3))
    glint = c.ink(mix(blue, (1.0, 1.0, 1.0), 0.55), 0.2)
    for _ in range(9):
        u, depth = c.rng.uniform(-0.1, 1.0), c.rng.uniform(far + 0.01, near * 0.9)
        c.line((u, -depth), (u + c.rng.uniform(0.04, 0.14), -depth), glint, 0.006)
    if s.water == "sea":
        c.line((-0.6, -near * 0.9), (1.6, -near), c.ink((0.97, 0.97, 0.97), 0.1), 0.014)
        c.polygon(
            [(-0.6, -near * 0.92), (1.6, -near), (1.6, -near - 0.06), (-0.6, -near - 0.06)],
            c.ink((0.9, 0.83, 0.66), 0.1),
        )


def _draw_wall(
    c: _Canvas, u0: float, u1: float, foot: float, top: float, distance: float, shade: float
) -> None:
    """A façade with plinth, stripes and windows between ``foot`` and ``top`` (v)."""
    s = c.scene
    tall = top - foot
    c.rectangle(u0, foot, u1, top, c.ink(s.wall_rgb, distance, shade))
    c.rectangle(
        u0, foot, u1, foot + tall * (0.06 + 0.24 * s.plinth), c.ink(s.plinth_rgb, distance, shade)
    )
    floor = 0.075 + 0.075 * s.stripes
    stripe, glass = (
        c.ink(s.stripe_rgb, distance, shade),
        c.ink(mix(_DARK, _GLASS, s.glazing), distance, shade),
    )
    step = 0.05 + 0.09 * s.windows
    width = step * (0.4 + 0.25 * s.glazing)
    level = foot + tall * (0.06 + 0.24 * s.plinth) + 0.35 * floor
    while level + 0.4 * floor < top:
        if s.glazing > 0.5:
            c.rectangle(u0 + 0.01, level, u1 - 0.01, level + 0.45 * floor, glass)
        else:
            at = u0 + 0.3 * step
            while at + width < u1:
                c.rectangle(at, level, at + width, level + 0.45 * floor, glass)
                at += step
        c.rectangle(u0, level + 0.62 * floor, u1, level + 0.82 * floor, stripe)
        level += floor


def _draw_roof(c: _Canvas, u0: float, u1: float, top: float, distance: float, shade: float) -> None:
    s, wide = c.scene, u1 - u0
    ink = c.ink(s.roof_rgb, distance, shade)
    if s.roof == "gabled":
        peak = top + 0.32 * min(wide, 0.25)
        c.polygon(
            [(u0 - 0.02, top), (u1 + 0.02, top), (u1 - 0.2 * wide, peak), (u0 + 0.2 * wide, peak)],
            ink,
        )
    elif s.roof == "domed":
        c.rectangle(u0, top, u1, top + 0.02, ink)
        c.blob((0.5 * (u0 + u1), top - 0.035), 0.3 * wide, 0.17 * min(wide, 0.3) + 0.02, ink)
    elif s.roof == "stepped":
        c.rectangle(u0 - 0.01, top, u1 + 0.01, top + 0.03, ink)
        c.rectangle(u0 + 0.25 * wide, top + 0.03, u1 - 0.15 * wide, top + 0.075, ink)
    else:
        c.rectangle(u0 - 0.01, top, u1 + 0.01, top + 0.025, ink)


def _draw_buildings(c: _Canvas) -> None:
    s, rng = c.scene, c.rng
    if s.density <= 0.08:
        return
    at = rng.uniform(-0.2, 0.0)
    gap = 0.02 + 0.4 * (1.0 - s.density) ** 1.5
    while at < 1.05:
        wide = rng.uniform(0.1, 0.22)
        top = 0.05 + (0.06 + 0.3 * s.density**1.5) * rng.uniform(0.45, 1.0)
        shade = rng.uniform(0.86, 1.06)
        _draw_wall(c, at, at + wide, -0.03, top, 0.45, shade)
        _draw_roof(c, at, at + wide, top, 0.45, shade)
        at += wide + gap * rng.uniform(0.2, 1.6)


def _draw_shop(c: _Canvas) -> None:
    """A near façade on one side, with the awning: there one sees the local paint at its largest."""
    s, rng = c.scene, c.rng
    if s.density <= 0.08:
        return
    wide, top = rng.uniform(0.26, 0.36), rng.uniform(0.1, 0.2)
    left = rng.random() < 0.5
    u0 = -0.04 if left else 1.04 - wide
    u1 = u0 + wide
    _draw_wall(c, u0, u1, -0.3, top, 0.1, 1.0)
    _draw_roof(c, u0, u1, top, 0.1, 1.0)
    if s.awning:
        count = 6
        for k in range(count):
            a, b = u0 + wide * k / count, u0 + wide * (k + 1) / count
            rgb = s.awning_rgb if k % 3 else s.awning_trim_rgb
            lean = 0.03 if left else -0.03
            c.polygon(
                [(a, -0.02), (b, -0.02), (b + lean, -0.14), (a + lean, -0.14)], c.ink(rgb, 0.05)
            )


def _draw_landmark(c: _Canvas) -> None:
    s, rng = c.scene, c.rng
    if s.landmark == "none":
        return
    foot = (rng.uniform(0.36, 0.64), -0.06)
    tall = (0.3 + 0.28 * s.landmark_height) * _LANDMARK_HEIGHTS.get(s.landmark, 1.0)
    wide = 0.1 + 0.14 * s.landmark_width
    inks = {
        "body": c.ink(s.landmark_rgb, 0.3),
        "trim": c.ink(s.landmark_trim_rgb, 0.3),
        "dark": c.ink(_DARK, 0.3),
        "glass": c.ink((0.95, 0.95, 0.9), 0.3),
    }
    low, high, half = _LANDMARK_SHAFTS[s.landmark]
    step = (high - low) / max(1, s.landmark_bands)
    rings = [
        ("trim", _box(-half, low + step * (k + 0.3), half, low + step * (k + 0.7)))
        for k in range(s.landmark_bands)
    ]
    reach = wide * (max(abs(x) for _, part in _LANDMARK_SHAPES[s.landmark] for x, _ in part) + 0.25)
    for side in (-1, 1)[: s.landmark_flanks]:
        beside = (foot[0] + side * reach * c.unit / (c._zoom_x), foot[1])
        tower = [
            ("body", _box(-0.5, 0.0, 0.5, 0.85)),
            ("trim", [(-0.6, 0.85), (0.6, 0.85), (0.0, 1.0)]),
        ]
        c.shape(beside, 0.045, 0.6 * tall, tower, inks)
    c.shape(foot, wide, tall, [*_LANDMARK_SHAPES[s.landmark], *rings], inks)


def _draw_tree(c: _Canvas, u: float, depth: float, size: float) -> None:
    s = c.scene
    foot, distance = (u, -depth), max(0.0, 0.5 - depth)
    leaf, dim = c.ink(s.tree_rgb, distance), c.ink(s.tree_rgb, distance, 0.75)
    bark = c.ink((0.36, 0.27, 0.18), distance)
    if s.tree == "scrub":
        c.blob(foot, size * 0.35, size * 0.14, dim)
        c.blob((u + 0.01, -depth + 0.005), size * 0.25, size * 0.14, leaf)
        return
    parts: list[_Part] = [("bark", _box(-0.06, 0.0, 0.06, 0.55))]
    inks = {"bark": bark, "leaf": leaf, "dim": dim}
    if s.tree == "round":
        parts += [("dim", _disc(0.04, 0.64, 0.46, 0.34)), ("leaf", _disc(-0.04, 0.7, 0.38, 0.28))]
    elif s.tree == "palm":
        parts = [("bark", _box(-0.05, 0.0, 0.05, 0.82))]
        for tip_x, tip_y in ((-0.5, 0.62), (-0.42, 0.92), (0.0, 1.05), (0.42, 0.92), (0.5, 0.62)):
            parts.append(
                ("leaf", [(-0.07, 0.8), (tip_x * 0.6, tip_y + 0.08), (tip_x, tip_y), (0.07, 0.8)])
            )
    elif s.tree == "conifer":
        parts += [
            ("dim", [(-0.36, 0.14), (0.36, 0.14), (0.0, 0.7)]),
            ("leaf", [(-0.28, 0.42), (0.28, 0.42), (0.0, 1.0)]),
        ]
    else:
        parts += [("dim", _disc(0.0, 0.58, 0.17, 0.44)), ("leaf", _disc(-0.04, 0.6, 0.11, 0.36))]
    c.shape(
        foot, size, size * (1.3 if s.tree in ("poplar", "palm", "conifer") else 1.0), parts, inks
    )


def _draw_trees(c: _Canvas) -> None:
    s, rng = c.scene, c.rng
    count = round(9 * s.trees)
    depths = np.sort(0.02 + 0.2 * rng.random(count) ** 1.5)
    for depth in depths:
        size = (0.12 + 0.16 * s.tree_size) * (0.7 + 2.5 * depth)
        _draw_tree(c, float(rng.uniform(-0.05, 1.05)), float(depth), size)


def _draw_road(c: _Canvas) -> None:
    """The road in front with its painted kerb."""
    s = c.scene
    c.polygon(_box(-0.6, -0.34, 1.6, -0.5), c.ink(mix(_ASPHALT, s.soil_rgb, 0.35), 0.05))
    at = -0.5 + c.rng.uniform(0, 0.2)
    k = 0
    while at < 1.5:
        rgb = s.kerb_rgb if k % 2 else s.kerb_trim_rgb
        c.polygon(_box(at, -0.3, at + 0.13, -0.345), c.ink(rgb, 0.05))
        at, k = at + 0.13, k + 1


def _draw_flags(c: _Canvas) -> None:
    s = c.scene
    if s.flags <= 0.35:
        return
    ink, cord = c.ink(s.flag_rgb, 0.15), c.ink(_DARK, 0.2)
    v0, v1 = c.rng.uniform(0.26, 0.36), c.rng.uniform(0.26, 0.36)
    count = int(4 + 8 * s.flags)
    c.line((-0.1, v0), (1.1, v1), cord, 0.004)
    for k in range(count):
        u = (k + 0.5) / count
        v = v0 + (v1 - v0) * u
        c.polygon([(u - 0.03, v), (u + 0.03, v), (u, v - 0.085)], ink)


def _draw_vehicle(c: _Canvas) -> None:
    s = c.scene
    if s.vehicle == "none":
        return
    wide, tall = _VEHICLE_SIZES[s.vehicle]
    size = 0.4 * c.rng.uniform(0.85, 1.15)
    inks = {
        "body": c.ink(s.vehicle_rgb),
        "trim": c.ink(s.vehicle_trim_rgb),
        "dark": c.ink(_DARK),
        "glass": c.ink(mix(_DARK, _GLASS, 0.6)),
    }
    flip = -1.0 if c.rng.random() < 0.5 else 1.0
    foot = (c.rng.uniform(0.25, 0.75), -0.42)
    c.shape(foot, flip * wide * size, tall * size, _VEHICLE_SHAPES[s.vehicle], inks)


def _draw_clutter(c: _Canvas) -> None:
    for _ in range(c.scene.camera.clutter):
        rgb = hsv(c.rng.random(), c.rng.uniform(0, 0.8), c.rng.uniform(0.15, 0.95))
        u, depth = c.rng.uniform(0, 1), c.rng.uniform(0.05, 0.5)
        if c.rng.random() < 0.3:
            c.line((u, -depth), (u, c.rng.uniform(0.2, 0.45)), c.ink(mix(rgb, _DARK, 0.6)), 0.016)
        else:
            wide, tall = c.rng.uniform(0.05, 0.18), c.rng.uniform(0.05, 0.22)
            c.shape(
                (u, -depth), wide, tall, [("box", _box(-0.5, 0.0, 0.5, 1.0))], {"box": c.ink(rgb)}
            )


def _expose(c: _Canvas) -> NDArray[np.uint8]:
    """Rain, time of day, tone curve and sensor noise."""
    camera, rng = c.scene.camera, c.rng
    if camera.weather == "rain":
        for u, v in zip(rng.uniform(-0.1, 1.1, 30), rng.uniform(-0.5, 0.5, 30), strict=True):
            c.line((u, v), (u + 0.01, v - 0.07), (190, 198, 208), 0.004)
    light = 0.55 + 0.45 * camera.daylight
    evening = (1.0 + 0.1 * (1 - camera.daylight), 1.0, 1.0 - 0.14 * (1 - camera.daylight))
    levels = np.arange(256) / 255.0
    tables = [
        np.clip(255 * (levels * light * warm * balance * camera.gain) ** camera.gamma, 0, 255)
        for warm, balance in zip(evening, camera.white_balance, strict=True)
    ]
    seen = np.asarray(c.image)
    pixels = np.empty(seen.shape, np.float32)
    for channel, table in enumerate(tables):
        pixels[..., channel] = table.astype(np.float32)[seen[..., channel]]
    pixels += np.float32(camera.noise) * rng.standard_normal((c.height, c.width, 1), np.float32)
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


def draw(scene: Scene, width: int, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture of a scene.

    Args:
        scene: what to draw, and under which circumstances.
        width, height: size of the picture in pixels.
        rng: where the single houses, trees and passers-by stand.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    canvas = _Canvas(scene, width, height, rng)
    for layer in (
        _draw_sky,
        _draw_ridges,
        _draw_ground,
        _draw_water,
        _draw_buildings,
        _draw_landmark,
        _draw_trees,
        _draw_shop,
        _draw_road,
        _draw_flags,
        _draw_vehicle,
        _draw_clutter,
    ):
        layer(canvas)
    return _expose(canvas)
