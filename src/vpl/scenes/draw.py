"""Scenes: pictures, exact masks, tags and captions, drawn from a seed.

    pixel = (1 - alpha) * below + paint,   from the ground's texture through the objects, back to front.

The embedded default's data set; the method has no section for it, all of it is ours. A scene transforms and recolours
sprites on a ground, so that endless pictures need few drawings. Letters: H W pixels of the scene, h w of one object.

Pre-training draws pictures and captions with `with_mask=False`; masks exist for evaluation only and are made by
`_compose_mask` alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from vpl.classes import SCENE_GROUNDS, SCENE_NAMES
from vpl.errors import DataError
from vpl.scenes.sprites import LARGEST_SIDE, VARIANTS, paint, sprite
from vpl.scenes.styles import STYLES, Style, between, rgb
from vpl.scenes.textures import draw_ground, grain
from vpl.scenes.words import Seen, caption, hue_word

_MIN_VISIBLE = 0.45
"""Least share of an object inside the picture that nearer objects may leave."""
_BORDER_CUT = 0.12
"""Most of an object's width or height that the picture's border may cut."""
_TRIES = 4
"""Places tried for an object before it is left out."""

_HABITAT: dict[str, tuple[str, ...]] = {
    "boat": ("water",), "car": ("road",), "house": ("grass", "snow"), "tree": ("grass", "snow"),
    "dog": ("grass", "sand"), "cat": ("floor", "wall"), "bird": ("sky",), "fish": ("water",),
    "butterfly": ("grass", "sky"), "flower": ("grass",), "mushroom": ("grass",), "umbrella": ("sand",),
    "chair": ("floor",), "balloon": ("sky",), "cup": ("floor",), "rocket": ("sky",),
}  # fmt: skip
"""Where a class is usually seen; used with the style's probability `cooccurrence`."""


@dataclass(frozen=True)
class Scene:
    """One picture and what is known of it."""

    image: UInt8[np.ndarray, "H W 3"]  # RGB
    mask: UInt8[np.ndarray, "H W"] | None  # 0 background, 1..C class index + 1 in order of SCENE_NAMES; None: not made
    tags: tuple[str, ...]  # classes of the visible objects, in order of SCENE_NAMES
    ground: str
    caption: str


@dataclass(frozen=True)
class _Object(Seen):
    """A sprite in its colours at its place in the scene."""

    top: int
    left: int
    alpha: np.ndarray  # (h, w) float32 in [0, 1]
    paint: np.ndarray  # (3, h, w) float32, colour times alpha


def draw(seed: int, index: int, style: str = "demo", size: int = 96, with_mask: bool = True) -> Scene:
    """Draw scene `index` of the endless sequence `seed` in a style. The same arguments give the same bytes.

    The scene is a square of `size` pixels. Its picture does not depend on `with_mask`; without it no mask is made.

    Raises:
        DataError: an unknown style, a size out of 16 to 4096, or a negative seed or index.
    """
    check(style, size)
    if seed < 0 or index < 0:
        raise DataError(f"Scene {index} of seed {seed} was asked for; both are numbers from 0. Choose others.")
    look = STYLES[style]
    rng = np.random.Generator(np.random.PCG64([seed, index, zlib.crc32(style.encode())]))
    names = _choose_names(rng, look)
    ground = _choose_ground(rng, look, names)
    canvas, ground_tone = draw_ground(rng, look, ground, size)
    objects = _place(rng, look, names, size, ground_tone)
    shadow = between(look.shadow, rng.random())
    for thing in objects:
        _blend(canvas, thing, shadow, size)
    image = _finish(rng, look, canvas, size)
    told = caption(rng, objects, ground)
    present = {thing.name for thing in objects}
    tags = tuple(name for name in SCENE_NAMES if name in present)
    mask = _compose_mask(objects, size) if with_mask else None
    return Scene(image, mask, tags, ground, told)


def check(style: str, size: int) -> None:
    """Raises DataError for a style or a side of scenes that can't be drawn."""
    if style not in STYLES:
        raise DataError(f"Unknown scene style {style!r}. Known styles: {', '.join(STYLES)}. Choose one of them.")
    if not 16 <= size <= 4096:
        raise DataError(f"Scene size is {size} pixels; a side of 16 to 4096 is needed. Choose a size in that range.")


