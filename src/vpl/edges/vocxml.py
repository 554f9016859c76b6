"""The annotation that PASCAL VOC puts beside a photograph: its size, its tags, and a box around each tag's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Bool, UInt8

from vpl.classes import ClassSet


def annotation(name: str, tags: Sequence[str], mask: UInt8[np.ndarray, "H W"], classes: ClassSet) -> str:
    """VOC's XML; boxes are 1-based and inclusive, and a tag without pixels has none.

    Args:
        name: the photograph's, without its suffix.
        tags: class names.
        mask: (H, W) uint8 label values of `classes`.
    """
    height, width = mask.shape
    lines = [
        "<annotation>",
        f"  <filename>{escape(name)}.jpg</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "  <segmented>1</segmented>",
    ]
    for tag in tags:
        where, corners = mask == classes.index(tag) + 1, ""
        if where.any():
            top, left, bottom, right = box(where)
            sides = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
            corners = f"<bndbox>{''.join(f'<{side}>{one}</{side}>' for side, one in sides.items())}</bndbox>"
        lines.append(f"  <object><name>{escape(tag)}</name><difficult>0</difficult>{corners}</object>")
    return "\n".join([*lines, "</annotation>"]) + "\n"


def box(where: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """Top, left, and one behind bottom and right, of pixels of which one at least is set."""
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
