"""Seeds spread along the attention (CLIP-ES's class-aware affinity), to [0, 1], to pixels: METHOD.md 1, 2. [ref]

What else patches can be near by is affinities.py's.

    M ← attention; `rounds` times: columns / their sum, then rows / their sum; M ← (M + Mᵀ) / 2; M ← M M
    refined_k = (M with the columns outside boxes_k zeroed) · cam_k

M is never formed. Dividing rows and columns scales them, so before the symmetric mean M = diag(r) A diag(c) with A the
attention and r, c from products of A with vectors; and M M x = M (M x). A map costs four products of A with a vector
in place of a product of matrices: (hw)² in place of (hw)³.

Letters: N images, K tags of an image, h w patch grid, H W pixels. M does not depend on the tag: once per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vpl.config import RefineConfig

MINMAX_EPS = 1e-7
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Affinity:
    """M of one image, as the attention and the factors that make it nearly doubly stochastic.

    Attributes:
        attention: rows from, columns to, positive.
        rows, columns: what each row and column is multiplied by.
    """

    attention: Float[Tensor, "hw hw"]
    rows: Float[Tensor, " hw"]
    columns: Float[Tensor, " hw"]

    def spread(self, maps: Float[Tensor, "K hw"]) -> Float[Tensor, "K hw"]:
        """M x of each map x."""
        for _ in range(2):
            there = self.rows * ((maps * self.columns) @ self.attention.T)
            back = self.columns * ((maps * self.rows) @ self.attention)
            maps = (there + back) / 2
        return maps


def affinity(attention: Float[Tensor, "N hw hw"], rounds: int = 3) -> list[Affinity]:
    """M of each image from its averaged attention (rows: from, columns: to; any positive values). [ref]"""
    rows = attention.new_ones(attention.shape[:2])
    for _ in range(rounds):
        columns = 1 / (rows[:, None] @ attention)[:, 0]
        rows = 1 / (attention @ columns[..., None])[..., 0]
    return [Affinity(*one) for one in zip(attention, rows, columns, strict=True)]


def boxes_mask(cam: Float[Tensor, "h w"], threshold: float) -> Bool[Tensor, "h w"]:
    """True inside the bounding boxes of the parts of `cam` (values in [0, 1]) above threshold · max. [ref]

    As the reference has it: the map is cut to 8 bits, (255 · cam) without rounding, and compared with
    int(threshold · max); parts hang together over eight neighbours; a box leaves out the map's last row and column.
    """
    from scipy import ndimage

    h, w = cam.shape
    levels = (cam.detach().float() * 255).to(torch.uint8).cpu().numpy()
    parts, _ = ndimage.label(levels > int(threshold * int(levels.max())), structure=_EIGHT_NEIGHBOURS)
    inside = torch.zeros((h, w), dtype=torch.bool)
    for rows, columns in ndimage.find_objects(parts):
        inside[rows.start : min(rows.stop, h - 1), columns.start : min(columns.stop, w - 1)] = True
    return inside.to(cam.device)


def refine(affinity: Affinity, cam: Float[Tensor, "K h w"], box_threshold: float | None) -> Float[Tensor, "K h w"]:
    """M · cam_k per tag, before min-max; with a box threshold, only cells inside cam_k's boxes give. [ref]"""
    given = cam.flatten(1)
    if box_threshold is not None and len(cam):
        given = given * torch.stack([boxes_mask(one, box_threshold) for one in cam]).flatten(1)
    return affinity.spread(given).view_as(cam)


def refine_maps(
    affinities: Sequence[Affinity], cams: Sequence[Float[Tensor, "_ h w"]], config: RefineConfig
) -> list[Float[Tensor, "_ h w"]]:
    """Seeds of N images spread along their affinities, inside their boxes, and stretched to [0, 1]."""
    threshold = config.box_threshold if config.box else None
    return [minmax(refine(one, cam, threshold)) for one, cam in zip(affinities, cams, strict=True)]


def minmax(x: Float[Tensor, "*K h w"]) -> Float[Tensor, "*K h w"]:
    """Each map to [0, 1]: (x − min) / (1e-7 + max(x − min)); a constant map becomes 0. [ref]"""
    low = x - x.amin((-2, -1), keepdim=True)
    return low / (MINMAX_EPS + low.amax((-2, -1), keepdim=True))


def upsample(maps: Float[Tensor, "K h w"], size: tuple[int, int]) -> Float[Tensor, "K H W"]:
    """Maps to pixels (H, W): bilinear, half-pixel centres. [ref]"""
    if not len(maps):
        return maps.new_zeros((0, *size))
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
