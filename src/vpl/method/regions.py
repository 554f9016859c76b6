"""Regions: where a text seed is sure of its tag, and what the frozen encoder says of that place (METHOD.md 3.1).

    region of tag k = { seed_k > Φ }      region of the background = { every seed < a low threshold }
    x = unit( mean of the projected patch tokens in the region )      tokens: as `prototypes.features` says

Letters: K tags of one image · N regions · R = K + 1 regions of one image · D joint width · h w patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vpl.clip.model import Features, FrozenClip
from vpl.config import PrototypeConfig
from vpl.edges import images
from vpl.method import prototypes
from vpl.method.selfself import patches_of
from vpl.method.views import View

BACKGROUND_REGION = -1
"""The class number of a background region's embedding."""


@dataclass(frozen=True)
class Regions:
    """Region embeddings of some images.

    Attributes:
        embeddings: unit rows.
        classes: class number of the tag that the region belongs to, or `BACKGROUND_REGION`.
        images: number of each region's image, in the batch or in the list of all.
        tag_ranks: for each image, the share of (own tag, other class) pairs that the bare text scores order rightly;
            chance is 0.5, nan when every class is a tag.
    """

    embeddings: Float[Tensor, "N D"]
    classes: Int[Tensor, " N"]
    images: Int[Tensor, " N"]
    tag_ranks: Float[Tensor, " images"]

    def numbered(self, members: Sequence[int]) -> Regions:
        """The same with the images' numbers in a longer list, given in their order."""
        return replace(self, images=torch.tensor(members)[self.images])

    def each(self) -> list[Regions]:
        """Those of each image by itself, as image 0."""
        found = []
        for number in range(len(self.tag_ranks)):
            own = self.images == number
            none = torch.zeros(int(own.sum()), dtype=self.images.dtype)
            found.append(Regions(self.embeddings[own], self.classes[own], none, self.tag_ranks[number : number + 1]))
        return found

    @classmethod
    def joined(cls, parts: Sequence[Regions]) -> Regions:
        """All parts' regions, in their order."""
        return cls(*(torch.cat([getattr(one, name) for one in parts]) for name in cls.__dataclass_fields__))


def regions(
    clip: FrozenClip,
    features: Features,
    views: Sequence[View],
    cams: Sequence[Float[Tensor, "_ h w"]],
    text: Float[Tensor, "P D"],
    classes: int,
    config: PrototypeConfig,
) -> Regions:
    """The region embeddings that vision prototypes are learned from (METHOD.md 3.1).

    A tag's region is where its seed is above Φ, the background region where every seed is below `background_phi`.
    Empty regions give no row. `image` regions are whole images, as InMaP has them, one row for each tag.
    """
    embeddings, numbers, owners = [], [], []
    patches = patches_of(clip, features, config.features)
    for number, (view, cam) in enumerate(zip(views, cams, strict=True)):
        masks = _region_masks(cam, config)
        labels = torch.tensor([*view.tags, BACKGROUND_REGION])
        if config.region == "pooled":
            rows, valid = prototypes.region_embeddings(patches[number], masks.flatten(1))
        elif config.region == "masked":
            rows, valid = _masked_embeddings(clip, view, masks)
        else:
            whole = torch.ones_like(masks.flatten(1))
            rows, valid = prototypes.region_embeddings(patches[number], whole)
            valid = valid & (labels != BACKGROUND_REGION)
        embeddings.append(rows[valid].float().cpu())
        numbers.append(labels[valid.cpu()])
        owners.append(torch.full((int(valid.sum()),), number))
    return Regions(
        torch.cat(embeddings), torch.cat(numbers), torch.cat(owners), tag_ranks(features, views, text[:classes])
    )


def _region_masks(cam: Float[Tensor, "K h w"], config: PrototypeConfig) -> Bool[Tensor, "K+1 h w"]:
    """The K tags' regions, then the background's."""
    return torch.cat([cam > config.phi, (cam < config.background_phi).all(dim=0, keepdim=True)])


def _masked_embeddings(
    clip: FrozenClip, view: View, masks: Bool[Tensor, "R h w"]
) -> tuple[Float[Tensor, "R D"], Bool[Tensor, " R"]]:
    """The class-token embedding of the image with everything outside each region set to CLIP's mean colour.

    The image has the grid of the regions, so that it is no larger at the encoder than `clip.max_patches` allows.
    """
    pixels = images.on_grid(view.image, (masks.shape[1], masks.shape[2]), clip.patch, clip.mean, clip.std)
    full = torch.nn.functional.interpolate(masks[None].float(), pixels.shape[1:], mode="nearest")[0]
    valid = masks.flatten(1).any(dim=1)
    return clip.embed_images(pixels[None] * full[:, None].to(pixels)), valid


def tag_ranks(features: Features, views: Sequence[View], text: Float[Tensor, "C D"]) -> Float[Tensor, " images"]:
    """How well the mean patch embedding of each image ranks its tags above the other classes, 0 to 1; chance is 0.5.

    Args:
        text: the classes' prototypes. nan where an image carries every class.
    """
    embedding = torch.nn.functional.normalize(features.patches.float().mean(dim=1), dim=1)
    scores = (embedding @ text.T.to(embedding)).cpu()
    ranks = []
    for row, view in zip(scores, views, strict=True):
        own = torch.zeros(len(row), dtype=torch.bool)
        own[list(view.tags)] = True
        above = row[own][:, None] - row[~own][None, :]
        ranks.append(((above > 0).float() + 0.5 * (above == 0).float()).mean())
    return torch.stack(ranks)
