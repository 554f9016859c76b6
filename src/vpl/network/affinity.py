"""What a head's features say of pairs of patches, and the loss that teaches it (WeCLIP, arXiv 2406.11189). [ref]

    a = sigmoid( F Fᵀ ),   y_ij = [label of i = label of j],   255 where either is 255 or they lie too far apart
    loss = ½ Σ_{y=1} (1 − a) / (n₁ + 1) + ½ Σ_{y=0} a / (n₀ + 1),   n₁ and n₀ the pairs of each kind in the batch

"Too far" is more than `radius` patches in y or in x: a square, not a disc. Letters: N images · h w patch grid · H W
pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vpl.classes import IGNORE


def affinity(tokens: Float[Tensor, "N hw inner"]) -> Float[Tensor, "N hw hw"]:
    """a, in [0, 1], symmetric."""
    return torch.sigmoid(tokens @ tokens.transpose(1, 2))


def affinity_labels(
    target: UInt8[Tensor, "N H W"], grid: tuple[int, int], radius: int | None
) -> UInt8[Tensor, "N hw hw"]:
    """y: 1 same label, 0 different, 255 unknown or too far apart.

    Args:
        target: label values; each patch takes that of its first pixel.
        radius: in patches; None: no pair is too far apart.
    """
    patches = F.interpolate(target[:, None].float(), grid, mode="nearest").flatten(1).to(torch.uint8)
    known = patches != IGNORE
    asked = known[:, :, None] & known[:, None, :]
    if radius is not None:
        asked = asked & _near(grid, radius, target.device)
    same = (patches[:, :, None] == patches[:, None, :]).to(torch.uint8)
    return same.masked_fill(~asked, IGNORE)


def affinity_loss(
    a: Float[Tensor, "N hw hw"], labels: UInt8[Tensor, "N hw hw"], counts: tuple[int, int] | None = None
) -> Float[Tensor, ""]:
    """The loss of a batch, or the share that a part of it has.

    Args:
        counts: n₁ and n₀ of the whole batch; default: those of `labels`.
    """
    same, different = labels == 1, labels == 0
    ones, zeros = pair_counts(labels) if counts is None else counts
    return ((1 - a) * same).sum() / (ones + 1) / 2 + (a * different).sum() / (zeros + 1) / 2


def pair_counts(labels: UInt8[Tensor, "N hw hw"]) -> tuple[int, int]:
    """n₁ and n₀: how many pairs are of the same label, and of different ones."""
    return int((labels == 1).sum()), int((labels == 0).sum())


def _near(grid: tuple[int, int], radius: int, device: torch.device) -> Bool[Tensor, "hw hw"]:
    rows, columns = (torch.arange(side, device=device) for side in grid)
    near_rows, near_columns = ((axis[:, None] - axis).abs() <= radius for axis in (rows, columns))
    return torch.kron(near_rows.to(torch.uint8), near_columns.to(torch.uint8)).bool()
