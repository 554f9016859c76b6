"""From the patch grid to pixels, and to cells between which the photograph's own edges run (METHOD.md 5). [ours]

    p = softmax( logits ), resized to `decoder.cells` cells a patch side;   p ← PAR( p, photograph );   answer = log p

A patch has one answer, and of 16 × 16 pixels much is wrong at an object's rim; alone, patches of one object often
disagree. PAR (method/par) lets both follow the colours. It has no weights and takes no part in training: through it a
step takes three times as long, and the network is no better (benchmarks/README.md).

Letters: N images · P labels · h w patch grid · gh gw a finer one · H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vpl.config import GUIDE_DILATIONS, DecoderConfig
from vpl.method.par import par, par_at_once

SMALLEST_SHARE = 1e-6
"""Probabilities are held above it before the logarithm."""


def to_pixels(logits: Float[Tensor, "N P gh gw"], size: tuple[int, int]) -> Float[Tensor, "N P H W"]:
    """Bilinear resize with half-pixel centres, from a coarse grid to (H, W)."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def guided(
    logits: Float[Tensor, "N P h w"], pixels: Float[Tensor, "N 3 H W"], config: DecoderConfig
) -> Float[Tensor, "N P gh gw"]:
    """Logits on a grid `config.cells` times as fine; with one cell a patch, and in training, the logits themselves.

    Args:
        pixels: RGB, normalised.
    """
    if config.cells == 1 or logits.requires_grad:
        return logits
    size = logits.shape[2] * config.cells, logits.shape[3] * config.cells
    shares = to_pixels(logits.float().softmax(dim=1), size)
    follow = par_at_once if torch.compiler.is_exporting() else par
    shares = follow(to_pixels(pixels, size), shares, config.guide_rounds, GUIDE_DILATIONS)
    return shares.clamp(min=SMALLEST_SHARE).log()
