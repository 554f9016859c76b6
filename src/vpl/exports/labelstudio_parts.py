"""Label Studio's tasks with a polygon for each connected part of a class (outlines.py: a part is no object)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool

from vpl.exports import labelstudio, outlines


def shapes(where: Bool[np.ndarray, "H W"]) -> Iterator[dict[str, Any]]:
    """What a class's pixels become: a polygon for each part; points are percents of width and height."""
    height, width = where.shape
    for part, top, left in outlines.parts(where):
        points = outlines.outline(part, top, left)
        yield {"points": [[100 * x / width, 100 * y / height] for x, y in points], "closed": True}


class Writer(labelstudio.Writer):
    """As labelstudio.py, with polygons."""

    kind = "polygonlabels"
    element = "PolygonLabels"
    shapes_of = staticmethod(shapes)
