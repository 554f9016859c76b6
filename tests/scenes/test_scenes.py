"""Scenes: the same bytes from the same arguments, exact masks, captions of known words, trees that readers accept."""

from __future__ import annotations

import csv
import re
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from vpl import classes
from vpl.classes import SCENE_GROUNDS, SCENE_NAMES
from vpl.classes import scenes as scene_classes
from vpl.config import DataConfig
from vpl.edges.datasets import open_dataset
from vpl.errors import DataError
from vpl.scenes import draw as scene_module
from vpl.scenes import sprites, textures
from vpl.scenes import words as told
from vpl.scenes.draw import draw
from vpl.scenes.styles import DEMO_STYLES, PRETRAIN_STYLES, STYLES
from vpl.scenes.tree import write_tree
from vpl.scenes.words import vocabulary

# Pre-trained weights know these pictures: the means of a 4 x 4 grid, tags and caption of scene GOLDEN_INDEX of seed 7.
GOLDEN_INDEX = 23
GOLDEN = {
    "web-flat": (
        [166, 95, 153, 199, 168, 161, 190, 193, 133, 132, 168, 167, 158, 141, 162, 163],
        ("flower", "umbrella"),
        "a good photo of big blue umbrella and big orange flower",
    ),
    "web-photo": (
        [63, 71, 77, 71, 63, 56, 65, 70, 61, 64, 82, 87, 62, 62, 79, 76],
        ("fish", "cup"),
        "we see the fish and the cup on wall",
    ),
    "web-ink": (
        [88, 96, 88, 87, 89, 89, 97, 92, 101, 117, 85, 76, 84, 83, 82, 81],
        ("car", "house", "dog"),
        "art of a house and a dog and a car",
    ),
}


@pytest.fixture(scope="module")
def drawn():
    """48 px scenes of every style, 60 each, by style."""
    return {style: [draw(11, i, style, 48) for i in range(60)] for style in STYLES}


def words_of(caption: str) -> list[str]:
    return re.findall(r"[a-z]+", caption)


def layers_of(monkeypatch, *args):
    """The objects of a scene, back to front, and the scene."""
    seen = []
    original = scene_module._compose_mask
    monkeypatch.setattr(
        scene_module, "_compose_mask", lambda objects, size: seen.append(objects) or original(objects, size)
    )
    scene = draw(*args)
    monkeypatch.undo()
    return seen[0], scene


def canvas_alpha(thing, size):
    alpha = np.zeros((size, size))
    h, w = thing.alpha.shape
    alpha[thing.top : thing.top + h, thing.left : thing.left + w] = thing.alpha
    return alpha


# ------------------------------------------------------------------------------------------------------------ drawing
def test_the_same_arguments_give_the_same_scene():
    first = draw(3, 5, "demo", 64)
    sprites._small_sprite.cache_clear()
    textures._field.cache_clear()
    draw(3, 6, "night", 80)
    again = draw(3, 5, "demo", 64)
    assert (first.image == again.image).all()
    assert (first.mask == again.mask).all()
    assert (first.tags, first.ground, first.caption) == (again.tags, again.ground, again.caption)


def test_seed_index_and_style_change_the_scene():
    pictures = [draw(*args, 48).image for args in ((0, 0, "demo"), (1, 0, "demo"), (0, 1, "demo"), (0, 0, "night"))]
    assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i])


@pytest.mark.parametrize("style", PRETRAIN_STYLES)
def test_pretraining_scenes_stay_as_the_weights_saw_them(style):
    scene = draw(7, GOLDEN_INDEX, style, 64)
    means, tags, caption = GOLDEN[style]
    found = scene.image.reshape(4, 16, 4, 16, 3).mean((1, 3, 4))
    np.testing.assert_allclose(found.ravel(), means, atol=1.0)
    assert (scene.tags, scene.caption) == (tags, caption)


@pytest.mark.parametrize("size", [16, 33, 97, 250])
def test_any_size(size):
    scene = draw(2, 4, "demo", size)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.mask.shape == (size, size)
    assert scene.mask.dtype == np.uint8
    assert scene.image.std() > 5


