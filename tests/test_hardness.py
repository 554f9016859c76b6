"""No input breaks a reader: any bytes give a result or a VplError, in bounded time and memory, and never another error.

Images are damaged copies of valid ones, by a seeded generator; tag files and weights are drawn by hypothesis. Faults of
the machine are tried in test_faults.py, kills in test_kill.py; the names of the tests are the list of what was tried.
"""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from plain import plain_config
from vpl import classes as class_sets
from vpl.clip.model import FrozenClip
from vpl.clip.weights import read as read_weights
from vpl.config import DataConfig
from vpl.edges import images
from vpl.edges.datasets import inside, open_dataset
from vpl.errors import ModelError, VplError

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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_configuration_or_classes_file_without_end_is_refused(tmp_path):
    with pytest.raises(VplError, match="has more than 1048576 bytes; check the path"):
        PLAIN.Config.from_toml("/dev/zero")
    with pytest.raises(VplError, match="is no regular file"):
        class_sets.from_file("/dev/zero")
    (tmp_path / "classes.txt").touch()
    os.truncate(tmp_path / "classes.txt", 2**33)
    with pytest.raises(VplError, match="has more than 16777216 bytes; expected a line per class"):
        class_sets.from_file(tmp_path / "classes.txt")


KEYS = st.sampled_from(sorted(PLAIN.Config().flat()))
VALUES = st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text()))


@given(st.dictionaries(KEYS | st.text(max_size=8), VALUES | st.just("[0.5, 1.0]"), max_size=3))
@FUZZ
def test_any_values_of_a_configuration(values):
    survives(lambda: PLAIN.Config().with_values(values))


# Weights


