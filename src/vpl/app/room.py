"""The room "Review RUN": what its page asks, as plain data and pictures; files of the run in, decisions out.

Signs that need no truth tell what to look at first: the share of ignored pixels, tags without a pixel in the mask.
Letters: H W pixels. Masks are sent as grey PNGs whose values are labels; the page paints them.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vpl import build
from vpl.classes import IGNORE
from vpl.edges import images, locks
from vpl.edges.datasets import Sample
from vpl.errors import DataError, RunError, VplError
from vpl.runs import stored
from vpl.runs.opened import dataset_of, split_of
from vpl.runs.plan import count_of
from vpl.runs.review import CORRECTED, Review

STAGES = ("labels", "crf", "refined", "vision", "text")
"""Label maps that can be looked at, the last one first."""
MOST_SIDE = 2048
"""The longest side that is sent, pixels. [ours]"""


class Room:
    """One run under review.

    Raises:
        RunError: no run, no pseudo-masks in it, or another page reviews it.
    """

    def __init__(self, folder: Path, device: str = "auto"):
        if not (folder / "config.toml").is_file() or not (folder / "labels").is_dir():
            raise RunError(f"{folder} is no run with pseudo-masks; run vpl labels first.")
        self.folder, self._device = folder, device
        self.config = stored.read(folder)
        dataset = dataset_of(self.config.data)
        self.classes, self._samples = dataset.classes, {one.id: one for one in dataset.samples}
        (folder / CORRECTED).mkdir(exist_ok=True)
        self._lock = locks.claim(folder / CORRECTED)
        self.review = Review(folder)
        self._signs: dict[str, tuple[int, int, float, int]] = {}
        self._told = ""
        self._busy = threading.Lock()
        threading.Thread(target=self._look, daemon=True).start()

    def close(self) -> None:
        """Let the review go, so that another page may open it."""
        self._lock.release()

    def _look(self) -> None:
        """The signs of every photograph, one after the other, while the page is shown already."""
        for id in self._samples:
            self._sign(id)

    def _sign(self, id: str) -> None:
        try:
            mask = images.read_mask(self.folder / "labels" / f"{id}.png")
        except VplError:
            return
        seen, tags = set(np.unique(mask).tolist()), self.tags(id)
        missing = sum(self.classes.index(tag) + 1 not in seen for tag in tags)
        self._signs[id] = (*mask.shape, round(float((mask == IGNORE).mean()), 4), missing)

    def tags(self, id: str) -> tuple[str, ...]:
        """The tags of a photograph as they stand."""
        return self.review.of(id).tags or self.sample(id).tags

    def sample(self, id: str) -> Sample:
        """A photograph of the list.

        Raises:
            DataError: there is none of this id. So no other file can be asked for.
        """
        if id not in self._samples:
            raise DataError("there is no such photograph in the run.")
        return self._samples[id]

    def listed(self) -> dict[str, Any]:
        """All that the grid shows."""
        return {
            "run": self.folder.name,
            "split": split_of(self.config.data),
            "classes": list(self.classes.names),
            "colors": [list(color) for color in self.classes.palette()[: len(self.classes) + 1]],
            "stages": [one for one in STAGES if one == "labels" or (self.folder / "seeds" / one).is_dir()],
            "signs": len(self._signs),
            "told": self._told,
            "busy": self._busy.locked(),
            "rows": [self.row(id) for id in self._samples],
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
            "size": sign and list(sign[:2]),
            "ignored": sign and sign[2],
            "missing": sign and sign[3],
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
        path = self.folder / ("labels" if stage == "labels" else f"seeds/{stage}") / f"{id}.png"
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
        self.sample(id)
        if tags is not None and not (isinstance(tags, list) and set(map(str, tags)) <= set(self.classes.names)):
            raise DataError("the tags are none of the classes.")
        own = None if tags is None or tuple(tags) == self.sample(id).tags else tuple(map(str, tags))
        self.review.decide(id, str(asked.get("decision", "")), own, revision)
        self._sign(id)
        return self.row(id)

    def paint(self, id: str, values: bytes, revision: str) -> dict[str, Any]:
        """Note a painted mask, H·W bytes of label values row by row; no bytes: the run's own mask again.

        Raises:
            Changed: as `decide`. DataError: the bytes are not those of a mask of this size.
        """
        self.sample(id)
        mask = None
        if values:
            shape = images.read_mask(self.folder / "labels" / f"{id}.png").shape
            if len(values) != shape[0] * shape[1]:
                raise DataError(f"the painted mask has {len(values)} bytes; expected {shape[0]} x {shape[1]}.")
            mask = np.frombuffer(values, np.uint8).reshape(shape)
        self.review.paint(id, mask, self.classes, revision)
        return self.row(id)

    def remake(self) -> None:
        """Make the masks again where tags have been corrected, in the background; `listed` tells how it ended.

        Raises:
            DataError: it is being done.
        """
        if not self._busy.acquire(blocking=False):
            raise DataError("the masks are being made; wait until that has ended.")
        threading.Thread(target=self._remake, daemon=True).start()

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
