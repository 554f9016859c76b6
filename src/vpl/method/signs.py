"""Signs of failure, each with what to do about it (METHOD.md 7).

    without truth: agreement of seeds under a mirror and under scale, tag consistency, share of pixels that the CRF
                   changes, shares of pixels that are ignored and that carry a tag, images with a tag without a pixel
    with truth:    completeness of seeds, co-occurrence error, noise of masks, the gap between two splits

A sign is a number, what it means, and one sentence of advice; the advice is empty while the number is fine. The limits
are rules of thumb of ours: they choose when to speak and change no result.

Letters: C classes · H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import UInt8

from vpl.classes import IGNORE
from vpl.method import metrics

BOUNDARY_TOLERANCE = 2
"""Pixels by which two boundaries may differ and still agree. [ours]"""


@dataclass(frozen=True)
class Sign:
    """One number, what it means, and what to do; `advice` is "" where nothing is to be done, `value` None: unknown.

    `images`: of how many photographs it is the mean; 0 where it was not measured photograph by photograph.
    """

    value: float | None
    meaning: str
    advice: str
    images: int = 0


@dataclass(frozen=True)
class _Rule:
    """When to speak: the value is below `low` or above `high`."""

    meaning: str
    advice: str
    low: float = -math.inf
    high: float = math.inf

    def sign(self, values: float | Sequence[float]) -> Sign:
        known = np.asarray(values, dtype=np.float64).ravel()
        known = known[~np.isnan(known)]
        if not known.size:
            return Sign(None, self.meaning, "")
        mean = float(known.mean())
        advice = self.advice if mean < self.low or mean > self.high else ""
        return Sign(mean, self.meaning, advice, 0 if np.isscalar(values) else known.size)


LABEL_FREE = {
    "mirror agreement": _Rule(
        "Share of the pixels whose seed label is the same when the image is mirrored.",
        "Seeds hang on chance details: set clip.scale to 1.5, or use a larger CLIP.",
        low=0.85,
    ),
    "scale agreement": _Rule(
        "Share of the pixels whose seed label is the same when the encoder sees the image half as large again.",
        "Objects are near the patch size: set clip.scale higher, and compare with vpl compare.",
        low=0.8,
    ),
    "tag consistency": _Rule(
        "Share of the regions whose nearest class prototype is their own tag.",
        "Regions don't look like their tags: check the tags, then lower prototypes.phi or try prototypes.tags=own.",
        low=0.6,
    ),
    "CRF change": _Rule(
        "Share of the pixels whose label the CRF changes.",
        "The CRF works against the seeds: lower crf.bilateral_weight, or raise labels.background_exponent when objects "
        "are eaten up.",
        high=0.15,
    ),
    "ignored pixels": _Rule(
        "Share of the pixels of the pseudo-masks that are left to the network (255).",
        "Little is left to learn from: lower labels.confidence.",
        high=0.4,
    ),
    "foreground pixels": _Rule(
        "Share of the pixels of the pseudo-masks that carry a tag's label.",
        "Masks are nearly empty or nearly full: if your objects fill more of an image, lower "
        "labels.background_exponent or refine.box_threshold; if less, raise them.",
        low=0.02,
        high=0.9,
    ),
    "tags without a pixel": _Rule(
        "Share of the images where at least one tag has no pixel in the pseudo-mask.",
        "Tagged objects are lost: check the tags, lower labels.confidence, or give the classes better prompt words.",
        high=0.1,
    ),
}

WITH_TRUTH = {
    "completeness": _Rule(
        "Share of an object's pixels that its refined seed covers.",
        "Objects are found in part: lower labels.background_exponent or refine.box_threshold.",
        low=0.5,
    ),
    "seed precision": _Rule(
        "Share of a refined seed that lies on its object.",
        "Seeds run over: raise labels.background_exponent, and add background words for what lies around the objects.",
        low=0.5,
    ),
    "concentration": _Rule(
        "Share of the seed's activation on the object that its most activated quarter holds; 0.25 is even.",
        "Seeds see one part of the object: lower prototypes.phi, so that prototypes see whole objects.",
        high=0.5,
    ),
    "co-occurrence": _Rule(
        "Share of a refined seed that lies on another class which often comes with its own.",
        "Classes that come together are confused: add their surroundings as background words, or photographs with one "
        "of them alone.",
        high=0.2,
    ),
    "components per object": _Rule(
        "Parts of a predicted class for each part of the true one; 1 is clean.",
        "Masks are noisy: raise crf.gaussian_weight or crf.rounds.",
        high=2.0,
    ),
    "boundary F": _Rule(
        "Agreement of mask boundaries with the true ones, within two pixels.",
        "Boundaries are off: check that crf.enabled is true; a larger clip.scale gives finer seeds.",
        low=0.3,
    ),
    "train/val gap": _Rule(
        "mIoU of the masks after the CRF, on train, less that of the network on the held-out split.",
        "The network has learned the training images by heart: use fewer train.steps, or more photographs.",
        high=0.1,
    ),
}


def agreement(first: UInt8[np.ndarray, "H W"], second: UInt8[np.ndarray, "H W"]) -> float:
    """Share of the pixels with the same label, counted over those that carry a class in either map; 1 when none does.

    255 in either map leaves a pixel out.
    """
    seen = (first != IGNORE) & (second != IGNORE)
    some = seen & ((first > 0) | (second > 0))
    return float((first == second)[some].mean()) if some.any() else 1.0


def changed(before: UInt8[np.ndarray, "H W"], after: UInt8[np.ndarray, "H W"]) -> float:
    """Share of all pixels whose label is another."""
    return float((before != after).mean())


def label_free(values: Mapping[str, float | Sequence[float]]) -> dict[str, dict]:
    """Signs that need no truth, as plain data for metrics.json: name -> {value, meaning, advice, images}.

    Args:
        values: by name of `LABEL_FREE`, one number or one per image (nan: unknown). Missing names are left out.
    """
    return _signs(LABEL_FREE, values)


def with_truth(values: Mapping[str, float | Sequence[float]]) -> dict[str, dict]:
    """Signs that were measured against the truth, as plain data; see `label_free`. Names of `WITH_TRUTH`."""
    return _signs(WITH_TRUTH, values)


def _signs(rules: Mapping[str, _Rule], values: Mapping[str, float | Sequence[float]]) -> dict[str, dict]:
    return {name: asdict(rule.sign(values[name])) for name, rule in rules.items() if name in values}


def of_maps(
    seeds: UInt8[np.ndarray, "H W"],
    likely: UInt8[np.ndarray, "H W"] | None,
    mask: UInt8[np.ndarray, "H W"] | None,
    tags: Collection[int],
) -> dict[str, float]:
    """What one image's label maps say without truth: of the refined seeds, the same after the CRF, the pseudo-mask.

    Args:
        tags: label values of the image's tags.
    """
    found = {} if mask is None else of_mask(mask, tags)
    if likely is not None:
        found["CRF change"] = changed(seeds, likely)
    return found


def of_mask(mask: UInt8[np.ndarray, "H W"], tags: Collection[int]) -> dict[str, float]:
    """What a pseudo-mask alone says, by name of `LABEL_FREE`. `tags`: label values of the image's tags."""
    return {
        "ignored pixels": metrics.ignored_share(mask),
        "foreground pixels": float(((mask > 0) & (mask != IGNORE)).mean()),
        "tags without a pixel": float(not set(tags) <= set(np.unique(mask).tolist())),
    }