@pytest.fixture(scope="module")
def openai_state():
    """The pocket's image and text towers of one block each, under OpenAI's keys."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return 0.1 * torch.randn(shape, generator=generator)

    def block(start, width):
        names = {"ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
                 "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
                 "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
                 "mlp.c_fc.weight": (2 * width, width), "mlp.c_fc.bias": (2 * width,),
                 "mlp.c_proj.weight": (width, 2 * width), "mlp.c_proj.bias": (width,)}  # fmt: skip
        return {f"{start}.resblocks.0.{name}": random(*shape) for name, shape in names.items()}

    state = {
        "visual.conv1.weight": random(64, 3, 4, 4), "visual.class_embedding": random(64),
        "visual.positional_embedding": random(5, 64), "visual.ln_pre.weight": random(64),
        "visual.ln_pre.bias": random(64), "visual.ln_post.weight": random(64), "visual.ln_post.bias": random(64),
        "visual.proj": random(64, 16), "token_embedding.weight": random(20, 64),
        "positional_embedding": random(8, 64), "ln_final.weight": random(64), "ln_final.bias": random(64),
        "text_projection": random(64, 16), "logit_scale": torch.tensor(3.0),
    }  # fmt: skip
    return state | block("visual.transformer", 64) | block("transformer", 64)


def load(path):
    return FrozenClip.load(path, device="cpu")


def header_of(tree, data=b""):
    """A safetensors file by hand."""
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "an empty file": b"",
    "seven bytes": b"1234567",
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "a header of 99 million bytes": struct.pack("<Q", 99_000_000) + b"{}",
    "a header that is no JSON": header_of(b"{'a': 1}"),
    "a header that is no UTF-8": header_of(b"\xff\xfe\xff"),
    "a header that is a list": header_of([1, 2]),
    "a header of nested lists": header_of(b"[" * 100_000),
    "an entry that is a number": header_of({"a": 3}),
    "a type that is unknown": header_of({"a": entry(dtype="F7")}, bytes(8)),
    "a type of six bits": header_of({"a": entry(dtype="F6_E2M3", shape=(4,), offsets=(0, 3))}, bytes(3)),
    "a shape larger than the data": header_of({"a": entry(shape=(2**20,))}, bytes(8)),
    "a shape that overflows": header_of({"a": entry(shape=(2**62, 2**62))}, bytes(8)),
    "a negative shape": header_of({"a": entry(shape=(-2,))}, bytes(8)),
    "offsets that overlap": header_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "offsets behind the end": header_of({"a": entry(offsets=(8, 16))}, bytes(8)),
    "offsets backwards": header_of({"a": entry(offsets=(8, 0))}, bytes(8)),
    "bytes that belong to nothing": header_of({"a": entry()}, bytes(80)),
    "data cut off": header_of({"a": entry(shape=(200,), offsets=(0, 800))}, bytes(8)),
    "no tensors": header_of({}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_with(tmp_path, name):
    (tmp_path / "openai.safetensors").write_bytes(HEADERS[name])
    assert not survives(lambda: load(tmp_path / "openai.safetensors"))


@given(st.data())
@FUZZ
def test_damaged_safetensors(tmp_path, openai_state, data):
    whole = safetensors.torch.save(openai_state)
    reach = 8 + struct.unpack("<Q", whole[:8])[0]
    broken = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, reach - 1), min_size=1, max_size=6)):
        broken[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(broken), reach, reach // 2, len(broken) // 2]))
    (tmp_path / "openai.safetensors").write_bytes(broken[:end])
    survives(lambda: load(tmp_path / "openai.safetensors"))


def _set(key, value):
    return lambda state: state | {key: value}


def _without(start):
    return lambda state: {key: one for key, one in state.items() if not key.startswith(start)}


NAN, INFINITE = torch.full((64,), float("nan")), torch.full((64,), float("inf"))
STATES = {
    "a value that is not a number": (_set("visual.ln_post.bias", NAN), "ln_post.bias holds values that are not finite"),
    "an infinite value": (_set("ln_final.bias", INFINITE), "ln_final.bias holds values that are not finite"),
    "whole numbers": (_set("visual.ln_pre.bias", torch.zeros(64, dtype=torch.int8)), "torch.int8, expected floats"),
    "complex numbers": (_set("visual.ln_pre.bias", torch.zeros(64, dtype=torch.complex64)), "complex64, expected"),
    "a logit scale beyond measure": (_set("logit_scale", torch.tensor(900.0)), "logit_scale is 900.0; expected the"),
    "a logit scale with an axis": (_set("logit_scale", torch.zeros(1)), r"log_scale has shape \(1,\), expected \(\)"),
    "patches without pixels": (_set("visual.conv1.weight", torch.zeros(64, 3, 0, 0)), "image.patch is missing or of a"),
    "oblong patches": (_set("visual.conv1.weight", torch.zeros(64, 3, 4, 8)), r"expected \(64, 3, 8, 4\)|image.patch"),
    "a picture of no patch": (_set("visual.positional_embedding", torch.zeros(1, 64)), "has 0 patch positions"),
    "no words": (_set("token_embedding.weight", torch.zeros(0, 64)), "text.words is missing or of a wrong shape"),
    "no blocks": (_without("visual.transformer"), "image.blocks.0.up.weight is missing"),
    "a block without a number": (_set("visual.transformer.resblocks", torch.zeros(1)), "its towers hold visual.transf"),
    "a block that is no number": (_set("visual.transformer.resblocks.x.ln_1.bias", torch.zeros(64)), "is missing"),
    "a gap between blocks": (_set("visual.transformer.resblocks.7.ln_1.bias", torch.zeros(64)), "s.1.* is missing"),
    "a projection of three axes": (_set("visual.proj", torch.zeros(64, 4, 4)), "image.projection is missing or of a"),
    "a text wider than its positions": (_set("positional_embedding", torch.zeros(8, 5)), r"text.positions has shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_weights_with(tmp_path, openai_state, name):
    change, words = STATES[name]
    save_file(change(openai_state), tmp_path / "openai.safetensors")
    with pytest.raises(ModelError, match=words) as caught:
        load(tmp_path / "openai.safetensors")
    assert "\n" not in str(caught.value)


class Program:
    """An object whose pickle runs a program: it makes the file `mark`."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (exec, (f"open({self.mark!r}, 'w').close()",))


