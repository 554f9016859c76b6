"""Maps on the patch grid: to [0, 1], and to pixels. METHOD.md 1 and 2.

Letters: K maps of an image, h w patch grid, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MINMAX_EPS = 1e-7


def minmax(x: Float[Tensor, "*K h w"]) -> Float[Tensor, "*K h w"]:
    """Each map to [0, 1]: (x − min) / (1e-7 + max(x − min)); a constant map becomes 0. [ref]"""
    low = x - x.amin((-2, -1), keepdim=True)
    return low / (MINMAX_EPS + low.amax((-2, -1), keepdim=True))


def upsample(maps: Float[Tensor, "K h w"], size: tuple[int, int]) -> Float[Tensor, "K H W"]:
    """Maps to pixels (H, W): bilinear, half-pixel centres. [ref]"""
    if not len(maps):
        return maps.new_zeros((0, *size))
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
