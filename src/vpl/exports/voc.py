"""PASCAL VOC 2012's folders. Label 255 stays what it is."""

from __future__ import annotations

import re
from pathlib import Path

from vpl.classes import ClassSet
from vpl.edges import images, vocxml
from vpl.exports.labelled import (
    SPLIT,
    Labelled,
    distinct_palette,
    label_map,
    ready,
    write_photograph,
    write_text,
)


class Writer:
    """VOC2012: JPEGImages, SegmentationClass, Annotations, ImageSets/Segmentation/train.txt, and labelmap.txt.

    The annotations name every tag; a tag with pixels in the mask has a box around them, the others have none. Spaces
    in names become "_", because readers of VOC's lists split lines at them, and so do the ends of sub-folders' names.
    """

    def __init__(self, folder: Path, classes: ClassSet):
        self._folder, self._classes = folder, classes
        self._names: dict[str, None] = {}
        self._palette = distinct_palette(classes)

    def add(self, picture: Labelled) -> None:
        name = re.sub(r"^#|[\s/]", "_", picture.id)
        while name in self._names:
            name += "_"
        write_photograph(picture, self._folder / "JPEGImages" / name, ".jpg")
        mask = ready(self._folder / "SegmentationClass" / f"{name}.png")
        images.write_mask(mask, picture.mask, self._palette)
        text = vocxml.annotation(name, picture.tags, picture.mask, self._classes)
        write_text(self._folder / "Annotations" / f"{name}.xml", text)
        self._names[name] = None

    def close(self) -> None:
        lines = "".join(f"{name}\n" for name in self._names)
        write_text(self._folder / "ImageSets" / "Segmentation" / f"{SPLIT}.txt", lines)
        write_text(self._folder / "labelmap.txt", label_map(self._classes, self._palette))
