"""Signs of failure of a run, into metrics.json: without truth under `label_free`, against it under `with_truth`.

Label maps of the run folder are read; seeds of a few images are made once more from the run's own prototypes: mirrored,
and with the image larger at the encoder. What a sign means and when it asks for something to be done is said in
`signs`. Truth masks are opened for `with_truth` alone.

    state/signs.json    what each photograph said, under a digest of what it was measured from: it is not asked again
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

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
from vpl.runs.contents import signature
from vpl.runs.files import read_map, read_prototypes, read_truth
from vpl.runs.memory import Memory, truth_of
from vpl.runs.plan import digest
from vpl.runs.records import is_number, read_evaluations, read_learning
from vpl.runs.stages import Run
from vpl.sampling import steadily

LOOKED = 500
"""Most images whose label maps are read. [ours]"""
SHARE, FEWEST, AGAIN = 10, 2, 24
"""Of so many images one is looked at again, at two looks of together 3.25 encodings; at least and at most. [ours]"""
LARGER = 1.5
MEMORY = "signs.json"
_MAPS, _AGAIN = "maps", "again"

Found = tuple[dict[str, float], dict[str, float]]
"""What one photograph says: by name of `signs.LABEL_FREE`, and of `signs.WITH_TRUTH`; nan where it says nothing."""


def checkup(run: Run) -> dict[str, dict[str, dict]]:
    """Measure the signs of a run that has label maps, write them into metrics.json, and return what was written.

    Raises:
        RunError: a file of the run is damaged.
    """
    free: dict[str, list[float]] = defaultdict(list)
    true: dict[str, list[float]] = defaultdict(list)
    done = [sample for sample in run.dataset.tagged if (run.folder / "seeds/refined" / f"{sample.id}.png").exists()]
    memory = _Signs(run)
    some = steadily(done, LOOKED, lambda one: one.id)
    found = [
        memory.of(_MAPS, sample, partial(_of_maps, run, sample)) for sample in run.progress(some, len(some), "signs")
    ]
    found += _looked_again(run, steadily(done, looked_again(len(done)), lambda one: one.id), memory)
    memory.close()
    for without, against in found:
        for values, own in ((free, without), (true, against)):
            for name, one in own.items():
                values[name].append(one)
    right, gap = read_learning(run.folder).get("accuracy_vision"), _train_val_gap(read_evaluations(run.folder))
    of_all = {"tag consistency": right} if right is not None and is_number(right) else {}
    of_splits = {} if gap is None else {"train/val gap": gap}
    made = {"label_free": signs.label_free({**free, **of_all}), "with_truth": signs.with_truth({**true, **of_splits})}
    run.note_metrics(**made)
    return made


def looked_again(count: int) -> int:
    """Of so many images, how many are looked at again."""
    return min(max(count // SHARE, FEWEST), AGAIN)


class _Signs:
    """What photographs said before. Their maps are what made them (their fingerprints) and what lies there."""

    def __init__(self, run: Run):
        self._run, self._memory = run, Memory(run.folder, MEMORY)
        self.close = self._memory.close

    def known(self, kind: str, sample: Sample) -> Found | None:
        """What it said; None where that is not known, or what it was measured from has changed."""
        kept = self._memory.get(kind, sample.id, self._measured_from(kind, sample))
        return (_read(kept[0]), _read(kept[1])) if isinstance(kept, list) and len(kept) == 2 else None

    def keep(self, kind: str, sample: Sample, found: Found) -> Found:
        """Remember it, where what made the photograph's maps is noted."""
        told = [{name: None if math.isnan(one) else one for name, one in values.items()} for values in found]
        self._memory.keep(kind, sample.id, self._measured_from(kind, sample), told)
        return found

    def of(self, kind: str, sample: Sample, measure: Callable[[], Found]) -> Found:
        """What is known, or else measured."""
        return self.known(kind, sample) or self.keep(kind, sample, measure())

    def _measured_from(self, kind: str, sample: Sample) -> str:
        run, stages = self._run, ("maps", "masks") if kind == _MAPS else ("maps",)
        made_by = [run.state.records.get(stage, {}).get(sample.id) for stage in stages]
        if made_by[0] is None:
            return ""
        folders = ("seeds/refined", "seeds/crf", "labels") if kind == _MAPS else ("seeds/refined",)
        there = [signature(run.folder / name / f"{sample.id}.png") for name in folders]
        truth = "" if run.unscored else truth_of(sample)
        return digest(made_by, there, truth, LARGER, signs.BOUNDARY_TOLERANCE)


def _read(kept: object) -> dict[str, float]:
    found = kept.items() if isinstance(kept, dict) else ()
    return {name: float(one) if is_number(one) else math.nan for name, one in found}


