"""Which labels a region may carry, and rounds of learning."""

from __future__ import annotations

import pytest
import torch

from vpl.config import PrototypeConfig
from vpl.errors import DataError
from vpl.method.lesson import allowed_labels, learn, without_region
from vpl.method.regions import BACKGROUND_REGION, Regions


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
    found = torch.tensor([2, BACKGROUND_REGION])
    allowed = allowed_labels(found, [(0, 2), (0, 2)], 3, 5, PrototypeConfig(tags=tags))
    assert allowed.tolist() == [first, background]


def found(*classes: int) -> Regions:
    """One region for each class number, all of image 0, in the plane."""
    count = len(classes)
    rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [0.3, 1.0], [0.6, 0.8]])[:count], dim=1)
    return Regions(rows, torch.tensor(classes, dtype=torch.int64), torch.zeros(count, dtype=torch.int64), torch.ones(1))


def test_each_round_looks_with_the_prototypes_of_the_round_before():
    text, looks = torch.eye(2), []
    config = PrototypeConfig(rounds=3, image_temperature=0.1)
    lesson = learn(lambda *given: looks.append(given) or found(0, 1), [(0, 1)], text, 50.0, 2, config)
    assert [turn for turn, _, _ in looks] == [0, 1, 2] and [scale for _, _, scale in looks] == [50.0, 10.0, 10.0]
    assert looks[0][1] is text and not torch.equal(looks[1][1], text) and torch.equal(lesson.text, text)
    assert lesson.report is not None and lesson.report.regions == 2


def test_background_regions_alone_teach_without_a_report():
    lesson = learn(lambda *_: found(BACKGROUND_REGION), [(0,)], torch.eye(2), 50.0, 1, PrototypeConfig())
    assert lesson.report is None and lesson.of_tags.tolist() == [False]


def test_a_class_without_any_region_keeps_its_text_row():
    """Class 1 is among the image's tags, so its label may be carried, but no region is its own."""
    text = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [0.5, 1.0], [1.0, -1.0]]), dim=1)
    config = PrototypeConfig(image_temperature=0.1)
    lesson = learn(lambda *_: found(0, 2), [(0, 1, 2)], text, 50.0, 3, config)
    assert torch.equal(lesson.vision[1], text[1])
    assert not torch.equal(lesson.vision[0], text[0]) and not torch.equal(lesson.vision[2], text[2])


@pytest.mark.parametrize(
    ("numbers", "kept"),
    [
        ([0, 2], [False, True, False, True, True]),
        ([1, BACKGROUND_REGION], [True, False, True, False, False]),
        ([BACKGROUND_REGION], [True, True, True, False, False]),
    ],
)
def test_prototypes_that_no_region_stands_for(numbers, kept):
    """Three classes, two background words: one background region stands for both."""
    assert without_region(torch.tensor(numbers), 3, 5).tolist() == kept


def test_without_any_region_phi_is_named():
    with pytest.raises(DataError, match=r"prototypes\.phi = 0\.5; choose a lower one"):
        learn(lambda *_: found(), [(0,)], torch.eye(2), 50.0, 1, PrototypeConfig(phi=0.5))
