"""tags.py and layouts.py: tag files as they are in the world are read, asked about or refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpl import classes as class_sets
from vpl.classes import ClassSet
from vpl.config import DataConfig
from vpl.edges import onehot, tags
from vpl.edges.datasets import Dataset, open_dataset
from vpl.errors import ConfigError, DataError

NAMES = ("a.jpg", "b.jpg", "c.jpg")
PETS = ClassSet(("cat", "dog", "sofa"))
DOGS = {"a": ("dog", "cat"), "b": ("dog",)}


def opened(tmp_path, text, suffix=".csv", names=NAMES, known=None, **values) -> Dataset:
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    file = tmp_path / f"tags{suffix}"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_dataset(DataConfig(images=str(tmp_path / "images"), tags=str(file), **values), known)


def read(found: Dataset) -> dict[str, tuple[str, ...]]:
    return {sample.id: sample.tags for sample in found.samples}


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".csv", "file_name,tags\na.jpg,dog;cat\nb.jpg,dog\n"),
        (".csv", 'file_name;tags\na.jpg;"dog;cat"\nb.jpg;dog\n'),
        (".csv", "sep=;\nDateiname;file_name;tags\nx;a.jpg;dog|cat\nx;b.jpg;dog\n"),
        (".tsv", "image\tlabels\na.jpg\tdog;cat\nb.jpg\tdog\n"),
        (".txt", "Filename|Class Name\na.jpg|dog,cat\nb.jpg|dog\n"),
        (".csv", "file_name,tags\na.jpg,\"['dog', 'cat']\"\nb.jpg,['dog']\n"),
        (".csv", 'file_name,tags\na.jpg,"[""dog"", ""cat""]"\nb.jpg,"[""dog""]"\n'),
        (".csv", "file_name,tags\na.jpg,['dog' 'cat']\nb.jpg,['dog']\n"),
        (".csv", 'file_name,tags\na.jpg,"{dog,cat}"\nb.jpg,{dog}\n'),
        (".csv", 'file_name,tags\na.jpg,"dog,cat"\nb.jpg,dog\n'),
        (".csv", 'file_name,tags\na.jpg, "dog;cat"\nb.jpg, "dog"\n'),
        (".csv", "file_name,tags\na.jpg,dog|cat\nb.jpg,dog\n"),
        (".csv", "image_id,label\na,dog\nb,dog\na,cat\n"),
        (".csv", "ImageID,Source,LabelName,Confidence\na,x,dog,1\na,x,cat,1.0\nb,x,dog,1\nb,x,cat,0\n"),
        (".csv", "filename, dog, cat, width\na.jpg, 1, 1, 640\nb.jpg, 1, 0, 480\n"),
        (".jsonl", '{"file_name": "a.jpg", "tags": "dog, cat"}\n{"image": "b.jpg", "labels": ["dog"]}\n'),
        (".json", '[{"image": "a.jpg", "labels": ["dog", "cat"]}, {"image": "b.jpg", "labels": "dog"}]'),
        (".json", '{"a.jpg": ["dog", "cat"], "b": ["dog"]}'),
        *[(".csv", f'file_name,tags\na.jpg,"dog{sign}cat"\nb.jpg,dog\n') for sign in "\t\uff1b\uff5c\uff0c\u3001"],
        (".csv", "file_name,tags\na.jpg,\"array(['dog', 'cat'], dtype=object)\"\nb.jpg,Index(['dog'])\n"),
        (".csv", 'file_name,tags\na.jpg,"""dog"", ""cat"""\nb.jpg,"""dog"""\n'),
        (".csv", "file_name,tags\na.jpg,'dog';'cat'\nb.jpg,'dog'\n"),
        (".csv", "file_name,tags\na.jpg,#dog #cat\nb.jpg,#dog\n"),
        (".csv", "file_name,tags\na.jpg,dog;nan;cat;-\nb.jpg,\"['dog', 'None']\"\n"),
        (".jsonl", '{"file_name": "a.jpg", "tags": ["dog|cat"]}\n{"file_name": "b.jpg", "tags": ["dog"]}\n'),
        (".csv", "file_name;dog;cat\na.jpg;1,0;1.00\nb.jpg;1;0,0\n"),
        (".csv", "file_name,dog,cat,fold,Unnamed: 0\na.jpg,yes,Y,0,0\nb.jpg,x,NO,1,1\n"),
        (".csv", "file_name,dog,cat,background\na.jpg,TRUE,WAHR,1\nb.jpg,vrai,nan,1\n"),
    ],
)  # fmt: skip
def test_one_list_in_many_spellings(tmp_path, suffix, text):
    found = opened(tmp_path, text, suffix)
    assert read(found) == DOGS and found.problems == ()


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_codings(tmp_path, coding):
    text = "file_name\ttags\r\na.jpg\tcafé;犬\r\nb.jpg\t犬\r\n"
    assert read(opened(tmp_path, text.encode(coding), ".tsv")) == {"a": ("café", "犬"), "b": ("犬",)}


def test_columns_by_name(tmp_path):
    text = "id,breed,kind,where\n1,pug,dog,a.jpg\n2,siam,cat,b.jpg\n"
    with pytest.raises(DataError, match="expected a header with the columns file_name,tags"):
        opened(tmp_path, text)
    found = opened(tmp_path, text, columns=("image=where", "tags=kind"))
    assert read(found) == {"a": ("dog",), "b": ("cat",)}
    assert read(opened(tmp_path, text, columns=("image=where,tags=breed",))) == {"a": ("pug",), "b": ("siam",)}
    with pytest.raises(DataError, match="has no column 'nothing', or two of them"):
        opened(tmp_path, text, columns=("image=nothing",))
    with pytest.raises(ConfigError, match="expected image=NAME or tags=NAME"):
        opened(tmp_path, text, columns=("where",))


def test_two_columns_of_tags_are_asked_about(tmp_path):
    with pytest.raises(DataError, match="could be in label or class; say where: --columns tags=label"):
        opened(tmp_path, "file_name,label,class\na.jpg,3,dog\n")


def test_numbers_are_no_tags(tmp_path):
    with pytest.raises(DataError, match=r"are numbers \(3, 0\), and CLIP reads words"):
        opened(tmp_path, "file_name,label\na.jpg,3\nb.jpg,0\n")
    assert read(opened(tmp_path, "file_name,label\na.jpg,3\n", known=PETS, aliases=("3=dog",))) == {"a": ("dog",)}


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ('file_name,tags\na.jpg,"dog, cat"\nb.jpg,bird\n', "does 'dog, cat' hold one tag or 2"),
        ("file_name,tags\na.jpg,dog/cat\nb.jpg,dog;cat\n", "does 'dog/cat' hold one tag or 2"),
        ("file_name,tags\na.jpg,dog+cat\nb.jpg,dog;cat\n", "does 'dog+cat' hold one tag or 2"),
        ("file_name,tags\na.jpg,['dog' cat]\nb.jpg,dog\n", "can't be read; write tags as dog;cat"),
        *[
            (f"file_name,tags\na.jpg,dog{sign}cat\nb.jpg,dog\nc.jpg,cat\n", f"say --separator '{sign}' for 2")
            for sign in ("\\", ":", ">", "#", "~", "&", "\u00b7", " - ", " and ", "-", "_", " ")
        ],
        ('file_name,tags\na.jpg,"dog,cat"\nb.jpg,dog;bird\nc.jpg,cat\n', "does 'dog,cat' hold one tag or 2"),
        ("file_name,tags\na.jpg,dog:0.9\nb.jpg,dog\n", "the tag 'dog:0.9' ends with a number"),
        ("file_name,tags\na.jpg,dog (0.93)\nb.jpg,dog\n", "ends with a number; write the tag alone"),
    ],
)
def test_what_could_be_a_separator_is_asked_about_and_made_into_no_class(tmp_path, text, question):
    found = opened(tmp_path, text)
    assert "a" not in read(found) and not any(set(name) & set(",/+[]'") for name in found.classes.names)
    assert question.lower() in found.problems[0].lower() and found.left_out == 1


def test_tags_that_never_stand_alone_are_asked_about_too(tmp_path):
    for sign in "/+&:>":
        text = f"file_name,tags\na.jpg,dog{sign}cat\nb.jpg,dog{sign}bird\nc.jpg,cat{sign}bird\n"
        with pytest.raises(DataError, match="hold one tag or 2"):
            opened(tmp_path, text)
    names = "file_name,tags\na.jpg,tv/monitor\nb.jpg,red car;tv\nc.jpg,blue car;car;rock & roll\n"
    assert opened(tmp_path, names).problems == ()


def test_a_tag_in_a_list_of_json_is_asked_about(tmp_path):
    rows = [{"file_name": "a.jpg", "tags": ["dog, cat"]}, {"file_name": "b.jpg", "tags": ["dog", "cat"]}]
    found = opened(tmp_path, json.dumps(rows), ".json")
    assert found.classes.names == ("cat", "dog") and "hold one tag or 2" in found.problems[0]
    rows[0]["tags"] = ["tench, Tinca tinca"]
    assert opened(tmp_path, json.dumps(rows), ".json").problems == ()


def test_a_photograph_that_stands_twice_in_a_json_object_is_told(tmp_path):
    with pytest.raises(DataError, match=r"the key 'a\.jpg' stands there twice"):
        opened(tmp_path, '{"a.jpg": ["dog"], "a.jpg": ["cat"]}', ".json")


def test_folders_of_tags_are_asked_about_as_other_tags(tmp_path):
    for name in ("dog,cat/a.jpg", "dog/b.jpg", "cat/c.jpg", "dog/red/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    data = DataConfig(format="class-folders", images=str(tmp_path))
    found = open_dataset(data)
    assert found.classes.names == ("cat", "dog") and "hold one tag or 2" in found.problems[1]
    assert found.problems[0] == "'dog/red': a folder in the folder of a tag; expected images there."
    assert read(open_dataset(dataclasses.replace(data, separator=",")))["dog,cat/a"] == ("dog", "cat")


@pytest.mark.parametrize(("names", "kind"), [(("0", "1"), "numbers"), (("n01440764", "n02084071"), "codes")])
def test_folders_of_numbers_and_codes_are_no_tags(tmp_path, names, kind):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    with pytest.raises(DataError, match=f"are {kind} .*CLIP reads words"):
        open_dataset(DataConfig(format="class-folders", images=str(tmp_path)))


def test_codes_of_open_images_are_no_tags(tmp_path):
    with pytest.raises(DataError, match="are codes"):
        opened(tmp_path, "ImageID,LabelName\na,/m/01g317\nb,/m/0k4j\n")


def test_parts_of_a_data_set_as_tags_are_told(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    found = open_dataset(DataConfig(format="class-folders", images=str(tmp_path)))
    assert found.warnings[-1].startswith("the tags are test and train; if these are parts of a data set")


def test_columns_of_counts_are_told_and_no_photograph_is_said_to_be_empty(tmp_path):
    found = opened(tmp_path, "file_name,dog,cat\na.jpg,2,0\nb.jpg,0,1\nc.jpg,1,0\n")
    assert read(found) == {"b": ("cat",), "c": ("dog",)} and found.untagged == ()
    assert found.problems == ("tags.csv:2: '2' in a column of a class; expected 0 or 1.",)
    late = "file_name,dog,cat\n" + "b.jpg,1,\n" * 60 + "a.jpg,,1\n"
    assert read(opened(tmp_path, late))["a"] == ("cat",), "a class that the first rows don't have"


def test_several_columns_of_tags_are_no_one_hot_table(tmp_path):
    with pytest.raises(DataError, match="expected a header with the columns file_name,tags"):
        opened(tmp_path, "file_name,tag1,tag2,tag3\na.jpg,dog,cat,\n")
    with pytest.raises(DataError, match="has 2 columns label; expected one"):
        opened(tmp_path, "file_name,label,label\na.jpg,dog,cat\n")


def test_utf_32_is_told(tmp_path):
    with pytest.raises(DataError, match="is in UTF-32, or no text; save it as UTF-8"):
        opened(tmp_path, "file_name,tags\na.jpg,dog\n".encode("utf-32"))


def test_a_missing_file_below_a_point_is_missing(tmp_path):
    with pytest.raises(DataError, match="there is no image file"):
        opened(tmp_path, "file_name,tags\n./none.jpg,dog\n")


def test_the_answer_to_the_question(tmp_path):
    text = 'file_name,tags\na.jpg,"dog, cat"\nb.jpg,bird\n'
    assert read(opened(tmp_path, text, separator=","))["a"] == ("dog", "cat")
    assert read(opened(tmp_path, text, separator=";"))["a"] == ("dog, cat",)
    assert read(opened(tmp_path, "file_name,tags\na.jpg,dog cat\n", separator=" "))["a"] == ("dog", "cat")


def test_known_classes_decide(tmp_path):
    text = 'file_name,tags\na.jpg,"dog,cat"\nb.jpg,cat dog\nc.jpg,"sofa, red"\n'
    found = opened(tmp_path, text, known=PETS)
    assert read(found) == {"a": ("dog", "cat"), "b": ("cat", "dog")}
    assert found.problems == ("tags.csv:4: unknown tag 'sofa, red'; the closest class is 'sofa'.",)


def test_no_value_is_no_tag(tmp_path):
    text = "file_name,tags\na.jpg,dog\nb.jpg,nan\nc.jpg,NULL\n"
    found = opened(tmp_path, text)
    assert found.classes.names == ("dog",)
    assert found.problems == tuple(
        f"tags.csv:{n}: no tags; expected at least one, or --untagged background." for n in (3, 4)
    )


def test_photographs_without_tags_are_background_where_asked(tmp_path):
    text = "file_name,tags\na.jpg,dog\nb.jpg,\nc.jpg,nan\nd.jpg,dgo\nmissing.jpg,\nb.jpg,\nsub/e.jpg,\nsub/e.jpg,cat\n"
    found = opened(tmp_path, text, names=(*NAMES, "d.jpg", "sub/e.jpg"), known=PETS, untagged="background")
    assert read(found) == {"a": ("dog",), "b": (), "c": (), "sub/e": ("cat",)}
    assert [one.id for one in found.tagged] == ["a", "sub/e"] and found.untagged == ()
    assert "2 photographs without tags are background" in found.notes
    assert [one.partition(": ")[0] for one in found.problems] == ["tags.csv:6", "tags.csv:5"]
    assert found.left_out == 2, "an unknown tag is no background"
    tree = [{"file_name": "a.jpg", "tags": ["dog"]}, {"file_name": "b.jpg", "tags": []}]
    alone = opened(tmp_path, json.dumps(tree), ".json", untagged="background")
    assert read(alone) == {"a": ("dog",), "b": ()} and "1 photograph without tags is background" in alone.notes
    with pytest.raises(DataError, match="no sample of"):
        opened(tmp_path, "file_name,tags\na.jpg,\n", known=PETS, untagged="background")


def test_an_unknown_tag_loses_that_tag_and_is_counted_once(tmp_path):
    text = "file_name,tags\na.jpg,dog;dgo\nb.jpg,dgo\nc.jpg,cat\n"
    found = opened(tmp_path, text, known=PETS)
    assert read(found) == {"a": ("dog",), "c": ("cat",)} and found.left_out == 1
    assert found.problems == ("tags.csv:2: unknown tag 'dgo' (2 photographs); the closest class is 'dog'.",)


# Spellings


def test_aliases_and_the_spellings_of_voc_and_coco(tmp_path):
    text = "file_name,tags\na.jpg,couch;Airplane;tv\nb.jpg,hound;motorbike\n"
    found = opened(tmp_path, text, known=class_sets.voc(), aliases=("hound=dog",))
    assert read(found) == {"a": ("sofa", "aeroplane", "tvmonitor"), "b": ("dog", "motorbike")}
    assert found.problems == () and "the tag 'couch' is read as 'sofa' (1 photograph)." in found.notes
    found = opened(tmp_path, "file_name,tags\na.jpg,sofa;dining_table\n", known=class_sets.coco())
    assert read(found) == {"a": ("couch", "dining table")}
    assert read(opened(tmp_path, text, aliases=("hound=dog,couch=sofa",)))["b"] == ("dog", "motorbike")
    with pytest.raises(ConfigError, match="an alias leads to 'dgo', which is no class; the closest is 'dog'"):
        opened(tmp_path, text, known=PETS, aliases=("hound=dgo",))
    with pytest.raises(ConfigError, match="expected TAG=CLASS"):
        opened(tmp_path, text, aliases=("hound",))


@pytest.mark.parametrize(
    "other", ["café", "cafe\u0301", " café", "café\u200b", "\u00a0café", "\ufeffcafé", "\u202ecafé", "\u2066café\u2069"]
)
def test_what_is_certainly_the_same_tag_is_one(tmp_path, other):
    found = opened(tmp_path, f"file_name,tags\na.jpg,café\nb.jpg,{other}\n")
    assert found.classes.names == ("café",) and not found.warnings


def test_doubled_and_strange_spaces(tmp_path):
    text = "file_name,tags\na.jpg,hot dog\nb.jpg,hot  dog\nc.jpg,hot\u00a0dog\n"
    assert opened(tmp_path, text).classes.names == ("hot dog",)


def test_capitals_are_one_class_and_it_is_said(tmp_path):
    found = opened(tmp_path, "file_name,tags\na.jpg,Car\nb.jpg,car\nc.jpg,car\n")
    assert found.classes.names == ("car",)
    assert found.warnings == ("the tag 'Car' (1 photograph) is read as 'car': CLIP reads both alike.",)


def test_tags_that_look_alike_are_told(tmp_path):
    found = opened(tmp_path, "file_name,tags\na.jpg,car;tree\nb.jpg,cars\nc.jpg,car\n")
    assert found.classes.names == ("car", "cars", "tree") and found.alike == (("car", "cars"),)
    assert found.warnings == (
        "the tags 'car' (2 photographs) and 'cars' (1 photograph) look alike; if they are one class, say --alias "
        "'cars=car'.",
    )


def test_classes_with_the_same_words_are_told(tmp_path):
    same = ClassSet(("cat", "dog"), ("animal", "Animal"))
    found = opened(tmp_path, "file_name,tags\na.jpg,cat\nb.jpg,dog\n", known=same)
    assert found.warnings[0].startswith("CLIP reads the classes 'cat' and 'dog' alike")


@pytest.mark.parametrize(
    "group",
    [("traffic light", "traffic_light"), ("berry", "berries"), ("bicycle", "bicycel"), ("aeroplane", "aeroplan"),
     ("bus", "buses"), ("box", "boxes"), ("Horse", "horses"), ("skateboard", "skate-board")],
)  # fmt: skip
def test_alike(group):
    assert tags.alike(["person", *group, "glass"]) == (group,)


def test_the_classes_of_voc_and_coco_are_not_alike():
    assert tags.alike(class_sets.voc().names) == ()
    assert tags.alike(class_sets.coco().names) == ()


@pytest.mark.slow
@given(st.text(max_size=8), st.text(max_size=8))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_one_edit_agrees_with_the_distance(first, second):
    rows = list(range(len(second) + 1))
    before: list[int] = []
    for i, a in enumerate(first, 1):
        older, before, rows = before, rows, [i]
        for j, b in enumerate(second, 1):
            best = min(before[j] + 1, rows[-1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and first[i - 2] == b:
                best = min(best, older[j - 2] + 1)
            rows.append(best)
    assert tags._one_edit(first, second) == (rows[-1] <= 1)


# One-hot


def one_hot(tmp_path, tree, **options):
    np.save(tmp_path / "tags.npy", tree, **options)
    return (tmp_path / "tags.npy").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64", "bool", ">f4"])
def test_the_field_s_one_hot_file(tmp_path, dtype):
    tree = {"2007_000032": np.array([1, 0, 1], dtype), 2007000039: np.array([0, 1, 0], dtype)}
    names = ("2007_000032.jpg", "2007_000039.jpg")
    data = one_hot(tmp_path, tree)
    found = opened(tmp_path, data, ".npy", names, known=PETS)
    assert read(found) == {"2007_000032": ("cat", "sofa"), "2007_000039": ("dog",)} and found.problems == ()
    with pytest.raises(DataError, match=r"holds vectors of 3 numbers and no names.*--classes"):
        opened(tmp_path, data, ".npy", names)
    with pytest.raises(DataError, match="expected 20 numbers 0 or 1"):
        opened(tmp_path, data, ".npy", names, known=class_sets.voc())


def test_images_of_a_one_hot_file_may_be_empty(tmp_path):
    found = opened(tmp_path, one_hot(tmp_path, {"a": np.zeros(3), "b": np.eye(3)[0]}), ".npy", known=PETS)
    assert read(found) == {"b": ("cat",)} and [one.id for one in found.untagged] == ["a"] and not found.problems


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (self.mark, "w"))


def test_a_pickle_is_never_run(tmp_path):
    mark = tmp_path / "run"
    for tree in ({"a": Evil(str(mark))}, Evil(str(mark)), {"a": np.array([Evil(str(mark))], object)}):
        data = one_hot(tmp_path, tree)
        with pytest.raises(DataError, match=r"it names .*open; .*|it holds no dict|names to vectors"):
            opened(tmp_path, data, ".npy", known=PETS)
        assert not mark.exists()


def test_any_word_but_those_of_arrays_is_refused(tmp_path):
    head = one_hot(tmp_path, {"a": np.eye(3)[0]})
    head = head[: head.index(b"\n") + 1]
    for module, name in (("os", "system"), ("builtins", "eval"), ("numpy", "load"), ("numpy.core.multiarray", "where"),
                         ("_codecs", "decode"), ("vpl.edges.onehot", "read")):  # fmt: skip
        (tmp_path / "tags.npy").write_bytes(head + f"c{module}\n{name}\n(S'x'\ntR.".encode())
        with pytest.raises(DataError, match=f"it names {module}.{name}"):
            onehot.read(tmp_path / "tags.npy")


@given(st.binary(max_size=60), st.integers(0, 400))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_damaged_one_hot_files(tmp_path_factory, noise, at):
    folder = tmp_path_factory.mktemp("npy")
    data = bytearray(one_hot(folder, {"a": np.eye(3)[0], "b": np.eye(3)[1]}))
    data[at : at + len(noise)] = noise
    (folder / "tags.npy").write_bytes(data)
    with contextlib.suppress(DataError):
        assert all(one.ndim <= 2 for one in onehot.read(folder / "tags.npy").values())


def test_arrays_that_promise_more_than_they_hold_cost_nothing(tmp_path):
    head = one_hot(tmp_path, {"a": np.eye(3)[0]})
    tree = {"a": np.eye(3)[0]}
    packed = pickle.dumps(np.array(tree, object), protocol=2).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85")
    (tmp_path / "tags.npy").write_bytes(head[: head.index(b"\n") + 1] + packed)
    with pytest.raises(DataError, match="an array of shape"):
        onehot.read(tmp_path / "tags.npy")


# Names


def test_the_same_name_in_two_folders_is_two_photographs(tmp_path):
    names = ("day1/0001.jpg", "day2/0001.jpg")
    found = opened(tmp_path, "file_name,tags\nday1/0001.jpg,car\nday2/0001.jpg,tree\n", names=names)
    assert read(found) == {"day1/0001": ("car",), "day2/0001": ("tree",)} and found.problems == ()


def test_names_as_other_machines_write_them(tmp_path):
    images = tmp_path / "images"
    names = ("sub/a.jpg", "b.jpg", "c.JPG")
    for name in ("sub/a.jpg", "./sub//a.jpg", "sub\\a.jpg", "images/sub/a.jpg", "sub/a", f"{images}/sub/a.jpg",
                 "/elsewhere/images/sub/a.jpg", "C:\\data\\images\\sub\\a.jpg"):  # fmt: skip
        found = opened(tmp_path, f"file_name,tags\n{name},dog\nb,cat\nc.JPG,cat\n", names=names)
        assert read(found) == {"sub/a": ("dog",), "b": ("cat",), "c": ("cat",)}, name
    for name in ("/elsewhere/a.jpg", "other/b.jpg", "/elsewhere/images/../../b.jpg", "c:b.jpg"):
        found = opened(tmp_path, f"file_name,tags\n{name},dog\nb.jpg,cat\n", names=names)
        assert read(found) == {"b": ("cat",)} and len(found.problems) == 1, name


def test_a_name_without_suffix_that_could_be_two_is_asked_about(tmp_path):
    found = opened(tmp_path, "file_name,tags\na,dog\nb,cat\n", names=("a.jpg", "a.png", "b.jpg"))
    assert read(found) == {"b": ("cat",)} and "could be a.jpg or a.png; write the suffix" in found.problems[0]


def test_names_that_differ_in_case_alone_are_refused_where_they_are_two_files(tmp_path):
    """On a disk that folds case the mask of the one would take the place of the other's."""
    found = opened(tmp_path, "file_name,tags\na.jpg,dog\nA.jpg,cat\n", names=("a.jpg", "A.jpg"))
    assert read(found) == {"a": ("dog",)}
    assert found.problems == (
        "tags.csv:3: the name 'A' was taken by tags.csv:2 as 'a', the same on disks that fold case or Unicode forms; "
        "rename one of the two images.",
    )


