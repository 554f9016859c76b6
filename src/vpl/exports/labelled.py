"""What every layout of masks is made from: photographs with their pseudo-masks, checked, and how they are written.

Label values: 0 background, c + 1 class c, 255 ignore. Photographs are copied, never linked: who edits an export must
not change the original. One that lies in another format than the layout wants, or that its EXIF turns, or that is no
plain RGB or grey, is written anew as vpl saw it.

Letters: H W pixels. Each writer is given images one by one, and writes its lists when it is closed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vpl.classes import IGNORE, ClassSet, voc_palette
from vpl.edges import images, storage
from vpl.errors import DataError

SPLIT = "train"
"""Name of the one list in each layout: pseudo-masks are made to train on."""
IGNORED = "ignored"
"""Name of label 255 where a layout names it; VOC tools call it so."""
JPEG_QUALITY = 95
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}


@dataclass(frozen=True)
class Labelled:
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

    def add(self, picture: Labelled) -> None:
        """Write one image.

        Raises:
            DataError: this layout can't hold it; nothing of it was written.
        """

    def close(self) -> None:
        """Write the lists."""


@contextlib.contextmanager
def local(image: Path | str) -> Iterator[Path]:
    """The photograph's file; one behind a URL is fetched for as long as the block lasts.

    Raises:
        DataError: there is no such file. RunError: the store can't be used.
    """
    if not storage.is_url(image):
        yield Path(image)
        return
    with tempfile.TemporaryDirectory(prefix="vpl-") as folder:
        path = Path(folder) / "photograph"
        path.write_bytes(storage.read(image, images.MOST_FILE_BYTES))
        yield path


def place_of(image: Path | str, folder: Path | str) -> PurePosixPath:
    """The photograph's path below the folder of images, without its suffix; outside of it, its name."""
    if storage.is_url(image):
        above = f"{str(folder).rstrip('/')}/"
        return PurePosixPath(
            image.removeprefix(above) if image.startswith(above) else image.rpartition("/")[2]
        ).with_suffix("")
    source, root = Path(image), Path(folder)
    inside = source.relative_to(root) if source.is_relative_to(root) else Path(source.name)
    return PurePosixPath(inside.with_suffix("").as_posix())


def read_labelled(
    id: str, source: Path, place: PurePosixPath, tags: tuple[str, ...] | None, mask: Path, classes: ClassSet
) -> Labelled:
    """A photograph with its pseudo-mask, both decoded and checked. Tags None: the mask's labels.

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
    if tags is None:
        tags = tuple(name for number, name in enumerate(classes.names, 1) if (labels == number).any())
    return Labelled(id, place, source, tags, image, labels)


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
    rows = [f"{name}:{','.join(map(str, color))}::\n" for name, color in named_colors(classes, palette)]
    return "".join(["# label:color_rgb:parts:actions\n", *rows])


def named_colors(classes: ClassSet, palette: Sequence[tuple[int, int, int]]) -> list[tuple[str, tuple[int, int, int]]]:
    labels = (*range(len(classes) + 1), IGNORE)
    return list(zip(("background", *classes.names, IGNORED), (palette[label] for label in labels), strict=True))


def write_photograph(picture: Labelled, stem: Path, *wanted: str) -> Path:
    """Copy the photograph where its format and pixels fit, else write it as JPEG or PNG; returns the file."""
    own = _plain_suffix(picture.source)
    suffix = own if own in wanted else ".png" if ".png" in wanted else ".jpg"
    path = ready(stem.with_name(stem.name + suffix))
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
            Image.Image.getexif(image)
            upright = images.orientation(image) == 1
        except Exception:  # damaged metadata around good pixels: some tools may turn it
            upright = False
        return SUFFIXES.get(image.format or "", "") if plain and upright else ""


def ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_text(path: Path, text: str) -> None:
    ready(path).write_bytes(text.encode("utf-8"))
