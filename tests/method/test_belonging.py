"""belonging.py: masks that can't belong to the tags are told from masks whose tags are merely imperfect."""

from __future__ import annotations

import numpy as np
import pytest

from vpl.classes import coco
from vpl.edges.truth import COCO_IDS
from vpl.method.belonging import Counting

NAMES = tuple("abcdefgh")


def counted(names, pairs):
    counting = Counting(names)
    for labels, tags in pairs:
        counting.add(np.array([[0, *labels, 255]], np.uint8), tags)
    return counting.result()


def photographs(count, names, seed=0):
    """Photographs with one to three classes each, spread as in real lists: some often, most seldom."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(names) + 1)
    for _ in range(count):
        yield tuple(rng.choice(len(names), rng.integers(1, 4), replace=False, p=weights / weights.sum()).tolist())


def test_by_hand():
    found = counted(("dog", "cat"), [((1,), (0,)), ((1, 2), (0,)), ((2,), (0, 1))])
    assert (found.carry, found.hold, found.astray, found.images) == ((3, 1), (2, 1), (0, 1), 3)
    assert found.together and found.counts() == {"dog": [2, 3], "cat": [1, 1]}
    assert found.told() == "3 of the 4 tags occur in the truth of their photographs"
    bad = counted(("dog", "cat"), [((2,), (0,)), ((2,), (0,)), ((1,), (1,))])
    assert not bad.together
    assert bad.told().endswith(": dog in 0 of the 2 that carry it; cat in 0 of the 1 that carry it")


@pytest.mark.parametrize("seed", range(5))
def test_masks_of_the_tags_belong_whatever_is_missing(seed):
    rng, lists = np.random.default_rng(seed), list(photographs(60, NAMES, seed))
    right = [([tag + 1 for tag in tags], tags) for tags in lists]
    assert counted(NAMES, right).together
    lazy = [([tag + 1 for tag in tags], tags[:1]) for tags in lists]  # one tag alone is given
    assert counted(NAMES, lazy).together
    noisy = [
        (labels, tuple(int(rng.integers(len(NAMES))) if rng.random() < 0.3 else tag for tag in tags))
        for labels, tags in right
    ]
    assert counted(NAMES, noisy).together
    assert counted(NAMES, [([], ()) for _ in lists]).together, "of no tag nothing is said"


@pytest.mark.parametrize("seed", range(5))
def test_other_numbers_and_other_photographs_do_not(seed):
    lists = list(photographs(60, NAMES, seed))
    turned = [([(tag + 1) % len(NAMES) + 1 for tag in tags], tags) for tags in lists]
    assert not counted(NAMES, turned).together
    moved = [([tag + 1 for tag in lists[number - 1]], tags) for number, tags in enumerate(lists)]
    assert not counted(NAMES, moved).together


def test_0_and_255_name_the_binary_masks():
    found = counted(("dog",), [((), (0,))] * 4)
    assert not found.together
    assert "0 and 255 alone, and 255 is ignored" in found.refusal("masks")
    assert "data.mask_values=binary" in found.refusal("masks") and "0 of the 4 that carry it" in found.refusal("masks")


def test_255_alone_is_said():
    counting = Counting(("dog",))
    counting.add(np.full((2, 2), 255, np.uint8), (0,))
    assert "the masks hold 255 (ignore) alone" in counting.result().refusal("masks")


def test_the_91_numbers_of_coco_name_the_ids():
    names = coco().names
    found = counted(names, [([COCO_IDS[tag] for tag in tags], tags) for tags in photographs(200, names)])
    assert not found.together, "its first eleven numbers alone agree"
    assert "data.mask_values=ids" in found.refusal("masks")
    assert found.numbers().startswith("0 background, 1 person") and found.numbers().endswith("255 ignored")
