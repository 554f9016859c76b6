"""`vpl tune RUN`: thresholds for images that have no ground truth (METHOD.md 8).

    score(setting) = mIoU of its masks with the committee's opinion (vpl.judge.committee), or another of `SCORES`
    one value after the other: the setting with the best score; the gain's standard error is told, and decides nothing

Which score decides, and that a gain within its error is taken too, was fixed once, by what it gave on the scenes' web
styles, where the truth is known (benchmarks/tune.py); no truth is opened here.

Letters: K tags of one image · P prototypes · D joint width · h w patch grid · hw patches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vpl.config import Config
from vpl.errors import RunError, VplError
from vpl.judge import committee
from vpl.judge.bench import Bench
from vpl.method import crf
from vpl.method.masks import label_map
from vpl.method.views import View
from vpl.runs.files import read_json, write_json
from vpl.runs.folder import log
from vpl.runs.stages import Progress, Run, silent
from vpl.sampling import evenly

IMAGES = 60
"""Images that the choice is made on, spread evenly over the list."""
AGREED = 0.95
"""Share of the kept pixels that must keep their label when the image is mirrored. [ours]"""
FLOOR = 1e-4
"""Smallest probability that a logarithm is taken of."""
SCALE_STEP = 1.25
"""The second look of the scale score is so much larger."""

GRIDS: dict[str, tuple[float, ...]] = {
    "prototypes.image_temperature": (0.3, 0.5, 1.0, 2.0, 4.0),
    "prototypes.phi": (0.2, 0.35, 0.5, 0.65, 0.8),
    "refine.box_threshold": (0.2, 0.3, 0.4, 0.55, 0.7),
    "labels.background_exponent": (0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
}
"""What is tried, in this order. Temperatures are factors on the configured one."""
CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)

Score = Callable[[Bench, Config], Float[np.ndarray, " images"]]
"""One number per image, higher is better; nan where an image says nothing."""


def grids(config: Config) -> dict[str, tuple[float, ...]]:
    """The values to try, the configured ones among them, in ascending order."""
    flat, found = config.flat(), {}
    for key, values in GRIDS.items():
        own = flat[key]
        tried = [own * one for one in values] if key == "prototypes.image_temperature" else [*values, own]
        found[key] = tuple(sorted({round(one, 6) for one in tried}))
    return found


# --------------------------------------------------------------------------------------------------------------- scores
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
    maps = _maps_with_same_prototypes(bench, bench.mirrored(), config, config)
    return _label_agreement(bench.refined(config), [one.flip(2) for one in maps], config.labels.background_exponent)


def rescaled(bench: Bench, config: Config) -> np.ndarray:
    """Overlap of each tag's region with the one found when the encoder sees the image larger, prototypes kept."""
    larger = config.with_values({"clip.scale": config.clip.scale * SCALE_STEP})
    maps = _maps_with_same_prototypes(bench, bench, config, larger)
    refined = bench.refined(config)
    sized = [
        F.interpolate(one[None], size=own.shape[1:], mode="bilinear")[0] for one, own in zip(maps, refined, strict=True)
    ]
    return _label_agreement(refined, sized, config.labels.background_exponent)


def _maps_with_same_prototypes(bench: Bench, other: Bench, config: Config, seen: Config) -> tuple[Tensor, ...]:
    if config.prototypes.kind == "text":
        return other.refined(seen)
    return other.refined_with(bench.lesson(config).vision, seen)


def consent(bench: Bench, config: Config) -> np.ndarray:
    """mIoU of the masks after the CRF with the committee's opinion; the mean of the numbers is that of all images.

    The CRF is the fast one, which differs on large images alone; it ranks settings as the exact one does.
    """
    masks = bench.masks(config.with_values({"crf.mode": "fast"}), ("crf",))["crf"]
    return committee.agreement(committee.opinion(bench, config), masks, len(bench.classes) + 1)


