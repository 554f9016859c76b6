"""Procedural scenes: pictures, exact masks, tags and captions, drawn from a seed.

    pixel = (1 - alpha) * below + shade * sum over slots of weight_slot * colour_slot,   alpha = sum of the weights,

from the ground's texture through the objects, back to front.

The embedded default's data set; METHOD.md has no section for it, all of it is ours. Every class is drawn as vector
shapes, once per shape variant, as a sprite of colour slots (main, second, accent, dark, light), lines and shades. A
scene transforms and recolours sprites on a ground, so that endless pictures need few drawings. Colour says nothing
about the class. Letters: C classes, H W pixels, h w pixels of one object.

Pre-training draws pictures and captions with `with_mask=False`; masks exist for evaluation only and are made by
`_compose_mask` alone.
"""

from __future__ import annotations

import colorsys
import csv
import math
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter

from vpl.classes import ClassSet
from vpl.errors import DataError

CLASSES: tuple[str, ...] = (
    "boat", "car", "house", "tree", "dog", "cat", "bird", "fish",
    "butterfly", "flower", "mushroom", "umbrella", "chair", "balloon", "cup", "rocket",
)  # fmt: skip
GROUNDS: tuple[str, ...] = ("grass", "water", "sand", "sky", "wall", "road", "snow", "floor")

# Where a class is usually seen; used with the style's probability `cooccurrence`.
_HABITAT: dict[str, tuple[str, ...]] = {
    "boat": ("water",), "car": ("road",), "house": ("grass", "snow"), "tree": ("grass", "snow"),
    "dog": ("grass", "sand"), "cat": ("floor", "wall"), "bird": ("sky",), "fish": ("water",),
    "butterfly": ("grass", "sky"), "flower": ("grass",), "mushroom": ("grass",), "umbrella": ("sand",),
    "chair": ("floor",), "balloon": ("sky",), "cup": ("floor",), "rocket": ("sky",),
}  # fmt: skip

MAIN, SECOND, ACCENT, DARK, LIGHT = range(5)
_VARIANTS = 10
_DRAWN_SIDE = 256  # sprites of this side and more are drawn, smaller ones reduced from it
_LARGEST_SIDE = 2048
_FIELD_SIDE = 768
_FIELD_VARIANTS = 2
_MIN_VISIBLE = 0.45  # least share of an object inside the picture that nearer objects may leave
_BORDER_CUT = 0.12  # most of an object's width or height that the picture's border may cut
_TRIES = 4  # places tried for an object before it is left out


# -------------------------------------------------------------------------------------------------------------- sprites
# Checks of signatures at run time do not take an int for a float.
_Real = float | int
_Point = tuple[_Real, _Real]


class _Pen:
    """Draws one sprite in the box [-1, 1] x [-1, 1] (x right, y down), without antialiasing, twice as large as kept."""

    def __init__(self, side: int, rng: np.random.Generator):
        self.side = side * 2
        self.rng = rng
        self.parts = np.zeros((self.side, self.side), np.uint8)  # which part covers the pixel; 0 none
        self.rims = np.zeros((self.side, self.side), np.uint8)  # the same for parts that get an outline
        self.slots: list[int] = [0]
        self.shades: list[int] = [0]

    def u(self, low: _Real, high: _Real) -> float:
        return low + (high - low) * float(self.rng.random())

    def poly(self, points: Sequence[_Point], slot: int, shade: int = 0, inside: int | None = None) -> int:
        """Fill a polygon; with `inside`, only over that part. Small ones and those inside get no outline."""
        part = len(self.slots)
        self.slots.append(slot)
        self.shades.append(shade)
        half = self.side / 2
        xy = [(round(half + x * half * 0.96, 2), round(half + y * half * 0.96, 2)) for x, y in points]
        left, top = (max(0, math.floor(min(v)) - 1) for v in zip(*xy, strict=True))
        right, bottom = (min(self.side, math.ceil(max(v)) + 2) for v in zip(*xy, strict=True))
        if right <= left or bottom <= top:
            return part
        stencil = Image.new("1", (right - left, bottom - top), 0)
        ImageDraw.Draw(stencil).polygon([(x - left, y - top) for x, y in xy], fill=1)
        hit = np.asarray(stencil)
        codes = self.parts[top:bottom, left:right]
        if inside is None:
            codes[hit] = part
            if hit.sum() > 0.012 * self.side**2:
                self.rims[top:bottom, left:right][hit] = part
        else:
            codes[hit & (codes == inside)] = part
        return part

    def blob(self, points: Sequence[_Point], slot: int, shade: int = 0, inside: int | None = None) -> int:
        """A closed smooth curve through the points."""
        return self.poly(_smooth(points, closed=True), slot, shade, inside)

    def oval(
        self, x: _Real, y: _Real, rx: _Real, ry: _Real, slot: int, shade: int = 0, turn: _Real = 0.0,
        inside: int | None = None,
    ) -> int:  # fmt: skip
        """An ellipse of half axes rx and ry, turned clockwise by `turn` radians."""
        cos, sin = math.cos(turn), math.sin(turn)
        ring = [(math.cos(2 * math.pi * i / 40) * rx, math.sin(2 * math.pi * i / 40) * ry) for i in range(40)]
        return self.poly([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in ring], slot, shade, inside)

    def stroke(
        self, points: Sequence[_Point], width: _Real, slot: int, shade: int = 0,
        inside: int | None = None, smooth: bool = True, taper: _Real = 1.0,
    ) -> int:  # fmt: skip
        """A line of the given width through the points; `taper` is its width at the end over that at the start."""
        path = _smooth(points, closed=False) if smooth and len(points) > 2 else list(points)
        left, right = [], []
        for i, (x, y) in enumerate(path):
            x0, y0 = path[max(i - 1, 0)]
            x1, y1 = path[min(i + 1, len(path) - 1)]
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            half = width / 2 * (1 + (taper - 1) * i / max(len(path) - 1, 1))
            nx, ny = -(y1 - y0) / length * half, (x1 - x0) / length * half
            left.append((x + nx, y + ny))
            right.append((x - nx, y - ny))
        return self.poly(left + right[::-1], slot, shade, inside)

    def box(
        self, x0: _Real, y0: _Real, x1: _Real, y1: _Real, slot: int, shade: int = 0, inside: int | None = None
    ) -> int:
        return self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], slot, shade, inside)


def _smooth(points: Sequence[_Point], closed: bool, steps: int = 8) -> list[_Point]:
    """Catmull-Rom curve through the points."""
    n = len(points)
    out = []
    for i in range(n if closed else n - 1):
        if closed:
            p0, p1, p2, p3 = (points[(i + k - 1) % n] for k in range(4))
        else:
            p0, p1, p2, p3 = (points[min(max(i + k - 1, 0), n - 1)] for k in range(4))
        for s in range(steps):
            t = s / steps
            a, b, c, d = -t + 2 * t * t - t**3, 2 - 5 * t * t + 3 * t**3, t + 4 * t * t - 3 * t**3, -t * t + t**3
            out.append(tuple((a * p0[k] + b * p1[k] + c * p2[k] + d * p3[k]) / 2 for k in (0, 1)))
    if not closed:
        out.append(tuple(points[-1]))
    return out


# fmt: off
def _boat(p: _Pen) -> None:
    deck, mast = p.u(0.28, 0.42), p.u(-0.12, 0.1)
    p.stroke([(mast, deck), (mast, -0.98)], 0.07, DARK)
    sail = p.poly([(mast + 0.07, -0.9), (mast + 0.07, deck - 0.1), (p.u(0.7, 0.9), deck - 0.1)], LIGHT)
    for k in range(3):
        y = -0.55 + 0.32 * k
        p.box(mast, y, 1, y + 0.13, ACCENT, 0, sail)
    p.poly([(mast - 0.07, -0.8), (mast - 0.07, deck - 0.1), (p.u(-0.75, -0.55), deck - 0.1)], SECOND, 10)
    p.poly([(mast, -0.98), (mast - 0.3, -0.9), (mast, -0.8)], ACCENT)
    bottom = p.u(0.82, 0.95)
    hull = p.poly([(-0.98, deck), (0.98, deck - 0.04), (0.66, bottom), (-0.68, bottom)], MAIN)
    p.box(-1, deck, 1, deck + 0.13, LIGHT, 0, hull)
    for k in range(2):
        p.box(-1, deck + 0.25 + 0.17 * k, 1, deck + 0.29 + 0.17 * k, DARK, 0, hull)
    for k in range(3):
        p.oval(-0.4 + 0.38 * k, deck + 0.19, 0.06, 0.06, DARK, 0, 0.0, hull)


