"""The room "Review RUN": what its page asks, as plain data and pictures; files of the run in, decisions out.

Signs that need no truth tell what to look at first: the share of ignored pixels, tags without a pixel in the mask, how
CLIP ranks the tags (as the run's regions have it), and, where it is asked for, whether the mirror image says the same.
Held-out photographs are shown with the network's predictions, and nothing is decided on them. Masks are sent as grey
PNGs whose values are labels; the page paints them. Letters: H W pixels.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vpl import build
from vpl.classes import IGNORE
from vpl.clip.model import FrozenClip
from vpl.edges import images, locks
from vpl.edges.datasets import Sample
from vpl.errors import DataError, RunError, VplError
from vpl.judge.bench import Bench, Shelf
from vpl.judge.checkup import mirror_agreements
from vpl.runs import stored
from vpl.runs.files import read_prototypes, read_tensors
from vpl.runs.inventory import places_of
from vpl.runs.plan import count_of
from vpl.runs.planned import dataset_of, split_of
from vpl.runs.review import CORRECTED, Review, reviewed
from vpl.runs.stream import read_view

PREDICTIONS = "predictions"
STAGES = ("labels", "crf", "refined", "vision", "text")
"""Label maps that can be looked at, the last one first."""
AT_ONCE = 4
"""Photographs whose mirror images are looked at together."""
MOST_SIDE = 2048
"""The longest side that is sent, pixels. [ours]"""


@dataclass(frozen=True)
class Signs:
    """What a photograph's masks say without truth.

    Attributes:
        size: height and width of the mask, pixels.
        ignored: share of its pixels that are 255.
        missing: tags without a pixel.
        rank: how often CLIP ranks its tags above other classes, 0 to 1; None where the run has not noted it.
    """

    size: tuple[int, int]
    ignored: float
    missing: int
    rank: float | None


class Room:
    """One run under review.

    Raises:
        RunError: no run, no pseudo-masks in it, another page reviews it, or review.csv is damaged.
    """

    def __init__(self, folder: Path, device: str = "auto"):
        if not (folder / "config.toml").is_file() or not (folder / "labels").is_dir():
            raise RunError(f"{folder} is no run with pseudo-masks; run vpl labels first.")
        self.folder, self._device = folder, device
        self.config = stored.read(folder)
        dataset = dataset_of(self.config.data)
        self.classes, self._samples = dataset.classes, {one.id: one for one in dataset.samples}
        reviewed(dataset, folder)  # a corrected tag that is none of the classes is told now
        self._held_out = self._predicted()
        (folder / CORRECTED).mkdir(exist_ok=True)
        self._lock = locks.claim(folder / CORRECTED)
        self.review = Review(folder)
        self._signs: dict[str, Signs] = {}
        self._agreement: dict[str, float] = {}
        self._told = ""
        self._busy = threading.Lock()
        self._closed = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()

    def close(self) -> None:
        """Let the review go, so that another page may open it; torch must not be at work when the program ends."""
        self._closed.set()
        self._looking.join()
        self._lock.release()

    def _look(self) -> None:
        """The signs of every photograph, one after the other, while the page is shown already."""
        for id in (*self._samples, *self._held_out):
            if self._closed.is_set():
                return
            self._sign(id)

    def _sign(self, id: str) -> None:
        try:
            mask = images.read_mask(self._masks_of(id) / f"{id}.png")
            rank = self._rank(id)
        except VplError:
            return
        seen, tags = set(np.unique(mask).tolist()), self.tags(id)
        missing = sum(self.classes.index(tag) + 1 not in seen for tag in tags)
        height, width = mask.shape
        self._signs[id] = Signs((height, width), round(float((mask == IGNORE).mean()), 4), missing, rank)

    def _rank(self, id: str) -> float | None:
        """The tag rank that the first round of regions noted; it is of the tags that were there then."""
        ((folder, suffix),) = places_of(self.folder, "regions", self.config)
        path = folder / f"{id}{suffix}"
        ranks = read_tensors(path).get("tag_ranks") if path.is_file() else None
        return None if ranks is None or ranks.numel() != 1 or not ranks.isfinite() else round(float(ranks), 3)

    def _predicted(self) -> dict[str, Sample]:
        """Held-out photographs of which there are predictions; one whose name the list has too is left out."""
        folder, given = self.folder / PREDICTIONS, self.config.validation
        if not given.images or not folder.is_dir():
            return {}
        try:
            samples = dataset_of(given, self.classes).samples
        except VplError:  # they have moved: the review is of the others
            return {}
        return {one.id: one for one in samples if one.id not in self._samples and (folder / f"{one.id}.png").is_file()}

    def _masks_of(self, id: str) -> Path:
        return self.folder / (PREDICTIONS if id in self._held_out else "labels")

    def tags(self, id: str) -> tuple[str, ...]:
        """The tags of a photograph as they stand."""
        return self.review.of(id).tags or self.sample(id).tags

    def sample(self, id: str) -> Sample:
        """A photograph of the list, or a held-out one.

        Raises:
            DataError: there is none of this id. So no other file can be asked for.
        """
        found = self._samples.get(id) or self._held_out.get(id)
        if found is None:
            raise DataError("there is no such photograph in the run.")
        return found

    def _decidable(self, id: str) -> Sample:
        sample = self.sample(id)
        if id in self._held_out:
            raise DataError(f"{id} is held out: it teaches nothing, so there is nothing to decide on it.")
        return sample

    def listed(self) -> dict[str, Any]:
        """All that the grid shows."""
        return {
            "run": self.folder.name,
            "split": split_of(self.config.data),
            "classes": list(self.classes.names),
            "colors": [list(color) for color in self.classes.palette()[: len(self.classes) + 1]],
            "stages": [one for one in STAGES if one == "labels" or (self.folder / "seeds" / one).is_dir()],
            "splits": [split_of(self.config.data)] + ([split_of(self.config.validation)] if self._held_out else []),
            "signs": len(self._signs),
            "mirrored": len(self._agreement),
            "told": self._told,
            "busy": self._busy.locked(),
            "looking": self._looking.is_alive(),
            "rows": [self.row(id) for id in (*self._samples, *self._held_out)],
        }

    def row(self, id: str) -> dict[str, Any]:
        """One photograph: tags, signs (None while they are not known), decision."""
        decision, sign = self.review.of(id), self._signs.get(id)
        return {
            "id": id,
            "tags": list(self.tags(id)),
            "listed": list(self.sample(id).tags),
            "decision": decision.decision,
            "corrected": bool(decision.corrected),
            "revision": decision.revision,
            "split": int(id in self._held_out),
            "size": sign and list(sign.size),
            "ignored": sign and sign.ignored,
            "missing": sign and sign.missing,
            "rank": sign and sign.rank,
            "agreement": self._agreement.get(id),
        }

    def photograph(self, id: str, side: int) -> bytes:
        """A JPEG whose longer side is at most `side`."""
        packed = io.BytesIO()
        pixels = images.read_image(self.sample(id).image, max(16, min(side, MOST_SIDE)))
        Image.fromarray(pixels).save(packed, "JPEG", quality=90)
        return packed.getvalue()

    def mask(self, id: str, stage: str, side: int = 0) -> bytes:
        """A grey PNG of label values; for "labels" the corrected mask where there is one.

        Raises:
            DataError: there is no such photograph, stage or mask.
        """
        self.sample(id)
        if stage not in STAGES:
            raise DataError(f"there is no stage of this name; expected one of {', '.join(STAGES)}.")
        path = (self._masks_of(id) if stage == "labels" else self.folder / "seeds" / stage) / f"{id}.png"
        if stage == "labels" and self.review.of(id).corrected:
            path = self.folder / CORRECTED / f"{id}.png"
        values = Image.fromarray(images.read_mask(path))
        if side and max(values.size) > side:
            height, width = images.size_within(values.height, values.width, side)
            values = values.resize((width, height), Image.Resampling.NEAREST)
        packed = io.BytesIO()
        values.save(packed, "PNG")
        return packed.getvalue()

    def decide(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Note a decision and tags.

        Raises:
            Changed: another window was quicker. DataError: what came is of another kind.
        """
        id, tags, revision = str(asked.get("id")), asked.get("tags"), str(asked.get("revision"))
        self._decidable(id)
        if tags is not None and not (isinstance(tags, list) and set(map(str, tags)) <= set(self.classes.names)):
            raise DataError("the tags are none of the classes.")
        tags = None if tags is None else tuple(dict.fromkeys(map(str, tags)))
        own = None if tags == self.sample(id).tags else tags
        self.review.decide(id, str(asked.get("decision", "")), own, revision)
        self._sign(id)
        return self.row(id)

    def paint(self, id: str, values: bytes, revision: str) -> dict[str, Any]:
        """Note a painted mask, H·W bytes of label values row by row; no bytes: the run's own mask again.

        Raises:
            Changed: as `decide`. DataError: the bytes are not those of a mask of this size.
        """
        self._decidable(id)
        mask = None
        if values:
            shape = images.read_mask(self.folder / "labels" / f"{id}.png").shape
            if len(values) != shape[0] * shape[1]:
                raise DataError(f"the painted mask has {len(values)} bytes; expected {shape[0]} x {shape[1]}.")
            mask = np.frombuffer(values, np.uint8).reshape(shape)
        self.review.paint(id, mask, self.classes, revision)
        return self.row(id)

    def remake(self) -> dict[str, Any]:
        """Make the masks again where tags have been corrected, in the background; `listed` tells how it ended.

        Raises:
            DataError: it is being done.
        """
        if not self._busy.acquire(blocking=False):
            raise DataError("the masks are being made; wait until that has ended.")
        threading.Thread(target=self._remake, daemon=True).start()
        return {}

    def mirror(self) -> dict[str, Any]:
        """Look at the mirror image of every photograph, in the background: two encodings each.

        Raises:
            DataError: something is being done.
        """
        if not self._busy.acquire(blocking=False):
            raise DataError("masks are being made, or mirror images looked at; wait until that has ended.")
        threading.Thread(target=self._mirror, daemon=True).start()
        return {}

    def _mirror(self) -> None:
        try:
            clip = FrozenClip.of(self.config.clip, self._device)
            stored = read_prototypes(self.folder / "prototypes.safetensors", clip.dim)
            wanted = [one for one in self._samples if one not in self._agreement and self.tags(one)]
            for start in range(0, len(wanted), AT_ONCE):
                self._agree(wanted[start : start + AT_ONCE], clip, stored)
            self._told = f"{count_of(len(self._agreement), 'mirror image')} looked at."
        except VplError as error:
            self._told = str(error)
        finally:
            self._busy.release()

    def _agree(self, ids: Sequence[str], clip: FrozenClip, stored: dict[str, Tensor]) -> None:
        views, kept = [], []
        for id in ids:
            try:
                numbers = self.classes.numbers(self.tags(id))
                views.append(read_view(self.sample(id).image, numbers, self.config.clip))
                kept.append(id)
            except VplError:  # it can't be shown either
                continue
        bench = Bench(clip, self.classes, views, workers=1, shelf=Shelf(0))
        self._agreement |= zip(kept, mirror_agreements(bench, stored, self.config), strict=True)

    def _remake(self) -> None:
        try:
            with build.open_run(self.folder, stored.read(self.folder), device=self._device) as run:
                plan = build.bring(run, "labels")
            work = plan.of("masks")
            made = list(work.wanted) if work else []
            for id in made:
                if id in self._samples:
                    self._sign(id)
            self._told = f"{count_of(len(made), 'mask')} made again."
        except VplError as error:
            self._told = str(error)
        finally:
            self._busy.release()
