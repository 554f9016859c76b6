"""Masked cross-entropy and regional semantic contrast (METHOD.md 5).

    loss = CE(logits, pseudo-mask; 255 ignored) + λ · RSC,          RSC = pull + suppress
    r(m) = unit( Σ m · f / Σ m )                                    `pooled`: f are projected frozen patch tokens
    r(m) = unit( image_encoder( m · pixels ) )                      `masked`: outside the mask CLIP's mean colour
    pull     = −log softmax( r(m_k) · Vᵀ / τI )_k                   mean over an image's tags k
    suppress = −log( 1 − softmax( r(m̄) · Vᵀ / τI )_k )              m̄ = 1 − Σ_k m_k, mean over its tags
             + Σ_j a_j · −log( 1 − softmax( r(m_j) · Vᵀ / τI )_k )  classes j that it does not carry, mean over its tags

m_k is the decoder's softmax mask of class k on the patch grid, a_j the share of the image that m_j takes: without it a
mask of no size would count like a large one, since r does not depend on the size. All terms are means over images.
Letters: N images · C foreground classes · P = C + B prototypes · D joint width · h w patch grid · H W pixels.
V, f and CLIP are constants: gradients reach the decoder through m alone. The form is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vpl.classes import IGNORE

Embed = Callable[[Float[Tensor, "R h w"], Int[Tensor, " R"]], Float[Tensor, "R D"]]
"""Unit embeddings of R soft masks in [0, 1], each with the number of its image in the batch, in ascending order."""

SMALLEST_MASK = 1e-6
"""Keeps the mean over an empty mask finite; in patches."""


@dataclass(frozen=True)
class Contrast:
    """The terms of RSC, each a scalar; a term that is off, or has nothing to compare, is 0."""

    pull: Float[Tensor, ""]
    complement: Float[Tensor, ""]
    negatives: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.pull + self.complement + self.negatives


def masked_cross_entropy(
    logits: Float[Tensor, "N P H W"], target: UInt8[Tensor, "N H W"], pixels: int | None = None
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels that are not 255; 0 when all are.

    Args:
        logits: background first.
        target: label values, 0 background, 255 ignore.
        pixels: what the sum is divided by; default: the labelled pixels of this target. Parts of one batch, on other
            processes or in accumulation, share the whole batch's count, so that their losses add up to the batch's.
    """
    total = F.cross_entropy(logits.float(), target.long(), ignore_index=IGNORE, reduction="sum")
    if pixels is None:
        pixels = int((target != IGNORE).sum())
    return total / max(pixels, 1)


def balanced_cross_entropy(
    logits: Float[Tensor, "N P H W"], target: UInt8[Tensor, "N H W"], counts: tuple[int, int] | None = None
) -> Float[Tensor, ""]:
    """Half the mean over background pixels, half the mean over foreground pixels (WeCLIP). [ref]

    A half without pixels is 0; the reference answers NaN. [ours]

    Args:
        counts: background and foreground pixels that the sums are divided by, as `pixels` above.
    """
    each = F.cross_entropy(logits.float(), target.long(), ignore_index=IGNORE, reduction="none")
    background, foreground = pixel_counts(target) if counts is None else counts
    behind = each[target == 0].sum() / max(background, 1)
    before = each[(target != 0) & (target != IGNORE)].sum() / max(foreground, 1)
    return (behind + before) / 2


def pixel_counts(target: UInt8[Tensor, "N H W"]) -> tuple[int, int]:
    """How many pixels are background, and how many of any class."""
    background = int((target == 0).sum())
    return background, int((target != IGNORE).sum()) - background


@torch.no_grad()
def filled_target(
    target: UInt8[Tensor, "N H W"],
    tokens: Float[Tensor, "N hw width"],
    grid: tuple[int, int],
    temperature: float,
    confidence: float,
) -> UInt8[Tensor, "N H W"]:
    """`target` with ignored pixels labelled where the decoder's own affinities are sure (METHOD.md 5, `online`).

    The affinity of two patches is the softmax, over the second, of the cosine of their centred tokens / temperature.
    The pseudo-mask's labels spread along it; a pixel of 255 takes the best label whose share is above `confidence`. So
    a crop never gets a label that its pseudo-mask does not hold, and no labelled pixel changes. [ours]
    """
    filled = target.clone()
    unit = F.normalize(tokens.float() - tokens.float().mean(dim=1, keepdim=True), dim=2)
    for mask, rows, result in zip(target, unit, filled, strict=True):
        labels = mask.unique()
        labels = labels[labels != IGNORE]
        if len(labels) == 0 or not (mask == IGNORE).any():
            continue
        areas = F.adaptive_avg_pool2d((mask == labels[:, None, None]).float(), grid).flatten(1)
        spread = (rows @ rows.T / temperature).softmax(dim=1) @ areas.T
        shares = spread / spread.sum(dim=1, keepdim=True).clamp(min=SMALLEST_MASK)
        full = F.interpolate(shares.T.reshape(1, -1, *grid), mask.shape, mode="bilinear", align_corners=False)[0]
        share, best = full.max(dim=0)
        sure = (mask == IGNORE) & (share > confidence)
        result[sure] = labels[best[sure]]
    return filled


