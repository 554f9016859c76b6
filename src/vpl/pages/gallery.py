"""The gallery of a run folder: photographs with their masks over them, and what the pseudo-masks alone say.

Of many images the worst, and some of the rest drawn by lot, are taken. Pictures are data URIs: a page needs no file.
Where there is no truth, the network, if there is one, is asked about some of them: what it has learned is seen at once.
Letters: H W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image

from vpl.classes import IGNORE, ClassSet
from vpl.config import Config
from vpl.edges import storage
from vpl.edges.datasets import Sample
from vpl.edges.images import read_image, read_mask, size_within
from vpl.edges.templates import data_uri
from vpl.errors import DataError, VplError
from vpl.method import signs
from vpl.method.metrics import Confusion
from vpl.network import predict
from vpl.network.card import CARD_FILE, NETWORK_FOLDER, WEIGHTS_FILE
from vpl.pages.charts import sentence
from vpl.runs.contents import signature
from vpl.runs.files import damaged, read_truth
from vpl.runs.memory import Memory, truth_of
from vpl.runs.plan import digest
from vpl.runs.planned import dataset_of, split_of
from vpl.runs.review import CORRECTED, Decision, Review
from vpl.runs.scoring import MAP_ROWS
from vpl.sampling import steadily

MEMORY = "pictures.json"  # in state/
MOST_SCANNED = 1000  # images per split that are scored to choose the gallery's
THUMBNAIL_SIDE = 320  # longer side of a gallery picture, pixels
MOST_ASKED = 12  # images of a split without truth on which the network is asked
JPEG_QUALITY = 78
STRIPE = 3  # width of the stripes over ignored pixels, gallery pixels
HATCH = 8  # gallery pixels between the lines over a class


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
    of the pseudo-mask's pixels that are 255; `missing` are tags without any pixel in the pseudo-mask. `decision` is
    what a review says of it.
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
    tags: tuple[str, ...] = ()
    decision: str = ""


@dataclass(frozen=True)
class Counted:
    """A class in the lists of a run.

    Attributes:
        color: #rrggbb.
        tagged: photographs with its tag, over all splits.
        unseen: of those whose pseudo-masks were looked at, how many have no pixel of it.
    """

    name: str
    color: str
    tagged: int
    unseen: int


@dataclass(frozen=True)
class Gallery:
    """The exhibits, what `signs.label_free` says of the pseudo-masks, a sentence on which images are shown, and the
    classes that occur, the most frequent first."""

    exhibits: tuple[Exhibit, ...]
    signs: dict[str, dict]
    note: str
    counts: tuple[Counted, ...] = ()


@dataclass(frozen=True)
class _Scan:
    """What the last mask of one image says, before its pictures are made; `counts` of a pseudo-mask alone."""

    sample: Sample
    iou: float | None
    counts: dict[str, float]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class _Wall:
    """What the exhibits of a split have in common; `steps` are folders of masks and their titles."""

    run: Path
    split: str
    steps: Sequence[tuple[str, str]]
    classes: ClassSet
    review: Review

    def mask(self, folder: str, sample: Sample) -> Path:
        """Where a mask of the sample lies, if there is one."""
        return self.run / folder / f"{sample.id}.png"


def gallery(run: Path, config: Config, most: int, scored: bool = True) -> Gallery:
    """Exhibits of both splits, at most `most` of them.

    Args:
        scored: whether the truth of [data] may be compared with; the run has said so.

    Raises:
        RunError: a mask of the run is damaged.
    """
    counted: dict[str, dict] = {}
    exhibits, notes, reasons, classes = [], [], [], None
    tagged: Counter[str] = Counter()
    unseen: Counter[str] = Counter()
    review, network, memory = Review(run), _Network(run), Memory(run, MEMORY)
    splits = (
        ("training", split_of(config.data), config.data, tuple(MAP_ROWS.items())),
        ("held-out", split_of(config.validation), config.validation, (("predictions", "prediction"),)),
    )
    present = [
        split
        for split in splits
        if any((run / folder).is_dir() for folder, _ in split[3])
        or (split[2] is config.validation and split[2].images and network.is_there)
    ]
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
        if section is config.validation and not samples and network.is_there:
            samples = steadily(dataset.samples, MOST_ASKED, _name)
        if section is config.data and not scored:
            samples = [dataclasses.replace(one, mask=None) for one in samples]
        looked = steadily(samples, MOST_SCANNED, _name)
        scans = [_scan(run, one, steps[-1][0], classes, memory) for one in looked]
        counted |= _counted(scans)
        chosen = _chosen(scans, most // len(present))
        tagged.update(tag for one in dataset.samples for tag in one.tags)
        unseen.update(tag for scan in scans for tag in scan.missing)
        without = [scan.sample for scan in chosen if scan.sample.mask is None]
        asked = {sample.id for sample in steadily(without, MOST_ASKED, _name)}
        wall = _Wall(run, named, steps, classes, review)
        for scan in chosen:
            who = network if scan.sample.id in asked else None
            exhibits.append(_shown(wall, scan, who, memory))
        notes.append(_note(named, len(chosen), len(looked), len(samples), any(scan.iou is not None for scan in scans)))
    memory.close()
    if not present:
        return Gallery((), {}, "The run has no masks yet, so there is no gallery.")
    note = " ".join([*notes, *reasons, *network.told]) or "None of the run's masks belongs to an image of its data."
    counts = _counts(classes, tagged, unseen) if classes else ()
    return Gallery(tuple(exhibits), counted, note, counts)


class _Network:
    """The network of a run, opened when it is first asked; what can't be asked is told once."""

    def __init__(self, run: Path):
        self._run = run
        self._predictor: predict.Predictor | None = None
        self.is_there = (run / NETWORK_FOLDER / CARD_FILE).is_file()
        self.told: list[str] = []

    @property
    def mark(self) -> tuple[str | None, ...]:
        """What tells unread whether it is still the same."""
        return tuple(signature(self._run / NETWORK_FOLDER / name) for name in (CARD_FILE, WEIGHTS_FILE))

    def answer(self, sample: Sample) -> UInt8[np.ndarray, "H W"] | None:
        """What it says of a photograph at a single scale; None where it can't be asked."""
        if not self.is_there:
            return None
        try:
            if self._predictor is None:
                self._predictor = predict.load(self._run)
            return self._predictor.predict(sample.image)
        except DataError:  # the photograph's own exhibit tells
            return None
        except VplError as error:
            self.is_there = False
            self.told.append(f"The network can't be asked: {error}")
            return None


