"""MS COCO's instances JSON.

A pseudo-mask says which class a pixel has, not which object: so each class of an image is one annotation, as COCO-Stuff
has it. COCO has no word for label 255: those pixels are in no annotation, and in the image's own key `ignored`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from vpl import __version__
from vpl.classes import IGNORE, ClassSet
from vpl.edges.vocxml import box
from vpl.exports.labelled import SPLIT, SUFFIXES, Labelled, write_photograph, write_text


class Writer:
    """images/ and annotations/instances_train.json: one annotation with compressed RLE for each class of an image.

    A category's id is the class's label value. An image with ignored pixels has them as RLE in its key `ignored`,
    which readers pass over.
    """

    def __init__(self, folder: Path, classes: ClassSet):
        self._folder, self._classes = folder, classes
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, picture: Labelled) -> None:
        path = write_photograph(picture, self._folder / "images" / picture.id, *SUFFIXES.values())
        number = len(self._images) + 1
        height, width = picture.mask.shape
        entry: dict[str, Any] = {
            "id": number,
            "file_name": path.relative_to(self._folder / "images").as_posix(),
            "width": width,
            "height": height,
        }
        for label in np.unique(picture.mask).tolist():
            where = picture.mask == label
            if label == IGNORE:
                entry["ignored"] = rle(where)
            elif label:
                for shape in self._shapes(where):
                    ids = {"id": len(self._annotations) + 1, "image_id": number, "category_id": label}
                    self._annotations.append(ids | shape | {"iscrowd": 0})
        self._images.append(entry)

    def _shapes(self, where: Bool[np.ndarray, "H W"]) -> Iterator[dict[str, Any]]:
        """What a class's pixels become."""
        top, left, bottom, right = box(where)
        bounds = [left, top, right - left, bottom - top]
        yield {"segmentation": rle(where), "area": int(where.sum()), "bbox": bounds}

    def close(self) -> None:
        categories = [
            {"id": number, "name": name, "supercategory": "object"}
            for number, name in enumerate(self._classes.names, 1)
        ]
        tree = {
            "info": {"description": f"pseudo-masks made by vpl {__version__}"},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories,
        }
        text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
        write_text(self._folder / "annotations" / f"instances_{SPLIT}.json", text + "\n")


def rle(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """COCO's run-length encoding of a mask, compressed: {"size": [H, W], "counts": text}.

    Runs go down the columns, first one of zeros. From the fourth on a run is told by its difference to the last run
    but one; numbers are written in groups of five bits, lowest first, each as one character from "0" on, in which
    the sixth bit says that more groups follow. (The COCO API's format, encoder ours.)
    """
    flat = np.ravel(mask, order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    if flat[0]:
        runs.insert(0, 0)
    letters = bytearray()
    for number, run in enumerate(runs):
        left = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            group = left & 31
            left >>= 5
            more = left != (-1 if group & 16 else 0)
            letters.append(48 + (group | 32 if more else group))
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": letters.decode("ascii")}
