"""What people decided on a run's photographs: RUN/review.csv, and masks that they painted, RUN/corrected/ID.png.

    id,decision,tags,corrected
    garden,accept,,
    street,reject,,
    meadow,,"[""dog"", ""sheep""]",yes

Each decision is on the disk, whole, before it is answered. Corrected tags take the place of the list's, so that the
plan makes that one photograph again; a rejected photograph teaches no network; a corrected mask is taught as it is.
Truth is never looked at.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vpl.classes import IGNORE, ClassSet
from vpl.edges import images, storage
from vpl.edges.datasets import Dataset
from vpl.errors import DataError, RunError

FILE, CORRECTED = "review.csv", "corrected"
DECISIONS = ("", "accept", "reject")
_HEAD = ("id", "decision", "tags", "corrected")
_HEAD_LINE = ",".join(_HEAD) + "\n"


class Changed(DataError):
    """What was decided on has changed since it was looked at: another window was quicker."""


@dataclass(frozen=True)
class Decision:
    """On one photograph.

    Attributes:
        decision: one of `DECISIONS`.
        tags: in the place of the list's; None: the list's.
        corrected: digest of the painted mask; "" where there is none.
    """

    decision: str = ""
    tags: tuple[str, ...] | None = None
    corrected: str = ""

    @property
    def revision(self) -> str:
        """Changes whenever anything of it does."""
        return hashlib.sha256(repr((self.decision, self.tags, self.corrected)).encode()).hexdigest()[:12]


class Review:
    """The decisions of a run; several threads may decide at once.

    Raises:
        RunError: review.csv is damaged.
    """

    def __init__(self, folder: Path):
        self.folder, self._lock = folder, threading.Lock()
        self._decisions = _read(folder)

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """id -> decision, of those on which there is one."""
        return dict(self._decisions)

    def counts(self) -> tuple[tuple[str, int], ...]:
        """(words, how many) of each kind of decision that there is."""
        found = self._decisions.values()
        rows = (
            ("accepted", sum(one.decision == "accept" for one in found)),
            ("rejected", sum(one.decision == "reject" for one in found)),
            ("with corrected tags", sum(one.tags is not None for one in found)),
            ("with a painted mask", sum(bool(one.corrected) for one in found)),
        )
        return tuple(row for row in rows if row[1])

    def of(self, id: str) -> Decision:
        """The decision on a photograph."""
        return self._decisions.get(id, Decision())

    def decide(self, id: str, decision: str, tags: tuple[str, ...] | None, revision: str) -> Decision:
        """Note a decision and tags; returns what is noted.

        Args:
            revision: of the decision that was looked at.

        Raises:
            Changed: it is not the one that stands. DataError: the decision is none of `DECISIONS`.
        """
        if decision not in DECISIONS or (tags is not None and not tags):
            raise DataError(f"the decision is {decision!r} with tags {tags}; expected accept or reject, and a tag.")
        with self._lock:
            return self._note(id, dataclasses.replace(self._checked(id, revision), decision=decision, tags=tags))

    def paint(self, id: str, mask: UInt8[np.ndarray, "H W"] | None, classes: ClassSet, revision: str) -> Decision:
        """Note a painted mask, or with None that there is none.

        Raises:
            Changed: as `decide`. DataError: the mask holds other labels than the classes'.
        """
        path = self.folder / CORRECTED / f"{id}.png"
        if mask is not None and not np.isin(mask, [*range(len(classes) + 1), IGNORE]).all():
            raise DataError(f"the painted mask holds other labels than 0 to {len(classes)} and 255.")
        with self._lock:
            before = self._checked(id, revision)
            if mask is None:
                made = self._note(id, dataclasses.replace(before, corrected=""))
                path.unlink(missing_ok=True)
                return made
            path.parent.mkdir(parents=True, exist_ok=True)
            images.write_mask(path, mask, classes.palette())
            return self._note(id, dataclasses.replace(before, corrected=_digest(path)))

    def _checked(self, id: str, revision: str) -> Decision:
        now = self.of(id)
        if now.revision != revision:
            raise Changed(f"{id} was decided on in another window; it is shown again as it stands.")
        return now

    @functools.cached_property
    def _lines(self) -> dict[str, str]:
        """id -> its line; kept, so that a decision among a hundred thousand is noted in a moment."""
        return {id: _line(id, one) for id, one in self._decisions.items()}

    def _note(self, id: str, decision: Decision) -> Decision:
        lines, decisions = {**self._lines}, {**self._decisions}
        if decision == Decision():
            lines.pop(id, None)
            decisions.pop(id, None)
        else:
            lines[id], decisions[id] = _line(id, decision), decision
        storage.write_text_atomic(self.folder / FILE, "".join([_HEAD_LINE, *map(lines.__getitem__, sorted(lines))]))
        self._lines, self._decisions = lines, decisions
        return decision


def _line(id: str, one: Decision) -> str:
    tags = "" if one.tags is None else json.dumps(one.tags, ensure_ascii=False)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([id, one.decision, tags, "yes" if one.corrected else ""])
    return text.getvalue()


def _read(folder: Path) -> dict[str, Decision]:
    path = folder / FILE
    if not path.exists():
        return {}
    found: dict[str, Decision] = {}
    try:
        head, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        order = [head.index(name) for name in _HEAD]
        for row in filter(None, rows):
            if len(row) != len(head):
                raise ValueError(f"the line of {row[0]} is cut off, or has too many cells")
            id, *cells = (row[at] for at in order)
            if id in found:
                raise ValueError(f"{id} has two lines")
            found[id] = _decision(folder, id, *cells)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); mend its line, or delete it to review again.") from error
    return found


def _decision(folder: Path, id: str, decision: str, tags: str, corrected: str) -> Decision:
    if decision not in DECISIONS:
        raise ValueError(f"the decision {decision!r}")
    mask = folder / CORRECTED / f"{id}.png"
    if corrected and not mask.is_file():
        raise ValueError(f"the painted mask of {id} is gone from {CORRECTED}/")
    return Decision(decision, _tags(tags), _digest(mask) if corrected else "")


@functools.lru_cache(maxsize=4096)
def _tags(text: str) -> tuple[str, ...] | None:
    return tuple(map(str, json.loads(text))) if text else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def reviewed(dataset: Dataset, folder: Path) -> Dataset:
    """A data set with the tags that were corrected.

    Raises:
        RunError: a corrected tag is none of the classes, or review.csv is damaged.
    """
    tags = {id: one.tags for id, one in _read(folder).items() if one.tags}
    strangers = sorted({tag for own in tags.values() for tag in own} - set(dataset.classes.names))
    if strangers:
        raise RunError(f"{folder / FILE} has the tag {strangers[0]!r}, which is none of the classes; mend the line.")
    if not tags:
        return dataset
    samples = tuple(dataclasses.replace(one, tags=own) if (own := tags.get(one.id)) else one for one in dataset.samples)
    return dataclasses.replace(dataset, samples=samples)


def taught(folder: Path) -> tuple[frozenset[str], dict[str, Path]]:
    """What training is told: ids that are left out, and id -> corrected mask."""
    found = _read(folder)
    rejected = frozenset(id for id, one in found.items() if one.decision == "reject")
    return rejected, {id: folder / CORRECTED / f"{id}.png" for id, one in found.items() if one.corrected}


def digest_of_teaching(folder: Path) -> str:
    """Digest of what `taught` says; "" where nothing is."""
    found = sorted((id, one.decision == "reject", one.corrected) for id, one in _read(folder).items())
    told = [one for one in found if one[1] or one[2]]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16] if told else ""
