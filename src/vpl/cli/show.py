"""What the command line shows: tables, a configuration, bars."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from vpl.config import Config
from vpl.runs.plan import count_of

log = logging.getLogger("vpl")

_UNITS = {"ablate": "setting", "tune": "value", "train": "step", "learn": "step", "look again": "look"}
"""What a bar of these words counts, where it is not images."""


def say(words: str, *, aside: bool = False) -> None:
    """Print, `aside` beside the results on the error stream; and write into the log of the run that is open."""
    print(words, file=sys.stderr if aside else sys.stdout)
    log.info("%s", words)


def bar(items: Iterable[Any], total: int, words: str) -> Iterable[Any]:
    """A progress bar with rate and time left, where errors go to a terminal; in a file it would be one endless line."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread beside the work, which warns where there is no memory for it
    return tqdm(
        items,
        total=total,
        desc=words,
        unit=_UNITS.get(words, "image"),
        dynamic_ncols=True,
        mininterval=0.5,
        delay=0.5,
        disable=None,
        file=sys.stderr,
    )


def table(evaluation: dict[str, Any]) -> str:
    """The mIoU table of one split, in percent."""
    title = f"{evaluation['split']}, {count_of(evaluation['images'], 'image')}"
    rows = [(f"  {row['name']}", row["miou"], row["pixel_accuracy"]) for row in evaluation["rows"]]
    width = max(len(name) for name in (title, *(row[0] for row in rows))) + 2
    lines = [f"{title:<{width}}{'mIoU':>5}{'pixel accuracy':>17}"]
    lines += [f"{name:<{width}}{_percent(miou):>5}{_percent(right):>17}" for name, miou, right in rows]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def config(given: Config) -> str:
    """Every value as `--set` takes it, with its source and meaning; the text is TOML."""
    import tomlkit

    values = {key: list(one) if isinstance(one, tuple) else one for key, one in given.flat().items()}
    rows = [(f"{key} = {tomlkit.item(one).as_string()}", given.comment(key)) for key, one in values.items()]
    width = min(max(len(left) for left, _ in rows), 48)
    return "\n".join(f"{left:<{width}}  # {comment}" for left, comment in rows)
