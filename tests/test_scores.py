"""The scores that the committee's was compared with (benchmarks/scores.py) are right where the answer is known."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import Config, preset
from vpl.judge.bench import Bench
from vpl.method.views import View
from vpl.scenes.draw import draw

PLACE = Path(__file__).parent.parent / "benchmarks" / "scores.py"
SPECIFICATION = importlib.util.spec_from_file_location("scores", PLACE)
scores = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(scores)


@pytest.fixture(scope="module")
def bench():
    classes, views = scene_classes(), []
    for place in range(4):
        scene = draw(4, place, "demo", 48, with_mask=False)
        views.append(View(scene.image, tuple(classes.index(tag) for tag in scene.tags), (48, 48)))
    return Bench(FrozenClip.load("pocket", "cpu"), classes, views)


def test_regions_of_by_hand():
    maps = torch.tensor([[[0.9, 0.6, 0.2]], [[0.1, 0.7, 0.3]]])
    assert scores.regions_of(maps, 1.0).int().tolist() == [[1, 0, 0], [0, 1, 0]]
    assert scores.regions_of(maps, 8.0).int().tolist() == [[1, 0, 0], [0, 1, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(scores.SCORES.keys() - {"committee"}))
def test_every_score_gives_one_number_per_image(bench, name):
    found = scores.SCORES[name](bench, preset("scenes"))
    assert found.shape == (4,) and np.isfinite(found).all()
    text = scores.SCORES[name](bench, preset("scenes").with_values({"prototypes.kind": "text"}))
    assert np.isfinite(text).all()


class Drawn(Bench):
    """A bench of one image whose patches are two flat halves, and whose mask the test draws."""

    def __init__(self, mask):
        patches = torch.tensor([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 8)
        attention = (patches @ patches.T + 0.01) / 8
        self.features_ = type("F", (), {"grid": (4, 4), "patches": patches[None], "attention": attention[None]})
        image = np.zeros((4, 4, 3), np.uint8)
        image[2:] = 200
        self.views = (View(image, (0,), (4, 4)),)
        self.mask = torch.tensor(mask, dtype=torch.float32).reshape(1, 4, 4)
        self.clip = type("C", (), {"logit_scale": 10.0, "device": "cpu"})

    def passed(self, _, make):
        return [((0,), make((0,), self.features_))]

    def refined(self, _):
        return (self.mask,)

    def masks(self, _, stages):
        return {"refined": (self.mask[0].numpy().astype(np.uint8),)}

    def text(self, _):
        return torch.tensor([[1.0, 0.0], [0.0, 1.0]])


RIGHT, SHIFTED = [1] * 8 + [0] * 8, [1] * 4 + [0] * 12


@pytest.mark.parametrize("name", ["contrast", "separation", "cut", "edges", "evidence (text)"])
def test_the_right_mask_scores_best(name):
    """The object is the upper half; half of it, all of it with a quarter more, the wrong half, nothing, everything."""
    values = [
        float(scores.SCORES[name](Drawn(mask), Config())[0])
        for mask in (RIGHT, SHIFTED, [1] * 12 + [0] * 4, [0] * 16, [1] * 16)
    ]
    assert values[0] == max(values) and values[0] > values[1] and values[0] > values[2], values
