"""The machine: how many cores there are, and where the time of a pipeline goes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Clock:
    """Seconds by part of a pipeline, added up over its threads.

    Every thread adds to numbers of its own, so nothing is locked and a clock can be pickled with what holds it.
    """

    def __init__(self):
        self._seconds: dict[tuple[int, str], float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Counts the time inside the `with` block to `part`."""
        key, start = (threading.get_ident(), part), time.perf_counter()
        try:
            yield
        finally:
            self._seconds[key] = self._seconds.get(key, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Part -> seconds so far, all threads together."""
        total: dict[str, float] = {}
        for (_, part), one in list(self._seconds.items()):
            total[part] = total.get(part, 0.0) + one
        return total
