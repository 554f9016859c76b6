"""A set of images held in memory: what any setting of the method makes of them, with nothing done twice.

    pixels -> features (one pass) -> text seeds -> regions -> prototypes -> vision seeds -> refined seeds -> masks

Every result is kept under the part of the configuration that it depends on, so that the next setting costs only what
it changes. `ablate` and `tune` are built on it. Truth masks do not come here: whoever has them compares elsewhere.

Letters: K tags of one image · C classes · B background words · D joint width · h w patch grid · H W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vpl.classes import ClassSet
from vpl.clip.model import Features, FrozenClip
from vpl.config import ClipConfig, Config
from vpl.edges.images import encoder_scale, patch_size_of
from vpl.method import labels, prototypes
from vpl.method.labels import BACKGROUND_REGION, View
from vpl.method.prototypes import Learned, Report

Maps = tuple[Float[Tensor, "_ h w"], ...]
"""One (K, h, w) tensor in [0, 1] for each image, in their order."""

KEPT = 64
"""Results of one kind that are kept; the one that was not asked for the longest goes first."""
STAGES = ("text", "vision", "refined")
MASK_STAGES = (*STAGES, "crf", "labels")
"""Seeds of three stages without CRF, the same with CRF, and pseudo-masks with their ignored pixels."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Knowledge:
    """What was learned from the regions.

    Attributes:
        text, vision: T and V, unit rows, classes first.
        x: unit embeddings of the regions that were learned from.
        classes: their class numbers, or `labels.BACKGROUND_REGION`.
        learned: V and how it was reached.
        report: METHOD.md 3.5 over the tags' regions; None without one.
        tag_ranks: see `labels.Regions`.
    """

    text: Float[Tensor, "P D"]
    vision: Float[Tensor, "P D"]
    x: Float[Tensor, "N D"]
    classes: Int[Tensor, " N"]
    learned: Learned
    report: Report | None
    tag_ranks: Float[Tensor, " images"]


