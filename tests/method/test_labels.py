"""From maps to labels: the argmax by hand, which labels a region may carry, and what a pseudo-mask may hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vpl.classes import IGNORE
from vpl.config import CrfConfig, LabelConfig, PrototypeConfig
from vpl.method import labels

NO_CRF = CrfConfig(enabled=False)


def view(height=4, width=6, tags=(2, 0), size=None):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return labels.View(image, tags, size or (height, width))


def test_label_map_by_hand():
    maps = torch.tensor([[[1.0, 0.2, 0.0]], [[0.0, 0.3, 0.4]]])
    mask, scores = labels.label_map(maps, view(1, 3), 1.0)
    assert mask.tolist() == [[3, 0, 0]]
    torch.testing.assert_close(scores[0], torch.tensor([[0.0, 0.7, 0.6]]))


def test_exponent_shrinks_the_background():
    maps = torch.tensor([[[0.4]]])
    assert labels.label_map(maps, view(1, 1, (5,)), 1.0)[0].tolist() == [[0]]
    assert labels.label_map(maps, view(1, 1, (5,)), 2.0)[0].tolist() == [[6]]


def test_labels_come_at_the_size_on_disk():
    maps = torch.rand(2, 2, 3)
    given = view(4, 6, size=(9, 13))
    mask, scores = labels.label_map(maps, given, 1.0)
    assert mask.shape == (9, 13) and scores.shape == (3, 4, 6)
    assert [one.shape for one in labels.pseudo_mask(scores, given, LabelConfig(), NO_CRF)] == [(9, 13)] * 2


@pytest.mark.parametrize("crf", [NO_CRF, CrfConfig(rounds=2)])
def test_pseudo_mask_holds_tags_background_and_ignore_alone(crf):
    given = view(12, 17)
    _, scores = labels.label_map(torch.rand(2, 3, 4), given, 1.0)
    likely, mask = labels.pseudo_mask(scores, given, LabelConfig(confidence=0.6), crf)
    assert likely.dtype == mask.dtype == np.uint8
    assert set(np.unique(likely)) <= {0, 1, 3} and (mask[mask != IGNORE] == likely[mask != IGNORE]).all()
    assert (mask == IGNORE).any()


def test_confidence_decides_what_is_ignored():
    scores = torch.tensor([[[0.5, 0.1]], [[0.5, 0.9]]])
    given = view(1, 2, (4,))
    assert labels.pseudo_mask(scores, given, LabelConfig(confidence=0.8), NO_CRF)[1].tolist() == [[IGNORE, 5]]
    assert labels.pseudo_mask(scores, given, LabelConfig(confidence=0.0), NO_CRF)[1].tolist() == [[0, 5]]


@pytest.mark.parametrize(
    "tags, first, background",
    [
        ("restrict", [True, False, True, True, True], [False, False, False, True, True]),
        ("own", [False, False, True, False, False], [False, False, False, True, True]),
        ("all", [True] * 5, [True] * 5),
    ],
)
def test_allowed_labels(tags, first, background):
    """Three classes, two background words; an image that carries classes 0 and 2."""
    found = torch.tensor([2, labels.BACKGROUND_REGION])
    allowed = labels.allowed_labels(found, [(0, 2), (0, 2)], 3, 5, PrototypeConfig(tags=tags))
    assert allowed.tolist() == [first, background]


def test_a_region_is_where_its_seed_is_above_phi():
    cam = torch.tensor([[[0.9, 0.5, 0.1]], [[0.0, 0.6, 0.1]]])
    masks = labels._region_masks(cam, PrototypeConfig(phi=0.5, background_phi=0.2))
    assert masks.tolist() == [[[True, False, False]], [[False, True, False]], [[False, False, True]]]


def test_portions_halve_and_remember():
    """Memory for three: a batch of eight becomes four, then two and two; the next one starts with two."""
    portions, tried = labels.Portions(), []

    def work(views):
        tried.append(len(views))
        if len(views) > 3:
            raise RuntimeError("MPS backend out of memory")
        return list(views)

    views = [view(tags=(number,)) for number in range(8)]
    parts = list(portions.each(views, work))
    assert tried == [8, 4, 2, 2, 2, 2] and [one for _, part in parts for one in part] == views
    assert [(part.start, part.stop) for part, _ in parts] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [part for part, _ in portions.each(views[:3], work)] == [slice(0, 2), slice(2, 3)]


def test_only_one_that_does_not_fit_alone_is_left_out():
    def work(views):
        if len(views) > 1 or views[0].tags == (1,):
            raise MemoryError
        return views[0].tags

    found = list(labels.Portions().each([view(tags=(number,)) for number in range(3)], work))
    assert found == [(slice(0, 1), (0,)), (slice(1, 2), None), (slice(2, 3), (2,))]


def test_other_errors_of_the_encoder_are_not_hidden():
    def work(views):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(labels.Portions().each([view(), view()], work))
