"""What can be wrong is looked at before the first photograph is encoded: settings, truth masks, room on the disk.

What a stage would say at its end is said here at its beginning, in the same words where it is the same check.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from vpl.classes import ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import Config, DataConfig
from vpl.edges import images, storage
from vpl.edges.datasets import Sample
from vpl.edges.truth import read_truth
from vpl.errors import DataError, RunError
from vpl.method import affinities, lesson, looks
from vpl.method.belonging import Counting
from vpl.network import card, predict, train
from vpl.sampling import evenly

log = logging.getLogger("vpl")

LOOKED_AT = 64
"""Truth masks of a split that are read beforehand, evenly spread over its list."""
WINDOWS = sys.platform == "win32"
LONGEST_PATH = 259
"""Characters of a file's whole name that Windows takes without its long paths."""
MAPS_BYTES = 60_000
"""Label maps and regions of one photograph on the disk, about. [ours: measured on photographs of 640 x 480]"""


class MissingTruth(DataError):
    """Truth masks were named and none was found: a mistake in a path."""


def check_settings(config: Config, stages: Collection[str], clip: FrozenClip, classes: ClassSet) -> None:
    """Settings of the stages to come that don't fit together.

    Raises:
        ConfigError, ModelError: as looks, training and prediction would.
    """
    if {"prototypes", "maps", "masks"} & set(stages):
        check_words(config, classes)
    if "network" in stages:
        train.check(config)
        with torch.random.fork_rng(devices=[]):
            card.untrained(config.decoder, clip, len(classes))
        predict.full_protocol(config.predict)
    if "masks" in stages or "maps" in stages:
        words = len(classes.background) if config.prompts.background_words else 0
        if "classes" in (*config.refine.affinity, *config.refine.votes):
            affinities.check(len(classes), words)
    if "masks" in stages:
        background = len(classes.background) if config.prompts.background_words else 0
        made = looks.makers_of(config.looks, background)
        if left_out := [name for name in config.looks.makers if name not in made]:
            log.warning(
                "the class set has no background words, so looks.makers goes without %s; a classes file may hold some.",
                ", ".join(left_out),
            )


def check_words(config: Config, classes: ClassSet) -> None:
    """One word alone.

    Raises:
        DataError: there is one class and no background word.
    """
    if len(classes) == 1 and not (classes.background and config.prompts.background_words):
        raise DataError(lesson.ALONE)


def check_truth(samples: Sequence[Sample], data: DataConfig, classes: ClassSet, *, scored: bool) -> None:
    """A split's truth masks: there are none, none of a few can be used, or they don't belong to the tags.

    Args:
        scored: whether scores were asked for; otherwise no mask is opened.

    Raises:
        MissingTruth: masks are asked for and there are none.
        DataError: none of those looked at fits its photograph, or masks and tags can't belong together.
    """
    masked = [one for one in samples if one.mask is not None]
    if not masked:
        if data.masks:
            drawn = data.masks.lower().endswith(".json")
            expected = (
                "images of the photographs' names" if drawn else "files of the photographs' names that end with .png"
            )
            raise MissingTruth(
                f"none of the {len(samples)} photographs of {data.images} has a truth mask in {data.name}.masks = "
                f"{data.masks}; expected {expected}. Check the {'file' if drawn else 'folder'}."
            )
        return
    if not scored:
        return
    wrong, counting = [], Counting(classes.names)
    for sample in evenly(masked, LOOKED_AT):
        found = _fitting(sample)
        if isinstance(found, str):
            wrong.append(found)
        elif found is not None:
            counting.add(found, classes.numbers(sample.tags))
    if len(wrong) == min(len(masked), LOOKED_AT):
        raise DataError(f"no truth mask that was looked at can be used; the first: {wrong[0]}")
    belonging = counting.result()
    if not belonging.together:
        raise DataError(belonging.refusal(data.masks or data.images))
    if doubt := belonging.doubt():
        log.warning("%s: %s", data.masks or data.images, doubt)


def _fitting(sample: Sample) -> UInt8[np.ndarray, "H W"] | str | None:
    """A sample's truth as label values, or why it can't be used; None where the photograph itself is at fault."""
    try:
        size = images.image_size(sample.image)
    except DataError:
        return None  # told where it is read
    try:
        truth = read_truth(sample.mask, sample.values) if sample.mask is not None else None
    except DataError as error:
        return str(error)
    if truth is not None and truth.shape != size:
        return (
            f"the mask {sample.mask} has shape {truth.shape}, the photograph {sample.image} {size}; expected the same."
        )
    return truth


def check_lengths(folder: Path, ids: Sequence[str]) -> None:
    """File names that this system can't hold.

    Raises:
        RunError: on a Windows without long paths, the longest one would be longer than it allows.
    """
    if not (WINDOWS and ids) or _long_paths():
        return
    longest = max(ids, key=len)
    length = len(str(folder.absolute() / "seeds" / "refined" / longest)) + len(".png") + len(storage.PARTIAL) + 1
    if length > LONGEST_PATH:
        raise RunError(
            f"{longest} would get a file name of {length} characters in {folder}, and Windows allows {LONGEST_PATH}; "
            "name a run folder with a shorter name, or switch on Windows' long paths (LongPathsEnabled)."
        )


def _long_paths() -> bool:
    """Whether this Windows takes names of any length."""
    try:
        import winreg

        place = r"SYSTEM\CurrentControlSet\Control\FileSystem"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:  # type: ignore[attr-defined,unused-ignore]
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])  # type: ignore[attr-defined,unused-ignore]
    except (ImportError, OSError):
        return False


def warn_of_little_room(folder: Path, photographs: int) -> None:
    """One warning where the disk will probably be too small for label maps of so many more photographs."""
    free, need = shutil.disk_usage(folder).free, photographs * MAPS_BYTES
    if free < need:
        log.warning(
            "the disk of %s has %s MB free; label maps of %d photographs need about %s MB.",
            folder, f"{free / 1e6:,.1f}", photographs, f"{need / 1e6:,.1f}",
        )  # fmt: skip
