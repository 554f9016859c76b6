"""Where a region is, and how regions of several batches become one list."""

from __future__ import annotations

import torch

from vpl.config import PrototypeConfig
from vpl.method import regions
from vpl.method.regions import Regions


def test_a_region_is_where_its_seed_is_above_phi():
    cam = torch.tensor([[[0.9, 0.5, 0.1]], [[0.0, 0.6, 0.1]]])
    masks = regions._region_masks(cam, PrototypeConfig(phi=0.5, background_phi=0.2))
    assert masks.tolist() == [[[True, False, False]], [[False, True, False]], [[False, False, True]]]


def test_regions_of_two_batches_are_joined_under_the_numbers_of_their_images():
    one = Regions(torch.eye(2), torch.tensor([0, -1]), torch.tensor([0, 1]), torch.tensor([0.5, 1.0]))
    both = Regions.joined([one.numbered((7, 3)), one.numbered((2, 9))])
    assert both.images.tolist() == [7, 3, 2, 9] and both.classes.tolist() == [0, -1, 0, -1]
    assert both.tag_ranks.tolist() == [0.5, 1.0, 0.5, 1.0] and both.embeddings.shape == (4, 2)
