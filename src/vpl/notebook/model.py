"""The method on images at hand: tags to label maps in a few lines, with the bytes that a run writes.

    model = vpl.VPL(clip="openai/clip-vit-base-patch16", classes=["dog", "chair"])
    model.fit(images, tags)                     # vision prototypes (METHOD.md 3); without it, text prototypes
    model.segment(image, tags).overlay()

Images that are fitted are held in memory; thousands of photographs are a run's (`vpl.run`). Truth masks don't come
here.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vpl import classes as class_sets
from vpl.classes import ClassSet
from vpl.clip.dinov2 import FrozenDinov2
from vpl.clip.model import FrozenClip
from vpl.config import ClipConfig, Config, quality
from vpl.edges import images as edge_images
from vpl.edges.tags import Speller, told_same
from vpl.errors import ConfigError, DataError, ModelError, RunError, VplError
from vpl.judge.bench import Bench, Shelf
from vpl.method import lesson
from vpl.method.labeller import Draft, Labeller
from vpl.method.lesson import Lesson
from vpl.method.views import View, prepared
from vpl.notebook.pictures import Pictures, Shot, shots, split_tags, tags_of
from vpl.notebook.shown import Segmentation
from vpl.presets import STANDARD
from vpl.runs import stored as run_values
from vpl.runs.files import read_facts, read_prototypes
from vpl.runs.stream import Batch, Portion, Stream, grid_at, workers_of

log = logging.getLogger("vpl")

SHELF_BYTES = 2**30
"""Features that `fit` keeps in memory between its passes; those beyond are made again."""
Classes = ClassSet | Sequence[str] | str | Path | None
"""A class set, names, "voc", "coco", "scenes" or a classes file; None: the tags that occur."""


class VPL:
    """Tags to label maps with a frozen CLIP, on images at hand.

    Args:
        clip: pocket (the embedded one, which knows drawings alone), a hub name, a folder, a file, or a `FrozenClip`.
        classes: names, a `ClassSet`, "voc", "coco", "scenes" or a classes file; None: the tags that occur.
        config: every other value, such as `vpl.preset("voc").with_values({"crf.enabled": False})`; None: the defaults
            with those of quality standard, as a new run has them.
        device: "auto", "cpu", "cuda" or "mps".
        workers: threads of each kind; default: the number of cores.

    Attributes:
        classes: the class set; None until tags are seen where none was given.

    Raises:
        ModelError: the CLIP can't be used.
        DataError: the classes can't be used.
    """

    def __init__(
        self,
        clip: str | Path | FrozenClip = "",
        classes: Classes = None,
        *,
        config: Config | None = None,
        device: str = "auto",
        workers: int | None = None,
    ):
        self.config = config or Config().with_values(quality(STANDARD))
        if isinstance(clip, (str, Path)):
            if clip:
                self.config = self.config.with_values({"clip.model": str(clip)})
            self.clip = _opened(self.config.clip, device)
        elif isinstance(clip, FrozenClip):
            self.clip = clip
        else:
            raise ModelError(f"clip is a {type(clip).__name__}; expected a name, a path or a FrozenClip.")
        self.classes = _class_set(classes or self.config.data.classes)
        self.workers = workers_of(workers)
        self._lesson: Lesson | None = None
        self._tables: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of_run(cls, folder: str | Path, *, device: str = "auto", workers: int | None = None) -> VPL:
        """The model that a run folder holds: its configuration, classes and prototypes.

        Raises:
            RunError: the run has made no prototypes yet, or they are damaged.
        """
        place = Path(folder)
        path = place / "prototypes.safetensors"
        if not path.exists():
            raise RunError(f"{place} holds no prototypes; expected a run folder in which vpl prototypes has finished.")
        facts, config = read_facts(path), run_values.read(place)
        names = tuple(map(str, facts.get("classes") or ()))
        known = _class_set(config.data.classes)
        if known is None or known.names != names:
            known = ClassSet(names)
        model = cls(config=config, classes=known, device=device, workers=workers)
        stored = read_prototypes(path, model.clip.dim)
        model._tables = stored["text"].numpy(), stored["vision"].numpy()
        return model

    def __repr__(self) -> str:
        known = "classes of the tags" if self.classes is None else f"{len(self.classes)} classes"
        how = "vision" if self.is_fitted else "text"
        return f"<VPL with {self.clip.name} on {self.clip.device}, {known}, {how} prototypes>"

    @property
    def is_fitted(self) -> bool:
        """Whether there are vision prototypes."""
        return self.config.prototypes.kind == "vision" and (self._lesson is not None or self._tables is not None)

    @property
    def text(self) -> Float[np.ndarray, "P D"]:
        """Text prototypes, unit rows: the classes', then the background words'."""
        return self._pair()[0]

    @property
    def vision(self) -> Float[np.ndarray, "P D"] | None:
        """Vision prototypes in the order of `text`; None before `fit`."""
        return self._pair()[1] if self.is_fitted else None

    def fit(self, images: Pictures, tags: object) -> VPL:
        """Learn vision prototypes from images and their tags (METHOD.md 3); returns the model.

        Args:
            images: a list of paths, PIL images or arrays; a folder, with its sub-folders; a pattern.
            tags: of each image, as lists or "dog;chair", in order or in a dict by name.

        Raises:
            DataError: an image or tag can't be used, or no region may carry a label.
        """
        views = self._views(*shots(images), tags)[1]
        bench = Bench(self.clip, self._known(), views, self.workers, Shelf(SHELF_BYTES))
        if self.config.prototypes.kind == "vision":
            self._lesson, self._tables = bench.lesson(self.config), None
        return self

    def segment(self, images: Pictures, tags: object) -> Segmentation | list[Segmentation]:
        """Label maps of one image, or of several: pseudo-mask, scores, and the seeds of every stage.

        Args:
            images: as for `fit`, or one path, PIL image or array.
            tags: of the image, or of each.

        Raises:
            DataError: an image or tag can't be used.
        """
        given, one = shots(images)
        named, views = self._views(given, one, tags)
        labeller = self._labeller()
        stream, config = Stream(self.clip, self.config.clip, self.workers), self.config
        made: dict[int, Segmentation] = {}

        def keep(member: int, view: View, draft: Draft) -> None:
            maps = labeller.masks(view, draft, True)
            scores = labeller.scores(view, draft)
            seeds = {name: cams.float().numpy() for name, cams in draft.seeds.items()}
            shot, classes = given[member], self._known()
            made[member] = Segmentation(
                shot.name, shot.source, maps["labels"], classes, named[member], scores.numpy(), seeds, maps
            )

        def finish(_: Batch, portions: list[Portion]) -> list:
            return [
                functools.partial(keep, member, view, draft)
                for portion in portions
                for member, view, draft in zip(portion.members, portion.views, portion.result, strict=True)
            ]

        sizes = [view.image.shape[:2] for view in views]
        batches = stream.plan(len(views), lambda number: grid_at(sizes[number], self.clip.patch, config.clip), _refuse)
        flow = stream.flow(
            batches,
            lambda number: prepared(self.clip, views[number], config.clip),
            lambda _, some: labeller.drafts(some, True),
            finish,
        )
        with contextlib.closing(flow):
            for settled in flow:
                for number, error in settled.failures:
                    _refuse(number, error)
        found = [made[number] for number in range(len(views))]
        return found[0] if one else found

    # ------------------------------------------------------------------ inside

    def _known(self) -> ClassSet:
        if self.classes is None:
            raise ConfigError("the model has no classes yet; give classes=[...], or fit it on images with tags.")
        return self.classes

    def _views(self, given: list[Shot], one: bool, tags: object) -> tuple[list[tuple[str, ...]], list[View]]:
        """Tags as class names, and the images as encoder and CRF see them."""
        written = split_tags(tags_of(tags, given, one), given, Speller(self.classes, {}))
        if self.classes is None:
            self.classes = _told(ClassSet(tuple(sorted({tag for some in written for tag in some}))))
        if len(self.classes) == 1 and not (self.classes.background and self.config.prompts.background_words):
            raise DataError(lesson.ALONE)
        speller = Speller(self.classes, {})
        named = [speller.read(some, shot.name) for some, shot in zip(written, given, strict=True)]
        wrong = speller.problems()
        if wrong:
            raise DataError(wrong[0])
        for some, shot in zip(named, given, strict=True):
            if not some:
                raise DataError(f"{shot.name} has no tags; expected at least one.")
        return named, [self._view(shot, some) for shot, some in zip(given, named, strict=True)]

    def _view(self, shot: Shot, named: tuple[str, ...]) -> View:
        try:
            pixels, size = edge_images.read_with_size(shot.source, self.config.clip.max_side)
        except DataError as error:
            raise DataError(f"{shot.name}: {error}") from error
        return View(pixels, self._known().numbers(named), size)

    def _pair(self) -> tuple[np.ndarray, np.ndarray]:
        if self._lesson is not None:
            return self._lesson.text.cpu().numpy(), self._lesson.vision.cpu().numpy()
        if self._tables is None:
            rows = Bench(self.clip, self._known(), (), self.workers).text(self.config).cpu().numpy()
            return rows, rows
        return self._tables

    def _labeller(self) -> Labeller:
        import torch

        config, fitted = self.config, self.is_fitted
        if not fitted and config.prototypes.kind == "vision":
            config = config.with_values({"prototypes.kind": "text"})
        text, vision = (torch.from_numpy(one).to(self.clip.device) for one in self._pair())
        return Labeller(self.clip, text, vision if fitted else None, len(self._known()), config, self._guide)

    @functools.cached_property
    def _guide(self) -> FrozenDinov2 | None:
        """The encoder of `refine.features`, where it is asked for."""
        refine = self.config.refine
        return FrozenDinov2.load(refine.features, str(self.clip.device)) if refine.guided else None


def segment(
    image: Pictures,
    tags: object,
    *,
    clip: str | Path | FrozenClip = "",
    classes: Classes = None,
    config: Config | None = None,
    device: str = "auto",
) -> Segmentation | list[Segmentation]:
    """Label maps of one image, or of several, from their tags alone, with text prototypes.

    Args:
        image: a path, PIL image or array; a list of these, a folder, a pattern.
        tags: of the image, as ["dog", "chair"] or "dog;chair"; of several images, for each.
        clip: as for `VPL`.
        classes: as for `VPL`; without them, the tags are all that there is beside the background words.
        config: as for `VPL`.
        device: as for `VPL`.

    Raises:
        DataError: an image or tag can't be used.
        ModelError: the CLIP can't be used.
    """
    return VPL(clip, classes, config=config, device=device).segment(image, tags)


@functools.lru_cache(maxsize=1)
def _opened(config: ClipConfig, device: str) -> FrozenClip:
    """The CLIP; the one that was used last stays in memory."""
    return FrozenClip.of(config, device)


def _class_set(given: Classes) -> ClassSet | None:
    if given is None or isinstance(given, ClassSet):
        return given and _told(given)
    if isinstance(given, (str, Path)):
        if not str(given):
            return None
        built_in = {"voc": class_sets.voc, "coco": class_sets.coco, "scenes": class_sets.scenes}
        return built_in[str(given)]() if str(given) in built_in else _told(class_sets.from_file(given))
    return _told(ClassSet(tuple(given)))


def _told(classes: ClassSet) -> ClassSet:
    for line in told_same(classes):
        log.warning("%s", line)
    return classes


def _refuse(_: int, error: VplError) -> None:
    raise error
