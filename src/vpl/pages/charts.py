"""What a page draws of plain numbers: curves as SVG paths, confusion matrices as shares, scatters; numbers as words.

No file is read and no HTML is written: everything comes as plain data and leaves as plain data in drawing units.
Letters: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

MOST_CONFUSED = 24  # classes in a confusion matrix
CURVE_BINS = 80  # points of a drawn curve
SCATTER_WIDTH, SCATTER_HEIGHT, SCATTER_MARGIN = 560, 400, 14


@dataclass(frozen=True)
class Curve:
    """One numeric column of network/curve.csv (or the learning curve of the prototypes) over the step."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """A row of the joint space in the plane of the picture. kind: region, text or vision; label: -1 is background."""

    kind: str
    label: int
    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Chart:
    """A drawn curve. Paths and ticks are in the units of a view box of `width` x `height`."""

    title: str
    line: str
    band: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    summary: str
    width: int = 340
    height: int = 190
    left: int = 46
    right: int = 10
    top: int = 10
    bottom: int = 26


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as shares of each true class. `largest`: (truth, called, share), the worst first."""

    names: tuple[str, ...]
    columns: tuple[str, ...]
    shares: tuple[tuple[float | None, ...], ...]
    largest: tuple[tuple[str, str, float], ...]
    left_out: int


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def words(name: str) -> str:
    """A name of the code as words: "kl_text" is "Kl text"."""
    return sentence(name.replace("_", " ").strip())


def short(value: float | None) -> str:
    """A number in three or four digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten), evenly spaced, that enclose [low, high]: about `most` of them."""
    raw = max((high - low) / most, abs(high) * 1e-9, 1e-12)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def chart(curve: Curve) -> Chart:
    """A curve as paths: the mean of each of CURVE_BINS bins as a line, least to most of a bin as a band."""
    steps, values = np.array(curve.steps), np.array(curve.values)
    bins = np.array_split(np.arange(len(steps)), len(steps) if len(steps) <= 2 * CURVE_BINS else CURVE_BINS)
    x = [float(steps[part].mean()) for part in bins]
    mean, low, high = ([float(one(values[part])) for part in bins] for one in (np.mean, np.min, np.max))
    bottom, top = min(low), max(high)
    if 0 <= bottom < top / 2:
        bottom = 0.0
    if top == bottom:
        bottom, top = bottom - 0.5, top + 0.5
    marks = ticks(bottom, top)
    bottom, top = marks[0], marks[-1]
    frame = Chart(words(curve.name), "", "", (), (), "")
    across, down = frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom
    x_low, x_high = float(steps[0]), max(float(steps[-1]), float(steps[0]) + 1e-9)

    def place_x(value: float) -> float:
        return round(frame.left + across * (value - x_low) / (x_high - x_low), 1)

    def place_y(value: float) -> float:
        return round(frame.top + down * (top - value) / (top - bottom), 1)

    def path(xs: Iterable[float], ys: Iterable[float]) -> str:
        return "M" + "L".join(f"{place_x(a):g} {place_y(b):g}" for a, b in zip(xs, ys, strict=True))

    banded = any(a != b for a, b in zip(low, high, strict=True))
    lowest, inside = int(values.argmin()), range(1, len(values) - 1)
    return Chart(
        title=frame.title,
        line=path(x, mean),
        band=path(x + x[::-1], high + low[::-1]) + "Z" if banded else "",
        x_ticks=tuple((place_x(one), short(one)) for one in ticks(x_low, x_high) if x_low <= one <= x_high),
        y_ticks=tuple((place_y(one), short(one)) for one in marks),
        summary="; ".join(
            [
                f"{short(values[0])} at step {short(steps[0])}, {short(values[-1])} at step {short(steps[-1])}",
                *([f"lowest {short(values[lowest])} at step {short(steps[lowest])}"] if lowest in inside else []),
            ]
        )
        + ".",
    )


def matrix(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> Matrix:
    """Shares of each true class's pixels; past MOST_CONFUSED classes, those with the most wrong pixels stay.

    Args:
        classes: their names; background comes first or is left out.
        confusion: pixels of true class t that were called p; a column more than rows is "no label".
    """
    counts = np.array(confusion, dtype=np.float64)
    size = len(counts)
    names = classes if size == len(classes) else ("background", *classes)
    columns = (*names, "no label")[: counts.shape[1]]
    truth = counts.sum(1, keepdims=True)
    shares = counts / np.where(truth > 0, truth, 1)
    wrong = counts.copy()
    wrong[range(size), range(size)] = 0
    mass = wrong.sum(1) + wrong[:, :size].sum(0)
    occurring = [number for number in range(size) if counts[number].sum() + counts[:, number].sum() > 0]
    kept = sorted(sorted(occurring, key=lambda number: -mass[number])[:MOST_CONFUSED])
    across = [*kept, *([size] if counts.shape[1] > size and counts[:, size].any() else [])]
    off = [(shares[t, p], t, p) for t in range(size) for p in range(counts.shape[1]) if p != t and shares[t, p] > 0]
    return Matrix(
        names=tuple(names[number] for number in kept),
        columns=tuple(columns[number] for number in across),
        shares=tuple(tuple(float(shares[t, p]) if truth[t, 0] else None for p in across) for t in kept),
        largest=tuple((names[t], columns[p], float(share)) for share, t, p in sorted(off, key=lambda o: -o[0])[:8]),
        left_out=len(occurring) - len(kept),
    )


def scatter(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points in the units of the scatter's view box, both axes with the same scale."""
    if not points:
        return ()
    places = np.array([(point.x, point.y) for point in points])
    low, high = places.min(0), places.max(0)
    room = np.array([SCATTER_WIDTH, SCATTER_HEIGHT]) - 2 * SCATTER_MARGIN
    scale = (room / np.maximum(high - low, 1e-12)).min()
    centred = (places - (low + high) / 2) * scale
    return tuple(
        Point(
            point.kind,
            point.label,
            point.name,
            round(float(SCATTER_WIDTH / 2 + x), 1),
            round(float(SCATTER_HEIGHT / 2 - y), 1),
        )
        for point, (x, y) in zip(points, centred, strict=True)
    )
