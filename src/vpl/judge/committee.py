"""What a committee of looks at each image agrees on: label maps to compare settings with where there is no truth.

    look     maker × encoder scale × mirrored or not
    makers   GradCAM seeds, refined · similarity maps of the text prototypes, refined · patches matched with the words
    vote     mean over all looks of the label shares
    opinion  most probable label after the CRF of the votes

The looks err in different places, so that their mean is far better than any of them (docs/explanation/decisions.md). It
needs no threshold of its own: the background exponent is averaged over, and the third maker has none. That maker is
only as good as the CLIP's patches match words. All of it is ours; METHOD.md 8 asks for the use. No truth is opened.

Letters: K tags of one image · L labels · H W pixels · h w patch grid · P prototypes · D joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vpl.clip.model import Features
from vpl.config import Config
from vpl.judge.bench import Bench
from vpl.method import refine
from vpl.method.masks import pseudo_mask
from vpl.method.metrics import Confusion
from vpl.method.views import View

SCALES = (0.75, 1.0, 1.25, 1.5)
"""Of the encoder, times the configured one."""
EXPONENTS = (1.0, 1.5, 2.0, 3.0)
"""Background exponents that a seed's label shares are averaged over."""
RATIO = 3.0
"""The committee's τI over CLIP's own temperature: the paper's 0.03 over 0.01."""
VALUES: dict[str, float] = {"prototypes.phi": 0.5, "refine.box_threshold": 0.4, "labels.background_exponent": 1.0}
"""Its values of what is tuned, so that its opinion does not depend on the setting that it judges."""
Votes = list[Float[Tensor, "L H W"]]
"""For each image the shares of [background; tags]."""
Maker = Callable[[Bench, Config, tuple[int, ...], Features], Votes]
"""Bench, configuration, numbers of some of its images and their features -> what one maker says of them."""


def settled(bench: Bench, config: Config) -> Config:
    """`config` with the committee's own values of everything that is tuned, and the fast CRF."""
    own = {"prototypes.image_temperature": RATIO / float(bench.clip.logit_scale), "crf.mode": "fast"}
    return config.with_values(VALUES | own)


def opinion(bench: Bench, config: Config) -> tuple[UInt8[np.ndarray, "height width"], ...]:
    """The committee's label map of each image, at the sizes that the views name; the same for every setting."""
    config = settled(bench, config)

    def one(shares: Float[Tensor, "L H W"], view: View) -> UInt8[np.ndarray, "height width"]:
        return pseudo_mask(shares, view, config.labels, config.crf)[0]

    return bench.once("opinion", config, lambda: tuple(bench.drawn(one, votes(bench, config))), most=1)


def votes(bench: Bench, config: Config) -> Votes:
    """The mean of the looks' label shares for each image; the encoder sees an image once for each scale and mirror."""
    makers = [_gradcam_of(bench, config), _similarity]
    if len(bench.text(config)) > len(bench.classes):
        makers.append(_patches)  # without background words every patch would be a tag's
    count = 2 * len(SCALES) * len(makers)
    found = [torch.zeros(len(view.tags) + 1, *view.image.shape[:2]) for view in bench.views]
    for mirrored in (False, True):
        twin = bench.mirrored() if mirrored else bench
        for scale in SCALES:
            seen = config.with_values({"clip.scale": config.clip.scale * scale})
            looks = twin.passed(
                seen.clip, lambda *given, twin=twin, seen=seen: [one(twin, seen, *given) for one in makers]
            )
            for members, shares in looks:
                for look in shares:
                    for number, one in zip(members, look, strict=True):
                        found[number] += (one.flip(2) if mirrored else one) / count
    return found


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


# --------------------------------------------------------------------------------------------------------------- makers
def _gradcam_of(bench: Bench, config: Config) -> Maker:
    """The configured seeds, from prototypes that are learned once, on the images as they are."""
    table, scale = bench.table(config)

    def make(twin: Bench, seen: Config, members: tuple[int, ...], features: Features) -> Votes:
        return _shares(twin, members, twin.refined_of(members, features, table, scale, seen))

    return make


def _similarity(twin: Bench, seen: Config, members: tuple[int, ...], features: Features) -> Votes:
    """Each patch's cosine with its tag's text prototype."""
    seen = seen.with_values({"seeds.kind": "similarity"})
    return _shares(twin, members, twin.refined_of(members, features, twin.text(seen), 1.0, seen))


def _patches(twin: Bench, seen: Config, members: tuple[int, ...], features: Features) -> Votes:
    """Softmax over the image's tags and the background words of each patch's cosines, at CLIP's own temperature."""
    table, count, found = twin.text(seen), len(twin.classes), []
    for number, patches in zip(members, F.normalize(features.patches, dim=2), strict=True):
        tags = list(twin.views[number].tags)
        rows = table[[*tags, *range(count, len(table))]].to(patches)
        likely = (twin.clip.logit_scale * patches @ rows.T).softmax(dim=1)
        background = likely[:, len(tags) :].sum(dim=1, keepdim=True)
        shares = torch.cat([background, likely[:, : len(tags)]], dim=1).T.unflatten(1, features.grid)
        found.append(refine.upsample(shares.float(), twin.views[number].image.shape[:2]).cpu())
    return found


def _shares(twin: Bench, members: tuple[int, ...], cams: Sequence[Float[Tensor, "_ h w"]]) -> Votes:
    """Label shares of seeds, mean over the background exponents."""
    found = []
    for number, cam in zip(members, cams, strict=True):
        full = refine.upsample(cam.float(), twin.views[number].image.shape[:2]).cpu()
        rest, total = (1 - full.amax(dim=0)).clamp(min=0), full.sum(dim=0)
        backgrounds = torch.stack([rest**exponent for exponent in EXPONENTS])
        sums = (backgrounds + total).clamp(min=1e-6)
        background = (backgrounds / sums).mean(dim=0, keepdim=True)
        found.append(torch.cat([background, full * (1 / sums).mean(dim=0)]))
    return found
