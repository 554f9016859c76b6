"""images.py: any photograph becomes (H, W, 3) RGB, sizes and pixels are CLIP-ES's, masks come back as they went."""

import math
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vpl.classes import voc_palette
from vpl.edges import images
from vpl.errors import DataError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GOLDEN = Path(os.environ.get("VPL_GOLDEN", Path(__file__).parent.parent / "golden"))
COCO128 = Path(os.environ.get("VPL_COCO128") or Path(__file__).parents[3] / "shared" / "data" / "coco128")
ORIENTATION = 0x0112


def photograph(height=21, width=34, seed=0):
    """Smooth RGB noise, so that lossy formats stay close."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def saved(folder, name, image, **options):
    path = folder / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


# Pixel kinds


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm"])
def test_rgb_is_read_exactly(tmp_path, name):
    image = photograph()
    assert np.array_equal(images.read_image(saved(tmp_path, name, image)), image)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.gif", "a.avif", "a.jp2"])
def test_lossy_formats_are_close(tmp_path, name):
    if name == "a.avif" and "AVIF" not in images._known_formats():
        pytest.skip("this Pillow was built without AVIF")
    options = {"quality_layers": [5]} if name == "a.jp2" else {} if name == "a.gif" else {"quality": 95}
    image = photograph()
    found = images.read_image(saved(tmp_path, name, image, **options))
    assert found.shape == image.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - image).mean() < 8


def test_grey_and_one_bit(tmp_path):
    grey = photograph()[..., 0]
    assert np.array_equal(images.read_image(saved(tmp_path, "grey.png", grey)), np.repeat(grey[..., None], 3, 2))
    bits = grey > 127
    found = images.read_image(saved(tmp_path, "bits.png", bits))
    assert np.array_equal(found, np.repeat(np.where(bits, 255, 0).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("kind", ["LA", "RGBA"])
def test_alpha_is_laid_over_white(tmp_path, kind):
    color = np.full((21, 34, 3), (200, 30, 90), np.uint8)
    alpha = np.linspace(0, 255, color.shape[1]).astype(np.uint8)[None].repeat(color.shape[0], 0)
    opaque = Image.fromarray(color).convert(kind[:-1])
    layered = opaque.copy()
    layered.putalpha(Image.fromarray(alpha))
    share = alpha[..., None] / 255
    expected = np.asarray(opaque.convert("RGB")) * share + 255 * (1 - share)
    found = images.read_image(saved(tmp_path, "a.png", layered))
    assert np.abs(found - expected).max() <= 1


def test_palette_with_and_without_transparency(tmp_path):
    indices = (np.arange(12) % 3).astype(np.uint8).reshape(3, 4)
    image = Image.fromarray(indices)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    plain = images.read_image(saved(tmp_path, "plain.png", image))
    assert np.array_equal(plain, np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[indices])
    clear = images.read_image(saved(tmp_path, "clear.png", image, transparency=1))
    assert np.array_equal(clear, np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255]], np.uint8)[indices])


def test_transparent_color_of_an_rgb_png_becomes_white(tmp_path):
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = 7, 8, 9
    found = images.read_image(saved(tmp_path, "a.png", image, transparency=(7, 8, 9)))
    assert found.tolist() == [[[255] * 3, [0] * 3], [[0] * 3, [0] * 3]]


def test_cmyk_is_converted(tmp_path):
    ink = Image.fromarray(np.zeros((8, 8, 4), np.uint8), "CMYK")
    assert images.read_image(saved(tmp_path, "white.tif", ink)).min() == 255
    ink = Image.merge("CMYK", [Image.new("L", (8, 8), value) for value in (0, 255, 255, 0)])
    red = images.read_image(saved(tmp_path, "red.jpg", ink, quality=95))
    assert np.abs(red.astype(int) - (255, 0, 0)).max() < 5


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_by_the_full_range(tmp_path, name):
    values = np.array([[0, 1, 128, 129, 257, 32768, 65534, 65535]], np.uint16)
    found = images.read_image(saved(tmp_path, name, values))
    assert found[0, :, 1].tolist() == np.rint(values[0] / 257).astype(int).tolist()


def test_signed_and_unsigned_32_bit_tiff(tmp_path):
    values = np.array([[-5, 0, 2**30, 2**31 - 1]], np.int32)
    assert images.read_image(saved(tmp_path, "signed.tif", values))[0, :, 0].tolist() == [0, 0, 128, 255]
    stored = np.array([[0, 2**31, 2**32 - 1]], np.uint32).view(np.int32)
    path = saved(tmp_path, "unsigned.tif", stored)
    signed, unsigned = (b"\x53\x01\x03\x00\x01\x00\x00\x00" + kind for kind in (b"\x02", b"\x01"))
    assert path.read_bytes().count(signed) == 1
    path.write_bytes(path.read_bytes().replace(signed, unsigned))
    assert images.read_image(path)[0, :, 0].tolist() == [0, 128, 255]


def test_float_tiff(tmp_path):
    unit = np.array([[0, 0.5, 1, -1, np.nan]], np.float32)
    assert images.read_image(saved(tmp_path, "unit.tif", unit))[0, :, 0].tolist() == [0, 128, 255, 0, 0]
    byte = np.array([[0, 100, 255]], np.float32)
    assert images.read_image(saved(tmp_path, "byte.tif", byte))[0, :, 0].tolist() == [0, 100, 255]
    with pytest.raises(DataError, match="float values above 65535; expected values from 0 to 1"):
        images.read_image(saved(tmp_path, "far.tif", byte * 1000))


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_the_first_frame_of_an_animation(tmp_path, name):
    first, second = (Image.new("RGB", (9, 7), color) for color in ((255, 0, 0), (0, 0, 255)))
    path = saved(tmp_path, name, first, save_all=True, append_images=[second])
    assert np.abs(images.read_image(path).astype(int) - (255, 0, 0)).max() < 5


# Orientation and size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_exif_orientation(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = photograph()
    options = {"lossless": True} if name == "a.webp" else {"quality": 100} if name == "a.jpg" else {}
    path = saved(tmp_path, name, image, exif=exif, **options)
    tagged = Image.fromarray(image)
    tagged.getexif()[ORIENTATION] = orientation
    expected = np.asarray(ImageOps.exif_transpose(tagged))
    found = images.read_image(path)
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 8
    assert images.image_size(path) == expected.shape[:2]
    assert images.read_image(path, 10).shape[:2] == images.size_within(*expected.shape[:2], 10)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_reason_to_refuse(tmp_path):
    path = saved(tmp_path, "a.jpg", photograph(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert images.read_image(path).shape == (21, 34, 3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (333, 97), (640, 480)])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_max_side(tmp_path, name, height, width):
    image = photograph(height, width)
    path = saved(tmp_path, name, image)
    tolerance = 10 if name == "a.jpg" else 0  # a JPEG is decoded at a lower resolution first
    for side in (1, 16, 40, 1000):
        found = images.read_image(path, side)
        assert found.shape[:2] == images.size_within(height, width, side)
        assert max(found.shape[:2]) == min(side, max(height, width))
        slow = np.asarray(Image.open(path).convert("RGB").resize(found.shape[1::-1], Image.Resampling.LANCZOS))
        assert np.abs(found.astype(int) - slow).mean() <= tolerance


def test_max_side_decodes_a_large_jpeg_at_a_lower_resolution(tmp_path, monkeypatch):
    path = saved(tmp_path, "a.jpg", photograph(1600, 2400))
    decoded = []
    inner = images._as_rgb

    def spy(path, image):
        found = inner(path, image)
        decoded.append(found.size)
        return found

    monkeypatch.setattr(images, "_as_rgb", spy)
    assert images.read_image(path, 300).shape == (200, 300, 3)
    assert decoded == [(600, 400)]


def test_size_is_read_without_decoding(tmp_path):
    path = saved(tmp_path, "a.png", photograph(200, 300))
    path.write_bytes(path.read_bytes()[:100])
    assert images.image_size(path) == (200, 300)
    with pytest.raises(DataError):
        images.read_image(path)


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([8, 14, 16, 32]), st.sampled_from([0.5, 0.75, 1.0, 1.5])
)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_the_grid_is_the_smallest_that_covers_the_image(height, width, patch, scale):
    for side, cells in zip((height, width), images.patch_size_of(height, width, patch, scale), strict=True):
        assert cells >= 1
        assert cells * patch >= side * scale - 1e-6
        assert cells == 1 or (cells - 1) * patch < side * scale


# Pixels for the encoder


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("cam_*.npz")), ids=lambda path: path.stem)
def test_golden_pixels(path):
    golden = np.load(path)
    found = images.to_pixels(golden["image"], 16, MEAN, STD).numpy()
    assert found.dtype == np.float32 and found.shape == golden["pixels"].shape
    assert np.abs(found - golden["pixels"]).max() <= 1e-6


def test_golden_pixels_are_there():
    assert list(GOLDEN.glob("cam_*.npz")), f"no cam_*.npz in {GOLDEN}"


def test_pixels_of_one_pixel_and_of_a_scale():
    one = np.full((1, 1, 3), 255, np.uint8)
    found = images.to_pixels(one, 16, MEAN, STD)
    assert found.shape == (3, 16, 16)
    assert np.allclose(found[:, 3, 5].numpy(), (1 - np.array(MEAN)) / np.array(STD))
    assert images.to_pixels(photograph(33, 64), 16, MEAN, STD, scale=1.5).shape == (3, 64, 96)


# Masks


def masks():
    shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
    return st.tuples(shapes, st.integers(0, 2**32 - 1), st.integers(1, 256)).map(
        lambda drawn: np.random.default_rng(drawn[1]).integers(0, drawn[2], drawn[0]).astype(np.uint8)
    )


@given(masks(), st.integers(0, 256))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_masks_come_back_as_they_went(tmp_path_factory, mask, colors):
    folder = tmp_path_factory.getbasetemp()
    for name in ("one.png", "two.png"):
        images.write_mask(folder / name, mask, voc_palette()[:colors])
    assert np.array_equal(images.read_mask(folder / "one.png"), mask)
    assert (folder / "one.png").read_bytes() == (folder / "two.png").read_bytes()


def test_the_mask_carries_its_palette(tmp_path):
    images.write_mask(tmp_path / "a.png", np.array([[0, 1, 255]], np.uint8), voc_palette())
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert np.asarray(image.convert("RGB")).tolist() == [[[0, 0, 0], [128, 0, 0], [224, 224, 192]]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["P", "L"])
def test_masks_of_few_bits_keep_their_values(tmp_path, kind, bits):
    values = np.arange(2**bits, dtype=np.uint8)[None]
    if kind == "P":
        image = Image.fromarray(values)
        image.putpalette([7, 7, 7] * 2**bits)
        path = saved(tmp_path, "a.png", image, bits=bits)
    else:
        path = tmp_path / "a.png"
        path.write_bytes(_grey_png(values, bits))
    assert np.array_equal(images.read_mask(path), values)


def _grey_png(values, bits):
    """A one-row grey PNG of the given depth, written by hand: Pillow writes 1 and 8 bits only."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = np.packbits(np.unpackbits(values.reshape(-1, 1), axis=1)[:, -bits:].reshape(-1)).tobytes()
    header = struct.pack(">IIBBBBB", values.shape[1], 1, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "I;16"])
