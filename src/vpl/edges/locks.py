"""One process at a time: a lock file that the system lets go when its process ends, on POSIX and on Windows.

The only module that knows how files are locked (the package filelock).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from vpl.errors import RunError

NAME = ".lock"
"""The lock file in a folder of ours. It stays when its process ends; only the lock goes."""


def claim(folder: Path) -> BaseFileLock:
    """The lock of a folder, held until its `release()` or the end of this process.

    Raises:
        RunError: another process holds it, the file can't be made, or the file system gives no locks.
    """
    lock = FileLock(folder / NAME, blocking=False, thread_local=False, mode=0o666)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"another process works in {folder}; wait until it ends, or name another folder.") from None
    except OSError as error:
        if error.filename is not None:
            raise RunError(f"the run folder {folder} can't be written ({error.strerror}); name another.") from error
        raise RunError(
            f"the file system of {folder} gives no locks ({error.strerror}); name a folder on another disk."
        ) from error
    return lock


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether this process holds the folder's lock inside the block; others, and disks without locks, are no error."""
    try:
        lock = claim(folder)
    except RunError:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # not while it is open, on Windows: there its release removes it
            (folder / NAME).unlink()
        lock.release()
