"""What a photograph is: a digest of its bytes, remembered with the size and times under which they were read.

A file of the same size, modification time and change time is not read again. So a changed photograph stays unseen only
where its file system can't tell: written at the same size within one tick of its clock (10 ms at most, 2 s on FAT).
Behind a URL the address stands for the content, for a look at each would cost as much as the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vpl.edges import storage
from vpl.progress import Progress, silent
from vpl.runs.lines import Lines
from vpl.runs.plan import digest

UNREAD = "unread"
"""In the place of the digest of a file that can't be read: its photograph fails, and no product of it is recorded."""
_AT_ONCE = 2**20


class Contents:
    """The digests of files, and the cache of them.

    Args:
        cache: where digests are remembered.
        workers: threads that read.
    """

    def __init__(self, cache: Path, workers: int = 1):
        self._lines, self._workers = Lines(cache, 3), workers
        self._known = {path: (signature, found) for signature, found, path in self._lines.rows}

    def of(self, files: Sequence[Path | str], progress: Progress = silent, words: str = "look") -> list[str]:
        """The digest of each file's bytes, in their order; those that have changed are read by threads."""
        found = [self._remembered(file) for file in files]
        new = [place for place, one in enumerate(found) if one is None]
        if new:
            with ThreadPoolExecutor(self._workers) as pool:
                made = pool.map(self._read, (files[place] for place in new))
                for place, one in zip(new, progress(made, len(new), words), strict=True):
                    found[place] = one
        return [UNREAD if one is None else one for one in found]

    def unchanged(self, file: Path | str) -> bool:
        """Whether a file still is what its digest was made of."""
        return self._remembered(file) not in (None, UNREAD)

    def close(self, files: Iterable[Path | str]) -> None:
        """Forget all files but these, and let the cache go."""
        kept = [(path, self._known[path]) for path in map(str, files) if path in self._known]
        self._lines.rewrite((signature, one, path) for path, (signature, one) in dict(kept).items())

    def _remembered(self, file: Path | str) -> str | None:
        if storage.is_url(file):
            return digest("url", file)
        mark, known = signature(file), self._known.get(str(file))
        if mark is None:
            return UNREAD
        return known[1] if known and known[0] == mark else None

    def _read(self, file: Path | str) -> str:
        mark, hashed = signature(file), hashlib.blake2b(digest_size=8)
        try:
            with storage.open_bytes(file) as opened:
                while part := opened.read(_AT_ONCE):
                    hashed.update(part)
        except OSError:
            return UNREAD
        if mark is None or mark != signature(file):
            return UNREAD
        self._known[str(file)] = mark, hashed.hexdigest()
        self._lines.add(mark, hashed.hexdigest(), str(file))
        return hashed.hexdigest()


def signature(file: Path | str) -> str | None:
    """Size and times of a file, which change when it is written; None where it is absent."""
    try:
        found = Path(file).stat()
    except (OSError, ValueError):
        return None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
