"""cvat.py: run by CVAT's own driver, which checks every label and shape, and read by CVAT's own decoder."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import pytest
from cvat_sdk import models
from cvat_sdk.auto_annotation import driver
from cvat_sdk.masks import decode_mask
from PIL import Image, ImageDraw

import training_case as case
from integrations.answering import Knowing, truth
from vpl.errors import ConfigError, DataError, ModelError
from vpl.integrations import cvat

HEIGHT, WIDTH = 14, 20


def annotated(monkeypatch, function, kind: str = "any", **asked) -> list[models.LabeledShapeRequest]:
    """What CVAT's driver would upload for a task of two frames; the server alone is not there."""
    names = ("sofa", "red car", "dog", "other")
    labels = [
        SimpleNamespace(id=70 + n, name=name, type=kind, attributes=[], sublabels=[]) for n, name in enumerate(names)
    ]
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8))
    media = SimpleNamespace(load_image=lambda: frame)
    samples = [SimpleNamespace(frame_name=f"{n}.jpg", frame_index=n, media=media) for n in (0, 1)]
    monkeypatch.setattr(
        driver, "TaskDataset", lambda client, id, load_annotations: SimpleNamespace(labels=labels, samples=samples)
    )
    sent: list = []
    api = SimpleNamespace(
        partial_update_annotations=lambda action, id, patched_labeled_data_request: sent.append(
            patched_labeled_data_request
        )
    )
    client = SimpleNamespace(logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=api))
    driver.annotate_task(client, 7, function, **asked)
    (request,) = sent
    return request.shapes


def test_cvats_driver_takes_a_mask_for_each_class_of_each_frame(monkeypatch):
    shapes = annotated(monkeypatch, cvat.Function(Knowing()))
    assert [(one.frame, one.label_id, str(one.type), str(one.source)) for one in shapes] == [
        (0, 72, "mask", "auto"), (0, 71, "mask", "auto"), (1, 72, "mask", "auto"), (1, 71, "mask", "auto"),
    ]  # fmt: skip
    for shape, label in zip(shapes[:2], (1, 2), strict=True):
        found = decode_mask(shape.points, image_width=WIDTH, image_height=HEIGHT)
        assert np.array_equal(found, truth(HEIGHT, WIDTH) == label)


@pytest.mark.parametrize(("function", "asked"), [({"shapes": "polygon"}, {}), ({}, {"conv_mask_to_poly": True})])
def test_polygons_are_drawn_around_each_part_to_the_pixel(monkeypatch, function, asked):
    shapes = annotated(monkeypatch, cvat.Function(Knowing(), **function), **asked)
    assert [one.label_id for one in shapes if one.frame == 0] == [72, 72, 71] and {str(one.type) for one in shapes} == {
        "polygon"
    }
    large = Image.new("L", (WIDTH * 8, HEIGHT * 8))
    for one in shapes[:3]:
        points = [(8 * x, 8 * y) for x, y in zip(one.points[::2], one.points[1::2], strict=True)]
        ImageDraw.Draw(large).polygon(points, fill=2 if one.label_id == 71 else 1)
    assert np.array_equal(np.array(large)[4::8, 4::8] > 0, truth(HEIGHT, WIDTH) > 0)


def test_below_the_wanted_confidence_a_pixel_has_no_class(monkeypatch):
    shapes = annotated(monkeypatch, cvat.Function(Knowing()), conf_threshold=0.8)
    assert [one.label_id for one in shapes] == [72, 72]


def test_labels_of_a_task_that_takes_polygons_alone_are_told_by_cvat(monkeypatch):
    with pytest.raises(cvataa.BadFunctionError, match="has type 'mask' in the function, but 'polygon' in the dataset"):
        annotated(monkeypatch, cvat.Function(Knowing()), "polygon")
    assert annotated(monkeypatch, cvat.Function(Knowing(), shapes="polygon"), "polygon")


@pytest.mark.slow
def test_create_is_what_cvats_command_line_calls(tiny_clip, tmp_path, monkeypatch):
    case.finished_run(tmp_path / "run", tiny_clip)
    function = cvat.create(model=str(tmp_path / "run"), clip=tiny_clip.name, device="cpu", protocol="multi")
    assert [one.id for one in function.spec.labels] == [*range(1, 1 + len(function.spec.labels))]
    context = SimpleNamespace(conf_threshold=None, conv_mask_to_poly=False)
    assert isinstance(function.detect(context, Image.new("RGB", (40, 30))), list)
    with pytest.raises(ConfigError, match="expected single or multi"):
        cvat.create(model=str(tmp_path / "run"), protocol="both")
    with pytest.raises(ConfigError, match="expected mask or polygon"):
        cvat.Function(Knowing(), shapes="masks")


def test_a_frame_that_exif_turns_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    context = SimpleNamespace(conf_threshold=None, conv_mask_to_poly=False)
    with Image.open(tmp_path / "a.jpg") as frame, pytest.raises(DataError, match="turned by its EXIF"):
        cvat.Function(Knowing()).detect(context, frame)


def test_without_the_sdk_a_sentence_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(ModelError, match=r'pip install "vpl-seg\[cvat\]"'):
        cvat.Function(Knowing())
