"""What can be wrong is looked at before the first photograph is encoded: settings, truth masks, room on the disk.

What a stage would say at its end is said here at its beginning, in the same words where it is the same check.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Container, Sequence
from pathlib import Path

import torch

from vpl.classes import ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import Config, DataConfig
from vpl.edges import images
from vpl.edges.datasets import Sample
from vpl.errors import DataError
from vpl.method import looks
from vpl.network import card, predict, train
from vpl.sampling import evenly

log = logging.getLogger("vpl")

LOOKED_AT = 8
"""Truth masks of a split that are read beforehand, evenly spread over its list."""
MAPS_BYTES = 60_000
"""Label maps and regions of one photograph on the disk, about. [ours: measured on photographs of 640 x 480]"""


def check_settings(config: Config, stages: Container[str], clip: FrozenClip, classes: ClassSet) -> None:
    """Settings of the stages to come that don't fit together.

    Raises:
        ConfigError, ModelError: as looks, training and prediction would.
    """
    if "network" in stages:
        train.check(config)
        with torch.random.fork_rng(devices=[]):
            card.untrained(config.decoder, clip, len(classes))
        predict.full_protocol(config.predict)
    if "masks" in stages:
        background = len(classes.background) if config.prompts.background_words else 0
        made = looks.makers_of(config.looks, background)
        if left_out := [name for name in config.looks.makers if name not in made]:
            log.warning(
                "the class set has no background words, so looks.makers goes without %s; a classes file may hold some.",
                ", ".join(left_out),
            )


def check_truth(samples: Sequence[Sample], data: DataConfig, *, scored: bool) -> None:
    """A split's truth masks: there are none, or none of a few can be used.

    Args:
        scored: whether scores were asked for; otherwise no mask is opened.

    Raises:
        DataError: masks are asked for and there are none, or none of those looked at fits its photograph.
    """
    masked = [one for one in samples if one.mask is not None]
    if not masked:
        if data.masks:
            raise DataError(
                f"none of the {len(samples)} photographs of {data.images} has a truth mask in {data.name}.masks = "
                f"{data.masks}; expected files of the photographs' names that end with .png. Check the folder."
            )
        return
    if not scored:
        return
    wrong = [why for one in evenly(masked, LOOKED_AT) if (why := _problem(one)) is not None]
    if len(wrong) == min(len(masked), LOOKED_AT):
        raise DataError(f"no truth mask that was looked at can be used; the first: {wrong[0]}")


def _problem(sample: Sample) -> str | None:
    try:
        size = images.image_size(sample.image)
    except DataError:
        return None  # the photograph's own fault, told where it is read
    try:
        shape = images.read_mask(sample.mask).shape if sample.mask is not None else size
    except DataError as error:
        return str(error)
    if shape != size:
        return f"the mask {sample.mask} has shape {shape}, the photograph {sample.image} {size}; expected the same."
    return None


def warn_of_little_room(folder: Path, photographs: int) -> None:
    """One warning where the disk will probably be too small for label maps of so many more photographs."""
    free, need = shutil.disk_usage(folder).free, photographs * MAPS_BYTES
    if free < need:
        log.warning(
            "the disk of %s has %.1f GB free; label maps of %d photographs need about %.1f GB.",
            folder, free / 1e9, photographs, need / 1e9,
        )  # fmt: skip
