"""What belongs together: affinities of an image's patches, by attention, by classes, by another encoder (METHOD.md 5b).

    attention   mean of the last blocks' attention, METHOD.md 2                                       [ref]
    classes     exp( − JS(p_i, p_j) / width )      JS(p, q) = H((p + q) / 2) − (H(p) + H(q)) / 2, bits
                p_i = softmax over tags and background words of CLIP's scaled cosines   [ours; CD-CLIP's idea]
    features    exp( − (1 − cos(f_i, f_j)) / width )       f of another frozen encoder                 [ours]

The last two are symmetric, 1 on the diagonal, positive. All three go the same way from here: `refine.affinity` makes
them nearly doubly stochastic, and maps are spread along them twice. A narrow width spreads little, and in the limit
not at all.

Letters: N images · K tags of one image · P prototypes · D joint width · E the other encoder's · h w patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vpl.clip.model import Features, FrozenClip
from vpl.config import RefineConfig
from vpl.errors import ConfigError, VplError
from vpl.method import refine
from vpl.method.refine import Affinity
from vpl.method.selfself import patches_of

CELLS_AT_ONCE = 2**20
"""Pairs of patches times classes whose entropies are held at once."""


def divergences(p: Float[Tensor, "hw P"]) -> Float[Tensor, "hw hw"]:
    """Jensen-Shannon divergence of each two rows, bits, 0 to 1; symmetric, 0 on the diagonal.

    Args:
        p: probabilities; rows sum to 1.
    """
    count, kinds = p.shape
    own = torch.xlogy(p, p).sum(dim=1)
    found = p.new_empty(count, count)
    rows = max(1, CELLS_AT_ONCE // (count * kinds))
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        mean = (p[start:stop, None] + p[None, start:]) / 2  # the upper half; the lower one is the same
        below = torch.xlogy(mean, mean).sum(dim=2)
        part = ((own[start:stop, None] + own[None, start:]) / 2 - below).clamp(min=0) / torch.log(p.new_tensor(2.0))
        found[start:stop, start:] = part
        found[start:, start:stop] = part.T
    return found.fill_diagonal_(0)


def by_classes(p: Float[Tensor, "hw P"], width: float) -> Float[Tensor, "hw hw"]:
    """Affinity of patches whose class distributions are alike, in (0, 1].

    Args:
        p: probabilities; rows sum to 1.
        width: divergence at which it has fallen to 1/e, bits.
    """
    return (-divergences(p) / width).exp()


def by_features(patches: Float[Tensor, "hw E"], width: float) -> Float[Tensor, "hw hw"]:
    """Affinity of patches whose features point the same way, in (0, 1].

    Args:
        patches: of any length.
        width: 1 − cosine at which it has fallen to 1/e.
    """
    unit = F.normalize(patches, dim=1)
    return ((unit @ unit.T).clamp(max=1) - 1).div(width).exp()


def of(
    kind: str,
    clip: FrozenClip,
    features: Features,
    tags: Sequence[tuple[int, ...]],
    text: Float[Tensor, "P D"],
    classes: int,
    config: RefineConfig,
) -> list[Affinity]:
    """The affinity of one kind of each image, ready to spread maps.

    Args:
        kind: of `config.AFFINITIES`.
        tags: class numbers of each image.
        text: text prototypes, the classes' rows first, then the background words'.
        classes: number of classes.

    Raises:
        VplError: the features came without what this kind reads.
        ConfigError: there is one class to compare, and no other.
    """
    if kind == "attention":
        if features.attention is None:
            raise VplError("the features lack attention; encode the images with attention_blocks of at least 1.")
        return refine.affinity(features.attention, config.rounds)
    if kind == "features":
        if features.guide is None:
            raise VplError("the features lack what refine.features says of them; see views.guided.")
        found = [by_features(one, config.feature_width) for one in features.guide]
    else:
        patches = F.normalize(patches_of(clip, features, config.patches), dim=2)
        found = []
        for one, own in zip(patches, tags, strict=True):
            likely = (clip.logit_scale * one @ _rows(text, own, classes).to(one).T).softmax(dim=1)
            found.append(by_classes(likely, config.class_width))
    return [refine.affinity(one[None], config.rounds)[0] for one in found]


def _rows(text: Float[Tensor, "P D"], tags: tuple[int, ...], classes: int) -> Float[Tensor, "S D"]:
    """The prototypes that a patch may be of: its image's tags and the background words; without these, all classes."""
    check(classes, len(text) - classes)
    return text[[*tags, *range(classes, len(text))]] if len(text) > classes else text


def check(classes: int, background: int) -> None:
    """Patches of one class alone are all alike.

    Raises:
        ConfigError: there is but one class and no background word.
    """
    if classes + background < 2:
        raise ConfigError(
            "refine.affinity or refine.votes holds classes, which compares what patches are of, and there is one class "
            "and no background word; give the classes file some, or take classes out."
        )


def refined(
    clip: FrozenClip,
    features: Features,
    tags: Sequence[tuple[int, ...]],
    cams: Sequence[Float[Tensor, "_ h w"]],
    text: Float[Tensor, "P D"],
    classes: int,
    config: RefineConfig,
) -> list[Float[Tensor, "_ h w"]]:
    """Seeds spread along `config.affinity`, one after the other, and stretched to [0, 1]; as they are when it is off.

    Args:
        tags: as for `of`.
        text: as for `of`.
        classes: as for `of`.

    Raises:
        VplError, ConfigError: as `of`.
    """
    if not config.enabled:
        return list(cams)
    for kind in config.affinity:
        cams = refine.refine_maps(of(kind, clip, features, tags, text, classes, config), cams, config)
    return list(cams)


def followed(one: Float[Tensor, "S h w"], affinity: Affinity, tags: int) -> Float[Tensor, "S h w"]:
    """What a maker says of one image, spread along an affinity: seeds in [0, 1] again, shares summing to 1 again.

    Args:
        one: K seeds or K + 1 shares.
        tags: K.
    """
    spread = affinity.spread(one.flatten(1)).view_as(one)
    return refine.minmax(spread) if len(one) == tags else spread / spread.sum(dim=0, keepdim=True).clamp(min=1e-12)
