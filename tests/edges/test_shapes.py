"""shapes.py: COCO's shapes, drawn to the pixel as pycocotools draws them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as oracle

from vpl.edges.shapes import Shape, draw, pixels
from vpl.errors import DataError
from vpl.exports.coco import rle

places = st.one_of(st.integers(-4, 30), st.floats(-3, 26, width=32))


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 23), st.integers(1, 19), st.lists(st.tuples(places, places), min_size=3, max_size=9))
def test_polygons_are_pycocotools_own(height, width, points):
    flat = [float(one) for point in points for one in point]
    wanted = oracle.decode(oracle.frPyObjects([flat], height, width))[..., 0].astype(bool)
    assert np.array_equal(pixels([flat], height, width), wanted)


@settings(deadline=None, max_examples=60)
@given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_runs_are_read_compressed_or_not(mask):
    packed = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": [*mask.shape], "counts": packed["counts"].decode()}
    assert np.array_equal(pixels(text, *mask.shape), mask) and np.array_equal(pixels(rle(mask), *mask.shape), mask)
    flat = mask.ravel(order="F")
    edges = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    runs = ([0] if flat[0] else []) + np.diff(edges).tolist()
    assert np.array_equal(pixels({"size": [*mask.shape], "counts": runs}, *mask.shape), mask)


def test_several_polygons_are_one_object_and_two_classes_on_one_pixel_are_ignored():
    left, right = [0, 0, 2, 0, 2, 3, 0, 3], [1, 0, 4, 0, 4, 3, 1, 3]
    assert draw([Shape(3, [left, right])], 3, 5).tolist() == [[3, 3, 3, 3, 0]] * 3
    assert draw([Shape(3, [left]), Shape(3, [right])], 3, 5).tolist() == [[3, 3, 3, 3, 0]] * 3
    assert draw([Shape(3, [left]), Shape(1, [right])], 3, 5).tolist() == [[3, 255, 1, 1, 0]] * 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": [3, 4], "counts": [15]}, "of size"),
        ({"size": [3, 5], "counts": [16]}, "cover 16 pixels, its image has 15"),
        ({"size": [3, 5], "counts": [-1, 16]}, "no counts"),
        ({"size": [3, 5], "counts": "~~~"}, "a letter"),
        ({"size": [3, 5], "counts": "PPPPPPPPPPPPPPPPPPPPPPPPPPP"}, "a letter"),
        ([[1, 2, 3]], "no list of x, y"),
        ([[1, 2, 3, 4]], "fewer than three"),
        ([[1, 2, 3, 4, 1e300, 5]], "far outside"),
        ([["a", 2, 3, 4, 5, 6]], "no list of x, y"),
        ("abc", "neither"),
        (7, "neither"),
    ],
)
def test_malformed_shapes_are_told(given, words):
    with pytest.raises(DataError, match=words):
        pixels(given, 3, 5)


def test_a_border_as_long_as_a_wish_takes_no_memory():
    far = [[-(2.0**20), 0, 2.0**20, 1] * 50]
    with pytest.raises(DataError, match="longer than any in a photograph"):
        pixels(far, 10, 10)
