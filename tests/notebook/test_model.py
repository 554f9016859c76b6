"""VPL in a notebook: the bytes of a run, images in any form, results that show themselves, one sentence each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vpl
from vpl.edges.images import read_mask
from vpl.runs.scoring import MAP_ROWS
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow

COUNT = 5


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_tree(folder, {"train": COUNT}, seed=4, style="demo", size=48)


@pytest.fixture(scope="module")
def rows(tree) -> dict[str, str]:
    return dict(line.split(",") for line in (tree / "train.csv").read_text().splitlines()[1:])


@pytest.fixture(scope="module")
def config() -> vpl.Config:
    return vpl.preset("scenes").with_values({"train.steps": 0, "clip.batch": 2})


@pytest.fixture(scope="module")
def ran(tree, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return vpl.run(folder, tree / "images/train", tree / "train.csv", config=config, device="cpu")


@pytest.fixture(scope="module")
def fitted(tree, config, rows) -> vpl.VPL:
    return vpl.VPL(config=config, device="cpu").fit(tree / "images/train", rows)


def test_the_bytes_of_a_run(fitted, ran, tree, rows, tmp_path):
    found = fitted.segment(tree / "images/train", rows)
    assert [one.name for one in found] == sorted(ran.masks) and len(found) == COUNT
    for one in found:
        one.save(tmp_path / "mask.png")
        assert (tmp_path / "mask.png").read_bytes() == (ran.folder / "labels" / f"{one.name}.png").read_bytes()
        for stage, place in {row.rpartition("/")[2]: row for row in MAP_ROWS}.items():
            assert (one.maps[stage] == read_mask(ran.folder / place / f"{one.name}.png")).all(), stage
    assert (one.labels == one.maps["labels"]).all() and one.tags == tuple(rows[f"{one.name}.png"].split(";"))


def test_the_model_of_a_run_is_the_model(fitted, ran, tree, rows):
    other, (name, tags) = vpl.VPL.of_run(ran.folder, device="cpu"), next(iter(rows.items()))
    assert (other.vision == fitted.vision).all() and (other.text == fitted.text).all()
    first, second = (model.segment(tree / "images/train" / name, tags) for model in (fitted, other))
    assert (first.labels == second.labels).all() and "vision prototypes" in repr(other)


def test_every_form_of_an_image_is_the_same(fitted, tree, rows):
    name, tags = next(iter(rows.items()))
    path = tree / "images/train" / name
    with Image.open(path) as picture:
        given = [path, str(path), picture, np.array(picture.convert("RGB"))]
        labels = [fitted.segment(one, tags.split(";")).labels for one in given]
        together = fitted.segment(given, [tags] * len(given))
    assert all((one == labels[0]).all() for one in labels)
    assert [one.name for one in together] == [path.stem, path.stem, "image 3", "image 4"]


def test_one_line_with_text_prototypes(tree, rows, config):
    name, tags = next(iter(rows.items()))
    one = vpl.segment(tree / "images/train" / name, tags, config=config, device="cpu")
    assert list(one.seeds) == ["text", "refined"] and list(one.maps) == ["text", "refined", "crf", "labels"]
    kinds, (h, w) = len(one.tags), one.labels.shape
    assert all(seed.shape[0] == kinds and seed.min() >= 0 and seed.max() <= 1 for seed in one.seeds.values())
    assert one.scores.shape == (kinds + 1, h, w)
    own = vpl.segment(tree / "images/train" / name, "cup;ball", device="cpu")
    assert own.classes.names == ("ball", "cup")


def test_results_show_themselves(fitted, tree, rows):
    name, tags = next(iter(rows.items()))
    one = fitted.segment(tree / "images/train" / name, tags)
    assert one._repr_png_().startswith(b"\x89PNG") and one.overlay().size == one.labels.shape[::-1]
    assert one.plot().width > 6 * 200 and sum(one.shares.values()) == pytest.approx(1)
    assert repr(one).startswith(f"<Segmentation of {Path(name).stem}, 48 x 48: ") and "%" in repr(one)
    assert "text prototypes" in repr(vpl.VPL(classes=["dog"], device="cpu"))


@pytest.mark.parametrize(
    "images, tags, words",
    [
        ("nowhere.png", ["cup"], "there is no file or folder nowhere.png"),
        ("*.nothing", ["cup"], "finds no file; check it"),
        ([], [], "the list of images is empty"),
        (np.zeros((8, 8, 3), np.float32), ["cup"], "image: the image is an array of float32"),
        (np.zeros((8, 8, 3), np.uint8), ["cop"], "image: unknown tag 'cop'; the closest class is 'cup'"),
        (np.zeros((8, 8, 3), np.uint8), [], "image has no tags"),
        ([np.zeros((8, 8, 3), np.uint8)] * 2, ["cup"], "there are tags of 1 images, and 2 images"),
        ([np.zeros((8, 8, 3), np.uint8)] * 2, "cup", "expected tags for each of the 2 images"),
        ([np.zeros((8, 8, 3), np.uint8)], [7], "the tags of an image are 7"),
        ([np.zeros((8, 8, 3), np.uint8)], {"other": "cup"}, "there are no tags of image 1"),
    ],
)
def test_one_sentence(fitted, images, tags, words):
    with pytest.raises(vpl.VplError, match=words.replace("*", r"\*")):
        fitted.segment(images, tags)


GREY = np.zeros((16, 16), np.uint8)


def test_texts_of_tags_are_cut_as_those_of_a_table(fitted):
    for text in ("cup;car", "cup|car", "cup, car", "['cup', 'car']", "cup/car"):
        assert fitted.segment(GREY, text).tags == ("cup", "car"), text
    own = vpl.VPL(device="cpu")
    with pytest.raises(vpl.VplError, match="image: 'cup, car' could be one tag or several; give a list"):
        own.segment(GREY, "cup, car")
    assert vpl.VPL(device="cpu").segment(GREY, ["salt, pepper"]).classes.names == ("salt, pepper",)


def test_one_class_without_background_words_is_refused():
    with pytest.raises(vpl.VplError, match="there is one class and no background word"):
        vpl.VPL(classes=vpl.ClassSet(("cup",), background=()), device="cpu").segment(GREY, "cup")


def test_classes_that_clip_reads_alike_are_told(caplog):
    vpl.VPL(classes=["Cup", "cup"], device="cpu")
    assert "CLIP reads the classes 'Cup' and 'cup' alike" in caplog.text


def test_photographs_of_any_suffix_are_seen_and_what_is_none_is_told(fitted, tmp_path, caplog):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "photo")
    Image.fromarray(GREY).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("mine")
    found = fitted.segment(tmp_path, {"photo": "cup", "b": "car"})
    assert [one.name for one in found] == ["b", "photo"]
    assert "notes.txt" in caplog.text and "left out" in caplog.text


def test_without_classes_and_tags_nothing_is_known():
    with pytest.raises(vpl.VplError, match="the model has no classes yet"):
        vpl.VPL(device="cpu").text  # noqa: B018
