"""The rule of every writer: an output folder is never an input folder, and only files that vpl made are replaced.

A folder of outputs holds a journal, `NAME`: one line a file, its name and the fingerprint of what it was made from. A
line without a fingerprint is written before the file, one with it after: so what a kill left is known as ours and as
unfinished, and what was made from something else is never taken for what is asked now.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from vpl.edges.names import listing
from vpl.errors import DataError, RunError

NAME = ".vpl-made.jsonl"
OWNER = ".vpl-folder"
"""In a folder that a link leads to, and that vpl took while it was empty."""
MASKS = "vpl-masks.json"
"""In a folder of masks that `vpl predict` made: their classes, and the photograph of each."""
EXPORT = "vpl-export.json"
"""In an export: which one it is."""
OF_RUNS = ("labels", "seeds", "regions", "network", "predictions", "state", "replaced", "corrected")
"""Folders of a run that its stages fill: nothing else is written there."""
PAGE_MARK = '<meta name="generator" content="vpl">'
"""In every page of ours, so that no other file is replaced by one."""


def check_apart(outputs: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Refuse to write where something is read; links are followed.

    Raises:
        RunError: an output folder is an input folder.
    """
    read = {Path(one).resolve() for one in inputs if str(one)}
    for folder in outputs:
        if folder.resolve() in read:
            raise RunError(
                f"{folder} is a folder that is read from, where what is written could take the names of your files; "
                "name another folder."
            )


def check_new_or_ours(folder: Path) -> None:
    """Refuse to fill a folder with folders where other files lie.

    Raises:
        RunError: the folder is neither empty nor one with a journal of ours.
    """
    strangers = [one for one in listing(folder) if one != NAME] if folder.is_dir() else []
    if strangers and not (folder / NAME).exists():
        raise RunError(
            f"{folder} holds files that vpl did not make there ({strangers[0]}); name a new or an empty folder."
        )


def check_no_run(folder: Path) -> None:
    """Refuse to write masks into a run, where they would be taken for its own; a new folder in it is fine.

    Raises:
        RunError: it is a run folder, or one that a run's stages fill.
    """
    whole = folder.resolve()
    for above in (whole, *whole.parents):
        inside = whole.relative_to(above).parts[:1]
        if (
            (above / "config.toml").is_file()
            and (above / "state").is_dir()
            and inside in ((), *((one,) for one in OF_RUNS))
        ):
            raise RunError(
                f"{folder} is a run's own folder, where masks would be taken for the run's; name another, such as "
                f"{above / 'masks'}."
            )


def take_linked(folder: Path) -> None:
    """Take a folder of ours that is a link: what it leads to must be empty, or taken before.

    Raises:
        RunError: it holds other files, or can't be written.
    """
    if not folder.is_symlink():
        return
    try:
        if (folder / OWNER).exists():
            return
        strangers = sorted(one.name for one in folder.iterdir())
        if not strangers:
            (folder / OWNER).write_text("This folder is written by vpl.\n", encoding="utf-8")
            return
    except OSError as error:
        raise RunError(f"the link {folder} can't be written through ({error.strerror}); remove it.") from error
    raise RunError(f"{folder} is a link to a folder with files that vpl did not make ({strangers[0]}); empty it.")


def check_page(path: Path) -> None:
    """Refuse to write a page over a file that is none of ours.

    Raises:
        RunError: there is another file, or a folder.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4096)
            ours = PAGE_MARK.encode() in start or not start.strip(b"\0")  # an empty one was torn
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"{path} can't be replaced ({error.strerror}); name another file.") from error
    if not ours:
        raise RunError(f"{path} is there and was not made by vpl; move it away, or name another file.")


def _holds(path: Path) -> bool:
    """Whether there is a file that is not empty: an empty one was torn, and is made again."""
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def masks_in(folder: Path) -> frozenset[str]:
    """The names below a folder of what vpl made there; empty where it made nothing, and of an export, whose
    photographs are ones.

    Raises:
        RunError: the journal can't be read.
    """
    return Made(folder).known if (folder / NAME).exists() and not (folder / EXPORT).exists() else frozenset()


class Made:
    """The files of a folder that vpl made, and what from.

    Args:
        more: what else can be done where a file is not ours, such as ", or give --overwrite".

    Raises:
        RunError: the journal can't be read.
    """

    def __init__(self, folder: Path, more: str = ""):
        self.folder, self._path, self._more = folder, folder / NAME, more
        self._known = self._read()

    def _read(self) -> dict[str, str]:
        known: dict[str, str] = {}
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        except (OSError, ValueError) as error:
            raise RunError(f"{self._path} can't be read ({error}); name another folder.") from error
        for line in lines:
            try:
                name, fingerprint = json.loads(line)
                known[str(name)] = str(fingerprint)
            except (ValueError, TypeError):  # the end of a line that a kill cut
                continue
        return known

    @property
    def known(self) -> frozenset[str]:
        """The names that vpl began to write here, whether or not they were finished."""
        return frozenset(self._known)

    def is_fresh(self, names: Iterable[str], fingerprint: str) -> bool:
        """Whether these files are there and were made from just this."""
        return all(self._known.get(name) == fingerprint and _holds(self.folder / name) for name in names)

    def begin(self, names: Iterable[str], replace: bool = False) -> None:
        """Say that these files are about to be written.

        Args:
            replace: also those that are there and not ours.

        Raises:
            DataError: one of them is there and is not ours.
            RunError: the journal can't be written.
        """
        names = list(names)
        there = [name for name in names if (self.folder / name).exists() or (self.folder / name).is_symlink()]
        if any(name not in self._known for name in there):
            self._known = self._read() | self._known  # another process may have made it since
        for name in () if replace else there:
            path = self.folder / name
            if name not in self._known:
                raise DataError(
                    f"{path} is there and was not made by vpl here; move it away, or name another folder{self._more}."
                )
        self._note(names, "")

    def finish(self, names: Iterable[str], fingerprint: str) -> None:
        """Say that these files are whole, and what they were made from."""
        self._note(names, fingerprint)

    def _note(self, names: Iterable[str], fingerprint: str) -> None:
        names = list(names)
        lines = [json.dumps([name, fingerprint]) + "\n" for name in names]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + "".join(lines))  # a line that a kill cut ends here
                file.flush()
                os.fsync(file.fileno())  # before the files: what a power cut leaves is known as ours
        except OSError as error:
            raise RunError(f"{self._path} can't be written ({error.strerror}); make room, then start again.") from error
        self._known |= dict.fromkeys(names, fingerprint)
