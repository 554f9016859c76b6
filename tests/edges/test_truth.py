"""truth.py: masks of any numbering become label values, or the reason why not is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vpl import classes as class_sets
from vpl.config import DataConfig
from vpl.edges.datasets import Sample, open_dataset
from vpl.edges.truth import COCO_IDS, Meaning, Values, read_truth
from vpl.errors import ConfigError, DataError


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


def test_a_binary_mask_of_a_photograph_without_tags_is_background(tmp_path):
    masks = {"a": [[0, 255]], "b": [[0, 0]]}
    found = opened(tmp_path, masks, "file_name,tags\na.jpg,dog\nb.jpg,\n", mask_values="binary", untagged="background")
    assert truths(found) == [[[0, 1]], [[0, 0]]]
    Image.fromarray(np.array([[0, 9]], np.uint8)).save(tmp_path / "masks/b.png")
    with pytest.raises(DataError, match="9"):
        truths(found)


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
    found = Meaning("ids", "data.mask_values", coco).of(("person",))
    assert found is not None
    table = found.table
    assert [table[number] for number in COCO_IDS] == list(range(1, 81))
    assert {table[number] for number in range(256) if number not in (0, *COCO_IDS)} == {255} and table[0] == 0
    with pytest.raises(DataError, match="the list has none; expected COCO's instances JSON, or labels"):
        Meaning("ids", "data.mask_values", class_sets.voc())


# --------------------------------------------------------------------------------------------------- maps and colours
TWO = "file_name,tags\na.jpg,dog\nb.jpg,cat\n"


def test_numbers_are_named_on_the_command_line_and_the_rest_is_refused_by_its_number(tmp_path):
    masks = {"a": [[0, 7, 255]], "b": [[9, 3, 200]]}
    found = opened(tmp_path, masks, TWO, mask_values="0=background, 7=DOG,255=ignore,9=cat")
    assert read_truth(found.samples[0].mask, found.samples[0].values).tolist() == [[0, 2, 255]]
    with pytest.raises(
        DataError, match=r"numbers that data\.mask_values does not tell: 3, 200\. Say .* 3=ignore or 3=CL"
    ):
        read_truth(found.samples[1].mask, found.samples[1].values)
    found = opened(tmp_path, masks, TWO, mask_values="9=cat,*=ignore,7=dog")
    assert truths(found) == [[[255, 2, 255]], [[1, 255, 255]]]


def test_another_number_is_ignored_beside_labels_ids_and_binary_masks(tmp_path):
    masks = {"a": [[0, 2, 254]], "b": [[1, 0, 255]]}
    assert truths(opened(tmp_path, masks, TWO, mask_values="labels,254=ignore")) == [[[0, 2, 255]], [[1, 0, 255]]]
    assert truths(opened(tmp_path, masks, TWO, mask_values="binary,254=ignore")) == [[[0, 2, 255]], [[1, 0, 1]]]
    found = opened(tmp_path, masks, TWO, mask_values="labels,2=background,0=ignore,254=dog")
    assert truths(found)[0] == [[255, 0, 2]]
    with pytest.raises(DataError, match="does not tell: 253"):
        read_truth(
            *moved(tmp_path, [[253]]), opened(tmp_path, masks, TWO, mask_values="labels,254=ignore").samples[0].values
        )


def moved(tmp_path, rows):
    Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / "other.png")
    return (tmp_path / "other.png",)


def colored(tmp_path, name, rows):
    Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / "masks" / f"{name}.png")


BLACK, RED, GREEN, CREAM = [0, 0, 0], [128, 0, 0], [0, 128, 0], [224, 224, 192]


def test_vocs_colours_are_known(tmp_path):
    masks = {"a": [[0, 0]], "b": [[0, 0]]}
    opened(tmp_path, masks, TWO)
    colored(tmp_path, "a", [[BLACK, GREEN, CREAM]])
    colored(tmp_path, "b", [[RED, [1, 2, 3], [9, 9, 9]]])
    found = open_dataset(DataConfig(images=str(tmp_path / "images"), tags=str(tmp_path / "tags.csv"),
                                    masks=str(tmp_path / "masks"), mask_values="colors"))  # fmt: skip
    assert read_truth(found.samples[0].mask, found.samples[0].values).tolist() == [[0, 2, 255]]
    with pytest.raises(DataError, match=r"holds colours that data\.mask_values does not tell: #010203, #090909"):
        read_truth(found.samples[1].mask, found.samples[1].values)
    with pytest.raises(DataError, match="--mask-values colors, or a label map's file"):
        read_truth(found.samples[0].mask)


ROWS = (("background", "#000000"), ("dog", "#800000"), ("cat", "#008000"), ("ignore", "#e0e0c0"))
MAPS = [
    ("map.txt", "# CVAT's\nbackground:0,0,0::\ndog:128,0,0::\ncat:0,128,0::\nignored:224,224,192::\n"),
    ("map.csv", "name,r,g,b\nbackground,0,0,0\ndog,128,0,0\ncat,0,128,0\nignore,224,224,192\n"),
    ("map.csv", 'label;color\nbackground;"0,0,0"\ndog;#800000\ncat;#008000\nignore;(224, 224, 192)\n'),
    ("map.toml", "".join(f'[[class]]\nname = "{name}"\ncolor = "{color}"\n' for name, color in ROWS)),
]


@pytest.mark.parametrize(("name", "text"), MAPS)
def test_a_label_map_names_the_colours(tmp_path, name, text):
    opened(tmp_path, {"a": [[0]], "b": [[0]]}, TWO)
    (tmp_path / name).write_text(text)
    colored(tmp_path, "a", [[BLACK, RED, CREAM]])
    colored(tmp_path, "b", [[BLACK, GREEN, CREAM]])
    data = DataConfig(images=str(tmp_path / "images"), tags=str(tmp_path / "tags.csv"), masks=str(tmp_path / "masks"),
                      mask_values=str(tmp_path / name))  # fmt: skip
    assert truths(open_dataset(data)) == [[[0, 2, 255]], [[0, 1, 255]]]


def test_a_label_map_names_the_numbers_and_names_of_its_own_are_told(tmp_path):
    (tmp_path / "map.csv").write_text("id,name\n0,_background_\n11,dog\n12,Katze\n200,void\n")
    masks = {"a": [[0, 11, 200]], "b": [[12, 0, 0]]}
    with pytest.raises(DataError, match=r"map.csv names what is no class: '_background_', 'Katze', 'void'\. Say"):
        opened(tmp_path, masks, TWO, mask_values=str(tmp_path / "map.csv"))
    setting = f"{tmp_path / 'map.csv'},_background_=background,void=ignore"
    found = opened(tmp_path, masks, TWO, mask_values=setting, aliases=("Katze=cat",))
    assert truths(found) == [[[0, 2, 255]], [[1, 0, 0]]]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lables", "is 'lables', which is no file; expected labels, ids, binary, colors, the file"),
        ("labels,ids", "says labels and ids; expected one of them"),
        ("7=", "expected NUMBER=CLASS"),
        ("7=dgo", "names what is no class: 'dgo'"),
        ("300=dog", "the number 300; expected one from 0 to 255"),
        ("#12=dog", "expected six hex digits"),
        ("colors,*=ignore", "too many; name those that occur"),
        ("*=nothing", "leads to 'nothing'; expected a class"),
    ],
)
def test_a_setting_that_says_nothing_is_refused(tmp_path, setting, words):
    with pytest.raises((ConfigError, DataError), match=words):
        opened(tmp_path, {"a": [[0]], "b": [[0]]}, TWO, mask_values=setting)


def test_a_colour_that_is_two_classes_is_refused(tmp_path):
    (tmp_path / "map.csv").write_text("name,color\ndog,#800000\ncat,#800000\n")
    with pytest.raises(DataError, match="calls #800000 both 'dog' and 'cat'"):
        opened(tmp_path, {"a": [[0]], "b": [[0]]}, TWO, mask_values=str(tmp_path / "map.csv"))


def test_what_the_numbers_are_said_to_be_is_part_of_the_truth_s_digest():
    first, second = Values(((0, 0), (7, 1))), Values(((0, 0), (7, 255)))
    assert first.told() != second.told() and Sample("a", "a.jpg", ("dog",), None, first).values == first


# -------------------------------------------------------------------------------------------------------- COCO's JSON
def coco_tree():
    square = [[1, 1, 4, 1, 4, 4, 1, 4]]
    return {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 6, "width": 8},
                   {"id": 6, "file_name": "b.jpg", "height": 6, "width": 8}],
        "categories": [{"id": 2, "name": "dog"}, {"id": 9, "name": "cat"}, {"id": 4, "name": "emu"}],
        "annotations": [
            {"image_id": 5, "category_id": 2, "segmentation": square, "iscrowd": 0},
            {"image_id": 5, "category_id": 9, "segmentation": [[3, 3, 6, 3, 6, 6, 3, 6]], "iscrowd": 0},
            {"image_id": 5, "category_id": 2, "segmentation": {"size": [6, 8], "counts": [0, 6, 36, 6]}, "iscrowd": 1},
        ],
    }  # fmt: skip


def drawn(tmp_path, tree, **values):
    for name in "ab":
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{name}.jpg").touch()
    (tmp_path / "tags.csv").write_text(TWO)
    (tmp_path / "truth.json").write_text(json.dumps(tree))
    return open_dataset(DataConfig(images=str(tmp_path / "images"), tags=str(tmp_path / "tags.csv"),
                                   masks=str(tmp_path / "truth.json"), **values))  # fmt: skip


def test_cocos_shapes_are_drawn_crowds_and_overlaps_ignored(tmp_path):
    found = drawn(tmp_path, coco_tree())
    assert found.masks == 2 and found.warnings == ()
    first, second = truths(found)
    assert first == [
        [255, 0, 0, 0, 0, 0, 0, 255],
        [255, 2, 2, 2, 0, 0, 0, 255],
        [255, 2, 2, 2, 0, 0, 0, 255],
        [255, 2, 2, 255, 1, 1, 0, 255],
        [255, 0, 0, 1, 1, 1, 0, 255],
        [255, 0, 0, 1, 1, 1, 0, 255],
    ]
    assert second == np.zeros((6, 8), int).tolist()


def test_a_category_that_is_no_class_is_refused_or_told(tmp_path):
    tree = coco_tree()
    tree["annotations"].append({"image_id": 6, "category_id": 4, "segmentation": [[0, 0, 2, 0, 2, 2]]})
    with pytest.raises(
        DataError, match=r"truth.json names what is no class: 'emu'\. Say what they are in data.mask_val"
    ):
        drawn(tmp_path, tree)
    assert set(np.unique(truths(drawn(tmp_path, tree, mask_values="labels,emu=ignore"))[1])) == {0, 255}
    assert set(np.unique(truths(drawn(tmp_path, tree, mask_values="*=background"))[1])) == {0}


def test_shapes_that_cant_be_drawn_are_told_of_their_photograph_alone(tmp_path):
    tree = coco_tree()
    tree["annotations"].append({"image_id": 6, "category_id": 9, "segmentation": {"size": [6, 8], "counts": [4, 4]}})
    found = drawn(tmp_path, tree)
    with pytest.raises(DataError, match=r"a shape of b\.jpg in .*truth\.json can't be drawn: its runs cover 8 pixels"):
        truths(found)
    tree["images"] = [tree["images"][0], {"id": 6, "file_name": "b.jpg"}]
    assert "does not say the width and height of 'b.jpg'" in drawn(tmp_path, tree).warnings[0]
    tree["images"] = tree["images"][:1]
    assert "1 of 2 photographs are not listed in" in drawn(tmp_path, tree).warnings[0]
