"""datasets.py: four layouts give the same samples; every line that can't be used is told by file and number."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from vpl import classes as class_sets
from vpl.classes import ClassSet
from vpl.config import DataConfig
from vpl.edges.datasets import Sample, inside, open_dataset
from vpl.edges.layouts import MOST_LINE_BYTES
from vpl.errors import DataError

COCO128 = Path(os.environ.get("VPL_COCO128") or Path(__file__).parents[3] / "shared" / "data" / "coco128")
PETS = ClassSet(("cat", "dog", "sofa"))


def touch(*paths):
    """Empty files stand for images: no reader opens one."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def folder_data(tmp_path, text, names=("a.jpg", "b.jpg", "c.jpg"), suffix=".csv", **values):
    touch(*(tmp_path / "images" / name for name in names))
    tags = tmp_path / f"tags{suffix}"
    tags.write_bytes(text if isinstance(text, bytes) else text.encode())
    return DataConfig(images=str(tmp_path / "images"), tags=str(tags), **values)


# Folder with CSV or JSONL


def test_csv(tmp_path):
    data = folder_data(tmp_path, "file_name,tags\nb.jpg,dog;sofa\na.jpg, cat ;; cat\n\nc.jpg,dog\n")
    found = open_dataset(data)
    images = tmp_path / "images"
    assert found.samples == (
        Sample("b", images / "b.jpg", ("dog", "sofa"), None),
        Sample("a", images / "a.jpg", ("cat",), None),
        Sample("c", images / "c.jpg", ("dog",), None),
    )
    assert found.classes.names == ("cat", "dog", "sofa")
    assert found.problems == ()


def test_csv_with_bom_quotes_crlf_and_other_columns(tmp_path):
    text = b'\xef\xbb\xbftags, file_name,url\r\n"dog;cat","a,1.jpg",x\r\n"say ""hi""",b.jpg,\r\n'
    found = open_dataset(folder_data(tmp_path, text, ("a,1.jpg", "b.jpg")))
    assert [(one.image.name, one.tags) for one in found.samples] == [
        ("a,1.jpg", ("dog", "cat")),
        ("b.jpg", ('say "hi"',)),
    ]


def test_jsonl_tells_the_same_as_csv(tmp_path):
    csv = open_dataset(folder_data(tmp_path, "file_name,tags\na.jpg,dog;cat\nb.jpg,sofa\n"))
    lines = '{"file_name": "a.jpg", "tags": ["dog", "cat"]}\n{"tags": "sofa", "file_name": "b.jpg", "more": 1}\n'
    assert open_dataset(folder_data(tmp_path, lines, suffix=".jsonl")) == csv


def test_masks_are_found_by_stem_and_may_be_missing(tmp_path):
    touch(tmp_path / "masks" / "a.png")
    data = folder_data(tmp_path, "file_name,tags\na.jpg,dog\nb.jpg,cat\n", masks=str(tmp_path / "masks"))
    assert [one.mask for one in open_dataset(data).samples] == [tmp_path / "masks" / "a.png", None]


def test_names_with_spaces_unicode_and_folders(tmp_path):
    names = ("my cat.jpg", "Hündin 犬.jpg", "sub/deep/x.y.jpg", "\u202fnarrow.jpg")
    text = "file_name,tags\n" + "".join(f"{name},dog\n" for name in names)
    found = open_dataset(folder_data(tmp_path, text, names))
    assert [one.id for one in found.samples] == ["my cat", "Hündin 犬", "sub/deep/x.y", "\u202fnarrow"]
    assert all(one.image.is_file() for one in found.samples)


