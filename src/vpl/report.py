"""A run folder as one HTML page: plain data first (`collect`), a template second (`render`, report.html).

METHOD.md 6 to 8: what was run, mIoU from seeds to network, each class, confusions, curves, the modality gap, and the
pictures themselves. The gap's picture is a weighted PCA: with X the rows of regions, text and vision prototypes, each
kind of row having the same total weight w, the axes are the first two right singular vectors of sqrt(w) (X - mean).
The page needs no network and no other file. It holds no clock time: the same run folder gives the same page.

Letters: C classes · N regions · D joint embedding width · H W pixels.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import safe_open

from vpl.classes import IGNORE, ClassSet
from vpl.config import Config
from vpl.datasets import Sample
from vpl.errors import DataError, RunError, VplError
from vpl.images import read_image, read_mask, size_within, write_text_atomic
from vpl.metrics import Confusion
from vpl.prototypes import CHECK_EVERY
from vpl.run import CHANCE_RANK, MAP_ROWS, dataset_of, split_of
from vpl.runfolder import read_json, read_tensors

MOST_PICTURED = 200  # images in the gallery
MOST_SCANNED = 1000  # images per split that are scored to choose the gallery's
MOST_POINTS = 1200  # regions drawn in the modality gap
MOST_CONFUSED = 24  # classes in a confusion matrix
CURVE_BINS = 80  # points of a drawn curve
THUMBNAIL_SIDE = 208  # longer side of a gallery picture, pixels
JPEG_QUALITY = 78
STRIPE = 3  # width of the stripes over ignored pixels, gallery pixels
REPORT_FILE = "report.html"

_NO_TRUTH = (
    "The run has no truth masks, so no IoU can be computed; what can be judged without them stands under "
    "“Without ground truth” and in the gallery."
)
_NOT_EVALUATED = "There are truth masks, but the run has not been evaluated yet: run `vpl evaluate`."


# ----------------------------------------------------------------------------------------------------------------- data
@dataclass(frozen=True)
class Setting:
    """One configuration value that differs from its default; `source` says where the default comes from."""

    key: str
    value: str
    default: str
    source: str
    help: str


@dataclass(frozen=True)
class Stage:
    """Time of one stage. `rate`: images per second, None where it means nothing (training sees images many times)."""

    name: str
    seconds: float
    images: int | None
    rate: float | None


@dataclass(frozen=True)
class Failure:
    """One image that was left out of the run."""

    id: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One set of masks against the truth. All values in [0, 1]; None where a class occurs nowhere.

    `iou`, `precision` and `recall` follow `Evaluation.classes`. `confusion[t][p]` counts pixels of true class t that
    were called p, in the order of `Evaluation.classes`; a column more than rows is "no label". Empty: not saved.
    """

    name: str
    miou: float | None
    pixel_accuracy: float | None
    iou: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Evaluation:
    """All rows that were evaluated on one split. `classes` starts with background where it was counted."""

    split: str
    images: int
    classes: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Curve:
    """One numeric column of network/curve.csv (or the learning curve of the prototypes) over the step."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class GapNumber:
    """One quantity of prototypes.json, before (text) and after learning (vision); None: it has only one of them."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Point:
    """A row of the joint space in the plane of the picture. kind: region, text or vision; label: -1 is background."""

    kind: str
    label: int
    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Gap:
    """The modality gap. `shown` of `regions` regions are in `points`; `variance` is the share that the plane keeps."""

    numbers: tuple[GapNumber, ...]
    curve: Curve | None
    points: tuple[Point, ...]
    shown: int
    regions: int
    variance: float
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Sign:
    """A number that needs no ground truth, with what it means and what to do when it is bad."""

    name: str
    value: float
    meaning: str
    advice: str


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
class Card:
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
class ReportData:
    """All that the page shows.

    `problems` are skipped lines of the data list. `absent` maps a section's name to the sentence in its place.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    settings: tuple[Setting, ...]
    stages: tuple[Stage, ...]
    failures: tuple[Failure, ...]
    problems: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    signs: tuple[Sign, ...]
    curves: tuple[Curve, ...]
    gap: Gap | None
    cards: tuple[Card, ...]
    gallery_note: str
    absent: Mapping[str, str]


# -------------------------------------------------------------------------------------------------------------- collect
def collect(run_folder: str | Path, most_pictured: int = MOST_PICTURED) -> ReportData:
    """Read a run folder into plain data. Nothing is computed anew but the gallery's per-image IoU and the projection.

    At most `most_pictured` images enter the gallery. What the run folder doesn't hold is named in `absent`.

    Raises:
        RunError: the folder is no run folder, or one of its own files is broken; the message names the file.
    """
    run = Path(run_folder)
    if not (run / "config.toml").is_file():
        raise RunError(
            f"{run} is no run folder: it has no config.toml. Give the folder that `vpl run` or `vpl demo` wrote."
        )
    config = Config.from_toml(run / "config.toml")
    if not (run / "run.json").is_file():
        raise RunError(f"{run} has no run.json, so no stage has begun there. Run `vpl run` or one of the stages first.")
    record, metrics = read_json(run / "run.json"), read_json(run / "metrics.json")
    absent: dict[str, str] = {}

    evaluations = tuple(
        _evaluation(item, run / "metrics.json") for item in _list(metrics, "evaluations", run / "metrics.json")
    )
    evaluations = tuple(one for one in evaluations if one.rows)
    curves = _curves(run / "network" / "curve.csv")
    if not curves:
        absent["training"] = "The run has no training curve: no network was trained in this folder."
    gap = _gap(run)
    if gap is None:
        absent["gap"] = "The run has no prototypes yet, so there is no modality gap to show."
    elif not gap.points:
        absent["projection"] = "The run has no region embeddings, so the gap is shown in numbers only."
    cards, scanned, gallery_note = _gallery(run, config, most_pictured)
    if not cards:
        absent["gallery"] = gallery_note
    if not evaluations:
        absent["evaluation"] = _NOT_EVALUATED if any(card.iou is not None for card in cards) else _NO_TRUTH
    signs = _tag_rank(record, run / "run.json") + _signs(metrics, run / "metrics.json") + scanned
    if not signs:
        absent["signs"] = "The run has no label-free numbers and no pseudo-masks to count them from."
    return ReportData(
        title=run.resolve().name,
        facts=_facts(config, record, run / "run.json"),
        versions=tuple((key, str(one)) for key, one in _dict(record, "versions", run / "run.json").items()),
        settings=_settings(config),
        stages=_stages(record, run / "run.json"),
        failures=tuple(
            Failure(str(item.get("id", "")), str(item.get("reason", "")))
            for item in _list(record, "failures", run / "run.json")
        ),
        problems=tuple(map(str, _dict(record, "data", run / "run.json").get("problems") or ())),
        evaluations=evaluations,
        signs=signs,
        curves=curves,
        gap=gap,
        cards=cards,
        gallery_note=gallery_note,
        absent=absent,
    )


def _broken(path: Path, what: str) -> RunError:
    return RunError(f"{path} is broken: {what}. Run the stage that writes it again, or restore the file.")


def _list(tree: Mapping, key: str, path: Path) -> list[dict]:
    items = tree.get(key) or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _broken(path, f"{key!r} is no list of objects")
    return items


def _dict(tree: Mapping, key: str, path: Path) -> dict:
    item = tree.get(key) or {}
    if not isinstance(item, dict):
        raise _broken(path, f"{key!r} is {item!r}, expected an object")
    return item


def _number(value: object, what: str, path: Path) -> float | None:
    """A finite number, or None for null and NaN."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _broken(path, f"{what} is {value!r}, expected a number")
    return float(value) if math.isfinite(value) else None


