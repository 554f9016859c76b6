"""Label maps of many images in little memory: deflated until one is asked for. They may be photographs' own sizes.

Letters: H W pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8

Deflated = tuple[tuple[int, ...], bytes]
"""Shape, and what zlib makes of the labels."""


def packed(label_map: UInt8[np.ndarray, "H W"]) -> Deflated:
    """One label map, deflated as quickly as zlib does."""
    return label_map.shape, zlib.compress(label_map.tobytes(), 1)


class Packed(Sequence[np.ndarray]):
    """Label maps (H, W) uint8; each is inflated when it is asked for, an array of its own."""

    def __init__(self, maps: Iterable[Deflated]):
        self._maps = tuple(maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return Packed(self._maps[place])
        shape, data = self._maps[place]
        return np.frombuffer(bytearray(zlib.decompress(data)), np.uint8).reshape(shape)