def test_a_disk_that_folds_case_shows_one_file_under_two_names(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "images" / "A.jpg").hardlink_to(tmp_path / "images" / "a.jpg")  # one file, as such a disk shows it
    found = opened(tmp_path, "file_name,tags\na.jpg,dog\nA.jpg,cat\n", names=("a.jpg",))
    assert read(found) == {"a": ("dog", "cat")} and found.problems == ()


def test_system_files_are_passed_over(tmp_path):
    for name in ("dog/a.jpg", "dog/Thumbs.db", "dog/desktop.ini", "dog/.DS_Store", "dog/._a.jpg", "Thumbs.db",
                 "desktop.ini", "__MACOSX/dog/a.jpg", "@eaDir/a.jpg", "lost+found/a.jpg", "#recycle/a.jpg",
                 "System Volume Information/a.jpg", "ehthumbs_vista.db", "dog/a.jpg:Zone.Identifier", "dog/a.AAE",
                 "dog/a.xmp", "dog/Picasa.ini"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = open_dataset(DataConfig(format="class-folders", images=str(tmp_path)))
    assert read(found) == {"dog/a": ("dog",)} and found.problems == ()


def test_voc_lists_name_images_with_spaces(tmp_path):
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, tag in (("IMG", "cat"), ("IMG (2)", "boat"), ("IMG (3)", "dog")):
        (tmp_path / "JPEGImages").mkdir(exist_ok=True)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "JPEGImages" / f"{name}.{'png' if '3' in name else 'jpg'}").touch()
        text = f"<annotation><object><name>{tag}</name></object></annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
    (lists / "train.txt").write_text("IMG (2)\nIMG (3)  1\nJPEGImages/IMG.jpg SegmentationClass/IMG.png\n")
    found = open_dataset(DataConfig(format="voc", images=str(tmp_path), split="train"))
    assert read(found) == {"IMG (2)": ("boat",), "IMG (3)": ("dog",), "IMG": ("cat",)} and found.problems == ()
    (lists / "train.txt").write_text("IMG (2).jpg\nIMG (3).png -1\nIMG (9)\nIMG (9).jpg\n")
    found = open_dataset(DataConfig(format="voc", images=str(tmp_path), split="train"))
    assert read(found) == {"IMG (2)": ("boat",), "IMG (3)": ("dog",)}, "never the image of another name"
    assert all("there is no annotation" in one and "IMG (9).xml" in one for one in found.problems)


