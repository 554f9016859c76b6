"""From maps to labels: the argmax by hand, and what a pseudo-mask may hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vpl.classes import IGNORE
from vpl.config import Config
from vpl.method.masks import label_map, pseudo_mask
from vpl.method.views import View

NO_CRF = Config().with_values({"crf.enabled": False})


def view(height=4, width=6, tags=(2, 0), size=None):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return View(image, tags, size or (height, width))


def test_label_map_by_hand():
    maps = torch.tensor([[[1.0, 0.2, 0.0]], [[0.0, 0.3, 0.4]]])
    mask, scores = label_map(maps, view(1, 3), 1.0)
    assert mask.tolist() == [[3, 0, 0]]
    torch.testing.assert_close(scores[0], torch.tensor([[0.0, 0.7, 0.6]]))


def test_exponent_shrinks_the_background():
    maps = torch.tensor([[[0.4]]])
    assert label_map(maps, view(1, 1, (5,)), 1.0)[0].tolist() == [[0]]
    assert label_map(maps, view(1, 1, (5,)), 2.0)[0].tolist() == [[6]]


def test_labels_come_at_the_size_on_disk():
    maps = torch.rand(2, 2, 3)
    given = view(4, 6, size=(9, 13))
    mask, scores = label_map(maps, given, 1.0)
    assert mask.shape == (9, 13) and scores.shape == (3, 4, 6)
    assert [one.shape for one in pseudo_mask(scores, given, NO_CRF)] == [(9, 13)] * 2


@pytest.mark.parametrize("crf", [NO_CRF, Config().with_values({"crf.rounds": 2})], ids=("no CRF", "CRF"))
def test_pseudo_mask_holds_tags_background_and_ignore_alone(crf):
    given = view(12, 17)
    _, scores = label_map(torch.rand(2, 3, 4), given, 1.0)
    likely, mask = pseudo_mask(scores, given, crf.with_values({"labels.confidence": 0.6}))
    assert likely.dtype == mask.dtype == np.uint8
    assert set(np.unique(likely)) <= {0, 1, 3} and (mask[mask != IGNORE] == likely[mask != IGNORE]).all()
    assert (mask == IGNORE).any()


def test_confidence_decides_what_is_ignored():
    scores = torch.tensor([[[0.5, 0.1]], [[0.5, 0.9]]])
    given = view(1, 2, (4,))
    assert pseudo_mask(scores, given, NO_CRF.with_values({"labels.confidence": 0.8}))[1].tolist() == [[IGNORE, 5]]
    assert pseudo_mask(scores, given, NO_CRF.with_values({"labels.confidence": 0.0}))[1].tolist() == [[0, 5]]


def test_par_lets_labels_follow_the_colours():
    """The guess ends two columns beyond the colours' edge; PAR takes it back, and its scores stay shares."""
    image = np.zeros((12, 16, 3), dtype=np.uint8)
    image[:, 8:] = 200
    guess = torch.zeros(2, 12, 16)
    guess[0, :, :6], guess[1, :, 6:] = 0.6, 0.6
    guess = guess + 0.2
    given = View(image, (4,), (12, 16))
    off, on = (pseudo_mask(guess, given, NO_CRF.with_values({"par.rounds": rounds}))[0] for rounds in (0, 3))
    assert (off[:, 6:] == 5).all() and (off[:, :6] == 0).all()
    assert (on[:, 8:] == 5).all() and (on[:, :8] == 0).all()
    assert (pseudo_mask(guess, given, NO_CRF.with_values({"par.rounds": 3, "labels.confidence": 0.5}))[1] < 255).all()
