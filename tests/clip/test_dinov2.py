"""Another frozen encoder: transformers' own answers, on CLIP's grid, from a folder, once loaded never changed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vpl.clip.dinov2 import MEAN, STD, FrozenDinov2
from vpl.errors import ModelError
from vpl.method.views import View, guide_of


def test_patches_are_transformers_own(dinov2, dinov2_folder):
    """Image to features by hand: Pillow's bicubic, ImageNet's mean and deviation, the model, the class token off."""
    from transformers import Dinov2Model

    image = np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8)
    found = guide_of(dinov2, [View(image, (0,), (50, 71))], (3, 4))
    small = np.asarray(Image.fromarray(image).resize((4 * 14, 3 * 14), Image.Resampling.BICUBIC)) / 255
    pixels = torch.from_numpy((small - np.array(MEAN)) / np.array(STD)).float().permute(2, 0, 1)[None]
    model = Dinov2Model.from_pretrained(dinov2_folder).eval()
    with torch.no_grad():
        theirs = model(pixel_values=pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)
    assert found.shape == (1, 12, 24) and not found.requires_grad


def test_it_is_frozen_and_its_digest_is_that_of_what_it_answers(dinov2, dinov2_folder, tmp_path):
    assert dinov2.train().training is False and not any(one.requires_grad for one in dinov2.parameters())
    first = dinov2.weights_hash
    again = FrozenDinov2.load(str(dinov2_folder), "cpu")
    assert again.weights_hash == first
    again.model.layernorm.bias.data[0] += 1
    assert again.weights_hash != first
    folder = shutil.copytree(dinov2_folder, tmp_path / "other")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    other = FrozenDinov2.load(str(folder), "cpu")
    assert other.mean == (0.5, 0.5, 0.5) and other.weights_hash != first


@pytest.mark.parametrize("fault", ["absent", "no config", "a CLIP", "no weights", "a weight less", "another size"])
def test_what_can_not_be_used_is_told(dinov2_folder, tiny_folder, tmp_path, fault):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(dinov2_folder, tmp_path / "dino")
    weights = folder / "model.safetensors"
    if fault == "absent":
        folder, words = tmp_path / "none", "holds no config.json; give hf:facebook/dinov2-small"
    elif fault == "no config":
        (folder / "config.json").unlink()
        words = "holds no config.json"
    elif fault == "a CLIP":
        folder, words = tiny_folder, "model of type 'clip'; expected dinov2"
    elif fault == "no weights":
        weights.unlink()
        words = "holds no weights"
    else:
        state = load_file(weights)
        first = state.pop("layernorm.weight")
        save_file(state if fault == "a weight less" else state | {"layernorm.weight": first[:3].clone()}, weights)
        words = r"no complete DINOv2: layernorm\.weight is missing" if fault == "a weight less" else "can't be read"
    with pytest.raises(ModelError, match=words):
        FrozenDinov2.load(str(folder), "cpu")
