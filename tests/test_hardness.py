"""No input breaks a reader: any bytes give a result or a VplError, in bounded time and memory, and never another error.

Images are damaged copies of valid ones, by a seeded generator; tag files are drawn by hypothesis.
"""

import io
import json
import os
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from plain import plain_config
from vpl import classes as class_sets
from vpl import images
from vpl.config import DataConfig
from vpl.datasets import inside, open_dataset
from vpl.errors import VplError

FUZZ = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SLOWEST = 5.0
"""Seconds of processor time that one input may take; the usual is milliseconds."""


def survives(action):
    """Run a reader: True when it gave a result, False on a VplError with words; anything else fails the test."""
    start = time.process_time()
    try:
        action()
        done = True
    except VplError as error:
        assert str(error) and "\n" not in str(error)[:20]
        done = False
    assert time.process_time() - start < SLOWEST
    return done


# Images


def _packed(name, image, **options):
    data = io.BytesIO()
    image.save(data, name, **options)
    return data.getvalue()


def _valid_images():
    noise = np.random.default_rng(0).integers(0, 256, (12, 17, 4), dtype=np.uint8)
    color, clear, grey = Image.fromarray(noise[..., :3]), Image.fromarray(noise), Image.fromarray(noise[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    valid = {
        "jpeg": _packed("JPEG", color, exif=exif),
        "progressive": _packed("JPEG", color, progressive=True),
        "cmyk": _packed("JPEG", color.convert("CMYK")),
        "png": _packed("PNG", clear, exif=exif),
        "palette": _packed("PNG", color.quantize(7), transparency=2),
        "deep": _packed("PNG", Image.fromarray(noise[..., 0].astype(np.uint16) * 257)),
        "tiff": _packed("TIFF", color, compression="tiff_lzw"),
        "float": _packed("TIFF", Image.fromarray(noise[..., 0].astype(np.float32))),
        "webp": _packed("WEBP", clear),
        "gif": _packed("GIF", grey, save_all=True, append_images=[grey.rotate(90)]),
        "bmp": _packed("BMP", color),
        "ppm": _packed("PPM", color),
        "jp2": _packed("JPEG2000", color),
    }
    if "AVIF" in images._known_formats():
        valid["avif"] = _packed("AVIF", color)
    return valid


VALID = _valid_images()


def read_all(path):
    """Every way to open an image; the header and the pixels must agree about the size."""
    survives(lambda: images.read_mask(path))
    survives(lambda: images.read_image(path, max_side=8))
    found = []
    if survives(lambda: found.append(images.read_image(path))):
        assert found[0].dtype == np.uint8 and found[0].shape == (*images.image_size(path), 3)


def test_the_images_are_valid_before_they_are_damaged(tmp_path):
    for name, data in VALID.items():
        (tmp_path / name).write_bytes(data)
        assert survives(lambda path=tmp_path / name: images.read_image(path)), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(VALID))
def test_damaged_images(tmp_path, name):
    data, path = VALID[name], tmp_path / "image"
    rng = np.random.default_rng(len(data))
    for length in {0, 1, 2, 4, 8, 16, *rng.integers(0, len(data), 12).tolist()}:
        path.write_bytes(data[:length])
        read_all(path)
    for turn in range(40):
        broken = bytearray(data)
        reach = 64 if turn % 2 else len(data)  # headers get half of the damage
        for place in rng.integers(0, min(reach, len(data)), 1 + turn % 5):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(broken)
        read_all(path)


@pytest.mark.filterwarnings("ignore")
def test_random_bytes_as_images(tmp_path):
    rng = np.random.default_rng(0)
    starts = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"RIFF", b"GIF89a", b"BM", b"P6", b"P7"]
    for start in starts:
        for length in (0, 7, 300):
            (tmp_path / "image").write_bytes(start + rng.bytes(length))
            read_all(tmp_path / "image")


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width, height, packed, *more):
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", [9_460, 15_000, 60_000, 2**31 - 1])
def test_images_of_too_many_pixels_are_refused_by_their_header(tmp_path, side):
    (tmp_path / "a.png").write_bytes(_png(side, side, zlib.compress(bytes(10_000_000), 9)))
    for read in (images.read_image, images.image_size, images.read_mask):
        start = time.process_time()
        with pytest.raises(VplError, match=r"has more than 89478485 pixels; scale it down|is damaged"):
            read(tmp_path / "a.png")
        assert time.process_time() - start < 1


