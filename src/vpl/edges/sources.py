"""What people give as "these images": a file, a folder, a pattern, a list, a picture in memory -> named pictures.

    garden.jpg          -> garden
    photos/             -> every image below it, sub-folders kept: day1/garden
    photos/**/*.jpg     -> what the pattern finds, named below its fixed part
    list.txt            -> what its lines name, from its own folder or from here
    [a.jpg, day2/, ...] -> all of them, one after the other
    an array, a PIL image -> named by its place in the list

A name is that of the results: "/" between folders, no suffix. What can't be used is named with its reason, never passed
over in silence; only what an operating system puts beside photographs, hidden files and folders that vpl itself has
filled are. No image is decoded here.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from vpl.edges import images, outputs, storage
from vpl.edges.names import CONTROL, IMAGE_SUFFIXES, folded, inside, is_system, listing, shown
from vpl.errors import DataError

FILM_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg")
"""Suffixes, in small letters, of the films that film.py opens."""

LIST_SUFFIXES = (".txt", ".lst")
"""Suffixes, in small letters, of files whose lines name photographs, where such a file itself is given."""
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """One picture, or one film.

    Attributes:
        name: of its results, "/" between folders, no suffix.
        image: what `images.read_image` reads; a path where `is_film`.
        where: what messages call it.
    """

    name: str
    image: images.Picture
    where: str

    @property
    def is_film(self) -> bool:
        """Whether it is a film and not a photograph."""
        return isinstance(self.image, (str, Path)) and str(self.image).lower().endswith(FILM_SUFFIXES)


@dataclass(frozen=True)
class Sources:
    """What was found, in order, and what was left out: (name, why)."""

    found: tuple[Found, ...]
    left_out: tuple[tuple[str, str], ...]
    folders: tuple[Path, ...] = ()
    """Folders that are read from: nothing may be written into them."""

    def kinds(self) -> str:
        """How many files of each suffix were found, the most frequent first: "3 .jpg, 1 .heic, 1 without suffix"."""
        paths = [str(one.image) for one in self.found if isinstance(one.image, (str, Path))]
        counts = Counter(PurePosixPath(path.replace("\\", "/")).suffix.lower() or "without suffix" for path in paths)
        return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def read(given: object) -> Sources:
    """All pictures that are meant, each name once.

    Args:
        given: a path, a pattern, a URL, a picture in memory, or several of them; see the table above. `Found`s and
            `Sources` are taken as they are.

    Raises:
        DataError: a file, folder or pattern that was given finds nothing, or is of another kind.
    """
    found: list[Found] = []
    left_out: list[tuple[str, str]] = []
    folders: dict[Path, None] = {}
    if isinstance(given, Sources):
        return given
    if isinstance(given, (str, Path, Image.Image, np.ndarray)):
        items = [given]
    elif isinstance(given, Iterable):
        items = list(given)
    else:
        raise DataError(f"the images are a {type(given).__name__}; expected a path, a picture, or a list of them.")
    if not items:
        raise DataError("no image was given; expected a file, a folder, a pattern, or a list of them.")
    for number, one in enumerate(items):
        part = _one(one, number)
        found += part.found
        left_out += part.left_out
        folders |= dict.fromkeys(part.folders)
    kept, doubles = _each_once(_apart(found))
    if not kept:
        told = f" {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise DataError(
            f"{_told(items)} holds no images; expected files that end with {', '.join(IMAGE_SUFFIXES)}.{told}"
        )
    return Sources(tuple(kept), (*left_out, *doubles), tuple(folders))


def _one(given: object, number: int) -> Sources:
    if isinstance(given, Found):
        return Sources((given,), (), (given.image.parent,) if isinstance(given.image, Path) else ())
    if isinstance(given, (Image.Image, np.ndarray)):
        return Sources((Found(str(number), given, f"image {number}"),), ())
    if not isinstance(given, (str, Path)):
        raise DataError(f"image {number} is a {type(given).__name__}; expected a path, a PIL image or a uint8 array.")
    if storage.is_url(given):
        name = given.partition("://")[2].rstrip("/").rpartition("/")[2]
        return Sources((Found(_stem(name), given, given),), ())
    path = Path(given)
    try:
        if path.is_dir():
            return _folder(path)
        there = path.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(str(given))} can't be used as a path ({error}); check it.") from error
    if there or not _MAGIC.search(str(given)):
        if not there:
            raise DataError(f"there is no file or folder {given}; check the path.")
        if path.name.lower().endswith(LIST_SUFFIXES):
            return _listed(path)
        return Sources((Found(_stem(path.name), path, path.name),), (), (path.parent,))
    return _pattern(str(given))


def _listed(path: Path) -> Sources:
    """The files that a list names, one a line; empty lines and those that begin with # say nothing."""
    found: list[Found] = []
    left_out: list[tuple[str, str]] = []
    try:
        with storage.open_bytes(path) as file:
            lines = file.read(images.MOST_FILE_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"the list {path} can't be read ({error}); expected a text of one path a line.") from error
    for line in (one.strip() for one in lines):
        if not line or line.startswith("#"):
            continue
        place = next(
            (one for one in (path.parent / line, Path(line)) if not CONTROL.search(line) and one.is_file()), None
        )
        if place is None:
            left_out.append((shown(line), f"there is no such file beside {path} or here; mend the line."))
        else:
            own = PurePosixPath(Path(line).as_posix())
            name = place.name if own.is_absolute() or ".." in own.parts else str(own)
            found.append(Found(_stem(name), place, name))
    return Sources(tuple(found), tuple(left_out), tuple(dict.fromkeys(Path(str(one.image)).parent for one in found)))


