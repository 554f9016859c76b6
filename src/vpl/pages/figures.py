"""Figures of ablations as SVG: lines over numbers, bars over names, a map over two axes; means with their spreads.

Plain data first, a template second (figure.svg). All places are in the units of the picture, one pixel each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vpl.edges import templates
from vpl.pages.charts import ticks

INK, SOFT, RULE = "#1e2428", "#59636b", "#dedbd3"
COLOURS = ("#0b6a72", "#b4552d", "#5b4a9c", "#3f7d2b", "#9c2f5f", "#7a6a12", "#2d6bb4")
LOW, HIGH = (244, 241, 232), (11, 106, 114)
"""Colours of the least and the most in a map."""
WIDTH, HEIGHT = 680, 420
TOP, RIGHT, BOTTOM, LEFT = 36, 20, 56, 52
LETTER = 6.2
"""Mean width of a letter, to leave room for names."""
WIDE = 20
"""Numbers that span more than this factor stand on a logarithmic axis."""
BAR, GAP, CELL = 14, 10, (66, 30)

Number = int | float


@dataclass(frozen=True)
class Text:
    x: Number
    y: Number
    text: str
    anchor: str = "middle"
    colour: str = INK


@dataclass(frozen=True)
class Stroke:
    path: str
    colour: str = INK
    dotted: bool = False


@dataclass(frozen=True)
class Box:
    x: Number
    y: Number
    width: Number
    height: Number
    colour: str


def lines(
    xs: Sequence[float],
    means: Mapping[str, Sequence[float]],
    spreads: Mapping[str, Sequence[float]],
    marks: Mapping[str, float],
    title: str,
    under: str,
    y_name: str,
) -> str:
    """One line with error bars per group over ascending numbers.

    Args:
        means, spreads: by group, one for each x.
        marks: name -> x of a dotted vertical line.
    """
    wide = min(xs) > 0 and max(xs) / min(xs) > WIDE
    low, high = _range(means, spreads)
    rows = ticks(low, high)
    low, high = rows[0], rows[-1]
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def across(value: float) -> float:
        own, first, last = ((math.log(one) if wide else one) for one in (value, xs[0], xs[-1]))
        return round(LEFT + 16 + (right - LEFT - 32) * (own - first) / ((last - first) or 1.0), 1)

    def up(value: float) -> float:
        return round(bottom - (bottom - TOP) * (value - low) / (high - low), 1)

    strokes = [Stroke(f"M{LEFT} {up(one)}H{right}", RULE) for one in rows]
    texts = [Text(LEFT - 6, up(one) + 4, f"{one:g}", "end", SOFT) for one in rows]
    texts += [Text(across(one), bottom + 16, f"{one:g}", colour=SOFT) for one in xs]
    texts.append(Text(LEFT, TOP - 4, y_name, "start", SOFT))
    named: dict[float, list[str]] = {}
    for name, x in marks.items():
        named.setdefault(x, []).append(name)
    for x, names in named.items():
        strokes.append(Stroke(f"M{across(x)} {TOP}V{bottom}", SOFT, dotted=True))
        texts.append(Text(across(x) + 4, TOP + 12, ", ".join(names), "start", SOFT))
    for number, (group, values) in enumerate(means.items()):
        colour = COLOURS[number % len(COLOURS)]
        strokes.append(Stroke("M" + "L".join(f"{across(x)} {up(y)}" for x, y in zip(xs, values, strict=True)), colour))
        for x, y, spread in zip(xs, values, spreads[group], strict=True):
            strokes.append(Stroke(f"M{across(x)} {up(y - spread)}V{up(y + spread)}", colour))
    boxes, legend = _legend(means, right)
    return _drawn(WIDTH, HEIGHT, title, under, boxes, strokes, [*texts, *legend])


def bars(
    names: Sequence[str],
    means: Mapping[str, Sequence[float]],
    spreads: Mapping[str, Sequence[float]],
    title: str,
    under: str,
    x_name: str,
) -> str:
    """Horizontal bars with error bars, a bar per group for each name, first name on top."""
    left = round(16 + LETTER * max(map(len, names)))
    width, right = left + WIDTH - LEFT, left + WIDTH - LEFT - RIGHT
    low, high = _range(means, spreads)
    columns = ticks(min(low, 0.0), max(high, 0.0))
    low, high = columns[0], columns[-1]
    step = BAR * len(means) + GAP
    bottom = TOP + step * len(names)

    def across(value: float) -> float:
        return round(left + (right - left) * (value - low) / (high - low), 1)

    strokes = [Stroke(f"M{across(one)} {TOP}V{bottom}", RULE) for one in columns]
    texts = [Text(across(one), bottom + 16, f"{one:g}", colour=SOFT) for one in columns]
    texts.append(Text(right, TOP - 4, x_name, "end", SOFT))
    boxes = []
    for place, name in enumerate(names):
        texts.append(Text(left - 6, TOP + step * (place + 0.5) + 4, name, "end"))
        for number, (group, values) in enumerate(means.items()):
            top = TOP + step * place + GAP / 2 + BAR * number
            start, end = sorted((across(0.0), across(values[place])))
            boxes.append(Box(start, top, round(end - start, 1), BAR - 2, COLOURS[number % len(COLOURS)]))
            ends = (across(values[place] + sign * spreads[group][place]) for sign in (-1, 1))
            strokes.append(Stroke("M{} {middle}H{}".format(*ends, middle=top + BAR / 2 - 1)))
    swatches, legend = _legend(means, right)
    return _drawn(width, bottom + BOTTOM, title, under, [*boxes, *swatches], strokes, [*texts, *legend])


def heat_map(
    values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str, name: str
) -> str:
    """Numbers over two axes, each written into its field."""
    left = round(16 + LETTER * max(map(len, rows)))
    wide = max(CELL[0], round(LETTER * max(map(len, columns))) + 8)
    low, high = (one(map(one, values)) for one in (min, max))
    boxes, texts = [], []
    for y, line in enumerate(values):
        top = TOP + CELL[1] * y
        texts.append(Text(left - 6, top + CELL[1] / 2 + 4, rows[y], "end"))
        for x, one in enumerate(line):
            share = (one - low) / (high - low) if high > low else 0.0
            red, green, blue = (round(a + share * (b - a)) for a, b in zip(LOW, HIGH, strict=True))
            boxes.append(Box(left + wide * x, top, wide - 1, CELL[1] - 1, f"#{red:02x}{green:02x}{blue:02x}"))
            colour = "#ffffff" if share > 0.6 else INK
            texts.append(Text(left + wide * (x + 0.5), top + CELL[1] / 2 + 4, f"{one:.1f}", colour=colour))
    bottom = TOP + CELL[1] * len(rows)
    texts += [Text(left + wide * (x + 0.5), bottom + 16, one, colour=SOFT) for x, one in enumerate(columns)]
    width = max(left + wide * len(columns) + RIGHT, round(24 + 8 * len(title)))
    return _drawn(width, bottom + BOTTOM, title, name, boxes, [], texts)


def _range(means: Mapping[str, Sequence[float]], spreads: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """The least and the most that error bars reach; never the same."""
    ends = [
        y + sign * s for group in means for y, s in zip(means[group], spreads[group], strict=True) for sign in (-1, 1)
    ]
    low, high = min(ends), max(ends)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _legend(groups: Mapping[str, object], right: Number) -> tuple[list[Box], list[Text]]:
    """Names of the groups in their colours, from the right, on the title's line; nothing for one group."""
    boxes: list[Box] = []
    texts: list[Text] = []
    for number, group in reversed(list(enumerate(groups)) if len(groups) > 1 else []):
        texts.append(Text(right, 20, group, "end", SOFT))
        right = round(right - LETTER * len(group) - 16, 1)
        boxes.append(Box(right, 11, 10, 10, COLOURS[number % len(COLOURS)]))
        right -= 12
    return boxes, texts


def _drawn(
    width: Number,
    height: Number,
    title: str,
    under: str,
    boxes: Sequence[Box],
    strokes: Sequence[Stroke],
    texts: Sequence[Text],
) -> str:
    return templates.render(
        "pages",
        "figure.svg",
        width=width,
        height=height,
        title=title,
        under=under,
        boxes=boxes,
        strokes=strokes,
        texts=texts,
        ink=INK,
        soft=SOFT,
    )
