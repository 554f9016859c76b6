"""Sprites: a drawing as bands of weights, lines and shades at any side, drawn once and reduced from there.

    alpha = sum over slots of weight_slot,   paint = shade * sum over slots of weight_slot * colour_slot

Letters: h w pixels of one object.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageFilter

from vpl.scenes.drawings import DRAWINGS, Pen

VARIANTS = 10
LARGEST_SIDE = 2048
DRAWN_SIDE = 256
"""Sprites of this side and more are drawn, smaller ones reduced from it."""


@dataclass(frozen=True)
class Sprite:
    """Two four-band images of one side: (main, second, accent, dark) weights; (light weight, edge, shade, bevel)."""

    weights: Image.Image
    relief: Image.Image
    box: tuple[float, float, float, float]  # left, top, right, bottom of what is drawn, in [0, 1]


def sprite(name: str, variant: int, side: int) -> Sprite:
    """A sprite of a power of two's side."""
    return _large_sprite(name, variant, side) if side > DRAWN_SIDE else _small_sprite(name, variant, side)


@cache
def _small_sprite(name: str, variant: int, side: int) -> Sprite:
    if side == DRAWN_SIDE:
        return _draw_sprite(name, variant, side)
    larger = _small_sprite(name, variant, side * 2)
    return Sprite(larger.weights.reduce(2), larger.relief.reduce(2), larger.box)


# A sprite of side 2048 takes 32 MiB, so that few of these are kept.
@lru_cache(maxsize=16)
def _large_sprite(name: str, variant: int, side: int) -> Sprite:
    return _draw_sprite(name, variant, side)


def _draw_sprite(name: str, variant: int, side: int) -> Sprite:
    pen = Pen(side, np.random.default_rng([zlib.crc32(name.encode()), variant]))
    DRAWINGS[name](pen)
    codes = pen.parts
    slot_of, shade_of = np.array(pen.slots, np.uint8), np.array(pen.shades, np.int16)
    drawn = codes > 0
    slots = np.where(drawn, slot_of[codes], 255)
    layers = [Image.fromarray(((slots == slot) * 255).astype(np.uint8)).reduce(2) for slot in range(5)]
    near = _borders(pen.rims) | _borders(drawn)
    near = near[::2, ::2] | near[1::2, ::2] | near[::2, 1::2] | near[1::2, 1::2]
    edge = np.zeros(near.shape, np.uint8)
    for _ in range(3):
        for _ in range(side // 128):
            near = _grow(near)
        edge += near * np.uint8(85)
    shade = Image.fromarray((128 + np.where(drawn, shade_of[codes], 0)).astype(np.uint8)).reduce(2)
    solid = Image.fromarray((drawn * 255).astype(np.uint8)).reduce(2)
    soft = np.asarray(solid.filter(ImageFilter.GaussianBlur(side / 14)), np.int16)
    step = max(1, side // 16)
    slant = np.roll(soft, (-step, -step), (0, 1)) - np.roll(soft, (step, step), (0, 1))
    bevel = Image.fromarray(np.clip(128 + slant // 2, 0, 255).astype(np.uint8))
    rows, cols = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    left, top, right, bottom = (float(edge) / (2 * side) for edge in (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1))
    return Sprite(
        Image.merge("CMYK", layers[:4]),
        Image.merge("CMYK", (layers[4], Image.fromarray(edge), shade, bevel)),
        (left, top, right, bottom),
    )


def _borders(codes: np.ndarray) -> np.ndarray:
    """True beside a change of value to the right or below."""
    out = np.zeros(codes.shape, bool)
    out[:, :-1] = codes[:, 1:] != codes[:, :-1]
    out[:-1] |= codes[1:] != codes[:-1]
    return out


def _grow(flags: np.ndarray) -> np.ndarray:
    """One step of dilation to the four neighbours."""
    out = flags.copy()
    out[1:] |= flags[:-1]
    out[:-1] |= flags[1:]
    out[:, 1:] |= flags[:, :-1]
    out[:, :-1] |= flags[:, 1:]
    return out


def paint(
    weights: np.ndarray, relief: np.ndarray, colours: np.ndarray, width: float, bevel: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coverage, (h, w) in [0, 1], and colour times coverage, (3, h, w) in [0, 255], of a sprite's two images."""
    w = weights.transpose(2, 0, 1).astype(np.float32, order="C")
    light, edge, part_shade, relief_light = relief.transpose(2, 0, 1).astype(np.float32, order="C")
    alpha = (w[0] + w[1] + w[2] + w[3] + light) * np.float32(1 / 255)
    np.minimum(alpha, 1, out=alpha)
    shade = 1 + (part_shade - 128) * np.float32(1 / 110) + (relief_light - 128) * np.float32(bevel / 150)
    if width > 0:
        ink = np.clip((edge - np.float32(255 * (1 - width))) * np.float32(1 / 60), 0, 1) * np.float32(0.85)
        shade *= 1 - ink
    unit = (colours * np.float32(1 / 255)).tolist()
    paint = np.empty((3, *alpha.shape), np.float32)
    for channel in range(3):
        c = [np.float32(row[channel]) for row in unit]
        paint[channel] = (w[0] * c[0] + w[1] * c[1] + w[2] * c[2] + w[3] * c[3] + light * c[4]) * shade
    return alpha, paint
