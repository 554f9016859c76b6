"""The JSON files of a run folder: one checked reader for each. Who reads one gets values that vpl could have written.

    run.json      versions, device, hashes, times by stage, failures
    metrics.json  evaluations (scores by split), label_free and with_truth (signs)
    tune.json     what `vpl tune` chose, and why
    prototypes.json  how vision prototypes were learned, and the modality gap

A file that is absent is empty; one that holds anything else is damaged, and the sentence says where and what to do. The
network's card is `network.card`'s, prototypes and regions are `files`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpl.config import Config
from vpl.runs.files import damaged, read_json

RUN_FILE, METRICS_FILE, TUNE_FILE, LEARNING_FILE = "run.json", "metrics.json", "tune.json", "prototypes.json"
LARGEST = 1e18
"""Numbers beyond it are damage: no time, count or score of a run is so large."""

Check = Callable[[Any], bool]


def is_number(given: object) -> bool:
    """Whether this is a finite number of a size that a run can have; true and false are none."""
    return type(given) in (int, float) and -LARGEST <= given <= LARGEST  # type: ignore[operator]  # NaN fails


def _is_score(given: object) -> bool:
    return given is None or is_number(given)


def _is_seed(given: object) -> bool:
    return type(given) is int and 0 <= given < 2**63


def _is_text(given: object) -> bool:
    return isinstance(given, str)


def _is_list(check: Check) -> Check:
    return lambda given: isinstance(given, list) and all(map(check, given))


def _is_table(check: Check) -> Check:
    return lambda given: isinstance(given, dict) and all(map(check, given.values()))


def _is_object(needs: dict[str, Check], may: dict[str, Check]) -> Check:
    def check(given: object) -> bool:
        return (
            isinstance(given, dict)
            and all(key in given and one(given[key]) for key, one in needs.items())
            and all(key not in given or one(given[key]) for key, one in may.items())
        )

    return check


_TEXTS, _SCORES = _is_list(_is_text), _is_table(_is_score)
_RECORD: dict[str, Check] = {
    "data": _is_object({}, {"hash": _is_text, "images": is_number, "split": _is_text, "problems": _TEXTS}),
    "clip": _is_object({}, {"name": _is_text, "hash": _is_text}),
    "stages": _is_table(
        _is_object(
            {"seconds": is_number},
            {"images": _is_score, "parts": _is_table(is_number), "busy": _is_table(is_number)},
        )
    ),
    "failures": _is_list(_is_object({"id": _is_text}, {"reason": _is_text, "stage": _is_text})),
    "versions": _is_table(_is_text),
    "device": _is_text,
    "precision": _is_text,
    "seed": _is_seed,
    "tag_rank": _is_score,
    "unscored": _is_text,
}
_ROW = _is_object(
    {"name": _is_text, "miou": _is_score, "pixel_accuracy": _is_score},
    {
        "iou": _SCORES,
        "precision": _SCORES,
        "recall": _SCORES,
        "images": is_number,
        "missing": _TEXTS,
        "of": _is_text,
        "confusion": _is_list(_is_list(is_number)),
    },
)
_EVALUATION = _is_object(
    {"split": _is_text, "images": is_number, "classes": _TEXTS, "rows": _is_list(_ROW)},
    {"held_out": lambda given: isinstance(given, bool), "fingerprint": _is_text,
     "tags": _is_table(_is_list(is_number))},
)  # fmt: skip
_SIGNS = _is_table(_is_object({"value": _is_score}, {"meaning": _is_text, "advice": _is_text, "images": is_number}))
_METRICS: dict[str, Check] = {"evaluations": _is_list(_EVALUATION), "label_free": _SIGNS, "with_truth": _SIGNS}
_CHOICE = _is_object(
    {"key": _is_text, "default": is_number, "value": is_number, "tried": _is_table(_is_score), "reason": _is_text}, {}
)
_TUNE: dict[str, Check] = {"images": is_number, "choices": _is_list(_CHOICE)}


_MODALITY = _is_object(
    {"separability": _is_score, "classes": _is_table(_is_object(
        {"regions": is_number, "distance": is_number, "own": is_number, "other": _is_score}, {}))},
    {},
)  # fmt: skip
_LEARNING: dict[str, Check] = {
    "curve": _is_list(is_number),
    "steps": is_number,
    "modality": _is_object({"text": _MODALITY, "vision": _MODALITY}, {}),
}


def _read(path: Path, checks: dict[str, Check]) -> dict:
    found = read_json(path)
    for key, check in checks.items():
        if key in found and not check(found[key]):
            raise damaged(path, f"{key!r} is no value that vpl writes")
    return found


def read_record(folder: Path) -> dict:
    """run.json of a run folder, all of it.

    Raises:
        RunError: it is damaged.
    """
    return _read(folder / RUN_FILE, _RECORD)


def read_metrics(folder: Path) -> dict:
    """metrics.json of a run folder: `evaluations`, `label_free`, `with_truth`, as far as they are there.

    Raises:
        RunError: it is damaged.
    """
    return _read(folder / METRICS_FILE, _METRICS)


def read_evaluations(folder: Path) -> list[dict]:
    """What metrics.json holds of each split: `split`, `images`, `classes`, `rows` with a name and scores.

    Raises:
        RunError: it is damaged.
    """
    return read_metrics(folder).get("evaluations", [])


def read_learning(folder: Path) -> dict:
    """prototypes.json of a run folder: `curve`, `steps`, `modality`, and numbers by name.

    Raises:
        RunError: it is damaged.
    """
    return _read(folder / LEARNING_FILE, _LEARNING)


@dataclass(frozen=True)
class Choice:
    """One value that `vpl tune` chose: what was configured, what was chosen, and why.

    Attributes:
        tried: value -> mean score; NaN where no image said anything.
        reason: one sentence.
    """

    key: str
    default: float
    value: float
    tried: dict[str, float]
    reason: str


def read_choices(folder: Path) -> tuple[int, tuple[Choice, ...]]:
    """What `vpl tune` chose, and on how many images; none where it has not run.

    Raises:
        RunError: tune.json is damaged.
    """
    path = folder / TUNE_FILE
    found = _read(path, _TUNE)
    if not found:
        return 0, ()
    if not found.keys() >= _TUNE.keys():
        raise damaged(path, "it lacks 'images' or 'choices'")
    known = Config().flat()
    choices = []
    for one in found["choices"]:
        if type(known.get(one["key"])) not in (int, float):
            raise damaged(path, f"there is no number {one['key']!r} in a configuration")
        tried = {key: math.nan if score is None else float(score) for key, score in one["tried"].items()}
        choices.append(Choice(one["key"], float(one["default"]), float(one["value"]), tried, one["reason"]))
    return int(found["images"]), tuple(choices)
