"""Photographs as people have them: PIL images, arrays, paths, files, folders, patterns, and lists of these.

A folder is looked through with its sub-folders; a pattern holds *, ? or [ ]. Names of a folder's photographs are their
paths below it without suffix, as a run names its masks. Nothing is decoded here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vpl.edges import sources, storage
from vpl.edges.images import Picture
from vpl.edges.tags import Speller, split_fields
from vpl.errors import DataError

log = logging.getLogger("vpl")

Pictures = Picture | Iterable[Picture]
"""One photograph, or many: a list of these, a folder, a pattern, an array (N, H, W, 3)."""


@dataclass(frozen=True)
class Shot:
    """A photograph and its name: the file's name without its suffix, or "image 1", "image 2", … in memory."""

    name: str
    source: Picture


def shots(given: Pictures) -> tuple[list[Shot], bool]:
    """The photographs that are meant, and whether one alone was given.

    Raises:
        DataError: there is no such file or folder, a folder or pattern holds no photograph, or it is of another kind.
    """
    if isinstance(given, (str, Path)):
        found = _at(given)
        return found, len(found) == 1 and not _is_many(given)
    if isinstance(given, Image.Image) or (isinstance(given, np.ndarray) and given.ndim <= 3):
        return [Shot("image", given)], True
    if not isinstance(given, (Iterable, np.ndarray)):
        raise DataError(
            f"the images are a {type(given).__name__}; expected a path, folder, pattern, PIL image, uint8 array, or a "
            "list of these."
        )
    many: list[Shot] = []
    for number, one in enumerate(given, 1):
        many += _at(one) if isinstance(one, (str, Path)) else [Shot(f"image {number}", one)]
    if not many:
        raise DataError("the list of images is empty; expected at least one.")
    return many, False


def _is_many(given: str | Path) -> bool:
    return not storage.is_url(given) and not Path(given).is_file()


def _at(given: str | Path) -> list[Shot]:
    """The photographs at a path, in a folder and below, or of a pattern; a warning for each that is none."""
    found = sources.read(given)
    for where, why in found.left_out:
        log.warning("%s left out: %s", where, why)
    for film in (one for one in found.found if one.is_film):
        log.warning("%s left out: a film; give it to vpl predict.", film.where)
    in_order = sorted(found.found, key=lambda one: Path(str(one.image)))
    below = not storage.is_url(given) and Path(given).is_dir()
    return [Shot(one.name if below else one.name.rpartition("/")[2], one.image) for one in in_order if not one.is_film]


def tags_of(given: object, shots: Sequence[Shot], one: bool) -> list[str | tuple[str, ...]]:
    """The tags of each photograph, as they are written.

    Args:
        given: for one photograph its tags, as a list or "dog;chair"; for many a list of these, or a mapping from
            name, file name or path.

    Raises:
        DataError: there are more or fewer than photographs, or they are of another kind.
    """
    if isinstance(given, dict):
        return [_of(given, shot) for shot in shots]
    if one and isinstance(given, (str, Sequence)) and all(isinstance(tag, str) for tag in given):
        return [_checked(given)]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise DataError(
            f"the tags are {given!r}; expected tags for each of the {len(shots)} images, such as [['dog', 'chair'], "
            "['bus']], or a dict by file name."
        )
    if len(given) != len(shots):
        raise DataError(f"there are tags of {len(given)} images, and {len(shots)} images; expected as many.")
    return [_checked(tags) for tags in given]


def _of(given: dict, shot: Shot) -> str | tuple[str, ...]:
    names = [
        shot.name,
        str(shot.source),
        *([Path(str(shot.source)).name] if isinstance(shot.source, (str, Path)) else []),
    ]
    for name in names:
        if name in given:
            return _checked(given[name])
    raise DataError(f"there are no tags of {shot.name}; expected a key of that name, or its file's.")


def _checked(given: object) -> str | tuple[str, ...]:
    if isinstance(given, str):
        return given
    if isinstance(given, Sequence) and all(isinstance(tag, str) for tag in given):
        return tuple(given)
    raise DataError(f"the tags of an image are {given!r}; expected a list of texts, or a text such as 'dog;chair'.")


def split_tags(written: Sequence[str | tuple[str, ...]], shots: Sequence[Shot], speller: Speller) -> list[tuple]:
    """Tags as they are written -> tags: a text is cut as one in a table is, a list is taken as it is.

    Raises:
        DataError: a text could be one tag or several.
    """
    texts = iter(split_fields([one for one in written if isinstance(one, str)], "", speller).tags)
    found = [next(texts) if isinstance(one, str) else one for one in written]
    for one, text, shot in zip(found, written, shots, strict=True):
        if isinstance(one, str):
            raise DataError(
                f"{shot.name}: {text!r} could be one tag or several; give a list, such as ['dog', 'chair']."
            )
    return [one for one in found if not isinstance(one, str)]
