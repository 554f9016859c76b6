"""Pass two as one object: what turns photographs and prototypes into label maps, the same on every engine.

    features ──seeds──> cams ──refine──> refined cams ──masks──> label maps and pseudo-masks      METHOD.md 1, 2 and 4
        └──looks──> what several makers say ──votes──> pseudo-masks, where there is more than one look     METHOD.md 5b

Letters: K tags of one image · P prototypes · D joint width · h w patch grid · height width of the photograph's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vpl.clip.dinov2 import FrozenDinov2
from vpl.clip.model import Features, FrozenClip
from vpl.config import Config
from vpl.machine import Clock, unless_out_of_memory
from vpl.method import looks, masks
from vpl.method.affinities import refined
from vpl.method.seeds import seed_maps
from vpl.method.views import View, encode, guided


@dataclass(frozen=True)
class Draft:
    """What the encoder's device has made of one view.

    Attributes:
        seeds: maps on the CPU by name: text, vision (if any) and refined.
        said: what each look says, on the CPU; empty where the refined seeds alone make the pseudo-mask.
        pseudo: the two results of `pseudo_mask`, where the device computed the CRF; otherwise None.
    """

    seeds: dict[str, Float[Tensor, "_ h w"]]
    said: tuple[Float[Tensor, "_ _ _"], ...] = ()
    pseudo: tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]] | None = None


@dataclass(frozen=True)
class Labeller:
    """Pass two as one object: what turns photographs into label maps, the same on every engine.

    Attributes:
        text: text prototypes, the classes' rows first, on the device of `clip`.
        vision: vision prototypes, or None where `prototypes.kind` is text.
        classes: number of foreground classes.
        guide: the encoder of `refine.features`, where it is asked for.
        encoder: makes the encodings of looks at other scales and of mirror images; None: `clip`.
        clock: counts the seconds of encode, seeds, refine, looks, upsample and crf ("crf on device" where that computes
            it).
    """

    clip: FrozenClip
    text: Float[Tensor, "P D"]
    vision: Float[Tensor, "P D"] | None
    classes: int
    config: Config
    guide: FrozenDinov2 | None = field(default=None, repr=False, compare=False)
    encoder: looks.Encoder | None = field(default=None, repr=False, compare=False)
    clock: Clock = field(default_factory=Clock, repr=False, compare=False)

    def drafts(self, views: Sequence[View], pseudo: bool) -> list[Draft]:
        """What `masks` needs of each view; their patch grids are equal. With `pseudo`, on a GPU also the CRFs."""
        with self.clock("encode"):
            features = [guided(encode(self.clip, views, self.config.clip), views, self.guide)]
        return self.drafts_of(features.pop(), views, pseudo)  # which lets go of them before the CRFs

    def drafts_of(
        self,
        features: Features,
        views: Sequence[View],
        pseudo: bool,
        seeds: list[Float[Tensor, "_ h w"]] | None = None,
    ) -> list[Draft]:
        """The same from the views' encoding, of which `looks.READS` is read.

        Args:
            seeds: the text seeds of each view on the device of `clip`, where they have been made.
        """
        kind, tags = self.config.seeds.kind, [view.tags for view in views]
        with self.clock("seeds"):
            scale = self.clip.logit_scale
            last = seeds or seed_maps(self.clip, features, tags, self.text, self.classes, scale, kind)
            cams = {"text": last}
            if self.vision is not None:
                scale = 1 / self.config.prototypes.image_temperature
                last = cams["vision"] = seed_maps(self.clip, features, tags, self.vision, self.classes, scale, kind)
        with self.clock("refine"):
            cams["refined"] = refined(self.clip, features, tags, last, self.text, self.classes, self.config.refine)
            found = [Draft({name: cam[place].cpu() for name, cam in cams.items()}) for place in range(len(views))]
        if pseudo and self.config.looks.vote:
            with self.clock("looks"):
                said = self._said(features, views, cams["refined"])
            found = [replace(one, said=own) for one, own in zip(found, said, strict=True)]
        del features
        if not (pseudo and self.config.crf.enabled and _crf_goes_to(self.clip.device)):
            return found
        with self.clock("crf on device"):
            made = self._pseudo(views, cams["refined"], found)
        return [replace(one, pseudo=pair) for one, pair in zip(found, made, strict=True)]

    def _said(
        self, features: Features, views: Sequence[View], refined: list[Float[Tensor, "_ h w"]]
    ) -> list[tuple[Tensor, ...]]:
        """What each look says of each view, on the CPU; GradCAM of the views as they are has spoken already."""
        tags = [view.tags for view in views]
        first = looks.Seen(self.clip, features, tags, self.text, self.vision, self.classes, self.config, self.guide)
        return looks.gathered(first, views, self.encoder, {looks.PAPER: refined})

    def _pseudo(self, views: Sequence[View], cams: Sequence[Float[Tensor, "_ h w"]], drafts: Sequence[Draft]) -> list:
        """`pseudo_masks` on the device; [None] for one view that doesn't fit even alone: the CPU does it then."""

        def work(views: Sequence[View]) -> list:
            scores = [
                self._scores(view, cam, [one.to(cam.device) for one in draft.said])
                for view, cam, draft in zip(views, cams, drafts, strict=True)
            ]
            return masks.pseudo_masks(scores, views, self.config)

        return work(views) if len(views) > 1 else unless_out_of_memory(work, views) or [None]

    def scores(self, view: View, draft: Draft) -> Float[Tensor, "S H W"]:
        """[background; tags] that the pseudo-mask is made from, at the view's size: of votes, or of refined seeds."""
        return self._scores(view, draft.seeds["refined"], draft.said)

    def _scores(
        self, view: View, refined: Float[Tensor, "_ h w"], said: Sequence[Float[Tensor, "_ _ _"]]
    ) -> Float[Tensor, "S H W"]:
        if said:
            return looks.votes(said, len(view.tags), view.image.shape[:2], self.config.looks)
        return masks.label_scores(refined, view, self.config.labels.background_exponent)

    def masks(self, view: View, draft: Draft, pseudo: bool) -> dict[str, UInt8[np.ndarray, "height width"]]:
        """Label maps of `draft` at `view.size` by name; with `pseudo`, also "crf" and "labels" (the pseudo-mask)."""
        found = {}
        with self.clock("upsample"):
            for name, cam in draft.seeds.items():
                found[name], scores = masks.label_map(cam, view, self.config.labels.background_exponent)
            if pseudo and draft.said and not draft.pseudo:
                scores = self.scores(view, draft)
        if pseudo and draft.pseudo:
            found["crf"], found["labels"] = draft.pseudo
        elif pseudo:
            with self.clock("crf"):
                found["crf"], found["labels"] = masks.pseudo_mask(scores, view, self.config)
        return found


def _crf_goes_to(device: torch.device) -> bool:
    """Whether the encoder's device computes the CRFs too, a batch together; otherwise the finishing threads do."""
    return device.type == "cuda"
