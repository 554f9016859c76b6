"""The gallery of a run folder: photographs with their masks over them, and what the pseudo-masks alone say.

Of many images the worst and an even choice of the rest are taken. Pictures are data URIs, so that a page needs no file.
Letters: H W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vpl.classes import IGNORE, ClassSet
from vpl.config import Config
from vpl.edges.datasets import Sample
from vpl.edges.images import read_image, read_mask, size_within
from vpl.edges.templates import data_uri
from vpl.errors import DataError, VplError
from vpl.method import signs
from vpl.method.metrics import Confusion
from vpl.pages.charts import sentence
from vpl.runs.files import damaged, read_truth
from vpl.runs.opened import dataset_of, split_of
from vpl.runs.scoring import MAP_ROWS
from vpl.sampling import evenly

MOST_SCANNED = 1000  # images per split that are scored to choose the gallery's
THUMBNAIL_SIDE = 208  # longer side of a gallery picture, pixels
JPEG_QUALITY = 78
STRIPE = 3  # width of the stripes over ignored pixels, gallery pixels


@dataclass(frozen=True)
class Pane:
    """One mask of a gallery image: a transparent PNG as data URI, to lie over the photograph."""

    title: str
    uri: str
    alt: str


@dataclass(frozen=True)
class Swatch:
    """A class that occurs in a gallery image. color: #rrggbb; tagged: it is one of the image's tags."""

    name: str
    color: str
    tagged: bool


@dataclass(frozen=True)
class Exhibit:
    """One gallery image. `photo` is a JPEG data URI, empty where the photograph can't be read (`problem` says why).

    `iou` is the mean IoU of the image's last mask (`scored`), in [0, 1]; None without truth. `ignored` is the share
    of the pseudo-mask's pixels that are 255; `missing` are tags without any pixel in the pseudo-mask.
    """

    id: str
    split: str
    width: int
    height: int
    photo: str
    photo_alt: str
    problem: str
    panes: tuple[Pane, ...]
    swatches: tuple[Swatch, ...]
    scored: str
    iou: float | None
    ignored: float | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """The exhibits, what `signs.label_free` says of the pseudo-masks, and a sentence on which images are shown."""

    exhibits: tuple[Exhibit, ...]
    signs: dict[str, dict]
    note: str


@dataclass(frozen=True)
class _Scan:
    """What the last mask of one image says, before its pictures are made; `counts` of a pseudo-mask alone."""

    sample: Sample
    iou: float | None
    counts: dict[str, float]
    missing: tuple[str, ...]


