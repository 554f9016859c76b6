"""The modality gap of a run folder: how far regions lie from text and vision prototypes, in numbers and in a plane.

METHOD.md 3.5. The plane is a weighted PCA: with X the rows of regions, text and vision prototypes, each kind of row
having the same total weight w, its axes are the first two right singular vectors of sqrt(w) (X - mean).

Letters: N regions · D joint embedding width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from vpl.method.prototypes import CHECK_EVERY
from vpl.pages.charts import Curve, Point, words
from vpl.runs.files import damaged, read_facts, read_tensors
from vpl.runs.records import LEARNING_FILE, is_number, read_learning
from vpl.sampling import evenly

MOST_POINTS = 1200  # regions drawn in the modality gap
MOST_FILES = 2000  # photographs whose regions are read for it

_PAIRS = (("before", "after"), ("text", "vision"))
_GAP_WORDS = {
    ("kl", "text"): "KL divergence over the tags' regions, nats",
    ("kl", "before"): "KL divergence over all regions, nats",
    ("gap", "text"): "Distance of the mean region from the mean prototype",
    ("own", "text"): "Cosine of a region with its own prototype",
    ("other", "text"): "Cosine of a region with the best other prototype",
    ("accuracy", "text"): "Share of regions whose nearest prototype is their own",
}


@dataclass(frozen=True)
class GapNumber:
    """One quantity of prototypes.json, before (text) and after learning (vision); None: it has only one of them."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class ClassGap:
    """A class's regions and, as (text, vision): distance of their mean to its prototype, cosines with it and with the
    best other one (None: there is no other)."""

    name: str
    regions: int
    distance: tuple[float, float]
    own: tuple[float, float]
    other: tuple[float | None, float | None]


@dataclass(frozen=True)
class Gap:
    """The modality gap. `shown` of `regions` regions are in `points`; `variance` is the share that the plane keeps."""

    numbers: tuple[GapNumber, ...]
    by_class: tuple[ClassGap, ...]
    curve: Curve | None
    points: tuple[Point, ...]
    shown: int
    regions: int
    variance: float
    classes: tuple[str, ...]


def gap(run: Path) -> Gap | None:
    """The gap of a run folder; None where it has no prototypes yet.

    Raises:
        RunError: a file of the run is damaged.
    """
    learned = read_learning(run)
    tensors, facts = _tensors(run / "prototypes.safetensors")
    if not learned and not tensors:
        return None
    values = learned.get("curve", [])
    steps = [float(CHECK_EVERY * number) for number in range(len(values))]
    if steps and "steps" in learned:
        steps[-1] = float(learned["steps"])
    names = tuple(map(str, facts.get("classes", ())))
    points, shown, total, variance = _points(run, tensors, (*names, *map(str, facts.get("background", ()))), len(names))
    try:
        apart, by_class = _by_modality(learned.get("modality"))
    except KeyError as error:  # of text and vision one has a class that the other has not
        raise damaged(run / LEARNING_FILE, f"'modality' lacks {error}") from error
    return Gap(
        numbers=(*_gap_numbers(learned), *apart),
        by_class=by_class,
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
        if not is_number(value):
            continue
        for pair in _PAIRS:
            if stem and last in pair:
                found.setdefault((stem, pair[0]), [None, None])[pair.index(last)] = float(value)
    return tuple(
        GapNumber(_GAP_WORDS.get((stem, first), words(stem)), *values) for (stem, first), values in found.items()
    )


def _known(number: float | None) -> float | None:
    return None if number is None else float(number)


def _by_modality(tree: Mapping | None) -> tuple[tuple[GapNumber, ...], tuple[ClassGap, ...]]:
    """How well a line tells regions from prototypes, and each class; both empty for runs that did not measure it."""
    if tree is None:
        return (), ()
    text, vision = tree["text"], tree["vision"]
    numbers = [_known(one["separability"]) for one in (text, vision)]
    rows = tuple(
        ClassGap(
            name,
            int(row["regions"]),
            (float(row["distance"]), float(vision["classes"][name]["distance"])),
            (float(row["own"]), float(vision["classes"][name]["own"])),
            (_known(row["other"]), _known(vision["classes"][name]["other"])),
        )
        for name, row in text["classes"].items()
    )
    apart = GapNumber(
        "Regions and classes' prototypes told apart by a line (balanced accuracy; 0.5: not at all)", *numbers
    )
    return (apart,), rows


def _tensors(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors of a safetensors file of ours and the facts beside them; both empty where there is no file."""
    if not path.is_file():
        return {}, {}
    tensors = {key: one.to(torch.float32).numpy() for key, one in read_tensors(path).items()}
    if not all(np.isfinite(one).all() for one in tensors.values() if one.ndim == 2):
        raise damaged(path, "its embeddings are not finite")
    return tensors, read_facts(path)


def _files(folder: Path) -> list[Path]:
    """The files of the last round: roundN/PHOTOGRAPH.st; vpl 0.1 wrote roundN-BATCH.safetensors."""
    found = [*folder.glob("round*/**/*.st"), *folder.glob("round*-*.safetensors")]
    number = {path: int("0" + re.sub(r"\D", "", path.relative_to(folder).parts[0].partition("-")[0])) for path in found}
    return sorted(path for path in found if number[path] == max(number.values()))


def _regions(run: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Embeddings (n, D) and class numbers (n,) of the last round's files, in their order."""
    embeddings, labels = [], []
    for path in evenly(_files(run / "regions"), MOST_FILES):
        part, _ = _tensors(path)
        if not {"embeddings", "class"} <= part.keys() or len(part["embeddings"]) != len(part["class"]):
            raise damaged(path, "it has no 'embeddings' and 'class' of one length")
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
    chosen = evenly(range(total), MOST_POINTS)
    groups = [rows[chosen], *prototypes.values()]
    if len({group.shape[-1] for group in groups}) != 1:
        raise damaged(run / "prototypes.safetensors", "prototypes and regions differ in width")
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
