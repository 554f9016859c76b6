"""Outlines give their parts back to the pixel, with every reader; brush masks give Label Studio's own."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from vpl.classes import ClassSet
from vpl.edges import images
from vpl.exports import coco_parts, labelstudio, labelstudio_parts, outlines, yolo_seg
from vpl.exports.labelled import read_labelled

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def filled(ring, shape) -> np.ndarray:
    """The even-odd rule at the middles of pixels, written plainly."""
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        for y in range(shape[0]):
            if (y0 > y + 0.5) != (y1 > y + 0.5):
                at = x0 + (y + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                inside[y] ^= np.arange(shape[1]) + 0.5 > at
    return inside


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_outlines_give_their_parts_back(where):
    found, count = np.zeros_like(where, int), 0
    for part, top, left in outlines.parts(where):
        found += filled(outlines.outline(part, top, left), where.shape)
        count += 1
    assert np.array_equal(found, where), "each pixel in one part"
    assert count == cv2.connectedComponents(where.astype(np.uint8), connectivity=4)[0] - 1


def test_a_ring_has_its_corners_alone():
    (one,) = outlines.parts(np.pad(np.ones((3, 4), bool), 2))
    assert sorted(outlines.outline(*one)) == [(2, 2), (2, 5), (6, 2), (6, 5)]


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_coco_reads_the_polygons(where):
    height, width = where.shape
    found = np.zeros_like(where)
    for shape in coco_parts.Writer._shapes(None, where):
        coded = coco_mask.merge(coco_mask.frPyObjects(shape["segmentation"], height, width))
        found |= coco_mask.decode(coded).astype(bool)
    assert np.array_equal(found, where)


def decoded(rle: list[int]) -> np.ndarray:
    """Label Studio's decoder (label_studio_sdk.converter.brush.decode_rle), written from its format."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, width = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < count:
        repeated, run = read(1), 0
        run = read(sizes[read(2)]) + 1
        out += [read(width)] * run if repeated else [read(width) for _ in range(run)]
    return np.array(out)


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_label_studio_reads_the_brush(where):
    assert np.array_equal(decoded(labelstudio.brush(where)).reshape(*where.shape, 4)[..., 3] == 255, where)


def test_a_long_run_is_cut(recwarn):
    where = np.zeros((200, 300), bool)
    where[:150] = True
    assert np.array_equal(decoded(labelstudio.brush(where)).reshape(200, 300, 4)[..., 0] == 255, where)


@pytest.fixture
def picture(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[2:8, 3:9], mask[4, 5], mask[12:15, 20:28], mask[:, 29] = 1, 0, 2, 255
    images.write_mask(tmp_path / "a.png", mask, [])
    images.write_image(tmp_path / "photo.png", np.zeros((20, 30, 3), np.uint8))
    classes = ClassSet(("dog", "red car"))
    return read_labelled(
        "a", tmp_path / "photo.png", PurePosixPath("a"), ("dog",), tmp_path / "a.png", classes
    ), classes


def test_yolo_lines_are_fractions_of_the_photograph(picture, tmp_path):
    one, classes = picture
    writer = yolo_seg.Writer(tmp_path / "out", classes)
    writer.add(one)
    writer.close()
    lines = (tmp_path / "out" / "labels" / "train" / "a.txt").read_text().splitlines()
    found = np.zeros((20, 30), np.uint8)
    for line in lines:
        number, *values = line.split()
        points = np.array(values, float).reshape(-1, 2) * (30, 20)
        found[filled(points.tolist(), (20, 30))] = int(number) + 1
    assert np.array_equal(found, np.where(one.mask == 255, 0, one.mask))


@pytest.mark.parametrize("module", [labelstudio, labelstudio_parts])
def test_label_studio_tasks_name_what_their_interface_has(picture, tmp_path, module):
    one, classes = picture
    writer = module.Writer(tmp_path / "out", classes)
    writer.add(one)
    writer.close()
    (task,) = json.loads((tmp_path / "out" / "tasks.json").read_text())
    (prediction,) = task["predictions"]
    found = np.zeros((20, 30), np.uint8)
    for shape in prediction["result"]:
        value, (name,) = shape["value"], shape["value"][shape["type"]]
        label = {"dog": 1, "red car": 2, "ignored": 255}[name]
        if shape["type"] == "brushlabels":
            where = decoded(value["rle"]).reshape(20, 30, 4)[..., 0] == 255
        else:
            where = filled((np.array(value["points"]) * (0.3, 0.2)).round(9).tolist(), (20, 30))
        found[where] = label
    assert np.array_equal(found, one.mask)
    view = (tmp_path / "out" / "labels.xml").read_text()
    assert all(f'value="{name}"' in view for name in ("dog", "red car", "ignored"))
    assert (tmp_path / "out" / task["data"]["image"].partition("?d=")[2]).is_file()
