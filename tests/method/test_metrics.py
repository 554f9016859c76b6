"""Confusion matrix, failure signs and gaps against answers that can be counted by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vpl.errors import ConfigError, DataError
from vpl.method.metrics import (
    Confusion,
    boundary_f,
    co_occurrence_error,
    completeness,
    components,
    components_per_object,
    ignored_share,
)

CLASSES = 4
SIDES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7)
LABELS = st.sampled_from([0, 1, 2, 3, 255])


def label_maps(shape):
    return hnp.arrays(np.uint8, shape, elements=LABELS)


PAIRS = SIDES.flatmap(lambda shape: st.tuples(label_maps(shape), label_maps(shape)))


def of(*images):
    confusion = Confusion(CLASSES)
    for truth, prediction in images:
        confusion.update(truth, prediction)
    return confusion


def counted(images):
    """The slow twin: sets of pixels per class, one pixel at a time, over all images."""
    scores = []
    for label in range(CLASSES):
        both = either = true = made = 0
        for truth, prediction in images:
            for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
                if t == 255:
                    continue
                both += t == label and p == label
                either += t == label or p == label
                true += t == label
                made += p == label
        scores.append([both / n if n else math.nan for n in (either, made, true)])
    return np.array(scores).T


def test_a_table_done_by_hand():
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 255], [2, 0, 3, 255]], np.uint8)
    confusion = of((truth, prediction))
    assert confusion.matrix.tolist() == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert confusion.matrix.dtype == np.int64
    np.testing.assert_allclose(confusion.iou(), [1 / 3, 1 / 3, 1 / 2, math.nan])
    np.testing.assert_allclose(confusion.precision(), [1 / 2, 1 / 2, 1, math.nan])
    np.testing.assert_allclose(confusion.recall(), [1 / 2, 1 / 2, 1 / 2, math.nan])
    assert confusion.miou() == pytest.approx(7 / 18)
    assert confusion.pixel_accuracy() == pytest.approx(1 / 2)
    assert confusion.ignored() == pytest.approx(1 / 6)
    assert confusion.images == 1


def test_a_class_that_is_only_predicted_counts_as_zero():
    confusion = of((np.zeros((1, 4), np.uint8), np.array([[0, 0, 0, 3]], np.uint8)))
    np.testing.assert_allclose(confusion.iou(), [3 / 4, math.nan, math.nan, 0])
    assert confusion.miou() == pytest.approx(3 / 8)


def test_the_split_is_one_matrix_and_not_a_mean_over_images():
    small = (np.array([[1]], np.uint8), np.array([[0]], np.uint8))
    large = (np.ones((1, 9), np.uint8), np.ones((1, 9), np.uint8))
    assert of(small, large).iou()[1] == pytest.approx(9 / 10)


@settings(max_examples=60, deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=3))
def test_agrees_with_counting_pixels(images):
    confusion = of(*images)
    np.testing.assert_allclose([confusion.iou(), confusion.precision(), confusion.recall()], counted(images))
    kept = sum(int((truth != 255).sum()) for truth, _ in images)
    assert confusion.matrix.sum() == kept
    if kept:
        assert confusion.miou() == pytest.approx(np.nanmean(counted(images)[0]))
    else:
        assert math.isnan(confusion.miou()) and math.isnan(confusion.pixel_accuracy())


@settings(max_examples=30, deadline=None)
@given(PAIRS, PAIRS)
def test_merging_is_counting_together(one, two):
    first, second, both = of(one), of(two), of(one, two)
    merged = first.merge(second)
    assert (merged.matrix == both.matrix).all() and merged.images == 2
    assert first.images == 1 and (first.matrix == of(one).matrix).all()


@settings(max_examples=30, deadline=None)
@given(SIDES.flatmap(label_maps))
def test_the_truth_itself_is_perfect(truth):
    confusion = of((truth, truth))
    assert (truth == 255).all() or confusion.miou() == confusion.pixel_accuracy() == 1


def test_plain_data_and_back():
    confusion = of((np.array([[0, 1]], np.uint8), np.array([[0, 255]], np.uint8)))
    again = Confusion.from_dict(json.loads(json.dumps(confusion.to_dict())))
    assert (again.matrix == confusion.matrix).all() and again.images == 1 and again.matrix.dtype == np.int64


@pytest.mark.parametrize(
    "data",
    [{}, {"matrix": [[1, 2], [3]], "images": 1}, {"matrix": [[1, 2], [3, 4]], "images": 1},
     {"matrix": [[1, -2]], "images": 1}, {"matrix": [[1, 2]], "images": "one"}, {"matrix": [[1.5, 2.0]], "images": 1}],
)  # fmt: skip
def test_damaged_data_are_refused(data):
    with pytest.raises(DataError, match="valuate again"):
        Confusion.from_dict(data)


def test_errors_say_what_to_do():
    with pytest.raises(DataError, match=r"prediction is 2 x 2 pixels but the truth 1 x 4; expected the same size"):
        of((np.zeros((1, 4), np.uint8), np.zeros((2, 2), np.uint8)))
    with pytest.raises(DataError, match=r"truth holds label 4; expected 0 to 3, or 255"):
        of((np.full((1, 1), 4, np.uint8), np.zeros((1, 1), np.uint8)))
    with pytest.raises(DataError, match=r"prediction holds label 9; expected 0 to 3, or 255"):
        of((np.zeros((1, 1), np.uint8), np.full((1, 1), 9, np.uint8)))
    with pytest.raises(ConfigError, match="0 classes; expected 1 to 255"):
        Confusion(0)
    with pytest.raises(ConfigError, match="4 and 5 classes can't be merged"):
        Confusion(4).merge(Confusion(5))


def test_a_refused_image_leaves_no_trace():
    confusion = Confusion(2)
    with pytest.raises(DataError):
        confusion.update(np.zeros((1, 2), np.uint8), np.array([[0, 2]], np.uint8))
    assert confusion.images == 0 and confusion.matrix.sum() == 0


def test_completeness_by_hand():
    target = np.zeros((2, 8), bool)
    target[0] = True
    seed = np.zeros((2, 8))
    seed[0, :4] = [0.9, 0.6, 0.3, 0.2]
    seed[1, 0] = 0.8
    found = completeness(seed, target, 0.5)
    assert (found.recall, found.precision) == (2 / 8, 2 / 3)
    assert found.concentration == pytest.approx((0.9 + 0.6) / 2.0)
    assert completeness(seed, target, 0.5, valid=np.arange(2)[:, None] < np.ones(8)).precision == 1
    assert completeness(target.astype(float), target, 0.5).concentration == pytest.approx(0.25)
    nothing = completeness(seed, np.zeros_like(target), 0.95)
    assert math.isnan(nothing.recall) and math.isnan(nothing.precision) and math.isnan(nothing.concentration)


def test_co_occurrence_error_by_hand():
    seed = np.array([[True, True, True, True, False]])
    target = np.array([[True, False, False, False, False]])
    ground = np.array([[True, True, True, False, True]])
    assert co_occurrence_error(seed, target, ground) == 2 / 4
    assert math.isnan(co_occurrence_error(np.zeros_like(seed), target, ground))


def test_components_by_hand():
    labels = np.array([[1, 0, 2, 2], [0, 1, 0, 255], [1, 0, 0, 2], [255, 0, 0, 2]], np.uint8)
    assert components(labels) == {1: 1, 2: 2}  # class 1 hangs together by corners
    truth = np.array([[1, 1, 1, 1, 1, 0, 255]], np.uint8)
    noisy = np.array([[1, 0, 1, 0, 1, 0, 1]], np.uint8)
    assert components_per_object(truth, noisy) == 3
    assert components_per_object(truth, truth) == 1
    assert math.isnan(components_per_object(truth, np.zeros_like(truth)))


def test_ignored_share_by_hand():
    assert ignored_share(np.array([[255, 0, 1, 255]], np.uint8)) == 0.5


def square(top, left, side=6, size=20):
    labels = np.zeros((size, size), np.uint8)
    labels[top : top + side, left : left + side] = 1
    return labels


def test_boundary_f_of_a_shifted_square():
    truth = square(5, 5)
    assert boundary_f(truth, truth, 0) == {1: 1.0}
    assert boundary_f(truth, square(5, 6), 1) == {1: 1.0}
    # 20 boundary pixels each; shifted by one column, the 2 x 5 of top and bottom that overlap agree
    assert boundary_f(truth, square(5, 6), 0)[1] == pytest.approx(10 / 20)
    assert boundary_f(truth, square(13, 13), 1)[1] == 0
    assert boundary_f(truth, np.zeros_like(truth), 3) == {1: 0.0}
    assert boundary_f(np.zeros_like(truth), np.zeros_like(truth), 3) == {}
    assert boundary_f(np.ones_like(truth), np.ones_like(truth), 0) == {1: 1.0}


def test_boundary_f_leaves_ignored_pixels_out():
    truth = square(5, 5)
    ringed = truth.copy()
    ringed[5:11, 11:13] = 255
    assert boundary_f(ringed, np.where(ringed == 255, np.uint8(1), truth), 0) == {1: 1.0}
    cut = truth.copy()
    cut[:, 10:] = 255  # the square's right side can't be known: its boundary is 5 + 5 + 4 pixels
    narrow = np.where(np.arange(20) < 9, truth, np.uint8(0))  # 16 boundary pixels, 12 of them shared
    assert boundary_f(cut, narrow, 0)[1] == pytest.approx(2 * 12 / (14 + 16))


def boundary_twin(truth, prediction, tolerance):
    """The slow twin: every boundary pixel against every other, for class 1."""

    def boundary(labels):
        height, width = labels.shape
        near = [(0, 1), (0, -1), (1, 0), (-1, 0)]
        return [
            (r, c)
            for r in range(height)
            for c in range(width)
            if labels[r, c] == 1
            and any(0 <= r + a < height and 0 <= c + b < width and labels[r + a, c + b] != 1 for a, b in near)
        ]

    one, two = boundary(prediction), boundary(truth)

    def share(points, others):
        near = [any(math.dist(p, o) <= tolerance for o in others) for p in points]
        return sum(near) / len(near) if near else 1.0

    precision, recall = share(one, two), share(two, one)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, (5, 7), elements=st.integers(0, 1)),
    hnp.arrays(np.uint8, (5, 7), elements=st.integers(0, 1)),
    st.sampled_from([0, 1, 1.5, 2]),
)
def test_boundary_f_agrees_with_all_pairs(truth, prediction, tolerance):
    got = boundary_f(truth, prediction, tolerance)
    if truth.any() and prediction.any():
        assert got[1] == pytest.approx(boundary_twin(truth, prediction, tolerance))