def _script(path, pickled, records=()):
    """A TorchScript archive by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip/data.pkl", pickled)
        archive.writestr("clip/constants.pkl", pickle.dumps(()))
        archive.writestr("clip/version", "3")
        for name, data in records:
            archive.writestr(f"clip/data/{name}", data)


def _as_tensors(path, evil):
    torch.save({"visual.class_embedding": torch.zeros(3), "x": evil}, path)


def _as_old_tensors(path, evil):
    torch.save({"visual.class_embedding": evil}, path, _use_new_zipfile_serialization=False)


def _as_pickle(path, evil):
    path.write_bytes(pickle.dumps({"state_dict": evil}))


def _as_script(path, evil):
    _script(path, pickle.dumps(evil))


def _as_module(path, evil):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)).register_buffer("x", None) or [evil], path)


def _as_second_pickle(path, evil):
    path.write_bytes(pickle.dumps(1) + pickle.dumps(evil))


def _as_constants(path, evil):
    _script(path, pickle.dumps({}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("clip/code/__torch__.py", "raise SystemExit")
        archive.writestr("evil/data.pkl", pickle.dumps(evil))


def _as_tar(path, evil):
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle", "sys_info"):
            data = pickle.dumps(evil)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize(
    "write",
    [_as_tensors, _as_old_tensors, _as_pickle, _as_script, _as_module, _as_second_pickle, _as_constants, _as_tar],
    ids=lambda write: write.__name__[4:].replace("_", " "),
)
def test_a_pickled_program_is_refused_and_never_runs(tmp_path, write, suffix):
    write(tmp_path / f"clip{suffix}", Program(tmp_path / "ran"))
    assert not survives(lambda: load(tmp_path / f"clip{suffix}"))
    assert not (tmp_path / "ran").exists()


def _storage(count, kind="FloatStorage", key="0"):
    """The pickle of a TorchScript archive that says: a tensor of `count` numbers, all in one stored record."""
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n" + kind.encode() + b"\nX\x01\0\0\0"
        + key.encode() + b"X\x03\0\0\0cpu\x8a\x08" + struct.pack("<q", count) + b"tQ"
    )  # fmt: skip


def _claims_numbers(path):
    numbers = b"\x8a\x08" + struct.pack("<q", 10**12)
    _script(path, _storage(10**12) + b"K\0(" + numbers + b"t(K\x01t\x89}tR.", [("0", bytes(64))])


def _repeats_one_number(path):
    numbers = b"\x8a\x08" + struct.pack("<q", 10**12)
    one = _storage(16)[2:] + b"K\0(" + numbers + b"t(K\0t\x89}tR"
    _script(path, b"\x80\x02c__torch__\nM\n)\x81}X\x01\0\0\0w" + one + b"sb.", [("0", bytes(64))])


def _names_a_place_far_away(path):
    _script(path, b"\x80\x02]r\xff\xff\xff\x7f.")


def _names_a_length(path):
    _script(path, b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.")


def _holds_itself_twice(path):
    one = b"\x80\x02c__torch__\nM\nq\0)\x81"
    twins = b"".join(b"}(X\x01\0\0\0ah\x01X\x01\0\0\0bh\x01ubq\x01h\0)\x81" for _ in range(60))
    _script(path, one + b"q\x01h\0)\x81" + twins + b"}X\x01\0\0\0ah\x01sb.")


def _packs_zeros(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip/data.pkl", bytes(300_000_000))
        archive.writestr("clip/version", "3")


def _packs_a_record(path):
    torch.save({"visual.class_embedding": torch.zeros(100_000_000, dtype=torch.uint8)}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(f"{path}.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    Path(f"{path}.zip").replace(path)


def _copies_one_row(path):
    torch.save({"visual.class_embedding": torch.zeros(1).expand(10**13)}, path)


def _copies_one_row_in_the_old_format(path):
    torch.save({"a": torch.zeros(1).expand(10**13)}, path, _use_new_zipfile_serialization=False)


def _shows_one_storage_often(path):
    one = torch.zeros(1_000_000)
    torch.save({f"visual.{number}": one for number in range(1000)}, path)


def _claims_a_storage_that_is_not_there(path):
    torch.save({"visual.class_embedding": torch.zeros(16)}, f"{path}.whole")
    with zipfile.ZipFile(f"{path}.whole") as whole, zipfile.ZipFile(path, "w") as cut:
        for name in whole.namelist():
            data = whole.read(name)
            cut.writestr(name, data.replace(b"K\x10", b"M\xff\xff") if name.endswith("data.pkl") else data)


def _is_sparse(path):
    torch.save({"visual.class_embedding": torch.sparse_coo_tensor([[0]], [1.0], (10**13,))}, path)


def _has_no_memory(path):
    torch.save({"visual.class_embedding": torch.empty(10**13, device="meta")}, path)


def _numbers_its_keys(path):
    torch.save({1: torch.zeros(2), ("a",): torch.zeros(2), None: 3}, path)


TRAPS = [
    _claims_numbers, _repeats_one_number, _names_a_place_far_away, _names_a_length, _holds_itself_twice, _packs_zeros,
    _packs_a_record, _copies_one_row, _copies_one_row_in_the_old_format, _shows_one_storage_often,
    _claims_a_storage_that_is_not_there, _is_sparse, _has_no_memory, _numbers_its_keys,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__[1:].replace("_", " "))
def test_an_archive_that(warm, tmp_path, trap):
    trap(tmp_path / "clip.pt")
    assert not survives(lambda: load(tmp_path / "clip.pt"))
    images.write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "tags.csv").write_text("file_name,tags\na.png,dog\n")
    command = ["prototypes", tmp_path / "run", "--images", tmp_path, "--tags", tmp_path / "tags.csv"]
    (told,) = warm.run(["most_memory", 2**29], ["vpl", *command, "--clip", tmp_path / "clip.pt", "--device", "cpu"])
    assert told.status == 2 and told.err.count("\n") == 1 and str(tmp_path / "clip.pt") in told.err, told.err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["archive", "old", "script"])
@given(st.data())
@FUZZ
def test_damaged_pt_files(tmp_path, openai_state, kind, data):
    state = {key: one for key, one in openai_state.items() if key in ("visual.class_embedding", "visual.proj")}
    packed = io.BytesIO()
    if kind == "script":
        _script(packed, _storage(16) + b"K\0(K\x04K\x04t(K\x04K\x01t\x89}tR.", [("0", bytes(64))])
    else:
        torch.save(state, packed, _use_new_zipfile_serialization=kind == "archive")
    broken = bytearray(packed.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(broken) - 1), max_size=6)):
        broken[place] = data.draw(st.integers(0, 255))
    (tmp_path / "clip.pt").write_bytes(
        broken[: data.draw(st.integers(0, len(broken)))] if data.draw(st.booleans()) else broken
    )
    assert not survives(lambda: load(tmp_path / "clip.pt"))


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"PK\3\4", b"\x80\x02", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"}"]),
)
@FUZZ
def test_random_bytes_as_pt(tmp_path, data, start):
    (tmp_path / "clip.pt").write_bytes(start + data)
    assert not survives(lambda: load(tmp_path / "clip.pt"))


# Folders in transformers' format


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder, tmp_path / "clip"))


def _changed(folder, file, change):
    path = folder / file
    tree = json.loads(path.read_text()) if path.exists() else {}
    change(tree)
    path.write_text(json.dumps(tree))


CONFIGS = {
    "vision_config is a list": lambda tree: tree.update(vision_config=[1]),
    "vision_config is a text": lambda tree: tree.update(vision_config="large"),
    "text_config is a number": lambda tree: tree.update(text_config=7),
    "no heads": lambda tree: tree["vision_config"].update(num_attention_heads=0),
    "fewer than no heads": lambda tree: tree["vision_config"].update(num_attention_heads=-2),
    "more heads than columns": lambda tree: tree["text_config"].update(num_attention_heads=10**9),
    "infinite heads": lambda tree: tree["text_config"].update(num_attention_heads=float("inf")),
    "heads that are a list": lambda tree: tree["text_config"].update(num_attention_heads=[8]),
    "an epsilon that is no number": lambda tree: tree["vision_config"].update(layer_norm_eps=float("nan")),
    "a negative epsilon": lambda tree: tree["text_config"].update(layer_norm_eps=-1),
    "no end tokens": lambda tree: tree["text_config"].update(eos_token_id=[]),
    "an end token that is a text": lambda tree: tree["text_config"].update(eos_token_id="end"),
    "another kind of model": lambda tree: tree.update(model_type=["clip"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_of(folder, name):
    _changed(folder, "config.json", CONFIGS[name])
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_sizes_in_a_config_are_never_allocated(folder):
    """Shapes are the weights' own; a config.json that claims others is of another model."""
    huge = {"hidden_size": 10**12, "num_hidden_layers": 10**9, "image_size": 10**9, "intermediate_size": 10**12}
    _changed(folder, "config.json", lambda tree: [tree[part].update(huge) for part in ("vision_config", "text_config")])
    with pytest.raises(ModelError, match=r"config\.json describes another model"):
        load(folder)


