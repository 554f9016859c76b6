"""Heads, losses and protocols of published peers against what their own code answers (golden files)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from golden_case import FOLDER, cases, furthest, tensors
from vpl.clip.model import FrozenClip
from vpl.config import DecoderConfig
from vpl.edges import images
from vpl.method.refine import affinity as spread_of
from vpl.method.refine import minmax, refine, upsample
from vpl.network import affinity, multiscale, online, tcl
from vpl.network.grids import to_pixels
from vpl.network.losses import balanced_cross_entropy
from vpl.network.weclip import Weclip

OURS = {
    "decoder_fts_fuse.linears_modulelist.": "projections.",
    ".proj.": ".0.",
    ".proj_2.": ".2.",
    "decoder_fts_fuse.linear_fuse.": "fuse.",
    "decoder.transformer.resblocks.": "blocks.",
    ".attn.in_proj_": ".qkv.",
    ".attn.out_proj.": ".out.",
    ".ln_1.": ".norm_attention.",
    ".ln_2.": ".norm_mlp.",
    ".mlp.c_fc.": ".mlp.0.",
    ".mlp.c_proj.": ".mlp.2.",
    "decoder.linear_pred.": "classify.",
}
"""WeCLIP's names of weights, in part, and ours."""


def weclip(pinned: dict[str, torch.Tensor]) -> Weclip:
    """The head with a golden file's weights."""
    weights = {}
    for key, one in pinned.items():
        if key.startswith("weights/"):
            name = key.removeprefix("weights/")
            for theirs, ours in OURS.items():
                name = name.replace(theirs, ours)
            weights[name] = one.flatten(1) * pinned["weight_unit"] if one.dtype == torch.int8 else one
    width, read = weights["fuse.weight"].shape
    config = DecoderConfig(width=width, blocks=int(pinned["layers"]), heads=int(pinned["heads"]), skip_last=0)
    encoder_width, classes = weights["projections.0.0.weight"].shape[1], len(weights["classify.bias"]) - 1
    head = Weclip(read // width, encoder_width, classes, config)
    head.load_state_dict(weights)
    return head.eval()


@pytest.mark.parametrize("path", cases("weclip_head*.npz"), ids=lambda path: path.stem)
def test_weclip_head(path):
    pinned = tensors(path)
    head, grid = weclip(pinned), tuple(pinned["grid"].tolist())
    fused = head.tokens(tuple(pinned["block_tokens"]))
    assert furthest(fused.transpose(1, 2).unflatten(2, grid), pinned["fused"]) < 1e-4
    assert furthest(affinity.affinity(fused), pinned["attn_pred"]) < 1e-4
    assert furthest(head.logits(fused, grid), pinned["logits"]) < 1e-4


@pytest.mark.parametrize("path", cases("weclip_losses*.npz"), ids=lambda path: path.stem)
def test_weclip_losses(path):
    pinned = tensors(path)
    logits = pinned["logits"].requires_grad_()
    target, grid = pinned["labels"], tuple(pinned["grid"].tolist())
    seg = balanced_cross_entropy(to_pixels(logits, tuple(target.shape[1:])), target)
    seg.backward()
    assert abs(seg.item() - float(pinned["seg_loss"])) < 1e-5
    assert furthest(logits.grad, pinned["logits_grad"]) < 1e-6

    labels = affinity.affinity_labels(target, grid, int(pinned["radius"]))
    assert torch.equal(labels, pinned["affinity_labels"])
    assert torch.equal(affinity.affinity_labels(target, grid, None), pinned["affinity_labels_without_mask"])
    counted = int(pinned["positive_count"]), int(pinned["negative_count"])  # what the reference divides by: n + 1
    assert tuple(count + 1 for count in affinity.pair_counts(labels)) == counted
    a = pinned["affinity"].requires_grad_()
    loss = affinity.affinity_loss(a, labels)
    loss.backward()
    assert abs(loss.item() - float(pinned["affinity_loss"])) < 1e-5
    assert furthest(a.grad, pinned["affinity_grad"]) < 1e-6
    assert abs((seg + pinned["affinity_weight"] * loss).item() - float(pinned["total"])) < 1e-5


@pytest.mark.parametrize("path", cases("weclip_online_*.npz"), ids=lambda path: path.stem)
def test_weclip_online(path):
    pinned = tensors(path)
    tokens = pinned["decoder_features"].flatten(1).T[None]
    a = affinity.affinity(tokens)[0]
    assert furthest(a, pinned["affinity"]) < 1e-4
    attention = pinned["attention"][:, 1:, 1:]
    last = attention[-int(pinned["last_layers"]) :]
    assert online.kept_layers(last, a).tolist() == pinned["kept_layers"].bool().tolist()
    size, box = tuple(pinned["image"].shape[:2]), float(pinned["box_threshold"])
    classes = pinned["classes"].tolist()
    seeds = online.refined_seeds(last, a, pinned["cam"], size, 3, box)
    assert furthest(seeds, pinned["refined_full_online"]) < 2e-3
    labels = online.labels_of(pinned["pixels"], seeds, classes)
    assert (labels == pinned["labels_online"]).double().mean() >= 0.995
    for kind, joint in (
        ("online", online.joint_attention(last, a)),
        ("attention_only", attention[-8:].mean(dim=0)),
    ):
        refined = refine(spread_of(joint[None])[0], pinned["cam"], box)
        assert furthest(refined, pinned[f"refined_{kind}"]) < 1e-4
        assert furthest(upsample(minmax(refined), size), pinned[f"refined_full_{kind}"]) < 2e-3


@pytest.mark.parametrize("path", cases("tcl_losses*.npz"), ids=lambda path: path.stem)
def test_tcl_losses(path):
    pinned = tensors(path)
    own = torch.eye(len(pinned["masks"]), dtype=torch.bool)

    def contrast(masks):
        regions = tcl.text_regions(pinned["image_embedding"], masks)
        return tcl.text_contrast(regions, pinned["text_embedding"], own, ~own, float(pinned["temperature"]))

    terms = {
        "tclf_loss": contrast,
        "area_loss": lambda masks: tcl.area(masks, own, float(pinned["positive_area"])),
        "neg_area_loss": lambda masks: tcl.area(masks, ~own, float(pinned["negative_area"])),
        "tv_mask_loss": tcl.total_variation,
    }
    assert furthest(tcl.text_regions(pinned["image_embedding"], pinned["masks"]), pinned["pooled"]) < 1e-5
    found = {}
    for name, term in terms.items():
        masks = pinned["masks"].clone().requires_grad_()
        loss = term(masks)
        loss.backward()
        assert abs(loss.item() - float(pinned[name])) < 1e-5, name
        assert furthest(masks.grad, pinned[f"{name}_grad"]) < 1e-5, name
        found[name] = loss.item()
    smooth = float(tcl.total_variation(pinned["image_embedding"]))
    assert abs(smooth - float(pinned["tv_image_loss"])) < 1e-5
    contrasting, areas, steps = pinned["weights"].tolist()
    total = contrasting * found["tclf_loss"] + areas * (found["area_loss"] + found["neg_area_loss"])
    total += steps * (found["tv_mask_loss"] + smooth)
    assert abs(total - float(pinned["total_without_image_level"])) < 1e-5


@pytest.mark.parametrize("path", sorted(set(cases("multiscale_*.npz")) - set(FOLDER.glob("multiscale_logits_*.npz"))),
                         ids=lambda path: path.stem)  # fmt: skip
def test_multiscale_maps(path):
    pinned = tensors(path)
    clip = FrozenClip.load(FOLDER / "openai_tiny.safetensors", device="cpu")
    scales = [str(round(float(scale), 4)) for scale in pinned["scales"]]
    image = pinned["image"].numpy()
    for scale in scales:
        pixels = images.to_pixels(image, clip.patch, clip.mean, clip.std, float(scale))
        assert furthest(pixels, pinned[f"pixels_{scale}"]) < 1e-5
    maps, mirrored = ([pinned[f"{kind}_{scale}"] for scale in scales] for kind in ("maps", "maps_flipped"))
    assert furthest(multiscale.joint_cams(maps, mirrored, image.shape[:2]), pinned["cam"]) < 1e-4


@pytest.mark.parametrize("path", cases("multiscale_logits_*.npz"), ids=lambda path: path.stem)
def test_multiscale_logits(path):
    pinned = tensors(path)
    scales = [f"{float(scale):g}" for scale in pinned["scales"]]
    labels = pinned["labels"]
    size = (labels.shape[0], labels.shape[1])
    sizes = multiscale.sizes_at(size, int(pinned["resize_long"]), pinned["scales"].tolist())
    assert sizes == [tuple(one) for one in pinned["network_sizes"].tolist()]
    seen, mirrored = ([pinned[f"scale_{scale}{kind}"][None] for scale in scales] for kind in ("", "_flipped"))
    logits = multiscale.joint_logits(seen, mirrored)[0]
    assert furthest(logits, pinned["logits"]) < 1e-5
    assert np.array_equal(to_pixels(logits[None], size)[0].argmax(dim=0).numpy(), labels.numpy())


def test_sizes_are_cut_not_rounded():
    assert multiscale.sizes_at((97, 128), 128, (1.0, 0.75)) == [(97, 128), (72, 96)]
    assert multiscale.sizes_at((50, 150), 128, (1.0,)) == [(42, 128)]