class Bench:
    """Images, their tags and a frozen CLIP, ready for any configuration.

    Args:
        clip: the frozen encoders.
        classes: the class set; its first C prototypes are the classes.
        views: the images with the numbers of their tags.
        workers: threads for CRFs.
    """

    def __init__(self, clip: FrozenClip, classes: ClassSet, views: Sequence[View], workers: int = 2):
        self.clip, self.classes, self.views, self.workers = clip, classes, tuple(views), workers
        self._kept: dict[str, OrderedDict] = {}

    def once(self, kind: str, key: object, make: Callable[[], _T], most: int = KEPT) -> _T:
        """`make`'s result, kept on the shelf `kind` under `key` while there are at most `most` of them."""
        shelf = self._kept.setdefault(kind, OrderedDict())
        if key not in shelf:
            shelf[key] = make()
            while len(shelf) > most:
                shelf.popitem(last=False)
        shelf.move_to_end(key)
        return shelf[key]

    def mirrored(self) -> Bench:
        """The same images, mirrored left to right."""

        def make() -> Bench:
            views = [View(np.ascontiguousarray(one.image[:, ::-1]), one.tags, one.size) for one in self.views]
            return Bench(self.clip, self.classes, views, self.workers)

        return self.once("mirrored", None, make)

    # ------------------------------------------------------------------ features

    def features(self, clip: ClipConfig) -> list[tuple[tuple[int, ...], Features]]:
        """Numbers of views with equal patch grids, and their features, batch by batch."""
        return self.once("features", clip, lambda: list(self._encode(clip)), most=2)

    def _encode(self, clip: ClipConfig) -> Iterator[tuple[tuple[int, ...], Features]]:
        groups: dict[tuple[int, int], list[int]] = {}
        for number, view in enumerate(self.views):
            size = view.image.shape[:2]
            scale = encoder_scale(*size, self.clip.patch, clip.scale, clip.max_patches)
            grid = patch_size_of(*size, self.clip.patch, scale)
            groups.setdefault(grid, []).append(number)
        config = Config(clip=clip)
        for members in groups.values():
            for first in range(0, len(members), clip.batch):
                these = tuple(members[first : first + clip.batch])
                yield these, labels.encode(self.clip, [self.views[number] for number in these], config)

    def _each(self, clip: ClipConfig, make: Callable[[tuple[int, ...], Features], Sequence[_T]]) -> tuple[_T, ...]:
        """`make` of every batch (its views' numbers and features), in the order of the views."""
        made: dict[int, _T] = {}
        for members, features in self.features(clip):
            made |= zip(members, make(members, features), strict=True)
        return tuple(made[number] for number in range(len(self.views)))

    # ------------------------------------------------------------------ prototypes and maps

    def text(self, config: Config) -> Float[Tensor, "P D"]:
        """T: the classes' rows, then the background words'."""

        def make() -> Tensor:
            return prototypes.text_prototypes(self.clip, self.classes, config.prompts).all

        return self.once("text", config.prompts, make)

    def _seeds(self, table: Float[Tensor, "P D"], scale: float, config: Config) -> Maps:
        count, kind = len(self.classes), config.seeds.kind

        def make(members: tuple[int, ...], features: Features) -> list[Tensor]:
            views = [self.views[number] for number in members]
            return labels.seed_maps(self.clip, features, views, table, count, scale, kind)

        return self._each(config.clip, make)

    def _refine(self, cams: Maps, config: Config) -> Maps:
        return self._each(
            config.clip,
            lambda members, features: labels.refine_maps(features, [cams[one] for one in members], config.refine),
        )

    def text_seeds(self, config: Config) -> Maps:
        """Seeds from the text prototypes."""
        key = (config.clip, config.prompts, config.seeds)
        return self.once("text seeds", key, lambda: self._seeds(self.text(config), self.clip.logit_scale, config))

    def knowledge(self, config: Config) -> Knowledge:
        """Regions and vision prototypes, learned as many rounds as the configuration says."""
        return self.once("knowledge", self._learned_from(config), lambda: self._learn(config))

    def _learned_from(self, config: Config) -> tuple:
        """What prototypes and their seeds depend on."""
        key = (config.clip, config.prompts, config.seeds, config.prototypes)
        return (*key, config.refine) if config.prototypes.refined else key

    def _learn(self, config: Config) -> Knowledge:
        text, own = self.text(config), config.prototypes
        cams = self.text_seeds(config)
        for turn in range(own.rounds):
            if turn:
                cams = self._seeds(lesson.learned.prototypes.to(text), 1 / own.image_temperature, config)
            regions, numbers = self._regions(cams, config)
            tags = [self.views[number].tags for number in numbers]
            embeddings, found = (
                torch.cat([getattr(one, name) for one in regions]) for name in ("embeddings", "classes")
            )
            lesson = labels.learn(embeddings, found, tags, text.cpu(), len(self.classes), own)
        kept = lesson.classes != BACKGROUND_REGION
        vision, x = lesson.learned.prototypes, lesson.x
        report = None
        if kept.any():
            report = prototypes.report(
                x[kept], lesson.q[kept], lesson.classes[kept], text.cpu(), vision, own.image_temperature
            )
        ranks = torch.cat([one.tag_ranks for one in regions])
        return Knowledge(text.cpu(), vision, x, lesson.classes, lesson.learned, report, ranks)

    def _regions(self, cams: Maps, config: Config) -> tuple[list[labels.Regions], list[int]]:
        """The regions of every batch, and the number of each region's view."""
        text, own = self.text(config), config.prototypes
        spread = self._refine(cams, config) if own.refined else cams
        made, numbers = [], []
        for members, features in self.features(config.clip):
            views, maps = [self.views[number] for number in members], [spread[number] for number in members]
            one = labels.regions(self.clip, features, views, maps, text, len(self.classes), own)
            made.append(one)
            numbers += [members[place] for place in one.views.tolist()]
        return made, numbers

    def seeds(self, config: Config) -> Maps:
        """Seeds from the prototypes that the configuration asks for: vision or text."""
        if config.prototypes.kind == "text":
            return self.text_seeds(config)

        def make() -> Maps:
            vision = self.knowledge(config).vision.to(self.clip.device)
            return self._seeds(vision, 1 / config.prototypes.image_temperature, config)

        return self.once("seeds", self._learned_from(config), make)

    def refined(self, config: Config) -> Maps:
        """These seeds, spread along the attention."""
        key = (config.clip, config.prompts, config.seeds, config.prototypes, config.refine)
        return self.once("refined", key, lambda: self._refine(self.seeds(config), config))

    def refined_with(self, table: Float[Tensor, "P D"], config: Config) -> Maps:
        """Refined seeds from vision prototypes that were learned elsewhere."""
        seeds = self._seeds(table.to(self.clip.device), 1 / config.prototypes.image_temperature, config)
        return self._refine(seeds, config)

    # ------------------------------------------------------------------ masks

    def masks(
        self, config: Config, stages: Sequence[str] = STAGES
    ) -> dict[str, tuple[UInt8[np.ndarray, "height width"], ...]]:
        """Label maps of each image by stage (`MASK_STAGES`), at the sizes that the views name.

        "labels" and "crf" come together: both or neither.
        """
        exponent = config.labels.background_exponent
        maps = {"text": self.text_seeds, "vision": self.seeds, "refined": self.refined}
        made: dict[str, tuple] = {
            name: tuple(
                labels.label_map(cam.cpu(), view, exponent)[0]
                for cam, view in zip(maps[name](config), self.views, strict=True)
            )
            for name in stages
            if name in maps
        }
        if "crf" in stages or "labels" in stages:
            key = (
                config.clip,
                config.prompts,
                config.seeds,
                config.prototypes,
                config.refine,
                config.labels,
                config.crf,
            )
            likely, sure = self.once("masks", key, lambda: self._pseudo_masks(config), most=4)
            made |= {name: one for name, one in (("crf", likely), ("labels", sure)) if name in stages}
        return {name: made[name] for name in stages}

    def _pseudo_masks(self, config: Config) -> tuple[tuple, tuple]:
        def make(cam: Tensor, view: View) -> tuple:
            _, scores = labels.label_map(cam.cpu(), view, config.labels.background_exponent)
            return labels.pseudo_mask(scores, view, config.labels, config.crf)

        with ThreadPoolExecutor(self.workers) as pool:
            pairs = list(pool.map(make, self.refined(config), self.views))
        return tuple(one for one, _ in pairs), tuple(one for _, one in pairs)
