"""What made each file of a run: the fingerprints of its products, written down as they are made.

    state/made.tsv       stage, photograph ("" for the run's one product), fingerprint, why it failed
    state/settings.json  digest -> settings, so that a plan can say what has changed
    state/contents.tsv   digests of photographs and masks, `contents`'s
    state/signs.json     what photographs said to the check-up, `judge.checkup`'s memory
    state/pictures.json  their pictures in the report, `pages.gallery`'s memory
    state/clip.json      what the CLIP was when it was last read, `planned`'s

A product that is made again is struck out first and written down when it is on disk, so whatever a kill leaves is made
again: nothing counts that has no line, and no line outlives the file that it tells of.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vpl.runs.files import read_json, write_json
from vpl.runs.lines import Lines
from vpl.runs.plan import WHOLE

FOLDER = "state"
_FAILED, _ASIDE, _NONE = "failed", "aside ", "-"


class State:
    """The fingerprints of a run folder. Several threads may note products.

    Attributes:
        records: stage -> photograph's id or `WHOLE` -> fingerprint.
        aside: the same of what was set aside.
        failed: id -> (fingerprint, reason) of photographs that could not be used.
        settings: digest -> settings.
    """

    def __init__(self, folder: Path):
        self._folder = folder / FOLDER
        self._lines = Lines(self._folder / "made.tsv", 4)
        self.records: dict[str, dict[str, str]] = {}
        self.aside: dict[str, dict[str, str]] = {}
        self.failed: dict[str, tuple[str, str]] = {}
        for row in self._lines.rows:
            self._take(*row)
        self.settings: dict[str, dict[str, object]] = {
            key: one for key, one in read_json(self._folder / "settings.json").items() if isinstance(one, dict)
        }

    def _take(self, stage: str, id: str, fingerprint: str, reason: str) -> None:
        if stage == _FAILED:
            if fingerprint == _NONE:
                self.failed.pop(id, None)
            else:
                with contextlib.suppress(ValueError):
                    self.failed[id] = fingerprint, str(json.loads(reason))
            return
        kind = self.aside if stage.startswith(_ASIDE) else self.records
        records = kind.setdefault(stage.removeprefix(_ASIDE), {})
        if fingerprint == _NONE:
            records.pop(id, None)
        else:
            records[id] = fingerprint

    def _add(self, stage: str, id: str, fingerprint: str, reason: str = "") -> None:
        self._lines.add(stage, id, fingerprint, reason)
        self._take(stage, id, fingerprint, reason)

    def remember(self, settings: Mapping[str, Mapping[str, object]]) -> None:
        """Write down settings before the first product that is made under them."""
        new = {key: dict(one) for key, one in settings.items() if key not in self.settings}
        if new:
            self.settings |= new
            self._folder.mkdir(exist_ok=True)
            write_json(self._folder / "settings.json", self.settings)

    @contextlib.contextmanager
    def making(self, stage: str, fingerprint: str, id: str = WHOLE) -> Iterator[None]:
        """A product is made inside the block: struck out before, written down when the block ends well."""
        self.strike(stage, id)
        yield
        self._add(stage, id, fingerprint)

    def strike(self, stage: str, id: str = WHOLE) -> None:
        """A product no longer counts."""
        if id in self.records.get(stage, {}):
            self._add(stage, id, _NONE)
            self._lines.settle()

    def move(self, stage: str, id: str, name: str, *, back: bool) -> None:
        """A product is set aside under a name, or put back from it."""
        here, there = (stage, id), (_ASIDE + stage, name)
        kind, key = (self.aside, name) if back else (self.records, id)
        fingerprint = kind[stage][key]
        old, new = (there, here) if back else (here, there)
        self._add(*old, _NONE)
        self._add(*new, fingerprint)

    def fail(self, id: str, fingerprint: str, reason: str) -> None:
        """Remember a photograph that can't be used as it is."""
        self._add(_FAILED, id, fingerprint, json.dumps(reason))

    def mend(self, id: str) -> None:
        """Forget that a photograph failed."""
        if id in self.failed:
            self._add(_FAILED, id, _NONE)

    def close(self, order: Iterable[str] | None = None) -> None:
        """Let the files go; with the ids in the order of the list, rewrite them in it, without what is outdated."""
        if order is None:
            self._lines.close()
            return
        place = {id: number for number, id in enumerate([WHOLE, *order])}
        rows = []
        for prefix, kind in (("", self.records), (_ASIDE, self.aside)):
            for stage in sorted(kind):
                known = sorted(kind[stage].items(), key=lambda one: (place.get(one[0], len(place)), one[0]))
                rows += [(prefix + stage, id, fingerprint, "") for id, fingerprint in known]
        rows += [(_FAILED, id, one, json.dumps(reason)) for id, (one, reason) in sorted(self.failed.items())]
        self._lines.rewrite(rows)
        ends = {fingerprint.rpartition("-")[2] for _, _, fingerprint, _ in rows}
        kept = {key: one for key, one in sorted(self.settings.items()) if key in ends}
        if kept != self.settings:
            self.settings = kept
            write_json(self._folder / "settings.json", kept)
