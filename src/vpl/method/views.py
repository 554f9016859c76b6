"""A photograph as encoder and CRF see it, and the encoder's one pass over several of them (METHOD.md 1).

Letters: K tags of one image · H W pixels of the view · height width of the photograph's file or of the encoder's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vpl.clip.dinov2 import FrozenDinov2
from vpl.clip.model import Features, FrozenClip
from vpl.config import ClipConfig
from vpl.edges import images


@dataclass(frozen=True)
class View:
    """One photograph as encoder and CRF see it.

    Attributes:
        image: RGB, 0 to 255, at most `max_side` pixels long.
        tags: K different class numbers, from 0.
        size: height and width of the photograph on disk, in pixels: the size of its masks.
        pixels: the encoder's input, where `prepared` has made it.
    """

    image: UInt8[np.ndarray, "H W 3"]
    tags: tuple[int, ...]
    size: tuple[int, int]
    pixels: Float[Tensor, "3 height width"] | None = None


def pixels_of(clip: FrozenClip, view: View, config: ClipConfig) -> Float[Tensor, "3 height width"]:
    """The encoder's input."""
    height, width = view.image.shape[:2]
    scale = images.encoder_scale(height, width, clip.patch, config.scale, config.max_patches)
    return images.to_pixels(view.image, clip.patch, clip.mean, clip.std, scale)


def prepared(clip: FrozenClip, view: View, config: ClipConfig) -> View:
    """The view with its `pixels`, so that they are made in the thread that reads."""
    return replace(view, pixels=pixels_of(clip, view, config))


def encode(clip: FrozenClip, views: Sequence[View], config: ClipConfig) -> Features:
    """One pass of the frozen encoder over views whose patch grids are equal."""
    pixels = [view.pixels if view.pixels is not None else pixels_of(clip, view, config) for view in views]
    return clip.encode(torch.stack(pixels), attention_blocks=config.attention_blocks)


def guided(features: Features, views: Sequence[View], guide: FrozenDinov2 | None) -> Features:
    """Features that hold what another encoder says of the same patches, where one is asked for and has not spoken."""
    if guide is None or features.guide is not None:
        return features
    return replace(features, guide=guide_of(guide, views, features.grid))


def guide_of(guide: FrozenDinov2, views: Sequence[View], grid: tuple[int, int]) -> Float[Tensor, "N hw E"]:
    """Patch features of views by another encoder, on CLIP's patch grid."""
    seen = [images.on_grid(view.image, grid, guide.patch, guide.mean, guide.std) for view in views]
    return guide.patches(torch.stack(seen))
