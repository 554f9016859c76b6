"""`vpl tune RUN`: thresholds for images that have no ground truth (METHOD.md 8).

    score(setting) = mIoU of its masks with the committee's opinion (vpl.judge.committee)
    one value after the other: the setting with the best score; the gain's standard error is told, and decides nothing

That this score decides, out of nine (benchmarks/scores.py), and that a gain within its error is taken too, was fixed
once, by what it gave on the scenes' web styles, where the truth is known (benchmarks/tune.py); no truth is opened here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vpl.config import TUNE_IMAGES, Config
from vpl.errors import RunError, VplError
from vpl.judge import committee
from vpl.judge.bench import Bench, Shelf
from vpl.method.looks import votes
from vpl.method.masks import label_scores, probabilities
from vpl.method.views import View
from vpl.progress import Progress, silent
from vpl.runs.files import write_json
from vpl.runs.folder import ENCODINGS, log
from vpl.runs.records import TUNE_FILE, Choice, read_choices
from vpl.runs.stages import Run
from vpl.sampling import evenly

AGREED = 0.95
"""Share of the kept pixels that must keep their label when the image is mirrored. [ours]"""

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
    found = {}
    for key, values in GRIDS.items():
        own = _number(config, key)
        tried = [own * one for one in values] if key == "prototypes.image_temperature" else [*values, own]
        found[key] = tuple(sorted({round(one, 6) for one in tried}))
    return found


def consent(bench: Bench, config: Config) -> np.ndarray:
    """mIoU of the masks after the CRF with the committee's opinion; the mean of the numbers is that of all images.

    The CRF is the fast one, which differs on large images alone; it ranks settings as the exact one does.
    """
    masks = bench.masks(config.with_values({"crf.mode": "fast"}), ("crf",))["crf"]
    return committee.agreement(committee.opinion(bench, config), masks, len(bench.classes) + 1)


def with_same_prototypes(bench: Bench, other: Bench, config: Config, seen: Config) -> tuple[Tensor, ...]:
    """Refined seeds of `other` as `seen` has them, from the prototypes that `bench` learned under `config`."""
    return other.refined_with(*bench.table(config), seen)


# --------------------------------------------------------------------------------------------------------------- search
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
    keys: Sequence[str] = tuple(GRIDS),
    score: Score = consent,
    *,
    progress: Progress = silent,
) -> Tuned:
    """One value after the other, each with those before it already chosen; then the confidence, where a CRF gives one.

    Args:
        keys: of `GRIDS`; other values stay as they are.
    """
    tried = {key: values for key, values in grids(config).items() if key in keys and _matters(key, config)}
    choices = []
    for key, values in progress(list(tried.items()), len(tried), "tune"):
        choices.append(_choose_one(bench, config, key, values, score))
        config = config.with_values({key: choices[-1].value})
    if config.crf.enabled:
        choices.append(_choose_confidence(bench, config))
        config = config.with_values({choices[-1].key: choices[-1].value})
    return Tuned(config, tuple(choices), len(bench.views))


def _number(config: Config, key: str) -> float:
    value: Any = config.flat()[key]
    return value


def _matters(key: str, config: Config) -> bool:
    """Whether a value changes anything under this configuration."""
    if key.startswith("prototypes."):
        return config.prototypes.kind == "vision"
    if key == "labels.background_exponent" and config.looks.vote:
        return False  # votes have exponents of their own
    return not key.startswith("refine.") or (config.refine.enabled and config.refine.box)


def _choose_one(bench: Bench, config: Config, key: str, values: Sequence[float], score: Score) -> Choice:
    default = _number(config, key)
    made = {one: score(bench, config.with_values({key: one})) for one in sorted({*values, default})}
    tried = {f"{one:g}": float(np.nanmean(found)) for one, found in made.items()}
    best = max([default, *made], key=lambda one: np.nanmean(made[one]))
    if best == default:
        return Choice(key, default, default, tried, f"the configured value has the best score of {len(made)}.")
    gain = made[best] - made[default]
    gain = gain[~np.isnan(gain)]
    error = float(np.std(gain, ddof=1) / math.sqrt(len(gain))) if len(gain) > 1 else math.nan
    words = f"score {gain.mean():+.4f} ± {error:.4f} (standard error over {len(gain)} images)"
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
    said: Sequence[tuple[Tensor, ...]]
    if config.looks.vote:
        said, maps = bench.votes(config), other.votes(config, bench.table(config)[0])
    else:
        same = with_same_prototypes(bench, other, config, config)
        said, maps = [(one,) for one in bench.refined(config)], tuple((one,) for one in same)
    counts = {one: np.zeros(3) for one in values}
    for number, one in enumerate(said):
        sure, label = _probabilities(one, bench.views[number], config)
        _, second = _probabilities(maps[number], other.views[number], config)
        agreed = label == second.flip(1)
        for confidence, count in counts.items():
            keep = sure >= confidence
            count += [keep.sum().item(), (keep & agreed).sum().item(), keep.numel()]
    kept = {one: count[0] / count[2] for one, count in counts.items()}
    stay = {one: count[1] / count[0] if count[0] else 1.0 for one, count in counts.items()}
    return kept, stay


def _probabilities(said: tuple[Tensor, ...], view: View, config: Config) -> tuple[Tensor, Tensor]:
    """Probability and place of the most probable label after PAR and CRF, (H, W), of what one look or several say."""
    if config.looks.vote:
        scores = votes(said, len(view.tags), view.image.shape[:2], config.looks)
    else:
        scores = label_scores(said[0].cpu(), view, config.labels.background_exponent)
    sure, label = probabilities([scores], [view], config)[0].max(dim=0)
    return sure, label


# ------------------------------------------------------------------------------------------------------------------ run
def tune(
    folder: str | Path,
    config: Config,
    *,
    device: str = "auto",
    workers: int = 2,
    count: int = TUNE_IMAGES,
    progress: Progress = silent,
) -> Tuned:
    """Choose the values for a run's images and write them, with the reasons, into config.toml and tune.json.

    A run that was tuned before keeps its choice. One that has begun makes anew what the choice changes when it goes on.

    Raises:
        RunError: the run holds no image that can be used.
    """
    folder = Path(folder)
    with Run(folder, config, device=device, image_workers=workers) as run:
        images, choices = read_choices(folder)
        if choices:
            return Tuned(config, choices, images)
        for kind, line in run.told_of_lists():
            if kind != "note":
                log.warning("%s: %s", kind, line)
        with contextlib.closing(_bench(run, count, workers)) as bench:
            made = choose(bench, config, progress=progress)
        run.config = made.config
        run.settle()
        told = [dataclasses.asdict(one) for one in made.choices]
        for one in told:
            one["tried"] = {key: score if math.isfinite(score) else None for key, score in one["tried"].items()}
        write_json(folder / TUNE_FILE, {"images": made.images, "choices": told})
        run.settle()  # the reasons go into config.toml
    return made


def _bench(run: Run, count: int, workers: int) -> Bench:
    """Up to `count` of the run's images, spread evenly; those that can't be read are left out."""
    views = []
    for sample in evenly(run.dataset.tagged, count):
        try:
            views.append(run.view(sample))
        except VplError as error:
            log.warning("%s left out of the tuning: %s", sample.id, error)
    if not views:
        raise RunError(f"no image of {run.folder} could be used; mend the data first.")
    return Bench(run.clip, run.classes, views, workers, Shelf(folder=run.folder / ENCODINGS / "tune"))