# COCO's numbers, and truth masks


def coco(tmp_path, categories, used=(), **values):
    images = [{"id": n, "file_name": name} for n, name in enumerate(NAMES)]
    annotations = [{"image_id": 0, "category_id": one} for one in used]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    return opened(tmp_path, json.dumps(tree), ".json", format="coco", **values)


def test_classes_are_numbered_as_the_categories_are(tmp_path):
    found = coco(tmp_path, [{"id": 2, "name": "ant"}, {"id": 1, "name": "zebra"}, {"id": 3, "name": "bee"}], (2, 1))
    assert found.classes.names == ("zebra", "ant", "bee")
    gaps = coco(tmp_path, [{"id": 0, "name": "pets"}, {"id": 7, "name": "dog"}, {"id": 3, "name": "emu"}], (7, 3))
    assert gaps.classes.names == ("emu", "dog")
    assert class_sets.numbering(gaps.classes) == "0 background, 1 emu, 2 dog, 255 ignored"


def test_one_id_of_two_categories_is_refused(tmp_path):
    with pytest.raises(DataError, match="gives the category id 1 to 'dog' and to 'cat'"):
        coco(tmp_path, [{"id": 1, "name": "dog"}, {"id": 1, "name": "cat"}], (1,))


def test_a_list_that_says_that_there_is_nothing_is_called_so(tmp_path):
    with pytest.raises(DataError, match="says that there is nothing on any of its 3 photographs"):
        coco(tmp_path, [{"id": 1, "name": "dog"}])


