"""Vision prototypes from the regions of all images, round after round (METHOD.md 3): one `learn` for every engine.

    regions by the seeds of T ──soft labels q, KL(q ‖ p)──> V      and, with `rounds`, regions by the seeds of V ──> V

Who has the images gives a `Survey`, which passes over them once and answers with their regions.

Letters: C classes · P prototypes (C + background words) · D joint width · N regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vpl.config import PrototypeConfig
from vpl.errors import DataError
from vpl.machine import Clock, one_core_each
from vpl.method import prototypes
from vpl.method.regions import BACKGROUND_REGION, Regions

Survey = Callable[[int, Float[Tensor, "P D"], float], Regions]
"""Round (from 0), prototypes, and the scale of their cosines -> the regions of all images by their seeds."""


@dataclass(frozen=True)
class Lesson:
    """What vision prototypes were learned from, and the result.

    Attributes:
        text: T, unit rows, the classes' first.
        x: unit embeddings of the regions that may carry some label.
        q: their soft labels.
        classes: their class numbers, or `BACKGROUND_REGION`.
        learned: V and how it was reached.
        report: METHOD.md 3.5 over the tags' regions; None without one.
        tag_ranks: of each image, see `regions.Regions`.
    """

    text: Float[Tensor, "P D"]
    x: Float[Tensor, "N D"]
    q: Float[Tensor, "N P"]
    classes: Int[Tensor, " N"]
    learned: prototypes.Learned
    report: prototypes.Report | None
    tag_ranks: Float[Tensor, " images"]

    @property
    def vision(self) -> Float[Tensor, "P D"]:
        """V: unit rows, in the order of T."""
        return self.learned.prototypes

    @property
    def of_tags(self) -> Bool[Tensor, " N"]:
        """Which regions are a tag's, not the background's."""
        return self.classes != BACKGROUND_REGION


def learn(
    survey: Survey,
    tags: Sequence[tuple[int, ...]],
    text: Float[Tensor, "P D"],
    scale: float,
    classes: int,
    config: PrototypeConfig,
    clock: Clock | None = None,
) -> Lesson:
    """Vision prototypes from the regions of all images (METHOD.md 3), as many rounds as `config` says.

    Computed on one core, so that they depend on no machine's number of cores.

    Args:
        tags: the tags of each image, as class numbers.
        text: T on the CPU, the `classes` foreground rows first.
        scale: CLIP's own, of the cosines with T.
        clock: counts the seconds of "learn".

    Raises:
        DataError: no region may carry a label.
    """
    clock, table = clock or Clock(), text
    for turn in range(config.rounds):
        found = survey(turn, table, scale)
        with clock("learn"), one_core_each():
            lesson = _lesson(found, [tags[number] for number in found.images.tolist()], text, classes, config)
        table, scale = lesson.vision, 1 / config.image_temperature
    return lesson


def _lesson(
    found: Regions, tags: Sequence[tuple[int, ...]], text: Float[Tensor, "P D"], classes: int, config: PrototypeConfig
) -> Lesson:
    """One round; `tags` are those of each region's image."""
    allowed = allowed_labels(found.classes, tags, classes, len(text), config)
    usable = allowed.any(dim=1)
    if not usable.any():
        raise DataError(
            f"no region of any image has a text seed above prototypes.phi = {config.phi}; choose a lower one."
        )
    x, allowed, numbers = found.embeddings[usable], allowed[usable], found.classes[usable]
    q = prototypes.soft_labels(
        x, text, allowed, config.text_temperature, sinkhorn_rounds=config.sinkhorn_rounds, one_hot=config.one_hot
    )
    learned, own, report = prototypes.learn(x, q, text, config), numbers != BACKGROUND_REGION, None
    if own.any():
        report = prototypes.report(x[own], q[own], numbers[own], text, learned.prototypes, config.image_temperature)
    return Lesson(text, x, q, numbers, learned, report, found.tag_ranks)


def allowed_labels(
    found: Int[Tensor, " N"],
    tags: Sequence[tuple[int, ...]],
    classes: int,
    prototypes_count: int,
    config: PrototypeConfig,
) -> Bool[Tensor, "N P"]:
    """Which prototypes each region may be labelled with (METHOD.md 3.2, `tags`).

    A background region may carry background prototypes alone. A tag's region may carry its own tag (`own`), the
    tags of its image and the background (`restrict`), or anything (`all`).

    Args:
        found: the region's class number, or `BACKGROUND_REGION`.
        tags: for each region, the tags of its image.
    """
    allowed = torch.zeros(len(found), prototypes_count, dtype=torch.bool)
    for row, (number, carried) in enumerate(zip(found.tolist(), tags, strict=True)):
        if config.tags == "all":
            allowed[row] = True
        elif number == BACKGROUND_REGION:
            allowed[row, classes:] = True
        elif config.tags == "own":
            allowed[row, number] = True
        else:
            allowed[row, classes:] = True
            allowed[row, list(carried)] = True
    return allowed
