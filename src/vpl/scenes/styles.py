"""Styles: how scenes are drawn, as ranges of numbers; three for pre-training, four for the demo."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass


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


def rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return 255 * r, 255 * g, 255 * b


def between(pair: tuple[float, float], u: float) -> float:
    return pair[0] + (pair[1] - pair[0]) * u
