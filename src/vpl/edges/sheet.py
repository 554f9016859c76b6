"""Pictures of label maps: one map in colour over its photograph, and a contact sheet of many beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vpl.classes import IGNORE

_GAP = 6
_HEAD = 26
_INK, _PAPER, _UNKNOWN = (34, 34, 40), (250, 250, 248), (190, 190, 190)


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    labels: UInt8[np.ndarray, "H W"],
    palette: Sequence[tuple[int, int, int]],
    strength: float = 0.62,
) -> UInt8[np.ndarray, "H W 3"]:
    """The label map in its colours over the dimmed grey photograph; 255 (ignore) is light grey, outlines are dark.

    Args:
        strength: share of the class colour, 0 to 1.
    """
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.55 + 0.45 * image
    table = np.array(palette, dtype=np.float64)
    table[IGNORE] = _UNKNOWN
    painted = (1 - strength) * grey + strength * table[labels]
    painted = np.where((labels == 0)[..., None], 0.7 * grey, painted)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    painted[edge] = 0.35 * painted[edge]
    return painted.round().clip(0, 255).astype(np.uint8)


def contact_sheet(
    columns: Sequence[str],
    rows: Sequence[Sequence[UInt8[np.ndarray, "H W 3"]]],
    captions: Sequence[str],
    side: int = 160,
) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures in rows under named columns, each fitted into a square of `side` pixels, a caption under each row."""
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    width = _GAP + len(columns) * (side + _GAP)
    height = _HEAD + len(rows) * (side + 22 + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, name in enumerate(columns):
        pen.text((_GAP + place * (side + _GAP), 5), name, fill=_INK, font=font)
    for line, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        top = _HEAD + line * (side + 22 + _GAP)
        for place, picture in enumerate(row):
            sheet.paste(_fitted(picture, side), (_GAP + place * (side + _GAP), top))
        pen.text((_GAP, top + side + 3), caption, fill=_INK, font=small)
    return np.asarray(sheet)


def _fitted(picture: UInt8[np.ndarray, "H W 3"], side: int) -> Image.Image:
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    fitted = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    square = Image.new("RGB", (side, side), _PAPER)
    square.paste(fitted, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square
