"""truth.py: masks of any numbering become label values, or the reason why not is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vpl import classes as class_sets
from vpl.config import DataConfig
from vpl.edges.datasets import open_dataset
from vpl.edges.truth import COCO_IDS, meaning, read_truth
from vpl.errors import DataError


def opened(tmp_path, masks, text, suffix=".csv", **values):
    for name, mask in masks.items():
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "images" / f"{name}.jpg").touch()
        Image.fromarray(np.array(mask, np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / f"tags{suffix}").write_text(text)
    return open_dataset(
        DataConfig(
            images=str(tmp_path / "images"),
            tags=str(tmp_path / f"tags{suffix}"),
            masks=str(tmp_path / "masks"),
            **values,
        )
    )


def truths(found):
    return [read_truth(one.mask, one.values).tolist() for one in found.samples if one.mask]


def test_labels_are_read_as_they_are(tmp_path):
    found = opened(tmp_path, {"a": [[0, 2, 255]]}, "file_name,tags\na.jpg,dog;cat\n")
    assert truths(found) == [[[0, 2, 255]]] and found.samples[0].values is None


def test_binary_masks_are_the_photograph_s_one_tag(tmp_path):
    masks = {"a": [[0, 255]], "b": [[1, 0]], "c": [[0, 255]]}
    text = "file_name,tags\na.jpg,dog\nb.jpg,cat\nc.jpg,cat;dog\n"
    found = opened(tmp_path, masks, text, mask_values="binary")
    assert found.classes.names == ("cat", "dog") and truths(found) == [[[0, 2]], [[1, 0]]]
    assert found.warnings == (
        "the truth masks of 1 photograph of 3 can't be used: a binary mask can't tell cat from dog; expected one tag.",
    )


def test_category_ids_of_the_list(tmp_path):
    tree = {
        "images": [{"id": 0, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 0, "category_id": one} for one in (90, 3)],
        "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "emu"}, {"id": 7, "name": "bee"}],
    }
    found = opened(tmp_path, {"a": [[0, 3, 90, 7, 255]]}, json.dumps(tree), ".json", format="coco", mask_values="ids")
    assert found.classes.names == ("emu", "dog") and truths(found) == [[[0, 1, 2, 255, 255]]]


def test_the_91_numbers_of_coco():
    coco = class_sets.coco()
    assert len(COCO_IDS) == len(coco) == 80 and COCO_IDS[0] == 1 and COCO_IDS[-1] == 90
    table = meaning("ids", ("person",), coco, {})
    assert [table[number] for number in COCO_IDS] == list(range(1, 81))
    assert {table[number] for number in range(256) if number not in (0, *COCO_IDS)} == {255} and table[0] == 0
    with pytest.raises(DataError, match="the list has none; expected COCO's instances JSON, or labels"):
        meaning("ids", ("cat",), class_sets.voc(), {})
