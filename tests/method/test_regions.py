"""Where a region is, and how regions of several batches become one list."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vpl.config import ClipConfig, Config, PrototypeConfig
from vpl.errors import ConfigError
from vpl.method import regions, selfself
from vpl.method.regions import Regions
from vpl.method.views import View, encode, pixels_of


def test_a_region_is_where_its_seed_is_above_phi():
    cam = torch.tensor([[[0.9, 0.5, 0.1]], [[0.0, 0.6, 0.1]]])
    masks = regions._region_masks(cam, PrototypeConfig(phi=0.5, background_phi=0.2))
    assert masks.tolist() == [[[True, False, False]], [[False, True, False]], [[False, False, True]]]


def test_regions_of_two_batches_are_joined_under_the_numbers_of_their_images():
    one = Regions(torch.eye(2), torch.tensor([0, -1]), torch.tensor([0, 1]), torch.tensor([0.5, 1.0]))
    both = Regions.joined([one.numbered((7, 3)), one.numbered((2, 9))])
    assert both.images.tolist() == [7, 3, 2, 9] and both.classes.tolist() == [0, -1, 0, -1]
    assert both.tag_ranks.tolist() == [0.5, 1.0, 0.5, 1.0] and both.embeddings.shape == (4, 2)


def test_masked_regions_are_as_large_as_the_encoder_s_input(tiny_clip, monkeypatch):
    """Of an image that `max_patches` makes smaller, a region is embedded at that size too."""
    image = np.random.default_rng(0).integers(0, 256, (160, 96, 3), dtype=np.uint8)
    config = ClipConfig(max_patches=20)
    view = View(image, (0,), (160, 96))
    pixels = pixels_of(tiny_clip, view, config)
    h, w = (side // tiny_clip.patch for side in pixels.shape[1:])
    assert h * w <= 30, "240 without the bound"
    seen = []
    monkeypatch.setattr(tiny_clip, "embed_images", lambda given: seen.append(given) or torch.zeros(len(given), 2))
    regions._masked_embeddings(tiny_clip, view, torch.ones(2, h, w, dtype=torch.bool))
    assert torch.equal(seen[0][1], pixels)


@pytest.mark.parametrize("name", ["sclip", "maskclip"])
def test_embeddings_are_pooled_from_the_features_that_are_named(tiny_clip, name):
    view = View(np.random.default_rng(2).integers(0, 256, (32, 40, 3), dtype=np.uint8), (0, 1), (32, 40))
    features, text = encode(tiny_clip, [view], ClipConfig()), torch.eye(tiny_clip.dim)[:3]
    cam = torch.zeros(2, *features.grid)
    cam[0, 1, 2] = cam[1, 0, 0] = cam[1, 3, 4] = 1.0

    def found(**values):
        return regions.regions(tiny_clip, features, [view], [cam], text, 3, PrototypeConfig(**values))

    dense = selfself.dense(tiny_clip.image, features.last, features.grid, name)[0].unflatten(0, features.grid)
    expected = [dense[1, 2], (dense[0, 0] + dense[3, 4]) / 2]
    for one, pooled in zip(found(features=name).embeddings, expected, strict=False):
        torch.testing.assert_close(one, pooled / pooled.norm(), atol=1e-4, rtol=0)
    assert torch.equal(found().embeddings, found(features="plain").embeddings)
    assert not torch.allclose(found().embeddings, found(features=name).embeddings, atol=1e-2)


def test_masked_regions_pool_nothing():
    with pytest.raises(ConfigError, match=r"prototypes\.features is 'sclip', and prototypes\.region = masked pools no"):
        Config().with_values({"prototypes.region": "masked", "prototypes.features": "sclip"})