def test_masks_of_colors_are_refused(tmp_path, kind):
    image = Image.fromarray(np.zeros((2, 2), np.uint16)) if kind == "I;16" else Image.new(kind, (2, 2))
    path = saved(tmp_path, "a.png", image)
    with pytest.raises(DataError, match=f"has pixels of kind {kind}; expected a palette or 8-bit grey PNG"):
        images.read_mask(path)


def test_masks_that_are_no_png_are_refused(tmp_path):
    path = saved(tmp_path, "a.png", photograph()[..., 0], format="JPEG")
    with pytest.raises(DataError, match="damaged or no image; expected PNG file"):
        images.read_mask(path)


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)]
)
@pytest.mark.filterwarnings("ignore")
def test_wrong_masks_are_not_written(tmp_path, mask):
    write = getattr(images.write_mask, "__wrapped__", images.write_mask)
    with pytest.raises(DataError, match=r"expected uint8 of shape \(H, W\)"):
        write(tmp_path / "a.png", mask, [])
    assert list(tmp_path.iterdir()) == []


def test_wrong_palettes_are_not_written(tmp_path):
    for palette in ([(0, 0, 0)] * 257, [(0, 0, 256)]):
        with pytest.raises(DataError, match="expected at most 256 colours of values 0 to 255"):
            images.write_mask(tmp_path / "a.png", np.zeros((2, 2), np.uint8), palette)