def test_every_problem_is_told_by_line(tmp_path):
    outside = tmp_path / "outside.jpg"
    touch(outside, tmp_path / "images" / "sub" / "a.png")
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / "link.jpg").symlink_to(outside)
    lines = [
        b"file_name,tags",
        b"a.jpg,dog",
        b"b.jpg,dgo;cat;soffa",
        b"missing.jpg,dog",
        b"sub/a.png,dog",
        b"b.jpg, ; ",
        b"b.jpg,d\xf6g",
        b"b.jpg,dog,cat",
        b'"b.jpg,dog',
        b"../outside.jpg,dog",
        b"/etc/passwd,dog",
        b"link.jpg,dog",
        b"sub,dog",
        b"c.jpg,cat",
    ]
    found = open_dataset(folder_data(tmp_path, b"\n".join(lines)), classes=PETS)
    assert [(one.id, one.tags) for one in found.samples] == [
        ("a", ("dog",)), ("b", ("cat",)), ("sub/a", ("dog",)), ("c", ("cat",)),
    ]  # fmt: skip
    assert found.left_out == 5
    images = tmp_path / "images"
    assert found.problems == (
        "tags.csv:7: not UTF-8 (byte 7 of the line); save the file as UTF-8.",
        "tags.csv:8: 3 columns; expected 2 columns, as in file_name,tags.",
        "tags.csv:9: broken quotes; expected 2 columns, as in file_name,tags.",
        f"tags.csv:4: there is no image file {images}/missing.jpg.",
        "tags.csv:6: no tags; expected at least one, or --untagged background.",
        "tags.csv:10: the file name '../outside.jpg' climbs out of its folder by '..'; "
        f"expected a name inside {images}.",
        f"tags.csv:11: the file name '/etc/passwd' is absolute; expected a name inside {images}.",
        f"tags.csv:12: the file name 'link.jpg' is a link out of {images}; copy the file into the folder.",
        f"tags.csv:13: there is no image file {images}/sub.",
        "tags.csv:3: unknown tag 'dgo'; the closest class is 'dog'.",
        "tags.csv:3: unknown tag 'soffa'; the closest class is 'sofa'.",
    )


def test_jsonl_problems(tmp_path):
    lines = [
        "{",
        "[1]",
        '{"file_name": "a.jpg"}',
        '{"file_name": 7, "tags": ["dog"]}',
        '{"file_name": "a.jpg", "tags": ["dog", 3]}',
        "[" * 100_000,
        "9" * 10_000,
        '{"file_name": "\\ud800.jpg", "tags": ["dog"]}',
        '{"file_name": "a.jpg", "tags": ["\\u0000"]}',
        '{"file_name": "b.jpg", "tags": ["dog"]}',
    ]
    found = open_dataset(folder_data(tmp_path, "\n".join(lines), suffix=".jsonl"))
    assert [one.id for one in found.samples] == ["b"]
    expected = 'tags.jsonl:{}: expected {{"file_name": "a.jpg", "tags": ["dog", "sofa"]}}.'
    assert found.problems[0].startswith("tags.jsonl:1: no valid JSON")
    assert list(found.problems[1:5]) == [expected.format(number) for number in (2, 3, 4, 5)]
    assert [one.split(":")[1] for one in found.problems] == [str(number) for number in range(1, 10)]


def test_a_tag_file_without_header_is_refused(tmp_path):
    for text in ("a.jpg,dog\n", "", "a,b\nc,d\n", "file_name,tags,tags\n", "file_name,label,class\n"):
        with pytest.raises(DataError, match=r"expected a header with the columns file_name,tags|has 2 columns tags"):
            open_dataset(folder_data(tmp_path, text))


def test_when_nothing_is_left_the_error_tells_the_first_problems(tmp_path):
    text = "file_name,tags\n" + "".join(f"{number}.jpg,dog\n" for number in range(9))
    with pytest.raises(
        DataError, match=r"no sample of .* can be used \(9 problems\)\. tags.csv:2: .*0.jpg.*4.jpg"
    ) as told:
        open_dataset(folder_data(tmp_path, text))
    assert "5.jpg" not in str(told.value)