def _car(p: _Pen) -> None:
    roof, waist, base = p.u(-0.62, -0.5), p.u(-0.12, -0.02), 0.36
    back, front = p.u(-0.72, -0.52), p.u(0.28, 0.42)
    p.blob([(back - 0.12, waist + 0.04), (back + 0.12, roof), (front - 0.12, roof), (front + 0.22, waist + 0.04)], MAIN,
        12)
    mid = (back + front) / 2
    p.poly([(back + 0.04, waist), (back + 0.17, roof + 0.1), (mid - 0.03, roof + 0.1), (mid - 0.03, waist)], LIGHT, -8)
    p.poly([(mid + 0.04, waist), (mid + 0.04, roof + 0.1), (front - 0.12, roof + 0.1), (front + 0.1, waist)], LIGHT, -8)
    nose = p.u(0.0, 0.1)
    body = p.poly([(-0.98, waist + 0.08), (-0.9, waist), (front + 0.2, waist), (0.94, waist + 0.08 + nose),
        (0.98, base), (-0.98, base)], MAIN)
    p.box(-1, base - 0.12, 1, base, SECOND, -10, body)
    p.box(mid - 0.01, waist + 0.02, mid + 0.02, base, DARK, 0, body)
    p.box(mid + 0.1, waist + 0.1, mid + 0.25, waist + 0.14, DARK, 0, body)
    p.oval(0.9, waist + 0.2 + nose, 0.09, 0.08, LIGHT, 15)
    p.box(-0.98, waist + 0.1, -0.88, waist + 0.24, ACCENT)
    for x in (p.u(-0.6, -0.52), p.u(0.5, 0.6)):
        p.oval(x, base, 0.25, 0.25, DARK)
        p.oval(x, base, 0.12, 0.12, LIGHT, -20)
        p.oval(x, base, 0.04, 0.04, DARK)


def _house(p: _Pen) -> None:
    eave, half = p.u(-0.22, -0.05), p.u(0.66, 0.8)
    side = 1 if p.u(0, 1) < 0.5 else -1
    p.box(side * 0.36 - 0.1, -0.92, side * 0.36 + 0.1, -0.3, SECOND, -25)
    wall = p.box(-half, eave, half, 0.95, MAIN)
    for row in range(8):
        y = eave + 0.14 * row
        p.box(-1, y, 1, y + 0.022, MAIN, -38, wall)
    roof = p.poly([(-0.98, eave + 0.06), (-0.2, -0.93), (0.2, -0.93), (0.98, eave + 0.06)], SECOND)
    for row in range(5):
        y = -0.85 + 0.19 * row
        p.box(-1, y, 1, y + 0.045, SECOND, -35, roof)
    door = p.u(-0.1, 0.1) - side * 0.25
    p.box(door - 0.15, 0.36, door + 0.15, 0.95, ACCENT)
    p.oval(door + 0.08, 0.66, 0.03, 0.03, DARK)
    x = side * 0.4
    p.box(x - 0.2, 0.16, x + 0.2, 0.56, LIGHT)
    p.box(x - 0.15, 0.21, x + 0.15, 0.51, DARK, 25)
    p.box(x - 0.02, 0.16, x + 0.02, 0.56, LIGHT)
    p.box(x - 0.2, 0.345, x + 0.2, 0.38, LIGHT)
    p.oval(0, eave - 0.28, 0.13, 0.13, LIGHT)
    p.oval(0, eave - 0.28, 0.08, 0.08, DARK, 25)


def _tree(p: _Pen) -> None:
    trunk = p.poly([(-0.12, 0.1), (0.12, 0.1), (0.13, 0.75), (0.26, 0.98), (-0.26, 0.98), (-0.13, 0.75)], SECOND, -10)
    for x in (-0.06, 0.05):
        p.box(x, 0, x + 0.025, 1, SECOND, -45, trunk)
    p.stroke([(0.0, 0.5), (0.2, 0.3), (0.3, 0.1)], 0.09, SECOND, -10)
    if p.u(0, 1) < 0.35:
        for k in range(4):
            y, half = -0.98 + 0.28 * k, 0.34 + 0.15 * k
            tier = p.poly([(0, y), (half, y + 0.5), (half * 0.5, y + 0.45), (0, y + 0.53), (-half * 0.5, y + 0.45),
                (-half, y + 0.5)], MAIN, -14 + 9 * k)
            for _ in range(9):
                p.oval(p.u(-half, half), p.u(y + 0.1, y + 0.5), 0.08, 0.03, MAIN, -45, p.u(0.6, 2.4), tier)
        return
    spots = [(-0.45, -0.05), (0.45, -0.02), (-0.3, -0.45), (0.32, -0.45), (0.0, -0.62), (0.0, -0.15)]
    points = []
    n = 11
    for i in range(n):
        angle = 2 * math.pi * i / n
        reach = p.u(0.92, 1.06)
        points.append((0.78 * reach * math.cos(angle), -0.27 + 0.62 * reach * math.sin(angle)))
    rim = []
    for i in range(n):
        (x0, y0), (x1, y1) = points[i], points[(i + 1) % n]
        mx, my = (x0 + x1) / 2, (y0 + y1) / 2
        rim += [(x0 * 0.93, (y0 + 0.27) * 0.93 - 0.27), (mx * 1.16, (my + 0.27) * 1.16 - 0.27)]
    crown = p.blob(rim, MAIN)
    for x, y in spots:
        p.oval(x + p.u(-0.06, 0.06), y + p.u(-0.06, 0.06), 0.27, 0.22, MAIN, 16 if y < -0.3 else -22, 0.0, crown)
    for _ in range(26):
        x, y, turn = p.u(-0.8, 0.8), p.u(-0.9, 0.3), p.u(0, 3.1)
        for part in range(crown, crown + 7):
            p.oval(x, y, 0.09, 0.035, MAIN, -42, turn, part)
    if p.u(0, 1) < 0.5:
        for _ in range(7):
            p.oval(p.u(-0.55, 0.55), p.u(-0.7, 0.1), 0.06, 0.06, ACCENT)


def _dog(p: _Pen) -> None:
    back = p.u(-0.22, -0.12)
    p.stroke([(-0.62, back + 0.12), (-0.86, back - 0.12), (-0.9, back - 0.5)], 0.16, MAIN, 0, taper=0.45)
    for x in (-0.42, 0.34):
        p.stroke([(x, 0.2), (x, 0.92)], 0.17, MAIN, -38, smooth=False)
    body = p.blob([(-0.72, back + 0.2), (-0.45, back), (0.15, back + 0.03), (0.5, back), (0.56, 0.28), (0.2, 0.42),
        (-0.4, 0.36), (-0.7, 0.38)], MAIN)
    for _ in range(3):
        p.oval(p.u(-0.6, 0.4), p.u(back, 0.3), p.u(0.1, 0.19), p.u(0.08, 0.15), SECOND, 0, p.u(0, 3), body)
    for x in (-0.6, 0.46):
        p.stroke([(x, 0.15), (x, 0.95)], 0.19, MAIN, 0, smooth=False)
        p.oval(x + 0.05, 0.92, 0.16, 0.07, LIGHT)
    p.stroke([(0.42, 0.1), (0.56, -0.35)], 0.36, MAIN, 0, smooth=False)
    p.stroke([(0.34, -0.1), (0.68, -0.02)], 0.1, ACCENT, 0, smooth=False)
    p.oval(0.54, -0.5, 0.3, 0.27, MAIN, 6)
    p.blob([(0.62, -0.56), (0.86, -0.5), (1.0, -0.4), (0.96, -0.26), (0.66, -0.26)], LIGHT)
    p.oval(0.96, -0.44, 0.075, 0.065, DARK)
    p.stroke([(0.94, -0.31), (0.74, -0.29)], 0.035, DARK, smooth=False)
    p.oval(0.64, -0.58, 0.05, 0.055, DARK)
    ear = p.u(-0.14, -0.02)
    p.blob([(0.42, -0.74), (0.26, -0.62), (0.2, ear - 0.2), (0.32, ear), (0.46, ear - 0.22), (0.5, -0.6)], SECOND, -12)


