"""A run's pseudo-masks in the layouts of other tools: PASCAL VOC, MS COCO, CVAT, Ultralytics' semantic segmentation.

Label values: 0 background, c + 1 class c, 255 ignore. What becomes of 255: VOC and Ultralytics keep it, CVAT gets a
label "ignored", COCO has no word for it: those pixels are in no annotation, and in the image's own key `ignored`.

A pseudo-mask says which class a pixel has, not which object. So COCO and CVAT get one annotation for each class of an
image, as COCO-Stuff has it: connected parts are no objects, and would be too many for CVAT's 255.

Photographs are copied, never linked: who edits an export must not change the original. One that lies in another format
than the layout wants, or that its EXIF turns, or that is no plain RGB or grey, is written anew as vpl saw it.

Letters: H W pixels. Each writer is given images one by one, and writes its lists when it is closed.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from vpl import __version__
from vpl.classes import IGNORE, ClassSet, voc_palette
from vpl.edges import images
from vpl.errors import DataError

SPLIT = "train"
"""Name of the one list in each layout: pseudo-masks are made to train on."""
IGNORED = "ignored"
"""Name of label 255 where a layout names it; VOC tools call it so."""
JPEG_QUALITY = 95
_ORIENTATION = 0x0112
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can say, so that the same masks are always the same bytes."""


@dataclass(frozen=True)
class Picture:
    """One photograph and its pseudo-mask.

    Attributes:
        id: unique in the run.
        place: the photograph's path below the folder of images, without its suffix; outside of it, its name.
        source: its file.
        tags: class names.
        image: (H, W, 3) RGB uint8, upright.
        mask: (H, W) uint8 label values.
    """

    id: str
    place: PurePosixPath
    source: Path
    tags: tuple[str, ...]
    image: UInt8[np.ndarray, "H W 3"]
    mask: UInt8[np.ndarray, "H W"]


class Writer(Protocol):
    """Writes one layout into an empty folder."""

    def add(self, picture: Picture) -> None:
        """Write one image.

        Raises:
            DataError: this layout can't hold it; nothing of it was written.
        """

    def close(self) -> None:
        """Write the lists."""


def read_picture(id: str, source: Path, folder: Path, tags: tuple[str, ...], mask: Path, classes: ClassSet) -> Picture:
    """A photograph below `folder` with its pseudo-mask, both decoded and checked.

    Raises:
        DataError: one of the two is missing or damaged, their sizes differ, or the mask holds other labels.
    """
    if not mask.exists():
        raise DataError(f"there is no pseudo-mask {mask}; run vpl labels again to make it.")
    labels, image = images.read_mask(mask), images.read_image(source)
    if labels.shape != image.shape[:2]:
        raise DataError(
            f"the image {source} has shape {image.shape[:2]} and its pseudo-mask {labels.shape}; the image was "
            "changed after the run. Make the mask again."
        )
    strangers = np.setdiff1d(labels, [*range(len(classes) + 1), IGNORE])
    if len(strangers):
        raise DataError(f"the pseudo-mask {mask} holds the label {strangers[0]}; expected 0 to {len(classes)} or 255.")
    inside = source.relative_to(folder) if source.is_relative_to(folder) else Path(source.name)
    place = PurePosixPath(inside.with_suffix("").as_posix())
    return Picture(id, place, source, tags, image, labels)


class Voc:
    """VOC2012: JPEGImages, SegmentationClass, Annotations, ImageSets/Segmentation/train.txt, and labelmap.txt.

    The annotations name every tag; a tag with pixels in the mask has a box around them, the others have none. Spaces
    in names become "_", because readers of VOC's lists split lines at them.
    """

    def __init__(self, folder: Path, classes: ClassSet):
        self._folder, self._classes, self._names = folder, classes, {}
        self._palette = distinct_palette(classes)

    def add(self, picture: Picture) -> None:
        name = re.sub(r"^#|\s", "_", picture.id)
        while name in self._names:
            name += "_"
        _write_image(picture, self._folder / "JPEGImages" / name, ".jpg")
        mask = _ready(self._folder / "SegmentationClass" / f"{name}.png")
        images.write_mask(mask, picture.mask, self._palette)
        _write_text(self._folder / "Annotations" / f"{name}.xml", _annotation(name, picture, self._classes))
        self._names[name] = None

    def close(self) -> None:
        lines = "".join(f"{name}\n" for name in self._names)
        _write_text(self._folder / "ImageSets" / "Segmentation" / f"{SPLIT}.txt", lines)
        _write_text(self._folder / "labelmap.txt", label_map(self._classes, self._palette))


