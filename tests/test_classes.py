"""classes.py: VOC's and COCO's sets, the VOC palette, classes files of three kinds, and what a wrong one says."""

import pytest

from vpl import classes
from vpl.classes import BACKGROUND_WORDS, ClassSet
from vpl.errors import DataError

RED, GREEN = (128, 0, 0), (0, 128, 0)


def written(tmp_path, suffix, content):
    path = tmp_path / f"classes{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Built-in sets


def test_the_palette_is_vocs():
    palette = classes.voc_palette()
    assert len(palette) == len(set(palette)) == 256
    assert palette[:21] == [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
        (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128),
        (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
    ]  # fmt: skip
    assert palette[255] == (224, 224, 192)


def test_voc():
    voc = classes.voc()
    assert len(voc) == 20 and list(voc.names) == sorted(voc.names)
    assert voc.names[0] == "aeroplane" and voc.names[-1] == "tvmonitor"
    words = dict(zip(voc.names, voc.words, strict=True))
    assert words["bird"] == "bird avian" and words["chair"] == "chair seat"
    assert words["person"] == "person with clothes,people,human" and words["tvmonitor"] == "tvmonitor screen"
    assert voc.background == BACKGROUND_WORDS and len(BACKGROUND_WORDS) == 25 and voc.dropped == ()
    assert voc.palette() == classes.voc_palette()


def test_coco():
    coco = classes.coco()
    assert len(coco) == 80 and coco.names[0] == "person" and coco.names[-1] == "toothbrush"
    assert len(coco.background) == 23
    assert not {"keyboard", "sign"} & set(coco.background)


# ClassSet


def test_defaults_of_a_class_set():
    found = ClassSet(("dog", "Sky"))
    assert found.words == ("dog", "Sky") and found.colors == (RED, GREEN)
    assert found.dropped == ("sky",) and "sky" not in found.background and len(found.background) == 24
    assert found.index("Sky") == 1


def test_the_palette_carries_own_colors():
    palette = ClassSet(("dog", "cat"), colors=((1, 2, 3), (4, 5, 6))).palette()
    assert palette[:4] == [(0, 0, 0), (1, 2, 3), (4, 5, 6), (128, 128, 0)] and len(palette) == 256


def test_unknown_names_get_the_closest():
    voc = classes.voc()
    assert voc.closest("motorcycle") == "motorbike" and voc.closest("DOG") == "dog" and voc.closest("") in voc.names
    with pytest.raises(DataError, match="unknown tag 'hrose'; the closest class is 'horse'"):
        voc.index("hrose")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"names": ()}, "has 0 classes; expected 1 to 254"),
        ({"names": tuple(map(str, range(255)))}, "has 255 classes; expected 1 to 254"),
        ({"names": ("b", "a", "b", "a")}, "names a, b twice; expected each name once"),
        ({"names": ("background",)}, "names 'background' as a class; leave it out"),
        ({"names": ("a", "b"), "words": ("x",)}, "has 2 names but 1 words; expected one each"),
        ({"names": ("a",), "colors": (RED, GREEN)}, "has 1 names but 2 colors; expected one each"),
    ],
)
def test_wrong_class_sets_are_told(values, words):
    with pytest.raises(DataError, match=words):
        ClassSet(**values)


def test_254_classes_are_fine():
    found = ClassSet(tuple(map(str, range(254))))
    assert found.palette() == classes.voc_palette()


# Classes files


def test_names_one_per_line(tmp_path):
    found = classes.from_file(written(tmp_path, ".txt", b"\xef\xbb\xbfdog\r\n\n  big cat  \nH\xc3\xbcndin"))
    assert found == ClassSet(("dog", "big cat", "Hündin"))


def test_csv(tmp_path):
    text = 'name, words, color\ndog,"dog, hound", #ff8000\n\ncat,,\n'
    assert classes.from_file(written(tmp_path, ".csv", text)) == ClassSet(
        ("dog", "cat"), ("dog, hound", "cat"), colors=((255, 128, 0), GREEN)
    )
    assert classes.from_file(written(tmp_path, ".csv", "name\ndog\n")) == ClassSet(("dog",))


def test_toml(tmp_path):
    text = (
        'background = ["sky", "moon"]\n[[class]]\nname = "dog"\nwords = "hound"\n'
        '[[class]]\nname = "cat"\ncolor = "#000001"\n'
    )
    assert classes.from_file(written(tmp_path, ".toml", text)) == ClassSet(
        ("dog", "cat"), ("hound", "cat"), ("sky", "moon"), (RED, (0, 0, 1))
    )