def _cat(p: _Pen) -> None:
    bend = p.u(0.8, 0.95)
    p.stroke([(0.3, 0.85), (0.72, 0.82), (bend, 0.45), (0.72, 0.12), (0.86, -0.08)], 0.17, MAIN, -14, taper=0.6)
    body = p.blob([(-0.3, 0.0), (-0.5, 0.5), (-0.52, 0.9), (0.0, 0.98), (0.52, 0.9), (0.5, 0.5), (0.3, 0.0)], MAIN)
    for k in range(4):
        y = 0.22 + 0.17 * k
        p.stroke([(-0.6, y - 0.06), (-0.25, y + 0.05)], 0.07, SECOND, 0, body, smooth=False)
        p.stroke([(0.6, y - 0.06), (0.25, y + 0.05)], 0.07, SECOND, 0, body, smooth=False)
    p.blob([(-0.17, 0.12), (-0.2, 0.5), (0.0, 0.7), (0.2, 0.5), (0.17, 0.12)], LIGHT)
    for x in (-0.17, 0.17):
        p.oval(x, 0.9, 0.15, 0.09, LIGHT, -8)
    wide = p.u(0.5, 0.58)
    for s in (-1, 1):
        p.poly([(s * wide * 0.98, -0.42), (s * wide * 0.95, -0.98), (s * 0.12, -0.66)], MAIN, -6)
        p.poly([(s * wide * 0.86, -0.5), (s * wide * 0.84, -0.82), (s * 0.24, -0.62)], ACCENT)
    head = p.oval(0, -0.32, wide, 0.42, MAIN, 6)
    for x in (-0.14, 0.0, 0.14):
        p.stroke([(x, -0.8), (x * 0.8, -0.55)], 0.06, SECOND, 0, head, smooth=False)
    for s in (-1, 1):
        p.oval(s * 0.22, -0.36, 0.12, 0.11, LIGHT, 10)
        p.oval(s * 0.22, -0.36, 0.05, 0.1, DARK)
    p.oval(0, -0.12, 0.2, 0.13, LIGHT)
    p.poly([(-0.07, -0.22), (0.07, -0.22), (0, -0.13)], ACCENT, -10)
    for s in (-1, 1):
        for dy in (-0.06, 0.04):
            p.stroke([(s * 0.16, -0.1), (s * 0.6, -0.1 + dy)], 0.03, DARK, smooth=False)


def _bird(p: _Pen) -> None:
    p.poly([(-0.45, 0.1), (-0.98, p.u(-0.1, 0.05)), (-0.9, 0.14), (-0.98, 0.3), (-0.4, 0.36)], SECOND, -12)
    for x in (0.0, 0.2):
        p.stroke([(x, 0.5), (x + 0.02, 0.92)], 0.06, DARK, smooth=False)
        p.stroke([(x - 0.1, 0.95), (x + 0.14, 0.9)], 0.06, DARK, smooth=False)
    body = p.blob([(-0.62, 0.12), (-0.3, -0.12), (0.1, -0.25), (0.45, -0.2), (0.58, 0.15), (0.35, 0.5), (-0.05, 0.58),
        (-0.42, 0.4)], MAIN)
    p.blob([(0.05, 0.6), (0.2, 0.15), (0.52, 0.05), (0.7, 0.3), (0.4, 0.6)], LIGHT, -6, body)
    p.poly([(0.7, -0.56), (1.0, -0.42), (0.7, -0.3)], ACCENT)
    p.oval(0.45, -0.45, 0.32, 0.3, MAIN, 6)
    p.oval(0.56, -0.5, 0.075, 0.075, LIGHT)
    p.oval(0.57, -0.5, 0.045, 0.045, DARK)
    tip = p.u(-0.12, 0.08)
    wing = p.blob([(0.2, -0.12), (-0.25, -0.1), (-0.8, tip - 0.3), (-0.7, tip + 0.12), (-0.35, 0.3), (0.1, 0.3),
        (0.28, 0.08)], SECOND)
    for k in range(4):
        x = -0.55 + 0.18 * k
        p.stroke([(x, -0.3), (x - 0.08, 0.05), (x + 0.1, 0.4)], 0.05, SECOND, -48, wing)
    if p.u(0, 1) < 0.5:
        p.poly([(0.3, -0.68), (0.1, -0.9), (0.42, -0.74)], SECOND)


def _fish(p: _Pen) -> None:
    tall = p.u(0.4, 0.52)
    p.blob([(-0.5, 0.0), (-0.85, -0.42), (-1.0, -0.4), (-0.86, 0.0), (-1.0, 0.4), (-0.85, 0.42)], SECOND)
    for dy in (-0.22, 0.0, 0.22):
        p.stroke([(-0.6, dy * 0.3), (-0.96, dy * 1.2)], 0.035, SECOND, -45, len(p.slots) - 1 if dy == -0.22 else 1,
            smooth=False)
    p.blob([(-0.4, -tall * 0.7), (-0.2, -tall - 0.3), (0.15, -tall - 0.22), (0.4, -tall * 0.75), (0.1, -0.2)], SECOND,
        -6)
    p.blob([(-0.05, tall * 0.7), (-0.25, tall + 0.24), (0.1, tall + 0.18), (0.2, tall * 0.7)], SECOND, -6)
    body = p.blob([(-0.7, 0.0), (-0.4, -tall * 0.72), (0.1, -tall), (0.6, -tall * 0.75), (0.96, -0.02),
        (0.6, tall * 0.75), (0.1, tall), (-0.4, tall * 0.72)], MAIN)
    p.blob([(-0.6, 0.12), (0.2, 0.28), (1.0, 0.1), (0.6, 0.8), (-0.4, 0.8)], LIGHT, -6, body)
    for col in range(6):
        for row in range(-3, 4):
            x, y = -0.56 + 0.16 * col, row * 0.15 + (0.075 if col % 2 else 0)
            for target in (body, body + 1):
                p.stroke([(x - 0.03, y - 0.07), (x + 0.05, y), (x - 0.03, y + 0.07)], 0.03, MAIN, -55, target)
    p.stroke([(0.44, -tall * 0.7), (0.34, 0.0), (0.44, tall * 0.7)], 0.06, DARK)
    p.blob([(0.24, 0.02), (-0.02, -0.06), (-0.12, 0.1), (0.0, 0.22)], ACCENT)
    p.oval(0.64, -0.12, 0.13, 0.13, LIGHT, 12)
    p.oval(0.67, -0.12, 0.07, 0.07, DARK)
    p.stroke([(0.94, 0.1), (0.76, 0.14)], 0.045, DARK, smooth=False)


def _butterfly(p: _Pen) -> None:
    up, low = p.u(0.85, 0.98), p.u(0.6, 0.75)
    for s in (-1, 1):
        lower = p.blob([(s * 0.04, 0.02), (s * low * 0.8, 0.1), (s * low, 0.45), (s * low * 0.75, 0.88), (s * 0.3, 0.7),
            (s * 0.08, 0.35)], SECOND)
        p.oval(s * low * 0.66, 0.5, 0.17, 0.2, ACCENT, 0, 0.0, lower)
        p.oval(s * low * 0.66, 0.5, 0.08, 0.1, DARK, 0, 0.0, lower + 1)
        upper = p.blob([(s * 0.04, 0.1), (s * 0.14, -0.3), (s * up * 0.7, -0.85), (s * up, -0.75),
            (s * up * 0.97, -0.2), (s * up * 0.6, 0.12)], MAIN)
        p.oval(s * up * 0.66, -0.42, 0.2, 0.17, LIGHT, 0, 0.0, upper)
        p.oval(s * up * 0.66, -0.42, 0.1, 0.085, DARK, 0, 0.0, upper + 1)
        p.stroke([(s * 0.05, 0.0), (s * up * 0.9, -0.1)], 0.045, DARK, 0, upper, smooth=False)
        p.stroke([(s * 0.05, 0.0), (s * up * 0.45, -0.75)], 0.045, DARK, 0, upper, smooth=False)
        for k in range(4):
            p.oval(s * up * 0.93, -0.7 + 0.16 * k, 0.055, 0.05, LIGHT, 10, 0.0, upper)
        p.stroke([(s * 0.02, -0.45), (s * 0.12, -0.75), (s * 0.28, -0.93)], 0.045, DARK)
        p.oval(s * 0.28, -0.93, 0.055, 0.055, DARK)
    p.oval(0, 0.08, 0.1, 0.5, DARK, 10)
    p.oval(0, -0.44, 0.11, 0.11, DARK, 10)


