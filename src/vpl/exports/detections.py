"""A label map as `supervision.Detections`: one for each class, or one for each connected part of a class."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vpl.classes import IGNORE, ClassSet
from vpl.edges.vocxml import box
from vpl.errors import ModelError
from vpl.exports import outlines


def detections(
    labels: UInt8[np.ndarray, "H W"],
    classes: ClassSet,
    probabilities: Float[np.ndarray, "P H W"] | None = None,
    parts: bool = False,
) -> Any:
    """supervision's Detections: boxes (x, y, x, y), masks, class ids (label values) and names; label 255 is in none.

    Args:
        labels: label values.
        classes: what they mean.
        probabilities: of background and each class; confidence is the mean over a mask's pixels. None: there is none.
        parts: one for each 4-connected part; a part is no object.

    Raises:
        ModelError: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ModelError('supervision is not installed; pip install "vpl-seg[supervision]".') from error
    found: list[tuple[int, Bool[np.ndarray, "H W"]]] = []
    for label in np.unique(labels).tolist():
        if label in (0, IGNORE):
            continue
        if not parts:
            found.append((label, labels == label))
            continue
        for part, top, left in outlines.parts(labels == label):
            where = np.zeros(labels.shape, bool)
            where[top : top + part.shape[0], left : left + part.shape[1]] = part
            found.append((label, where))
    if not found:
        return supervision.Detections.empty()
    boxes = [box(where) for _, where in found]
    return supervision.Detections(
        xyxy=np.array([[left, top, right, bottom] for top, left, bottom, right in boxes], np.float32),
        mask=np.stack([where for _, where in found]),
        class_id=np.array([label for label, _ in found]),
        confidence=(
            None
            if probabilities is None
            else np.array([probabilities[label][where].mean() for label, where in found], np.float32)
        ),
        data={"class_name": np.array([classes.names[label - 1] for label, _ in found])},
    )
