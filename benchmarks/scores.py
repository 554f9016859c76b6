"""The label-free scores that were tried beside the committee's, which `vpl tune` follows; tune.py measures them.

Each gives one number per image, higher is better, nan where an image says nothing; none opens a truth.
Letters: K tags of one image · P prototypes · D joint width · h w patch grid · hw patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vpl.config import Config
from vpl.judge import tune
from vpl.judge.bench import Bench

FLOOR = 1e-4
"""Smallest probability that a logarithm is taken of."""
SCALE_STEP = 1.25
"""The second look of the scale score is so much larger."""


def regions_of(maps: Float[Tensor, "K h w"], exponent: float) -> Bool[Tensor, "K hw"]:
    """The patches that each tag wins against the background and the other tags."""
    background = (1 - maps.amax(dim=0, keepdim=True)).clamp(min=0) ** exponent
    best = torch.cat([background, maps]).argmax(dim=0).flatten()
    return best == torch.arange(1, len(maps) + 1, device=maps.device)[:, None]


def _images(bench: Bench, config: Config):
    """Number, unit patch tokens, seeds' regions of every image."""
    exponent = config.labels.background_exponent
    refined = bench.refined(config)
    for members, features in bench.passed(config.clip, lambda _, features: features):
        for row, number in enumerate(members):
            yield number, features, row, regions_of(refined[number], exponent)


def _pooled(patches: Float[Tensor, "hw D"], masks: Bool[Tensor, "K hw"]) -> Float[Tensor, "K D"]:
    return F.normalize(masks.to(patches) @ patches, dim=1)


def _evidence(bench: Bench, config: Config, table: Float[Tensor, "P D"], scale: float) -> np.ndarray:
    """Mean over the tags of log p(k | inside) + log(1 - p(k | outside)) with the prototypes of `table`."""
    found = np.full(len(bench.views), np.nan)
    for number, features, row, masks in _images(bench, config):
        tags = list(bench.views[number].tags)
        inside, outside = (_pooled(features.patches[row], one) for one in (masks, ~masks))
        p_in, p_out = (torch.softmax(scale * one @ table.T.to(one), dim=1) for one in (inside, outside))
        places = torch.arange(len(tags))
        good = p_in[places, tags].clamp(min=FLOOR).log() + (1 - p_out[places, tags]).clamp(min=FLOOR).log()
        empty = torch.full_like(good, 2 * math.log(FLOOR))
        some = masks.any(dim=1) & ~masks.all(dim=1)
        found[number] = float(torch.where(some, good, empty).mean())
    return found


def evidence_vision(bench: Bench, config: Config) -> np.ndarray:
    """METHOD.md 8 as it stands: under V, at τI."""
    vision = bench.lesson(config).vision.to(bench.clip.device)
    return _evidence(bench, config, vision, 1 / config.prototypes.image_temperature)


def evidence_text(bench: Bench, config: Config) -> np.ndarray:
    """The same under T at the CLIP's own temperature: a judge that no setting changes."""
    return _evidence(bench, config, bench.text(config), bench.clip.logit_scale)


def contrast(bench: Bench, config: Config) -> np.ndarray:
    """How much nearer the patches inside a region are to its mean than those outside, in cosine."""
    found = np.full(len(bench.views), np.nan)
    for number, features, row, masks in _images(bench, config):
        patches = F.normalize(features.patches[row], dim=1)
        near = _pooled(patches, masks) @ patches.T
        inside = (near * masks).sum(1) / masks.sum(1).clamp(min=1)
        outside = (near * ~masks).sum(1) / (~masks).sum(1).clamp(min=1)
        some = masks.any(dim=1) & ~masks.all(dim=1)
        found[number] = float(torch.where(some, inside - outside, torch.zeros_like(inside)).mean())
    return found


def separation(bench: Bench, config: Config) -> np.ndarray:
    """Share of the variance of an image's patch tokens that lies between its labels (background and tags): η²."""
    found = np.full(len(bench.views), np.nan)
    for number, features, row, masks in _images(bench, config):
        patches = F.normalize(features.patches[row], dim=1)
        groups = torch.cat([~masks.any(dim=0, keepdim=True), masks]).to(patches)
        size = groups.sum(1, keepdim=True)
        means = groups @ patches / size.clamp(min=1)
        center = patches.mean(0)
        between = (size * (means - center).square().sum(1, keepdim=True)).sum()
        found[number] = float(between / (patches - center).square().sum().clamp(min=1e-12))
    return found


def cut(bench: Bench, config: Config) -> np.ndarray:
    """Share of each label's attention that stays within the label, mean over the labels that occur."""
    found = np.full(len(bench.views), np.nan)
    for number, features, row, masks in _images(bench, config):
        attention = features.attention[row]
        attention = attention + attention.T
        groups = torch.cat([~masks.any(dim=0, keepdim=True), masks]).to(attention)
        groups = groups[groups.any(dim=1)]
        flow = groups @ attention
        share = float(((flow * groups).sum(1) / flow.sum(1)).mean())
        found[number] = share if len(groups) > 1 else 0.0
    return found


def edges(bench: Bench, config: Config) -> np.ndarray:
    """Colour difference across the borders of the masks, over that of all neighbours of the image."""
    found = np.full(len(bench.views), np.nan)
    for number, mask in enumerate(bench.masks(config, ("refined",))["refined"]):
        view = bench.views[number]
        if mask.shape != view.image.shape[:2]:
            continue
        image, here, everywhere = view.image.astype(np.float32), [], []
        for axis in (0, 1):
            step = np.abs(np.diff(image, axis=axis)).sum(axis=2)
            everywhere.append(step.ravel())
            here.append(step[np.diff(mask.astype(np.int16), axis=axis) != 0])
        border, overall = np.concatenate(here), np.concatenate(everywhere).mean()
        found[number] = border.mean() / overall if border.size and overall > 0 else 0.0
    return found


def _label_agreement(first: Sequence[Tensor], second: Sequence[Tensor], exponent: float) -> np.ndarray:
    """Mean over the tags of the overlap (IoU) of their regions in two lists of maps."""
    found = []
    for one, other in zip(first, second, strict=True):
        a, b = regions_of(one, exponent), regions_of(other, exponent)
        union = (a | b).sum(1)
        found.append(float(((a & b).sum(1) / union.clamp(min=1))[union > 0].sum() / len(a)))
    return np.array(found)


def mirror(bench: Bench, config: Config) -> np.ndarray:
    """Overlap of each tag's region with the one found in the mirrored image, prototypes kept."""
    maps = tune.with_same_prototypes(bench, bench.mirrored(), config, config)
    return _label_agreement(bench.refined(config), [one.flip(2) for one in maps], config.labels.background_exponent)


def rescaled(bench: Bench, config: Config) -> np.ndarray:
    """Overlap of each tag's region with the one found when the encoder sees the image larger, prototypes kept."""
    larger = config.with_values({"clip.scale": config.clip.scale * SCALE_STEP})
    maps = tune.with_same_prototypes(bench, bench, config, larger)
    refined = bench.refined(config)
    sized = [
        F.interpolate(one[None], size=own.shape[1:], mode="bilinear")[0] for one, own in zip(maps, refined, strict=True)
    ]
    return _label_agreement(refined, sized, config.labels.background_exponent)


SCORES: dict[str, tune.Score] = {
    "committee": tune.consent,
    "evidence (vision)": evidence_vision,
    "evidence (text)": evidence_text,
    "contrast": contrast,
    "separation": separation,
    "cut": cut,
    "edges": edges,
    "mirror": mirror,
    "scale": rescaled,
}
