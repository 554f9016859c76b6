"""Looks: several makers, encoder scales and mirror images say where each tag is, and vote (METHOD.md 5b).

    look    maker × encoder scale × mirrored or not
    maker   features of one encoding -> for each image
            seeds   (K, h, w) in [0, 1]: what a tag claims; what no tag claims is the background's
            shares  (K + 1, h, w): of [background; tags], summing to 1
    vote    mean over all looks of label shares at the view's size; of seeds, with m = max_k seed_k,
            shares = mean over a of [ (1 − m)^a ; seeds ] / their sum

Makers err in different places, so that their mean is better than any of them, and they share an encoding: more makers
cost little, more scales and mirror images an encoding each. A vote is a mean of probabilities; CRF and threshold follow
as for one look. All of it is ours, from published parts; `MAKERS` has each part's source.

One look, GradCAM of the photograph as it is, is the method as the paper has it: its seeds are not turned to shares.

A new maker is one function of a `Seen` and one line in `MAKERS`: docs/how-to/new-maker.md. What makers read of an
encoding is `READS`, so that who keeps encodings keeps that.

Letters: N images · K tags of one image · P prototypes · D joint width · h w patch grid · H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vpl.clip.dinov2 import FrozenDinov2
from vpl.clip.model import Features, FrozenClip
from vpl.config import ClipConfig, Config, LookConfig
from vpl.edges import images
from vpl.errors import ConfigError
from vpl.method import affinities, refine
from vpl.method.seeds import seed_maps
from vpl.method.selfself import patches_of
from vpl.method.views import View, encode, guided

READS = ("grid", "patches", "attention", "last", "guide")
"""Fields of `Features` that makers read; `blocks` is none of them."""
CELLS_AT_ONCE = 2**25
"""An encoding of several images has at most this many cells of attention, or one image."""
PAPER = "gradcam"
"""The maker of the one look that the paper takes."""


@dataclass(frozen=True)
class Seen:
    """One encoding of N images, and what there is to compare it with.

    Attributes:
        features: with attention and the inside of the last block.
        tags: class numbers of each image.
        text, vision: prototypes, the classes' rows first, then the background words'; without vision prototypes, the
            text's twice.
        classes: number of classes.
        config: as it was for this encoding; `clip.scale` is that of the look.
        guide: the encoder of `refine.features`, where it is asked for.
    """

    clip: FrozenClip
    features: Features
    tags: Sequence[tuple[int, ...]]
    text: Float[Tensor, "P D"]
    vision: Float[Tensor, "P D"] | None
    classes: int
    config: Config
    guide: FrozenDinov2 | None = None

    def spread(self, cams: Said) -> Said:
        """Seeds spread along `refine.affinity` (METHOD.md 2)."""
        config = self.config.refine
        return affinities.refined(self.clip, self.features, self.tags, cams, self.text, self.classes, config)

    @property
    def table(self) -> tuple[Float[Tensor, "P D"], float]:
        """The prototypes that seeds are made from, and what multiplies their cosines."""
        if self.vision is None:
            return self.text, self.clip.logit_scale
        return self.vision, 1 / self.config.prototypes.image_temperature


Said = list[Float[Tensor, "_ h w"]]
"""What a maker says of each image: K rows are seeds, K + 1 rows are shares."""
Maker = Callable[[Seen], Said]


# --------------------------------------------------------------------------------------------------------------- makers
def gradcam(seen: Seen) -> Said:
    """The method's own seeds, refined (METHOD.md 1 and 2)."""
    table, scale = seen.table
    cams = seed_maps(seen.clip, seen.features, seen.tags, table, seen.classes, scale, seen.config.seeds.kind)
    return seen.spread(cams)


def similarity(seen: Seen, likeness: str = "plain", spread: bool = False, vision: bool = False) -> Said:
    """Each patch's cosine with its tag's text prototype, min-max.

    Args:
        likeness: of `selfself.LIKENESS`; plain: patches as CLIP has them.
        spread: as GradCAM's maps are.
        vision: with the prototypes that make the seeds.
    """
    table = seen.table[0] if vision else seen.text
    patches = F.normalize(patches_of(seen.clip, seen.features, likeness), dim=2)
    maps = [table[list(own)].to(one) @ one.T for one, own in zip(patches, seen.tags, strict=True)]
    cams = [refine.minmax(one.unflatten(1, seen.features.grid)) for one in maps]
    return seen.spread(cams) if spread else cams