def _facts(config: Config, record: Mapping, path: Path) -> tuple[tuple[str, str], ...]:
    data, clip = _dict(record, "data", path), _dict(record, "clip", path)
    rows = [
        ("Images", f"{data['images']:,}" if isinstance(data.get("images"), int) else ""),
        ("Data", " · ".join(filter(None, (config.data.format, config.data.images, config.data.split)))),
        ("Data list hash", str(data.get("hash", ""))[:16]),
        ("Held-out data", " · ".join(filter(None, (config.validation.images, config.validation.split)))),
        ("CLIP", str(clip.get("name", config.clip.model))),
        ("CLIP weights hash", str(clip.get("hash", ""))[:16]),
        ("Device", " · ".join(str(record[key]) for key in ("device", "precision") if record.get(key))),
        ("Seed", str(record.get("seed", config.seed))),
    ]
    return tuple((name, text) for name, text in rows if text)


def _settings(config: Config) -> tuple[Setting, ...]:
    rows = []
    for key, (own, default) in config.differences(Config()).items():
        section, _, name = key.rpartition(".")
        metadata: Mapping = {}
        if section:
            metadata = type(getattr(config, section)).__dataclass_fields__[name].metadata
        rows.append(Setting(key, _plain(own), _plain(default), metadata.get("source", ""), metadata.get("help", "")))
    return tuple(rows)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if value != "" else "(empty)"


