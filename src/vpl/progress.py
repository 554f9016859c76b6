"""How far long work has come, told to whoever shows it: the library counts, the command line draws bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Wraps an iterable of known length and hands its items on; the third argument names the work."""


def silent(items: Iterable[Any], total: int, words: str) -> Iterable[Any]:
    """A `Progress` that shows nothing."""
    return items
