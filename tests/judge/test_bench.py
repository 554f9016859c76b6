"""A bench gives the numbers of a run, keeps what does not change, and never sees a truth mask."""

from __future__ import annotations

import contextlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import preset
from vpl.edges.images import read_image, read_mask
from vpl.judge import bench
from vpl.judge.bench import MASK_STAGES, Bench
from vpl.judge.packed import Packed, packed
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


def test_features_are_made_once(made, config):
    for phi in (0.3, 0.5, 0.7):
        made.masks(config.with_values({"prototypes.phi": phi}))
    assert made._shelf.encoded == 5
    made.masks(config.with_values({"clip.scale": 1.5}))
    assert made._shelf.encoded == 10


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


def test_features_beyond_the_budget_change_nothing(clip, made, config, tmp_path):
    """They are taken from disk, and beyond its budget made again: the bits of those that are held in memory."""
    wanted, likely = made.refined(config), made.masks(config, ("crf",))["crf"]
    size, disk = made._shelf.held, tmp_path / "kept"
    assert made._shelf.encoded == 5 and size > 0
    for most, folder, keep, counts in (
        (0, None, 20.0, {20}),  # four passes over five images
        (0, disk, 0.0, {20}),
        (0, disk, 20.0, {5}),
        (3 * size // 4, disk, 20.0, {5}),
        (3 * size // 4, None, 20.0, {11, 14}),  # two or three did not fit: it depends on which came first
    ):
        given = config.with_values({"clip.keep_gb": keep})
        with contextlib.closing(Bench(clip, made.classes, made.views, shelf=bench.Shelf(most, folder))) as small:
            for one, other in zip(small.refined(given), wanted, strict=True):
                assert torch.equal(one, other)
            assert small._shelf.held <= most, (most, folder)
            assert small._shelf.encoded in counts, (most, folder, keep)
            assert disk.exists() == (folder is not None and keep > 0)
            for one, other in zip(small.masks(given, ("crf",))["crf"], likely, strict=True):
                assert (one == other).all()
        assert not disk.exists()


def test_a_budget_holds_while_features_are_made_and_after_one_failed(clip, made, config, monkeypatch):
    def full(*_):
        raise MemoryError

    shelf = bench.Shelf()
    with monkeypatch.context() as patch:
        patch.setattr(FrozenClip, "resume", full)
        with pytest.raises(MemoryError):
            shelf.features(clip, made.views[:1], config.clip, "a", (0,))
    assert shelf.held == 0
    features = shelf.features(clip, made.views[:1], config.clip, "a", (0,))
    grid = features.grid
    assert shelf.held == bench.bytes_of(features) <= bench._most_bytes(clip, grid) < 1.1 * shelf.held


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    """What a process holds beyond one that keeps nothing, against its twin that holds all features; the same bytes."""
    script = Path(__file__).parents[2] / "benchmarks/memory.py"
    command = [sys.executable, script, "--count", "16", "--size", "320x240", "--most", str(8 * 2**20)]
    told = subprocess.run([*command, "--results", tmp_path], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    found = json.loads((tmp_path / "memory.json").read_text())["ways"]
    held, bounded = (found[way]["peak_mb"] - found["again"]["peak_mb"] for way in ("memory", "bounded"))
    assert bounded < held / 2, found
    assert [found[way]["encoded"] for way in ("memory", "bounded", "again")] == [16, 16, 80]


def test_label_maps_are_packed_and_come_back():
    maps = [np.random.default_rng(n).integers(0, 256, (5 + n, 7), dtype=np.uint8) for n in range(3)]
    held = Packed(packed(one[:, ::-1]) for one in maps)
    assert len(held) == 3 and all((one == other[:, ::-1]).all() for one, other in zip(held, maps, strict=True))
    held[0][:] = 0  # its caller's own
    assert (held[0] == maps[0][:, ::-1]).all() and held[-1].shape == (7, 7) and len(held[1:]) == 2


def test_the_shelf_makes_room_by_what_is_not_asked_for(clip, made, config):
    made.text_seeds(config)
    one = made._shelf.get((id(made), config.clip), (0,))
    shelf = bench.Shelf(2 * bench.bytes_of(one))
    for setting, members in (("a", (0,)), ("a", (1,)), ("a", (2,)), ("b", (0,))):
        shelf.put(setting, members, one)
    assert shelf.get("b", (0,)) is one and shelf.get("a", (0,)) is None and shelf.held == bench.bytes_of(one)
