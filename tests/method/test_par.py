"""PAR against the reference's answers and a loop over pixels."""

import inspect
import math

import pytest
import torch

from golden_case import cases, furthest, tensors
from vpl.errors import DataError
from vpl.method.par import par, par_at_once


@pytest.mark.parametrize("path", cases("par_*.npz"), ids=lambda path: path.stem)
def test_the_reference(path):
    pinned = tensors(path)
    dilations = tuple(pinned["dilations"].tolist())
    given = {"dilations": dilations, "colour": float(pinned["w1"]), "place": float(pinned["w2"])}
    for rounds in (1, 10, 20):
        ours = par(pinned["pixels"][None], pinned["masks"][None], rounds, **given)[0]
        assert furthest(ours, pinned[f"refined_{rounds}"]) < 1e-4
    assert furthest(par(pinned["pixels"][None], pinned["masks"][None])[0], pinned["refined_20"]) < 1e-4, "the defaults"
    levels = pinned["image"].permute(2, 0, 1)[None].float()
    assert furthest(par(levels, pinned["masks"][None], 20, **given)[0], pinned["refined_20"]) < 1e-4
    large = pinned["large_image"].permute(2, 0, 1)[None].float()
    ours = par(large, pinned["masks"][None], 20, **given)[0]
    assert furthest(ours, pinned["refined_20_from_large_image"]) < 1e-4


def slow_round(image, masks, dilations, colour, place):
    """One round, one pixel at a time, in Python's floats."""
    _, H, W = image.shape
    found = torch.zeros_like(masks)
    steps = [(step * y, step * x) for step in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    lengths = [math.hypot(*step) for step in steps]
    middle = sum(lengths) / len(lengths)
    spread = math.sqrt(sum((one - middle) ** 2 for one in lengths) / (len(lengths) - 1))
    for y in range(H):
        for x in range(W):
            places = [(min(max(y + dy, 0), H - 1), min(max(x + dx, 0), W - 1)) for dy, dx in steps]
            near = torch.stack([image[:, v, u] for v, u in places])
            std = near.std(0)
            tints = (-(((near - image[:, y, x]).abs() / (std + 1e-8) / colour) ** 2).mean(1)).softmax(0)
            away = (-((torch.tensor(lengths) / (spread + 1e-8) / colour) ** 2)).softmax(0)
            for weight, (v, u) in zip(tints + place * away, places, strict=True):
                found[:, y, x] += weight * masks[:, v, u]
    return found


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (9, 4)])
def test_agrees_with_a_loop_over_pixels_alone_and_in_a_batch(size):
    random = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, *size, generator=random, dtype=torch.float64)
    masks = torch.rand(2, 3, *size, generator=random, dtype=torch.float64)
    found = par(images, masks, 1, (1, 3), 0.4, 0.05)
    for image, given, ours in zip(images, masks, found, strict=True):
        torch.testing.assert_close(ours, slow_round(image, given, (1, 3), 0.4, 0.05), atol=1e-6, rtol=0)
        torch.testing.assert_close(ours, par(image[None], given[None], 1, (1, 3), 0.4, 0.05)[0])


def test_weights_sum_to_a_little_more_than_one_as_in_the_reference():
    images, masks = torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(0)), torch.ones(1, 2, 8, 9)
    torch.testing.assert_close(par(images, masks, 3), masks * 1.01**3)


def test_nothing_moves_with_no_rounds_and_arguments_stay():
    images, masks = torch.rand(1, 3, 8, 9), torch.rand(1, 2, 8, 9)
    before = images.clone(), masks.clone()
    assert torch.equal(par(images, masks, 0), masks)
    par(images, masks, 2)
    assert torch.equal(images, before[0]) and torch.equal(masks, before[1])
    assert par(images, masks[:, :0], 2).shape == (1, 0, 8, 9)


def test_one_set_of_masks_an_image():
    with pytest.raises(DataError, match="1 images and 2 sets of masks"):
        inspect.unwrap(par)(torch.rand(1, 3, 4, 4), torch.rand(2, 1, 4, 4))


def test_all_neighbours_at_once_is_the_same():
    generator = torch.Generator().manual_seed(2)
    images, masks = (torch.rand(2, 3, 9, 7, generator=generator) for _ in range(2))
    ours = par(images, masks, rounds=3, dilations=(1, 3, 12))
    torch.testing.assert_close(par_at_once(images, masks, 3, (1, 3, 12)), ours)
    plain = torch.full((2, 3, 9, 7), 0.3)
    torch.testing.assert_close(par_at_once(plain, masks, 3, (1, 3)), par(plain, masks, 3, (1, 3)))


@pytest.mark.parametrize("size", [(37, 53), (67, 1), (1, 30), (70, 26), (33, 31)])
def test_bands_of_rows_change_no_byte(monkeypatch, size):
    draw = torch.Generator().manual_seed(3)
    images, masks = torch.rand(2, 3, *size, generator=draw), torch.rand(2, 3, *size, generator=draw)
    monkeypatch.setattr("vpl.method.par.PIXELS_AT_ONCE", 10**9)
    whole = par(images, masks, 3)
    for pixels in (1, 32 * size[1], 49 * size[1] + 1):
        monkeypatch.setattr("vpl.method.par.PIXELS_AT_ONCE", pixels)
        assert torch.equal(par(images, masks, 3), whole)
