"""Seeds refined while the head learns, by what the head itself has learned (WeCLIP, arXiv 2406.11189). [ref]

    d_l = Σ ( a − A_l ),   kept: the layers l with d_l ≤ mean d
    M ← ( Σ_kept A_l ) / ( n_kept + 1e-5 ) · a elementwise,   then spread as in METHOD.md 2
    seeds ← M · cam, min-max, to pixels;   background = 1 − max seed;   labels = argmax of PAR( background, seeds )

a is the head's affinity of patches (affinity), A_l the encoder's attention between patches in layer l, mean over heads.
Σ a is the same for every layer, so the kept layers are those whose attention stays among the patches rather than with
the class token: the mass of A_l is at least the mean. Letters: L layers · K tags of an image · h w patch grid · H W
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vpl.classes import IGNORE
from vpl.clip.model import Features, FrozenClip
from vpl.config import Config
from vpl.method import refine
from vpl.method.par import par
from vpl.method.seeds import seed_maps
from vpl.network.affinity import affinity as affinity_of

KEPT_EPS = 1e-5
"""Added to the number of kept layers. [ref]"""


def kept_layers(attention: Float[Tensor, "L hw hw"], affinity: Float[Tensor, "hw hw"]) -> Bool[Tensor, " L"]:
    """Which layers' attention the head's affinity agrees with at least as much as with the mean layer's."""
    distances = (affinity - attention).sum(dim=(1, 2))
    return distances <= distances.mean()


def joint_attention(attention: Float[Tensor, "L hw hw"], affinity: Float[Tensor, "hw hw"]) -> Float[Tensor, "hw hw"]:
    """M before it is spread: the kept layers' mean attention where the head finds patches alike.

    Args:
        attention: of the encoder's last layers, rows from, columns to.
        affinity: the head's, in [0, 1].
    """
    kept = kept_layers(attention, affinity)
    return attention[kept].sum(dim=0) / (int(kept.sum()) + KEPT_EPS) * affinity


def refined_seeds(
    attention: Float[Tensor, "L hw hw"],
    affinity: Float[Tensor, "hw hw"],
    cam: Float[Tensor, "K h w"],
    size: tuple[int, int],
    rounds: int,
    box_threshold: float | None,
) -> Float[Tensor, "K H W"]:
    """The seeds of an image spread by what the head has learned, in [0, 1], at `size`."""
    (spread,) = refine.affinity(joint_attention(attention, affinity)[None], rounds)
    return refine.upsample(refine.minmax(refine.refine(spread, cam, box_threshold)), size)


def labels_of(
    pixels: Float[Tensor, "3 H W"], seeds: Float[Tensor, "K H W"], tags: Sequence[int]
) -> UInt8[Tensor, "H W"]:
    """Label values where seeds and background have followed the photograph's colours.

    Args:
        pixels: RGB of any range.
        tags: class numbers of the seeds.
    """
    scores = torch.cat([1 - seeds.amax(dim=0, keepdim=True), seeds])
    best = par(pixels[None], scores[None])[0].argmax(dim=0)
    return torch.tensor([0, *(tag + 1 for tag in tags)], dtype=torch.uint8, device=best.device)[best]


@torch.no_grad()
def targets(
    clip: FrozenClip,
    features: Features,
    tokens: Float[Tensor, "N hw inner"],
    pixels: Float[Tensor, "N 3 H W"],
    target: UInt8[Tensor, "N H W"],
    visible: Bool[Tensor, "N C"],
    prototypes: Float[Tensor, "P D"],
    config: Config,
) -> UInt8[Tensor, "N H W"]:
    """What a batch learns from in place of its pseudo-masks: seeds of its crops, refined by the head's own affinity.

    A crop that shows none of its tags keeps its pseudo-mask, and padding stays 255. [ours] The reference makes seeds of
    all the image's tags, also of those that the crop does not show.

    Args:
        features: with blocks' attention `apart` and the inside of the last block.
        tokens: the head's features of the patches that its affinity is made of.
        pixels: normalised; padding is 0.
        visible: the tags that a crop shows.
        prototypes: what makes the seeds: those that made the run's own.
    """
    scale = clip.logit_scale if config.prototypes.kind == "text" else 1 / config.prototypes.image_temperature
    shown = [tuple(one.nonzero()[:, 0].tolist()) for one in visible]
    tags = [one or (0,) for one in shown]  # a crop without any gets a map that nobody looks at
    cams = seed_maps(clip, features, tags, prototypes, visible.shape[1], scale, config.seeds.kind)
    a, attention = affinity_of(tokens.float()), torch.stack(features.apart or (), dim=1)
    box = config.refine.box_threshold if config.refine.box else None
    found, size = target.clone(), (target.shape[1], target.shape[2])
    for number, own in enumerate(shown):
        if own:
            seeds = refined_seeds(attention[number], a[number], cams[number], size, config.refine.rounds, box)
            found[number] = labels_of(pixels[number], seeds, own)
    return found.masked_fill((pixels == 0).all(dim=1), IGNORE)
