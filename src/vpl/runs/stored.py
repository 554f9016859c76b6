"""config.toml of a run folder: what vpl wrote, what was edited by hand since, and what a torn file is taken for.

Its last line is a seal, the SHA-256 of all lines before; state/config.toml is a copy of what was written last. A file
whose seal fits is whole. Where it does not, and the file is the copy's beginning or holds zeros, it was torn: the
copy's values hold, and a warning says so. Where values differ from the copy's, somebody edited them, which is allowed
and told. A file that lacks values may be torn in the middle: half a configuration is another one, so it is refused.
"""

from __future__ import annotations

import hashlib
import logging
import tomllib
from dataclasses import dataclass
from pathlib import Path

from vpl.config import MOST_TOML_BYTES, Config, values_of
from vpl.edges import storage
from vpl.errors import ConfigError

FILE, COPY = "config.toml", "state/config.toml"
SEAL = "# written by vpl; values may be edited, which it tells when it goes on: "
"""Begins the last line, before the hexadecimal digest."""
_TORN = b"\0 \t\r\n"

log = logging.getLogger("vpl")


@dataclass(frozen=True)
class Stored:
    """A run's configuration as it stands.

    Attributes:
        config: the values.
        edits: what differs from what vpl wrote, in words: "prototypes.phi 0.5, now 0.4".
        torn: whether the file was torn and the values are the copy's.
    """

    config: Config
    edits: tuple[str, ...] = ()
    torn: bool = False


def sealed(text: str) -> str:
    """A configuration's text with its seal."""
    whole = f"{text.rstrip()}\n"
    return f"{whole}{SEAL}{hashlib.sha256(whole.encode()).hexdigest()}\n"


def write(folder: Path, text: str) -> None:
    """Store a configuration, where it is another than what is there; its copy first.

    Raises:
        RunError: it can't be written.
    """
    whole = sealed(text)
    for place in (folder / COPY, folder / FILE):
        if _bytes(place) != whole.encode():
            storage.write_text_atomic(place, whole)


def read(folder: Path) -> Config:
    """The values of a run folder's config.toml; a torn one is told in a warning.

    Raises:
        ConfigError: there is none, it is no configuration, or it lacks values that vpl wrote.
    """
    found = look(folder)
    if found.torn:
        log.warning("%s was torn; its values are taken from %s, where vpl keeps a copy.", folder / FILE, folder / COPY)
    return found.config


def look(folder: Path) -> Stored:
    """`read`, with what was edited.

    Raises:
        ConfigError: as `read`.
    """
    path = folder / FILE
    data, copy = _bytes(path), _bytes(folder / COPY) or b""
    if data is None and path.exists() and not path.is_dir():
        raise ConfigError(f"the configuration {path} is no regular file that can be read; put the file back.")
    if data is None or data == copy or _is_whole(data) or not _is_whole(copy):
        return Stored(Config.from_toml(path))
    if b"\0" in data or copy.startswith(data.rstrip(_TORN)):
        return Stored(Config.from_text(copy, folder / COPY), torn=True)
    try:
        found = Config.from_text(data, path)
    except ConfigError as error:
        raise ConfigError(f"{error} What vpl wrote last is in {folder / COPY}.") from error
    wrote = Config.from_text(copy, folder / COPY)
    lacking = list(_keys(copy) - _keys(data))
    if lacking:
        raise ConfigError(
            f"the configuration {path} lacks {len(lacking)} of the values that vpl wrote, as a torn file does (the "
            f"first: {min(lacking)}); write them, or copy {folder / COPY} over it."
        )
    differences = wrote.differences(found).items()
    return Stored(found, tuple(f"{key} {_shown(before)}, now {_shown(now)}" for key, (before, now) in differences))


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)


def _bytes(path: Path) -> bytes | None:
    """What a regular file holds, at most one byte more than a configuration may; None where there is none."""
    try:
        with storage.open_bytes(path) as file:
            return file.read(MOST_TOML_BYTES + 1)
    except OSError:
        return None


def _is_whole(data: bytes) -> bool:
    """Whether the seal at the end fits what stands before it."""
    before, mark, seal = data.rpartition(SEAL.encode())
    return bool(mark) and seal.strip() == hashlib.sha256(before).hexdigest().encode()


def _keys(data: bytes) -> set[str]:
    return set(values_of(tomllib.loads(data.decode("utf-8").replace("\r\n", "\n"))))