def _of_maps(run: Run, sample: Sample) -> Found:
    """What a photograph's label maps say."""
    seeds = read_map(run.folder / "seeds/refined" / f"{sample.id}.png")
    likely, mask = (_mask(run, name, sample) for name in ("seeds/crf", "labels"))
    free = signs.of_maps(seeds, likely, mask, _labels(run, sample))
    truth, last = _truth(run, sample), mask if likely is None else likely
    if truth is None or last is None or truth.shape != last.shape:
        return free, {}
    return free, signs.against_truth(seeds, last, truth)


def _mask(run: Run, folder: str, sample: Sample) -> np.ndarray | None:
    path = run.folder / folder / f"{sample.id}.png"
    return read_map(path) if path.exists() else None


def _truth(run: Run, sample: Sample) -> np.ndarray | None:
    """The user's mask; None where there is none, or where the run has said why none of them is scored."""
    return None if run.unscored else read_truth(sample)


def _labels(run: Run, sample: Sample) -> list[int]:
    """Label values of the image's tags."""
    return [run.classes.index(tag) + 1 for tag in sample.tags]


def _looked_again(run: Run, samples: Sequence[Sample], memory: _Signs) -> list[Found]:
    """Agreement of seeds under mirror and scale, and against the truth how evenly they cover their object."""
    known = {sample.id: memory.known(_AGAIN, sample) for sample in samples}
    views: dict[str, View] = {}
    for sample in samples:
        if known[sample.id] is None:
            try:
                views[sample.id] = run.view(sample)
            except VplError:  # the run has told about this image
                continue
    fresh = _look_again(run, [sample for sample in samples if sample.id in views], views) if views else {}
    found = []
    for sample in samples:
        own = memory.keep(_AGAIN, sample, fresh[sample.id]) if sample.id in fresh else known[sample.id]
        found += [own] if own is not None else []
    return found


def _look_again(run: Run, samples: Sequence[Sample], views: Mapping[str, View]) -> dict[str, Found]:
    stored = read_prototypes(run.folder / "prototypes.safetensors", run.clip.dim)
    config, kept = run.config, [views[sample.id] for sample in samples]
    truths = {sample.id: truth for sample in samples if (truth := _truth(run, sample)) is not None}
    judged = [sample for sample in samples if sample.id in truths and truths[sample.id].shape == views[sample.id].size]

    def bench(of: Sequence[View]) -> Bench:
        return Bench(run.clip, run.classes, of, run.image_workers, Shelf(0))  # each pass is another look

    larger = config.with_values({"clip.scale": config.clip.scale * LARGER})
    looks = [(bench(kept).mirrored(), config), (bench(kept), larger)]
    looks += [(bench([views[sample.id] for sample in judged]), config)] if judged else []
    made = [_maps(one, stored, how) for one, how in run.progress(looks, len(looks), "look again")]
    own = [read_map(run.folder / "seeds/refined" / f"{sample.id}.png") for sample in samples]
    mirrored = _agreements(kept, own, tuple(one.flip(2) for one in made[0]), config)
    scaled = _agreements(kept, own, made[1], config)
    found: dict[str, Found] = {
        sample.id: ({"mirror agreement": one, "scale agreement": two}, {})
        for sample, one, two in zip(samples, mirrored, scaled, strict=True)
    }
    for sample, maps in zip(judged, made[2] if judged else (), strict=True):
        truth, view = truths[sample.id], views[sample.id]
        full = refine.upsample(maps.float().cpu(), view.size).numpy()
        parts = [
            metrics.completeness(seed, truth == tag + 1, 0.5, truth != IGNORE).concentration
            for tag, seed in zip(view.tags, full, strict=True)
        ]
        seen = [one for one in parts if one == one]
        found[sample.id][1]["concentration"] = sum(seen) / len(seen) if seen else math.nan
    return found


def mirror_agreements(bench: Bench, stored: dict[str, torch.Tensor], config: Config) -> list[float]:
    """How far the seeds of each image agree with those of its mirror image (`signs.agreement`), 0 to 1.

    Args:
        stored: the run's prototypes, "text" and "vision".
    """
    own, back = _maps(bench, stored, config), _maps(bench.mirrored(), stored, config)
    first = _labelled(bench.views, own, config)
    return _agreements(bench.views, first, tuple(one.flip(2) for one in back), config)


def _agreements(
    views: Sequence[View], own: Sequence[np.ndarray], other: Sequence[Tensor], config: Config
) -> list[float]:
    """Of each view, its label map with that of other maps (K, h, w)."""
    return [signs.agreement(*pair) for pair in zip(own, _labelled(views, other, config), strict=True)]


def _labelled(views: Sequence[View], maps: Sequence[Tensor], config: Config) -> list[np.ndarray]:
    """The label map of each view's maps (K, h, w), at its size."""
    exponent = config.labels.background_exponent
    return [label_map(one.cpu(), view, exponent)[0] for view, one in zip(views, maps, strict=True)]


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
