"""Films <-> frames, through PyAV (extra `video`). Frames are (H, W, 3) RGB uint8, upright, in the order of showing."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vpl.edges import images, storage
from vpl.errors import DataError, RunError

_QUARTER = 90
_FALLBACK_RATE = Fraction(25)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError('films need PyAV; pip install "vpl-seg[video]", or give frames as images.') from error
    return av


def rate(path: str | Path) -> Fraction:
    """Frames a second, as the file says; 25 where it does not.

    Raises:
        DataError: as `frames`.
    """
    with _opened(path) as film:
        stream = film.streams.video[0]
        return Fraction(stream.average_rate or stream.guessed_rate or _FALLBACK_RATE)


def frames(path: str | Path, every: int = 1) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """(number from 0, frame) of every `every`-th frame, one in memory at a time.

    Raises:
        DataError: PyAV is missing; the file is missing, damaged, cut off or no film, or its frames are too large.
    """
    with _opened(path) as film:
        turned = 0
        for number, frame in enumerate(_decoded(path, film)):
            turned = int(getattr(frame, "rotation", 0)) or turned
            if number % every == 0:
                if frame.width * frame.height > images.MOST_PIXELS:
                    raise DataError(f"the frames of {path} have more than {images.MOST_PIXELS} pixels; scale it down.")
                pixels = frame.to_ndarray(format="rgb24")
                yield number, np.ascontiguousarray(np.rot90(pixels, turned // _QUARTER))


def _decoded(path: str | Path, film: Any) -> Iterator[Any]:
    try:
        yield from film.decode(video=0)
    except _av().error.FFmpegError as error:
        raise DataError(f"the film {path} is damaged or cut off ({error.strerror}); replace the file.") from error


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    av = _av()
    try:
        with storage.open_bytes(path) as file, av.open(file, "r", metadata_errors="replace") as film:
            if not film.streams.video:
                raise DataError(f"{path} holds no pictures; expected a film.")
            yield film
    except av.error.FFmpegError as error:
        raise DataError(f"{path} is damaged or no film ({error.strerror}); replace the file.") from error
    except OSError as error:
        storage.check_machine(path, error)
        raise DataError(f"the film {path} can't be read ({error.strerror or error}); check the path.") from error


def write(path: Path, pictures: Iterable[UInt8[np.ndarray, "H W 3"]], rate: Fraction) -> None:
    """An MP4 (H.264, yuv420p) of these pictures, all of the first one's size; whole or not at all.

    Sides that are odd lose their last row or column, which the codec asks for.

    Raises:
        RunError: it can't be written.
    """
    av = _av()
    partial = path.with_name(f".{secrets.token_hex(8)}{storage.PARTIAL}")
    try:
        with av.open(str(partial), "w", format="mp4") as film:
            stream = None
            for picture in pictures:
                even = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
                if stream is None:
                    stream = film.add_stream("libx264", rate=rate)
                    stream.height, stream.width, stream.pix_fmt = even.shape[0], even.shape[1], "yuv420p"
                film.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
            if stream is not None:
                film.mux(stream.encode(None))
        storage.take_name(partial, path)
    except (OSError, av.error.FFmpegError) as error:
        raise RunError(
            f"{path} can't be written ({error.strerror or error}); check the folder and the free space."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
