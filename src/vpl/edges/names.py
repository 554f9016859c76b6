"""File names that came from a data file -> photographs below a folder, and never a place outside of it.

What a list says and what lies on the disk differ: another Unicode form, a backslash, an absolute path, the folder's own
name in front, no suffix. Each is found where it can mean one file alone.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path

from vpl.edges import storage
from vpl.errors import DataError

CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx",
)  # fmt: skip
"""Suffixes, in small letters, of the formats that images.py decodes."""
_SYSTEM = frozenset({
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "zbthumbnail.info", "icon\r",
    "@eadir", "__macosx", "$recycle.bin", "#recycle", "#snapshot", "lost+found", "system volume information",
})  # fmt: skip
_BESIDE = (":zone.identifier", ":encryptable", ".aae", ".xmp")
"""Ends of what Windows and editors of photographs put beside a photograph."""
_LONGEST_SHOWN = 60


def shown(text: str) -> str:
    """A text from a data file as a message shows it: quoted, and cut where it is long."""
    return repr(text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "...")


def folded(name: str) -> str:
    """A name as the least exact disk has it: case and Unicode form aside."""
    return unicodedata.normalize("NFC", name).casefold()


def is_system(name: str) -> bool:
    """Whether a file or folder is one that an operating system puts beside photographs, or hidden."""
    return name.startswith(".") or name.lower() in _SYSTEM or name.lower().endswith(_BESIDE)


def listing(folder: Path) -> list[str]:
    """Names in a folder, sorted, without those of `is_system`.

    Raises:
        DataError: it can't be listed.
    """
    try:
        return sorted(one.name for one in folder.iterdir() if not is_system(one.name))
    except OSError as error:
        raise DataError(f"the folder {folder} can't be listed ({error.strerror}); check its permissions.") from error


def inside(folder: str | Path, name: str) -> Path:
    """The path of a file name that came from a data file, if it stays inside `folder`. The file may be missing.

    `folder` itself may be a symbolic link; below it, a link is allowed only when it leads to a place inside.

    Raises:
        DataError: the name is empty, absolute, climbs by '..', is too long, holds control characters or is no valid
            Unicode, or a symbolic link on the way leaves the folder.
    """
    return Path(located(Path(folder), name)[0])


def located(folder: Path | str, name: str) -> tuple[Path | str, bool]:
    """The path that `inside` gives, and whether a regular file is there; behind a URL that shows when it is read."""
    if not name or CONTROL.search(name):
        raise DataError(f"the file name {shown(name)} is empty or holds control characters; rename the file.")
    if _is_absolute(name):
        raise DataError(f"the file name {shown(name)} is absolute; expected a name inside {folder}.")
    parts = _parts(name)
    if not parts or ".." in parts or ".." in name.split("\\"):
        raise DataError(
            f"the file name {shown(name)} climbs out of its folder by '..'; expected a name inside {folder}."
        )
    if storage.is_url(folder):
        return storage.below(folder, "/".join(parts)), True
    place = root = Path(folder)
    for number, part in enumerate(parts, 1):
        place = place / part
        try:
            kind = place.lstat().st_mode
            if stat.S_ISLNK(kind):
                if not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(root)):
                    raise DataError(
                        f"the file name {shown(name)} is a link out of {root}; copy the file into the folder."
                    )
                kind = place.stat().st_mode
        except FileNotFoundError:
            return place.joinpath(*parts[number:]), False
        except OSError as error:
            raise DataError(
                f"the file name {shown(name)} can't be used ({error.strerror}); rename the file."
            ) from error
    return place, stat.S_ISREG(kind)


def _is_absolute(name: str) -> bool:
    return name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name) is not None


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


class Finder:
    """Finds the photographs that a list names below one folder; remembers the folders that it had to list."""

    def __init__(self, folder: Path | str):
        self._folder = folder
        self._stems: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> tuple[Path | str, str, bool]:
        """(place, name below the folder, whether it is there) of the photograph that a list calls `name`.

        Raises:
            DataError: as `inside`; or the name has no suffix and could be several files.
        """
        own = self._own(name)
        place, there = located(self._folder, own)
        if there or storage.is_url(self._folder):
            return place, "/".join(_parts(own)), there
        for other in dict.fromkeys(self._spellings(own)):
            found, there = located(self._folder, other)
            if there:
                return found, "/".join(_parts(other)), True
        return place, "/".join(_parts(own)), False

    def _own(self, name: str) -> str:
        """The name without the way to the folder, where it is absolute and the folder, or one of its name, is on it."""
        if storage.is_url(self._folder) or CONTROL.search(name) or not _is_absolute(name):
            return name
        parts, folder = _parts(name.replace("\\", "/")), Path(self._folder)
        for whole in (folder.absolute(), folder.resolve()):
            if tuple(parts[: len(whole.parts) - 1]) == whole.parts[1:]:
                return "/".join(parts[len(whole.parts) - 1 :])
        places = [number for number, part in enumerate(parts[:-1], 1) if part == whole.name]
        return next((tail for at in places if located(folder, tail := "/".join(parts[at:]))[1]), name)

    def _spellings(self, name: str) -> list[str]:
        """Other names of the same file: slashes, Unicode forms, without the folder's own name, with its suffix."""
        slashed = "/".join(_parts(name.replace("\\", "/")))
        forms = [slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
        parts, own = _parts(slashed), Path(self._folder).absolute().parts
        for count in range(1, len(parts)):
            if tuple(parts[:count]) == own[-count:]:
                forms.append("/".join(parts[count:]))
        if re.fullmatch(r"\d{10}", parts[-1]):  # VOC's 2007_000032 as a number
            forms.append("/".join([*parts[:-1], f"{parts[-1][:4]}_{parts[-1][4:]}"]))
        return [*forms, *(whole for form in forms if (whole := self._with_suffix(form)))]

    def _with_suffix(self, name: str) -> str:
        """The one image beside which only the suffix is missing; empty where there is none."""
        above, _, stem = name.rpartition("/")
        if not above:
            folder, there = Path(self._folder), True
        else:
            folder = Path(located(self._folder, above)[0])
            there = folder.is_dir()
        if not there:
            return ""
        if folder not in self._stems:
            stems = self._stems[folder] = {}
            for one in listing(folder):
                if one.lower().endswith(IMAGE_SUFFIXES):
                    stems.setdefault(unicodedata.normalize("NFC", Path(one).stem), []).append(one)
        found = self._stems[folder].get(unicodedata.normalize("NFC", stem), [])
        if len(found) > 1:
            raise DataError(f"the file name {shown(name)} could be {' or '.join(found[:3])}; write the suffix.")
        return f"{above}/{found[0]}" if above and found else found[0] if found else ""


def existing_folder(given: str, key: str) -> Path:
    """A folder that the configuration names.

    Raises:
        DataError: it is not given, or no folder.
    """
    return _existing(given, key, "folder", Path.is_dir, "the folder", "check the path")


def existing_file(given: str, key: str, wanted: str) -> Path:
    """A file that the configuration names.

    Raises:
        DataError: it is not given, or no file.
    """
    return _existing(given, key, "file", Path.is_file, wanted, f"expected {wanted}")


def _existing(given: str, key: str, kind: str, there: Callable[[Path], bool], wanted: str, advice: str) -> Path:
    if not given:
        raise DataError(f"{key} is empty; set it to {wanted}.")
    try:
        found = there(Path(given))
    except (OSError, ValueError):
        found = False
    if not found:
        raise DataError(f"{key} is {shown(given)}, which is no {kind}; {advice}.")
    return Path(given)
