"""The sixteen classes as vector drawings: each a few shapes of colour slots by a pen, other at each variant.

A slot stands for a colour that a scene chooses: main, second, accent, dark, light. Colour says nothing about the class.
The box of a drawing is [-1, 1] x [-1, 1], x right, y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

MAIN, SECOND, ACCENT, DARK, LIGHT = range(5)

# Checks of signatures at run time do not take an int for a float.
_Real = float | int
_Point = tuple[_Real, _Real]


class Pen:
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
    out: list[_Point] = []
    for i in range(n if closed else n - 1):
        if closed:
            p0, p1, p2, p3 = (points[(i + k - 1) % n] for k in range(4))
        else:
            p0, p1, p2, p3 = (points[min(max(i + k - 1, 0), n - 1)] for k in range(4))
        for s in range(steps):
            t = s / steps
            a, b, c, d = -t + 2 * t * t - t**3, 2 - 5 * t * t + 3 * t**3, t + 4 * t * t - 3 * t**3, -t * t + t**3
            x, y = ((a * p0[k] + b * p1[k] + c * p2[k] + d * p3[k]) / 2 for k in (0, 1))
            out.append((x, y))
    if not closed:
        out.append(points[-1])
    return out


# fmt: off
def _boat(p: Pen) -> None:
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


def _car(p: Pen) -> None:
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


def _house(p: Pen) -> None:
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


def _tree(p: Pen) -> None:
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


def _dog(p: Pen) -> None:
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


def _cat(p: Pen) -> None:
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


def _bird(p: Pen) -> None:
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


def _fish(p: Pen) -> None:
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


def _butterfly(p: Pen) -> None:
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


def _flower(p: Pen) -> None:
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


def _mushroom(p: Pen) -> None:
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


def _umbrella(p: Pen) -> None:
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


def _chair(p: Pen) -> None:
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


def _balloon(p: Pen) -> None:
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


def _cup(p: Pen) -> None:
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


def _rocket(p: Pen) -> None:
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


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "boat": _boat, "car": _car, "house": _house, "tree": _tree, "dog": _dog, "cat": _cat, "bird": _bird, "fish": _fish,
    "butterfly": _butterfly, "flower": _flower, "mushroom": _mushroom, "umbrella": _umbrella, "chair": _chair,
    "balloon": _balloon, "cup": _cup, "rocket": _rocket,
}  # fmt: skip