def _compose_mask(objects: Sequence[_Object], size: int) -> np.ndarray:
    """The one place where masks are made: nearer objects over farther ones where they cover half a pixel or more."""
    mask = np.zeros((size, size), np.uint8)
    for thing in objects:
        h, w = thing.alpha.shape
        under = mask[thing.top : thing.top + h, thing.left : thing.left + w]
        under[thing.alpha >= 0.5] = SCENE_NAMES.index(thing.name) + 1
    return mask


def _choose_names(rng: np.random.Generator, look: Style) -> list[str]:
    if rng.random() < look.empty_chance:
        return []
    count = int(rng.integers(look.objects[0], look.objects[1] + 1))
    names = [SCENE_NAMES[i] for i in rng.permutation(len(SCENE_NAMES))[:count]]
    if count > 1 and rng.random() < 0.08:
        names[1] = names[0]
    return names


def _choose_ground(rng: np.random.Generator, look: Style, names: list[str]) -> str:
    free = SCENE_GROUNDS[int(rng.integers(len(SCENE_GROUNDS)))]
    usual = rng.random() < look.cooccurrence
    pick = rng.random()
    if not names or not usual:
        return free
    choices = _HABITAT[names[int(pick * len(names))]]
    return choices[int(rng.integers(len(choices)))]


def _colours(rng: np.random.Generator, look: Style, ground_tone: np.ndarray) -> tuple[np.ndarray, str]:
    for _ in range(5):
        u = rng.random(12).tolist()
        hue, saturation, value = between(look.hue, u[0]), between(look.saturation, u[1]), between(look.value, u[2])
        if u[3] < 0.12:
            saturation *= 0.15
        main = rgb(hue, saturation, value)
        if sum(abs(a - float(b)) for a, b in zip(main, ground_tone, strict=True)) > 110:
            break
    near = u[4] < 0.4
    second = rgb(
        hue + (0.08 * (u[5] - 0.5) if near else u[5]), between(look.saturation, u[6]),
        (value * 0.62 if value > 0.6 else value * 1.5) if near else between(look.value, u[7]),
    )  # fmt: skip
    accent = rgb(hue + 0.25 + 0.5 * u[8], between(look.saturation, u[9]) * 1.15, between(look.value, 0.4 + 0.6 * u[10]))
    dark = rgb(u[11], 0.25, 0.13)
    light = rgb(hue, 0.06, min(1.0, look.value[1]))
    return np.array([main, second, accent, dark, light], np.float32), hue_word(hue % 1.0, saturation, value)


def _place(
    rng: np.random.Generator, look: Style, names: list[str], size: int, ground_tone: np.ndarray
) -> list[_Object]:
    """Objects back to front. One that would leave too little of itself or of an earlier one is moved, or left out."""
    lined = rng.random() < look.line_chance
    width = between(look.line_width, rng.random()) if lined else 0.0
    bevel = between(look.bevel, rng.random())
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
    extent = between((look.size[0], most), u[0] * (1.6 - 0.6 * u[0]))  # rather large than small
    longest = extent * size
    side = 16
    while side < longest * 1.1 and side < LARGEST_SIDE:
        side *= 2
    drawn = sprite(name, int(u[1] * VARIANTS), side)
    x0, y0, x1, y1 = (v * side for v in drawn.box)
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
        for bands in (drawn.weights, drawn.relief)
    )
    alpha, painted = paint(weights, relief, colours, width, bevel)
    return _Object(name, word, extent, (cx / size, cy / size), top, left, alpha, painted)


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
    strength = between(look.gradient, u[0])
    across, down = strength * (2 * u[1] - 1), strength * (u[2] - 0.8)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    level = np.float32(between(look.brightness, u[3]))
    canvas *= level + ramp[None, :] * np.float32(across) + ramp[:, None] * np.float32(down)
    noise = between(look.noise, u[4])
    if noise > 0.5:
        x, y = int(u[5] * 160), int(u[6] * 160)
        repeats = -(-size // 96)
        tile = grain()[y : y + 96, x : x + 96]
        tile = np.tile(tile, (repeats, repeats))[:size, :size] if repeats > 1 else tile[:size, :size]
        canvas += tile * np.float32(noise / 53)
    np.clip(canvas, 0, 255, out=canvas)
    image = np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))
    if u[7] < look.blur_chance:
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(size / 96 * (0.3 + 0.5 * u[0]))))
    return image