def against_truth(
    seeds: UInt8[np.ndarray, "H W"], mask: UInt8[np.ndarray, "H W"], truth: UInt8[np.ndarray, "H W"]
) -> dict[str, float]:
    """What one image's label maps say against the truth: refined seeds and a mask, as label maps.

    Returns:
        One number by name of `WITH_TRUTH`; nan where the image has no object to count. `concentration` needs the seed's
        strength and is not in it: see `metrics.completeness`.
    """
    valid = truth != IGNORE
    labels = [int(one) for one in np.union1d(np.unique(truth[valid]), np.unique(seeds)) if one not in (0, IGNORE)]
    parts = [metrics.completeness((seeds == one).astype(np.float32), truth == one, 0.5, valid) for one in labels]
    others = (truth > 0) & valid
    wrong = [metrics.co_occurrence_error(seeds == one, truth == one, others & (truth != one)) for one in labels]
    scores = metrics.boundary_f(truth, mask, BOUNDARY_TOLERANCE)
    return {
        "completeness": _mean([one.recall for one in parts]),
        "seed precision": _mean([one.precision for one in parts]),
        "co-occurrence": _mean(wrong),
        "components per object": metrics.components_per_object(truth, mask),
        "boundary F": _mean(list(scores.values())),
    }


def _mean(values: Sequence[float]) -> float:
    known = [one for one in values if not math.isnan(one)]
    return sum(known) / len(known) if known else math.nan
