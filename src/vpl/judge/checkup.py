"""Signs of failure of a run, into metrics.json: without truth under `label_free`, against it under `with_truth`.

Label maps of the run folder are read; seeds of a few images are made once more from the run's own prototypes: as they
are, mirrored, and with the image larger at the encoder. What a sign means and when it asks for something to be done is
said in `signs`. Truth masks are opened for `with_truth` alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vpl.classes import IGNORE
from vpl.config import Config
from vpl.edges.datasets import Sample
from vpl.errors import VplError
from vpl.judge.bench import Bench, Cams, Shelf
from vpl.method import metrics, refine, signs
from vpl.method.masks import label_map
from vpl.method.views import View
from vpl.runs.files import read_map, read_prototypes, read_truth
from vpl.runs.records import is_number, read_evaluations, read_learning
from vpl.runs.stages import Run
from vpl.sampling import evenly

LOOKED, AGAIN = 500, 24
"""Most images whose label maps are read, and whose seeds are made again; spread evenly over the list. [ours]"""
LARGER = 1.5


def checkup(run: Run) -> dict[str, dict[str, dict]]:
    """Measure the signs of a run that has label maps, write them into metrics.json, and return what was written.

    Raises:
        RunError: a file of the run is damaged.
    """
    free: dict[str, list[float]] = defaultdict(list)
    true: dict[str, list[float]] = defaultdict(list)
    done = [sample for sample in run.dataset.samples if (run.folder / "seeds/refined" / f"{sample.id}.png").exists()]
    some = evenly(done, LOOKED)
    for sample in run.progress(some, len(some), "signs"):
        seeds = read_map(run.folder / "seeds/refined" / f"{sample.id}.png")
        likely, mask = (_mask(run, name, sample) for name in ("seeds/crf", "labels"))
        _add(free, signs.of_maps(seeds, likely, mask, _labels(run, sample)))
        truth, last = _truth(run, sample), mask if likely is None else likely
        if truth is not None and last is not None and truth.shape == last.shape:
            _add(true, signs.against_truth(seeds, last, truth))
    right = read_learning(run.folder).get("accuracy_vision")
    if right is not None and is_number(right):
        free["tag consistency"].append(right)
    _look_again(run, evenly(done, AGAIN), free, true)
    gap = _train_val_gap(read_evaluations(run.folder))
    if gap is not None:
        true["train/val gap"].append(gap)
    found = {"label_free": signs.label_free(free), "with_truth": signs.with_truth(true)}
    run.note_metrics(**found)
    return found


def _add(values: dict[str, list[float]], found: dict[str, float]) -> None:
    for name, one in found.items():
        values[name].append(one)


def _mask(run: Run, folder: str, sample: Sample) -> np.ndarray | None:
    path = run.folder / folder / f"{sample.id}.png"
    return read_map(path) if path.exists() else None


def _truth(run: Run, sample: Sample) -> np.ndarray | None:
    """The user's mask; None where there is none, or where the run has said why none of them is scored."""
    return None if run.unscored else read_truth(sample)


def _labels(run: Run, sample: Sample) -> list[int]:
    """Label values of the image's tags."""
    return [run.classes.index(tag) + 1 for tag in sample.tags]


def _look_again(
    run: Run, samples: Sequence[Sample], free: dict[str, list[float]], true: dict[str, list[float]]
) -> None:
    """Agreement of seeds under mirror and scale, and how evenly they cover their object."""
    views, kept = [], []
    for sample in samples:
        try:
            views.append(run.view(sample))
            kept.append(sample)
        except VplError:  # the run has told about this image
            continue
    if not views:
        return
    stored = read_prototypes(run.folder / "prototypes.safetensors", run.clip.dim)
    config = run.config
    bench = Bench(run.clip, run.classes, views, run.image_workers, Shelf(0))  # each pass is another look
    larger = config.with_values({"clip.scale": config.clip.scale * LARGER})
    looks = [(bench, config), (bench.mirrored(), config), (bench, larger)]
    own, back, wider = (_maps(one, stored, how) for one, how in run.progress(looks, len(looks), "look again"))
    mirrored = tuple(one.flip(2) for one in back)
    for name, other in (("mirror agreement", mirrored), ("scale agreement", wider)):
        free[name] += _agreements(views, own, other, config)
    for sample, view, maps in zip(kept, views, own, strict=True):
        truth = _truth(run, sample)
        if truth is None or truth.shape != view.size:
            continue
        full = refine.upsample(maps.float().cpu(), view.size).numpy()
        for tag, seed in zip(view.tags, full, strict=True):
            part = metrics.completeness(seed, truth == tag + 1, 0.5, truth != IGNORE)
            true["concentration"].append(part.concentration)


def mirror_agreements(bench: Bench, stored: dict[str, torch.Tensor], config: Config) -> list[float]:
    """How far the seeds of each image agree with those of its mirror image (`signs.agreement`), 0 to 1.

    Args:
        stored: the run's prototypes, "text" and "vision".
    """
    own, back = _maps(bench, stored, config), _maps(bench.mirrored(), stored, config)
    return _agreements(bench.views, own, tuple(one.flip(2) for one in back), config)


def _agreements(views: Sequence[View], own: Sequence[Tensor], other: Sequence[Tensor], config: Config) -> list[float]:
    """Of each view, by its maps (K, h, w) on two grids that may differ."""
    exponent, found = config.labels.background_exponent, []
    for view, one, two in zip(views, own, other, strict=True):
        first, second = (label_map(maps.cpu(), view, exponent)[0] for maps in (one, two))
        found.append(signs.agreement(first, second))
    return found


def _maps(bench: Bench, stored: dict[str, torch.Tensor], config: Config) -> Cams:
    """Refined seeds from the prototypes that the run stored."""
    if config.prototypes.kind == "text":
        return bench.refined_with(stored["text"], bench.clip.logit_scale, config)
    return bench.refined_with(stored["vision"], 1 / config.prototypes.image_temperature, config)


def _train_val_gap(evaluations: Sequence[dict]) -> float | None:
    """mIoU of the pseudo-masks less that of the network, single scale, on its own split."""
    rows = {row["name"]: row["miou"] for one in evaluations for row in one["rows"]}
    pseudo, network = rows.get("refined + CRF"), rows.get("network, single scale")
    if pseudo is None or network is None or not (math.isfinite(pseudo) and math.isfinite(network)):
        return None
    return pseudo - network
