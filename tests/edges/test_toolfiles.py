"""Tags from labelling tools' exports, each as the tool writes it."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from vpl.classes import ClassSet
from vpl.config import Config
from vpl.edges import toolfiles
from vpl.edges.datasets import open_dataset
from vpl.errors import DataError

LABEL_STUDIO = [
    {
        "id": 1,
        "data": {"image": "/data/local-files/?d=day%201/a.jpg", "tags": ["old"]},
        "annotations": [
            {"was_cancelled": False, "result": [
                {"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["dog"]}},
                {"type": "choices", "value": {"choices": ["sofa", "dog"]}},
            ]},
            {"was_cancelled": True, "result": [{"type": "choices", "value": {"choices": ["cat"]}}]},
        ],
    },
    {"id": 2, "data": {"image": "/data/upload/3/0a1b2c3d-b.jpg"}, "annotations": [
        {"result": [{"type": "brushlabels", "value": {"format": "rle", "rle": [0], "brushlabels": ["cat"]}}]}]},
]  # fmt: skip
FIFTYONE = {"samples": [
    {"filepath": "data/day 1/a.jpg", "tags": ["train"], "ground_truth": {"_cls": "Detections", "detections": [
        {"label": "dog", "bounding_box": [0, 0, 1, 1]}, {"label": "sofa"}]}},
    {"filepath": "data/b.jpg", "kind": {"_cls": "Classification", "label": "cat"}},
]}  # fmt: skip
FIFTYONE_LABELS = {"classes": ["cat", "dog", "sofa"], "labels": {"day 1/a": [{"label": 1}, {"label": 2}], "b": 0}}
CVAT = b"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<image id="0" name="day 1/a.jpg" width="8" height="8"><tag label="dog" source="manual"></tag>
<polygon label="sofa" points="1,1;2,2;3,1"/></image>
<image id="1" name="b.jpg" width="8" height="8"><box label="cat" xtl="1"/><box label="cat" xtl="2"/></image>
</annotations>"""
CAPTIONS = {
    "images": [{"id": 7, "file_name": "day 1/a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 7, "caption": "Two dogs asleep."}, {"image_id": 7, "caption": "A hotdog near a sofa"},
        {"image_id": 8, "caption": "a Cat, concatenated"},
    ],
}  # fmt: skip


def opened(folder, name, content, **values):
    for one in ("day 1/a.jpg", "b.jpg"):
        (folder / "photos" / one).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "photos" / one)
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    given = {"data.images": str(folder / "photos"), "data.tags": str(folder / name)} | values
    return open_dataset(Config().with_values(given).data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("project.json", LABEL_STUDIO), ("samples.json", FIFTYONE), ("labels.json", FIFTYONE_LABELS),
        ("annotations.xml", CVAT),
    ],
)  # fmt: skip
def test_tags_of_a_tools_export(tmp_path, name, content):
    found = opened(tmp_path, name, content)
    assert {one.id: set(one.tags) for one in found.samples} == {"day 1/a": {"dog", "sofa"}, "b": {"cat"}}
    assert found.problems == ()


def test_words_in_captions(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\nsofa\n")
    found = opened(tmp_path, "captions.json", CAPTIONS, **{"data.classes": str(tmp_path / "classes.txt")})
    assert {one.id: set(one.tags) for one in found.samples} == {"day 1/a": {"dog", "sofa"}, "b": {"cat"}}
    with pytest.raises(DataError, match="captions hold no tags"):
        opened(tmp_path, "captions.json", CAPTIONS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<annotations></annotations>", "holds no images"),
        (b"no xml", "it is no XML"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><annotations><image name="a"/></annotations>', "it declares entities"),
    ],
)
def test_what_is_no_export_of_cvat(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        opened(tmp_path, "annotations.xml", content)


def places(tree, way=()):
    if way:
        yield way
    for key, one in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(one, (*way, key))


@pytest.mark.parametrize("tree", [LABEL_STUDIO, FIFTYONE, FIFTYONE_LABELS, CAPTIONS])
def test_what_is_of_another_kind_somewhere_says_nothing(tree):
    classes = ClassSet(("cat", "dog", "sofa"))
    for *above, last in places(tree):
        for junk in (None, 0, 1.5, True, "", "http://[", [], {}, [1], [[1]], {"a": 1}):
            other = json.loads(json.dumps(tree))
            within = other
            for key in above:
                within = within[key]
            within[last] = junk
            with contextlib.suppress(DataError):
                for row in toolfiles.rows_of(other, classes) or ():
                    assert all(isinstance(tag, str) for tag in row["tags"])


def test_a_taxonomys_leaf_is_the_tag():
    chosen = {"type": "taxonomy", "value": {"taxonomy": [["animal", "dog"], ["cat"]]}}
    task = {"data": {"image": "b.jpg"}, "annotations": [{"result": [chosen]}]}
    assert toolfiles.rows_of([task], None) == [{"file_name": "b.jpg", "tags": ["dog", "cat"]}]
