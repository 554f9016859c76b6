"""Files behind a URL, such as s3://bucket/photos/a.jpg: read whole, written whole, through fsspec.

A place is a local path or a URL. Which URLs there are is fsspec's matter (s3:// needs the package s3fs, gs:// gcsfs);
so are keys and passwords: they come from the environment, fsspec's configuration files or the machine's own role,
never from the URL, which run folders record.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from urllib.parse import urlsplit

from vpl.errors import ConfigError, DataError, RunError

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "tos", "memory"})
"""Stores that show a new object whole or not at all. Elsewhere a temporary name is written, then moved."""


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL and not a local path."""
    return isinstance(place, str) and "://" in place


def place_of(given: str | Path) -> str | Path:
    """A URL as it is, anything else as a path."""
    return given if is_url(given) else Path(given)


def below(folder: str | Path, name: str) -> str | Path:
    """The place of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else Path(folder) / name


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
    except OSError as error:
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


def _located(url: str):
    """The file system and the path in it. URLs are never chained ("::"), whatever a file name holds."""
    import fsspec

    kind = fsspec.get_filesystem_class(_protocol(url))
    return kind(**kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)


def _unusable(url: str, error: Exception) -> RunError:
    return RunError(f"the store of {url} can't be used ({_reason(error)}); mend that, then run the same command again.")


def _reason(error: Exception) -> str:
    words = (getattr(error, "strerror", None) or str(error).strip() or type(error).__name__).splitlines()[0]
    return words.rstrip(".")
