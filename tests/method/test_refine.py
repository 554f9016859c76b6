"""Affinity and refinement against slow twins; boxes and resizing against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpl.method.refine import Affinity, affinity, boxes_mask, minmax, refine, upsample


def random_attention(count: int, cells: int, seed: int = 0) -> torch.Tensor:
    return torch.softmax(2 * torch.randn(count, cells, cells, generator=torch.Generator().manual_seed(seed)), 2)


def dense(one: Affinity) -> torch.Tensor:
    """M itself: what it makes of each unit map."""
    return one.spread(torch.eye(len(one.rows))).T


def slow_affinity(attention: np.ndarray, rounds: int) -> np.ndarray:
    m = attention.astype(np.float64)
    cells = len(m)
    for _ in range(rounds):
        for column in range(cells):
            m[:, column] /= sum(m[row, column] for row in range(cells))
        for row in range(cells):
            m[row] /= sum(m[row])
    half = np.array([[(m[i, j] + m[j, i]) / 2 for j in range(cells)] for i in range(cells)])
    return np.array([[sum(half[i] * half[:, j]) for j in range(cells)] for i in range(cells)])


def slow_boxes(cam: np.ndarray, threshold: float) -> np.ndarray:
    """Boxes around contours, by OpenCV, as the field draws them."""
    h, w = cam.shape
    levels = (cam * np.float32(255)).astype(np.uint8)
    _, above = cv2.threshold(levels, int(threshold * levels.max()), 255, cv2.THRESH_BINARY)
    inside = np.zeros((h, w), dtype=bool)
    for contour in cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, width, height = cv2.boundingRect(contour)
        inside[y : min(y + height, h - 1), x : min(x + width, w - 1)] = True
    return inside


@pytest.mark.parametrize(("cells", "rounds"), [(1, 1), (5, 3), (12, 1), (12, 4)])
def test_affinity_is_its_slow_twin(cells, rounds):
    attention = random_attention(3, cells)
    fast = affinity(attention, rounds)
    for number in range(3):
        assert np.allclose(dense(fast[number]).numpy(), slow_affinity(attention[number].numpy(), rounds), atol=1e-6)


def test_affinity_properties():
    attention = random_attention(2, 30)
    before = attention.clone()
    m = torch.stack([dense(one) for one in affinity(attention, rounds=40)])
    assert torch.equal(attention, before), "the argument was modified"
    assert torch.allclose(m, m.transpose(1, 2), atol=1e-6)
    assert (m >= 0).all()
    assert torch.allclose(m.sum(2), torch.ones(2, 30), atol=1e-4), "many rounds make it doubly stochastic"
    for one, scaled in zip(affinity(attention), affinity(7.5 * attention), strict=True):
        assert torch.allclose(dense(one), dense(scaled), atol=1e-6), "the scale of attention counts"


@settings(max_examples=150, deadline=None)
@given(
    h=st.integers(1, 12),
    w=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    threshold=st.sampled_from([0.0, 0.4, 0.7, 1.0]),
)
def test_boxes_are_those_around_contours(h, w, seed, threshold):
    rough = np.random.default_rng(seed).random((h, w), dtype=np.float32) ** 3
    cam = minmax(torch.from_numpy(rough)[None])[0]
    assert np.array_equal(boxes_mask(cam, threshold).numpy(), slow_boxes(cam.numpy(), threshold))


def test_boxes_by_hand():
    cam = torch.zeros(6, 7)
    cam[1, 1] = cam[2, 2] = 1.0  # one part: corners touch
    cam[4, 4], cam[3, 6] = 0.5, 0.39  # the second lies below the threshold
    expected = torch.zeros(6, 7, dtype=torch.bool)
    expected[1:3, 1:3] = True
    expected[4, 4] = True
    assert torch.equal(boxes_mask(cam, 0.4), expected)
    assert not boxes_mask(torch.zeros(4, 4), 0.4).any()
    assert boxes_mask(torch.ones(4, 5), 0.4).sum() == 3 * 4, "the last row and column stay out"


def test_refine_without_boxes_is_a_product():
    m, cam = affinity(random_attention(1, 12))[0], torch.rand(3, 3, 4)
    expected = torch.stack([(dense(m) @ one.flatten()).view(3, 4) for one in cam])
    assert torch.allclose(refine(m, cam, None), expected, atol=1e-6)
    assert torch.allclose(refine(affinity(torch.eye(12)[None])[0], cam, None), cam)


def test_refine_with_boxes_zeroes_columns():
    m = affinity(random_attention(1, 30, seed=4))[0]
    cam = minmax(torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(4)) ** 4)
    result = refine(m, cam, 0.4)
    for one, refined in zip(cam, result, strict=True):
        columns = dense(m) * boxes_mask(one, 0.4).flatten()
        assert torch.allclose(refined.flatten(), columns @ one.flatten(), atol=1e-6)
    assert refine(m, cam[:0], 0.4).shape == (0, 5, 6)
    assert not refine(m, torch.zeros(1, 5, 6), 0.4).any()


def test_minmax():
    maps = torch.randn(4, 5, 6) * torch.tensor([1e-3, 1.0, 100.0, 0.0])[:, None, None]
    result = minmax(maps)
    assert torch.equal(result.amin((1, 2)), torch.zeros(4))
    assert torch.allclose(result.amax((1, 2)), torch.tensor([1.0, 1.0, 1.0, 0.0]), atol=1e-3)
    assert torch.allclose(minmax(3 * maps[1:3] + 5), result[1:3], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 48), (33, 90)])
def test_upsample_is_opencvs_bilinear(size):
    maps = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(1))
    ours = upsample(maps, size)
    for one, big in zip(maps, ours, strict=True):
        theirs = cv2.resize(one.numpy(), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        assert np.allclose(big.numpy(), theirs, atol=1e-5)
    assert upsample(maps[:0], size).shape == (0, *size)
