"""Connected parts of a class, and their outlines along the edges of pixels, exact to the pixel.

A part is 4-connected. It is no object: two dogs that touch are one part, a dog behind a post is two. Letters: H W
pixels. Points are (x, y) corners of pixels, 0 to W and 0 to H; filled by the even-odd rule an outline gives the part.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

Ring = list[tuple[int, int]]


def parts(where: Bool[np.ndarray, "H W"]) -> Iterator[tuple[Bool[np.ndarray, "h w"], int, int]]:
    """(pixels, top, left) of each connected part in the box around it, in the order of their first rows."""
    numbered, _ = ndimage.label(where)
    for number, window in enumerate(ndimage.find_objects(numbered), 1):
        yield numbered[window] == number, window[0].start, window[1].start


def outline(part: Bool[np.ndarray, "h w"], top: int = 0, left: int = 0) -> Ring:
    """One closed ring around a part; each of its holes is joined to it by a line there and back.

    Args:
        part: 4-connected pixels.
        top, left: added to y and x.
    """
    rings = sorted(_rings(part), key=_area, reverse=True)
    ring = rings[0]
    for hole in rings[1:]:
        x, y = hole[0]
        near = min(range(len(ring)), key=lambda at: (ring[at][0] - x) ** 2 + (ring[at][1] - y) ** 2)
        ring = [*ring[: near + 1], *hole, hole[0], *ring[near:]]
    return [(x + left, y + top) for x, y in ring]


def _rings(part: Bool[np.ndarray, "h w"]) -> Iterator[Ring]:
    """Rings with the part on their right: clockwise around it, the other way around its holes; corners alone."""
    padded = np.pad(part, 1)
    after: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for ahead, dx, dy, from_x, from_y in (
        (padded[1:, 1:-1] & ~padded[:-1, 1:-1], 1, 0, 0, 0),  # along the top of a pixel, to the right
        (padded[:-1, 1:-1] & ~padded[1:, 1:-1], -1, 0, 1, 0),  # along its bottom, to the left
        (padded[1:-1, 1:] & ~padded[1:-1, :-1], 0, -1, 0, 1),  # up its left side
        (padded[1:-1, :-1] & ~padded[1:-1, 1:], 0, 1, 0, 0),  # down its right side
    ):
        for y, x in np.argwhere(ahead).tolist():
            after.setdefault((x + from_x, y + from_y), []).append((dx, dy))
    while after:
        start = place = next(iter(after))
        way, ring = (0, 0), []
        while True:
            ways = after[place]
            right = (-way[1], way[0])  # where two parts of the ring touch it turns towards the part
            ahead_way = right if right in ways else ways[0]
            ways.remove(ahead_way)
            if not ways:
                del after[place]
            if ahead_way != way:
                ring.append(place)
            way = ahead_way
            place = place[0] + way[0], place[1] + way[1]
            if place == start and (place not in after or _is_closed(after[place], way)):
                break
        if len(ring) > 4 and _straight(ring[-1], ring[0], ring[1]):
            ring.pop(0)
        yield ring


def _is_closed(ways: list[tuple[int, int]], way: tuple[int, int]) -> bool:
    """Whether no way on turns right from here: then the ring is closed."""
    return (-way[1], way[0]) not in ways


def _straight(before: tuple[int, int], here: tuple[int, int], after: tuple[int, int]) -> bool:
    return before[0] == here[0] == after[0] or before[1] == here[1] == after[1]


def _area(ring: Ring) -> int:
    """Twice the area, positive clockwise (y points down)."""
    return sum(x * v - u * y for (x, y), (u, v) in zip(ring, [*ring[1:], ring[0]], strict=True))
