"""Do truth masks and tags tell of the same photographs? A score against other masks, or other numbers, means nothing.

    n_c / m_c   share of the m_c photographs with tag c whose truth holds its label
    o_c         share of the photographs without tag c whose truth holds it
    c belongs where n_c / m_c ≥ o_c + MARGIN; all belong together where at least half of the classes with a tag do

Numbers that mean other classes, or masks of other photographs, hold a label as often without its tag as with it. So
tags may be wrong or missing on many photographs, and a few classes may be rare, and still the sum is not taken for
nonsense. Letters: N photographs · C classes. Nothing that learns reads this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from vpl.classes import IGNORE

MARGIN = 0.25
"""How much more often a label stands where its tag does than elsewhere. [ours]"""
SHOWN = 4
"""Classes that a sentence names."""


@dataclass(frozen=True)
class Belonging:
    """What was counted.

    Attributes:
        names: of the classes; label c + 1 is names[c].
        carry: m_c, photographs with tag c that have a truth mask.
        hold: n_c, of these those whose truth holds the label.
        astray: photographs without tag c whose truth holds its label.
        images: N.
        labels: how many masks hold each of the 256 values.
    """

    names: tuple[str, ...]
    carry: tuple[int, ...]
    hold: tuple[int, ...]
    astray: tuple[int, ...]
    images: int
    labels: tuple[int, ...]

    @property
    def together(self) -> bool:
        """Whether masks and tags can belong together; of no mask with a tag nothing is said."""
        known = [number for number, count in enumerate(self.carry) if count]
        return not known or 2 * sum(map(self._belongs, known)) >= len(known)

    def _belongs(self, number: int) -> bool:
        others = self.images - self.carry[number]
        outside = self.astray[number] / others if others else 0.0
        return self.hold[number] / self.carry[number] >= outside + MARGIN

    @property
    def rare(self) -> tuple[int, ...]:
        """Class numbers whose label is missing in more than half of the photographs with the tag, worst first."""
        known = [number for number, count in enumerate(self.carry) if 2 * self.hold[number] < count]
        return tuple(sorted(known, key=lambda number: (self.hold[number] / self.carry[number], -self.carry[number])))

    def told(self) -> str:
        """The counts as a sentence: all tags together, then the worst ones."""
        total, found = sum(self.carry), sum(self.hold)
        rare = self.rare
        worst = [self._of(number) for number in rare[:SHOWN]]
        more = f"; and {len(rare) - SHOWN} classes more" if len(rare) > SHOWN else ""
        named = f": {'; '.join(worst)}{more}" if worst else ""
        astray = sum(self.astray)
        besides = (
            f"; {astray} labels more stand in it without their tag" if self.together and 2 * astray > found else ""
        )
        return f"{found} of the {total} tags occur in the truth of their photographs{named}{besides}"

    def doubt(self) -> str:
        """What may be a mistake where masks and tags belong together; "" where nothing is."""
        if self.labels[0] or not self.labels[IGNORE]:
            return ""
        return (
            "no truth mask holds 0, so no background is scored; if 255 marks it, --mask-values labels,255=background."
        )

    def _of(self, number: int) -> str:
        held, carried = self.hold[number], self.carry[number]
        return f"{self.names[number]} in {held} of the {carried} that carry it"

    def refusal(self, place: str) -> str:
        """Why nothing is scored, with what the masks hold and what to do."""
        own = [value for value, count in enumerate(self.labels) if count and value]
        strange = [value for value in own if value > len(self.names) and value != IGNORE]
        if own == [IGNORE] and not self.labels[0]:
            advice = "the masks hold 255 (ignore) alone; check data.masks"
        elif own == [IGNORE]:
            advice = (
                "the masks hold 0 and 255 alone, and 255 is ignored; if it marks the object, "
                "--set data.mask_values=binary"
            )
        elif strange:
            advice = (
                f"they hold the number {strange[0]}; if they are category ids, --set data.mask_values=ids; if it marks "
                f"what is left out, --set data.mask_values=labels,{strange[0]}=ignore"
            )
        else:
            advice = "if the masks number the classes in another order, give it in a classes file (--classes)"
        return (
            f"the truth masks of {place} and the tags can't belong together: {self.told()}. Read as {self.numbers()}; "
            f"{advice}."
        )

    def numbers(self, most: int = 24) -> str:
        """What each number in a truth mask means."""
        shown = [f"{number} {name}" for number, name in enumerate(("background", *self.names[:most]))]
        more = [f"… {len(self.names)} {self.names[-1]}"] if len(self.names) > most else []
        return ", ".join([*shown, *more, f"{IGNORE} ignored"])

    def counts(self) -> dict[str, list[int]]:
        """[n_c, m_c] by class with a tag, for metrics.json."""
        return {
            name: [held, carried]
            for name, held, carried in zip(self.names, self.hold, self.carry, strict=True)
            if carried
        }


class Counting:
    """Counts photographs one by one.

    Args:
        names: of the classes.
    """

    def __init__(self, names: Sequence[str]):
        self._names = tuple(names)
        self._counts: Int64[ndarray, "3 C"] = np.zeros((3, len(self._names)), np.int64)
        self._labels: Int64[ndarray, " values"] = np.zeros(256, np.int64)
        self._images = 0

    def add(self, truth: UInt8[ndarray, "H W"], tags: Sequence[int]) -> None:
        """Count one photograph: its truth as label values, its tags as class numbers."""
        present = np.bincount(truth.ravel(), minlength=256) > 0
        there = present[1 : len(self._names) + 1]
        carried = np.zeros(len(self._names), bool)
        carried[list(tags)] = True
        self._counts += np.stack([carried, carried & there, there & ~carried])
        self._labels += present
        self._images += 1

    def result(self) -> Belonging:
        """What was counted so far."""
        carry, hold, astray = (tuple(map(int, row)) for row in self._counts)
        return Belonging(self._names, carry, hold, astray, self._images, tuple(map(int, self._labels)))