def test_a_large_scene_uses_large_sprites(monkeypatch):
    sides = []
    original = sprites.sprite
    monkeypatch.setattr(
        scene_module, "sprite", lambda name, variant, side: sides.append(side) or original(name, variant, side)
    )
    scene = draw(0, 0, "demo", 900)
    assert scene.tags
    assert max(sides) > sprites.DRAWN_SIDE


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_without_a_mask_the_picture_is_the_same_and_no_mask_is_made(style, monkeypatch, drawn):
    def refuse(objects, size):
        raise RuntimeError("a mask was made")

    monkeypatch.setattr(scene_module, "_compose_mask", refuse)
    for index in range(6):
        bare, whole = draw(11, index, style, 48, with_mask=False), drawn[style][index]
        assert bare.mask is None
        assert (bare.image == whole.image).all()
        assert (bare.tags, bare.ground, bare.caption) == (whole.tags, whole.ground, whole.caption)
    with pytest.raises(RuntimeError, match="a mask was made"):
        draw(11, 0, style, 48)


@pytest.mark.slow
def test_tags_are_the_classes_of_the_mask(drawn):
    for scene in chain.from_iterable(drawn.values()):
        values = set(np.unique(scene.mask).tolist()) - {0}
        assert tuple(SCENE_NAMES[value - 1] for value in sorted(values)) == scene.tags


def test_the_mask_is_the_nearest_object_of_each_pixel(monkeypatch):
    size = 41
    for index in range(8):
        objects, scene = layers_of(monkeypatch, 5, index, "demo", size)
        alphas = [canvas_alpha(thing, size) for thing in objects]
        for y in range(size):
            for x in range(size):
                covering = [thing.name for thing, alpha in zip(objects, alphas, strict=True) if alpha[y, x] >= 0.5]
                assert scene.mask[y, x] == (SCENE_NAMES.index(covering[-1]) + 1 if covering else 0)


def test_objects_hide_one_another_but_never_most_of_one(monkeypatch):
    shares = []
    for index in range(40):
        objects, _ = layers_of(monkeypatch, 6, index, "web-ink", 48)
        alphas = [canvas_alpha(thing, 48) for thing in objects]
        for i, alpha in enumerate(alphas):
            left = alpha * np.prod([1 - front for front in alphas[i + 1 :]], axis=0)
            shares.append(left.sum() / alpha.sum())
    assert min(shares) >= scene_module._MIN_VISIBLE - 1e-4
    assert sum(share < 0.9 for share in shares) >= 5


def test_objects_keep_the_size_and_number_of_their_style(monkeypatch):
    for style in STYLES:
        look = STYLES[style]
        for index in range(6):
            objects, _ = layers_of(monkeypatch, 8, index, style, 64)
            assert len(objects) <= look.objects[1]
            assert all(look.size[0] <= thing.size <= look.size[1] for thing in objects)
            # Stretching and turning make a box a little larger than the drawing's longest side.
            assert all(max(thing.alpha.shape) <= 64 * look.size[1] * 1.45 + 3 for thing in objects)


def test_every_class_and_ground_occurs(drawn):
    for styles in (PRETRAIN_STYLES, DEMO_STYLES):
        some = list(chain.from_iterable(drawn[style] for style in styles))
        assert {tag for scene in some for tag in scene.tags} == set(SCENE_NAMES)
        assert {scene.ground for scene in some} == set(SCENE_GROUNDS)


def test_grounds_alone_are_for_pretraining(drawn):
    alone = {style: sum(not scene.tags for scene in some) / len(some) for style, some in drawn.items()}
    assert all(alone[style] == 0 for style in DEMO_STYLES)
    assert 0.04 < np.mean([alone[style] for style in PRETRAIN_STYLES]) < 0.18


def test_boats_are_on_water_more_often_in_the_demo_than_in_pretraining():
    rng = np.random.default_rng(0)
    share = {
        style: np.mean([scene_module._choose_ground(rng, STYLES[style], ["boat"]) == "water" for _ in range(600)])
        for style in ("demo", "web-flat")
    }
    assert share["demo"] == pytest.approx(0.75 + 0.25 / 8, abs=0.06)
    assert share["web-flat"] == pytest.approx(0.3 + 0.7 / 8, abs=0.06)


def test_colour_does_not_tell_the_class(drawn):
    colours = {name: [] for name in SCENE_NAMES}
    for scene in chain.from_iterable(drawn[style] for style in ("web-flat", "web-ink", "demo")):
        for tag in scene.tags:
            colours[tag].append(scene.image[scene.mask == SCENE_NAMES.index(tag) + 1].mean(0))
    between = np.std([np.mean(found, axis=0) for found in colours.values()], axis=0)
    within = np.mean([np.std(found, axis=0) for found in colours.values()], axis=0)
    assert (between < within).all()


