"""Agreement of label maps with the truth, and signs of failure in seeds and masks.

METHOD.md 6 and 7; nothing here is used by anything that learns.
    IoU_c  = M_cc / (sum_j M_cj + sum_i M_ic - M_cc),  mIoU = mean of IoU_c over the classes that occur at all
Label maps are uint8 (H, W): 0 background, c + 1 the class number c, 255 ignore.

Letters: C foreground classes, M the confusion matrix (rows: truth, columns: prediction), H W pixels, K objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from numpy import ndarray

from vpl.classes import IGNORE
from vpl.errors import ConfigError, DataError

EIGHT = np.ones((3, 3), dtype=bool)
"""Pixels that touch at an edge or a corner belong together."""


class Confusion:
    """One confusion matrix for a whole split; every score is computed from it once, never averaged over images.

    Pixels whose truth is 255 are not counted. A pixel whose prediction is 255 (the CRF was not confident) is a missed
    pixel of its true class: it lowers that class's IoU and recall, and no class's precision.

    Attributes:
        classes: number of label values, C + 1 with the background.
        matrix: int64 (classes, classes + 1): truth by prediction, in pixels; the last column counts predictions of 255.
        images: number of label maps counted.

    Raises:
        ConfigError: the number of classes is not 1 to 255.
    """

    def __init__(self, classes: int):
        if not 1 <= classes <= IGNORE:
            raise ConfigError(f"the confusion matrix is asked for {classes} classes; expected 1 to {IGNORE}.")
        self.classes = classes
        self.matrix = np.zeros((classes, classes + 1), dtype=np.int64)
        self.images = 0

    def update(self, truth: UInt8[ndarray, "H W"], prediction: UInt8[ndarray, "_ _"]) -> None:
        """Count one image.

        Raises:
            DataError: the two differ in size, or hold a label that is neither a class nor 255.
        """
        if truth.shape != prediction.shape:
            raise DataError(
                f"the prediction is {_size(prediction)} pixels but the truth {_size(truth)}; expected the same size. "
                "Write label maps at the size of the image on disk."
            )
        seen = truth != IGNORE
        true, predicted = truth[seen].astype(np.intp), prediction[seen].astype(np.intp)
        for name, labels in (("truth", true), ("prediction", predicted)):
            strange = labels[(labels >= self.classes) & (labels != IGNORE)]
            if strange.size:
                raise DataError(
                    f"the {name} holds label {strange[0]}; expected 0 to {self.classes - 1}, or {IGNORE} for ignore. "
                    "Check that the masks and the classes file belong together."
                )
        predicted[predicted == IGNORE] = self.classes
        width = self.classes + 1
        counts = np.bincount(true * width + predicted, minlength=self.classes * width)
        self.matrix += counts.reshape(self.classes, width)
        self.images += 1

    def merge(self, other: Confusion) -> Confusion:
        """The confusion matrix of both sets of images; neither is changed.

        Raises:
            ConfigError: they differ in the number of classes.
        """
        if other.classes != self.classes:
            raise ConfigError(
                f"confusion matrices of {self.classes} and {other.classes} classes can't be merged; "
                "expected the same class set."
            )
        both = Confusion(self.classes)
        both.matrix, both.images = self.matrix + other.matrix, self.images + other.images
        return both

    @property
    def hits(self) -> Int64[ndarray, " classes"]:
        """Pixels of each class that were predicted as that class."""
        return np.diagonal(self.matrix)

    @property
    def true(self) -> Int64[ndarray, " classes"]:
        """Pixels of each class in the truth."""
        return self.matrix.sum(axis=1)

    @property
    def predicted(self) -> Int64[ndarray, " classes"]:
        """Pixels that were predicted as each class."""
        return self.matrix[:, : self.classes].sum(axis=0)

    def iou(self) -> Float[ndarray, " classes"]:
        """Intersection over union of each class in [0, 1]; nan where it occurs neither in truth nor in prediction."""
        return _share(self.hits, self.true + self.predicted - self.hits)

    def precision(self) -> Float[ndarray, " classes"]:
        """Share of each class's predicted pixels that are right, in [0, 1]; nan where it was never predicted."""
        return _share(self.hits, self.predicted)

    def recall(self) -> Float[ndarray, " classes"]:
        """Share of each class's true pixels that were found, in [0, 1]; nan where it does not occur in the truth."""
        return _share(self.hits, self.true)

    def miou(self) -> float:
        """The mean IoU over the classes that occur in truth or prediction; nan when nothing was counted."""
        iou = self.iou()
        occurs = ~np.isnan(iou)
        return float(iou[occurs].mean()) if occurs.any() else math.nan

    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are right, in [0, 1]; nan when nothing was counted."""
        return float(_share(self.hits.sum(), self.matrix.sum()))

    def ignored(self) -> float:
        """Share of the counted pixels that were predicted as 255, in [0, 1]; nan when nothing was counted."""
        return float(_share(self.matrix[:, -1].sum(), self.matrix.sum()))

    def to_dict(self) -> dict[str, object]:
        """Plain data for metrics.json: `images`, and `matrix` as a list of rows, 255 last."""
        return {"images": self.images, "matrix": self.matrix.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Confusion:
        """The confusion matrix that `to_dict` wrote.

        Raises:
            DataError: the data are not what `to_dict` writes.
        """
        try:
            matrix, images = np.array(data["matrix"]), data["images"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the confusion matrix can't be read ({error}); evaluate again.") from error
        if (
            matrix.ndim != 2
            or matrix.shape[1] != matrix.shape[0] + 1
            or matrix.dtype.kind != "i"
            or (matrix < 0).any()
            or type(images) is not int
            or images < 0
        ):
            raise DataError(
                f"the confusion matrix is {matrix.shape} of {matrix.dtype} over {images!r} images; expected whole "
                "numbers in (classes, classes + 1). Evaluate again."
            )
        confusion = cls(len(matrix))
        confusion.matrix, confusion.images = matrix.astype(np.int64), images
        return confusion


def _share(part, whole):
    """part / whole as float64; nan where whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, math.nan), where=whole > 0)


