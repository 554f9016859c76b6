"""Label Studio's tasks: masks as predictions that people correct. One brush mask for each class of an image.

tasks.json is imported, labels.xml is the labelling interface to paste under "Code", images/ is served as local files
(LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is the export's folder). Label 255 is a label "ignored".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Bool, UInt8

from vpl import __version__
from vpl.classes import ClassSet
from vpl.exports.labelled import SUFFIXES, Labelled, distinct_palette, named_colors, write_photograph, write_text

_RUN_BITS = 16
_CHANNELS = 4
TAG, IMAGE = "tag", "image"
"""Names of the labels and of the photograph in the labelling interface."""


def shapes(where: Bool[np.ndarray, "H W"]) -> Iterator[dict[str, Any]]:
    """What a class's pixels become: one brush mask."""
    yield {"format": "rle", "rle": brush(where)}


class Writer:
    """tasks.json, labels.xml, images/."""

    kind = "brushlabels"
    element = "BrushLabels"
    shapes_of = staticmethod(shapes)

    def __init__(self, folder: Path, classes: ClassSet):
        self._folder, self._classes = folder, classes
        self._tasks: list[dict[str, Any]] = []
        self._named = named_colors(classes, distinct_palette(classes))

    def add(self, picture: Labelled) -> None:
        path = write_photograph(picture, self._folder / "images" / picture.id, *SUFFIXES.values())
        place = path.relative_to(self._folder).as_posix()
        height, width = picture.mask.shape
        names = dict(enumerate(name for name, _ in self._named[:-1])) | {255: self._named[-1][0]}
        result = [
            {
                "id": f"{len(self._tasks)}-{label}-{number}",
                "type": self.kind,
                "from_name": TAG,
                "to_name": IMAGE,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": value | {self.kind: [names[label]]},
            }
            for label in np.unique(picture.mask).tolist()
            if label
            for number, value in enumerate(type(self).shapes_of(picture.mask == label))
        ]
        self._tasks.append({
            "data": {IMAGE: f"/data/local-files/?d={quote(place)}", "tags": list(picture.tags)},
            "predictions": [{"model_version": f"vpl {__version__}", "result": result}],
        })  # fmt: skip

    def close(self) -> None:
        text = json.dumps(self._tasks, ensure_ascii=False, separators=(",", ":"))
        write_text(self._folder / "tasks.json", text + "\n")
        labels = "".join(
            f'    <Label value={quoteattr(name)} background="#{red:02x}{green:02x}{blue:02x}"/>\n'
            for name, (red, green, blue) in self._named[1:]
        )
        write_text(
            self._folder / "labels.xml",
            f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}" zoom="true"/>\n'
            f'  <{self.element} name="{TAG}" toName="{IMAGE}">\n{labels}  </{self.element}>\n</View>\n',
        )


def brush(where: Bool[np.ndarray, "H W"]) -> list[int]:
    """A mask in Label Studio's run-length encoding (thi.ng's rle-pack) of RGBA bytes that are all 255 or all 0.

    Bits, highest first: 32 the count of bytes, 5 their width - 1, four times 4 the widths of counts - 1; then for each
    run 1 bit "repeated", 2 which width of count, the count - 1, the byte.
    """
    flat = where.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])) * _CHANNELS
    value, most = bool(flat[0]), 2**_RUN_BITS
    bits = [f"{flat.size * _CHANNELS:032b}", f"{8 - 1:05b}", *(f"{width - 1:04b}" for width in (3, 4, 8, _RUN_BITS))]
    for run in runs.tolist():
        for start in range(0, run, most):
            bits.append(f"111{min(most, run - start) - 1:016b}{255 * value:08b}")
        value = not value
    text = "".join(bits)
    whole: UInt8[np.ndarray, " N"] = np.frombuffer(text.encode(), np.uint8) - np.uint8(ord("0"))
    return np.packbits(whole).tolist()
