"""Seeds spread along the attention: METHOD.md 2 (CLIP-ES's class-aware affinity). [ref]

    M ← attention; `rounds` times: columns / their sum, then rows / their sum; M ← (M + Mᵀ) / 2; M ← M M
    refined_k = (M with the columns outside boxes_k zeroed) · cam_k

Letters: N images, K tags of an image, h w patch grid, H W pixels. M does not depend on the tag: once per image.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from vpl.maps import minmax, upsample

__all__ = ["affinity", "boxes_mask", "minmax", "refine", "upsample"]

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def affinity(attention: Float[Tensor, "N hw hw"], rounds: int = 3) -> Float[Tensor, "N hw hw"]:
    """M from averaged attention (rows: from, columns: to; any positive values), nearly doubly stochastic. [ref]"""
    m = attention
    for _ in range(rounds):
        m = m / m.sum(1, keepdim=True)
        m = m / m.sum(2, keepdim=True)
    m = (m + m.transpose(1, 2)) / 2
    return m @ m


def boxes_mask(cam: Float[Tensor, "h w"], threshold: float) -> Bool[Tensor, "h w"]:
    """True inside the bounding boxes of the parts of `cam` (values in [0, 1]) above threshold · max. [ref]

    As the reference has it: the map is cut to 8 bits, (255 · cam) without rounding, and compared with
    int(threshold · max); parts hang together over eight neighbours; a box leaves out the map's last row and column.
    """
    h, w = cam.shape
    levels = (cam.detach().float() * 255).to(torch.uint8).cpu().numpy()
    parts, _ = ndimage.label(levels > int(threshold * int(levels.max())), structure=_EIGHT_NEIGHBOURS)
    inside = torch.zeros((h, w), dtype=torch.bool)
    for rows, columns in ndimage.find_objects(parts):
        inside[rows.start : min(rows.stop, h - 1), columns.start : min(columns.stop, w - 1)] = True
    return inside.to(cam.device)


def refine(
    affinity: Float[Tensor, "hw hw"], cam: Float[Tensor, "K h w"], box_threshold: float | None
) -> Float[Tensor, "K h w"]:
    """M · cam_k per tag, before min-max; with a box threshold, only cells inside cam_k's boxes give. [ref]"""
    given = cam.flatten(1)
    if box_threshold is not None:
        masks = [boxes_mask(one, box_threshold) for one in cam]
        given = given * torch.stack(masks).flatten(1) if masks else given
    return (given @ affinity.T).view_as(cam)
