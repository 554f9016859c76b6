"""A choice of some: in their order, never more than there are; even, or hardly moved by one item more."""

from __future__ import annotations

import pytest

from vpl.sampling import evenly, steadily


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


def test_steadily():
    names = [f"photograph {number}" for number in range(200)]
    assert steadily(names, 200, str) == names and steadily([], 3, str) == []
    chosen = steadily(names, 20, str)
    assert len(chosen) == 20 and chosen == [one for one in names if one in chosen]
    halves = [sum(one in names[:100] for one in chosen), sum(one in names[100:] for one in chosen)]
    assert min(halves) >= 5, "spread over the list"
    assert set(steadily(names[::-1], 20, str)) == set(chosen), "the order of the list does not count"
    for place in (0, 57, 200):
        more = steadily([*names[:place], "one more", *names[place:]], 20, str)
        assert len(set(more) - set(chosen)) <= 1
        assert len(set(steadily(names, 21, str)) - set(chosen)) == 1