def _stages(record: Mapping, path: Path) -> tuple[Stage, ...]:
    stages = []
    for name, item in _dict(record, "stages", path).items():
        if not isinstance(item, dict):
            raise _broken(path, f"stage {name!r} is {item!r}, expected an object")
        seconds, images = (_number(item.get(key), f"{key} of stage {name!r}", path) for key in ("seconds", "images"))
        if seconds is None:
            continue
        rate = images / seconds if images and seconds and name != "train" else None
        stages.append(Stage(name, seconds, None if images is None else int(images), rate))
    return tuple(stages)


def _evaluation(item: Mapping, path: Path) -> Evaluation:
    names = item.get("classes")
    if not isinstance(names, list) or not isinstance(item.get("split"), str):
        raise _broken(path, "an evaluation has no 'split' text or no 'classes' list")
    trees = _list(item, "rows", path)
    classes = tuple(map(str, names))
    if "background" not in classes and any("background" in _dict(tree, "iou", path) for tree in trees):
        classes = ("background", *classes)
    return Evaluation(
        split=item["split"],
        images=int(_number(item.get("images"), "images of an evaluation", path) or 0),
        classes=classes,
        rows=tuple(_row(tree, classes, path) for tree in trees),
    )


def _row(tree: Mapping, classes: Sequence[str], path: Path) -> Row:
    if not isinstance(tree.get("name"), str):
        raise _broken(path, "a row of an evaluation has no 'name'")
    name = tree["name"]

    def by_class(key: str) -> tuple[float | None, ...]:
        values = _dict(tree, key, path)
        return tuple(_number(values.get(one), f"{key} of {one!r} in {name!r}", path) for one in classes)

    matrix = tree.get("confusion") or []
    try:
        counts = np.array(matrix, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise _broken(path, f"the confusion matrix of {name!r} is no table of whole numbers") from error
    wide = (len(classes), len(classes) + 1)
    if matrix and (counts.ndim != 2 or len(counts) not in wide or counts.shape[1] - len(counts) not in (0, 1)):
        raise _broken(path, f"the confusion matrix of {name!r} doesn't fit {len(classes)} classes")
    return Row(
        name=name,
        miou=_number(tree.get("miou"), f"miou of {name!r}", path),
        pixel_accuracy=_number(tree.get("pixel_accuracy"), f"pixel_accuracy of {name!r}", path),
        iou=by_class("iou"),
        precision=by_class("precision"),
        recall=by_class("recall"),
        confusion=tuple(map(tuple, counts.tolist())),
    )


def _signs(metrics: Mapping, path: Path) -> tuple[Sign, ...]:
    signs = []
    for name, item in _dict(metrics, "label_free", path).items():
        if not isinstance(item, dict):
            raise _broken(path, f"label_free {name!r} is {item!r}, expected an object")
        value = _number(item.get("value"), f"label_free {name!r}", path)
        if value is not None:
            signs.append(Sign(_words(name), value, str(item.get("meaning", "")), str(item.get("advice", ""))))
    return tuple(signs)


def _tag_rank(record: Mapping, path: Path) -> tuple[Sign, ...]:
    rank = _number(record.get("tag_rank"), "tag_rank", path)
    if rank is None:
        return ()
    return (
        Sign(
            "Tag rank",
            rank,
            "How often CLIP ranks an image's own tags above other classes; guessing gives 0.5.",
            f"Below {CHANCE_RANK}: this CLIP doesn't know these photographs. Use other weights (clip.model), or give "
            "the classes better prompt words.",
        ),
    )


def _words(name: str) -> str:
    return _sentence(name.replace("_", " ").strip())


# --------------------------------------------------------------------------------------------------------------- curves
def _curves(path: Path) -> tuple[Curve, ...]:
    """Every numeric column of a CSV with a header, over its column "step" (or over the line number)."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _broken(path, f"it is no readable CSV ({error})") from error
    columns = {name: [_float(row[name]) for row in rows] for name in (rows[0] if rows else ()) if name}
    steps = columns.pop("step", None) or [float(number) for number in range(1, len(rows) + 1)]
    curves = []
    for name, column in columns.items():
        kept = [(s, v) for s, v in zip(steps, column, strict=True) if s is not None and v is not None]
        if kept:
            curves.append(Curve(name, *map(tuple, zip(*kept, strict=True))))
    return tuple(curves)


def _float(text: object) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


# ------------------------------------------------------------------------------------------------------------------ gap
_PAIRS = (("before", "after"), ("text", "vision"))
_GAP_WORDS = {
    ("kl", "text"): "KL divergence over the tags' regions, nats",
    ("kl", "before"): "KL divergence over all regions, nats",
    ("gap", "text"): "Distance of the mean region from the mean prototype",
    ("own", "text"): "Cosine of a region with its own prototype",
    ("other", "text"): "Cosine of a region with the best other prototype",
    ("accuracy", "text"): "Share of regions whose nearest prototype is their own",
}


def _gap(run: Path) -> Gap | None:
    path = run / "prototypes.json"
    learned = read_json(path)
    tensors, facts = _tensors(run / "prototypes.safetensors")
    if not learned and not tensors:
        return None
    values = learned.get("curve") or []
    if not isinstance(values, list) or not all(isinstance(value, (int, float)) for value in values):
        raise _broken(path, "'curve' is no list of numbers")
    steps = [float(CHECK_EVERY * number) for number in range(len(values))]
    if steps and isinstance(learned.get("steps"), int):
        steps[-1] = float(learned["steps"])
    names = tuple(map(str, facts.get("classes", ())))
    points, shown, total, variance = _points(run, tensors, (*names, *map(str, facts.get("background", ()))), len(names))
    return Gap(
        numbers=_gap_numbers(learned),
        curve=Curve("KL divergence", tuple(steps), tuple(map(float, values))) if values else None,
        points=points,
        shown=shown,
        regions=total,
        variance=variance,
        classes=names,
    )


def _gap_numbers(tree: Mapping) -> tuple[GapNumber, ...]:
    """Scalars of the learning report: x_before with x_after, and x_text with x_vision, share a line."""
    found: dict[tuple[str, str], list[float | None]] = {}
    for key, value in tree.items():
        stem, _, last = key.rpartition("_")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        for pair in _PAIRS:
            if stem and last in pair:
                found.setdefault((stem, pair[0]), [None, None])[pair.index(last)] = float(value)
    return tuple(
        GapNumber(_GAP_WORDS.get((stem, first), _words(stem)), *values) for (stem, first), values in found.items()
    )


def _tensors(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors of a safetensors file of ours and the facts beside them; both empty where there is no file."""
    if not path.is_file():
        return {}, {}
    tensors = {key: one.to(torch.float32).numpy() for key, one in read_tensors(path).items()}
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
    try:
        facts = json.loads(metadata.get("vpl", "{}"))
    except ValueError as error:
        raise _broken(path, f"its facts are no JSON ({error})") from error
    if not isinstance(facts, dict) or not all(np.isfinite(one).all() for key, one in tensors.items() if one.ndim == 2):
        raise _broken(path, "its facts are no object, or its embeddings are not finite")
    return tensors, facts


def _regions(run: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Embeddings (n, D) and class numbers (n,) of the last round's files, in their order."""
    embeddings, labels = [], []
    files = sorted((run / "regions").glob("*.safetensors"))
    rounds = [int("0" + re.sub(r"\D", "", file.name.partition("-")[0])) for file in files]
    for path, number in zip(files, rounds, strict=True):
        if number < max(rounds):
            continue
        part, _ = _tensors(path)
        if not {"embeddings", "class"} <= part.keys() or len(part["embeddings"]) != len(part["class"]):
            raise _broken(path, "it has no 'embeddings' and 'class' of one length")
        embeddings.append(part["embeddings"])
        labels.append(part["class"].astype(int))
    return embeddings, labels


def _points(
    run: Path, tensors: Mapping[str, np.ndarray], names: Sequence[str], classes: int
) -> tuple[tuple[Point, ...], int, int, float]:
    """Points, how many regions are shown, how many there are, and the share of variance that the plane keeps.

    `names` are those of the prototypes, the first `classes` of them foreground.
    """
    embeddings, labels = _regions(run)
    prototypes = {kind: tensors[kind] for kind in ("text", "vision") if kind in tensors}
    total = sum(map(len, labels))
    if not total or not prototypes:
        return (), 0, total, 0.0
    rows, numbers = np.concatenate(embeddings), np.concatenate(labels)
    chosen = _spread(total, MOST_POINTS)
    groups = [rows[chosen], *prototypes.values()]
    if len({group.shape[-1] for group in groups}) != 1:
        raise _broken(run / "prototypes.safetensors", "prototypes and regions differ in width")
    planes, variance = project(groups)
    members = [("region", numbers[chosen].tolist(), planes[0])]
    members += [(kind, range(len(plane)), plane) for kind, plane in zip(prototypes, planes[1:], strict=True)]
    points = [
        Point(kind, number if number < classes else -1, names[number] if 0 <= number < len(names) else "", *place)
        for kind, numbers, plane in members
        for number, place in zip(numbers, plane.tolist(), strict=True)
    ]
    return tuple(points), len(chosen), total, variance


def project(groups: Sequence[Float[np.ndarray, "_ D"]]) -> tuple[list[Float[np.ndarray, "_ 2"]], float]:
    """Groups of rows in the plane of their first two principal axes, each group with the same total weight.

    So that a few prototypes count as much as thousands of regions. The sign of an axis is fixed by its largest entry.
    Returns the groups, each (n, 2), and the share of the weighted variance that the plane keeps, in [0, 1]. [ours]
    """
    rows = np.concatenate(groups).astype(np.float64)
    weights = np.concatenate([np.full(len(group), 1 / (len(groups) * max(len(group), 1))) for group in groups])
    centred = rows - weights @ rows
    _, sizes, axes = np.linalg.svd(np.sqrt(weights)[:, None] * centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][range(min(2, len(axes))), np.abs(axes[:2]).argmax(1)])[:, None]
    plane = np.zeros((len(rows), 2))
    plane[:, : len(axes)] = centred @ axes.T
    variance = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-30))
    return np.split(plane, np.cumsum([len(group) for group in groups])[:-1]), variance


