"""COCO's shapes -> pixels: polygons, run-lengths, compressed or not, to the pixel as pycocotools draws them.

A polygon's points are (x, y), pixel edges at whole numbers. Its border is walked in steps of a fifth of a pixel; where
a step crosses the middle of a column, all pixels from there on, column after column, are turned over, so that what
lies inside has been turned an odd number of times. Letters: H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vpl.classes import IGNORE
from vpl.errors import DataError

FINE = 5
"""Steps a pixel, as the COCO API has it; it decides which pixels a border takes."""
LONGEST = 2.0**20
"""Coordinates beyond are no pixels of a photograph."""


MOST_STEPS = 2**25
"""Steps of a border; a longer one would be a trap for memory."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What one annotation covers, and its label; 255 for a crowd."""

    label: int
    segmentation: Any


def draw(shapes: Sequence[Shape], height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """Label values: 0 where nothing is drawn, 255 in a crowd that no object lies in front of, and 255 where objects of
    two classes overlap, for the file does not say which is in front.

    Raises:
        DataError: a shape is malformed or of another size.
    """
    labels, crowd = np.zeros((height, width), np.uint8), np.zeros((height, width), bool)
    clash = np.zeros((height, width), bool)
    for shape in shapes:
        where = pixels(shape.segmentation, height, width)
        if shape.label == IGNORE:
            crowd |= where
        else:
            clash |= where & (labels != shape.label) & (labels > 0)
            labels[where] = shape.label
    labels[crowd & (labels == 0) | clash] = IGNORE
    return labels


def pixels(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """A list of polygons [x, y, x, y, ...], or {"size": [H, W], "counts": text or list}.

    Raises:
        DataError: as `draw`.
    """
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise DataError(f"its runs are of size {segmentation.get('size')}, its image of {[height, width]}.")
        counts = segmentation.get("counts")
        runs = _unpacked(counts) if isinstance(counts, str) else counts
        if not isinstance(runs, list) or not all(type(one) is int and one >= 0 for one in runs):
            raise DataError("its runs are no counts of pixels.")
        if sum(runs) != height * width:
            raise DataError(f"its runs cover {sum(runs)} pixels, its image has {height * width}.")
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return flat.reshape((height, width), order="F")
    whole = np.zeros((height, width), bool)
    if not isinstance(segmentation, list) or not all(isinstance(one, list) for one in segmentation):
        raise DataError("its segmentation is neither a list of polygons nor runs.")
    for one in segmentation:
        try:
            points = np.array(one, np.float64).reshape(-1, 2)
        except (TypeError, ValueError):
            raise DataError("a polygon is no list of x, y, x, y.") from None
        if len(points) < 3 or not np.isfinite(points).all() or np.abs(points).max() > LONGEST:
            raise DataError("a polygon has fewer than three points, or one far outside of any image.")
        whole |= polygon(points, height, width)
    return whole


def polygon(points: Float[np.ndarray, "n 2"], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """What lies inside one closed border.

    Raises:
        DataError: it is longer than any in a photograph.
    """
    corners = np.trunc(points * FINE + 0.5).astype(np.int64)
    if np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum() > MOST_STEPS:
        raise DataError("the border of a polygon is longer than any in a photograph.")
    xs, ys = [], []
    for (x0, y0), (x1, y1) in itertools.pairwise([*corners.tolist(), corners[0].tolist()]):
        across, down = abs(x1 - x0), abs(y1 - y0)
        long = max(across, down)
        back = x0 > x1 if across >= down else y0 > y1
        (ax, ay), (bx, by) = ((x1, y1), (x0, y0)) if back else ((x0, y0), (x1, y1))
        steps = np.arange(long + 1)
        if across >= down:
            slope = (by - ay) / across if across else 0.0
            line = steps + ax, np.trunc(ay + slope * steps + 0.5).astype(np.int64)
        else:
            slope = (bx - ax) / down
            line = np.trunc(ax + slope * steps + 0.5).astype(np.int64), steps + ay
        xs.append(line[0][::-1] if back else line[0])
        ys.append(line[1][::-1] if back else line[1])
    x, y = np.concatenate(xs), np.concatenate(ys)
    moved = np.flatnonzero(x[1:] != x[:-1]) + 1
    left = np.minimum(x[moved], x[moved - 1])
    column = (left + 0.5) / FINE - 0.5
    row = np.ceil(np.clip((np.minimum(y[moved], y[moved - 1]) + 0.5) / FINE - 0.5, 0, height)).astype(np.int64)
    middle = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    turned = column[middle].astype(np.int64) * height + row[middle]
    times = np.bincount(turned, minlength=height * width + 1)[: height * width]
    return (np.cumsum(times) % 2 == 1).reshape((height, width), order="F")


def _unpacked(text: str) -> list[int]:
    """Runs of the compressed spelling (exports/coco.py writes it and says how)."""
    runs: list[int] = []
    value = bits = 0
    for letter in text.encode("ascii", "replace"):
        group = letter - 48
        if not 0 <= group < 64 or bits > 60:
            raise DataError("its compressed runs hold a letter that is none of theirs.")
        value |= (group & 31) << bits
        bits += 5
        if not group & 32:
            value -= (1 << bits) if group & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    return runs