def _counts(classes: ClassSet, tagged: Counter[str], unseen: Counter[str]) -> tuple[Counted, ...]:
    palette = classes.palette()
    return tuple(
        Counted(name, _hex(palette[classes.index(name) + 1]), count, unseen[name])
        for name, count in sorted(tagged.items(), key=lambda one: (-one[1], one[0]))
    )


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _note(split: str, chosen: int, looked: int, total: int, scored: bool) -> str:
    if chosen == total:
        return f"All {total:,} images of {split} are here."
    how = "the half with the lowest IoU, and some of the rest, drawn by lot" if scored else "drawn by lot"
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


def _name(sample: Sample) -> str:
    return sample.id


def _scan(run: Path, sample: Sample, last: str, classes: ClassSet, memory: Memory) -> _Scan:
    """What the last mask says; known, where neither it nor the truth has changed."""
    path = run / last / f"{sample.id}.png"
    made_from = digest(last, signature(path), truth_of(sample), sample.tags, classes.names)
    known = memory.get("scans", sample.id, made_from)
    if isinstance(known, list) and len(known) == 3:
        iou, counts, missing = known
        return _Scan(sample, iou, counts, tuple(missing))
    found = _scanned(run, sample, last, classes)
    memory.keep("scans", sample.id, made_from, [found.iou, found.counts, found.missing])
    return found


def _scanned(run: Path, sample: Sample, last: str, classes: ClassSet) -> _Scan:
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
        counts=signs.of_mask(mask, labels.values()) if last == "labels" and labels else {},
        missing=tuple(tag for tag, label in labels.items() if label not in found),
    )


def _counted(scans: Sequence[_Scan]) -> dict[str, dict]:
    """What the pseudo-masks alone say, over the images that were looked at."""
    names = dict.fromkeys(name for scan in scans for name in scan.counts)
    return signs.label_free({name: [scan.counts[name] for scan in scans if scan.counts] for name in names})