def _spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0..count-1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)) if count else np.zeros(0, int)


# -------------------------------------------------------------------------------------------------------------- gallery
@dataclass(frozen=True)
class _Scan:
    """What the last mask of one image says, before its pictures are made."""

    sample: Sample
    iou: float | None
    ignored: float | None
    foreground: float | None
    missing: tuple[str, ...]


def _gallery(run: Path, config: Config, most: int) -> tuple[tuple[Card, ...], tuple[Sign, ...], str]:
    """Cards of both splits, the numbers counted from the pseudo-masks, and a sentence on what is shown."""
    cards, signs, notes, reasons, classes = [], (), [], [], None
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
        looked = [samples[number] for number in _spread(len(samples), MOST_SCANNED)]
        scans = [_scan(run, one, steps[-1][0], classes) for one in looked]
        signs += _counted(scans)
        chosen = _chosen(scans, most // len(present))
        cards += [_card(run, named, steps, scan, classes) for scan in chosen]
        notes.append(_note(named, len(chosen), len(looked), len(samples), any(scan.iou is not None for scan in scans)))
    if not present:
        return (), (), "The run has no masks yet, so there is no gallery."
    return tuple(cards), signs, " ".join(notes + reasons) or "None of the run's masks belongs to an image of its data."


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
        raise _broken(path, f"it can't be read as a mask ({error})") from error


def _truth(sample: Sample) -> UInt8[np.ndarray, "H W"] | None:
    """The user's mask; None where there is none or it can't be read (evaluation has said so already)."""
    if sample.mask is None:
        return None
    try:
        return read_mask(sample.mask)
    except DataError:
        return None


def _scan(run: Path, sample: Sample, last: str, classes: ClassSet) -> _Scan:
    mask = _own_mask(run / last / f"{sample.id}.png")
    if mask is None:
        return _Scan(sample, None, None, None, ())
    truth, iou = _truth(sample), None
    if truth is not None:
        confusion = Confusion(len(classes) + 1)
        try:
            confusion.update(truth, mask)
            iou = float(confusion.miou())
        except DataError:  # another size or strange labels: evaluation names them, the gallery shows them unscored
            iou = None
    found = set(np.unique(mask).tolist())
    pseudo = last == "labels"
    return _Scan(
        sample=sample,
        iou=iou if iou is not None and math.isfinite(iou) else None,
        ignored=float((mask == IGNORE).mean()) if pseudo else None,
        foreground=float(((mask > 0) & (mask != IGNORE)).mean()),
        missing=tuple(tag for tag in sample.tags if classes.index(tag) + 1 not in found) if pseudo else (),
    )


def _counted(scans: Sequence[_Scan]) -> tuple[Sign, ...]:
    """What the pseudo-masks alone say, over the images that were looked at."""
    known = [scan for scan in scans if scan.ignored is not None]
    if not known:
        return ()
    over = f"over {len(known):,} pseudo-masks"
    return (
        Sign(
            "Images with a tag that got no pixel",
            sum(bool(scan.missing) for scan in known) / len(known),
            f"Share of images where at least one tag has no pixel in the pseudo-mask, {over}.",
            "When it is high: lower labels.confidence, check the tags, or give the classes better prompt words.",
        ),
        Sign(
            "Ignored pixels",
            float(np.mean([scan.ignored for scan in known])),
            f"Mean share of pixels that no label was sure enough for, {over}.",
            "When it is above a third: lower labels.confidence; the network learns nothing from ignored pixels.",
        ),
        Sign(
            "Foreground pixels",
            float(np.mean([scan.foreground for scan in known])),
            f"Mean share of pixels with the label of a tag, {over}.",
            "Compare with how much of a typical image your objects fill; if it is far less, lower "
            "labels.background_exponent or refine.box_threshold, if it is far more, raise them.",
        ),
    )


def _chosen(scans: Sequence[_Scan], most: int) -> list[_Scan]:
    """All scans, or the worst half of `most` and an even spread of the others, in the order given."""
    if len(scans) <= most:
        return list(scans)
    scored = sorted((number for number, scan in enumerate(scans) if scan.iou is not None), key=lambda n: scans[n].iou)
    worst = set(scored[: most // 2])
    others = [number for number in range(len(scans)) if number not in worst]
    kept = worst | {others[number] for number in _spread(len(others), most - len(worst))}
    return [scans[number] for number in sorted(kept)]


def _card(run: Path, split: str, steps: Sequence[tuple[str, str]], scan: _Scan, classes: ClassSet) -> Card:
    sample, palette = scan.sample, classes.palette()
    masks = {_sentence(title): _own_mask(run / folder / f"{sample.id}.png") for folder, title in steps}
    masks["Truth"] = _truth(sample)
    masks = {title: mask for title, mask in masks.items() if mask is not None}
    photo, problem = "", ""
    try:
        pixels = read_image(sample.image, max_side=THUMBNAIL_SIDE)
    except DataError as error:
        problem = str(error)
        height, width = size_within(*next(iter(masks.values())).shape, THUMBNAIL_SIDE)
    else:
        height, width = pixels.shape[:2]
        photo = _uri(Image.fromarray(pixels), "JPEG", quality=JPEG_QUALITY)
    used = sorted(set().union(*(np.unique(mask).tolist() for mask in masks.values())) - {0, IGNORE})
    tags = ", ".join(sample.tags)
    return Card(
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
        ignored=scan.ignored,
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
    return _uri(picture, "PNG", optimize=True, transparency=bytes(0 if label == 0 else 255 for label in labels))


def _uri(picture: Image.Image, format: str, **options) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --------------------------------------------------------------------------------------------------------------- render
@dataclass(frozen=True)
class Chart:
    """A drawn curve. Paths and ticks are in the units of a view box of `width` x `height`."""

    title: str
    line: str
    band: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    summary: str
    width: int = 340
    height: int = 190
    left: int = 46
    right: int = 10
    top: int = 10
    bottom: int = 26


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as shares of each true class. `largest`: (truth, called, share), the worst first."""

    names: tuple[str, ...]
    columns: tuple[str, ...]
    shares: tuple[tuple[float | None, ...], ...]
    largest: tuple[tuple[str, str, float], ...]
    left_out: int


def render(data: ReportData) -> str:
    """The page: one HTML document with its styles, its script and its pictures inside. Every text is escaped."""
    import jinja2

    source = resources.files("vpl").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "duration": duration, "short": short, "sentence": _sentence}
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return environment.from_string(source).render(
        data=data,
        headline=headline(data),
        results=[(one, row) for one in data.evaluations for row in one.rows],
        held_out_first=tuple(reversed(data.evaluations)),
        matrices=[(one, one.rows[-1], matrix(one, one.rows[-1])) for one in data.evaluations if one.rows[-1].confusion],
        charts=[chart(curve) for curve in data.curves],
        gap_chart=chart(data.gap.curve) if data.gap and data.gap.curve else None,
        scatter=_scatter(data.gap.points) if data.gap else (),
        total_seconds=sum(stage.seconds for stage in data.stages),
        splits=list(dict.fromkeys(card.split for card in data.cards)),
        scored=any(card.iou is not None for card in data.cards),
        policy=" ".join(f"'sha256-{one}'" for one in hashes),
    )


def write(run_folder: str | Path) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path.

    Raises:
        RunError: as `collect`, or the page can't be written.
    """
    path = Path(run_folder) / REPORT_FILE
    page = render(collect(run_folder))
    write_text_atomic(path, page)
    return path


def headline(data: ReportData) -> str:
    """The result in one or two sentences, with split and number of images."""
    if not data.evaluations:
        if data.absent["evaluation"] == _NOT_EVALUATED:
            return "Not evaluated yet."
        return "No truth masks were given: judge this run by its pictures and by the label-free numbers."
    sentences = []
    for one in reversed(data.evaluations):
        best = one.rows[-1]
        if best.miou is not None:
            sentences.append(f"{best.name}: {100 * best.miou:.1f}\u00a0% mIoU on {one.split}, {one.images:,} images.")
    return " ".join(map(_sentence, sentences))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """Seconds in the units that a person would say: 0.4 s, 41 s, 3 min 12 s, 2 h 04 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def short(value: float | None) -> str:
    """A number in three or four digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten), evenly spaced, that enclose [low, high]: about `most` of them."""
    raw = max((high - low) / most, abs(high) * 1e-9, 1e-12)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def chart(curve: Curve) -> Chart:
    """A curve as paths: the mean of each of CURVE_BINS bins as a line, least to most of a bin as a band."""
    steps, values = np.array(curve.steps), np.array(curve.values)
    bins = np.array_split(np.arange(len(steps)), len(steps) if len(steps) <= 2 * CURVE_BINS else CURVE_BINS)
    x = [float(steps[part].mean()) for part in bins]
    mean, low, high = ([float(one(values[part])) for part in bins] for one in (np.mean, np.min, np.max))
    bottom, top = min(low), max(high)
    if 0 <= bottom < top / 2:
        bottom = 0.0
    if top == bottom:
        bottom, top = bottom - 0.5, top + 0.5
    marks = ticks(bottom, top)
    bottom, top = marks[0], marks[-1]
    frame = Chart(_words(curve.name), "", "", (), (), "")
    across, down = frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom
    x_low, x_high = float(steps[0]), max(float(steps[-1]), float(steps[0]) + 1e-9)

    def place_x(value: float) -> float:
        return round(frame.left + across * (value - x_low) / (x_high - x_low), 1)

    def place_y(value: float) -> float:
        return round(frame.top + down * (top - value) / (top - bottom), 1)

    def path(xs: Iterable[float], ys: Iterable[float]) -> str:
        return "M" + "L".join(f"{place_x(a):g} {place_y(b):g}" for a, b in zip(xs, ys, strict=True))

    banded = any(a != b for a, b in zip(low, high, strict=True))
    lowest = int(values.argmin())
    return Chart(
        title=frame.title,
        line=path(x, mean),
        band=path(x + x[::-1], high + low[::-1]) + "Z" if banded else "",
        x_ticks=tuple((place_x(one), short(one)) for one in ticks(x_low, x_high) if x_low <= one <= x_high),
        y_ticks=tuple((place_y(one), short(one)) for one in marks),
        summary=f"{short(values[0])} at step {short(steps[0])}, {short(values[-1])} at step {short(steps[-1])}; "
        f"lowest {short(values[lowest])} at step {short(steps[lowest])}.",
    )


def matrix(evaluation: Evaluation, row: Row) -> Matrix:
    """Shares of each true class's pixels; past MOST_CONFUSED classes, those with the most wrong pixels stay."""
    counts = np.array(row.confusion, dtype=np.float64)
    size = len(counts)
    names = evaluation.classes if size == len(evaluation.classes) else ("background", *evaluation.classes)
    columns = (*names, "no label")[: counts.shape[1]]
    truth = counts.sum(1, keepdims=True)
    shares = counts / np.where(truth > 0, truth, 1)
    wrong = counts.copy()
    wrong[range(size), range(size)] = 0
    mass = wrong.sum(1) + wrong[:, :size].sum(0)
    occurring = [number for number in range(size) if counts[number].sum() + counts[:, number].sum() > 0]
    kept = sorted(sorted(occurring, key=lambda number: -mass[number])[:MOST_CONFUSED])
    across = [*kept, *([size] if counts.shape[1] > size and counts[:, size].any() else [])]
    off = [(shares[t, p], t, p) for t in range(size) for p in range(counts.shape[1]) if p != t and shares[t, p] > 0]
    return Matrix(
        names=tuple(names[number] for number in kept),
        columns=tuple(columns[number] for number in across),
        shares=tuple(tuple(float(shares[t, p]) if truth[t, 0] else None for p in across) for t in kept),
        largest=tuple((names[t], columns[p], float(share)) for share, t, p in sorted(off, key=lambda o: -o[0])[:8]),
        left_out=len(occurring) - len(kept),
    )


SCATTER_WIDTH, SCATTER_HEIGHT, SCATTER_MARGIN = 560, 400, 14


def _scatter(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points in the units of the scatter's view box, both axes with the same scale."""
    if not points:
        return ()
    places = np.array([(point.x, point.y) for point in points])
    low, high = places.min(0), places.max(0)
    room = np.array([SCATTER_WIDTH, SCATTER_HEIGHT]) - 2 * SCATTER_MARGIN
    scale = (room / np.maximum(high - low, 1e-12)).min()
    centred = (places - (low + high) / 2) * scale
    return tuple(
        Point(
            point.kind,
            point.label,
            point.name,
            round(float(SCATTER_WIDTH / 2 + x), 1),
            round(float(SCATTER_HEIGHT / 2 - y), 1),
        )
        for point, (x, y) in zip(points, centred, strict=True)
    )