def test_missing_settings_are_told(tmp_path):
    good = folder_data(tmp_path, "file_name,tags\na.jpg,dog\n")
    cases = [
        (DataConfig(), "data.images is empty; set it to the folder"),
        (DataConfig(images=str(tmp_path / "no")), "data.images is '.*', which is no folder; check the path"),
        (DataConfig(images=good.images), "data.tags is empty; set it to a CSV or JSONL of tags"),
        (DataConfig(images=good.images, tags="no.csv"), "data.tags is 'no.csv', which is no file"),
        (DataConfig(images=good.images, tags=good.tags, masks="no"), "data.masks is 'no', which is no folder"),
        (DataConfig(images=good.images, tags=good.tags, classes="scenes"), "only the scenes data set brings"),
        (DataConfig(images=good.images, tags=good.tags, classes="no.txt"), "the classes file no.txt can't be read"),
        (
            DataConfig(images=good.images, tags=str(tmp_path / "images" / "a.jpg")),
            r"expected one of \.csv, \.tsv, \.txt",
        ),
        (DataConfig(images="x" * 5000), "which is no folder"),
        (DataConfig(images="\0"), "which is no folder"),
    ]
    for data, words in cases:
        with pytest.raises(DataError, match=words):
            open_dataset(data)


def test_class_sets(tmp_path):
    data = folder_data(tmp_path, "file_name,tags\na.jpg,dog\n")
    (tmp_path / "classes.txt").write_text("sofa\ndog\n")
    assert open_dataset(data).classes.names == ("dog",)
    assert open_dataset(DataConfig(images=data.images, tags=data.tags, classes="voc")).classes == class_sets.voc()
    assert open_dataset(DataConfig(images=data.images, tags=data.tags, classes="coco")).classes == class_sets.coco()
    named = DataConfig(images=data.images, tags=data.tags, classes=str(tmp_path / "classes.txt"))
    assert open_dataset(named).classes.names == ("sofa", "dog")
    assert open_dataset(DataConfig(images=data.images, tags=data.tags, classes="scenes"), PETS).classes is PETS


def test_background_is_no_tag(tmp_path):
    found = open_dataset(folder_data(tmp_path, "file_name,tags\na.jpg,background\nb.jpg,dog\n"))
    assert found.problems[0].startswith("tags.csv:2: the tag 'background' can't name a class")


def test_more_classes_than_labels_is_told(tmp_path):
    tags = ";".join(f"t{number}" for number in range(255))
    with pytest.raises(DataError, match="has 255 classes; expected 1 to 254"):
        open_dataset(folder_data(tmp_path, f"file_name,tags\na.jpg,{tags}\n"))


@pytest.mark.slow
def test_long_lines_names_and_tags_stay_cheap(tmp_path):
    long = "x" * 251 + ".jpg"
    lines = [
        "file_name,tags",
        "a.jpg," + "y" * (2 * MOST_LINE_BYTES),
        f"{long},dog",
        "z" * 300 + ".jpg,dog",
        "x" * 252 + ".b,dog",
        "b.jpg," + "q" * 500_000,
        "b.jpg," + ";".join(f"tag{number}" for number in range(50_000)),
        "c.jpg,dog",
    ]
    start = time.process_time()
    found = open_dataset(folder_data(tmp_path, "\n".join(lines), (long, "x" * 252 + ".b", "b.jpg", "c.jpg")), PETS)
    assert time.process_time() - start < 5
    assert [one.id for one in found.samples] == ["x" * 251, "c"]
    assert found.problems[0] == "tags.csv:2: the line is longer than 1048576 bytes."
    assert "can't be used (File name too long)" in found.problems[1]
    assert "is too long for its mask's file name" in found.problems[2]
    assert found.problems[-1] == "and 49801 more unknown tags."
    assert max(map(len, found.problems)) < 400


def test_order_and_sharing(tmp_path):
    names = [f"{number:05d}.jpg" for number in range(500)]
    text = "file_name,tags\n" + "".join(f"{name},dog;cat\n" for name in reversed(names))
    found = open_dataset(folder_data(tmp_path, text, names))
    assert [one.image.name for one in found.samples] == names[::-1]
    assert len({id(one.tags) for one in found.samples}) == 1


# Class folders


