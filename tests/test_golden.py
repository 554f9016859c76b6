"""Agreement with published reference implementations, on the files of golden/."""

from __future__ import annotations

import pytest
import torch

from golden_case import FOLDER, cases, furthest, tensors
from vpl.clip.model import FrozenClip
from vpl.method.crf import dense_crf
from vpl.method.prototypes import soft_labels
from vpl.method.refine import affinity, minmax, refine, upsample
from vpl.method.seeds import seeds


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load(FOLDER / "openai_tiny.safetensors", device="cpu")


def test_text(clip):
    pinned = tensors(FOLDER / "text.npz")
    assert furthest(clip.encode_tokens(pinned["token_ids"]), pinned["text_embeddings"]) < 1e-5


@pytest.mark.parametrize("path", cases("cam_*.npz"), ids=lambda path: path.stem)
def test_cam(path, clip):
    pinned = tensors(path)
    features = clip.encode(pinned["pixels"][None])
    prototypes = torch.cat([pinned["foreground"][pinned["present"]], pinned["background"]])
    maps = seeds(clip, features, [prototypes], [len(pinned["present"])], clip.logit_scale)
    assert furthest(features.attention[0], pinned["attention"]) < 1e-5
    assert furthest(maps.scores[0], pinned["scores"][0]) < 1e-4
    assert furthest(maps.cam[0], pinned["cam"]) < 1e-4

    m = affinity(features.attention)[0]
    refined = refine(m, maps.cam[0], float(pinned["box_threshold"]))
    assert furthest(minmax(refined), minmax(pinned["refined"])) < 1e-4
    size = tuple(pinned["image"].shape[:2])
    assert furthest(upsample(minmax(refined), size), pinned["refined_full"]) < 2e-3


def test_sinkhorn_labels():
    pinned = tensors(FOLDER / "prototypes.npz")
    q = soft_labels(pinned["features"], pinned["text_prototypes"], None, float(pinned["tau_text"]), sinkhorn_rounds=20)
    assert furthest(q, pinned["sinkhorn_labels"]) < 1e-4


@pytest.mark.parametrize("path", cases("crf_*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("q_rounds1", {"rounds": 1}),
        ("q_rounds10", {"rounds": 10}),
        (
            "q_bilateral20_13_w10_rounds5",
            {"rounds": 5, "gaussian_weight": 0, "bilateral_sigma": 20, "bilateral_color": 13, "bilateral_weight": 10},
        ),
    ],
)
def test_crf(path, key, settings):
    pinned = tensors(path)
    ours, theirs = dense_crf(pinned["image"], pinned["probabilities"], **settings), pinned[key].float()
    assert ours.shape == theirs.shape
    assert (ours.argmax(0) == theirs.argmax(0)).float().mean() >= 0.995
    assert (ours - theirs).abs().mean() <= 0.005