def test_every_sprite_variant_is_whole_and_differs():
    for name in SCENE_NAMES:
        both = [sprites.sprite(name, variant, 32) for variant in (0, 1)]
        for sprite in both:
            alpha = sum(np.asarray(band, int) for band in sprite.weights.split()) + np.asarray(
                sprite.relief.split()[0], int
            )
            assert 0.1 < (alpha > 127).mean() < 0.9
            assert alpha.max() <= 260
            left, top, right, bottom = sprite.box
            assert max(right - left, bottom - top) > 0.85
        assert (np.asarray(both[0].weights) != np.asarray(both[1].weights)).any()


def test_styles_are_told_apart():
    assert not set(PRETRAIN_STYLES) & set(DEMO_STYLES)
    assert {*PRETRAIN_STYLES, *DEMO_STYLES} == set(STYLES)
    assert len(PRETRAIN_STYLES) >= 3
    assert len(DEMO_STYLES) >= 3


# ----------------------------------------------------------------------------------------------------------- captions
def test_captions_hold_known_words_and_only_what_is_there(drawn):
    known = set(vocabulary())
    singular = {told._plural(name): name for name in SCENE_NAMES}
    for scene in chain.from_iterable(drawn.values()):
        words = words_of(scene.caption)
        assert words
        assert set(words) <= known
        named = {singular.get(word, word) for word in words}
        assert named & set(SCENE_NAMES) <= set(scene.tags)
        assert named & set(SCENE_GROUNDS) <= {scene.ground}
        assert named & {*scene.tags, scene.ground}


def test_captions_come_in_many_kinds():
    captions = [draw(4, i, "web-flat", 16, with_mask=False) for i in range(500)]
    full = [scene for scene in captions if scene.tags and set(scene.tags) <= set(words_of(scene.caption))]
    assert len(full) > 300
    named = [(scene, words_of(scene.caption)) for scene in captions if len(scene.tags) == 3]
    partly = [words for scene, words in named if len(words) > 1 and len(set(scene.tags) & set(words)) < 3]
    assert len(partly) >= 8
    kinds = Counter()
    for scene in captions:
        words = set(words_of(scene.caption))
        kinds["single"] += len(words_of(scene.caption)) == 1
        kinds["list"] += bool(re.fullmatch(r"\w+(, \w+)+", scene.caption))
        kinds["place"] += bool(words & {"left", "right", "top", "bottom", "middle"})
        kinds["colour"] += bool(words & set(told._COLOUR_WORDS))
        kinds["size"] += bool(words & {"big", "little"})
        kinds["template"] += bool(words & {"itap", "origami", "bad", "large", "game", "art"})
        kinds["ground"] += scene.ground in words
    assert min(kinds[kind] for kind in ("single", "list", "place", "colour", "size", "template")) >= 10
    assert kinds["ground"] > 200


def test_place_words_say_where():
    assert told._place_words((0.1, 0.1)) == "at the top left"
    assert told._place_words((0.5, 0.5)) == "in the middle"
    assert told._place_words((0.9, 0.5)) == "on the right"
    assert told._place_words((0.5, 0.9)) == "at the bottom"


@pytest.mark.parametrize(
    ("hsv", "word"),
    [((0.0, 0.9, 0.9), "red"), ((0.33, 0.9, 0.9), "green"), ((0.62, 0.9, 0.9), "blue"), ((0.3, 0.05, 0.9), "white"),
     ((0.3, 0.05, 0.5), "grey"), ((0.07, 0.7, 0.4), "brown"), ((0.6, 0.8, 0.2), "dark"), ((0.999, 0.8, 0.9), "red")],
)  # fmt: skip
def test_colour_words(hsv, word):
    assert told.hue_word(*hsv) == word


