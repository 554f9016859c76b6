"""Sets of images with their truth, for ablations: seeds of drawn scenes, or parts of a data set.

Letters: H W pixels.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpl.classes import ClassSet
from vpl.classes import scenes as scene_classes
from vpl.config import ABLATION_IMAGES, ABLATION_STYLE, SCENE_SIDE, Config
from vpl.edges import images
from vpl.edges.truth import read_truth
from vpl.errors import DataError
from vpl.judge.packed import Deflated, Packed, packed
from vpl.method.belonging import Counting
from vpl.method.views import View
from vpl.runs.planned import dataset_of, split_of
from vpl.scenes.draw import draw
from vpl.scenes.tree import write_tree

log = logging.getLogger("vpl")

FIRST_SEED = 1000
"""Scene seeds of the sets start here, away from those that the embedded CLIP was trained on."""


@dataclass(frozen=True)
class ImageSet:
    """Images with their truth.

    Attributes:
        group: style or data set.
        number: which of the sets.
        split: what the images are called in tables.
        identity: changes when the images, tags or classes do.
    """

    group: str
    number: int
    split: str
    classes: ClassSet
    views: tuple[View, ...]
    truths: Packed
    identity: str


@dataclass(frozen=True)
class Scenes:
    """Sets of drawn scenes: set number n has the scenes of seed `FIRST_SEED` + n that have tags."""

    style: str = ABLATION_STYLE
    count: int = ABLATION_IMAGES
    side: int = SCENE_SIDE

    @property
    def group(self) -> str:
        return self.style

    def identity(self, number: int) -> str:
        return f"scenes {self.style} {self.side} px, {self.count} images, seed {FIRST_SEED + number}"

    def load(self, number: int) -> ImageSet:
        """Draw the set."""
        classes, place = scene_classes(), 0
        views: list[View] = []
        truths: list[Deflated] = []
        while len(views) < self.count:
            scene = draw(FIRST_SEED + number, place, self.style, self.side)
            place += 1
            if scene.tags and scene.mask is not None:
                tags = tuple(classes.index(tag) for tag in scene.tags)
                rows, columns = scene.mask.shape
                views.append(View(scene.image, tags, (rows, columns)))
                truths.append(packed(scene.mask))
        return ImageSet(self.style, number, "train", classes, tuple(views), Packed(truths), self.identity(number))

    def tree(self, number: int, folder: Path) -> None:
        """The set as files, with as many held-out scenes."""
        write_tree(
            folder, {"train": self.count, "val": self.count}, seed=FIRST_SEED + number, style=self.style, size=self.side
        )


@dataclass(frozen=True)
class OwnData:
    """Sets of a user's data: parts of a fixed shuffle, that share no image while there are enough."""

    config: Config
    sets: int
    count: int

    @property
    def group(self) -> str:
        return split_of(self.config.data)

    @property
    def inputs(self) -> tuple[str, str]:
        """The user's folders."""
        return self.config.data.images, self.config.data.masks

    def identity(self, number: int) -> str:
        data = self.config.data
        places = [getattr(data, item.name) for item in dataclasses.fields(data)]
        return f"{json.dumps(places)}, {self.count} images, part {number} of {self.sets}"

    def load(self, number: int) -> ImageSet:
        """Read the part.

        Raises:
            DataError: there are no truth masks, or they and the tags can't belong together.
        """
        dataset = dataset_of(self.config.data)
        for line in (*dataset.problems, *dataset.warnings) if number == 0 else ():
            log.warning("%s", line)
        samples = [one for one in dataset.tagged if one.mask is not None]
        if not samples:
            raise DataError("an ablation compares with the truth, and the data have no truth masks; give --masks DIR.")
        if self.sets * self.count <= len(samples):
            order = np.random.default_rng(0).permutation(len(samples))[number * self.count : (number + 1) * self.count]
        else:
            order = np.random.default_rng([0, number]).permutation(len(samples))[: self.count]
        chosen = [samples[place] for place in sorted(order.tolist())]
        views = []
        for one in chosen:
            tags = tuple(dataset.classes.index(tag) for tag in one.tags)
            image = images.read_image(one.image, self.config.clip.max_side)
            views.append(View(image, tags, images.image_size(one.image)))
        truths = Packed(packed(read_truth(one.mask, one.values)) for one in chosen)
        counting = Counting(dataset.classes.names)
        for view, truth in zip(views, truths, strict=True):
            counting.add(truth, view.tags)
        if not (belonging := counting.result()).together:
            raise DataError(belonging.refusal(self.config.data.masks or self.config.data.images))
        return ImageSet(self.group, number, self.group, dataset.classes, tuple(views), truths, self.identity(number))
