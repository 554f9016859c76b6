"""Cross-entropy and RSC against tables computed by hand and slow twins; gradients go through the masks alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vpl.network.losses import filled_target, masked, masked_cross_entropy, pooled, regional_contrast

LOG2, LOG3 = math.log(2), math.log(3)


# ---------------------------------------------------------------------------------------------------- cross-entropy
def test_cross_entropy_table():
    # One image, 1x3 pixels, three labels. Softmax of (0, 0, 0) is 1/3; of (ln 2, 0, 0) it is (1/2, 1/4, 1/4).
    logits = torch.zeros(1, 3, 1, 3)
    logits[0, 0, 0, 1] = LOG2
    target = torch.tensor([[[2, 0, 255]]], dtype=torch.uint8)
    assert masked_cross_entropy(logits, target).item() == pytest.approx((LOG3 + LOG2) / 2)
    assert masked_cross_entropy(logits, target, pixels=8).item() == pytest.approx((LOG3 + LOG2) / 8)


def test_all_ignored_is_zero_with_zero_gradient():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = masked_cross_entropy(logits, torch.full((2, 4, 5), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.abs().max() == 0.0


def test_parts_that_share_a_count_add_up():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, 7, generator=generator)
    target = torch.randint(0, 3, (4, 5, 7), generator=generator).to(torch.uint8)
    target[0] = 255
    target[1, :2] = 255
    pixels = int((target != 255).sum())
    parts = [masked_cross_entropy(logits[n : n + 1], target[n : n + 1], pixels) for n in range(4)]
    torch.testing.assert_close(sum(parts), masked_cross_entropy(logits, target))


# ------------------------------------------------------------------------------------------------- online refinement
def test_ignored_pixels_take_the_label_of_patches_like_them():
    # A 1x4 grid of 2x2-pixel patches of two kinds, aabb; the second and the third patch are ignored.
    a, b = [1.0, 0.0], [0.0, 1.0]
    target = torch.tensor([[[3, 3, 255, 255, 255, 255, 7, 7]] * 2], dtype=torch.uint8)
    tokens = torch.tensor([[a, a, b, b]])
    filled = filled_target(target, tokens, (1, 4), 0.1, 0.95)
    assert filled[0, 0].tolist() == [3, 3, 3, 255, 255, 7, 7, 7]
    assert torch.equal(filled_target(target, tokens, (1, 4), 0.1, 0.5)[0, 1], torch.tensor([3] * 4 + [7] * 4).byte())
    unsure = filled_target(target, tokens, (1, 4), 100.0, 0.95)
    assert torch.equal(unsure, target)


def test_labelled_pixels_never_change_and_nothing_new_comes():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (3, 9, 12), generator=generator).to(torch.uint8)
    target[torch.rand(3, 9, 12, generator=generator) > 0.3] = 255
    target[2] = 255
    filled = filled_target(target, torch.randn(3, 12, 5, generator=generator), (3, 4), 0.1, 0.6)
    kept = target != 255
    assert torch.equal(filled[kept], target[kept]) and (filled[2] == 255).all()
    for before, after in zip(target, filled, strict=True):
        assert set(after.unique().tolist()) <= set(before.unique().tolist())
    assert (filled != target).any()


# -------------------------------------------------------------------------------------------------------------- RSC
# Two classes (cat, dog) and one background prototype, orthogonal; a grid of 1x2 patches, the left one shows a cat and
# the right one background. Temperature 1, so that softmax of a unit row on axis k is (e, 1, 1) / (e + 2).
AXES = torch.eye(3)
PATCHES = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 0.0, 5.0]]])
CAT = torch.tensor([[True, False]])
DOG_ABSENT = torch.tensor([[False, True]])
OWN, OTHER = math.e / (math.e + 2), 1 / (math.e + 2)


def contrast(masks, visible=CAT, absent=DOG_ABSENT, patches=PATCHES, **options):
    return regional_contrast(masks, visible, absent, pooled(patches), AXES, 1.0, **options)


def test_table_perfect_mask():
    # cat's mask on the left patch alone, dog's on none; the complement is the right patch: background.
    terms = contrast(torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]]))
    assert terms.pull.item() == pytest.approx(-math.log(OWN), abs=1e-5)
    assert terms.complement.item() == pytest.approx(-math.log(1 - OTHER), abs=1e-5)
    assert terms.negatives.item() == 0.0
    assert terms.total.item() == pytest.approx(-math.log(OWN) - math.log(1 - OTHER), abs=1e-5)


def test_table_cat_missed_and_called_dog():
    # cat's mask lies on the background; the complement is the cat; dog's mask lies on the cat and takes half the image.
    terms = contrast(torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]]))
    assert terms.pull.item() == pytest.approx(-math.log(OTHER), abs=1e-5)
    assert terms.complement.item() == pytest.approx(-math.log(1 - OWN), abs=1e-5)
    assert terms.negatives.item() == pytest.approx(0.5 * -math.log(1 - OWN), abs=1e-5)


def test_table_soft_mask_is_a_weighted_mean():
    # weights 0.5 and 0.1 of (3,0,0) and (0,0,5): (1.5, 0, 0.5) / 0.6, of unit length (3, 0, 1) / sqrt(10).
    terms = contrast(torch.tensor([[[[0.5, 0.1]], [[0.0, 0.0]]]]))
    row = torch.tensor([3.0, 0.0, 1.0]) / math.sqrt(10)
    assert terms.pull.item() == pytest.approx(-row.log_softmax(0)[0].item(), abs=1e-5)


def test_terms_can_be_turned_off():
    masks = torch.tensor([[[[0.2, 0.6]], [[0.5, 0.1]]]])
    both, pull, suppress = contrast(masks), contrast(masks, suppress=False), contrast(masks, pull=False)
    assert pull.total == both.pull and pull.complement == 0 and pull.negatives == 0
    assert suppress.pull == 0 and suppress.total == both.complement + both.negatives


def test_padding_counts_as_nothing():
    # The same image with two patches of padding on its right, filled with something else.
    masks = torch.tensor([[[[0.7, 0.2]], [[0.1, 0.3]]]])
    padded = torch.cat([masks, torch.full((1, 2, 1, 2), 0.4)], dim=3)
    patches = torch.cat([PATCHES, torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))], dim=1)
    ours = contrast(padded, patches=patches, inside=torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]))
    theirs = contrast(masks)
    for name in ("pull", "complement", "negatives"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))


def test_only_the_largest_negatives():
    masks = torch.tensor([[[[0.2, 0.1]], [[0.1, 0.1]], [[0.3, 0.2]]]])
    visible, absent = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    one = contrast(masks, visible, absent, most_negatives=1).negatives
    alone = contrast(masks, visible, torch.tensor([[False, False, True]])).negatives
    both = contrast(masks, visible, absent).negatives
    torch.testing.assert_close(one, alone)
    assert both > one


@pytest.mark.parametrize("case", ["no tags", "one prototype"])
def test_nothing_to_compare_is_zero_and_still_differentiable(case):
    masks = torch.full((2, 2, 3, 3), 0.3, requires_grad=True)
    visible = torch.zeros(2, 2, dtype=torch.bool) if case == "no tags" else torch.tensor([[True, False]] * 2)
    table = torch.eye(4) if case == "no tags" else torch.eye(4)[:1]
    terms = regional_contrast(masks, visible, ~visible, pooled(torch.ones(2, 9, 4)), table, 0.03)
    terms.total.backward()
    assert terms.total.item() == 0.0 and masks.grad.abs().max() == 0.0


def test_extreme_masks_stay_finite():
    for value in (0.0, 1.0):
        masks = torch.full((1, 2, 1, 2), value, requires_grad=True)
        terms = regional_contrast(masks, CAT, DOG_ABSENT, pooled(PATCHES * 1e4), AXES, 1e-3)
        terms.total.backward()
        assert torch.isfinite(terms.total) and torch.isfinite(masks.grad).all()


def slow_contrast(masks, visible, absent, patches, table, temperature):
    """The three sums of the module's docstring as loops."""

    def scores(mask, image):
        region = sum(weight * token for weight, token in zip(mask.flatten(), patches[image], strict=True))
        return (F.normalize(region / mask.sum(), dim=0) @ table.T / temperature).softmax(0)

    pull = complement = negatives = 0.0
    for n in range(len(masks)):
        tags = [k for k in range(masks.shape[1]) if visible[n, k]]
        for k in tags:
            share = 1 / (len(tags) * len(masks))
            pull -= share * scores(masks[n, k], n)[k].log()
            outside = 1 - sum(masks[n, tag] for tag in tags)
            complement -= share * (1 - scores(outside, n)[k]).log()
            for j in range(masks.shape[1]):
                if absent[n, j]:
                    negatives -= share * masks[n, j].mean() * (1 - scores(masks[n, j], n)[k]).log()
    return pull, complement, negatives


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 3), classes=st.integers(1, 5), h=st.integers(1, 4))
def test_agrees_with_loops(seed, count, classes, h):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(count, classes + 1, h, 3, generator=generator, dtype=torch.float64).softmax(1)[:, 1:]
    visible = torch.rand(count, classes, generator=generator) > 0.5
    absent = ~visible & (torch.rand(count, classes, generator=generator) > 0.3)
    patches = torch.randn(count, h * 3, 6, generator=generator)
    table = F.normalize(torch.randn(classes + 2, 6, generator=generator), dim=1)
    ours = regional_contrast(masks.float(), visible, absent, pooled(patches), table, 0.5)
    theirs = slow_contrast(masks, visible, absent, patches.double(), table.double(), 0.5)
    for mine, other in zip((ours.pull, ours.complement, ours.negatives), theirs, strict=True):
        assert mine.item() == pytest.approx(float(other), rel=1e-3, abs=1e-5)