SCORES: dict[str, Score] = {
    "committee": consent,
    "evidence (vision)": evidence_vision,
    "evidence (text)": evidence_text,
    "contrast": contrast,
    "separation": separation,
    "cut": cut,
    "edges": edges,
    "mirror": mirror,
    "scale": rescaled,
}
CHOSEN: dict[str, tuple[str, ...]] = dict.fromkeys(GRIDS, ("committee",))
"""The scores that decide about each value, fixed on the web styles (benchmarks/evidence.md). Several are added in
units of their own spread over the values tried."""


# --------------------------------------------------------------------------------------------------------------- search
@dataclass(frozen=True)
class Choice:
    """One value: what was configured, what was chosen, and why.

    Attributes:
        tried: value -> mean score.
        reason: one sentence.
    """

    key: str
    default: float
    value: float
    tried: dict[str, float]
    reason: str


@dataclass(frozen=True)
class Tuned:
    """The configuration with the chosen values, and the choices."""

    config: Config
    choices: tuple[Choice, ...]
    images: int

    def __str__(self) -> str:
        lines = [f"chosen on {self.images} images, from tags and pixels alone:"]
        return "\n".join(lines + [f"  {one.key} = {one.value:g}: {one.reason}" for one in self.choices])


def choose(
    bench: Bench,
    config: Config,
    scores: Mapping[str, tuple[str, ...]] | None = None,
    *,
    progress: Progress = silent,
) -> Tuned:
    """One value after the other, each with those before it already chosen.

    Args:
        scores: key -> names in `SCORES`; None: `CHOSEN`. Keys that are missing keep their values.
    """
    start, choices = config, []
    wanted = CHOSEN if scores is None else scores
    tried = {key: values for key, values in grids(start).items() if key in wanted and _matters(key, start)}
    for key, values in progress(list(tried.items()), len(tried), "tune"):
        choice = _choose_one(bench, config, key, values, wanted[key])
        config = config.with_values({key: choice.value})
        choices.append(choice)
    if scores is None and config.crf.enabled:
        choice = _choose_confidence(bench, config)
        config = config.with_values({"labels.confidence": choice.value})
        choices.append(choice)
    return Tuned(config, tuple(choices), len(bench.views))


def _matters(key: str, config: Config) -> bool:
    """Whether a value changes anything under this configuration."""
    if key.startswith("prototypes."):
        return config.prototypes.kind == "vision"
    return not key.startswith("refine.") or (config.refine.enabled and config.refine.box)


def combined(bench: Bench, config: Config, key: str, values: Sequence[float], names: Sequence[str]) -> dict:
    """Value -> the sum of the named scores per image, each in units of its spread over the values."""
    total = dict.fromkeys(values, 0.0)
    for name in names:
        made = {one: SCORES[name](bench, config.with_values({key: one})) for one in values}
        spread = float(np.std([np.nanmean(one) for one in made.values()])) if len(names) > 1 else 1.0
        total = {one: total[one] + made[one] / max(spread, 1e-9) for one in values}
    return total


def _choose_one(bench: Bench, config: Config, key: str, values: Sequence[float], names: Sequence[str]) -> Choice:
    default, name = config.flat()[key], " + ".join(names)
    made = combined(bench, config, key, sorted({*values, default}), names)
    tried = {f"{one:g}": float(np.nanmean(made[one])) for one in sorted(made)}
    best = max([default, *sorted(made)], key=lambda one: np.nanmean(made[one]))
    if best == default:
        return Choice(key, default, default, tried, f"the configured value has the best {name} score of {len(made)}.")
    gain = made[best] - made[default]
    gain = gain[~np.isnan(gain)]
    error = float(np.std(gain, ddof=1) / math.sqrt(len(gain))) if len(gain) > 1 else math.nan
    words = f"{name} score {gain.mean():+.4f} ± {error:.4f} (standard error over {len(gain)} images)"
    return Choice(key, default, best, tried, f"instead of {default:g}: {words}.")


