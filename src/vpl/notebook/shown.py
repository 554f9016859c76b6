"""Results that show themselves: label maps over their photographs, as a notebook displays them and as arrays.

Labels: 0 background, c + 1 class c, 255 ignored. Letters: K tags · S = K + 1 · P classes and background ·
H W pixels of the photograph · height width as the CRF sees it · h w patch grid.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vpl.classes import IGNORE, ClassSet
from vpl.edges import images, sheet
from vpl.edges.images import Picture
from vpl.exports.detections import detections

STAGES = {
    "text": "text seeds",
    "vision": "vision seeds",
    "refined": "refined",
    "crf": "refined + CRF",
    "labels": "pseudo-mask",
}
"""Label map of a segmentation -> its name in pictures, in the order of the work."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A photograph's labels.

    Attributes:
        name: of the photograph.
        source: the photograph, as it was given; it is read again where a picture is asked for.
        labels: at the photograph's own size.
        classes: what the labels mean.
    """

    name: str
    source: Picture = field(repr=False)
    labels: UInt8[np.ndarray, "H W"]
    classes: ClassSet = field(repr=False)

    @cached_property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph, RGB in [0, 255]."""
        return images.read_image(self.source)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels, 0 to 1, of each label that occurs."""
        names = dict(enumerate(("background", *self.classes.names))) | {IGNORE: "ignored"}
        values, counts = np.unique(self.labels, return_counts=True)
        return {names[int(one)]: float(count / self.labels.size) for one, count in zip(values, counts, strict=True)}

    def overlay(self) -> Image.Image:
        """The labels in their classes' colours over the photograph."""
        return Image.fromarray(sheet.overlay(self.image, self.labels, self.classes.palette()))

    def to_supervision(self, parts: bool = False) -> Any:
        """`supervision.Detections`, one for each class, or for each connected part of it (a part is no object).

        Confidences are there where probabilities were asked for.

        Raises:
            ModelError: supervision is not installed.
        """
        return detections(self.labels, self.classes, getattr(self, "probabilities", None), parts)

    def save(self, path: str | Path) -> None:
        """The labels as a palette PNG, with the bytes that a run writes.

        Raises:
            RunError: the file can't be written.
        """
        images.write_mask(path, self.labels, self.classes.palette())

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.shares.items())
        return f"<{type(self).__name__} of {self.name}, {' x '.join(map(str, self.labels.shape))}: {told}>"

    def _repr_png_(self) -> bytes:
        return _png(self.overlay())


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(LabelMap):
    """What a trained network says of a photograph.

    Attributes:
        probabilities: of background and each class, where they were asked for.
    """

    probabilities: Float[np.ndarray, "P H W"] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(LabelMap):
    """What tags say of a photograph; `labels` is its pseudo-mask.

    Attributes:
        tags: class names.
        scores: of background and each tag, 0 to 1, before the CRF, at the size that the CRF sees (`clip.max_side`).
        seeds: stage (text, vision, refined) -> a map in [0, 1] for each tag on the patch grid.
        maps: stage (those, crf, labels) -> label map at the photograph's own size.
    """

    tags: tuple[str, ...] = ()
    scores: Float[np.ndarray, "S height width"] | None = None
    seeds: dict[str, Float[np.ndarray, "_ h w"]] = field(default_factory=dict)
    maps: dict[str, UInt8[np.ndarray, "H W"]] = field(default_factory=dict)

    def plot(self, side: int = 200) -> Image.Image:
        """The photograph and the label map of every stage beside each other, each within `side` pixels."""
        return contact_sheet([self], side)


def contact_sheet(made: Sequence[Segmentation], side: int = 200) -> Image.Image:
    """A row for each photograph: itself, and the label map of every stage."""
    stages = [stage for stage in STAGES if stage in made[0].maps]
    rows = [
        [one.image, *(sheet.overlay(one.image, one.maps[stage], one.classes.palette()) for stage in stages)]
        for one in made
    ]
    captions = [f"{one.name}: {', '.join(one.tags)}" for one in made]
    return Image.fromarray(sheet.contact_sheet(["image", *(STAGES[one] for one in stages)], rows, captions, side))


def _png(picture: Image.Image) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, "PNG")
    return packed.getvalue()
