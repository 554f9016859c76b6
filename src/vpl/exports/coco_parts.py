"""MS COCO's instances JSON with one annotation for each connected part of a class, as a polygon.

A part is no object (outlines.py): use it where a tool wants polygons. Holes are joined to the outline by a line there
and back, which readers fill right. Label 255 is as in coco.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool

from vpl.exports import coco, outlines


class Writer(coco.Writer):
    """As coco.py, a polygon each part."""

    def _shapes(self, where: Bool[np.ndarray, "H W"]) -> Iterator[dict[str, Any]]:
        for part, top, left in outlines.parts(where):
            points = [float(value) for point in outlines.outline(part, top, left) for value in point]
            height, width = part.shape
            yield {"segmentation": [points], "area": int(part.sum()), "bbox": [left, top, width, height]}
