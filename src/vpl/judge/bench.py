"""A set of images held in memory: what any setting of the method makes of them, with nothing done twice.

    pixels -> features (one pass) -> text seeds -> regions -> prototypes -> vision seeds -> refined seeds -> masks

Every result is kept under the part of the configuration that it depends on, so that the next setting costs only what
it changes. The photographs go through the pipeline of a run (`stream`), so masks are those of a run, byte for byte.
Truth masks do not come here: whoever has them compares elsewhere.

Letters: K tags of one image · P prototypes · D joint width · h w patch grid · H W pixels.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from vpl.classes import ClassSet
from vpl.clip.dinov2 import FrozenDinov2
from vpl.clip.model import Features, FrozenClip
from vpl.config import ClipConfig, Config
from vpl.errors import VplError
from vpl.machine import one_core_each, threads
from vpl.method import prototypes
from vpl.method.affinities import refined
from vpl.method.lesson import Lesson, learn
from vpl.method.looks import Seen, gathered, votes
from vpl.method.masks import label_map, pseudo_mask
from vpl.method.regions import Regions, regions
from vpl.method.seeds import seed_maps
from vpl.method.views import View, encode, guided
from vpl.runs.stream import Stream, grid_at

Cams = tuple[Float[Tensor, "_ h w"], ...]
"""One (K, h, w) tensor in [0, 1] for each image, in their order."""

KEPT = 64
"""Results of one kind that are kept; the one that was not asked for the longest goes first."""
KEPT_BYTES = 4 * 2**30
"""Features that are kept in memory; those beyond are computed again each time."""
STAGES = ("text", "vision", "refined")
MASK_STAGES = (*STAGES, "crf", "labels")
"""Seeds of three stages without CRF, the same with CRF, and pseudo-masks with their ignored pixels."""

_S = TypeVar("_S")
_T = TypeVar("_T")


class Shelf:
    """Features within a budget of bytes. Room is made by those of settings that are not asked for any more."""

    def __init__(self, most: int = KEPT_BYTES):
        self.most, self.held = most, 0
        self._lock = threading.Lock()
        self._kept: dict[object, dict[tuple[int, ...], tuple[Features, int]]] = {}

    def get(self, setting: object, members: tuple[int, ...]) -> Features | None:
        """Features of these images under a setting, if they are here."""
        kept = self._kept.get(setting, {}).get(members)
        return kept[0] if kept else None

    def put(self, setting: object, members: tuple[int, ...], features: Features) -> None:
        """Keep features, if there is room or other settings' can go."""
        size = bytes_of(features)
        with self._lock:
            while self.held + size > self.most:
                other = next((one for one in self._kept if one != setting), None)
                if other is None:
                    return
                self.held -= sum(one for _, one in self._kept.pop(other).values())
            self._kept.setdefault(setting, {})[members] = features, size
            self.held += size


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

    # ------------------------------------------------------------------ features

    def passed(
        self, clip: ClipConfig, make: Callable[[tuple[int, ...], Features], _T]
    ) -> Iterator[tuple[tuple[int, ...], _T]]:
        """One pass over the images: the numbers of those that go together, and what `make` makes of their features.

        Raises:
            VplError: an image does not fit into the device's memory.
        """
        stream, setting = Stream(self.clip, clip, self.workers), (id(self), clip)
        sizes = [view.image.shape[:2] for view in self.views]
        batches = stream.plan(len(sizes), lambda number: grid_at(sizes[number], self.clip.patch, clip), _refuse)

        def work(members: tuple[int, ...], views: list[View]) -> _T:
            features = self._shelf.get(setting, members)
            if features is None:
                features = encode(self.clip, views, clip)
                self._shelf.put(setting, members, features)
            return make(members, features)

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

    def masks(
        self, config: Config, stages: Sequence[str] = STAGES
    ) -> dict[str, tuple[UInt8[np.ndarray, "height width"], ...]]:
        """Label maps of each image by stage (`MASK_STAGES`), at the sizes that the views name.

        "labels" and "crf" come together: both or neither.
        """
        exponent = config.labels.background_exponent
        maps = {"text": self.text_seeds, "vision": self.seeds, "refined": self.refined}
        made: dict[str, tuple] = {
            name: tuple(self.drawn(lambda cam, view: label_map(cam.cpu(), view, exponent)[0], maps[name](config)))
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

    def _pseudo_masks(self, config: Config) -> tuple[tuple, tuple]:
        def make(cam: Tensor, view: View) -> tuple:
            _, scores = label_map(cam.cpu(), view, config.labels.background_exponent)
            return pseudo_mask(scores, view, config)

        def count(said: tuple[Tensor, ...], view: View) -> tuple:
            scores = votes(said, len(view.tags), view.image.shape[:2], config.looks)
            return pseudo_mask(scores, view, config)

        vote = config.looks.vote
        pairs = self.drawn(count, self.votes(config)) if vote else self.drawn(make, self.refined(config))
        return tuple(one for one, _ in pairs), tuple(one for _, one in pairs)

    def drawn(self, make: Callable[[_S, View], _T], maps: Sequence[_S]) -> list[_T]:
        """`make` of each image's maps and view, as many at once as there are workers."""
        with one_core_each(), threads(self.workers) as pool:
            return list(pool.map(make, maps, self.views))


def _refuse(_: int, error: VplError) -> None:
    raise error