def test_images_are_written(tmp_path):
    images.write_image(tmp_path / "a.png", photograph())
    assert np.array_equal(images.read_image(tmp_path / "a.png"), photograph())


# One reader for files, PIL images and arrays


@pytest.mark.parametrize("max_side", [None, 40])
@pytest.mark.parametrize("kind", ["jpg", "png", "late", "turned", "deep", "grey", "clear", "palette", "tif"])
def test_a_file_and_a_pil_image_of_it_are_read_alike(tmp_path, kind, max_side):
    path = by_kind(tmp_path, kind)
    with Image.open(path) as opened:
        assert np.array_equal(images.read_image(opened, max_side), images.read_image(path, max_side))
        assert getattr(opened, "tile", None), "the user's image is not touched"
        opened.load()
        again, size = images.read_with_size(opened, max_side)
    assert size == images.image_size(path) and np.array_equal(again, images.read_image(path, max_side)) == (
        kind != "jpg" or max_side is None
    )
    whole = images.read_image(path)
    if kind != "jpg":
        difference = np.abs(images.read_image(whole, max_side).astype(int) - images.read_image(path, max_side))
        assert difference.max() <= (kind in ("late", "turned"))  # turned before or after scaling: rounding alone


def by_kind(folder, kind):
    image = photograph(160, 240)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    if kind == "late":
        return late_exif(folder, image, exif)
    if kind == "turned":
        return saved(folder, "a.png", image, exif=exif)
    if kind == "clear":
        return saved(folder, "a.png", cut_out(image))
    if kind == "palette":
        return saved(folder, "a.png", Image.fromarray(image).quantize(9))
    if kind == "deep":
        return saved(folder, "a.png", image[..., 0].astype(np.uint16) * 16)
    if kind == "grey":
        return saved(folder, "a.png", image[..., 0])
    return saved(folder, f"a.{kind}", image)