@pytest.mark.filterwarnings("ignore")
def test_other_huge_headers(tmp_path):
    huge = {
        "a.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
        "a.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;",
        "a.ppm": b"P6 999999 999999 255\n",
        "digits.ppm": b"P6 " + b"9" * 100_000 + b" 1 255\n",
    }
    for name, data in huge.items():
        (tmp_path / name).write_bytes(data)
        assert not survives(lambda path=tmp_path / name: images.read_image(path)), name


@pytest.mark.filterwarnings("ignore")
def test_packed_text_and_profiles_do_not_swell(tmp_path):
    bomb = zlib.compress(bytes(200_000_000), 9)
    for kind, start in ((b"zTXt", b"Comment\0\0"), (b"iCCP", b"name\0\0"), (b"iTXt", b"Comment\0\1\0\0\0")):
        (tmp_path / "a.png").write_bytes(_png(1, 1, zlib.compress(bytes(2)), _chunk(kind, start + bomb)))
        survives(lambda: images.read_image(tmp_path / "a.png"))


def test_what_is_no_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "loop.jpg", "zero.jpg", "x" * 300, "a\0b"):
        assert not survives(lambda path=tmp_path / name: images.read_image(path))
        assert not survives(lambda path=tmp_path / name: images.image_size(path))
        assert not survives(lambda path=tmp_path / name: images.read_mask(path))


# Tag files

