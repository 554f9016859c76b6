"""The modality gap: how far regions of images lie from prototypes of texts, and from those learned (METHOD.md 3.5).

    gap = ‖ mean of x - mean of the C classes' prototypes ‖,  x and prototypes unit

One definition for every place that tells it. Background prototypes are left out: regions of tags have no part in them.

Letters: C classes, P = C + B prototypes, N regions, D joint width, N and M rows of two sets of embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int64
from numpy import ndarray
from torch import Tensor

from vpl.errors import DataError
from vpl.method.prototypes import mean_kl


@dataclass(frozen=True)
class Report:
    """METHOD.md 3.5, over the regions whose class is known. Cosines are in [-1, 1], accuracies in [0, 1].

    Attributes:
        regions: number of regions N.
        kl_text, kl_vision: mean KL(q ‖ p) in nats with the text and with the vision prototypes at τI.
        gap_text, gap_vision: `modality_gap` of the regions and the C classes' prototypes.
        own_text, own_vision: mean cosine of a region with its own prototype.
        other_text, other_vision: mean cosine of a region with the best other class's prototype; -inf with one class.
        accuracy_text, accuracy_vision: share of the regions whose nearest class is their own.
    """

    regions: int
    kl_text: float
    kl_vision: float
    gap_text: float
    gap_vision: float
    own_text: float
    own_vision: float
    other_text: float
    other_vision: float
    accuracy_text: float
    accuracy_vision: float


def report(
    x: Float[Tensor, "N D"],
    q: Float[Tensor, "N P"],
    own: Int[Tensor, " N"],
    text: Float[Tensor, "P D"],
    vision: Float[Tensor, "P D"],
    classes: int,
    temperature: float,
) -> Report:
    """How far the regions lie from the text and from the vision prototypes (METHOD.md 3.5).

    Args:
        x: unit region embeddings.
        q: their soft labels.
        own: each region's class, from the tag that made it.
        text, vision: unit prototypes, the classes first.
        classes: C; all but the KL is over these rows alone.
        temperature: τI, for both KL.

    Raises:
        DataError: there is no region.
    """
    if not len(x):
        raise DataError("there is no region to report on; lower prototypes.phi or use more images.")
    tables = text[:classes], vision[:classes]
    (own_t, other_t, right_t), (own_v, other_v, right_v) = (_nearness(x, own, table) for table in tables)
    gap_text, gap_vision = (modality_gap(x.cpu().numpy(), table.cpu().numpy()) for table in tables)
    return Report(
        regions=len(x),
        kl_text=mean_kl(x, q, text, temperature),
        kl_vision=mean_kl(x, q, vision, temperature),
        gap_text=gap_text,
        gap_vision=gap_vision,
        own_text=own_t,
        own_vision=own_v,
        other_text=other_t,
        other_vision=other_v,
        accuracy_text=right_t,
        accuracy_vision=right_v,
    )


def _nearness(x: Tensor, own: Tensor, prototypes: Tensor) -> tuple[float, float, float]:
    """Mean cosine with the own prototype, with the best other one, and the share where the own one is nearest."""
    cosine = x @ prototypes.T
    mine = cosine.gather(1, own[:, None])
    others = cosine.scatter(1, own[:, None], -math.inf).amax(1)
    return mine.mean().item(), others.mean().item(), (mine[:, 0] > others).double().mean().item()


def modality(
    x: Float[ndarray, "N D"],
    own: Int[ndarray, " N"],
    text: Float[ndarray, "P D"],
    vision: Float[ndarray, "P D"],
    names: Sequence[str],
) -> dict:
    """How far the regions lie from text and from vision prototypes, in all and for each class, as plain data.

    Args:
        x: unit embeddings of the tags' regions.
        own: their class numbers, from 0.
        text, vision: unit prototypes, the classes first.
        names: the C classes.

    Returns:
        "text" and "vision", each with `separability` (balanced accuracy of a line between both sets, 0.5 to 1; None
        with too few rows) and `classes`: name -> {regions, distance, own, other}: distance of the class's mean region
        to its prototype, mean cosine with it and with the best other class. Classes without a region are left out.
    """
    return {name: _modality(x, own, table[: len(names)], names) for name, table in (("text", text), ("vision", vision))}


def _modality(x: ndarray, own: ndarray, table: ndarray, names: Sequence[str]) -> dict:
    distances = class_distances(x, table, own.astype(np.int64))
    cosines = x @ table.T
    mine = cosines[np.arange(len(x)), own]
    others = np.where(np.arange(len(table)) == own[:, None], -np.inf, cosines).max(axis=1)
    rows = {
        name: {
            "regions": int((own == number).sum()),
            "distance": float(distances[number]),
            "own": float(mine[own == number].mean()),
            "other": _finite(float(others[own == number].mean())),
        }
        for number, name in enumerate(names)
        if (own == number).any()
    }
    enough = min(len(x), len(table)) >= 2
    return {
        "separability": separability(x, table) if enough else None,
        "classes": rows,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def modality_gap(first: Float[ndarray, "N D"], second: Float[ndarray, "M D"]) -> float:
    """Distance between the means of two sets of embeddings: for unit rows, from 0 to 2. Rows are used as they are.

    Raises:
        DataError: a set is empty.
    """
    _check_sets(first, second, 1)
    return float(np.linalg.norm(first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)))


def class_distances(
    first: Float[ndarray, "N D"], second: Float[ndarray, "P D"], own: Int64[ndarray, " N"]
) -> Float[ndarray, " P"]:
    """Distance between each class's mean row of `first` and its row of `second`; nan for a class without rows.

    Args:
        first: region embeddings.
        second: one prototype per class.
        own: the class of each row of `first`.
    """
    counts = np.bincount(own, minlength=len(second)).astype(np.float64)[:, None]
    sums = np.zeros(second.shape)
    np.add.at(sums, own, first)
    means = np.divide(sums, counts, out=np.full(sums.shape, math.nan), where=counts > 0)
    return np.linalg.norm(means - second, axis=1)


def separability(
    first: Float[ndarray, "N D"], second: Float[ndarray, "M D"], ridge: float = 1e-3, folds: int = 5
) -> float:
    """How well a line tells two sets of embeddings apart: balanced accuracy on rows that it was not fitted to.

    Ridge regression onto +1 and -1 with both sets weighted equally, in closed form; row i of each set is held out in
    fold i mod `folds`. Deterministic. 0.5 is chance, 1 is complete separation: the two modalities share no region.

    Args:
        ridge: weight of the penalty, in units of the mean squared length of the centred rows.
        folds: parts; each is held out once.

    Raises:
        DataError: a set has fewer than two rows.
    """
    _check_sets(first, second, 2)
    folds = min(folds, len(first), len(second))
    right = []
    for part in range(folds):
        held = [np.arange(len(rows)) % folds == part for rows in (first, second)]
        kept = [rows[~out].astype(np.float64) for rows, out in zip((first, second), held, strict=True)]
        middle = (kept[0].mean(axis=0) + kept[1].mean(axis=0)) / 2
        centred = [rows - middle for rows in kept]
        spread = sum(rows.T @ rows / (2 * len(rows)) for rows in centred)
        penalty = ridge * np.trace(spread) + np.finfo(np.float64).tiny
        weights = np.linalg.lstsq(
            spread + penalty * np.eye(len(spread)), (centred[0].mean(axis=0) - centred[1].mean(axis=0)) / 2, rcond=None
        )[0]
        for rows, out, sign in ((first, held[0], 1), (second, held[1], -1)):
            score = sign * ((rows[out] - middle) @ weights)
            right.append(np.mean((score > 0) + 0.5 * (score == 0)))
    return float(np.mean(right))


def _check_sets(first: ndarray, second: ndarray, least: int) -> None:
    if min(len(first), len(second)) < least:
        raise DataError(
            f"the sets of embeddings have {len(first)} and {len(second)} rows; expected at least {least} in each."
        )
