"""The command line: parser (flags), commands (what each does), and here the program's edge: streams, signals, status.

The only room that parses arguments, prints, catches errors and exits. Exit status: 0 all done, 1 done but some images
were skipped, 2 a `VplError` or a file that can't be read or written, 70 a mistake of vpl's own, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

BEGAN = time.perf_counter()
"""When the program began, about: what its clock counts from."""
GARBAGE = (100_000, 50, 50)
"""Thresholds of Python's collector, which else looks through what imports make again and again: 0.2 s of a start."""
OK, SOME_SKIPPED, REFUSED, INTERNAL, INTERRUPTED = 0, 1, 2, 70, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. As a program (no arguments given) it may first start itself anew."""
    began = time.perf_counter()
    if arguments is None:
        _in_utf8()
        began = BEGAN
        gc.set_threshold(*GARBAGE)
        with contextlib.suppress(ValueError):  # not in the main thread: then signals are somebody else's
            signal.signal(signal.SIGINT, _interrupted_early)
    with _streams() as out:
        status = _status(arguments, began)
        if arguments is None:
            gc.freeze()  # the process ends: what is still there is not looked through once more, which takes 0.4 s
        with contextlib.suppress(OSError):
            out.flush()
        if out.lost is not None and not isinstance(out.lost, BrokenPipeError) and status in (OK, SOME_SKIPPED):
            print(
                f"vpl: what should have been printed can't be written ({out.lost}); the work is done.", file=sys.stderr
            )
            return REFUSED
        return status


def _status(arguments: Sequence[str] | None, began: float) -> int:
    try:
        from vpl.cli import commands
        from vpl.errors import VplError
    except KeyboardInterrupt:
        return _interrupted()
    except MemoryError:
        return _too_little_memory()
    try:
        if signal.getsignal(signal.SIGINT) is _interrupted_early:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return commands.run(arguments, began)
    except VplError as error:
        print(f"vpl: {error}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        place = error.filename2 or error.filename or "while writing"
        print(f"vpl: {error.strerror or error}: {place}; mend it, then run the same command again: finished work is "
              "kept.", file=sys.stderr)  # fmt: skip
        return REFUSED
    except MemoryError:
        return _too_little_memory()
    except KeyboardInterrupt:
        return _interrupted()
    except BaseException as error:
        panic = type(error).__module__ == "pyo3_runtime"  # of a library in Rust, which is no Exception
        if panic and "pointer is null" in str(error):  # Python had no memory for it
            return _too_little_memory()
        if not (panic or isinstance(error, Exception)):
            raise
        if _while_interrupted(error):
            return _interrupted()
        if "torch" in sys.modules and isinstance(error, Exception):  # which tells of memory in errors of its own
            from vpl.machine import out_of_memory

            if out_of_memory(error):
                return _too_little_memory()
        import traceback

        traceback.print_exc()
        print(f"vpl: a mistake of vpl's own ({type(error).__name__}), not yours; please report the lines above. "
              "Finished work is kept.", file=sys.stderr)  # fmt: skip
        return INTERNAL


def _too_little_memory() -> int:
    print("vpl: the machine's memory is too small for this; give fewer --image-workers, a smaller --batch-size or "
          "--max-side, then run the same command again: finished work is kept.", file=sys.stderr)  # fmt: skip
    return REFUSED


def _interrupted() -> int:
    print("vpl: interrupted; the same command goes on from here.", file=sys.stderr)
    return INTERRUPTED


def _while_interrupted(error: BaseException | None) -> bool:
    """Whether a KeyboardInterrupt was turned into this error, as some libraries do while they are imported."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _interrupted_early(number: int, frame: Any) -> NoReturn:
    """Before a command has begun nothing is to be tidied up."""
    with contextlib.suppress(OSError):
        os.write(2, b"vpl: interrupted before anything was begun.\n")
    os._exit(INTERRUPTED)


def _in_utf8() -> None:
    """Start anew in UTF-8 where the locale's encoding is another: names of files in lists are UTF-8."""
    if sys.platform != "win32" and sys.getfilesystemencoding() != "utf-8" and sys.flags.utf8_mode == 0:
        environment = os.environ | {"PYTHONUTF8": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "vpl", *sys.argv[1:]], environment)


class Stream:
    """A stream of text that goes on when nobody can be told any more; `lost` is why.

    A file name may hold bytes that are no text: they are written as escapes. What can't be written is dropped, because
    the work behind it is worth more than its words.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        """Writes, or drops."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes, or drops."""
        self._try(self._stream.flush)

    def _try(self, act: Any) -> None:
        if self.lost is None:
            try:
                act()
            except (OSError, ValueError) as error:
                self.lost = error
                with contextlib.suppress(OSError, ValueError, AttributeError):  # so that its buffer can be emptied
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _streams() -> Iterator[Stream]:
    """Output and errors as `Stream`s; one that is closed becomes the null device, so that no file gets its number."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    null = [None if stream else Path(os.devnull).open("w") for stream in before]  # noqa: SIM115 (to the end)
    out, err = (Stream(stream or other) for stream, other in zip(before, null, strict=True))
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        err.flush()
        sys.stdout, sys.stderr = before