def test_gradients_reach_the_masks_alone():
    logits = torch.randn(2, 4, 2, 3, requires_grad=True)
    patches = torch.randn(2, 6, 5, requires_grad=True)
    table = F.normalize(torch.randn(5, 5), dim=1).requires_grad_()
    visible = torch.tensor([[True, False, False], [False, True, True]])
    terms = regional_contrast(logits.softmax(1)[:, 1:], visible, ~visible, pooled(patches), table, 0.1)
    for term in (terms.pull, terms.complement, terms.negatives):
        logits.grad = None
        term.backward(retain_graph=True)
        assert logits.grad.abs().sum() > 0
    assert patches.grad is None and table.grad is None


def test_masked_regions_send_gradients_through_the_encoder_to_the_masks():
    weights = torch.randn(3 * 4 * 6, 5, generator=torch.Generator().manual_seed(0))
    pixels = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    seen = []

    def encode(images):
        seen.append(images.detach())
        return F.normalize(images.flatten(1) @ weights, dim=1)

    masks = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.5]]]], requires_grad=True)
    terms = regional_contrast(masks, CAT, DOG_ABSENT, masked(pixels, encode), torch.eye(5)[:3], 0.1)
    terms.total.backward()
    assert masks.grad.abs().sum() > 0 and pixels.grad is None
    assert torch.equal(seen[0][0, :, :, 0], pixels[0, :, :, 0].detach()) and seen[0][0, :, :, -1].abs().max() == 0


@pytest.mark.slow
def test_descent_on_the_logits_finds_the_object():
    # RSC alone, from nothing: cat's mask grows where the cat is and leaves the background; dog's leaves the cat.
    patches = torch.tensor([[[3.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 3.0]] * 2])
    logits = torch.zeros(1, 3, 1, 4, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        terms = regional_contrast(logits.softmax(1)[:, 1:], CAT, DOG_ABSENT, pooled(patches), AXES, 0.1)
        terms.total.backward()
        optimizer.step()
    shares = logits.softmax(1)[0, :, 0]
    assert (shares[1, :2] > 0.9).all() and (shares[1, 2:] < 0.1).all() and (shares[2, :2] < 0.1).all()
