"""A file of short lines that is added to as work is done: tab between columns, a torn or strange line counts for none.

A line is added in one write after what it tells of is on disk, so a kill loses the last line at most. `rewrite` puts
the lines in one order, so that equal content has equal bytes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from vpl.edges import storage
from vpl.errors import RunError


class Lines:
    """One such file, read whole when it is opened. Several threads may add.

    Args:
        columns: how many each line has; others are left out.

    Raises:
        RunError: the file can't be read.
    """

    def __init__(self, path: Path, columns: int):
        self._path, self._columns = path, columns
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()
        try:
            text = path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            raise RunError(f"{path} can't be read ({error.strerror}); mend that, then start again.") from error
        whole, _, self._torn = text.rpartition("\n")
        self.rows = [row for line in whole.split("\n") if len(row := line.split("\t")) == columns]

    def add(self, *columns: str) -> None:
        """Write one more line.

        Raises:
            OSError: it can't be written.
        """
        with self._lock:
            if self._file is None:
                self._path.parent.mkdir(exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
                if self._torn:
                    self._file.write(b"\t" * self._columns + b"\n")  # what a kill left has too many columns then
            self._file.write(("\t".join(columns) + "\n").encode())

    def settle(self) -> None:
        """Put what was added on the disk: what is struck out is so before the file that it tells of is replaced."""
        with self._lock:
            if self._file is not None:
                os.fsync(self._file.fileno())

    def rewrite(self, rows: Iterable[Sequence[str]]) -> None:
        """Put these lines in the place of all; the file is left alone where it holds just them."""
        self.close()
        data = "".join("\t".join(row) + "\n" for row in rows).encode()
        try:
            if self._path.read_bytes() == data:
                return
        except FileNotFoundError:
            if not data:
                return
        self._path.parent.mkdir(exist_ok=True)
        storage.write_bytes_atomic(self._path, data)

    def close(self) -> None:
        """Make what was added last through a power cut."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk has been told by `add`
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