PIECES = st.sampled_from(
    [b"file_name", b"tags", b",", b";", b'"', b"\n", b"\r", b"\0", b"a.jpg", b"dog", b"cat", b"..", b"/", b"\xff", b"{",
     b"}", b"[", b"]", b":", b'"file_name"', b'"tags"', b'"a.jpg"', b'"dog"', b"null", b"1e999", b"\xef\xbb\xbf", b" "]
)  # fmt: skip
SOUP = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=40).map(b"".join))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=5) | st.just("a.jpg"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["images", "annotations", "categories", "id", "file_name", "name", "image_id", "tags"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@pytest.fixture
def place(tmp_path):
    """A folder with two images and a mask folder, and everything else that a reader looks for."""
    for name in ("images/a.jpg", "images/dog/a.jpg", "JPEGImages/a.jpg", "ImageSets/Segmentation/val.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "Annotations").mkdir()
    return tmp_path


@pytest.mark.parametrize("start", [b"", b"file_name,tags\n", b"file_name,tags\na.jpg,dog\n"])
@given(SOUP)
@FUZZ
def test_any_bytes_as_csv(place, start, data):
    (place / "tags.csv").write_bytes(start + data)
    survives(lambda: open_dataset(DataConfig(images=str(place / "images"), tags=str(place / "tags.csv"))))


@given(st.one_of(SOUP, st.lists(JSON, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())))
@FUZZ
def test_any_bytes_as_jsonl(place, data):
    (place / "tags.jsonl").write_bytes(data)
    survives(lambda: open_dataset(DataConfig(images=str(place / "images"), tags=str(place / "tags.jsonl"))))


COCO_LIKE = st.fixed_dictionaries({"images": JSON, "annotations": JSON, "categories": JSON})
ENTRIES = st.fixed_dictionaries(
    {
        "images": st.lists(st.fixed_dictionaries({"id": JSON, "file_name": JSON}), max_size=3),
        "annotations": st.lists(st.fixed_dictionaries({"image_id": JSON, "category_id": JSON}), max_size=3),
        "categories": st.lists(st.fixed_dictionaries({"id": JSON, "name": JSON}), max_size=3),
    }
)


@given(st.one_of(SOUP, st.one_of(JSON, COCO_LIKE, ENTRIES).map(lambda tree: json.dumps(tree).encode())))
@FUZZ
def test_any_bytes_as_coco(place, data):
    (place / "instances.json").write_bytes(data)
    data = DataConfig(format="coco", images=str(place / "images"), tags=str(place / "instances.json"))
    survives(lambda: open_dataset(data))


XML_PIECES = st.sampled_from(
    [b"<annotation>", b"</annotation>", b"<object>", b"</object>", b"<name>", b"</name>", b"dog", b"&lt;", b"&x;",
     b"<!--", b"-->", b"<![CDATA[", b"]]>", b"<?xml version='1.0' encoding='utf-16'?>", b"\xff",
     b"<!DOCTYPE a [<!ENTITY x 'y'>]>"]
)  # fmt: skip


@given(st.one_of(st.binary(max_size=100), st.lists(XML_PIECES, max_size=20).map(b"".join)))
@FUZZ
def test_any_bytes_as_voc_annotation(place, data):
    (place / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    (place / "Annotations" / "a.xml").write_bytes(data)
    survives(lambda: open_dataset(DataConfig(format="voc", images=str(place), split="val")))


def test_entities_that_multiply_are_refused_at_once(place):
    (place / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    levels = "".join(f'<!ENTITY e{number} "{f"&e{number - 1};" * 10}">' for number in range(1, 20))
    text = f'<!DOCTYPE a [<!ENTITY e0 "lol">{levels}]><annotation><object><name>&e19;</name></object></annotation>'
    (place / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(VplError, match="declares a document type or entity; remove it"):
        open_dataset(DataConfig(format="voc", images=str(place), split="val"))


@given(st.one_of(st.binary(max_size=100), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))))
@FUZZ
def test_any_bytes_as_voc_list(place, data):
    (place / "ImageSets" / "Segmentation" / "val.txt").write_bytes(data)
    survives(lambda: open_dataset(DataConfig(format="voc", images=str(place), split="val")))


@given(st.text(max_size=30) | st.lists(st.sampled_from(["..", "/", "a", "\\", "C:", ".", " ", "é"])).map("".join))
@FUZZ
def test_any_name_stays_inside(tmp_path, name):
    found = []
    if survives(lambda: found.append(inside(tmp_path, name))):
        assert found[0].resolve().is_relative_to(tmp_path.resolve()) and found[0] != tmp_path


@pytest.mark.parametrize("format", ["folder", "class-folders", "voc", "coco"])
@given(st.text(max_size=20), st.text(max_size=20))
@FUZZ
def test_any_text_as_a_path(place, format, images_path, tags_path):
    data = DataConfig(format=format, images=images_path, tags=tags_path, masks=tags_path, split=tags_path)
    survives(lambda: open_dataset(data))


# Class and configuration files

TOML_PIECES = st.sampled_from(
    [b"[[class]]\n", b"[class]\n", b"name = ", b"'dog'\n", b"words = ", b"color = ", b"'#ff0000'\n", b"3\n", b"[]\n",
     b"background = ", b"['sky']\n", b"[data]\n", b"seed = ", b"images = ", b"[clip]\n", b"scale = ", b"nan\n",
     b"inf\n", b"[1]\n", b"{a = 1}\n", b"templates = ", b"['{}']\n", b"[prompts]\n", b"1979-05-27\n", b"true\n"]
)  # fmt: skip
PLAIN = plain_config()
TOML = st.one_of(st.binary(max_size=100), st.lists(TOML_PIECES, max_size=14).map(b"".join))


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".toml"])
@given(st.one_of(TOML, SOUP, SOUP.map(lambda data: b"name,words,color\n" + data)))
@FUZZ
def test_any_bytes_as_a_classes_file(tmp_path, suffix, data):
    path = tmp_path / f"classes{suffix}"
    path.write_bytes(data)
    survives(lambda: class_sets.from_file(path))


@given(TOML)
@FUZZ
def test_any_bytes_as_a_configuration(tmp_path, data):
    (tmp_path / "config.toml").write_bytes(data)
    survives(lambda: PLAIN.Config.from_toml(tmp_path / "config.toml"))


KEYS = st.sampled_from(sorted(PLAIN.Config().flat()))
VALUES = st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text()))


@given(st.dictionaries(KEYS | st.text(max_size=8), VALUES | st.just("[0.5, 1.0]"), max_size=3))
@FUZZ
def test_any_values_of_a_configuration(values):
    survives(lambda: PLAIN.Config().with_values(values))