def _flower(p: _Pen) -> None:
    sway = p.u(-0.12, 0.12)
    p.stroke([(0, -0.3), (sway, 0.3), (0, 0.98)], 0.1, SECOND, -15)
    for s, y in ((-1, p.u(0.5, 0.6)), (1, p.u(0.65, 0.78))):
        leaf = p.blob([(0.02 * s, y + 0.12), (s * 0.3, y - 0.22), (s * 0.62, y - 0.28), (s * 0.46, y + 0.05)], SECOND)
        p.stroke([(0.0, y + 0.12), (s * 0.6, y - 0.27)], 0.035, SECOND, -45, leaf, smooth=False)
    n = int(p.u(5, 8.99))
    turn = p.u(0, 1)
    reach = 0.4
    wide = min(0.2, 1.1 / n + 0.04)
    for i in range(n):
        angle = 2 * math.pi * (i + turn) / n
        x, y = math.cos(angle), math.sin(angle)
        petal = p.oval(x * reach, -0.38 + y * reach, 0.25, wide, MAIN, 8 if i % 2 else -8, angle)
        p.stroke([(x * 0.1, -0.38 + y * 0.1), (x * 0.52, -0.38 + y * 0.52)], 0.045, MAIN, -45, petal, smooth=False)
    core = p.oval(0, -0.38, 0.21, 0.21, ACCENT)
    for i in range(7):
        angle = 2 * math.pi * i / 7
        p.oval(0.11 * math.cos(angle), -0.38 + 0.11 * math.sin(angle), 0.035, 0.035, DARK, 0, 0.0, core)


def _mushroom(p: _Pen) -> None:
    brim, top = p.u(0.0, 0.12), p.u(-0.9, -0.75)
    stem = p.blob([(-0.2, brim - 0.1), (-0.22, 0.5), (-0.34, 0.9), (0.0, 0.97), (0.34, 0.9), (0.22, 0.5),
        (0.2, brim - 0.1)], LIGHT, -4)
    for x in (-0.12, 0.0, 0.12):
        p.stroke([(x, 0.3), (x * 1.5, 0.95)], 0.035, LIGHT, -45, stem, smooth=False)
    p.blob([(-0.25, brim + 0.1), (-0.32, brim + 0.3), (0.0, brim + 0.36), (0.32, brim + 0.3), (0.25, brim + 0.1)],
        SECOND)
    p.blob([(-0.88, brim), (-0.3, brim + 0.17), (0.3, brim + 0.17), (0.88, brim), (0, brim - 0.1)], LIGHT, -40)
    cap = p.blob([(-0.96, brim), (-0.86, brim - 0.42), (-0.45, top + 0.12), (0.0, top), (0.45, top + 0.12),
        (0.86, brim - 0.42), (0.96, brim), (0.5, brim + 0.06), (-0.5, brim + 0.06)], MAIN)
    for x, y, r in (
        (-0.6, 0.75, 0.12),
        (-0.2, 0.45, 0.16),
        (0.25, 0.75, 0.15),
        (0.62, 0.62, 0.11),
        (0.1, 0.12, 0.1),
        (-0.22, 0.9, 0.09),
        (0.45, 0.3, 0.09),
        (-0.5, 0.3, 0.08),
    ):
        p.oval(x + p.u(-0.05, 0.05), brim - (1 - y) * (brim - top) * 0.9 - 0.04, r, r * 0.8, LIGHT, 8, 0.0, cap)


def _umbrella(p: _Pen) -> None:
    rim, top = p.u(0.02, 0.14), -0.88
    p.stroke([(0, -0.7), (0, 0.72), (0.06, 0.9), (0.2, 0.92), (0.28, 0.76)], 0.085, DARK, 8)
    p.stroke([(0, 0.6), (0.0, 0.74), (0.06, 0.9), (0.2, 0.92), (0.28, 0.76)], 0.11, ACCENT)
    p.stroke([(0, top + 0.1), (0, -1.0)], 0.06, DARK, smooth=False)
    xs = [-0.98, -0.5, 0.0, 0.5, 0.98]
    dome = [(0.98 * math.cos(math.pi - math.pi * i / 24), rim + (top - rim) * math.sin(math.pi * i / 24)) for i in
        range(25)]
    scallop = []
    for x0, x1 in reversed(list(pairwise(xs))):
        scallop += [(x1 + (x0 - x1) * t / 6, rim - 0.16 * math.sin(math.pi * t / 6)) for t in range(7)]
    cloth = p.poly(dome + scallop, MAIN)
    for k, (x0, x1) in enumerate(pairwise(xs)):
        if k % 2:
            bow = [(x0 * math.sin(math.pi * t / 16), top + (rim - top) * (1 - math.cos(math.pi * t / 16))) for t in
                range(9)]
            bow2 = [(x1 * math.sin(math.pi * t / 16), top + (rim - top) * (1 - math.cos(math.pi * t / 16))) for t in
                range(9)]
            p.poly(bow + bow2[::-1], SECOND, 0, cloth)
    for x in xs[1:-1]:
        bow = [(x * math.sin(math.pi * t / 16), top + (rim - top) * (1 - math.cos(math.pi * t / 16))) for t in range(9)]
        for target in (cloth, cloth + 1, cloth + 2):
            p.stroke(bow, 0.035, DARK, 15, target, smooth=False)


def _chair(p: _Pen) -> None:
    seat, lean = p.u(0.08, 0.2), p.u(0.0, 0.08)
    for x0, x1 in ((-0.26, -0.3), (0.72, 0.78)):
        p.stroke([(x0, seat), (x1, 0.8)], 0.1, MAIN, -45, smooth=False)
    p.stroke([(-0.5, seat), (-0.56 - lean, -0.96)], 0.12, MAIN, -8, smooth=False)
    p.stroke([(0.12, seat - 0.1), (0.06 - lean, -0.96)], 0.12, MAIN, -8, smooth=False)
    for k in range(3):
        y = -0.86 + 0.26 * k
        p.poly([(-0.58 - lean * (1 - k / 3), y), (0.1, y - 0.02), (0.1, y + 0.13), (-0.56, y + 0.15)], SECOND if k == 1
            else MAIN, 4)
    p.poly([(-0.62, seat + 0.06), (-0.3, seat - 0.14), (0.86, seat - 0.14), (0.62, seat + 0.06)], ACCENT)
    p.poly([(-0.62, seat + 0.05), (0.62, seat + 0.05), (0.62, seat + 0.19), (-0.62, seat + 0.19)], MAIN, -10)
    p.poly([(0.62, seat + 0.05), (0.86, seat - 0.14), (0.86, seat + 0.0), (0.62, seat + 0.19)], MAIN, -30)
    p.stroke([(-0.54, seat + 0.19), (-0.56, 0.97)], 0.13, MAIN, 0, smooth=False)
    p.stroke([(0.54, seat + 0.19), (0.56, 0.97)], 0.13, MAIN, 0, smooth=False)
    p.stroke([(-0.54, 0.62), (0.54, 0.62)], 0.08, MAIN, -20, smooth=False)


