"""A bench gives the numbers of a run, keeps what does not change, and never sees a truth mask."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import preset
from vpl.edges.images import read_image, read_mask
from vpl.judge import bench
from vpl.judge.bench import MASK_STAGES, Bench
from vpl.method.views import View
from vpl.runs.scoring import MAP_ROWS
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree

COUNT = 5


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_tree(folder, {"train": COUNT}, seed=3, style="demo", size=48)


@pytest.fixture(scope="module")
def config(tree):
    paths = {"images": tree / "images" / "train", "tags": tree / "train.csv", "masks": tree / "masks" / "train"}
    return preset("scenes").with_values({f"data.{key}": str(path) for key, path in paths.items()} | {"clip.batch": 2})


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load("pocket", "cpu")


@pytest.fixture
def made(clip, config, tree) -> Bench:
    classes, views = scene_classes(), []
    for line in (tree / "train.csv").read_text().splitlines()[1:]:
        name, tags = line.split(",")
        image = read_image(tree / "images" / "train" / name)
        views.append(View(image, tuple(classes.index(tag) for tag in tags.split(";")), image.shape[:2]))
    return Bench(clip, classes, views)


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"prototypes.rounds": 2, "prototypes.refined": True},
        {"seeds.kind": "similarity", "refine.box": False},
        {"looks.makers": ("gradcam", "sclip", "words"), "looks.scales": (1.0, 1.5), "looks.flip": True},
    ],
    ids=str,
)
def test_the_masks_of_a_run(made, config, tmp_path, values):
    config = config.with_values(values)
    with Run(tmp_path / "run", config, device="cpu") as run:
        run.labels()
    for stage, folder in zip(MASK_STAGES, MAP_ROWS, strict=True):
        for number, path in enumerate(sorted((tmp_path / "run" / folder).iterdir())):
            ours, theirs = made.masks(config, MASK_STAGES)[stage][number], read_mask(path)
            assert (ours == theirs).all(), (stage, path.name)


def test_features_are_made_once(made, config, monkeypatch):
    calls = []
    monkeypatch.setattr(bench, "encode", lambda *given, real=bench.encode: calls.append(1) or real(*given))
    for phi in (0.3, 0.5, 0.7):
        made.masks(config.with_values({"prototypes.phi": phi}))
    assert len(calls) == 5, "five images, one by one on a CPU"
    made.masks(config.with_values({"clip.scale": 1.5}))
    assert len(calls) == 10


@pytest.mark.parametrize(
    "key, changed, same",
    [
        ("prototypes.phi", ("lesson", "seeds"), ("text", "text_seeds")),
        ("labels.background_exponent", (), ("text_seeds", "lesson", "seeds", "refined")),
        ("refine.box_threshold", ("refined",), ("text_seeds", "lesson")),
    ],
)
def test_only_what_a_setting_changes_is_made_again(made, config, key, changed, same):
    other = config.with_values({key: 0.77})
    for name in changed:
        assert getattr(made, name)(config) is not getattr(made, name)(other)
    for name in same:
        assert getattr(made, name)(config) is getattr(made, name)(other)


def test_regions_from_refined_seeds_follow_the_refinement(made, config):
    base = config.with_values({"prototypes.refined": True})
    other = base.with_values({"refine.box_threshold": 0.9})
    assert made.lesson(base) is not made.lesson(other)


def test_order_is_that_of_the_views(clip, made, config):
    views = list(made.views)
    views[1] = View(np.ascontiguousarray(views[1].image[:32]), views[1].tags, (32, 48))  # another patch grid
    backward = Bench(clip, made.classes, views[::-1]).text_seeds(config)
    for one, other in zip(Bench(clip, made.classes, views).text_seeds(config), backward[::-1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_a_mirror_of_a_mirror(made):
    for one, other in zip(made.views, made.mirrored().mirrored().views, strict=True):
        assert (one.image == other.image).all()


def test_no_truth_comes_here():
    assert "read_mask" not in inspect.getsource(bench)


def test_features_beyond_the_budget_are_made_again_and_change_nothing(clip, made, config, monkeypatch):
    calls = []
    monkeypatch.setattr(bench, "encode", lambda *given, real=bench.encode: calls.append(1) or real(*given))
    wanted, size = made.refined(config), made._shelf.held
    assert len(calls) == 5 and size > 0
    for most, count in ((0, 20), (size - 1, 8)):  # four passes over five images
        calls.clear()
        small = Bench(clip, made.classes, made.views, shelf=bench.Shelf(most))
        for one, other in zip(small.refined(config), wanted, strict=True):
            assert torch.equal(one, other)
        assert len(calls) == count and small._shelf.held <= most


def test_the_shelf_makes_room_by_what_is_not_asked_for(clip, made, config):
    made.text_seeds(config)
    one = made._shelf.get((id(made), config.clip), (0,))
    shelf = bench.Shelf(2 * bench.bytes_of(one))
    for setting, members in (("a", (0,)), ("a", (1,)), ("a", (2,)), ("b", (0,))):
        shelf.put(setting, members, one)
    assert shelf.get("b", (0,)) is one and shelf.get("a", (0,)) is None and shelf.held == bench.bytes_of(one)
