"""Grounds: grey texture fields, drawn once, and the part of one that a scene stands on, in the ground's colours."""

from __future__ import annotations

import math
import zlib
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from vpl.scenes.styles import Style, between, rgb

_FIELD_SIDE = 768
_FIELD_VARIANTS = 2


def _noise(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Smooth noise in [0, 1], (side, side), with `rows` x `cols` random knots."""
    grid = Image.fromarray(rng.integers(0, 256, (rows, cols), dtype=np.uint8))
    return np.asarray(grid.resize((_FIELD_SIDE, _FIELD_SIDE), Image.Resampling.BICUBIC), np.float64) / 255


def _grass(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    image = Image.fromarray((60 + 70 * _noise(rng, 12, 12)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for x0, y0, lean, long, tone in rng.integers(0, (_FIELD_SIDE, _FIELD_SIDE, 17, 24, 190), (6000, 5)).tolist():
        pen.line([(x0, y0), (x0 + lean - 8, y0 - 14 - long)], fill=30 + tone, width=3)
    return np.asarray(image, np.float64) / 255


def _water(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    warp = 60 * _noise(rng, 6, 5) + 26 * _noise(rng, 14, 10)
    waves = 0.5 + 0.5 * np.sin((y + warp) * (2 * math.pi / 44))
    streaks = _noise(rng, 96, 16)
    return np.clip(0.25 + 0.42 * waves**3 + 0.35 * (streaks - 0.5) + 0.15 * _noise(rng, 5, 5), 0, 1)


def _sand(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    ripple = np.sin((y + 0.35 * x + 70 * _noise(rng, 5, 5)) * (2 * math.pi / 90))
    return np.clip(0.5 + 0.13 * ripple + 0.55 * (_noise(rng, 256, 256) - 0.5) + 0.2 * (_noise(rng, 6, 6) - 0.5), 0, 1)


def _sky(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    cloud = 0.55 * _noise(rng, 6, 4) + 0.28 * _noise(rng, 14, 9) + 0.17 * _noise(rng, 34, 24)
    return np.clip(0.1 + 0.9 * np.clip((cloud - 0.46) * 4.5, 0, 1), 0, 1)


def _wall(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    high, wide, gap = 48, 96, 6
    row = (y // high).astype(np.int64)
    shifted = x + (row % 2) * (wide // 2)
    column = (shifted // wide).astype(np.int64)
    tone = rng.random((64, 64))[row % 64, column % 64]
    brick = 0.48 + 0.34 * tone + 0.2 * (_noise(rng, 160, 160) - 0.5)
    return np.clip(np.where((y % high < gap) | (shifted % wide < gap), 0.05, brick), 0, 1)


def _road(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    tar = 0.4 + 0.5 * (_noise(rng, 300, 300) - 0.5) + 0.25 * (_noise(rng, 5, 5) - 0.5)
    crack = np.abs(_noise(rng, 7, 7) - 0.5) < 0.012
    dashes = (np.abs((y % 256) - 128) < 9) & (x % 120 < 76)
    return np.clip(np.where(dashes, 1.0, np.where(crack, 0.05, np.minimum(tar, 0.75))), 0, 1)


def _snow(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    drift = 0.6 * _noise(rng, 5, 4) + 0.4 * _noise(rng, 11, 9)
    sparkle = _noise(rng, 220, 220) > 0.86
    return np.clip(0.25 + 0.6 * drift + 0.3 * sparkle, 0, 1)


def _floor(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    high, wide = 64, 340
    row = (y // high).astype(np.int64)
    shifted = x + rng.integers(0, wide, 64)[row % 64]
    plank = (shifted // wide).astype(np.int64)
    tone = rng.random((64, 64))[row % 64, plank % 64]
    grain = np.sin((y + 22 * _noise(rng, 24, 5)) * (2 * math.pi / 15))
    board = 0.5 + 0.28 * (tone - 0.5) + 0.11 * grain + 0.3 * (_noise(rng, 200, 12) - 0.5)
    return np.clip(np.where((y % high < 4) | (shifted % wide < 4), 0.03, board), 0, 1)


_FIELDS = {
    "grass": _grass, "water": _water, "sand": _sand, "sky": _sky,
    "wall": _wall, "road": _road, "snow": _snow, "floor": _floor,
}  # fmt: skip
# Darkest, middle and lightest colour (hue, saturation, value) of each ground.
_GROUND_COLOURS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "grass": ((0.30, 0.75, 0.22), (0.28, 0.65, 0.50), (0.24, 0.55, 0.78)),
    "water": ((0.60, 0.75, 0.38), (0.56, 0.62, 0.66), (0.52, 0.18, 0.96)),
    "sand": ((0.10, 0.50, 0.58), (0.11, 0.40, 0.80), (0.12, 0.25, 0.96)),
    "sky": ((0.58, 0.58, 0.82), (0.57, 0.35, 0.92), (0.58, 0.03, 0.98)),
    "wall": ((0.08, 0.12, 0.72), (0.03, 0.58, 0.52), (0.05, 0.52, 0.74)),
    "road": ((0.60, 0.10, 0.16), (0.60, 0.06, 0.38), (0.14, 0.10, 0.86)),
    "snow": ((0.60, 0.18, 0.76), (0.60, 0.07, 0.90), (0.60, 0.01, 1.00)),
    "floor": ((0.07, 0.65, 0.24), (0.08, 0.55, 0.54), (0.09, 0.45, 0.76)),
}


@cache
def _field(ground: str, variant: int, level: int) -> Image.Image:
    """The texture of a ground, grey; halved `level` times."""
    if level:
        return _field(ground, variant, level - 1).reduce(2)
    rng = np.random.default_rng([zlib.crc32(ground.encode()), variant])
    y, x = np.mgrid[0:_FIELD_SIDE, 0:_FIELD_SIDE].astype(np.float64)
    return Image.fromarray(np.rint(_FIELDS[ground](rng, x, y) * 255).astype(np.uint8))


@cache
def grain() -> np.ndarray:
    """White noise, (256, 256) int16 of about unit spread times 64, for the picture's own noise."""
    rng = np.random.default_rng(20)
    return (rng.integers(-64, 65, (2, 256, 256)).sum(0)).astype(np.int16)


_RAMP = np.linspace(0, 1, 128, dtype=np.float32)[:, None]


def draw_ground(rng: np.random.Generator, look: Style, ground: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The textured ground, (3, H, W) float32 in [0, 255], and its middle colour."""
    u = rng.random(10).tolist()
    saturation, value = between(look.ground_saturation, u[0]), between(look.ground_value, u[1])
    hue, contrast = (2 * u[2] - 1) * look.ground_hue, between(look.ground_contrast, u[3])
    stops = [rgb(h + hue, s * saturation, v * value) for h, s, v in _GROUND_COLOURS[ground]]
    dark, middle, light = (np.array(stop, np.float32) for stop in stops)
    dark, light = middle + (dark - middle) * np.float32(contrast), middle + (light - middle) * np.float32(contrast)
    table = np.concatenate([dark + (middle - dark) * _RAMP, middle + (light - middle) * _RAMP])
    share, level = between(look.ground_zoom, u[4]), 0
    while level < 3 and share * (_FIELD_SIDE >> level + 1) >= size:
        level += 1
    side = _FIELD_SIDE >> level
    window = side * share
    x, y = u[5] * (side - window), u[6] * (side - window)
    field = _field(ground, int(u[7] * _FIELD_VARIANTS), level)
    tile = np.asarray(field.resize((size, size), Image.Resampling.BILINEAR, (x, y, x + window, y + window)))
    if u[8] < 0.5:
        tile = tile[:, ::-1]
    canvas = np.empty((3, size, size), np.float32)
    for channel in range(3):
        table[:, channel].take(tile, out=canvas[channel], mode="clip")
    return canvas, middle
