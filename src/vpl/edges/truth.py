"""Truth masks: whatever numbers a user's masks hold -> label values. Evaluation alone reads them.

labels  0 background, c + 1 class c, 255 ignored: as they are
ids     the category ids of the COCO list, such as COCO's 1 to 90 for 80 classes; other numbers are ignored
binary  anything but 0 is the photograph's one tag, 255 too
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vpl.classes import IGNORE, ClassSet
from vpl.edges import images
from vpl.errors import DataError

COCO_IDS = tuple(number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""COCO's ids of its 80 things, in order; masks of its 91 numbers hold them."""


def read_truth(mask: Path, values: bytes | None = None) -> UInt8[np.ndarray, "H W"]:
    """A truth mask as label values.

    Args:
        mask: its file.
        values: label value by the number in the file, 256 of them (`Sample.values`); None: they are label values.

    Raises:
        DataError: as `images.read_mask`.
    """
    found = images.read_mask(mask)
    return found if values is None else np.frombuffer(values, np.uint8)[found]


def meaning(kind: str, tags: Sequence[str], classes: ClassSet, ids: Mapping[str, int]) -> bytes | None:
    """Label value by number in a mask of `data.mask_values` = `kind`; None: they are label values.

    Args:
        tags: the photograph's; one, where masks are binary.
        ids: category id by class name; empty: COCO's own, for as many classes as COCO has.

    Raises:
        DataError: the photograph has several tags and its mask is binary, or there are no ids.
    """
    if kind == "labels":
        return None
    table = bytearray([0] + [IGNORE] * 255)
    if kind == "binary":
        if len(tags) != 1:
            raise DataError(f"a binary mask can't tell {' from '.join(tags)}; expected one tag.")
        table[1:] = bytes([classes.index(tags[0]) + 1] * 255)
        return bytes(table)
    if not ids and len(classes) != len(COCO_IDS):
        raise DataError("data.mask_values is ids, and the list has none; expected COCO's instances JSON, or labels.")
    for number, (name, own) in enumerate(zip(classes.names, COCO_IDS if not ids else classes.names, strict=False), 1):
        place = own if isinstance(own, int) else ids.get(name)
        if place is not None:
            table[place] = number
    return bytes(table)
