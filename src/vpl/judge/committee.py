"""What a committee of looks at each image agrees on: label maps to compare settings with where there is no truth.

    looks    vpl.method.looks, with the makers, scales and mirror images that are written here
    opinion  most probable label after the CRF of the votes

It needs no threshold of its own: the background exponent is averaged over. METHOD.md 8 asks for the use; the rest is
ours. No truth is opened.

Letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from vpl.config import Config
from vpl.judge.bench import Bench
from vpl.judge.packed import Packed
from vpl.method.metrics import Confusion

RATIO = 3.0
"""The committee's τI over CLIP's own temperature: the paper's 0.03 over 0.01."""
VALUES: dict[str, object] = {
    "prototypes.phi": 0.5,
    "refine.box_threshold": 0.4,
    "labels.background_exponent": 1.0,
    "looks.makers": ("gradcam", "similarity", "words"),
    "looks.scales": (0.75, 1.0, 1.25, 1.5),
    "looks.flip": True,
    "looks.exponents": (1.0, 1.5, 2.0, 3.0),
    "par.rounds": 0,
    "crf.mode": "fast",
}
"""Its values of what is tuned, so that its opinion does not depend on the setting that it judges, and its looks."""


def settled(bench: Bench, config: Config) -> Config:
    """`config` with the committee's own values of everything that is tuned, its looks, and the fast CRF."""
    return config.with_values(VALUES | {"prototypes.image_temperature": RATIO / float(bench.clip.logit_scale)})


def opinion(bench: Bench, config: Config) -> Packed:
    """The committee's label map of each image, at the sizes that the views name; the same for every setting."""
    config = settled(bench, config)
    return bench.once("opinion", config, lambda: bench.masks(config, ("crf",))["crf"], most=1)


def agreement(
    opinions: Sequence[UInt8[np.ndarray, "height width"]],
    masks: Sequence[UInt8[np.ndarray, "height width"]],
    count: int,
) -> Float[np.ndarray, " images"]:
    """mIoU of masks with the committee, in [0, 1], as one number per image whose mean is that of all images together.

    With I_ic and U_ic an image's intersection and union of label c, and IoU_c those of all n images, image i has
    mIoU + n mean_c (I_ic - IoU_c U_ic) / sum_i U_ic: its influence, whose spread gives the error of the mIoU.

    Args:
        count: label values, background included.
    """
    hits, unions = np.zeros((len(masks), count)), np.zeros((len(masks), count))
    for place, (one, other) in enumerate(zip(opinions, masks, strict=True)):
        confusion = Confusion(count)
        confusion.update(one, other)
        hits[place] = confusion.hits
        unions[place] = confusion.true + confusion.predicted - confusion.hits
    hits, unions = (one[:, unions.sum(axis=0) > 0] for one in (hits, unions))
    whole = unions.sum(axis=0)
    iou = hits.sum(axis=0) / whole
    return iou.mean() + len(masks) * ((hits - iou * unions) / whole).mean(axis=1)
