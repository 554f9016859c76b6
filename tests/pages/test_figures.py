"""Figures: every number is where its axis says, every text is in the picture and escaped."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from vpl.pages import figures

SVG = "{http://www.w3.org/2000/svg}"


def drawn(text):
    root = ElementTree.fromstring(text)
    found = {kind: root.findall(f"{SVG}{kind}") for kind in ("text", "path", "rect")}
    return root, {kind: [one.attrib | {"text": one.text} for one in made] for kind, made in found.items()}


def place(texts, words, axis):
    return float(next(one[axis] for one in texts if one["text"] == words))


@pytest.mark.parametrize("xs", [(1.0, 2.0, 4.0), (0.01, 0.1, 1.0)])
def test_a_line_goes_through_its_numbers(xs):
    text = figures.lines(xs, {"a": (10.0, 20.0, 30.0)}, {"a": (1.0, 0.0, 2.0)}, {"paper": xs[1]}, "t", "u", "mIoU")
    _, found = drawn(text)
    line = next(one for one in found["path"] if "L" in one["d"] and one["stroke"] == figures.COLOURS[0])
    points = [tuple(map(float, one.split())) for one in line["d"][1:].split("L")]
    for x, (across, _) in zip(xs, points, strict=True):
        assert across == place(found["text"], f"{x:g}", "x")
    for value, (_, up) in zip((10, 20, 30), points, strict=True):
        assert up + 4 == pytest.approx(place(found["text"], f"{value}", "y"), abs=0.2)
    if xs[0] < 0.1:
        assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2), "logarithmic"
    marked = next(one for one in found["path"] if "stroke-dasharray" in one)
    assert marked["d"].startswith(f"M{points[1][0]} ")


def test_bars_are_as_long_as_their_numbers():
    means = {"demo": (40.0, 20.0), "night": (10.0, 0.0)}
    text = figures.bars(("off", "exact <b>"), means, dict.fromkeys(means, (1.0, 1.0)), "t", "u", "mIoU")
    assert "exact &lt;b&gt;" in text
    _, found = drawn(text)
    wide = [float(one["width"]) for one in found["rect"] if one["height"] == str(figures.BAR - 2)]
    assert wide[1] / wide[0] == pytest.approx(0.25, abs=0.01) and wide[2] / wide[0] == pytest.approx(0.5, abs=0.01)
    assert wide[3] == 0


def test_a_map_has_its_numbers_in_its_fields():
    root, found = drawn(figures.heat_map([[1.0, 2.0], [3.0, 4.0]], ("r1", "r2"), ("c1", "c2"), "title", "name"))
    words = [one["text"] for one in found["text"]]
    assert {"1.0", "2.0", "3.0", "4.0", "r1", "r2", "c1", "c2", "title", "name"} <= set(words)
    assert place(found["text"], "3.0", "y") == place(found["text"], "r2", "y")
    assert place(found["text"], "2.0", "x") == place(found["text"], "c2", "x")
    colours = [one["fill"] for one in found["rect"][1:]]
    assert len(set(colours)) == 4 and re.match("#0b6a72", colours[3])
    assert float(root.get("width")) > 100


def test_equal_numbers_are_drawn_too():
    figures.lines((1.0,), {"a": (5.0,)}, {"a": (0.0,)}, {}, "t", "u", "y")
    figures.bars(("x",), {"a": (0.0,)}, {"a": (0.0,)}, "t", "u", "y")
    figures.heat_map([[2.0]], ("r",), ("c",), "t", "n")
