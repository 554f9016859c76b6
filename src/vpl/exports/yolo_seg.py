"""Ultralytics' instance segmentation: a polygon for each connected part of a class (outlines.py: a part is no object).

Ultralytics has no word for label 255: those pixels are in no polygon, and so background there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from vpl import __version__
from vpl.classes import IGNORE, ClassSet
from vpl.exports import outlines
from vpl.exports.labelled import SPLIT, SUFFIXES, Labelled, write_photograph, write_text


class Writer:
    """images/train, labels/train (a line "class x y x y ..." a part, fractions of width and height) and data.yaml."""

    def __init__(self, folder: Path, classes: ClassSet):
        self._folder, self._classes = folder, classes

    def add(self, picture: Labelled) -> None:
        write_photograph(picture, self._folder / "images" / SPLIT / picture.id, *SUFFIXES.values())
        height, width = picture.mask.shape
        lines = []
        for label in np.unique(picture.mask).tolist():
            if label not in (0, IGNORE):
                for part, top, left in outlines.parts(picture.mask == label):
                    points = outlines.outline(part, top, left)
                    lines.append(f"{label - 1} " + " ".join(f"{x / width:.7g} {y / height:.7g}" for x, y in points))
        text = "".join(f"{line}\n" for line in lines)
        write_text(self._folder / "labels" / SPLIT / f"{picture.id}.txt", text)

    def close(self) -> None:
        lines = [
            f"# Connected parts of pseudo-masks made by vpl {__version__}: a part is no object.",
            f"train: images/{SPLIT}",
            "# The same images: scores on them compare with pseudo-masks. Put images with true labels here instead.",
            f"val: images/{SPLIT}",
            f"nc: {len(self._classes)}",
            "names:",
            *(f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(self._classes.names)),
        ]
        write_text(self._folder / "data.yaml", "".join(f"{line}\n" for line in lines))