def matched(seen: Seen, likeness: str = "plain") -> Said:
    """Shares of tags and background words in each patch: softmax of its cosines with their texts, as CLIP scales them.

    Only as good as the CLIP's patches match words, which is what pre-training of pocket taught it.
    """
    found = []
    heard = F.normalize(patches_of(seen.clip, seen.features, likeness), dim=2)
    for patches, own in zip(heard, seen.tags, strict=True):
        rows = seen.text[[*own, *range(seen.classes, len(seen.text))]].to(patches)
        likely = (seen.clip.logit_scale * patches @ rows.T).softmax(dim=1)
        background = likely[:, len(own) :].sum(dim=1, keepdim=True)
        shares = torch.cat([background, likely[:, : len(own)]], dim=1).T.unflatten(1, seen.features.grid)
        found.append(shares.float())
    return found


MAKERS: dict[str, Maker] = {
    "gradcam": gradcam,  # METHOD.md 1 and 2: the paper's
    "similarity": partial(similarity, spread=True),  # patches as CLIP has them, the baseline without a gradient
    "sclip": partial(similarity, likeness="sclip"),  # arXiv 2312.01597
    "clearclip": partial(similarity, likeness="clearclip"),  # arXiv 2407.12442
    "naclip": partial(similarity, likeness="naclip"),  # arXiv 2404.08181
    "maskclip": partial(similarity, likeness="maskclip"),  # arXiv 2112.01071
    "sclip-vision": partial(similarity, likeness="sclip", vision=True),  # with the prototypes that make the seeds
    "clearclip-vision": partial(similarity, likeness="clearclip", vision=True),
    "naclip-vision": partial(similarity, likeness="naclip", vision=True),
    "maskclip-vision": partial(similarity, likeness="maskclip", vision=True),
    "words": matched,  # ours: needs patches that match words, as pocket's do
    "sclip-words": partial(matched, likeness="sclip"),
    "clearclip-words": partial(matched, likeness="clearclip"),
    "naclip-words": partial(matched, likeness="naclip"),
    "maskclip-words": partial(matched, likeness="maskclip"),
}
"""Name -> maker, with its source. A new one is one line."""
OF_WORDS = frozenset(name for name in MAKERS if name.endswith("words"))
"""Makers that need background words: without them every patch would be a tag's."""
SPREAD = frozenset({PAPER, "similarity"})
"""Makers that spread their maps along `refine.affinity` themselves, and so not along `refine.votes`."""


def makers_of(config: LookConfig, background: int) -> dict[str, Maker]:
    """The makers that a configuration names, in its order; those that need background words only where there are some.

    Args:
        background: number of background prototypes.

    Raises:
        ConfigError: a maker is unknown, or none is left.
    """
    if unknown := [name for name in config.makers if name not in MAKERS]:
        raise ConfigError(f"looks.makers holds {unknown[0]!r}; expected some of {', '.join(MAKERS)}.")
    found = {name: MAKERS[name] for name in config.makers if background or name not in OF_WORDS}
    if not found:
        raise ConfigError(
            f"looks.makers is {', '.join(config.makers)}, which compares tags with background words, and there are "
            "none; give the classes file some, or name another maker, such as gradcam."
        )
    return found


# ---------------------------------------------------------------------------------------------------------------- looks
@dataclass(frozen=True)
class Look:
    """One way to look at an image.

    Attributes:
        scale: of the image at the encoder, times its usual one.
        mirrored: left to right.
    """

    scale: float
    mirrored: bool = False

    def turned(self, x: Float[Tensor, "*any w"]) -> Float[Tensor, "*any w"]:
        """Pixels as this look has them, or what is said of them turned back: the same mirror."""
        return x.flip(-1) if self.mirrored else x


