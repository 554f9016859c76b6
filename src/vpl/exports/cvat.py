"""A CVAT task's "Segmentation mask 1.1". Label 255 becomes a label "ignored".

Each class of an image is one object: connected parts are no objects, and would be too many for CVAT's 255.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vpl.classes import ClassSet, voc_palette
from vpl.errors import DataError
from vpl.exports.labelled import Labelled, distinct_palette, label_map, named_colors, write_text

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can say, so that the same masks are always the same bytes."""


class Writer:
    """annotations.zip, which a CVAT task with these photographs imports as "Segmentation mask 1.1", and labels.json.

    Masks are RGB, as CVAT writes them. The task needs the labels of labels.json (paste it under "Raw"). Names are the
    paths of the photographs below the folder of images, without suffixes, as CVAT looks for its frames.
    """

    def __init__(self, folder: Path, classes: ClassSet):
        self._folder, self._classes = folder, classes
        self._names: dict[str, None] = {}
        self._palette = distinct_palette(classes)
        self._map = label_map(classes, self._palette)
        self._file = (folder / "annotations.zip").open("w+b")
        self._zip = zipfile.ZipFile(self._file, "w")

    def add(self, picture: Labelled) -> None:
        name = picture.place.as_posix()
        if name.strip() != name or name.startswith("#"):
            raise DataError(f"the name {name!r} begins or ends with a space or begins with #; rename the photograph.")
        objects = np.zeros_like(picture.mask)
        for number, label in enumerate(np.unique(picture.mask[picture.mask > 0]), 1):
            objects[picture.mask == label] = number
        for kind, values, palette in (
            ("SegmentationClass", picture.mask, self._palette),
            ("SegmentationObject", objects, voc_palette()),
        ):
            packed = io.BytesIO()
            Image.fromarray(np.asarray(palette, np.uint8)[values]).save(packed, "PNG")
            self._put(f"{kind}/{name}.png", packed.getvalue())
        self._names[name] = None

    def close(self) -> None:
        self._put("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in self._names).encode())
        self._put("labelmap.txt", self._map.encode())
        with self._given_up():
            self._zip.close()
            self._file.close()
        labels = [
            {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color), "attributes": []}
            for name, color in named_colors(self._classes, self._palette)
        ]
        write_text(self._folder / "labels.json", json.dumps(labels, indent=1, ensure_ascii=False) + "\n")

    def _put(self, name: str, data: bytes) -> None:
        entry = zipfile.ZipInfo(name, _ZIP_TIME)
        entry.external_attr = 0o644 << 16
        entry.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
        with self._given_up():
            self._zip.writestr(entry, data)

    @contextlib.contextmanager
    def _given_up(self) -> Iterator[None]:
        """A full disk ends the archive here: its own end would meet it once more, in a traceback."""
        try:
            yield
        except OSError:
            self._zip.fp = None
            with contextlib.suppress(OSError):
                self._file.close()
            raise