def _size(labels: ndarray) -> str:
    return " x ".join(map(str, labels.shape))


@dataclass(frozen=True)
class Completeness:
    """How much of an object its seed covers. All in [0, 1]; nan where there is nothing to divide by.

    Attributes:
        recall: share of the object's pixels above the threshold.
        precision: share of the pixels above the threshold that lie on the object.
        concentration: share of the activation on the object that its most activated quarter of pixels holds: 0.25 is
            even, 1 means that the seed sees one part alone.
    """

    recall: float
    precision: float
    concentration: float


def completeness(
    seed: Float[ndarray, "H W"],
    target: Bool[ndarray, "H W"],
    threshold: float | int,
    valid: Bool[ndarray, "H W"] | None = None,
) -> Completeness:
    """Recall, precision and concentration of one seed map on the pixels of its class.

    Args:
        seed: the map in [0, 1] at the truth's size.
        target: the true pixels of the class.
        threshold: a pixel is found when its seed is above it.
        valid: pixels that count (truth not 255); None: all.
    """
    valid = np.ones_like(target) if valid is None else valid
    found, target = (seed > threshold) & valid, target & valid
    hits = (found & target).sum()
    activation = np.sort(np.clip(seed[target], 0, None).astype(np.float64))[::-1]
    quarter = math.ceil(activation.size / 4)
    return Completeness(
        recall=float(_share(hits, target.sum())),
        precision=float(_share(hits, found.sum())),
        concentration=float(_share(activation[:quarter].sum(), activation.sum())),
    )


def co_occurrence_error(
    seed: Bool[ndarray, "H W"], target: Bool[ndarray, "H W"], ground: Bool[ndarray, "H W"]
) -> float:
    """Share of a class's seed that lies on its usual ground and not on the class (a boat's seed on water).

    Args:
        seed: the thresholded seed of the class.
        target: the true pixels of the class.
        ground: the true pixels of the ground that usually comes with it.

    Returns:
        A share in [0, 1]; nan for an empty seed.
    """
    return float(_share((seed & ground & ~target).sum(), seed.sum()))


def components(labels: UInt8[ndarray, "H W"]) -> dict[int, int]:
    """Number of connected parts (edges or corners touch) of each label but 0 and 255 in a label map."""
    from scipy import ndimage  # 0.15 s to import: where there is nothing to do it is not needed

    return {
        int(label): int(ndimage.label(labels == label, structure=EIGHT)[1])
        for label in np.unique(labels)
        if label not in (0, IGNORE)
    }


def components_per_object(truth: UInt8[ndarray, "H W"], prediction: UInt8[ndarray, "H W"]) -> float:
    """Parts of the predicted classes for each part of the true classes: 1 is clean, above 1 is noise.

    Counted over the classes of the truth that were predicted; nan where there is none. Pixels whose truth is 255 are
    left out of the prediction.
    """
    true = components(truth)
    made = components(np.where(truth == IGNORE, np.uint8(0), prediction))
    shared = true.keys() & made.keys()
    return float(_share(sum(made[label] for label in shared), sum(true[label] for label in shared)))


def ignored_share(labels: UInt8[ndarray, "H W"]) -> float:
    """Share of the pixels of a label map that are 255, in [0, 1]."""
    return float((labels == IGNORE).mean())


def boundary_f(
    truth: UInt8[ndarray, "H W"], prediction: UInt8[ndarray, "H W"], tolerance: float | int
) -> dict[int, float]:
    """Boundary F-score of each class (not 0, not 255) that occurs in the truth or the prediction, in [0, 1].

    The boundary of a class is its pixels with an edge neighbour outside the class; the rim of the image is none. A
    boundary pixel agrees when one of the other map's boundary lies within `tolerance`. F is the harmonic mean of the
    agreeing shares of both boundaries; 0 where only one map has the class; a class that fills both maps has no
    boundary and gets 1. Pixels whose truth is 255 count in neither.

    Args:
        tolerance: Euclidean distance in pixels; 0 asks for the very same pixel.
    """
    valid = truth != IGNORE
    labels = np.union1d(np.unique(truth[valid]), np.unique(prediction[valid]))
    scores = {}
    for label in (int(one) for one in labels if one not in (0, IGNORE)):
        true, made = (truth == label) & valid, (prediction == label) & valid
        if not true.any() or not made.any():
            scores[label] = 0.0
            continue
        edges, guesses = _boundary(true, valid), _boundary(made, valid)
        precision, recall = _near(guesses, edges, tolerance), _near(edges, guesses, tolerance)
        scores[label] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return scores


def _boundary(mask: Bool[ndarray, "H W"], valid: Bool[ndarray, "H W"]) -> Bool[ndarray, "H W"]:
    """The mask's pixels that touch a valid pixel outside it."""
    from scipy import ndimage

    return mask & ndimage.binary_dilation(valid & ~mask)


def _near(points: Bool[ndarray, "H W"], others: Bool[ndarray, "H W"], tolerance: float | int) -> float:
    """Share of `points` that have one of `others` within the tolerance; 1 without points."""
    from scipy import ndimage

    if not points.any():
        return 1.0
    if not others.any():
        return 0.0
    return float((ndimage.distance_transform_edt(~others)[points] <= tolerance).mean())