@pytest.mark.parametrize(
    "one",
    [
        classes.voc(),
        classes.coco(),
        ClassSet(('quo"te', "Ü\\ # x"), ("a", "b"), (), ((0, 0, 0), (255, 255, 255))),
    ],
    ids=["voc", "coco", "own"],
)
def test_toml_round_trip(tmp_path, one):
    path = written(tmp_path, ".toml", one.to_toml())
    assert classes.from_file(path) == one
    assert classes.from_file(path).to_toml() == one.to_toml()


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        (".txt", b"dog\nd\xf6g\n", r"is not UTF-8 \(byte 5\); save it as UTF-8"),
        (".txt", "dog\ndog\n", "names dog twice"),
        (".txt", "", "has 0 classes"),
        (".txt", "\n".join(map(str, range(300))), "has 300 classes; expected 1 to 254"),
        (".txt", "dog\nc\0at\n", "the name of class 2 of .* holds control characters"),
        (".txt", "0 dog\n1 big cat\n", r"hold numbers beside names \('0 dog'\)"),
        (".txt", "0: dog\n1: cat\n", "hold numbers beside names"),
        (".txt", "dog,0\ncat,1\n", "hold numbers beside names"),
        (".txt", "dog:128,0,0::\ncat:0,128,0::\n", "hold numbers beside names"),
        (".txt", "__background__\ndog\n", "names '__background__' as a class; leave it out: label 0"),
        (".txt", "Background\ndog\n", "names 'Background' as a class; leave it out"),
        (".yaml", "names:\n  0: dog\n", "ends with '.yaml'; expected .txt, .csv or .toml"),
        (".json", '["dog", "cat"]', "ends with '.json'"),
        (".CSV", "label\ndog\n", "class 1 of .* has no name; expected a column or key 'name'"),
        (".csv", "label\ndog\n", "class 1 of .* has no name; expected a column or key 'name'"),
        (".csv", "name,words\n,x\n", "class 1 of .* has no name"),
        (".csv", "name,wrods\ndog,x\n", "class 1 of .* has the key 'wrods'; expected name, words, color"),
        (".csv", "name\ndog\ncat,3\n", "class 2 of .* has the key .*more columns than the header"),
        (
            ".csv",
            "name,color\ndog,red\n",
            "the colour of 'dog' in .* is 'red'; expected six hex digits such as #ff8800",
        ),
        (".csv", 'name\ndog\n"cat\n', "line 3 of the classes file .* is no CSV"),
        (".csv", "name\n" + "x" * 200_000, "line 2 of the classes file .* is no CSV"),
        (".toml", "[[class]\n", r"is no valid TOML \(.*line 1.*\); mend that line"),
        (".toml", "a = " + "[" * 20_000, "is no valid TOML"),
        (".toml", "class = 3\n", "'class' of .* is no list of tables; write each class as"),
        (".toml", "class = [3]\n", "'class' of .* is no list of tables"),
        (".toml", "[[class]]\nnmae = 'dog'\n", "class 1 of .* has no name"),
        (".toml", "[[class]]\nname = 3\n", "class 1 of .* has no name"),
        (".toml", "[[class]]\nname = 'dog'\ncolor = 3\n", "the colour of 'dog' in .* is 3"),
        (".toml", "[[class]]\nname = 'dog'\nword = 'x'\n", "has the key 'word'; expected name, words, color"),
        (".toml", "backgrounds = []\n[[class]]\nname = 'dog'\n", "has the key 'backgrounds'; expected"),
        (".toml", "background = 3\n[[class]]\nname = 'dog'\n", "'background' of .* is 3; expected a list of words"),
        (".toml", "background = 'sky'\n[[class]]\nname = 'dog'\n", "'background' of .* is 'sky'; expected a list"),
        (".toml", "background = ['']\n[[class]]\nname = 'dog'\n", "expected a list of words"),
    ],
)
def test_wrong_files_are_told(tmp_path, suffix, content, words):
    with pytest.raises(DataError, match=words):
        classes.from_file(written(tmp_path, suffix, content))


def test_classes_that_clip_reads_alike(tmp_path):
    assert ClassSet(("dog", "Dog", "cat")).alike() == (("dog", "Dog"),)
    assert ClassSet(("dog", "cat", "emu"), ("an animal", "An  Animal", "emu")).alike() == (("dog", "cat"),)
    assert ClassSet(("caf\u00e9", "cafe\u0301")).alike() == (("caf\u00e9", "cafe\u0301"),)
    assert classes.voc().alike() == classes.coco().alike() == classes.scenes().alike() == ()


def test_a_background_word_that_is_the_words_of_a_class_is_dropped():
    one = ClassSet(("oak",), ("Tree",), ("sky", "tree"))
    assert one.background == ("sky",) and one.dropped == ("tree",)


def test_files_that_are_none_are_told(tmp_path):
    with pytest.raises(DataError, match=r"can't be read \(No such file or directory\); check the path"):
        classes.from_file(tmp_path / "no.txt")
    with pytest.raises(DataError, match="is no regular file"):
        classes.from_file("/dev/zero")
    with pytest.raises(DataError, match="is no path"):
        classes.from_file("a\0b")
    with pytest.raises(DataError, match="can't be read"):
        classes.from_file("x" * 5000)


def test_the_words_of_voc_and_coco_are_clip_es_s():
    """new_class_names and new_class_names_coco of CLIP-ES's clip_text.py: 4 of VOC's 20 differ from the names."""
    voc, coco = classes.voc(), classes.coco()
    words = {name: word for name, word in zip(voc.names, voc.words, strict=True) if name != word}
    assert words.keys() == {"bird", "chair", "person", "tvmonitor"}
    words = {name: word for name, word in zip(coco.names, coco.words, strict=True) if name != word}
    assert len(words) == 18
    assert [words[name] for name in ("backpack", "tie", "snowboard", "spoon", "couch", "dining table")] == [
        "backpack,bag", "necktie", "sknowboard", "dessertspoon", "sofa", "diningtable",
    ]  # fmt: skip
    assert "helmet" in coco.background and not {"keyboard", "sign"} & set(coco.background)


@pytest.mark.parametrize("name", ["", " "])
def test_a_class_has_a_name(name):
    with pytest.raises(DataError, match="has no name"):
        ClassSet(("dog", name))
