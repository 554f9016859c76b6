"""Vision prototypes from the regions of all images, round after round (METHOD.md 3): one `learn` for every engine.

    regions by the seeds of T ──soft labels q, KL(q ‖ p)──> V      and, with `rounds`, regions by the seeds of V ──> V

Who has the images gives a `Survey`, which passes over them once and answers with their regions.

Letters: C classes · P prototypes (C + background words) · D joint width · N regions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vpl.config import PrototypeConfig
from vpl.errors import DataError
from vpl.machine import Clock, one_core_each
from vpl.method import gap, prototypes
from vpl.method.regions import BACKGROUND_REGION, Regions
from vpl.progress import Progress, silent

Survey = Callable[[int, Float[Tensor, "P D"], float], Regions]
"""Round (from 0), prototypes, and the scale of their cosines -> the regions of all images by their seeds."""
ALONE = (
    "there is one class and no background word, so that nothing can be told from it; give background words in the "
    "classes file, or set prompts.background_words = true."
)
"""Of one prototype a softmax is 1 everywhere, and its gradient nothing."""


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
    report: gap.Report | None
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
    device: torch.device | None = None,
    progress: Progress = silent,
) -> Lesson:
    """Vision prototypes from the regions of all images (METHOD.md 3), as many rounds as `config` says.

    Every product is computed on one core, and products of many regions in parts, so that the result depends on no
    machine's number of cores.

    Args:
        tags: the tags of each image, as class numbers.
        text: T on the CPU, the `classes` foreground rows first.
        scale: CLIP's own, of the cosines with T.
        clock: counts the seconds of "learn".
        device: where to learn if it is a CUDA GPU; on every other device the CPU learns. All that comes back lies on
            the CPU.
        progress: shows the steps of learning.

    Raises:
        DataError: no region may carry a label.
    """
    clock, table = clock or Clock(), text
    place = device if device is not None and device.type == "cuda" else torch.device("cpu")
    for turn in range(config.rounds):
        found = survey(turn, table, scale)
        with clock("learn"), one_core_each():
            lesson = _lesson(
                found, [tags[number] for number in found.images.tolist()], text, classes, config, place, progress
            )
        table, scale = lesson.vision, 1 / config.image_temperature
    return lesson


def _lesson(
    found: Regions,
    tags: Sequence[tuple[int, ...]],
    text: Float[Tensor, "P D"],
    classes: int,
    config: PrototypeConfig,
    place: torch.device,
    progress: Progress,
) -> Lesson:
    """One round, learned at `place`; `tags` are those of each region's image."""
    allowed = allowed_labels(found.classes, tags, classes, len(text), config)
    usable = allowed.any(dim=1)
    if not usable.any():
        if len(text) == 1:
            raise DataError(ALONE)
        raise DataError(
            f"no region of any image has a text seed above prototypes.phi = {config.phi}; choose a lower one."
        )
    x, allowed, numbers = found.embeddings[usable], allowed[usable], found.classes[usable]
    there, table = x.to(place), text.to(place)
    q = prototypes.soft_labels(
        there,
        table,
        allowed.to(place),
        config.text_temperature,
        sinkhorn_rounds=config.sinkhorn_rounds,
        one_hot=config.one_hot,
    )
    kept = without_region(numbers, classes, len(text)).to(place)
    learned = prototypes.learn(there, q, table, config, kept, progress)
    learned, q = dataclasses.replace(learned, prototypes=learned.prototypes.cpu()), q.cpu()
    own, report = numbers != BACKGROUND_REGION, None
    if own.any():
        vision, temperature = learned.prototypes, config.image_temperature
        report = gap.report(x[own], q[own], numbers[own], text, vision, classes, temperature)
    return Lesson(text, x, q, numbers, learned, report, found.tag_ranks)


def without_region(numbers: Int[Tensor, " N"], classes: int, prototypes_count: int) -> Bool[Tensor, " P"]:
    """Prototypes that no region stands for: they keep their text rows (METHOD.md 3.5).

    The KL would push a class away from every region for the mere reason that it is absent. The background prototypes
    are all stood for by any background region.
    """
    kept = torch.ones(prototypes_count, dtype=torch.bool)
    kept[numbers[numbers != BACKGROUND_REGION].long()] = False
    kept[classes:] = not bool((numbers == BACKGROUND_REGION).any())
    return kept


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
