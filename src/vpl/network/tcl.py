"""Published relatives of RSC: TCL's contrast of regions over texts, and its area term (arXiv 2212.00785). [ref]

    r_ij = Σ m_ij f_i / ( Σ m_ij + 1e-6 ),   s_ij = cos( r_ij, t_j ) / 0.07
    contrast = ½ ( CE over j + CE over i ) of s, its diagonal the target
    area     = | mean m_ii − 0.4 | + | mean m_ij, i ≠ j, − 0 |
    smooth   = mean |∂m/∂x| + mean |∂m/∂y|

m_ij is the mask of text j in image i, f_i the image's features, t_j the text's embedding. Means of areas are over the
whole batch and not image by image. Normalised pooling alone cannot shrink the mask of a text that is not the image's:
the area term can. Letters: N images · T texts · D joint width · h w grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

POOL_EPS = 1e-6
"""Keeps the mean over an empty mask finite. [ref]"""


def text_regions(features: Float[Tensor, "N D h w"], masks: Float[Tensor, "N T h w"]) -> Float[Tensor, "N T D"]:
    """r: the masks' weighted means of the features, not normalised."""
    sums = torch.einsum("nthw,ndhw->ntd", masks, features)
    return sums / (masks.sum(dim=(2, 3)) + POOL_EPS)[:, :, None]


def text_contrast(
    regions: Float[Tensor, "N T D"],
    texts: Float[Tensor, "T D"],
    own: Bool[Tensor, "N T"],
    foreign: Bool[Tensor, "N T"],
    temperature: float,
) -> Float[Tensor, ""]:
    """InfoNCE over the texts and over the images, mean over the pairs that belong together; 0 without any.

    With one text an image, each of another kind, this is TCL's. An image with several tags is contrasted in each of
    them against texts that are not its own, and two images that share a tag are not contrasted in it. [ours]

    Args:
        own: the image carries the text.
        foreign: the image does not carry it.
    """
    scores = torch.einsum("ntd,td->nt", F.normalize(regions, dim=2), F.normalize(texts, dim=1)) / temperature
    if not own.any():
        return scores.sum() * 0.0
    others = scores.masked_fill(~foreign, float("-inf"))
    over_texts = torch.logaddexp(scores, others.logsumexp(dim=1, keepdim=True)) - scores
    over_images = torch.logaddexp(scores, others.logsumexp(dim=0, keepdim=True)) - scores
    return (over_texts[own].mean() + over_images[own].mean()) / 2


def area(
    masks: Float[Tensor, "N T h w"],
    chosen: Bool[Tensor, "N T"],
    target: float,
    inside: Float[Tensor, "N h w"] | None = None,
) -> Float[Tensor, ""]:
    """| mean area of the chosen masks − target |, areas as shares of the image; 0 when none is chosen.

    Args:
        inside: the share of each patch that lies on the image; None: all 1.
    """
    if not chosen.any():
        return masks.sum() * 0.0
    if inside is None:
        return (masks[chosen].mean() - target).abs()
    there = inside[:, None].expand_as(masks)[chosen]
    return ((masks[chosen] * there).sum() / there.sum().clamp(min=POOL_EPS) - target).abs()


def total_variation(maps: Float[Tensor, "*N h w"]) -> Float[Tensor, ""]:
    """Mean absolute step from a cell to its neighbour, down and to the right."""
    return maps.diff(dim=-2).abs().mean() + maps.diff(dim=-1).abs().mean()