def _balloon(p: _Pen) -> None:
    wide = p.u(0.62, 0.72)
    for s in (-1, 1):
        p.stroke([(s * wide * 0.42, 0.2), (s * 0.17, 0.72)], 0.04, DARK, smooth=False)
    p.stroke([(0, 0.2), (0, 0.72)], 0.035, DARK, smooth=False)
    bag = p.blob([(0, -0.98), (-wide * 0.72, -0.8), (-wide, -0.36), (-wide * 0.78, 0.08), (-wide * 0.32, 0.42),
        (wide * 0.32, 0.42), (wide * 0.78, 0.08), (wide, -0.36), (wide * 0.72, -0.8)], MAIN)
    for k, slot in ((-0.8, SECOND), (0.0, SECOND), (0.8, SECOND), (-0.4, LIGHT), (0.4, LIGHT)):
        spread = 0.18 if slot == SECOND else 0.05
        left = [(wide * (k - spread) * math.sin(math.pi * t / 16), -1 + 1.46 * t / 16) for t in range(1, 17)]
        right = [(wide * (k + spread) * math.sin(math.pi * t / 16), -1 + 1.46 * t / 16) for t in range(1, 17)]
        p.poly([(0, -1.0), *left, *right[::-1]], slot, 0, bag)
    p.poly([(-wide * 0.34, 0.4), (wide * 0.34, 0.4), (wide * 0.28, 0.48), (-wide * 0.28, 0.48)], ACCENT)
    basket = p.poly([(-0.2, 0.7), (0.2, 0.7), (0.16, 0.98), (-0.16, 0.98)], ACCENT, -20)
    for k in range(3):
        p.box(-1, 0.76 + 0.08 * k, 1, 0.785 + 0.08 * k, DARK, 20, basket)


def _cup(p: _Pen) -> None:
    top, low = p.u(-0.5, -0.38), 0.72
    p.stroke([(0.4, top + 0.28), (0.82, top + 0.26), (0.92, 0.1), (0.72, 0.42), (0.36, 0.46)], 0.15, MAIN, -20)
    p.oval(-0.1, 0.78, 0.84, 0.17, SECOND)
    p.oval(-0.1, 0.75, 0.56, 0.09, SECOND, -35)
    foot = p.u(0.36, 0.46)
    body = p.blob([(-0.68, top), (-0.66, 0.2), (-foot - 0.1, low), (-0.1, low + 0.08), (foot - 0.1, low), (0.46, 0.2),
        (0.48, top), (-0.1, top + 0.05)], MAIN)
    p.box(-1, 0.02, 1, 0.2, ACCENT, 0, body)
    for k in range(6):
        p.oval(-0.6 + 0.2 * k, 0.36, 0.055, 0.055, LIGHT, 0, 0.0, body)
    p.oval(-0.1, top, 0.58, 0.16, LIGHT)
    p.oval(-0.1, top + 0.02, 0.48, 0.11, DARK, 22)
    for x in (-0.3, 0.0):
        p.stroke([(x, top - 0.08), (x + 0.1, top - 0.2), (x - 0.02, top - 0.32), (x + 0.08, top - 0.46)], 0.07, LIGHT,
            0, taper=0.5)


def _rocket(p: _Pen) -> None:
    wide, tail = p.u(0.26, 0.32), p.u(0.5, 0.58)
    p.blob([(-0.17, tail), (-0.22, 0.75), (0.0, 0.99), (0.22, 0.75), (0.17, tail)], ACCENT, 10)
    p.blob([(-0.08, tail), (-0.1, 0.7), (0.0, 0.84), (0.1, 0.7), (0.08, tail)], LIGHT, 10)
    for s in (-1, 1):
        p.poly([(s * wide * 0.9, 0.02), (s * 0.66, 0.42), (s * 0.66, 0.78), (s * wide * 0.7, tail)], SECOND, -6 if s < 0
            else -20)
    body = p.blob([(0.0, -0.98), (-wide * 0.6, -0.62), (-wide, -0.1), (-wide * 0.7, tail), (wide * 0.7, tail),
        (wide, -0.1), (wide * 0.6, -0.62)], MAIN)
    p.box(-1, -1, 1, -0.5, SECOND, 0, body)
    p.box(-1, -0.5, 1, -0.44, DARK, 0, body)
    p.box(-1, 0.28, 1, 0.36, SECOND, 0, body)
    p.box(-1, 0.44, 1, 0.7, DARK, 20, body)
    p.oval(0, -0.14, 0.17, 0.17, LIGHT)
    p.oval(0, -0.14, 0.11, 0.11, DARK, 30)
    p.poly([(-0.05, 0.12), (0.05, 0.12), (0.06, 0.72), (-0.06, 0.72)], SECOND, -12)
# fmt: on


_DRAWINGS: dict[str, Callable[[_Pen], None]] = {
    "boat": _boat, "car": _car, "house": _house, "tree": _tree, "dog": _dog, "cat": _cat, "bird": _bird, "fish": _fish,
    "butterfly": _butterfly, "flower": _flower, "mushroom": _mushroom, "umbrella": _umbrella, "chair": _chair,
    "balloon": _balloon, "cup": _cup, "rocket": _rocket,
}  # fmt: skip


@dataclass(frozen=True)
class _Sprite:
    """Two four-band images of one side: (main, second, accent, dark) weights; (light weight, edge, shade, bevel)."""

    weights: Image.Image
    relief: Image.Image
    box: tuple[float, float, float, float]  # left, top, right, bottom of what is drawn, in [0, 1]


def _sprite(name: str, variant: int, side: int) -> _Sprite:
    """A sprite of a power of two's side."""
    return _large_sprite(name, variant, side) if side > _DRAWN_SIDE else _small_sprite(name, variant, side)


@cache
def _small_sprite(name: str, variant: int, side: int) -> _Sprite:
    if side == _DRAWN_SIDE:
        return _draw_sprite(name, variant, side)
    larger = _small_sprite(name, variant, side * 2)
    return _Sprite(larger.weights.reduce(2), larger.relief.reduce(2), larger.box)


# A sprite of side 2048 takes 32 MiB, so that few of these are kept.
@lru_cache(maxsize=16)
def _large_sprite(name: str, variant: int, side: int) -> _Sprite:
    return _draw_sprite(name, variant, side)


