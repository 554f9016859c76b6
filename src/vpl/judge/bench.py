"""A set of images at hand: what any setting of the method makes of them, with nothing done twice.

    pixels -> features (one pass) -> text seeds -> regions -> prototypes -> vision seeds -> refined seeds -> masks

Every result is kept under the part of the configuration that it depends on, so that the next setting costs only what
it changes. The photographs go through the pipeline of a run (`stream`), so masks are those of a run, byte for byte.
Truth masks do not come here: whoever has them compares elsewhere. Features are in memory up to a budget, beyond it
encodings are on disk up to another (`runs.shelf`), and beyond that images are encoded again: the same bits each time.

Letters: K tags of one image · P prototypes · D joint width · h w patch grid · H W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vpl.classes import ClassSet
from vpl.clip.dinov2 import FrozenDinov2
from vpl.clip.model import Features, FrozenClip
from vpl.config import ClipConfig, Config
from vpl.errors import VplError
from vpl.judge.packed import Deflated, Packed, packed
from vpl.machine import one_core_each, threads
from vpl.method import prototypes
from vpl.method.affinities import refined
from vpl.method.lesson import Lesson, learn
from vpl.method.looks import Seen, gathered, votes
from vpl.method.masks import label_map, pseudo_mask
from vpl.method.regions import Regions, regions
from vpl.method.seeds import seed_maps
from vpl.method.views import View, guided
from vpl.runs import shelf
from vpl.runs.stream import Stream, grid_at

Cams = tuple[Float[Tensor, "_ h w"], ...]
"""One (K, h, w) tensor in [0, 1] for each image, in their order."""

KEPT = 64
"""Results of one kind that are kept; the one that was not asked for the longest goes first."""
KEPT_BYTES = 2**30
"""Features that are kept in memory, with a folder for those beyond; without one they are computed again each time."""
STAGES = ("text", "vision", "refined")
MASK_STAGES = (*STAGES, "crf", "labels")
"""Seeds of three stages without CRF, the same with CRF, and pseudo-masks with their ignored pixels."""

log = logging.getLogger("vpl")
_S = TypeVar("_S")
_T = TypeVar("_T")


class Shelf:
    """Features within a budget of bytes. Room is made by those of settings that are not asked for any more.

    Args:
        most: bytes of features in memory.
        folder: where encodings go for whose features there is no room, within `clip.keep_gb`; None: nowhere. `close`
            removes it.
    """

    def __init__(self, most: int = KEPT_BYTES, folder: Path | None = None):
        self.most, self.held, self.folder = most, 0, folder
        self._lock = threading.Lock()
        self._kept: dict[object, dict[tuple[int, ...], tuple[Features, int]]] = {}
        self._beyond: dict[object, shelf.Shelf] = {}

    @property
    def encoded(self) -> int:
        """Images that have gone through the encoder."""
        return sum(one.encoded for one in self._beyond.values())

    def features(
        self,
        clip: FrozenClip,
        views: Sequence[View],
        config: ClipConfig,
        of: object,
        members: tuple[int, ...],
    ) -> Features:
        """Features of images of one patch grid, as the encoder gives them or gave them before.

        Args:
            of: whose images they are; members: their numbers among those.
        """
        setting = (of, config)
        if (kept := self.get(setting, members)) is not None:
            return kept
        grid = grid_at(views[0].image.shape[:2], clip.patch, config)
        size = len(views) * _most_bytes(clip, grid)
        room = self._reserve(setting, size)
        if self.folder and not room and not self._beyond.get(setting):
            log.info(
                "features of more images than fit into %.1f GB of memory: encodings go to %s, at most %g GB "
                "(clip.keep_gb) and half of what is free there.", self.most / 1e9, self.folder, config.keep_gb,
            )  # fmt: skip
        beyond, name = self._beyond_of(setting, config), hashlib.sha256(repr(setting).encode()).hexdigest()[:16]
        try:
            features = beyond.features(clip, views, [f"{name}-{one}" for one in members], [not room] * len(views))
        except BaseException:
            self._release(size if room else 0)
            raise
        if room:
            self._release(size)
            self.put(setting, members, features)
        return features

    def _beyond_of(self, setting: object, config: ClipConfig) -> shelf.Shelf:
        with self._lock:
            if setting not in self._beyond:
                budget = config if self.folder else replace(config, keep_gb=0.0)
                self._beyond[setting] = shelf.Shelf(self.folder or Path(), budget)
            return self._beyond[setting]

    def get(self, setting: object, members: tuple[int, ...]) -> Features | None:
        """Features of these images under a setting, if they are in memory."""
        kept = self._kept.get(setting, {}).get(members)
        return kept[0] if kept else None

    def put(self, setting: object, members: tuple[int, ...], features: Features) -> None:
        """Keep features, if there is room or other settings' can go."""
        size = bytes_of(features)
        if self._reserve(setting, size):
            with self._lock:
                self._kept.setdefault(setting, {})[members] = features, size

    def _reserve(self, setting: object, size: int) -> bool:
        """Whether there is room for so many bytes, which from here on are held."""
        with self._lock:
            while self.held + size > self.most:
                other = next((one for one in self._kept if one != setting), None)
                if other is None:
                    return False
                self.held -= sum(one for _, one in self._kept.pop(other).values())
            self.held += size
            return True

    def _release(self, size: int) -> None:
        with self._lock:
            self.held -= size

    def close(self) -> None:
        """Remove what is on disk."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def _most_bytes(clip: FrozenClip, grid: tuple[int, int]) -> int:
    """What features of one image take at most, all in float32."""
    tokens, inner = 1 + grid[0] * grid[1], clip.image.blocks[-1].up.weight.shape[0]
    return 4 * tokens * (8 * clip.width + inner + clip.dim + tokens)


def bytes_of(features: Features) -> int:
    """What features take in memory."""
    last = vars(features.last).values() if features.last else ()
    tensors = [features.patches, *last, *(features.blocks or ())]
    if features.attention is not None:
        tensors.append(features.attention)
    return sum(one.numel() * one.element_size() for one in tensors)


class Bench:
    """Images, their tags and a frozen CLIP, ready for any configuration.

    Args:
        clip: the frozen encoders.
        classes: the class set; its first C prototypes are the classes.
        views: the images with the numbers of their tags.
        workers: threads of each kind, see `stream.Stream`.
        shelf: where features are kept.
    """

    def __init__(
        self,
        clip: FrozenClip,
        classes: ClassSet,
        views: Sequence[View],
        workers: int = 2,
        shelf: Shelf | None = None,
    ):
        self.clip, self.classes, self.views, self.workers = clip, classes, tuple(views), workers
        self._shelf = shelf or Shelf()
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
            return Bench(self.clip, self.classes, views, self.workers, self._shelf)

        return self.once("mirrored", None, make)

    def close(self) -> None:
        """Remove what is on disk."""
        self._shelf.close()

    # ------------------------------------------------------------------ features

    def passed(
        self, clip: ClipConfig, make: Callable[[tuple[int, ...], Features], _T]
    ) -> Iterator[tuple[tuple[int, ...], _T]]:
        """One pass over the images: the numbers of those that go together, and what `make` makes of their features.

        Raises:
            VplError: an image does not fit into the device's memory.
        """
        stream = Stream(self.clip, clip, self.workers)
        sizes = [view.image.shape[:2] for view in self.views]
        batches = stream.plan(len(sizes), lambda number: grid_at(sizes[number], self.clip.patch, clip), _refuse)

        def work(members: tuple[int, ...], views: list[View]) -> _T:
            return make(members, self._shelf.features(self.clip, views, clip, id(self), members))

        with contextlib.closing(stream.flow(batches, lambda number: self.views[number], work)) as flow:
            for settled in flow:
                for number, error in settled.failures:
                    _refuse(number, error)
                yield from ((portion.members, portion.result) for portion in settled.portions)

    def each(self, clip: ClipConfig, make: Callable[[tuple[int, ...], Features], Sequence[_T]]) -> tuple[_T, ...]:
        """`make` of every batch (its views' numbers and features), in the order of the views."""
        made: dict[int, _T] = {}
        for members, found in self.passed(clip, make):
            made |= zip(members, found, strict=True)
        return tuple(made[number] for number in range(len(self.views)))

    # ------------------------------------------------------------------ prototypes and maps

    def text(self, config: Config) -> Float[Tensor, "P D"]:
        """T: the classes' rows, then the background words'."""

        def make() -> Tensor:
            return prototypes.text_prototypes(self.clip, self.classes, config.prompts).all

        return self.once("text", config.prompts, make)

    def guide(self, config: Config) -> FrozenDinov2 | None:
        """The encoder of `refine.features`, where it is asked for."""
        if not config.refine.guided:
            return None
        name = config.refine.features
        return self.once("guide", name, lambda: FrozenDinov2.load(name, str(self.clip.device)), most=1)

    def _seeds(self, table: Float[Tensor, "P D"], scale: float, config: Config) -> Cams:
        count, kind, table = len(self.classes), config.seeds.kind, table.to(self.clip.device)

        def make(members: tuple[int, ...], features: Features) -> list[Tensor]:
            tags = [self.views[number].tags for number in members]
            return seed_maps(self.clip, features, tags, table, count, scale, kind)

        return self.each(config.clip, make)

    def _refine(self, cams: Cams, config: Config) -> Cams:
        text, guide, count = self.text(config), self.guide(config), len(self.classes)

        def make(members: tuple[int, ...], features: Features) -> list[Tensor]:
            views = [self.views[number] for number in members]
            seen, tags = guided(features, views, guide), [view.tags for view in views]
            return refined(self.clip, seen, tags, [cams[one] for one in members], text, count, config.refine)

        return self.each(config.clip, make)

    def text_seeds(self, config: Config) -> Cams:
        """Seeds from the text prototypes."""
        key = (config.clip, config.prompts, config.seeds)
        return self.once("text seeds", key, lambda: self._seeds(self.text(config), self.clip.logit_scale, config))

    def lesson(self, config: Config) -> Lesson:
        """Regions and vision prototypes, learned as many rounds as the configuration says."""
        return self.once("lesson", self._learned_from(config), lambda: self._learn(config))

    def _learned_from(self, config: Config) -> tuple:
        """What prototypes and their seeds depend on."""
        key = (config.clip, config.prompts, config.seeds, config.prototypes)
        return (*key, config.refine) if config.prototypes.refined else key

    def _learn(self, config: Config) -> Lesson:
        text, count = self.text(config), len(self.classes)

        def survey(turn: int, table: Tensor, scale: float) -> Regions:
            cams = self._seeds(table, scale, config) if turn else self.text_seeds(config)
            spread = self._refine(cams, config) if config.prototypes.refined else cams

            def make(members: tuple[int, ...], features: Features) -> Regions:
                views, maps = [self.views[number] for number in members], [spread[number] for number in members]
                return regions(self.clip, features, views, maps, text, count, config.prototypes).numbered(members)

            return Regions.joined([one for _, one in self.passed(config.clip, make)])

        tags = [view.tags for view in self.views]
        return learn(survey, tags, text.cpu(), self.clip.logit_scale, count, config.prototypes, device=self.clip.device)

    def seeds(self, config: Config) -> Cams:
        """Seeds from the prototypes that the configuration asks for: vision or text."""
        if config.prototypes.kind == "text":
            return self.text_seeds(config)

        return self.once("seeds", self._learned_from(config), lambda: self._seeds(*self.table(config), config))

    def table(self, config: Config) -> tuple[Float[Tensor, "P D"], float]:
        """The prototypes that the configuration asks seeds from, on the CLIP's device, and their cosines' scale."""
        if config.prototypes.kind == "text":
            return self.text(config), self.clip.logit_scale
        vision = self.lesson(config).vision.to(self.clip.device)
        return vision, 1 / config.prototypes.image_temperature

    def refined(self, config: Config) -> Cams:
        """These seeds, spread along the attention."""
        key = (config.clip, config.prompts, config.seeds, config.prototypes, config.refine)
        return self.once("refined", key, lambda: self._refine(self.seeds(config), config))

    def refined_with(self, table: Float[Tensor, "P D"], scale: float, config: Config) -> Cams:
        """Refined seeds from prototypes that were learned elsewhere, in one pass that keeps nothing else.

        Args:
            scale: of the cosines: CLIP's own for text prototypes, 1/τI for vision prototypes.
        """
        table, _, _ = table.to(self.clip.device), self.text(config), self.guide(config)  # once, before the threads
        return self.each(
            config.clip, lambda members, features: self.refined_of(members, features, table, scale, config)
        )

    def refined_of(
        self, members: tuple[int, ...], features: Features, table: Float[Tensor, "P D"], scale: float, config: Config
    ) -> list[Float[Tensor, "_ h w"]]:
        """The same of some images, by their features and a table on the device of the CLIP."""
        views, count = [self.views[number] for number in members], len(self.classes)
        features, tags = guided(features, views, self.guide(config)), [view.tags for view in views]
        cams = seed_maps(self.clip, features, tags, table, count, scale, config.seeds.kind)
        return refined(self.clip, features, tags, cams, self.text(config), count, config.refine)

    # ------------------------------------------------------------------ masks

    def masks(self, config: Config, stages: Sequence[str] = STAGES) -> dict[str, Packed]:
        """Label maps (height, width) of each image by stage (`MASK_STAGES`), at the sizes that the views name.

        "labels" and "crf" come together: both or neither.
        """
        exponent = config.labels.background_exponent
        maps = {"text": self.text_seeds, "vision": self.seeds, "refined": self.refined}

        def draw(cam: Tensor, view: View) -> Deflated:
            return packed(label_map(cam.cpu(), view, exponent)[0])

        made = {name: Packed(self.drawn(draw, maps[name](config))) for name in stages if name in maps}
        if "crf" in stages or "labels" in stages:
            key = (
                config.clip,
                config.prompts,
                config.seeds,
                config.prototypes,
                config.refine,
                config.looks,
                config.par,
                config.labels,
                config.crf,
            )
            likely, sure = self.once("masks", key, lambda: self._pseudo_masks(config), most=4)
            made |= {name: one for name, one in (("crf", likely), ("labels", sure)) if name in stages}
        return {name: made[name] for name in stages}

    def votes(
        self, config: Config, table: Float[Tensor, "P D"] | None = None
    ) -> tuple[tuple[Float[Tensor, "_ _ _"], ...], ...]:
        """What each look says of each image, see `looks.votes`; made as a run makes it, from the same batches.

        Args:
            table: prototypes for GradCAM that were learned elsewhere.
        """
        own, text = self.table(config)[0] if table is None else table, self.text(config)
        vision = None if config.prototypes.kind == "text" else own

        guide = self.guide(config)

        def make(members: tuple[int, ...], features: Features) -> list[tuple[Tensor, ...]]:
            views = [self.views[number] for number in members]
            seen, tags = guided(features, views, guide), [view.tags for view in views]
            return gathered(Seen(self.clip, seen, tags, text, vision, len(self.classes), config, guide), views)

        return self.each(config.clip, make)

    def _pseudo_masks(self, config: Config) -> tuple[Packed, Packed]:
        def make(cam: Tensor, view: View) -> list:
            _, scores = label_map(cam.cpu(), view, config.labels.background_exponent)
            return [packed(one) for one in pseudo_mask(scores, view, config)]

        def count(said: tuple[Tensor, ...], view: View) -> list:
            scores = votes(said, len(view.tags), view.image.shape[:2], config.looks)
            return [packed(one) for one in pseudo_mask(scores, view, config)]

        vote = config.looks.vote
        pairs = self.drawn(count, self.votes(config)) if vote else self.drawn(make, self.refined(config))
        return Packed(one for one, _ in pairs), Packed(one for _, one in pairs)

    def drawn(self, make: Callable[[_S, View], _T], maps: Sequence[_S]) -> list[_T]:
        """`make` of each image's maps and view, as many at once as there are workers."""
        with one_core_each(), threads(self.workers) as pool:
            return list(pool.map(make, maps, self.views))


def _refuse(_: int, error: VplError) -> None:
    raise error