def late_exif(folder, image, exif):
    """A PNG whose orientation comes after its pixels."""
    path = saved(folder, "late.png", image)
    data, block = path.read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    path.write_bytes(data[:-12] + chunk + data[-12:])
    return path


def cut_out(image):
    """An object on nothing: what is transparent has no colours."""
    layered = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    layered[:, : image.shape[1] // 2] = 0
    return Image.fromarray(layered)


def test_an_orientation_after_the_pixels_is_seen(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = photograph()
    path = late_exif(tmp_path, image, exif)
    assert images.image_size(path) == (34, 21)
    assert np.array_equal(images.read_image(path), np.rot90(image, -1))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_few_bits_in_many_are_scaled_by_what_is_there(tmp_path, bits, name):
    top = 2**bits - 1
    values = np.linspace(0, top, 64).astype(np.uint16)[None]
    found = images.read_image(saved(tmp_path, name, values))[0, :, 0]
    assert found.tolist() == np.rint(values[0] * (255 / top)).astype(int).tolist()


@pytest.mark.parametrize("bits", [8, 12])
def test_few_bits_in_a_32_bit_tiff(tmp_path, bits):
    values = np.array([[0, 2 ** (bits - 1), 2**bits - 1]], np.int32)
    assert images.read_image(saved(tmp_path, "a.tif", values))[0, :, 0].tolist() == [0, 128, 255]


def _color_png(values):
    """An RGB or RGBA PNG of 16 bits, written by hand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _tiff(values, bits, kind, packed):
    """A TIFF of one strip, written by hand. Args: kind: 1 whole numbers, 2 signed, 3 floats; packed: deflated."""
    height, width, channels = values.shape
    data = zlib.compress(values.tobytes()) if packed else values.tobytes()
    color = 2 if channels > 2 else 1
    rows = [(256, [width]), (257, [height]), (258, [bits] * channels), (259, [8 if packed else 1]), (262, [color]),
            (273, [200]), (277, [channels]), (278, [height]), (279, [len(data)]), (339, [kind] * channels)]  # fmt: skip
    place, far, table = 10 + 12 * len(rows) + 4, b"", b""
    for tag, numbers in rows:
        short = struct.pack(f"<{len(numbers)}H", *numbers)
        where = short.ljust(4, b"\0") if len(short) <= 4 else struct.pack("<I", place + len(far))
        far += short if len(short) > 4 else b""
        table += struct.pack("<HHI", tag, 3, len(numbers)) + where
    head = b"II*\0" + struct.pack("<IH", 8, len(rows)) + table + struct.pack("<I", 0) + far
    return head.ljust(200, b"\0") + data


@pytest.mark.parametrize(
    ("form", "bits"),
    [(form, bits) for form in ("png", "tif", "packed tif") for bits in (8, 10, 12, 14)]
    + [("png with alpha", bits) for bits in (10, 12, 14)],
)
def test_few_bits_in_16_of_each_color_are_seen(tmp_path, form, bits):
    image = photograph().copy()
    image[0, 0] = 255
    values = np.rint(image / 255 * (2**bits - 1)).astype(np.uint16)
    if form == "png with alpha":
        values = np.dstack([values, np.full(image.shape[:2], 2**bits - 1, np.uint16)])
    path = tmp_path / f"a.{form[-3:] if 'tif' in form else 'png'}"
    path.write_bytes(_color_png(values) if "png" in form else _tiff(values.astype("<u2"), 16, 1, "packed" in form))
    found = images.read_image(path)
    assert np.abs(found.astype(int) - image).max() <= 1
    with Image.open(path) as opened:
        assert np.array_equal(images.read_image(opened), found)


def test_what_is_seen_as_black_or_cut_off_is_said(tmp_path, caplog):
    images.read_image(saved(tmp_path, "dark.png", photograph() // 16))
    assert "dark.png: the brightest of its values is 15 of 255" in caplog.text
    caplog.clear()
    heights = photograph()[..., :1].astype("<f4") - 100
    Image.fromarray(heights[..., 0]).save(tmp_path / "heights.tif")
    images.read_image(tmp_path / "heights.tif")
    assert "heights.tif: values below 0 are read as 0" in caplog.text
    caplog.clear()
    images.read_image(saved(tmp_path, "a.png", photograph()))
    assert not caplog.text


def test_a_tiff_that_is_no_picture_is_called_so(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(_tiff(photograph().astype("<f4"), 32, 3, False))
    with pytest.raises(DataError, match="a TIFF of pixels that can't be read"):
        images.read_image(path)


def test_infrared_that_is_bright_everywhere_is_no_transparency(tmp_path, caplog):
    image = photograph(60, 80)
    for name, alpha in (("infrared.png", 128 + image[..., 0] // 2), ("even.png", np.full((60, 80), 130, np.uint8))):
        caplog.clear()
        found = images.read_image(saved(tmp_path, name, np.dstack([image, alpha])))
        assert np.array_equal(found, image) and name in caplog.text


def test_a_photograph_under_its_alpha_channel_is_seen_and_it_is_said(tmp_path, caplog):
    """Infrared, or a mask, as a fourth channel: laid over white the photograph would fade."""
    image = photograph(60, 80)
    infrared = Image.fromarray(np.dstack([image, 255 - image[..., 0]]))
    half = np.where(np.arange(80) < 40, 255, 0).astype(np.uint8)[None].repeat(60, 0)
    mask = Image.fromarray(np.dstack([image, half]))
    for name, picture in (("infrared.png", infrared), ("mask.tif", mask), ("mask.webp", mask)):
        caplog.clear()
        options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
        assert np.array_equal(images.read_image(saved(tmp_path, name, picture, **options)), image), name
        assert name in caplog.text and "that is no transparency" in caplog.text
    caplog.clear()
    grey = Image.fromarray(image[..., 0])
    under = Image.merge("LA", [grey, Image.fromarray(half)])
    assert np.array_equal(images.read_image(saved(tmp_path, "grey.png", under))[..., 0], image[..., 0])
    assert "grey.png" in caplog.text, "grey under a mask is seen, too"
    caplog.clear()
    found = images.read_image(saved(tmp_path, "cut.png", cut_out(image)))
    assert (found[:, :40] == 255).all() and np.array_equal(found[:, 40:], image[:, 40:]) and not caplog.text


def test_heic_is_read_with_its_extra(tmp_path):
    import pillow_heif

    pillow_heif.register_heif_opener()
    image = photograph(40, 56)
    Image.fromarray(image).save(tmp_path / "a.heic", quality=90)
    found = images.read_image(tmp_path / "a.heic")
    assert found.shape == image.shape and images.image_size(tmp_path / "a.heic") == (40, 56)
    assert np.abs(found.astype(int) - image).mean() < 8


def test_heic_is_called_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60))
    for read in (images.read_image, images.image_size):
        with pytest.raises(DataError, match=r"a\.heic is a HEIC photograph, which can't be read without"):
            read(tmp_path / "a.heic")


def test_a_pil_image_that_is_damaged_is_told(tmp_path):
    path = saved(tmp_path, "a.jpg", photograph(100, 120))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Image.open(path) as opened, pytest.raises(DataError, match="the image in memory can't be read"):
        images.read_image(opened)


# What can't be read


def test_errors_of_files_say_what_came(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    cases = {
        tmp_path / "missing.jpg": "there is no file .*; check the path",
        tmp_path / "text.jpg": "is damaged or no image; expected a JPEG, PNG",
        tmp_path / "empty.jpg": "is empty; expected a JPEG, PNG",
        tmp_path: "is no regular file; expected an image file",
    }
    for path, words in cases.items():
        for read in (images.read_image, images.image_size):
            with pytest.raises(DataError, match=words):
                read(path)


def test_a_truncated_file_is_refused(tmp_path):
    for name in ("a.jpg", "a.png", "a.tif", "a.webp", "a.gif", "a.bmp"):
        path = saved(tmp_path, name, photograph(100, 120))
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(DataError, match=name):
            images.read_image(path)


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "a.webp"
    with path.open("wb") as file:
        file.truncate(images.MOST_FILE_BYTES + 1)
    with pytest.raises(DataError, match="expected at most 1073741824"):
        images.read_image(path)


# Real photographs


@pytest.mark.skipif(not COCO128.is_dir(), reason=f"no photographs at {COCO128}: set VPL_COCO128")
def test_real_photographs():
    paths = sorted((COCO128 / "images" / "val").glob("*.jpg"))[::10]
    assert paths
    for path in paths:
        image = images.read_image(path)
        assert image.shape[:2] == images.image_size(path) and image.std() > 5
        assert images.read_mask(COCO128 / "masks" / "val" / f"{path.stem}.png").shape == image.shape[:2]
        h, w = images.patch_size_of(*image.shape[:2], 16)
        pixels = images.to_pixels(image, 16, MEAN, STD)
        assert pixels.shape == (3, h * 16, w * 16) and math.isfinite(pixels.sum().item())