def gallery(run: Path, config: Config, most: int, scored: bool = True) -> Gallery:
    """Exhibits of both splits, at most `most` of them.

    Args:
        scored: whether the truth of [data] may be compared with; the run has said so.

    Raises:
        RunError: a mask of the run is damaged.
    """
    counted: dict[str, dict] = {}
    exhibits, notes, reasons, classes = [], [], [], None
    splits = (
        ("training", split_of(config.data), config.data, tuple(MAP_ROWS.items())),
        ("held-out", split_of(config.validation), config.validation, (("predictions", "prediction"),)),
    )
    present = [split for split in splits if any((run / folder).is_dir() for folder, _ in split[3])]
    for words, named, section, steps in present:
        try:
            dataset = dataset_of(section, classes)
        except VplError as error:
            reasons.append(f"The {words} images can't be listed: {error}")
            continue
        classes = dataset.classes
        samples = [
            one for one in dataset.samples if any((run / folder / f"{one.id}.png").is_file() for folder, _ in steps)
        ]
        if section is config.data and not scored:
            samples = [dataclasses.replace(one, mask=None) for one in samples]
        looked = evenly(samples, MOST_SCANNED)
        scans = [_scan(run, one, steps[-1][0], classes) for one in looked]
        counted |= _counted(scans)
        chosen = _chosen(scans, most // len(present))
        exhibits += [_exhibit(run, named, steps, scan, classes) for scan in chosen]
        notes.append(_note(named, len(chosen), len(looked), len(samples), any(scan.iou is not None for scan in scans)))
    if not present:
        return Gallery((), {}, "The run has no masks yet, so there is no gallery.")
    note = " ".join(notes + reasons) or "None of the run's masks belongs to an image of its data."
    return Gallery(tuple(exhibits), counted, note)


def _note(split: str, chosen: int, looked: int, total: int, scored: bool) -> str:
    if chosen == total:
        return f"All {total:,} images of {split} are here."
    how = "the half with the lowest IoU, and an even choice of the rest" if scored else "evenly chosen"
    among = f" of {looked:,} that were looked at" if looked < total else ""
    return f"{chosen:,}{among} of the {total:,} images of {split} are here: {how}."


def _own_mask(path: Path) -> UInt8[np.ndarray, "H W"] | None:
    """A mask of the run folder; None where there is no file."""
    if not path.is_file():
        return None
    try:
        return read_mask(path)
    except DataError as error:
        raise damaged(path, f"it can't be read as a mask ({error})") from error


def _scan(run: Path, sample: Sample, last: str, classes: ClassSet) -> _Scan:
    mask = _own_mask(run / last / f"{sample.id}.png")
    if mask is None:
        return _Scan(sample, None, {}, ())
    truth, iou = read_truth(sample), None
    if truth is not None:
        confusion = Confusion(len(classes) + 1)
        try:
            confusion.update(truth, mask)
            iou = float(confusion.miou())
        except DataError:  # another size or strange labels: evaluation names them, the gallery shows them unscored
            iou = None
    labels = {tag: classes.index(tag) + 1 for tag in sample.tags} if last == "labels" else {}
    found = set(np.unique(mask).tolist())
    return _Scan(
        sample=sample,
        iou=iou if iou is not None and math.isfinite(iou) else None,
        counts=signs.of_mask(mask, labels.values()) if last == "labels" else {},
        missing=tuple(tag for tag, label in labels.items() if label not in found),
    )


def _counted(scans: Sequence[_Scan]) -> dict[str, dict]:
    """What the pseudo-masks alone say, over the images that were looked at."""
    names = dict.fromkeys(name for scan in scans for name in scan.counts)
    return signs.label_free({name: [scan.counts[name] for scan in scans if scan.counts] for name in names})


def _chosen(scans: Sequence[_Scan], most: int) -> list[_Scan]:
    """All scans, or the worst half of `most` and an even spread of the others, in the order given."""
    if len(scans) <= most:
        return list(scans)
    scored = sorted((scan.iou, number) for number, scan in enumerate(scans) if scan.iou is not None)
    worst = {number for _, number in scored[: most // 2]}
    others = [number for number in range(len(scans)) if number not in worst]
    kept = worst | set(evenly(others, most - len(worst)))
    return [scans[number] for number in sorted(kept)]


def _exhibit(run: Path, split: str, steps: Sequence[tuple[str, str]], scan: _Scan, classes: ClassSet) -> Exhibit:
    sample, palette = scan.sample, classes.palette()
    found = {sentence(title): _own_mask(run / folder / f"{sample.id}.png") for folder, title in steps}
    found["Truth"] = read_truth(sample)
    masks = {title: mask for title, mask in found.items() if mask is not None}
    photo, problem = "", ""
    try:
        pixels = read_image(sample.image, max_side=THUMBNAIL_SIDE)
    except DataError as error:
        problem = str(error)
        rows, columns = next(iter(masks.values())).shape
        height, width = size_within(rows, columns, THUMBNAIL_SIDE)
    else:
        height, width = pixels.shape[:2]
        photo = data_uri(Image.fromarray(pixels), "JPEG", quality=JPEG_QUALITY)
    used = sorted(set().union(*(np.unique(mask).tolist() for mask in masks.values())) - {0, IGNORE})
    tags = ", ".join(sample.tags)
    return Exhibit(
        id=sample.id,
        split=split,
        width=width,
        height=height,
        photo=photo,
        photo_alt=f"Photograph {sample.id}" + (f", tagged {tags}" if tags else ", no tags"),
        problem=problem,
        panes=tuple(
            Pane(title, _mask_uri(mask, (width, height), palette), f"{title} of {sample.id}: {_shares(mask, classes)}.")
            for title, mask in masks.items()
        ),
        swatches=tuple(
            Swatch(name, "#{:02x}{:02x}{:02x}".format(*palette[label]), name in sample.tags)
            for label, name in ((label, _class_name(label, classes)) for label in used)
        ),
        scored=steps[-1][1],
        iou=scan.iou,
        ignored=scan.counts.get("ignored pixels"),
        missing=scan.missing,
    )


def _class_name(label: int, classes: ClassSet) -> str:
    if label == IGNORE:
        return "ignored"
    return "background" if label == 0 else classes.names[label - 1] if label <= len(classes) else f"label {label}"


def _shares(mask: UInt8[np.ndarray, "H W"], classes: ClassSet) -> str:
    """ "boat 31 %, background 69 %", largest first."""
    labels, counts = np.unique(mask, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{_class_name(int(labels[n]), classes)} {100 * counts[n] / mask.size:.0f}\u00a0%" for n in order)


def _mask_uri(mask: UInt8[np.ndarray, "H W"], size: tuple[int, int], palette: Sequence[tuple[int, int, int]]) -> str:
    """The mask as a PNG of the given (width, height): background clear, outlines white, ignored pixels striped."""
    small = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    edge = np.zeros(small.shape, bool)
    edge[:, 1:] |= small[:, 1:] != small[:, :-1]
    edge[1:] |= small[1:] != small[:-1]
    stripes = np.add.outer(np.arange(size[1]), np.arange(size[0])) % (2 * STRIPE) < STRIPE
    small[(small == IGNORE) & stripes] = 0
    small[edge] = IGNORE
    labels, codes = np.unique(small, return_inverse=True)
    colors = [(255, 255, 255) if label == IGNORE else palette[label] for label in labels]
    picture = Image.fromarray(codes.reshape(small.shape).astype(np.uint8))
    picture.putpalette([channel for color in colors for channel in color])
    return data_uri(picture, "PNG", optimize=True, transparency=bytes(0 if label == 0 else 255 for label in labels))
