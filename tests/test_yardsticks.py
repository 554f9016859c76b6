"""What benchmarks measure against makes the same masks as vpl, for an encoder of either activation."""

import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from golden_case import FOLDER
from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import preset
from vpl.method.labeller import Labeller
from vpl.method.views import View, pixels_of
from vpl.scenes.draw import draw


@pytest.mark.parametrize("name", ["pocket", str(FOLDER / "openai_tiny.safetensors")], ids=["gelu", "quick gelu"])
def test_the_fields_loop_makes_the_same_maps(monkeypatch, name):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    loop = importlib.import_module("stages").per_class_loop
    clip, classes = FrozenClip.load(name, device="cpu"), scene_classes()
    config = preset("clip-es").with_values({"clip.precision": "float32"})
    count = len(classes)
    text = F.normalize(torch.randn(count + 8, clip.dim, generator=torch.Generator().manual_seed(0)), dim=1)
    labeller = Labeller(clip, text, None, count, config)
    for place in range(3):
        scene = draw(11, place, "demo", 96, with_mask=False)
        view = View(scene.image, tuple(classes.index(tag) for tag in scene.tags), (96, 96))
        rows = text[[*view.tags, *range(count, len(text))]]
        field = loop(clip, pixels_of(clip, view, config.clip)[None], rows, len(view.tags))
        own = labeller.drafts([view], pseudo=False)[0].seeds["refined"]
        torch.testing.assert_close(own, field, atol=1e-4, rtol=0)