def test_class_folders(tmp_path):
    root, masks = tmp_path / "images", tmp_path / "masks"
    touch(root / "dog" / "2.jpg", root / "dog" / "1.PNG", root / "cat" / "1.jpg", root / ".hidden" / "1.jpg")
    touch(root / "dog" / "notes.txt", root / "loose.jpg", root / "dgo" / "1.jpg", masks / "dog" / "2.png")
    (root / "dog" / "out.jpg").symlink_to("/etc/passwd")
    (root / "sofa").symlink_to("/etc")
    data = DataConfig(format="class-folders", images=str(root), masks=str(masks))
    found = open_dataset(data, PETS)
    assert found.samples == (
        Sample("cat/1", root / "cat" / "1.jpg", ("cat",), None),
        Sample("dog/1", root / "dog" / "1.PNG", ("dog",), None),
        Sample("dog/2", root / "dog" / "2.jpg", ("dog",), masks / "dog" / "2.png"),
    )
    assert found.problems == (
        "'dog/notes.txt': no image file by its suffix.",
        f"'dog/out.jpg': the file name 'dog/out.jpg' is a link out of {root}; copy the file into the folder.",
        "'loose.jpg': expected a folder named by its tag, with images in it.",
        f"'sofa': the file name 'sofa' is a link out of {root}; copy the file into the folder.",
        "'dgo/1.jpg': unknown tag 'dgo'; the closest class is 'dog'.",
    )


def test_file_names_that_are_no_unicode(tmp_path):
    (tmp_path / "dog").mkdir()
    try:
        with open(os.fsencode(tmp_path / "dog") + b"/\xff.jpg", "wb"):  # noqa: PTH123
            pass
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    touch(tmp_path / "dog" / "a.jpg")
    found = open_dataset(DataConfig(format="class-folders", images=str(tmp_path)))
    assert [one.id for one in found.samples] == ["dog/a"]
    assert "is empty or holds control characters" in found.problems[0] and found.problems[0].encode()


# PASCAL VOC