def _draw_sprite(name: str, variant: int, side: int) -> _Sprite:
    pen = _Pen(side, np.random.default_rng([zlib.crc32(name.encode()), variant]))
    _DRAWINGS[name](pen)
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
    bevel = np.roll(soft, (-step, -step), (0, 1)) - np.roll(soft, (step, step), (0, 1))
    bevel = Image.fromarray(np.clip(128 + bevel // 2, 0, 255).astype(np.uint8))
    rows, cols = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    box = (cols[0] / (2 * side), rows[0] / (2 * side), (cols[-1] + 1) / (2 * side), (rows[-1] + 1) / (2 * side))
    edge_image = Image.fromarray(edge)
    return _Sprite(
        Image.merge("CMYK", layers[:4]),
        Image.merge("CMYK", (layers[4], edge_image, shade, bevel)),
        tuple(map(float, box)),
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


# -------------------------------------------------------------------------------------------------------------- grounds
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
def _grain() -> np.ndarray:
    """White noise, (256, 256) int16 of about unit spread times 64, for the picture's own noise."""
    rng = np.random.default_rng(20)
    return (rng.integers(-64, 65, (2, 256, 256)).sum(0)).astype(np.int16)


# --------------------------------------------------------------------------------------------------------------- styles
@dataclass(frozen=True)
class Style:
    """How scenes are drawn. Pairs are (least, most); sizes are fractions of the image's side."""

    name: str
    saturation: tuple[float, float] = (0.35, 0.9)  # of object colours, 0..1
    value: tuple[float, float] = (0.45, 0.98)
    hue: tuple[float, float] = (0.0, 1.0)
    ground_saturation: tuple[float, float] = (0.7, 1.2)  # times the ground's own
    ground_value: tuple[float, float] = (0.75, 1.1)
    ground_hue: float = 0.03  # largest change of the ground's hue, either way
    ground_contrast: tuple[float, float] = (0.5, 1.0)
    ground_zoom: tuple[float, float] = (0.3, 0.65)  # part of the texture field that fills the image
    line_chance: float = 0.5  # of outlined objects in a scene
    line_width: tuple[float, float] = (0.2, 0.9)
    bevel: tuple[float, float] = (0.0, 0.7)  # strength of the light on objects
    shadow: tuple[float, float] = (0.0, 0.35)
    gradient: tuple[float, float] = (0.0, 0.3)  # light across the picture
    noise: tuple[float, float] = (0.0, 8.0)  # spread of pixel noise, grey levels
    blur_chance: float = 0.1
    size: tuple[float, float] = (0.2, 0.6)
    rotation: float = 18.0  # degrees, either way
    objects: tuple[int, int] = (1, 3)
    empty_chance: float = 0.1  # of a ground with nothing on it
    cooccurrence: float = 0.3  # of a ground where one of the objects usually is
    brightness: tuple[float, float] = (0.85, 1.1)


PRETRAIN_STYLES: tuple[str, ...] = ("web-flat", "web-photo", "web-ink")
DEMO_STYLES: tuple[str, ...] = ("demo", "sketch", "night", "pastel")
STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style("web-flat", bevel=(0.0, 0.15), line_chance=0.2, noise=(0.0, 3.0), ground_contrast=(0.3, 0.8),
            ground_hue=0.08),
        Style("web-photo", bevel=(0.4, 1.0), line_chance=0.15, noise=(1.0, 11.0), shadow=(0.15, 0.45),
            gradient=(0.1, 0.45), blur_chance=0.3, saturation=(0.15, 0.8), value=(0.25, 0.95), brightness=(0.6, 1.15)),
        Style("web-ink", bevel=(0.0, 0.4), line_chance=1.0, line_width=(0.35, 1.0), noise=(0.0, 5.0),
            ground_saturation=(0.1, 1.1), ground_value=(0.8, 1.35), saturation=(0.05, 0.95), value=(0.5, 1.0),
            ground_hue=0.05),
        Style("demo", size=(0.26, 0.58), bevel=(0.35, 0.6), line_chance=1.0, line_width=(0.15, 0.35), shadow=(0.2, 0.3),
            gradient=(0.1, 0.2), noise=(1.0, 4.0), blur_chance=0.0, rotation=10.0, cooccurrence=0.75, empty_chance=0.0,
            saturation=(0.45, 0.8), value=(0.5, 0.95), brightness=(0.95, 1.05)),
        Style("sketch", size=(0.3, 0.62), bevel=(0.0, 0.1), line_chance=1.0, line_width=(0.7, 1.0), shadow=(0.0, 0.0),
            gradient=(0.0, 0.1), noise=(2.0, 5.0), blur_chance=0.0, cooccurrence=0.5, empty_chance=0.0,
            saturation=(0.08, 0.3), value=(0.75, 1.0), ground_saturation=(0.15, 0.35), ground_value=(0.95, 1.1),
            ground_contrast=(0.6, 1.0)),
        Style("night", size=(0.22, 0.5), bevel=(0.6, 1.0), line_chance=0.0, shadow=(0.3, 0.5), gradient=(0.3, 0.6),
            noise=(5.0, 10.0), blur_chance=0.2, cooccurrence=0.5, empty_chance=0.0, saturation=(0.3, 0.7),
            value=(0.45, 0.9), ground_value=(0.45, 0.65), brightness=(0.6, 0.75)),
        Style("pastel", size=(0.24, 0.55), bevel=(0.1, 0.3), line_chance=0.0, shadow=(0.05, 0.15), gradient=(0.0, 0.1),
            noise=(0.0, 1.0), blur_chance=0.0, cooccurrence=0.5, empty_chance=0.0, saturation=(0.25, 0.5),
            value=(0.8, 1.0), ground_saturation=(0.4, 0.7), ground_value=(1.0, 1.25), ground_contrast=(0.3, 0.5),
            ground_hue=0.06),
    )
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- scenes
@dataclass(frozen=True)
class Scene:
    """One picture and what is known of it."""

    image: UInt8[np.ndarray, "H W 3"]  # RGB
    mask: UInt8[np.ndarray, "H W"] | None  # 0 background, 1..C class index + 1 in order of CLASSES; None: not made
    tags: tuple[str, ...]  # classes of the visible objects, in order of CLASSES
    ground: str
    caption: str


@dataclass(frozen=True)
class _Object:
    name: str
    hue_word: str
    size: float  # of the side
    centre: tuple[float, float]  # x, y in [0, 1]
    top: int
    left: int
    alpha: np.ndarray  # (h, w) float32 in [0, 1]
    paint: np.ndarray  # (3, h, w) float32, colour times alpha


def class_set() -> ClassSet:
    """The ClassSet of the scenes: CLASSES, with GROUNDS as background words."""
    return ClassSet(names=CLASSES, background=GROUNDS)


def _rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return 255 * r, 255 * g, 255 * b


def _between(pair: tuple[float, float], u: float) -> float:
    return pair[0] + (pair[1] - pair[0]) * u


def draw(seed: int, index: int, style: str = "demo", size: int = 96, with_mask: bool = True) -> Scene:
    """Draw scene `index` of the endless sequence `seed` in a style. The same arguments give the same bytes.

    The scene is a square of `size` pixels. Its picture does not depend on `with_mask`; without it no mask is made.

    Raises:
        DataError: an unknown style, a size out of 16 to 4096, or a negative seed or index.
    """
    _check(style, size)
    if seed < 0 or index < 0:
        raise DataError(f"Scene {index} of seed {seed} was asked for; both are numbers from 0. Choose others.")
    look = STYLES[style]
    rng = np.random.Generator(np.random.PCG64([seed, index, zlib.crc32(style.encode())]))
    names = _choose_names(rng, look)
    ground = _choose_ground(rng, look, names)
    canvas, ground_tone = _draw_ground(rng, look, ground, size)
    objects = _place(rng, look, names, size, ground_tone)
    shadow = _between(look.shadow, rng.random())
    for thing in objects:
        _blend(canvas, thing, shadow, size)
    image = _finish(rng, look, canvas, size)
    caption = _caption(rng, objects, ground)
    present = {thing.name for thing in objects}
    tags = tuple(name for name in CLASSES if name in present)
    mask = _compose_mask(objects, size) if with_mask else None
    return Scene(image, mask, tags, ground, caption)


def _check(style: str, size: int) -> None:
    if style not in STYLES:
        raise DataError(f"Unknown scene style {style!r}. Known styles: {', '.join(STYLES)}. Choose one of them.")
    if not 16 <= size <= 4096:
        raise DataError(f"Scene size is {size} pixels; a side of 16 to 4096 is needed. Choose a size in that range.")


def _compose_mask(objects: Sequence[_Object], size: int) -> np.ndarray:
    """The one place where masks are made: nearer objects over farther ones where they cover half a pixel or more."""
    mask = np.zeros((size, size), np.uint8)
    for thing in objects:
        h, w = thing.alpha.shape
        mask[thing.top : thing.top + h, thing.left : thing.left + w][thing.alpha >= 0.5] = CLASSES.index(thing.name) + 1
    return mask


def _choose_names(rng: np.random.Generator, look: Style) -> list[str]:
    if rng.random() < look.empty_chance:
        return []
    count = int(rng.integers(look.objects[0], look.objects[1] + 1))
    names = [CLASSES[i] for i in rng.permutation(len(CLASSES))[:count]]
    if count > 1 and rng.random() < 0.08:
        names[1] = names[0]
    return names


def _choose_ground(rng: np.random.Generator, look: Style, names: list[str]) -> str:
    free = GROUNDS[int(rng.integers(len(GROUNDS)))]
    usual = rng.random() < look.cooccurrence
    pick = rng.random()
    if not names or not usual:
        return free
    choices = _HABITAT[names[int(pick * len(names))]]
    return choices[int(rng.integers(len(choices)))]


def _draw_ground(rng: np.random.Generator, look: Style, ground: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The textured ground, (3, H, W) float32 in [0, 255], and its middle colour."""
    u = rng.random(10).tolist()
    saturation, value = _between(look.ground_saturation, u[0]), _between(look.ground_value, u[1])
    hue, contrast = (2 * u[2] - 1) * look.ground_hue, _between(look.ground_contrast, u[3])
    stops = [_rgb(h + hue, s * saturation, v * value) for h, s, v in _GROUND_COLOURS[ground]]
    dark, middle, light = (np.array(stop, np.float32) for stop in stops)
    dark, light = middle + (dark - middle) * np.float32(contrast), middle + (light - middle) * np.float32(contrast)
    table = np.concatenate([dark + (middle - dark) * _RAMP, middle + (light - middle) * _RAMP])
    share, level = _between(look.ground_zoom, u[4]), 0
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


_RAMP = np.linspace(0, 1, 128, dtype=np.float32)[:, None]
_HUE_WORDS = (
    (0.04, "red"), (0.11, "orange"), (0.19, "yellow"), (0.45, "green"), (0.54, "teal"), (0.72, "blue"),
    (0.82, "purple"), (0.94, "pink"), (1.01, "red"),
)  # fmt: skip


def _hue_word(hue: float, saturation: float, value: float) -> str:
    if saturation < 0.16:
        return "white" if value > 0.75 else "grey"
    if value < 0.3:
        return "dark"
    if 0.03 < hue < 0.12 and value < 0.62:
        return "brown"
    return next(word for limit, word in _HUE_WORDS if hue < limit)


def _colours(rng: np.random.Generator, look: Style, ground_tone: np.ndarray) -> tuple[np.ndarray, str]:
    for _ in range(5):
        u = rng.random(12).tolist()
        hue, saturation, value = _between(look.hue, u[0]), _between(look.saturation, u[1]), _between(look.value, u[2])
        if u[3] < 0.12:
            saturation *= 0.15
        main = _rgb(hue, saturation, value)
        if sum(abs(a - float(b)) for a, b in zip(main, ground_tone, strict=True)) > 110:
            break
    near = u[4] < 0.4
    second = _rgb(
        hue + (0.08 * (u[5] - 0.5) if near else u[5]), _between(look.saturation, u[6]),
        (value * 0.62 if value > 0.6 else value * 1.5) if near else _between(look.value, u[7]),
    )  # fmt: skip
    accent = _rgb(
        hue + 0.25 + 0.5 * u[8], _between(look.saturation, u[9]) * 1.15, _between(look.value, 0.4 + 0.6 * u[10])
    )
    dark = _rgb(u[11], 0.25, 0.13)
    light = _rgb(hue, 0.06, min(1.0, look.value[1]))
    return np.array([main, second, accent, dark, light], np.float32), _hue_word(hue % 1.0, saturation, value)


def _place(
    rng: np.random.Generator, look: Style, names: list[str], size: int, ground_tone: np.ndarray
) -> list[_Object]:
    """Objects back to front. One that would leave too little of itself or of an earlier one is moved, or left out."""
    lined = rng.random() < look.line_chance
    width = _between(look.line_width, rng.random()) if lined else 0.0
    bevel = _between(look.bevel, rng.random())
    objects: list[_Object] = []
    for name in names:
        colours, word = _colours(rng, look, ground_tone)
        for _ in range(_TRIES):
            thing = _object(rng, look, name, size, colours, word, width, bevel, len(names))
            if thing is not None and all(
                _visible_share(back, [*objects[i + 1 :], thing]) >= _MIN_VISIBLE for i, back in enumerate(objects)
            ):
                objects.append(thing)
                break
    return objects


def _visible_share(back: _Object, front: Sequence[_Object]) -> float:
    """The share of an object that the nearer ones leave visible."""
    left = back.alpha
    h, w = back.alpha.shape
    for thing in front:
        fh, fw = thing.alpha.shape
        top, bottom = max(back.top, thing.top), min(back.top + h, thing.top + fh)
        start, end = max(back.left, thing.left), min(back.left + w, thing.left + fw)
        if top < bottom and start < end:
            if left is back.alpha:
                left = left.copy()
            left[top - back.top : bottom - back.top, start - back.left : end - back.left] *= (
                1 - thing.alpha[top - thing.top : bottom - thing.top, start - thing.left : end - thing.left]
            )
    return 1.0 if left is back.alpha else float(left.sum() / back.alpha.sum())


def _object(
    rng: np.random.Generator, look: Style, name: str, size: int, colours: np.ndarray, word: str,
    width: float, bevel: float, crowd: int,
) -> _Object | None:  # fmt: skip
    """Transform and colour a sprite at a random place; None when the border cuts too much of it."""
    u = rng.random(9).tolist()
    most = look.size[1] if crowd < 3 else look.size[0] + (look.size[1] - look.size[0]) * 0.75
    extent = _between((look.size[0], most), u[0] * (1.6 - 0.6 * u[0]))  # rather large than small
    longest = extent * size
    side = 16
    while side < longest * 1.1 and side < _LARGEST_SIDE:
        side *= 2
    sprite = _sprite(name, int(u[1] * _VARIANTS), side)
    x0, y0, x1, y1 = (v * side for v in sprite.box)
    scale = longest / max(x1 - x0, y1 - y0)
    stretch = 1 + 0.24 * (u[2] - 0.5)
    sx, sy = scale * math.sqrt(stretch) * (-1 if u[3] < 0.5 else 1), scale / math.sqrt(stretch)
    turn = math.radians(look.rotation * (2 * u[4] - 1) * abs(2 * u[5] - 1))
    cos, sin = math.cos(turn), math.sin(turn)
    half_w, half_h = abs(sx) * (x1 - x0) / 2, sy * (y1 - y0) / 2
    reach_x, reach_y = abs(cos) * half_w + abs(sin) * half_h, abs(sin) * half_w + abs(cos) * half_h
    low_x, low_y = reach_x * (1 - 2 * _BORDER_CUT), reach_y * (1 - 2 * _BORDER_CUT)
    cx, cy = low_x + (size - 2 * low_x) * u[6], low_y + (size - 2 * low_y) * u[7]
    left, top = max(0, math.floor(cx - reach_x) - 1), max(0, math.floor(cy - reach_y) - 1)
    right, bottom = min(size, math.ceil(cx + reach_x) + 1), min(size, math.ceil(cy + reach_y) + 1)
    if right - left < 3 or bottom - top < 3:
        return None
    # Inverse map, from pixels of the picture to pixels of the sprite.
    a, b, d, e = cos / sx, sin / sx, -sin / sy, cos / sy
    mx, my = (x0 + x1) / 2, (y0 + y1) / 2
    coefficients = (a, b, mx + a * (left - cx) + b * (top - cy), d, e, my + d * (left - cx) + e * (top - cy))
    region = (right - left, bottom - top)
    weights, relief = (
        np.asarray(bands.transform(region, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR))
        for bands in (sprite.weights, sprite.relief)
    )
    alpha, paint = _paint(weights, relief, colours, width, bevel)
    return _Object(name, word, extent, (cx / size, cy / size), top, left, alpha, paint)


def _paint(
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


def _blend(canvas: np.ndarray, thing: _Object, shadow: float, size: int) -> None:
    """Put an object and its shadow on the canvas, in place."""
    h, w = thing.alpha.shape
    if shadow > 0.02:
        move = max(1, round(thing.size * size * 0.06))
        under = canvas[:, thing.top + move : thing.top + move + h, thing.left + move : thing.left + move + w]
        under *= 1 - np.float32(shadow) * thing.alpha[: under.shape[1], : under.shape[2]]
    region = canvas[:, thing.top : thing.top + h, thing.left : thing.left + w]
    region *= 1 - thing.alpha
    region += thing.paint


def _finish(rng: np.random.Generator, look: Style, canvas: np.ndarray, size: int) -> np.ndarray:
    """Light, noise and blur; (H, W, 3) uint8."""
    u = rng.random(8).tolist()
    strength = _between(look.gradient, u[0])
    across, down = strength * (2 * u[1] - 1), strength * (u[2] - 0.8)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    level = np.float32(_between(look.brightness, u[3]))
    canvas *= level + ramp[None, :] * np.float32(across) + ramp[:, None] * np.float32(down)
    noise = _between(look.noise, u[4])
    if noise > 0.5:
        x, y = int(u[5] * 160), int(u[6] * 160)
        grain = _grain()
        repeats = -(-size // 96)
        tile = grain[y : y + 96, x : x + 96]
        tile = np.tile(tile, (repeats, repeats))[:size, :size] if repeats > 1 else tile[:size, :size]
        canvas += tile * np.float32(noise / 53)
    np.clip(canvas, 0, 255, out=canvas)
    image = np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))
    if u[7] < look.blur_chance:
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(size / 96 * (0.3 + 0.5 * u[0]))))
    return image


# ------------------------------------------------------------------------------------------------------------- captions
_OPENINGS: tuple[str, ...] = (
    "a photo of {}", "a photo of {}", "a picture of {}", "an image of {}", "{}", "{}", "itap of {}", "a origami {}",
    "a clean origami {}", "a bad photo of {}", "a photo of the large {}", "a photo of the small {}",
    "{} in a video game", "art of {}", "a good photo of {}", "a drawing of {}", "there is {}", "we see {}",
    "my favourite photo of {}", "a scene with {}",
)  # fmt: skip
_ALONE: tuple[str, ...] = (
    "{}", "a photo of {}", "{} with nothing on it", "a photo of {} with nothing on it", "empty {}", "only {}",
    "just {}", "a photo of {} alone", "nothing but {}", "{} background", "a photo of the {}", "a clean origami {}",
    "itap of {}", "{} in a video game", "art of the {}", "a bad photo of the {}",
)  # fmt: skip
_CONNECT: tuple[str, ...] = (
    "on {}", "on {}", "in front of {}", "with {}", "and {}", "against {}", "with {} in the background",
)  # fmt: skip
_PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
_COLOUR_WORDS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "white", "grey", "dark")


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption may hold, sorted."""
    words = set(CLASSES) | set(GROUNDS) | set(_COLOUR_WORDS)
    words |= {"a", "an", "the", "and", "big", "little", "two", "next", "to"} | {_plural(name) for name in CLASSES}
    for text in (*_OPENINGS, *_ALONE, *_CONNECT, *(place for row in _PLACES for place in row)):
        words.update(text.replace("{}", " ").split())
    return tuple(sorted(words))


def _plural(name: str) -> str:
    return {"fish": "fish", "butterfly": "butterflies"}.get(name, name + "s")


def _place_words(centre: tuple[float, float]) -> str:
    column, row = (0 if v < 0.38 else 2 if v > 0.62 else 1 for v in centre)
    return _PLACES[row][column]


def _caption(rng: np.random.Generator, objects: Sequence[_Object], ground: str) -> str:
    u = rng.random(12).tolist()
    if not objects:
        return _ALONE[int(u[0] * len(_ALONE))].format(ground)
    order = list(objects)
    if u[1] < 0.5:
        order.reverse()
    kind = u[2]
    if kind < 0.12:  # a tag list
        words = list(dict.fromkeys(thing.name for thing in order)) + ([ground] if u[3] < 0.7 else [])
        if u[4] < 0.3:
            words = [words[i] for i in rng.permutation(len(words))]
        return (", " if u[5] < 0.8 else " ").join(words)
    if kind < 0.18:
        return order[0].name
    partial = kind < 0.28 and len(order) > 1
    if partial:
        order = order[: 1 + int(u[3] * (len(order) - 1))]
    where = u[4] < 0.35
    coloured, sized = u[5] < 0.22, u[6] < 0.15
    article = ("a", "a", "a", "the", "")[int(u[7] * 5)]
    counts: dict[str, list[_Object]] = {}
    for thing in order:
        counts.setdefault(thing.name, []).append(thing)
    phrases = []
    for name, things in counts.items():
        if len(things) > 1:
            phrases.append(f"two {_plural(name)}")
            continue
        thing = things[0]
        adjectives = []
        if sized and (thing.size > 0.45 or thing.size < 0.27):
            adjectives.append("big" if thing.size > 0.45 else "little")
        if coloured:
            adjectives.append(thing.hue_word)
        first = adjectives[0] if adjectives else name
        lead = "an" if article == "a" and first[0] in "aeiou" else article
        phrase = " ".join(word for word in (lead, *adjectives, name) if word)
        phrases.append(f"{phrase} {_place_words(thing.centre)}" if where else phrase)
    if len(phrases) == 1:
        body = phrases[0]
    elif u[8] < 0.7:
        body = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    else:
        body = (" and " if u[8] < 0.85 else " next to ").join(phrases)
    opening = _OPENINGS[int(u[9] * len(_OPENINGS))]
    if opening.split("{}")[0].rstrip().split(" ")[-1] in ("origami", "large", "small"):
        body = body.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    if u[10] < 0.6 and not (partial and u[11] < 0.5):
        body = body + " " + _CONNECT[int(u[11] * len(_CONNECT))].format(ground)
    return opening.format(body)


# ---------------------------------------------------------------------------------------------------------------- trees
def write_tree(
    folder: str | Path, count: int | dict[str, int], *, seed: int = 0, style: str = "demo", size: int = 96,
    layout: str = "folder",
) -> Path:  # fmt: skip
    """Write scenes that have tags, as files of a data set, and return the folder.

    count: scenes of each split, such as {"train": 80, "val": 20}; a number is split 4 to 1 into these two.
    layout "folder": images/SPLIT/*.png, masks/SPLIT/*.png, SPLIT.csv (file_name,tags; `;` between tags), classes.toml.
    layout "voc": JPEGImages/*.jpg, Annotations/*.xml, SegmentationClass/*.png, ImageSets/Segmentation/SPLIT.txt,
    classes.toml.
    Scenes are drawn in order from index 0, those without tags left out, so that no scene is in two splits. The
    folder appears when it is complete.

    Raises:
        DataError: the folder exists and is not empty; an unknown layout or style, a wrong size, a count below 1.
    """
    folder = Path(folder)
    if layout not in ("folder", "voc"):
        raise DataError(f"Unknown layout {layout!r} of a scene tree. Known layouts: folder, voc. Choose one of them.")
    _check(style, size)
    splits = {"train": count - count // 5, "val": count // 5} if isinstance(count, int) else dict(count)
    if not splits or min(splits.values()) < 0 or sum(splits.values()) < 1:
        raise DataError(f"A scene tree of {count!r} scenes was asked for; give a number of 1 or more for each split.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already and is not empty. Choose a new folder, or remove it first.")
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    classes = class_set()
    (partial / "classes.toml").write_text(classes.to_toml(), encoding="utf-8")
    palette = [channel for colour in classes.palette() for channel in colour]
    index = 0
    for split, wanted in splits.items():
        rows = []
        while len(rows) < wanted:
            scene = draw(seed, index, style, size)
            stem = f"{style}_{index:06d}"
            index += 1
            if scene.tags:
                _write_scene(partial, layout, split, stem, scene, palette)
                rows.append((stem, scene.tags))
        _write_split(partial, layout, split, rows)
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
    return folder


def _write_scene(root: Path, layout: str, split: str, stem: str, scene: Scene, palette: list[int]) -> None:
    mask = Image.fromarray(scene.mask)
    mask.putpalette(palette)
    if layout == "folder":
        image_file, mask_file = root / "images" / split / f"{stem}.png", root / "masks" / split / f"{stem}.png"
    else:
        image_file, mask_file = root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClass" / f"{stem}.png"
    for file in (image_file, mask_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(image_file, **({"quality": 95} if layout == "voc" else {}))
    mask.save(mask_file)
    if layout == "voc":
        annotation = root / "Annotations" / f"{stem}.xml"
        annotation.parent.mkdir(exist_ok=True)
        annotation.write_text(_annotation(stem, scene), encoding="utf-8")


def _annotation(stem: str, scene: Scene) -> str:
    """VOC's XML: the size, and a box around the visible pixels of each class (1-based, inclusive)."""
    height, width = scene.mask.shape
    lines = [
        "<annotation>",
        f"  <filename>{escape(stem)}.jpg</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "  <segmented>1</segmented>",
    ]
    for name in scene.tags:
        rows, columns = np.nonzero(scene.mask == CLASSES.index(name) + 1)
        box = {"xmin": columns.min() + 1, "ymin": rows.min() + 1, "xmax": columns.max() + 1, "ymax": rows.max() + 1}
        corners = "".join(f"<{key}>{value}</{key}>" for key, value in box.items())
        lines.append(f"  <object><name>{name}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


def _write_split(root: Path, layout: str, split: str, rows: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    if layout == "folder":
        with (root / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("file_name", "tags"))
            writer.writerows((f"{stem}.png", ";".join(tags)) for stem, tags in rows)
    else:
        listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{stem}\n" for stem, _ in rows), encoding="utf-8")
