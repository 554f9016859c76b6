"""RGB images and palette PNG masks <-> files, arrays and tensors; sizes that are multiples of the patch.

METHOD.md 1: each side of an image becomes the next multiple of the patch p, by bicubic resizing,

    (h, w) = (⌈s·H / p⌉, ⌈s·W / p⌉),    pixels = (resize(image, (h·p, w·p)) / 255 − mean) / std.

Letters: H W pixels, h w patch grid, p patch side, s scale. Images are (H, W, 3) RGB uint8 in [0, 255], masks (H, W)
uint8 label values. Pillow decodes; this module decides what is decoded, how much of it, and what a damaged file says.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import os
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vpl.edges import storage
from vpl.errors import DataError, VplError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("vpl")

MOST_PIXELS = 2**28 // 3
"""Larger images are refused by their header, before anything is decoded: a quarter GiB of RGB, Pillow's own bound."""
MOST_FILE_BYTES = 2**30
"""Larger image files are refused unread."""
MOST_EXIF_BYTES = 2**20
"""A longer EXIF block after a PNG's pixels is not looked into."""

Picture = str | Path | Image.Image | np.ndarray
"""A file, a PIL image, or an array (H, W, 3) RGB or (H, W) grey, uint8."""

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 258, 262, 339
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NO_FILE = "in memory"
_BAND_PIXELS = 2**20
_DEPTHS = (8, 10, 12, 14, 16, 24, 31, 32)
_EXTRA_SAMPLES = 338
_ALPHA_LOOK, _ALPHA_SHARE, _ALPHA_CONTENT, _ALPHA_PARTIAL = 512, 0.005, 12.0, 0.5
_NEARLY_BLACK, _FEW_BITS = 20, 64
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
"""Pillow's name of a way to read 16 bits -> the way that takes the other byte of each."""
_BELOW_ZERO = 0.005
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_GREY_STEPS = {"L;2": 85, "L;4": 17}


