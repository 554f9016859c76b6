"""Photographs as people have them: PIL images, arrays, paths, files, folders, patterns, and lists of these.

A folder is looked through with its sub-folders; a pattern holds *, ? or [ ]. Names of a folder's photographs are their
paths below it without suffix, as a run names its masks. Nothing is decoded here.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vpl.edges import storage
from vpl.edges.images import Picture
from vpl.edges.names import IMAGE_SUFFIXES, is_system
from vpl.errors import DataError

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
    """The photographs at a path, in a folder and below, or of a pattern."""
    if storage.is_url(given) or Path(given).is_file():
        return [Shot(Path(str(given)).stem, given)]
    folder = Path(given)
    if folder.is_dir():
        found = [path for path in _below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise DataError(f"{folder} and its sub-folders hold no images; expected files such as garden.jpg.")
        return [Shot(path.relative_to(folder).with_suffix("").as_posix(), path) for path in found]
    if glob.has_magic(str(given)):
        named = sorted(Path(one) for one in glob.glob(str(given), recursive=True) if Path(one).is_file())  # noqa: PTH207
        named = [path for path in named if path.suffix.lower() in IMAGE_SUFFIXES and not is_system(path.name)]
        if not named:
            raise DataError(f"no image file fits {given}; check the pattern.")
        return [Shot(path.stem, path) for path in named]
    raise DataError(f"there is no file or folder {given}; check the path.")


def _below(folder: Path) -> list[Path]:
    """Files below a folder, sorted; system files and hidden folders are passed over."""
    found: list[Path] = []
    for above, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        found += [Path(above) / one for one in files if not is_system(one)]
    return sorted(found)


def tags_of(given: object, shots: Sequence[Shot], one: bool) -> list[tuple[str, ...]]:
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
        return [_split(given)]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise DataError(
            f"the tags are {given!r}; expected tags for each of the {len(shots)} images, such as [['dog', 'chair'], "
            "['bus']], or a dict by file name."
        )
    if len(given) != len(shots):
        raise DataError(f"there are tags of {len(given)} images, and {len(shots)} images; expected as many.")
    return [_split(tags) for tags in given]


def _of(given: dict, shot: Shot) -> tuple[str, ...]:
    names = [
        shot.name,
        str(shot.source),
        *([Path(str(shot.source)).name] if isinstance(shot.source, (str, Path)) else []),
    ]
    for name in names:
        if name in given:
            return _split(given[name])
    raise DataError(f"there are no tags of {shot.name}; expected a key of that name, or its file's.")


def _split(given: object) -> tuple[str, ...]:
    if isinstance(given, str):
        return tuple(part.strip() for part in given.split(";") if part.strip())
    if isinstance(given, Sequence) and all(isinstance(tag, str) for tag in given):
        return tuple(given)
    raise DataError(f"the tags of an image are {given!r}; expected a list of texts, or a text such as 'dog;chair'.")
