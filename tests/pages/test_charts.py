"""vpl.pages.charts: ticks, curves and confusion matrices with known ends."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vpl.pages import charts


@given(low=st.floats(-1e6, 1e6), span=st.floats(0, 1e6))
@settings(max_examples=200, deadline=None)
def test_ticks_enclose_and_are_few(low, span):
    marks = charts.ticks(low, low + span)
    assert 2 <= len(marks) <= 8
    slack = 1e-6 * max(1.0, abs(low), span)
    assert marks[0] <= low + slack and marks[-1] >= low + span - slack
    steps = np.diff(marks)
    assert (steps > 0).all() and np.allclose(steps, steps[0], rtol=1e-3)


def test_ticks_are_round():
    assert charts.ticks(0.0, 3.4) == [0, 1, 2, 3, 4]
    assert charts.ticks(0.0, 0.0099) == [0, 0.002, 0.004, 0.006, 0.008, 0.01]


def test_a_long_curve_becomes_a_band():
    steps = tuple(map(float, range(1, 10001)))
    made = charts.chart(charts.Curve("loss", steps, tuple(1.0 + (n % 2) for n in range(10000))))
    assert made.line.count("L") == charts.CURVE_BINS - 1
    assert made.band and made.summary == "1 at step 1, 2 at step 10,000."


def test_the_lowest_point_is_told_where_it_is_no_end():
    made = charts.chart(charts.Curve("loss", (0.0, 10.0, 20.0), (3.0, 0.5, 1.0)))
    assert made.summary == "3 at step 0, 1 at step 20; lowest 0.5 at step 10."


def test_one_step_is_a_curve_too():
    made = charts.chart(charts.Curve("loss", (5.0,), (2.0,)))
    assert made.line.startswith("M") and not made.band and "nan" not in made.line


def test_confusions_are_shares_of_the_truth():
    counts = [[90, 10, 0, 0, 0], [20, 60, 0, 10, 10], [0, 0, 0, 0, 0], [0, 30, 0, 70, 0]]
    table = charts.matrix(("background", "cat", "cow", "dog"), counts)
    assert table.names == ("background", "cat", "dog")  # the class that never occurs has no line
    assert table.columns == ("background", "cat", "dog", "no label")
    assert table.shares[1] == (0.2, 0.6, 0.1, 0.1)
    assert table.largest[:2] == (("dog", "cat", 0.3), ("cat", "background", 0.2))


def test_a_wide_matrix_keeps_the_most_confused():
    names = tuple(f"c{n}" for n in range(40))
    counts = np.diag(np.full(41, 1000))
    for right in (3, 7, 9, 40):
        counts[right, right] = 10  # few pixels in all, but the wrong ones count
    counts[7, 9] = counts[3, 40] = 500
    table = charts.matrix(("background", *names), counts.tolist())
    assert len(table.names) == charts.MOST_CONFUSED and table.left_out == 41 - charts.MOST_CONFUSED
    assert {"c2", "c6", "c8", "c39"} <= set(table.names)