def looks_of(scales: Sequence[float], flip: bool) -> list[Look]:
    """Every look, scale by scale, the image before its mirror image. `predict` looks in this order, too."""
    return [Look(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]


def mean(shares: Iterable[Float[Tensor, "S H W"]]) -> Float[Tensor, "S H W"]:
    """Mean of all looks' label shares, one in memory at a time: a vote, and the second protocol of METHOD.md 6."""
    total, count = torch.zeros(()), 0
    for one in shares:
        total, count = total.add_(one) if count else one.clone(), count + 1
    return total / count


# ---------------------------------------------------------------------------------------------------------------- votes
Encoder = Callable[[Sequence[View], ClipConfig], Features]
"""Several views of one patch grid, and how the encoder sees them -> their features."""


def gathered(
    first: Seen, views: Sequence[View], encoder: Encoder | None = None, known: dict[str, Said] | None = None
) -> list[tuple[Float[Tensor, "_ _ _"], ...]]:
    """What every look says of each view, on the CPU, mirrored answers turned back.

    Args:
        first: the encoding of the views as they are, which is the first look where 1 is among the scales.
        encoder: makes the encodings of the other looks; None: the CLIP of `first`.
        known: answers of makers to `first` that are there already.
    """
    config, own = first.config.looks, first.config.clip
    makers = makers_of(config, len(first.text) - first.classes)
    found: list[list[Tensor]] = [[] for _ in views]
    for look in looks_of(config.scales, config.flip):
        if look == Look(1.0):
            for said in _answers(first, makers, known or {}):
                for place, one in enumerate(said):
                    found[place].append(one.cpu())
            continue
        other = first.config.with_values({"clip.scale": own.scale * look.scale})
        for members, features in _encoded(first, views, other.clip, look, encoder):
            seen = replace(first, features=features, tags=[first.tags[one] for one in members], config=other)
            for said in _answers(seen, makers, {}):
                for place, one in zip(members, said, strict=True):
                    found[place].append(look.turned(one).cpu())
    return [tuple(one) for one in found]


def _answers(seen: Seen, makers: Mapping[str, Maker], known: Mapping[str, Said]) -> Iterator[Said]:
    """What each maker says of an encoding, spread along `refine.votes`."""
    config = seen.config.refine
    along = [
        affinities.of(kind, seen.clip, seen.features, seen.tags, seen.text, seen.classes, config)
        for kind in (config.votes if makers.keys() - SPREAD else ())
    ]
    for name, maker in makers.items():
        said = known.get(name) or maker(seen)
        for kind in () if name in SPREAD else along:
            pairs = zip(said, kind, seen.tags, strict=True)
            said = [affinities.followed(one, near, len(own)) for one, near, own in pairs]
        yield said


def _encoded(
    first: Seen, views: Sequence[View], config: ClipConfig, look: Look, encoder: Encoder | None
) -> Iterator[tuple[tuple[int, ...], Features]]:
    """Encodings of the views at another scale, those of equal patch grids together: their places, and features."""
    clip = first.clip
    groups: dict[tuple[int, int], list[int]] = {}
    for place, view in enumerate(views):
        height, width = view.image.shape[:2]
        scale = images.encoder_scale(height, width, clip.patch, config.scale, config.max_patches)
        groups.setdefault(images.patch_size_of(height, width, clip.patch, scale), []).append(place)
    for (h, w), members in groups.items():
        step = max(1, CELLS_AT_ONCE // (h * w) ** 2)
        for start in range(0, len(members), step):
            these = tuple(members[start : start + step])
            seen = [_as_look(views[place], look.mirrored) for place in these]
            features = encoder(seen, config) if encoder else encode(clip, seen, config)
            yield these, guided(features, seen, first.guide)


def _as_look(view: View, mirrored: bool) -> View:
    """The view without its prepared pixels, which are of another scale; mirrored left to right if asked."""
    image = np.ascontiguousarray(view.image[:, ::-1]) if mirrored else view.image
    return replace(view, image=image, pixels=None)


def votes(
    said: Sequence[Float[Tensor, "_ _ _"]], tags: int, size: tuple[int, int], config: LookConfig
) -> Float[Tensor, "S H W"]:
    """Mean label shares [background; tags] of what looks say of one view, at `size`; they sum to 1 at every pixel."""
    full = (refine.upsample(one.float(), size) for one in said)
    return mean(one if len(one) == tags + 1 else _shares(one, config.exponents) for one in full)


def _shares(full: Float[Tensor, "K H W"], exponents: Sequence[float]) -> Float[Tensor, "S H W"]:
    """Label shares of seeds, mean over the background exponents."""
    rest, total = (1 - full.amax(dim=0)).clamp(min=0), full.sum(dim=0)
    backgrounds = torch.stack([rest**exponent for exponent in exponents])
    sums = (backgrounds + total).clamp(min=1e-6)
    background = (backgrounds / sums).mean(dim=0, keepdim=True)
    return torch.cat([background, full * (1 / sums).mean(dim=0)])
