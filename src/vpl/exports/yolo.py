"""Ultralytics' semantic segmentation. Label 255 stays what it is."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

from vpl import __version__
from vpl.classes import ClassSet
from vpl.exports.labelled import SPLIT, SUFFIXES, Labelled, ready, write_photograph, write_text


class Writer:
    """Ultralytics' semantic segmentation: images/train, masks/train (grey, values are labels) and data.yaml.

    The YAML names no folder of its own, so it works wherever it lies.
    """

    def __init__(self, folder: Path, classes: ClassSet):
        self._folder, self._classes = folder, classes

    def add(self, picture: Labelled) -> None:
        write_photograph(picture, self._folder / "images" / SPLIT / picture.id, *SUFFIXES.values())
        packed = io.BytesIO()
        Image.fromarray(picture.mask).save(packed, "PNG")
        ready(self._folder / "masks" / SPLIT / f"{picture.id}.png").write_bytes(packed.getvalue())

    def close(self) -> None:
        names = ("background", *self._classes.names)
        lines = [
            f"# Pseudo-masks made by vpl {__version__}: pixel values are the numbers below, 255 is ignored.",
            f"train: images/{SPLIT}",
            "# The same images: scores on them compare with pseudo-masks. Put images with true masks here instead.",
            f"val: images/{SPLIT}",
            "masks_dir: masks",
            f"nc: {len(names)}",
            "names:",
            *(f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(names)),
        ]
        write_text(self._folder / "data.yaml", "".join(f"{line}\n" for line in lines))