def _choose_confidence(bench: Bench, config: Config) -> Choice:
    """The lowest confidence at which the kept pixels keep their label in the mirrored image."""
    key, default = "labels.confidence", config.labels.confidence
    kept, same = agreement_by_confidence(bench, config, sorted({*CONFIDENCES, default}))
    tried = {f"{one:g}": share for one, share in same.items()}
    enough = [one for one, share in same.items() if share >= AGREED]
    value = min(enough, default=max(same))
    wish = f"{100 * AGREED:.0f} % of the kept pixels keep their label in the mirrored image"
    reason = (
        f"the lowest of {len(same)} at which {wish} ({100 * same[value]:.1f} %; {100 * kept[value]:.0f} % are kept)."
        if enough
        else f"the highest of {len(same)}; at none do {wish}."
    )
    return Choice(key, default, value, tried, reason)


def agreement_by_confidence(
    bench: Bench, config: Config, values: Sequence[float]
) -> tuple[dict[float, float], dict[float, float]]:
    """By confidence: the share of the pixels that are kept, and how many of these keep their label when mirrored."""
    other = bench.mirrored()
    maps = _maps_with_same_prototypes(bench, other, config, config)
    counts = {one: np.zeros(3) for one in values}
    for number, cam in enumerate(bench.refined(config)):
        sure, label = _probabilities(cam, bench.views[number], config)
        _, second = _probabilities(maps[number], other.views[number], config)
        agreed = label == second.flip(1)
        for one, count in counts.items():
            keep = sure >= one
            count += [keep.sum().item(), (keep & agreed).sum().item(), keep.numel()]
    kept = {one: count[0] / count[2] for one, count in counts.items()}
    same = {one: count[1] / count[0] if count[0] else 1.0 for one, count in counts.items()}
    return kept, same


def _probabilities(cam: Tensor, view: View, config: Config) -> tuple[Tensor, Tensor]:
    """Probability and place of the most probable label after the CRF, (H, W)."""
    _, scores = label_map(cam.cpu(), view, config.labels.background_exponent)
    return tuple(crf.dense_crf(view.image, scores, **config.crf.keywords()).max(dim=0))


# ------------------------------------------------------------------------------------------------------------------ run
def tune(
    folder: str | Path,
    config: Config,
    *,
    device: str = "auto",
    workers: int = 2,
    count: int = IMAGES,
    progress: Progress = silent,
) -> Tuned:
    """Choose the values for a run's images and write them, with the reasons, into config.toml and tune.json.

    A run that was tuned before keeps its choice.

    Raises:
        RunError: the run has begun with other values, or holds no image that can be used.
    """
    folder = Path(folder)
    with Run(folder, config, device=device, image_workers=workers) as run:
        known = read_json(folder / "tune.json")
        if known:
            try:
                choices = tuple(Choice(**one) for one in known["choices"])
                return Tuned(config, choices, int(known["images"]))
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(f"{folder / 'tune.json'} is damaged ({error}); delete it to choose again.") from error
        bench = _bench(run, count, workers)
        made = choose(bench, config, progress=progress)
    with Run(folder, made.config, device=device, image_workers=workers):  # refused where the run has begun otherwise
        choices = [dataclasses.asdict(one) for one in made.choices]
        write_json(folder / "tune.json", {"images": made.images, "choices": choices})
    with Run(folder, made.config, device=device, image_workers=workers):
        pass  # the reasons go into config.toml
    return made


def _bench(run: Run, count: int, workers: int) -> Bench:
    """Up to `count` of the run's images, spread evenly; those that can't be read are left out."""
    samples = run.dataset.samples
    views = []
    for sample in evenly(samples, count):
        try:
            views.append(run.view(sample))
        except VplError as error:
            log.warning("%s left out of the tuning: %s", sample.id, error)
    if not views:
        raise RunError(f"no image of {run.folder} could be used; mend the data first.")
    return Bench(run.clip, run.classes, views, workers)
