"""Files written whole or not at all, here and behind a URL such as s3://bucket/photos/a.jpg (through fsspec).

A file's bytes are on the disk before its name is (fsync), so that neither a kill nor a power cut leaves half of it.

A place is a local path or a URL. Which URLs there are is fsspec's matter (s3:// needs the package s3fs, gs:// gcsfs);
so are keys and passwords: they come from the environment, fsspec's configuration files or the machine's own role,
never from the URL, which run folders record.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import posixpath
import secrets
import stat
import time
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from vpl.errors import ConfigError, DataError, RunError

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "tos", "memory"})
"""Stores that show a new object whole or not at all. Elsewhere a temporary name is written, then moved."""

PARTIAL = ".vpl-partial"
"""Suffix of a file that is being written. One that is found later was left by a killed run and can be deleted."""
_WAITS = (0.05, 0.2, 1.0)
_IN_USE = (5, 32)
_MACHINE = {
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EHOSTDOWN,
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ECONNREFUSED,
}  # fmt: skip
"""Errors of reading that tell of the machine and not of the file."""


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, never a part, even after a power cut.

    The bytes go to a new file beside it (its name ends with `PARTIAL`), which takes the name once they are on the
    disk; on failure it is removed. `path` may be a URL.

    Raises:
        RunError: the folder is missing or read-only, the disk is full.
    """
    name = f".{secrets.token_hex(8)}{PARTIAL}"
    if is_url(path):
        write(str(path), data, name)
        return
    path = Path(path)
    partial = path.with_name(name)
    try:
        _take_name(partial, path, data)
    except OSError as error:
        _remove(partial)
        raise RunError(
            f"{path} can't be written ({error.strerror}); check the folder, its permissions and the free space."
        ) from error
    except BaseException:
        _remove(partial)
        raise


def _take_name(partial: Path, path: Path, data: bytes) -> None:
    """Write `partial`, put it on the disk and rename it. Elsewhere than on POSIX a file that someone reads can't be
    replaced: so wait a little. A process that swept this folder may have taken `partial`: so write it again."""
    for wait in (*_WAITS, None):
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            partial.replace(path)
            break
        except OSError as error:
            swept, read = isinstance(error, FileNotFoundError), getattr(error, "winerror", None) in _IN_USE
            if wait is None or not (swept or read):
                raise
            _remove(partial)
            time.sleep(wait)
    _settle(path.parent)


def take_name(partial: Path, path: Path) -> None:
    """Let a file or folder that was written under another name take its own, once all its bytes are on the disk.

    Raises:
        OSError: the disk is full, or the name can't be taken.
    """
    for place in sorted(partial.rglob("*"), reverse=True) if partial.is_dir() else ():
        if not place.is_symlink():
            _settle(place) if place.is_dir() else _settle_file(place)
    _settle(partial) if partial.is_dir() else _settle_file(partial)
    partial.rename(path) if partial.is_dir() else partial.replace(path)
    _settle(path.parent)


def write_text_atomic(path: str | Path, text: str) -> None:
    """`write_bytes_atomic` of UTF-8 text, line ends as given."""
    write_bytes_atomic(path, text.encode("utf-8"))


