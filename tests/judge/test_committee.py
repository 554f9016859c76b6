"""The committee: its opinion does not depend on what it judges, is better than any look, and counts as mIoU does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vpl.classes import SCENE_NAMES
from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import preset
from vpl.judge import committee
from vpl.judge.bench import Bench
from vpl.method import looks
from vpl.method.metrics import Confusion
from vpl.method.views import View
from vpl.scenes.draw import draw

SIDE, COUNT = 64, 12


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load("pocket", "cpu")


@pytest.fixture(scope="module")
def drawn():
    classes, views, truths, place = scene_classes(), [], [], 0
    while len(views) < COUNT:
        scene = draw(11, place, "web-flat", SIDE)
        place += 1
        if scene.tags:
            views.append(View(scene.image, tuple(classes.index(tag) for tag in scene.tags), (SIDE, SIDE)))
            truths.append(scene.mask)
    return views, truths


@pytest.fixture(scope="module")
def bench(clip, drawn):
    return Bench(clip, scene_classes(), drawn[0])


@pytest.fixture(scope="module")
def opinions(bench):
    return committee.opinion(bench, preset("scenes"))


def miou(truths, masks) -> float:
    confusion = Confusion(len(SCENE_NAMES) + 1)
    for truth, mask in zip(truths, masks, strict=True):
        confusion.update(truth, mask)
    return confusion.miou()


@pytest.mark.slow
def test_the_opinion_holds_tags_and_background_alone_at_the_size_of_the_file(clip, drawn):
    views = [dataclasses.replace(view, size=(40, 50)) for view in drawn[0][:2]]
    for mask, view in zip(committee.opinion(Bench(clip, scene_classes(), views), preset("scenes")), views, strict=True):
        assert mask.shape == (40, 50) and mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, *(tag + 1 for tag in view.tags)}


@pytest.mark.slow
def test_the_opinion_is_better_than_the_configured_masks(bench, drawn, opinions):
    own = miou(drawn[1], bench.masks(preset("scenes"), ("crf",))["crf"])
    assert miou(drawn[1], opinions) > own + 0.05


@pytest.mark.slow
def test_the_opinion_is_the_same_for_every_setting_that_is_tuned(clip, drawn):
    few = Bench(clip, scene_classes(), drawn[0][:3])
    other = {
        "prototypes.image_temperature": 0.7,
        "prototypes.phi": 0.3,
        "refine.box_threshold": 0.6,
        "labels.background_exponent": 0.7,
        "crf.mode": "fast",
    }
    first, second = (committee.opinion(few, preset("scenes").with_values(values)) for values in ({}, other))
    assert all((one == two).all() for one, two in zip(first, second, strict=True))


def test_text_prototypes_have_an_opinion_too(clip, drawn):
    bench = Bench(clip, scene_classes(), drawn[0][:2])
    made = committee.opinion(bench, preset("scenes").with_values({"prototypes.kind": "text"}))
    assert len(made) == 2 and all(len(np.unique(mask)) > 1 for mask in made)


@pytest.mark.slow
def test_patches_are_not_matched_without_background_words(clip, drawn, monkeypatch):
    """They would all be a tag's."""
    monkeypatch.setitem(looks.MAKERS, "words", None)
    bench = Bench(clip, scene_classes(), drawn[0][:2])
    made = committee.opinion(bench, preset("scenes").with_values({"prompts.background_words": False}))
    assert len(made) == 2 and all(len(np.unique(mask)) > 1 for mask in made)


def test_the_mean_agreement_is_the_miou_of_all_images():
    rng = np.random.default_rng(0)
    first, second = (list(rng.integers(0, 4, (9, 8, 8)).astype(np.uint8)) for _ in range(2))
    found = committee.agreement(first, second, 6)
    assert found.shape == (9,) and np.isclose(found.mean(), miou_of(first, second))
    assert np.allclose(committee.agreement(first, first, 6), 1)


def test_the_spread_of_the_agreement_is_that_of_leaving_images_out():
    rng = np.random.default_rng(1)
    first, second = (list(rng.integers(0, 3, (60, 8, 8)).astype(np.uint8)) for _ in range(2))
    found = committee.agreement(first, second, 3)
    left = [
        miou_of(first[:place] + first[place + 1 :], second[:place] + second[place + 1 :]) for place in range(len(first))
    ]
    jackknife = np.sqrt((len(left) - 1) * np.var(left))
    assert np.isclose(found.std(ddof=1) / np.sqrt(len(left)), jackknife, rtol=0.05)


def miou_of(first, second) -> float:
    confusion = Confusion(6)
    for one, other in zip(first, second, strict=True):
        confusion.update(one, other)
    return confusion.miou()
