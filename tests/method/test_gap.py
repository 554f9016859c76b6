"""The modality gap against answers by hand: in all, by class, and the line between two sets."""

import json
import math

import numpy as np
import pytest
import torch

from vpl.errors import DataError
from vpl.method import gap
from vpl.method.gap import class_distances, modality_gap, report, separability


def test_the_report_by_hand():
    text, vision = torch.eye(3)[:2], torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]])
    x = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    own, q = torch.tensor([0, 1]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    made = report(x, q, own, text, vision, 2, 1.0)
    assert made.regions == 2
    assert made.own_text == pytest.approx((0.6 + 0.0) / 2) and made.own_vision == pytest.approx((1.0 + 0.8) / 2)
    assert made.other_text == pytest.approx((0.8 + 0.0) / 2) and made.other_vision == pytest.approx((0.48 + 0.0) / 2)
    assert made.accuracy_text == 0 and made.accuracy_vision == 1  # a tie is no hit
    assert made.gap_text == pytest.approx(math.dist((0.3, 0.4, 0.5), (0.5, 0.5, 0)))
    assert made.gap_vision == pytest.approx(math.dist((0.3, 0.4, 0.5), (0.3, 0.7, 0.4)))
    row = [math.log(1 + math.exp(0.48 - 1)), math.log(1 + math.exp(0 - 0.8))]
    assert made.kl_vision == pytest.approx(sum(row) / 2)
    with pytest.raises(DataError, match="no region to report on"):
        report(x[:0], q[:0], own[:0], text, vision, 2, 1.0)


def test_background_rows_count_in_the_kl_alone():
    x, own, q = torch.eye(3)[:2], torch.tensor([0, 1]), torch.tensor([[0.8, 0.0, 0.2], [0.0, 1.0, 0.0]])
    wide = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.6, 0.8], [1.0, 0.0, 0.0]])  # the background row is a region itself
    made = report(x, q, own, wide, wide, 2, 1.0)
    assert made.accuracy_text == 0.5 and made.other_text == pytest.approx((0.0 + 0.8) / 2)
    assert made.gap_text == pytest.approx(math.dist((0.5, 0.5, 0), (0.3, 0.7, 0.4)))
    log_p = torch.log_softmax(x @ wide.T, dim=1)
    assert made.kl_text == pytest.approx(float((torch.xlogy(q, q) - q * log_p).sum(1).mean()))


def test_modality_by_class():
    x = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]], dtype=np.float32)
    own, names = np.array([0, 0, 2]), ("dog", "cat", "boat")
    text = np.eye(3, dtype=np.float32)[[1, 0, 2]]
    found = gap.modality(x, own, text, np.eye(3, dtype=np.float32), names)
    json.dumps(found, allow_nan=False)
    assert list(found["text"]["classes"]) == ["dog", "boat"], "no region, no row"
    dog = found["vision"]["classes"]["dog"]
    assert dog["regions"] == 2 and dog["own"] == pytest.approx(0.8) and dog["other"] == pytest.approx(0.4)
    assert dog["distance"] == pytest.approx(np.linalg.norm([0.2, 0.4]))
    assert found["text"]["classes"]["dog"]["own"] < dog["own"]
    assert 0 <= found["vision"]["separability"] <= 1


def test_gaps_by_hand():
    first = np.array([[1.0, 0.0], [0.0, 1.0]])
    second = np.array([[-1.0, 0.0], [0.0, -1.0]])
    assert modality_gap(first, second) == pytest.approx(math.sqrt(2))
    assert modality_gap(first, first) == 0
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(class_distances(rows, first, np.array([0, 0, 1])), [0.5, 2])
    np.testing.assert_allclose(class_distances(rows[:2], first, np.array([1, 1])), [math.nan, math.hypot(0.5, 1)])
    with pytest.raises(DataError, match="0 and 2 rows; expected at least 1"):
        modality_gap(first[:0], second)


def test_separability_knows_chance_from_certainty():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 400, 16))
    assert abs(separability(first, second) - 0.5) < 0.07
    assert separability(first, second + 6 * np.eye(16)[3]) > 0.98
    assert separability(first[:30], second + 6 * np.eye(16)[3]) > 0.95  # unequal sets weigh the same
    assert separability(first, second) == separability(first, second)
    assert separability(first[:2], first[:2] + 9) == 1
    assert separability(np.ones((4, 3)), np.ones((5, 3))) == 0.5
    with pytest.raises(DataError, match="1 and 400 rows; expected at least 2"):
        separability(first[:1], second)


def test_separability_is_measured_on_rows_that_were_held_out():
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 20, 64))  # any labels of 40 points in 64 dimensions can be fitted
    assert separability(first, second, ridge=1e-9) < 0.75