def open_regular(path: str | Path) -> int:
    """A descriptor for reading that a pipe in the file's place can't hang, as far as the system has the flags for it.

    Raises:
        OSError: it can't be opened.
    """
    flags = [getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY")]
    return os.open(path, sum(flags, os.O_RDONLY))


def open_bytes(path: str | Path) -> io.FileIO:
    """A regular file for reading. A pipe or a device in its place can neither hang nor go on without an end.

    Raises:
        OSError: it can't be opened, or is no regular file.
    """
    number = open_regular(path)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return io.FileIO(number)
    os.close(number)
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _settle(folder: Path) -> None:
    """Put a folder's new names on the disk, where folders can be opened (not on Windows) and their disk can do it."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _settle_file(path: Path) -> None:
    """Put a finished file's bytes on the disk; a full one says so here at the latest."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def check_machine(place: str | Path, error: BaseException) -> None:
    """Whether a file could not be read because of the machine: then no file is at fault, and the work stops.

    Raises:
        RunError: memory or descriptors have run out, a disk or share answers with an error, or the folder of the file
            has vanished or lets nobody in any more.
    """
    if isinstance(error, MemoryError):
        raise RunError(
            f"there is not enough memory to read {place}; give fewer --image-workers or free some, then start the same "
            "command again: finished work is kept."
        ) from error
    if not isinstance(error, OSError):
        return
    if error.errno in _MACHINE:
        raise RunError(
            f"{place} can't be read now ({error.strerror}); mend that, then start the same command again: finished "
            "work is kept."
        ) from error
    check_folder_of(place, error)


def check_folder_of(place: str | Path, error: BaseException | None = None) -> None:
    """Whether the folder of a file that can't be used is still there.

    Raises:
        RunError: it has vanished, or lets nobody in any more.
    """
    above = Path(place).parent
    if is_url(place) or (above.is_dir() and os.access(above, os.X_OK)) or above.is_file():
        return
    raise RunError(
        f"the folder {above} has vanished, or can't be entered, or was never there; bring it back or mend the path, "
        "then start the same command again: finished work is kept."
    ) from error


def is_url(place: str | Path) -> TypeGuard[str]:
    """Whether a place is a URL and not a local path."""
    return isinstance(place, str) and "://" in place


def place_of(given: str | Path) -> str | Path:
    """A URL as it is, anything else as a path."""
    return given if is_url(given) else Path(given)


def below(folder: str | Path, name: str) -> str | Path:
    """The place of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else Path(folder) / name


def ready(folder: str | Path, name: str) -> str | Path:
    """The place of a file in a folder that is there; sub-folders in the file's name ("day1/a.png") are made.

    Raises:
        RunError: they can't be made, or the folder is gone.
    """
    place, above = below(folder, name), name.rpartition("/")[0]
    if above and is_url(place):
        make_folder(str(below(folder, above)))
    elif above:
        try:
            made = Path(folder)
            for part in above.split("/"):
                made = made / part
                made.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{made} can't be made ({error.strerror}); check the folder and its permissions.") from error
    return place


def check(place: str, key: str) -> None:
    """Refuse a URL that holds a key or password. A local path is always fine.

    Raises:
        ConfigError: it has a part before an `@`, or a query.
    """
    if not is_url(place):
        return
    try:
        parts = urlsplit(place)
        wrong = "@" in parts.netloc or "?" in place
    except ValueError:
        wrong = True
    if wrong:
        raise ConfigError(
            f"{key} is a URL with a user, a password or a query, which would be stored; give them in fsspec's own ways "
            "(environment or configuration files) and the URL without them."
        )


def read(url: str, most_bytes: int) -> bytes:
    """The whole file.

    Raises:
        DataError: it is missing, can't be read or is longer than `most_bytes`.
        RunError: the store itself can't be used: its package is missing, no credentials, no connection.
    """
    try:
        store, path = _located(url)
        data = store.cat_file(path, 0, most_bytes + 1)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {url}; check the path.") from error
    except (OSError, MemoryError) as error:
        check_machine(url, error)
        raise DataError(f"{url} can't be read ({_reason(error)}); check the store and the permissions.") from error
    except Exception as error:
        raise _unusable(url, error) from error
    if len(data) > most_bytes:
        raise DataError(f"{url} has more than {most_bytes} bytes; save it smaller.")
    return data


def exists(url: str) -> bool:
    """Whether a file is there.

    Raises:
        RunError: the store can't be used.
    """
    try:
        store, path = _located(url)
        return store.exists(path)
    except Exception as error:
        raise _unusable(url, error) from error


def first_in(folder: str | Path) -> str | None:
    """The name of one file or folder in a folder; None where it is empty or absent.

    Raises:
        RunError: the store can't be used.
    """
    if not is_url(folder):
        there = Path(folder)
        return next((one.name for one in there.iterdir()), None) if there.is_dir() else None
    try:
        store, path = _located(folder)
        found = store.ls(path, detail=False) if store.exists(path) else []
    except FileNotFoundError:
        return None
    except Exception as error:
        raise _unusable(folder, error) from error
    return posixpath.basename(str(found[0]).rstrip("/")) if found else None


def write(url: str, data: bytes, partial: str) -> None:
    """Write a file so that a reader sees the old one or the whole new one, never a part.

    Args:
        partial: temporary name beside it, for stores that show what is half written.

    Raises:
        RunError: it can't be written.
    """
    try:
        store, path = _located(url)
        if _protocol(url) in OBJECT_STORES:
            store.pipe_file(path, data)
            return
        there = posixpath.join(posixpath.dirname(path), partial)
        try:
            store.pipe_file(there, data)
            store.mv(there, path)
        except BaseException:
            if store.exists(there):
                store.rm_file(there)
            raise
    except Exception as error:
        raise RunError(f"{url} can't be written ({_reason(error)}); check the store and the permissions.") from error


def make_folder(url: str) -> None:
    """Make a folder where the store has folders; object stores have none.

    Raises:
        RunError: it can't be made.
    """
    try:
        store, path = _located(url)
        if _protocol(url) not in OBJECT_STORES:
            store.makedirs(path, exist_ok=True)
    except Exception as error:
        raise _unusable(url, error) from error


def _protocol(url: str) -> str:
    return url.partition("://")[0]


def _located(url: str) -> tuple[Any, Any]:
    """The file system and the path in it. URLs are never chained ("::"), whatever a file name holds."""
    import fsspec

    kind = fsspec.get_filesystem_class(_protocol(url))
    return kind(**kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)


def _unusable(url: str, error: Exception) -> RunError:
    return RunError(f"the store of {url} can't be used ({_reason(error)}); mend that, then run the same command again.")


def _reason(error: Exception) -> str:
    words = (getattr(error, "strerror", None) or str(error).strip() or type(error).__name__).splitlines()[0]
    return words.rstrip(".")