def annotation(*names, extra=""):
    objects = "".join(f"<object><name>{name}</name><part><name>head</name></part></object>" for name in names)
    return f"<annotation><folder>VOC2012</folder>{extra}{objects}</annotation>"


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2012"
    for name in ("one", "two", "three"):
        touch(root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
    (root / "Annotations").mkdir()
    (root / "Annotations" / "one.xml").write_text(annotation("dog", "sofa", "dog"))
    (root / "Annotations" / "two.xml").write_text(annotation("cat"))
    (root / "Annotations" / "three.xml").write_text(
        annotation("person", extra="<object><difficult>1</difficult><name>\n cat\n</name></object>")
    )
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("two\none\n")
    (lists / "val.txt").write_text("three\n")
    return root


def voc_data(root, split="train", **values):
    return DataConfig(format="voc", images=str(root), split=split, classes="voc", **values)


def test_voc(voc):
    found = open_dataset(voc_data(voc))
    images, masks = voc / "JPEGImages", voc / "SegmentationClass"
    assert found.samples == (
        Sample("two", images / "two.jpg", ("cat",), masks / "two.png"),
        Sample("one", images / "one.jpg", ("dog", "sofa"), masks / "one.png"),
    )
    assert found.problems == () and found.classes == class_sets.voc()
    assert open_dataset(voc_data(voc, "val")).samples[0].tags == ("cat", "person")


def test_voc_falls_back_to_the_main_lists(voc):
    touch(voc / "ImageSets" / "Main" / "trainval.txt")
    (voc / "ImageSets" / "Main" / "trainval.txt").write_text("one\n")
    assert [one.id for one in open_dataset(voc_data(voc, "trainval")).samples] == ["one"]


def test_voc_train_aug_as_ids_and_as_pairs(voc):
    listed = voc / "ImageSets" / "Segmentation" / "train_aug.txt"
    listed.write_text("one\nthree\n")
    plain = open_dataset(voc_data(voc, "train_aug"))
    assert [one.mask.parent.name for one in plain.samples] == ["SegmentationClass"] * 2
    touch(voc / "SegmentationClassAug" / "one.png")
    augmented = open_dataset(voc_data(voc, "train_aug"))
    assert [one.mask for one in augmented.samples] == [voc / "SegmentationClassAug" / "one.png", None]
    listed.write_text(
        "/JPEGImages/one.jpg /SegmentationClassAug/one.png\nJPEGImages/three.jpg SegmentationClassAug/three.png\n"
    )
    assert open_dataset(voc_data(voc, "train_aug")) == augmented
    assert open_dataset(voc_data(voc)).samples[1].mask == voc / "SegmentationClass" / "one.png"


def test_voc_with_other_masks(voc, tmp_path):
    touch(tmp_path / "masks" / "one.png")
    found = open_dataset(voc_data(voc, masks=str(tmp_path / "masks")))
    assert [one.mask for one in found.samples] == [None, tmp_path / "masks" / "one.png"]


def test_voc_splits_are_named_when_one_is_missing(voc):
    for split in ("", "test", "../train", "x" * 5000, "a\0b"):
        with pytest.raises(DataError, match=r"expected one of train, val, trainval, train_aug \(here: train, val\)"):
            open_dataset(voc_data(voc, split))


def test_voc_problems(voc):
    entity = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "dog">]>' + annotation("&x;")
    documents = {
        "entity": entity.encode(),
        "outer": b'<!DOCTYPE a SYSTEM "file:///etc/passwd">' + annotation("dog").encode(),
        "broken": b"<annotation><object>",
        "empty": b"",
        "bare": annotation().encode(),
        "coding": b'<?xml version="1.0" encoding="nonsense"?>' + annotation("dog").encode(),
        "long": annotation("dog", extra=" " * 2**20).encode(),
        "unknown": annotation("dgo").encode(),
    }
    for name, content in documents.items():
        touch(voc / "JPEGImages" / f"{name}.jpg")
        (voc / "Annotations" / f"{name}.xml").write_bytes(content)
    names = [*documents, "nothing", "../../escape", "/JPEGImages/../x.jpg", "one", "one"]
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(names))
    found = open_dataset(voc_data(voc))
    assert [one.id for one in found.samples] == ["one"]
    words = {
        1: "declares a document type or entity; remove it",
        2: "declares a document type or entity; remove it",
        3: "no valid XML",
        4: "no valid XML",
        6: "no valid XML",
        7: "is longer than 1048576 bytes",
        9: "there is no annotation",
        10: "there is no annotation",
        11: "there is no annotation",
        8: "unknown tag 'dgo'; the closest class is 'dog'",
    }
    assert len(found.problems) == found.left_out == len(words)
    for problem, (line, wanted) in zip(found.problems, words.items(), strict=True):
        assert wanted in problem and problem.startswith(f"train.txt:{line}: ")
    assert [one.id for one in found.untagged] == ["bare"]
    assert found.notes == ("without any object, as the list says: 1 photograph (bare, …).",)


# COCO


def coco_file(tmp_path, tree, name="instances.json"):
    path = tmp_path / name
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


def coco_tree():
    return {
        "info": {"year": 2017},
        "images": [{"id": 7, "file_name": "b.jpg", "height": 4}, {"id": 3, "file_name": "a.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 18, "iscrowd": 0, "segmentation": [[1.5, 2.5]], "area": 1e3},
            {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 1, "segmentation": {"counts": [1], "size": [4, 4]}},
            {"id": 3, "image_id": 3, "category_id": 1},
            {"id": 4, "image_id": 3, "category_id": 18},
        ],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "person"}],
    }


def coco_data(tmp_path, tree, **values):
    touch(*(tmp_path / "images" / name for name in ("a.jpg", "b.jpg", "c.jpg")))
    return DataConfig(
        format="coco", images=str(tmp_path / "images"), tags=str(coco_file(tmp_path, tree)), classes="coco", **values
    )


def test_coco(tmp_path):
    touch(tmp_path / "masks" / "a.png")
    found = open_dataset(coco_data(tmp_path, coco_tree(), masks=str(tmp_path / "masks")))
    images = tmp_path / "images"
    assert found.samples == (
        Sample("b", images / "b.jpg", ("person",), None),
        Sample("a", images / "a.jpg", ("dog", "person"), tmp_path / "masks" / "a.png"),
    )
    assert found.problems == () and found.classes == class_sets.coco()