def _folder(folder: Path) -> Sources:
    found: list[Found] = []
    left_out: list[tuple[str, str]] = []
    for name in _below(folder, left_out):
        try:
            path = inside(folder, name)
            if not name.lower().endswith((*IMAGE_SUFFIXES, *FILM_SUFFIXES)):
                images.image_size(path)
            found.append(Found(_stem(name), path, name))
        except DataError as error:
            left_out.append((shown(name), str(error)))
    above = dict.fromkeys((folder, *(one.image.parent for one in found if isinstance(one.image, Path))))
    return Sources(tuple(found), tuple(left_out), tuple(above))


def _below(folder: Path, left_out: list[tuple[str, str]], above: str = "") -> Iterator[str]:
    """Names of all files below a folder, a folder's files before its sub-folders'; masks that vpl made are none."""
    deeper, masks = [], outputs.masks_in(folder)
    for one in listing(folder):
        if one in masks:
            continue
        name, path = f"{above}{one}", folder / one
        if not path.is_dir():
            yield name
        elif path.is_symlink():
            left_out.append((shown(name), "a link to a folder is not followed; give that folder itself too."))
        elif one.lower().endswith((*IMAGE_SUFFIXES, *FILM_SUFFIXES)) and not listing(path):
            left_out.append((shown(name), "it is an empty folder; expected an image."))
        elif not (path / outputs.NAME).exists() and not any(mask.startswith(f"{one}/") for mask in masks):
            deeper.append((path, f"{name}/"))
    for path, name in deeper:
        try:
            yield from _below(path, left_out, name)
        except DataError as error:
            left_out.append((shown(name), str(error)))


def _pattern(pattern: str) -> Sources:
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(number for number, part in enumerate(parts) if _MAGIC.search(part))])
    found: list[Found] = []
    left_out: list[tuple[str, str]] = []
    folders: dict[Path, None] = {}
    masks: dict[Path, frozenset[str]] = {}
    links: dict[str, None] = {}
    for text in sorted(_matches(pattern, links)):
        path = Path(text)
        if path.is_dir() or is_system(path.name) or _is_mask(path, fixed, masks):
            continue
        name = path.relative_to(fixed).as_posix() if fixed.parts else path.as_posix()
        if CONTROL.search(name):
            left_out.append((shown(name), "the name holds control characters; rename the file."))
            continue
        folders[path.parent] = None
        found.append(Found(_stem(name), path, name))
    left_out += ((shown(one), "a link to a folder is not followed; give that folder itself too.") for one in links)
    if not found and not left_out:
        raise DataError(f"the pattern {pattern} finds no file; check it, and quote it where the shell reads it too.")
    return Sources(tuple(found), tuple(left_out), tuple(folders))


def _matches(pattern: str, links: dict[str, None]) -> set[str]:
    """What a pattern finds. `**` goes into no links to folders, as two that lead up would never end; they are noted."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return set(glob.glob(pattern))  # noqa: PTH207 (a pattern may be absolute, or climb)
    at = parts.index("**")
    rest, found = parts[at + 1 :] or ("*",), set()
    for top in _matches(str(Path(*parts[:at])), links) if at else {"."}:
        for above, folders, _ in os.walk(top):
            folders[:] = [one for one in folders if not is_system(one)]
            links |= dict.fromkeys(place for one in folders if Path(place := f"{above}/{one}").is_symlink())
            found |= _matches(str(Path(glob.escape(above), *rest)), links)
    return found


def _is_mask(path: Path, top: Path, known: dict[Path, frozenset[str]]) -> bool:
    """Whether vpl predict made a file, in its folder or one above it up to `top`; `known` is filled by folder."""
    for above in path.parents:
        if above not in known:
            known[above] = outputs.masks_in(above)
        if path.relative_to(above).as_posix() in known[above]:
            return True
        if above == top:
            break
    return False


def _apart(found: list[Found]) -> list[Found]:
    """Files of several places whose names are the same: by their names below the folder that holds them all."""
    names: dict[str, set[str]] = {}
    for one in found:
        if isinstance(one.image, Path):
            names.setdefault(folded(one.name), set()).add(os.path.realpath(one.image.parent))
    if all(len(places) < 2 for places in names.values()):
        return found
    whole = {id(one): one.image.parent.resolve() / one.image.name for one in found if isinstance(one.image, Path)}
    above = os.path.commonpath([path.parent for path in whole.values()])
    return [
        Found(_stem(path.relative_to(above).as_posix()), one.image, path.relative_to(above).as_posix())
        if (path := whole.get(id(one)))
        else one
        for one in found
    ]


def _each_once(found: list[Found]) -> tuple[list[Found], list[tuple[str, str]]]:
    """The first of each name as disks fold it; another file of that name is left out, the same again is not told."""
    kept: dict[str, Found] = {}
    doubles = []
    for one in found:
        first = kept.setdefault(folded(one.name), one)
        if first is not one and not (isinstance(one.image, (str, Path)) and one.image == first.image):
            but = (
                "its suffix"
                if one.name == first.name
                else "capitals or Unicode forms, which not every disk tells apart"
            )
            doubles.append((one.where, f"another image, {first.where}, has the same name but for {but}; rename one."))
    return list(kept.values()), doubles


def _stem(name: str) -> str:
    """A name without its suffix, where it is one of an image or a film."""
    low = name.lower()
    suffix = next((one for one in (*IMAGE_SUFFIXES, *FILM_SUFFIXES) if low.endswith(one)), "")
    return name[: len(name) - len(suffix)] if suffix and len(suffix) < len(name.rpartition("/")[2]) else name


def _told(items: list) -> str:
    return str(items[0]) if len(items) == 1 else f"{items[0]} and {len(items) - 1} more"