def pooled(patches: Float[Tensor, "N hw D"]) -> Embed:
    """Region embedding: unit mean of the projected frozen patch tokens under the mask."""
    patches = patches.detach().float()

    def embed(masks: Float[Tensor, "R h w"], owners: Int[Tensor, " R"]) -> Float[Tensor, "R D"]:
        counts = torch.bincount(owners, minlength=len(patches)).tolist()
        rows = masks.flatten(1).split(counts)
        sums = torch.cat([own @ tokens for own, tokens in zip(rows, patches, strict=True)])
        return F.normalize(sums / (masks.sum(dim=(1, 2))[:, None] + SMALLEST_MASK), dim=1)

    return embed


def masked(
    pixels: Float[Tensor, "N 3 H W"], encode: Callable[[Float[Tensor, "R 3 H W"]], Float[Tensor, "R D"]]
) -> Embed:
    """Region embedding: CLIP's embedding of the image with its outside faded to the mean colour (0 once normalised).

    Args:
        encode: unit image embeddings; must let gradients pass to its pixels, and to none of its weights.
    """
    pixels = pixels.detach()

    def embed(masks: Float[Tensor, "R h w"], owners: Int[Tensor, " R"]) -> Float[Tensor, "R D"]:
        full = F.interpolate(masks[:, None], pixels.shape[2:], mode="bilinear", align_corners=False)
        return encode(pixels[owners] * full.to(pixels)).float()

    return embed


def regional_contrast(
    masks: Float[Tensor, "N C h w"],
    visible: Bool[Tensor, "N C"],
    absent: Bool[Tensor, "N C"],
    embed: Embed,
    prototypes: Float[Tensor, "P D"],
    temperature: float,
    *,
    pull: bool = True,
    suppress: bool = True,
    most_negatives: int | None = None,
    inside: Float[Tensor, "N h w"] | None = None,
) -> Contrast:
    """The three terms of RSC for a batch.

    Args:
        masks: the decoder's softmax probabilities of the foreground classes, in [0, 1].
        visible: tags of the image that this crop may show.
        absent: classes that the image does not carry. A tag outside the crop is in neither.
        embed: `pooled(...)` or `masked(...)`.
        prototypes: V, unit rows, the C foreground classes first. One row alone makes all terms 0.
        temperature: τI.
        most_negatives: at most this many absent classes of an image, those with the largest masks; None: all.
        inside: the share of each patch that lies on the image, 0 where a crop was padded; None: all 1.
    """
    prototypes = prototypes.detach().float()
    masks = masks.float()
    if inside is not None:
        masks = masks * inside[:, None]
    nothing = masks.sum() * 0.0
    terms = {"pull": nothing, "complement": nothing, "negatives": nothing}
    images, tags = visible.nonzero(as_tuple=True)
    if len(images) == 0 or len(prototypes) < 2:
        return Contrast(**terms)
    share = 1.0 / (visible.sum(dim=1)[images] * len(masks))
    if pull:
        scores = embed(masks[images, tags], images) @ prototypes.T / temperature
        terms["pull"] = (share * F.cross_entropy(scores, tags, reduction="none")).sum()
    if suppress:
        present = (masks * visible[:, :, None, None]).sum(dim=1)
        outside = (1.0 if inside is None else inside) - present
        tagged, place = images.unique(return_inverse=True)
        scores = embed(outside[tagged].clamp(min=0.0), tagged) @ prototypes.T / temperature
        terms["complement"] = (share * _not_likely(scores[place], tags)).sum()
        sizes = masks[0, 0].numel() if inside is None else inside.sum(dim=(1, 2)).clamp(min=SMALLEST_MASK)[:, None]
        areas = masks.sum(dim=(2, 3)) / sizes
        terms["negatives"] = _negatives(masks, areas, visible, absent, embed, prototypes / temperature, most_negatives)
    return Contrast(**terms)


def _negatives(
    masks: Float[Tensor, "N A gh gw"],
    areas: Float[Tensor, "N A"],
    visible: Bool[Tensor, "N A"],
    absent: Bool[Tensor, "N A"],
    embed: Embed,
    scaled_prototypes: Float[Tensor, "P D"],
    most: int | None,
) -> Float[Tensor, ""]:
    """Σ_j a_j · −log(1 − p_k(r(m_j))): mean over each image's visible tags k, then over images."""
    chosen = absent & visible.any(dim=1, keepdim=True)
    if most is not None and most < chosen.shape[1]:
        ranked = areas.detach().masked_fill(~chosen, -1.0).argsort(dim=1, descending=True, stable=True)
        first = torch.zeros_like(chosen).scatter_(1, ranked[:, :most], True)
        chosen = chosen & first
    images, negatives = chosen.nonzero(as_tuple=True)
    if len(images) == 0:
        return masks.sum() * 0.0
    scores = embed(masks[images, negatives], images) @ scaled_prototypes.T
    rows, tags = visible[images].nonzero(as_tuple=True)
    share = 1.0 / (visible.sum(dim=1)[images[rows]] * len(masks))
    return (share * areas[images, negatives][rows] * _not_likely(scores[rows], tags)).sum()


def _not_likely(scores: Float[Tensor, "R P"], classes: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
    """−log(1 − softmax(scores)_class), exact also where that probability is nearly 1."""
    others = scores.scatter(1, classes[:, None], float("-inf"))
    return scores.logsumexp(dim=1) - others.logsumexp(dim=1)