LOOKS = {
    "two means": {"image_mean": [0.1, 0.2]},
    "a mean that is a text": {"image_mean": "abc"},
    "a spread of zero": {"image_std": [0.0, 1.0, 1.0]},
    "a spread that is not a number": {"image_std": [float("nan")] * 3},
    "a spread that is null": {"image_std": None},
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_preprocessor_config_of(folder, name):
    _changed(folder, "preprocessor_config.json", lambda tree: tree.update(LOOKS[name]))
    with pytest.raises(
        ModelError, match=r"of preprocessor_config\.json is .*; expected three numbers from .*, such as"
    ):
        load(folder)


def _index(folder, tree):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(tree))


FOLDERS = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a config of nested lists": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "a config that is no UTF-8": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"),
    "a config that is a folder": lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),
    "a config that is a pipe": lambda folder: ((folder / "config.json").unlink(), os.mkfifo(folder / "config.json")),
    "a config without end": lambda folder: (
        (folder / "config.json").unlink(), (folder / "config.json").symlink_to("/dev/zero")
    ),
    "a config of 300 MB": lambda folder: os.truncate(folder / "config.json", 300_000_000),
    "weights that are a folder": lambda folder: (
        (folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()
    ),
    "weights cut in half": lambda folder: os.truncate(folder / "model.safetensors", 20_000),
    "an index without a map": lambda folder: _index(folder, {}),
    "an index that maps to numbers": lambda folder: _index(folder, {"weight_map": {"a": 1}}),
    "an index that is a list": lambda folder: _index(folder, [1]),
    "an index of files that are not there": lambda folder: _index(folder, {"weight_map": {"a": "b.safetensors"}}),
    "an index that climbs out": lambda folder: _index(folder, {"weight_map": {"a": "../../secret.safetensors"}}),
    "a tokenizer of half a file": lambda folder: os.truncate(folder / "tokenizer.json", 300),
    "a tokenizer that is empty": lambda folder: (folder / "tokenizer.json").write_bytes(b""),
    "a tokenizer that is a list": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "a tokenizer without model": lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0"}'),
    "half a vocabulary": lambda folder: (
        (folder / "tokenizer.json").unlink(), (folder / "vocab.json").write_text('{"a":'),
        (folder / "merges.txt").write_text("a b\n"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with(folder, name):
    FOLDERS[name](folder)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def _tokenizer(folder, change):
    _changed(folder, "tokenizer.json", change)


TOKENIZERS = {
    "is missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "knows no words": lambda folder: _tokenizer(folder, lambda tree: tree["model"].update(vocab={})),
    "has other ids": lambda folder: _tokenizer(folder, lambda tree: tree["model"]["vocab"].update(dog=10**6)),
    "has negative ids": lambda folder: _tokenizer(folder, lambda tree: tree["model"]["vocab"].update(dog=-4)),
    "adds no end": lambda folder: _tokenizer(folder, lambda tree: tree.update(post_processor=None)),
    "makes no token": lambda folder: _tokenizer(
        folder,
        lambda tree: tree.update(
            post_processor=None, normalizer={"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
        ),
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that(folder, name):
    TOKENIZERS[name](folder)
    end = {"eos_token_id": 39}
    _changed(folder, "config.json", lambda tree: tree["text_config"].update(end))
    with pytest.raises(ModelError) as caught:
        load(folder).encode_texts(["a dog"])
    assert "\n" not in str(caught.value)


@given(st.data())
@FUZZ
def test_damaged_folders(tiny_folder, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged") / "clip"
    shutil.copytree(tiny_folder, folder)
    path = folder / data.draw(st.sampled_from(["config.json", "tokenizer.json", "model.safetensors"]))
    broken = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(len(broken), 6000) - 1), min_size=1, max_size=5)):
        broken[place] = data.draw(st.integers(0, 255))
    path.write_bytes(broken)
    survives(lambda: load(folder).encode_texts(["a photo of a dog"]))
    shutil.rmtree(folder)


@given(st.text(max_size=40) | st.sampled_from(["~nobody/x", "~", "x" * 5000, "a/" * 3000, "a\0b", "/dev/zero", "/"]))
@FUZZ
def test_any_text_as_a_model(name):
    with contextlib.suppress(ModelError):
        read_weights(name) if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None