# -------------------------------------------------------------------------------------------------------------- files
def test_a_folder_tree_holds_the_drawn_scenes(tmp_path):
    root = write_tree(tmp_path / "data", {"train": 3, "val": 2}, seed=9, style="pastel", size=40)
    assert root == tmp_path / "data"
    assert {file.name for file in root.iterdir()} == {"images", "masks", "train.csv", "val.csv", "classes.toml"}
    assert not (tmp_path / "data.partial").exists()
    index = 0
    for split, count in (("train", 3), ("val", 2)):
        with (root / f"{split}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        for row in rows:
            scene = draw(9, index, "pastel", 40)
            index += 1
            assert row["tags"] == ";".join(scene.tags)
            assert (np.asarray(Image.open(root / "images" / split / row["file_name"])) == scene.image).all()
            mask = Image.open(root / "masks" / split / row["file_name"])
            assert mask.mode == "P"
            assert (np.asarray(mask) == scene.mask).all()
            assert mask.getpalette()[:6] == [0, 0, 0, *classes.voc_palette()[1]]
    assert classes.from_file(root / "classes.toml") == scene_classes()


def test_both_layouts_are_read_as_data_sets(tmp_path):
    count = {"train": 4, "val": 2}
    folder = write_tree(tmp_path / "folder", count, seed=1, style="sketch", size=32)
    voc = write_tree(tmp_path / "voc", count, seed=1, style="sketch", size=32, layout="voc")
    by_folder = open_dataset(
        DataConfig(
            images=str(folder / "images" / "val"), tags=str(folder / "val.csv"), masks=str(folder / "masks" / "val")
        ),
        scene_classes(),
    )
    by_voc = open_dataset(DataConfig(format="voc", images=str(voc), split="val"), scene_classes())
    assert not by_folder.problems
    assert not by_voc.problems
    assert [sample.id for sample in by_folder.samples] == [sample.id for sample in by_voc.samples]
    assert [set(sample.tags) for sample in by_folder.samples] == [set(sample.tags) for sample in by_voc.samples]
    assert all(sample.mask.is_file() for sample in (*by_folder.samples, *by_voc.samples))


def test_voc_boxes_enclose_the_masks(tmp_path):
    root = write_tree(tmp_path / "voc", 5, seed=2, size=48, layout="voc")
    assert len((root / "ImageSets/Segmentation/train.txt").read_text().split()) == 4
    assert len((root / "ImageSets/Segmentation/val.txt").read_text().split()) == 1
    for file in (root / "Annotations").iterdir():
        mask = np.asarray(Image.open(root / "SegmentationClass" / f"{file.stem}.png"))
        text = file.read_text()
        names = re.findall("<name>(.*?)</name>", text)
        corners = np.array(re.findall(r"<[xy]m\w+>(\d+)</", text), int).reshape(-1, 4)
        assert {SCENE_NAMES.index(name) + 1 for name in names} == set(np.unique(mask).tolist()) - {0}
        for name, (x0, y0, x1, y1) in zip(names, corners, strict=True):
            rows, columns = np.nonzero(mask == SCENE_NAMES.index(name) + 1)
            assert (x0, x1) == (columns.min() + 1, columns.max() + 1)
            assert (y0, y1) == (rows.min() + 1, rows.max() + 1)


def test_scenes_without_tags_are_left_out_of_a_tree(tmp_path):
    root = write_tree(tmp_path / "web", {"train": 20}, seed=0, style="web-flat", size=24)
    with (root / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert all(row["tags"] for row in rows)
    assert rows[-1]["file_name"] > "web-flat_000019.png"


def test_a_half_written_tree_is_begun_anew(tmp_path):
    (tmp_path / "data.partial" / "images").mkdir(parents=True)
    (tmp_path / "data.partial" / "images" / "old.png").touch()
    (tmp_path / "data").mkdir()
    root = write_tree(tmp_path / "data", {"val": 1}, size=24)
    assert not list(root.rglob("old.png"))
    assert len(list(root.rglob("*.png"))) == 2


# ------------------------------------------------------------------------------------------------------------- errors
def test_an_unknown_style_is_refused():
    with pytest.raises(DataError, match=r"Unknown scene style 'oil'. Known styles: web-flat, .*Choose one"):
        draw(0, 0, "oil")


@pytest.mark.parametrize("size", [0, 15, 4097])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(DataError, match=rf"size is {size} pixels; a side of 16 to 4096 is needed"):
        draw(0, 0, "demo", size)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_seeds_and_indices_are_refused(seed, index):
    with pytest.raises(DataError, match="both are numbers from 0"):
        draw(seed, index)


def test_a_tree_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(DataError, match=r"Unknown layout 'coco'.*folder, voc"):
        write_tree(tmp_path / "a", 2, layout="coco")
    with pytest.raises(DataError, match="give a number of 1 or more"):
        write_tree(tmp_path / "a", 0)
    with pytest.raises(DataError, match="give a number of 1 or more"):
        write_tree(tmp_path / "a", {"train": 3, "val": -1})
    with pytest.raises(DataError, match="Unknown scene style"):
        write_tree(tmp_path / "a", 2, style="oil")
    assert not list(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(DataError, match="exists already and is not empty"):
        write_tree(tmp_path / "full", 2)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine.txt"]