def _chosen(scans: Sequence[_Scan], most: int) -> list[_Scan]:
    """All scans, or the worst half of `most` and some of the others as if drawn by lot, in the order given."""
    if len(scans) <= most:
        return list(scans)
    scored = sorted((scan.iou, number) for number, scan in enumerate(scans) if scan.iou is not None)
    worst = {number for _, number in scored[: most // 2]}
    others = [number for number in range(len(scans)) if number not in worst]
    kept = worst | set(steadily(others, most - len(worst), lambda number: scans[number].sample.id))
    return [scans[number] for number in sorted(kept)]


def _shown(wall: _Wall, scan: _Scan, network: _Network | None, memory: Memory) -> Exhibit:
    """A photograph's exhibit; its pictures are known where nothing that they show has changed."""
    sample, classes, decided = scan.sample, wall.classes, wall.review.of(scan.sample.id)
    masks = [wall.mask(folder, sample) for folder in (*(one for one, _ in wall.steps), CORRECTED)]
    scored = [truth_of(sample), scan.iou, scan.counts]
    shown = [wall.split, wall.steps, sample.tags, *scored, _words_of(decided), decided.corrected]
    looks = [classes.names, classes.palette(), THUMBNAIL_SIDE, JPEG_QUALITY, STRIPE, HATCH, PIL.__version__]
    asked = network.mark if network is not None and network.is_there else None
    made_from = digest(shown, looks, asked, [signature(file) for file in (sample.image, *masks)])
    if known := _recalled(memory.get("exhibits", sample.id, made_from)):
        return known
    found = _exhibit(wall, scan, network)
    silent = network is not None and not network.is_there  # or it could not be asked
    if not found.problem and not storage.is_url(sample.image) and not (asked and silent):
        memory.keep("exhibits", sample.id, made_from, dataclasses.asdict(found))
    return found


def _recalled(kept: Any) -> Exhibit | None:
    """An exhibit as it was kept; None where it is none."""
    try:
        panes = tuple(Pane(**one) for one in kept["panes"])
        swatches = tuple(Swatch(**one) for one in kept["swatches"])
        lists = {name: tuple(kept[name]) for name in ("missing", "tags")}
        return Exhibit(**{**kept, **lists, "panes": panes, "swatches": swatches})
    except (KeyError, TypeError):
        return None


def _exhibit(wall: _Wall, scan: _Scan, network: _Network | None) -> Exhibit:
    sample, steps, classes, palette = scan.sample, wall.steps, wall.classes, wall.classes.palette()
    found = {sentence(title): _own_mask(wall.mask(folder, sample)) for folder, title in steps}
    decided = wall.review.of(sample.id) if steps[-1][0] == "labels" else Decision()
    if decided.corrected:
        found["Painted"] = _own_mask(wall.mask(CORRECTED, sample))
    if network is not None and "Prediction" not in [title for title, mask in found.items() if mask is not None]:
        found["Network"] = network.answer(sample)
    found["Truth"] = read_truth(sample)
    masks = {title: mask for title, mask in found.items() if mask is not None}
    photo, problem = "", ""
    try:
        pixels = read_image(sample.image, max_side=THUMBNAIL_SIDE)
    except DataError as error:
        problem = str(error)
        rows, columns = next(iter(masks.values())).shape if masks else (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        height, width = size_within(rows, columns, THUMBNAIL_SIDE)
    else:
        height, width = pixels.shape[:2]
        photo = data_uri(Image.fromarray(pixels), "JPEG", quality=JPEG_QUALITY)
    used = sorted(set().union(*(np.unique(mask).tolist() for mask in masks.values())) - {0, IGNORE})
    tags = ", ".join(sample.tags)
    return Exhibit(
        id=sample.id,
        split=wall.split,
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
            Swatch(name, _hex(palette[label]), name in sample.tags)
            for label, name in ((label, _class_name(label, classes)) for label in used)
        ),
        scored=steps[-1][1],
        iou=scan.iou,
        ignored=scan.counts.get("ignored pixels"),
        missing=scan.missing,
        tags=sample.tags,
        decision=_words_of(decided),
    )


def _words_of(decided: Decision) -> str:
    words = {"accept": "accepted", "reject": "rejected"}.get(decided.decision, "")
    more = ("tags corrected" if decided.tags else "", "mask painted" if decided.corrected else "")
    return ", ".join(filter(None, (words, *more)))


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
    """The mask as a PNG of the given (width, height): background clear; classes hatched, their direction by label, and
    outlined in black and white, so that they are seen on a photograph of their own colour; ignored pixels striped."""
    small = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    edge = np.zeros(small.shape, bool)
    edge[:, 1:] |= small[:, 1:] != small[:, :-1]
    edge[1:] |= small[1:] != small[:-1]
    across = np.add.outer(np.arange(size[1]), np.arange(size[0]))
    down = np.subtract.outer(np.arange(size[1]), np.arange(size[0]))
    stripes = across % (2 * STRIPE) < STRIPE
    table = np.array(palette, dtype=np.uint8)
    table[IGNORE] = 255
    colors = np.dstack([table[small], np.where(small == 0, 0, 255)]).astype(np.uint8)
    colors[(small == IGNORE) & stripes, 3] = 0
    for label in set(np.unique(small).tolist()) - {0, IGNORE}:
        lines = (across if label % 2 else down) % HATCH == 0
        ink = 0 if table[label] @ (0.3, 0.6, 0.1) > 128 else 255
        colors[(small == label) & lines, :3] = (table[label].astype(int) + ink) // 2
    colors[edge] = np.where(across[edge] % 6 < 3, 255, 0)[:, None]
    colors[edge, 3] = 255
    numbers, codes = np.unique(colors.view(">u4"), return_inverse=True)  # a colour is one number, many times as fast
    shades = numbers.astype(">u4").view(np.uint8).reshape(-1, 4)
    picture = Image.fromarray(codes.reshape(small.shape).astype(np.uint8))
    picture.putpalette(shades[:, :3].tobytes())
    return data_uri(picture, "PNG", optimize=True, transparency=shades[:, 3].tobytes())
