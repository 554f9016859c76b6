"""An even choice: the ends, the order, never more than there are."""

from __future__ import annotations

import pytest

from vpl.sampling import evenly


@pytest.mark.parametrize(
    "count, most, wanted",
    [
        (0, 3, []),
        (1, 3, [0]),
        (5, 1, [0]),
        (5, 2, [0, 4]),
        (5, 3, [0, 2, 4]),
        (7, 7, list(range(7))),
        (3, 9, [0, 1, 2]),
    ],
)
def test_evenly(count, most, wanted):
    assert evenly(range(count), most) == wanted
