"""From refined seeds to label maps and pseudo-masks (METHOD.md 4).

    scores = [ (1 - max_k seed_k)^a ; seeds ] at the view's size      label map = argmax
    probabilities = CRF( PAR( scores, image ), image )
    pseudo-mask = argmax, and 255 where it is less probable than `confidence`         PAR only where it is asked for: 5b

Letters: K tags of one image · S = K + 1 · h w patch grid · H W pixels of the view · height width of the file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vpl.classes import IGNORE
from vpl.config import Config
from vpl.method import crf, refine
from vpl.method.par import par
from vpl.method.views import View


def label_map(
    maps: Float[Tensor, "K h w"], view: View, exponent: float
) -> tuple[UInt8[np.ndarray, "height width"], Float[Tensor, "K+1 H W"]]:
    """Labels of seeds without CRF, and the scores [background; tags] they come from, at the view's size.

    Background score = (1 - max seed)^exponent (METHOD.md 4); label = argmax. The labels come at `view.size`.
    """
    scores = label_scores(maps, view, exponent)
    return _at_size(_values(view)[best(scores)[1].cpu().numpy()], view.size), scores


def best(scores: Float[Tensor, "S H W"]) -> tuple[Float[Tensor, "H W"], UInt8[Tensor, "H W"]]:
    """The largest score of each pixel, and its place; of equal ones the first. Many times as fast as `max(dim=0)`."""
    top, place = scores[0].clone(), torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
    for number, one in enumerate(scores[1:], 1):
        place.masked_fill_(one > top, number)
        torch.maximum(top, one, out=top)
    return top, place


def label_scores(maps: Float[Tensor, "K h w"], view: View, exponent: float) -> Float[Tensor, "S H W"]:
    """[background; tags] at the view's size."""
    full = refine.upsample(maps.float(), view.image.shape[:2])
    background = (1 - full.amax(dim=0, keepdim=True)).clamp(min=0) ** exponent
    return torch.cat([background, full])


def pseudo_mask(
    scores: Float[Tensor, "S H W"], view: View, config: Config
) -> tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]]:
    """The most probable labels after the CRF, and the pseudo-mask: the same with 255 where the CRF is unsure.

    Both come at `view.size` and hold the image's tags and background alone, besides 255 (METHOD.md 4).

    Args:
        scores: [background; tags] of the refined seeds at the view's size, as `label_map` gives them.
    """
    return pseudo_masks([scores], [view], config)[0]


def pseudo_masks(
    scores: Sequence[Float[Tensor, "_ _ _"]], views: Sequence[View], config: Config
) -> list[tuple[UInt8[np.ndarray, "_ _"], UInt8[np.ndarray, "_ _"]]]:
    """`pseudo_mask` of each view; on a GPU, the CRFs of all are computed together."""
    found = zip(probabilities(scores, views, config), views, strict=True)
    return [sure_labels(one, view, config.labels.confidence) for one, view in found]


def sure_labels(
    probabilities: Float[Tensor, "S H W"], view: View, confidence: float
) -> tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]]:
    """The most probable labels, and the same with 255 where they are less probable than `confidence`."""
    top, place = best(probabilities)
    likely = _values(view)[place.cpu().numpy()]
    sure = (top >= confidence).cpu().numpy()
    return _at_size(likely, view.size), _at_size(np.where(sure, likely, np.uint8(IGNORE)), view.size)


def probabilities(
    scores: Sequence[Float[Tensor, "_ _ _"]], views: Sequence[View], config: Config
) -> list[Float[Tensor, "_ _ _"]]:
    """Of [background; tags] at the size of each view, after PAR and the CRF where they are on."""
    if config.par.rounds:
        scores = [_following(one, view, config.par.rounds) for one, view in zip(scores, views, strict=True)]
    if config.crf.enabled:
        return crf.dense_crfs([view.image for view in views], scores, config.crf)
    return [one / one.sum(dim=0, keepdim=True).clamp(min=1e-12) for one in scores]


def _following(scores: Float[Tensor, "S H W"], view: View, rounds: int) -> Float[Tensor, "S H W"]:
    """Scores that follow the photograph's colours (`par`), summing to 1 at every pixel."""
    image = torch.from_numpy(np.ascontiguousarray(view.image)).to(scores).permute(2, 0, 1)
    shares = scores / scores.sum(dim=0, keepdim=True).clamp(min=1e-12)
    found = par(image[None], shares[None], rounds)[0]
    return found / found.sum(dim=0, keepdim=True).clamp(min=1e-12)


def _values(view: View) -> UInt8[np.ndarray, " S"]:
    """Label value by place in [background; tags], S = K + 1 places."""
    return np.array([0, *(tag + 1 for tag in view.tags)], dtype=np.uint8)


def _at_size(labels: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """Nearest-neighbour resize with half-pixel centres."""
    if labels.shape == size:
        return labels
    rows = ((np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]).astype(int)
    return labels[rows][:, columns]