def read_image(source: Picture, max_side: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Read an image as (H, W, 3) RGB uint8 in [0, 255], turned as its EXIF orientation says.

    Grey and palette images become RGB, transparent ones are laid over white, CMYK is converted, of an animation the
    first frame is taken. An alpha channel over a photograph (infrared or a mask in the fourth channel) is not
    transparency: the colours are read as they are, with a warning. Integers of more than 8 bits are scaled by the
    fewest bits, of 8, 10, 12, 14, 16, 24 and 32, that hold the brightest value; floats are read as 0 to 1, or 0 to 255
    or 65535 when a value is above 1 or 255.

    Memory is bounded by `MOST_PIXELS`: about 1 GB for the largest image, half of it with a `max_side`. A JPEG with a
    `max_side` is decoded at a lower resolution and takes far less.

    Args:
        source: JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, AVIF, JPEG 2000 or HEIC (extra `heic`), as a local path or a
            URL (storage.py); a PIL image, read from its file again where that is open still; or an array (H, W, 3) RGB
            or (H, W) grey, uint8.
        max_side: an image with a longer side, in pixels, is scaled down to `size_within` (Lanczos).

    Raises:
        DataError: the file is missing, damaged, truncated, no image, or has more than `MOST_PIXELS` pixels; or the
            source is of another kind.
    """
    return read_with_size(source, max_side)[0]


def read_with_size(source: Picture, max_side: int | None = None) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """`read_image`, and (H, W) in pixels that it has without `max_side`.

    Raises:
        DataError: as `read_image`.
    """
    if isinstance(source, np.ndarray):
        return _decoded(_NO_FILE, Image.fromarray(_checked_array(source)), max_side)
    if isinstance(source, Image.Image):
        with _opened_again(source) as image:
            return _decoded(_NO_FILE, image, max_side)
    if not isinstance(source, (str, Path)):
        raise DataError(f"the image is a {type(source).__name__}; expected a path, a PIL image or a uint8 array.")
    path = storage.place_of(source)
    with _opened(path) as image:
        return _decoded(path, image, max_side)


def read_bytes(data: bytes, max_side: int | None = None) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """`read_with_size` of what a file holds.

    Raises:
        DataError: as `read_image`.
    """
    with _told("that was sent"), io.BytesIO(data) as file:
        known = ("HEIF",) if _is_heic("what was sent", file) else _known_formats()
        with Image.open(file, formats=known) as image:
            return _decoded("that was sent", _within_bounds("that was sent", image), max_side)


def _decoded(
    name: Path | str, image: Image.Image, max_side: int | None
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    turn = orientation(image)
    size = _oriented_size(image, turn)
    goal = size_within(*size, max_side)
    own = goal[::-1] if turn < 5 else goal
    if own != image.size:
        image.draft("RGB", (2 * own[0], 2 * own[1]))
    pixels = _as_rgb(name, image)
    if pixels.size != own:
        pixels = pixels.resize(own, Image.Resampling.LANCZOS)
    if turn != 1:
        pixels = pixels.transpose(_TURNS[turn])
    return np.array(pixels), size


def _checked_array(array: np.ndarray) -> UInt8[np.ndarray, ...]:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise DataError(
            f"the image is an array of {array.dtype} and shape {array.shape}; expected uint8 of shape (H, W, 3), "
            "RGB, or (H, W), grey."
        )
    if 0 in array.shape:
        raise DataError(f"the image has size {array.shape}; expected at least 1 x 1.")
    return np.ascontiguousarray(array)


@contextlib.contextmanager
def _opened_again(picture: Image.Image) -> Iterator[Image.Image]:
    """A PIL image that is not decoded yet, read from its bytes as a file is; else itself. It stays as it is."""
    file = getattr(picture, "fp", None)
    with _told(_NO_FILE):
        if file is None or not getattr(picture, "tile", None) or picture.format not in _known_formats():
            if 0 in picture.size:
                raise DataError(f"the image has size {picture.size}; expected at least 1 x 1.")
            yield picture
            return
        place = file.tell()
        file.seek(0)
        data = file.read(MOST_FILE_BYTES)
        file.seek(place)
        with Image.open(io.BytesIO(data), formats=_known_formats()) as image:
            yield _within_bounds(_NO_FILE, image)


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) in pixels that `read_image` would return without `max_side`, from the header alone.

    Raises:
        DataError: as `read_image`, as far as the header shows it.
    """
    with _opened(storage.place_of(path)) as image:
        return _oriented_size(image, orientation(image))


def size_within(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """(H, W) of an image once its longer side is at most `max_side`, sides rounded, at least 1 pixel."""
    if max_side is None or max(height, width) <= max_side:
        return height, width
    shrink = max_side / max(height, width)
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def patch_size_of(height: int, width: int, patch: int, scale: float = 1.0) -> tuple[int, int]:
    """(h, w), the patch grid of an image: each side times `scale`, rounded up to the next multiple of `patch`. [ref]"""
    rounding = 1e-9
    h, w = (max(1, math.ceil(side * scale / patch - rounding)) for side in (height, width))
    return h, w


def encoder_scale(height: int, width: int, patch: int, scale: float, most_patches: int) -> float:
    """`scale`, lowered where the image would have more than about `most_patches` patches."""
    return min(scale, patch * math.sqrt(most_patches / (height * width)))


def to_pixels(
    image: UInt8[np.ndarray, "H W 3"],
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    scale: float = 1.0,
) -> torch.Tensor:
    """The encoder's input: (3, h·patch, w·patch) float32, resized as CLIP-ES does (Pillow's bicubic) and normalised.

    Args:
        image: (H, W, 3) RGB uint8 in [0, 255].
        patch: side of a patch, pixels.
        mean, std: of each channel, for values in [0, 1].
        scale: size at the encoder over the image's size.
    """
    return on_grid(image, patch_size_of(image.shape[0], image.shape[1], patch, scale), patch, mean, std)


def on_grid(
    image: UInt8[np.ndarray, "H W 3"],
    grid: tuple[int, int],
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """`to_pixels` for a patch grid (h, w) that is known."""
    import torch

    h, w = grid
    size = (w * patch, h * patch)
    if size != (image.shape[1], image.shape[0]):
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    unit = image.astype(np.float32) / np.float32(255)
    normal = (unit - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))


def read_mask(path: str | Path) -> UInt8[np.ndarray, "H W"]:
    """Read a palette or grey PNG as (H, W) uint8 label values: palette indices and grey values as they are written.

    Raises:
        DataError: the file is missing or damaged, or its pixels are colours and not label values.
    """
    path = Path(path)
    with _opened(path, formats=("PNG",)) as image:
        if image.mode not in ("P", "L", "1"):
            raise DataError(
                f"the mask {path} has pixels of kind {image.mode}; expected a palette or 8-bit grey PNG whose values "
                "are label numbers. Where they are colours, say whose: --mask-values colors, or a label map's file."
            )
        tiles = getattr(image, "tile", [])
        step = _GREY_STEPS.get(tiles[0][3], 1) if tiles else 1
        return np.array(image).astype(np.uint8) // np.uint8(step)


def is_colored(path: str | Path) -> bool:
    """Whether a PNG's pixels are colours, and no numbers.

    Raises:
        DataError: the file is missing or damaged.
    """
    with _opened(Path(path), formats=("PNG",)) as image:
        return image.mode not in ("P", "L", "1")


def read_colors(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """A PNG whose colours are classes, as RGB; a palette's numbers are its colours here.

    Raises:
        DataError: the file is missing or damaged, has more than 8 bits a channel, or is not opaque everywhere.
    """
    path = Path(path)
    with _opened(path, formats=("PNG",)) as image:
        if image.mode not in ("P", "L", "1", "RGB", "RGBA"):
            raise DataError(f"the mask {path} has pixels of kind {image.mode}; expected colours of 8 bits.")
        pixels = np.array(image.convert("RGBA"))
        if (pixels[..., 3] < 255).any():
            raise DataError(f"the mask {path} is transparent in places, so its colours are not clear; save it opaque.")
        return pixels[..., :3]


def write_mask(path: str | Path, mask: UInt8[np.ndarray, "H W"], palette: Sequence[tuple[int, int, int]]) -> None:
    """Write label values as an 8-bit palette PNG: atomically, and the same values always as the same bytes.

    Args:
        mask: (H, W) uint8 label values.
        palette: at most 256 colours (R, G, B), 0 to 255, by label value; the rest are black.

    Raises:
        DataError: the mask or the palette is of another kind.
        RunError: the file can't be written.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2 or 0 in mask.shape:
        raise DataError(f"the mask for {path} is {mask.dtype} of shape {mask.shape}; expected uint8 of shape (H, W).")
    colors = [channel for color in palette for channel in color]
    if len(colors) > 768 or not all(0 <= channel <= 255 for channel in colors):
        raise DataError(f"the palette for {path} is wrong; expected at most 256 colours of values 0 to 255.")
    image = Image.fromarray(mask)
    image.putpalette(bytes(colors).ljust(768, b"\0"))
    packed = io.BytesIO()
    image.save(packed, "PNG")
    storage.write_bytes_atomic(path, packed.getvalue())


def write_image(path: str | Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write an (H, W, 3) RGB uint8 image as a PNG, atomically.

    Raises:
        RunError: the file can't be written.
    """
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "PNG")
    storage.write_bytes_atomic(path, packed.getvalue())


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _opened(path: Path | str, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """The image with its header read and its size checked; any failure inside becomes one DataError."""
    with (
        _told(path, "PNG" if formats else "a JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, AVIF or JPEG 2000"),
        _regular(path) as file,
    ):
        known = ("HEIF",) if _is_heic(path, file) and not formats else formats or _known_formats()
        with Image.open(cast(IO[bytes], file), formats=known) as image:
            yield _within_bounds(path, image)


def _within_bounds(name: Path | str, image: Image.Image) -> Image.Image:
    if image.width * image.height > MOST_PIXELS:
        raise _too_many_pixels(name)
    if image.width < 1 or image.height < 1:
        raise DataError(f"the image {name} has no pixels; expected at least 1 x 1.")
    return image


def _is_heic(path: Path | str, file: io.BufferedIOBase) -> bool:
    """Whether it is a phone's HEIC, which Pillow itself would call damaged and reads with the extra `heic`."""
    head = file.read(12)
    file.seek(0)
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIC:
        return False
    try:
        import pillow_heif
    except ImportError as error:
        raise DataError(
            f"{path} is a HEIC photograph, which can't be read without pillow-heif; convert it to JPEG, or "
            'pip install "vpl-seg[heic]".'
        ) from error
    pillow_heif.register_heif_opener()
    return True


@contextlib.contextmanager
def _told(path: Path | str, wanted: str = "an image") -> Iterator[None]:
    """Any failure inside as one DataError; one of the machine as a RunError."""
    try:
        yield
    except VplError:
        raise
    except MemoryError as error:
        storage.check_machine(path, error)
    except FileNotFoundError as error:
        storage.check_machine(path, error)
        raise DataError(f"there is no file {path}; check the path.") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(_unknown(path, wanted)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(path) from error
    except OSError as error:
        storage.check_machine(path, error)
        reason = error.strerror or str(error).strip() or "unreadable"
        raise DataError(f"the image {path} can't be read ({reason}); replace the file.") from error
    except Exception as error:
        # Pillow answers damaged bytes with a dozen kinds: struct.error, SyntaxError, ValueError, KeyError, zlib.error
        raise DataError(f"the image {path} is damaged ({error or type(error).__name__}); replace the file.") from error


def _unknown(path: Path | str, wanted: str) -> str:
    """Why a file is not read as an image."""
    start = b""
    if isinstance(path, Path):
        with contextlib.suppress(OSError), path.open("rb") as file:
            start = file.read(4)
        if not start:
            return f"{path} is empty; expected {wanted} file."
    if start in _TIFF_STARTS and wanted != "PNG":
        return (
            f"{path} is damaged, or a TIFF of pixels that can't be read (floats in colour, 64 bits, five channels?); "
            "save it as 8-bit RGB."
        )
    return f"{path} is damaged or no image; expected {wanted} file."


def _regular(path: Path | str) -> io.BufferedIOBase:
    """The file, opened so that a pipe in its place can't hang; what is checked is what is read. A URL is read whole."""
    if storage.is_url(path):
        return io.BytesIO(storage.read(path, MOST_FILE_BYTES))
    number = storage.open_regular(path)
    found = os.fstat(number)
    if stat.S_ISREG(found.st_mode) and found.st_size <= MOST_FILE_BYTES:
        return os.fdopen(number, "rb")
    os.close(number)
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is no regular file; expected an image file.")
    raise DataError(f"{path} has {found.st_size} bytes; expected at most {MOST_FILE_BYTES}. Save it smaller.")


def _too_many_pixels(path: Path | str) -> DataError:
    return DataError(f"the image {path} has more than {MOST_PIXELS} pixels; scale it down before use.")


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an open image, 1 to 8, wherever in the file it stands; nothing is decoded.

    Pillow itself turns TIFF files as it decodes them.
    """
    if image.format == "TIFF":
        return 1
    try:
        found = Image.Image.getexif(image).get(_ORIENTATION)
        file = getattr(image, "fp", None)
        if found is None and image.format == "PNG" and file is not None:
            late = Image.Exif()
            late.load(_late_exif(file))
            found = late.get(_ORIENTATION)
    except Exception:  # damaged metadata around good pixels: shown as stored
        return 1
    return found if found in _TURNS else 1


def _late_exif(file: io.BufferedIOBase) -> bytes:
    """The eXIf chunk of a PNG that stands after its pixels; empty where there is none. The file stays where it is."""
    place = file.tell()
    try:
        file.seek(len(_PNG_START))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf" and length <= MOST_EXIF_BYTES:
                return b"Exif\0\0" + file.read(length)
            file.seek(length + 4, os.SEEK_CUR)
        return b""
    finally:
        file.seek(place)


def _oriented_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    return image.size if orientation >= 5 else image.size[::-1]


def _as_rgb(path: Path | str, image: Image.Image) -> Image.Image:
    """Decode, and convert any pixel kind to RGB; warns where it is nearly black."""
    file, tiles = getattr(image, "fp", None), list(getattr(image, "tile", ()))
    found = _converted(path, image)
    top = max(high for _, high in cast(list[tuple[int, int]], found.getextrema()))
    deep = _deep(image, file, tiles) if top < _FEW_BITS else None
    if deep is not None:
        highest = int(deep.max())
        depth = next(depth for depth in _DEPTHS if highest < 2**depth)
        found = Image.fromarray(np.rint(deep * (255 / (2**depth - 1))).astype(np.uint8))
        top = round(highest * 255 / (2**depth - 1))
    if top < _NEARLY_BLACK:
        log.warning(
            "%s: the brightest of its values is %d of 255, so it is seen as black; if it holds fewer bits than its "
            "format, save it with 8.",
            path,
            top,
        )
    return found


def _deep(image: Image.Image, file: Any, tiles: Sequence[Any]) -> np.ndarray | None:
    """The whole values of colours of 16 bits, of which Pillow keeps the high byte: decoded again for the low one."""
    kinds = {_raw_of(tile) for tile in tiles}
    kind = kinds.pop() if len(kinds) == 1 else ""
    if (
        file is None
        or getattr(file, "closed", False)
        or kind not in _LOW_BYTES
        or image.mode not in ("RGB", "RGBA", "RGBX")
    ):
        return None
    file.seek(0)
    with Image.open(file, formats=(image.format or "",)) as again:
        other = _LOW_BYTES[kind]
        again.tile = [
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
            for tile in again.tile
        ]
        low = np.asarray(again)[..., :3]
    return np.asarray(image)[..., :3].astype(np.uint16) << 8 | low


def _raw_of(tile: Any) -> str:
    return tile[3] if isinstance(tile[3], str) else tile[3][0]


def _converted(path: Path | str, image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(path, image)).convert("RGB")
    if image.has_transparency_data and not _alpha_is_data(path, image):
        clear = image.convert("RGBA")
        white = Image.new("RGB", clear.size, (255, 255, 255))
        white.paste(clear, mask=clear)
        return white
    return image.convert("RGB")


def _alpha_is_data(path: Path | str, image: Image.Image) -> bool:
    """Whether the last channel is no transparency: a photograph, of colours or grey, goes on under what it would hide.

    A cut-out has one colour, or nothing, there; infrared and masks lie over a whole photograph, infrared mostly between
    clear and opaque. TIFF says so itself.
    """
    if image.mode not in ("RGBA", "LA"):
        return False
    if image.format == "TIFF" and not getattr(image, "tag_v2", {}).get(_EXTRA_SAMPLES):
        return True
    small = np.asarray(image.reduce(max(1, max(image.size) // _ALPHA_LOOK)) if max(image.size) > _ALPHA_LOOK else image)
    alpha = small[..., -1]
    partial = (alpha > 0) & (alpha < 255)
    hidden = partial if partial.mean() > _ALPHA_PARTIAL else alpha < 128
    dim = 0 < alpha.max() < _NEARLY_BLACK and small.max() < _NEARLY_BLACK  # fewer bits than the format's, in each
    if not dim and (hidden.mean() < _ALPHA_SHARE or small[..., :-1][hidden].std(axis=0).max() < _ALPHA_CONTENT):
        return False
    log.warning(
        "%s: a photograph goes on under its alpha channel, so that is no transparency (infrared, a mask?); its colours "
        "are read without it.",
        path,
    )
    return True


def _eight_bits(path: Path | str, image: Image.Image) -> UInt8[np.ndarray, "H W"]:
    """Grey values of 12, 16 or 32 bits, or floats, scaled to 0 to 255."""
    values = np.asarray(image)
    step = max(1, _BAND_PIXELS // image.width)
    bands = [slice(start, start + step) for start in range(0, image.height, step)]
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        highest = max(float(np.max(values[band], initial=0, where=np.isfinite(values[band]))) for band in bands)
        top = next((top for top in (1, 255, 65535) if highest <= top), None)
        if top is None:
            raise DataError(f"the image {path} has float values above 65535; expected values from 0 to 1.")
    else:
        bits, signed = (tags.get(_BITS) or (16,))[0], (tags.get(_SAMPLE_FORMAT) or (1,))[0] == 2
        values = values.view(np.uint32) if bits == 32 and not signed else values
        highest = max(int(np.max(values[band], initial=0)) for band in bands)
        top = next((2**depth - 1 for depth in _DEPTHS if highest < 2**depth), 2**32 - 1)
    if sum(int((values[band] < 0).sum()) for band in bands) > _BELOW_ZERO * values.size:
        log.warning("%s: values below 0 are read as 0; save it with values from 0 on.", path)
    grey = np.empty(values.shape, np.uint8)
    for band in bands:
        finite = np.where(np.isfinite(values[band]), values[band], 0)
        grey[band] = np.rint(np.clip(finite, 0, top) * (255 / top))
    return 255 - grey if image.mode != "F" and tags.get(_PHOTOMETRIC) == 0 else grey