class Coco:
    """images/ and annotations/instances_train.json: one annotation with compressed RLE for each class of an image.

    A category's id is the class's label value. An image with ignored pixels has them as RLE in its key `ignored`,
    which readers pass over.
    """

    def __init__(self, folder: Path, classes: ClassSet):
        self._folder, self._classes = folder, classes
        self._images: list[dict] = []
        self._annotations: list[dict] = []

    def add(self, picture: Picture) -> None:
        path = _write_image(picture, self._folder / "images" / picture.id, *_SUFFIXES.values())
        number = len(self._images) + 1
        height, width = picture.mask.shape
        entry = {
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
                top, left, bottom, right = _box(where)
                self._annotations.append({
                    "id": len(self._annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "segmentation": rle(where),
                    "area": int(where.sum()),
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                })  # fmt: skip
        self._images.append(entry)

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
        _write_text(self._folder / "annotations" / f"instances_{SPLIT}.json", text + "\n")


class Cvat:
    """annotations.zip, which a CVAT task with these photographs imports as "Segmentation mask 1.1", and labels.json.

    Masks are RGB, as CVAT writes them. The task needs the labels of labels.json (paste it under "Raw"). Names are the
    paths of the photographs below the folder of images, without suffixes, as CVAT looks for its frames.
    """

    def __init__(self, folder: Path, classes: ClassSet):
        self._folder, self._classes = folder, classes
        self._names: dict[str, None] = {}
        self._palette = distinct_palette(classes)
        self._map = label_map(classes, self._palette)
        self._zip = zipfile.ZipFile(folder / "annotations.zip", "w")

    def add(self, picture: Picture) -> None:
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
        self._zip.close()
        labels = [
            {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color), "attributes": []}
            for name, color in _named_colors(self._classes, self._palette)
        ]
        _write_text(self._folder / "labels.json", json.dumps(labels, indent=1, ensure_ascii=False) + "\n")

    def _put(self, name: str, data: bytes) -> None:
        entry = zipfile.ZipInfo(name, _ZIP_TIME)
        entry.external_attr = 0o644 << 16
        entry.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
        self._zip.writestr(entry, data)


class Yolo:
    """Ultralytics' semantic segmentation: images/train, masks/train (grey, values are labels) and data.yaml.

    The YAML names no folder of its own, so it works wherever it lies.
    """

    def __init__(self, folder: Path, classes: ClassSet):
        self._folder, self._classes = folder, classes

    def add(self, picture: Picture) -> None:
        _write_image(picture, self._folder / "images" / SPLIT / picture.id, *_SUFFIXES.values())
        packed = io.BytesIO()
        Image.fromarray(picture.mask).save(packed, "PNG")
        _ready(self._folder / "masks" / SPLIT / f"{picture.id}.png").write_bytes(packed.getvalue())

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
        _write_text(self._folder / "data.yaml", "".join(f"{line}\n" for line in lines))


WRITERS: dict[str, Callable[[Path, ClassSet], Writer]] = {"voc": Voc, "coco": Coco, "cvat": Cvat, "yolo": Yolo}
"""Name of a layout -> what writes it."""


def rle(mask: Bool[np.ndarray, "H W"]) -> dict:
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


def distinct_palette(classes: ClassSet) -> list[tuple[int, int, int]]:
    """The classes' palette, or VOC's where two of its labels have one colour: some tools know labels by colour."""
    palette = classes.palette()
    used = [tuple(palette[label]) for label in (*range(len(classes) + 1), IGNORE)]
    return palette if len(set(used)) == len(used) else voc_palette()


def label_map(classes: ClassSet, palette: Sequence[tuple[int, int, int]]) -> str:
    """labelmap.txt of VOC tools: a line "name:r,g,b::" for background, each class and the ignored pixels.

    Raises:
        DataError: a name holds ":" or a line end, or is "ignored".
    """
    for name in classes.names:
        if re.search(r"[:\r\n]", name) or name.startswith("#") or name == IGNORED:
            raise DataError(f"the class name {name!r} can't stand in labelmap.txt (':', '#', 'ignored'); rename it.")
    rows = [f"{name}:{','.join(map(str, color))}::\n" for name, color in _named_colors(classes, palette)]
    return "".join(["# label:color_rgb:parts:actions\n", *rows])


def _named_colors(classes: ClassSet, palette) -> list[tuple[str, tuple[int, int, int]]]:
    labels = (*range(len(classes) + 1), IGNORE)
    return list(zip(("background", *classes.names, IGNORED), (palette[label] for label in labels), strict=True))


def _annotation(name: str, picture: Picture, classes: ClassSet) -> str:
    """VOC's XML; boxes are 1-based and inclusive."""
    height, width = picture.mask.shape
    lines = [
        "<annotation>",
        f"  <filename>{escape(name)}.jpg</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "  <segmented>1</segmented>",
    ]
    for tag in picture.tags:
        where, box = picture.mask == classes.index(tag) + 1, ""
        if where.any():
            top, left, bottom, right = _box(where)
            box = (
                f"<bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
                "</bndbox>"
            )
        lines.append(f"  <object><name>{escape(tag)}</name><difficult>0</difficult>{box}</object>")
    return "\n".join([*lines, "</annotation>"]) + "\n"


def _box(where: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """Top, left, and one behind bottom and right."""
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _write_image(picture: Picture, stem: Path, *wanted: str) -> Path:
    """Copy the photograph where its format and pixels fit, else write it as JPEG or PNG; returns the file."""
    own = _plain_suffix(picture.source)
    suffix = own if own in wanted else ".png" if ".png" in wanted else ".jpg"
    path = _ready(stem.with_name(stem.name + suffix))
    if own == suffix:
        shutil.copyfile(picture.source, path)
    elif suffix == ".png":
        images.write_image(path, picture.image)
    else:
        Image.fromarray(picture.image).save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return path


def _plain_suffix(path: Path) -> str:
    """The suffix of a JPEG or PNG that everyone reads alike: upright, 8-bit RGB or grey, opaque; else empty."""
    with Image.open(path) as image:
        plain = image.mode in ("RGB", "L") and not image.has_transparency_data
        try:
            upright = Image.Image.getexif(image).get(_ORIENTATION, 1) in (0, 1)
        except Exception:  # damaged metadata around good pixels: some tools may turn it
            upright = False
        return _SUFFIXES.get(image.format, "") if plain and upright else ""


def _ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_text(path: Path, text: str) -> None:
    _ready(path).write_bytes(text.encode("utf-8"))