def test_coco_problems(tmp_path):
    tree = coco_tree()
    tree["images"] += [
        {"id": 9, "file_name": "c.jpg"},
        {"id": 7, "file_name": "d.jpg"},
        {"id": [1], "file_name": "e"},
        5,
    ]
    tree["annotations"] += [{"image_id": 99, "category_id": 1}, {"image_id": 3, "category_id": 99}, {"image_id": True}]
    tree["categories"] += [{"id": 5}, None]
    found = open_dataset(coco_data(tmp_path, tree))
    assert [one.id for one in found.samples] == ["b", "a"]
    assert found.problems == (
        "instances.json: categories[2]: expected an object with id and name.",
        "instances.json: categories[3]: expected an object with id and name.",
        "instances.json: images[3]: the id '7' was used before; give each image its own.",
        "instances.json: images[4]: expected an object with id and file_name.",
        "instances.json: images[5]: expected an object with id and file_name.",
        "instances.json: annotations[4]: there is no image of id '99'.",
        "instances.json: annotations[5]: there is no category of id '99'.",
        "instances.json: annotations[6]: expected an object with image_id and category_id.",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no valid JSON"),
        ("[]", "is no JSON object"),
        ("{}", "has no list 'categories'"),
        ('{"categories": {}, "images": [], "annotations": []}', "has no list 'categories'"),
        ('{"categories": [], "images": 3, "annotations": []}', "has no list 'images'"),
        ('{"categories": [], "images": []}', "has no list 'annotations'"),
        ('{"categories": [], "images": [], "annotations": []}', "Nothing was found there"),
        ("[" * 100_000, "is no valid JSON"),
        ('{"images": ' + "9" * 10_000 + "}", "is no valid JSON"),
    ],
)
def test_coco_files_of_wrong_shapes(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        open_dataset(coco_data(tmp_path, text))


# Path safety


def test_inside(tmp_path):
    root = tmp_path / "root"
    touch(root / "sub" / "a.jpg", tmp_path / "secret.jpg")
    (root / "in.jpg").symlink_to(root / "sub" / "a.jpg")
    (root / "folder").symlink_to(root / "sub")
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (tmp_path / "rootlink").symlink_to(root)
    for name in ("sub/a.jpg", "./sub//a.jpg", "in.jpg", "folder/a.jpg", "new/b.jpg", "..a", "a..b", "a:b"):
        assert inside(root, name) == root / name
    assert inside(tmp_path / "rootlink", "in.jpg") == tmp_path / "rootlink" / "in.jpg"
    refused = {
        "": "is empty or holds control characters",
        "a\0b": "is empty or holds control characters",
        "a\nb": "is empty or holds control characters",
        "/etc/passwd": "is absolute; expected a name inside",
        "C:\\x": "is absolute",
        "\\\\host\\x": "is absolute",
        "..": r"climbs out of its folder by '\.\.'",
        "sub/../../secret.jpg": "climbs out",
        "sub\\..\\..\\x": "climbs out",
        ".": "climbs out",
        "out/secret.jpg": "is a link out of .*; copy the file into the folder",
        "out": "is a link out of",
        "loop": "can't be used",
        "sub/a.jpg/b": r"can't be used \(Not a directory\)",
        "x" * 256: r"can't be used \(File name too long\)",
    }
    for name, words in refused.items():
        with pytest.raises(DataError, match=words):
            inside(root, name)


# Real data


@pytest.mark.skipif(not COCO128.is_dir(), reason=f"no photographs at {COCO128}: set VPL_COCO128")
def test_coco128():
    data = DataConfig(
        images=str(COCO128 / "images" / "val"),
        tags=str(COCO128 / "val.csv"),
        masks=str(COCO128 / "masks" / "val"),
        classes=str(COCO128 / "classes.txt"),
    )
    found = open_dataset(data)
    assert len(found.samples) == 100 and found.problems == () and len(found.classes) == 76
    assert all(one.mask is not None for one in found.samples)
    assert np.unique([len(one.tags) for one in found.samples]).max() == 10