def test_images_without_objects_are_no_mistake(tmp_path):
    found = coco(tmp_path, [{"id": 1, "name": "dog"}], (1,))
    assert read(found) == {"a": ("dog",)} and found.problems == () and found.left_out == 0
    assert [one.id for one in found.untagged] == ["b", "c"]
    assert found.notes == ("without any object, as the list says: 2 photographs (b, …).",)


def test_masks_that_are_not_found_are_told(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "a_mask.png").touch()
    text = "file_name,tags\na.jpg,dog\nsub/b.jpg,dog\nc.jpg,dog\n"
    names = ("a.jpg", "sub/b.jpg", "c.jpg")
    none = opened(tmp_path, text, names=names, masks=str(masks))
    assert none.masks == 0 and none.warnings == (
        f"no truth mask was found in {masks}: looked for a.png, and it holds 'a_mask.png'. Nothing is evaluated; name "
        "each mask as its photograph, as PNG.",
    )
    (masks / "a.png").touch()
    (masks / "b.png").touch()
    some = opened(tmp_path, text, names=names, masks=str(masks))
    assert some.masks == 2 and [one.mask for one in some.samples] == [masks / "a.png", masks / "b.png", None]
    assert some.warnings == (
        f"1 of 3 photographs have no truth mask in {masks} (such as c.png); scores tell of the others alone.",
    )
