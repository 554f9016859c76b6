"""What was made of each photograph before, under a digest of what it was made from: asked again, it is not made again.

A file of `state/`, which may be lost: what is not in it, or damaged, is made anew. It holds what the last one who asked
used, and nothing older.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from vpl.edges.datasets import Sample
from vpl.errors import RunError
from vpl.runs.contents import signature
from vpl.runs.files import read_json, write_json
from vpl.runs.plan import digest
from vpl.runs.state import FOLDER


class Memory:
    """Plain values by kind and photograph.

    Args:
        run: the run folder; where it has no state, nothing is kept.
        name: of the file.
    """

    def __init__(self, run: Path, name: str):
        self._path = run / FOLDER / name
        try:
            self._before = read_json(self._path)
        except RunError:
            self._before = {}
        self._now: dict[str, dict[str, list]] = {}

    def get(self, kind: str, id: str, made_from: str) -> Any:
        """What was kept under this digest; None where there is nothing."""
        before = self._before.get(kind)
        kept = before.get(id) if isinstance(before, dict) else None
        if not made_from or not isinstance(kept, list) or len(kept) != 2 or kept[0] != made_from:
            return None
        self._now.setdefault(kind, {})[id] = kept
        return kept[1]

    def keep(self, kind: str, id: str, made_from: str, value: object) -> None:
        """Keep a value; with no digest it is not kept."""
        if made_from:
            self._now.setdefault(kind, {})[id] = [made_from, value]

    def close(self) -> None:
        """Write down what was asked for."""
        if self._path.parent.is_dir() and self._now != self._before:
            with contextlib.suppress(OSError, RunError):  # it may be lost
                write_json(self._path, self._now)


def truth_of(sample: Sample) -> str:
    """What a photograph's truth mask is, as far as its file tells unread; "" where there is none."""
    if sample.mask is None:
        return ""
    return digest(signature(sample.mask), sample.values.told() if sample.values else "")
