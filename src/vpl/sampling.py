"""Which of many are looked at."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread over their list, in its order; the first and the last among them."""
    if not len(items):
        return []
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[place] for place in places.tolist()]


def steadily(items: Sequence[T], most: int, name: Callable[[T], str]) -> list[T]:
    """At most `most` of the items, as if drawn by lot, in the order of their list: where one item comes or goes, at
    most one of the chosen is another.

    Args:
        name: of an item; the lot is a digest of it.
    """
    if len(items) <= most:
        return list(items)

    def lot(place: int) -> tuple[bytes, int]:
        return hashlib.blake2b(name(items[place]).encode(errors="surrogateescape"), digest_size=8).digest(), place

    return [items[place] for place in sorted(heapq.nsmallest(most, range(len(items)), key=lot))]
