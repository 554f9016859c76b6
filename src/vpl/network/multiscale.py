"""One answer of several scales and mirror images, as the published evaluations make it. [ref]

    cams:   Σ_s relu( max( map_s, mirrored map of the mirrored image ) ) at the image's size, min-max per class
    logits: mean over scales of the mean of both, on the grid of scale 1

Logits, not probabilities, are averaged; `predict` averages probabilities, as METHOD.md 6 has it. This is for agreement
with the numbers of CLIP-ES and WeCLIP. Letters: N images · P classes · h w grid of a scale · H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CAM_EPS = 1e-5
"""Added to a class's largest value before its map is divided by it. [ref]"""


def joint_cams(
    maps: Sequence[Float[Tensor, "N P _ _"]], mirrored: Sequence[Float[Tensor, "N P _ _"]], size: tuple[int, int]
) -> Float[Tensor, "N P H W"]:
    """Maps of every scale and of its mirrored image as one map in [0, 1], at `size`."""

    def full(one: Tensor) -> Tensor:
        return F.interpolate(one, size, mode="bilinear", align_corners=False)

    pairs = zip(maps, mirrored, strict=True)
    total = torch.stack([torch.maximum(full(own), full(other).flip(-1)).relu() for own, other in pairs]).sum(dim=0)
    low = total - total.amin((-2, -1), keepdim=True)
    return low / (low.amax((-2, -1), keepdim=True) + CAM_EPS)


def joint_logits(
    logits: Sequence[Float[Tensor, "N P _ _"]], mirrored: Sequence[Float[Tensor, "N P _ _"]]
) -> Float[Tensor, "N P h w"]:
    """Logits of every scale and of its mirrored image as one, on the grid of the first scale."""
    size = tuple(logits[0].shape[2:])
    pairs = [(own + other.flip(-1)) / 2 for own, other in zip(logits, mirrored, strict=True)]
    return torch.stack([F.interpolate(one, size, mode="bilinear", align_corners=False) for one in pairs]).mean(dim=0)


def sizes_at(size: tuple[int, int], long_side: int, scales: Sequence[float]) -> list[tuple[int, int]]:
    """Sizes (H, W) at the network: the image's long side becomes `long_side`; of other scales, the floor."""
    share = long_side / max(size)
    first = int(size[0] * share), int(size[1] * share)
    return [first if scale == 1 else (math.floor(first[0] * scale), math.floor(first[1] * scale)) for scale in scales]
