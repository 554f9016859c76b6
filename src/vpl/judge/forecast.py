"""What a run will take, measured on a few of its own photographs: seconds by stage, bytes on the disk.

    seconds of a stage = core-seconds of a photograph / cores * photographs      (on a GPU: seconds of a photograph)
    seconds of training = seconds of a step * train.steps
    memory = what the process held before + what the measured photographs took, for as many as are worked on at once

The few go through the stages of a run in a folder of their own that is removed; what is forecast is what was measured.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import tempfile
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpl.config import Config
from vpl.edges.datasets import Sample
from vpl.errors import VplError
from vpl.machine import cores, memory
from vpl.network import train
from vpl.network.crops import Item
from vpl.runs.files import read_prototypes
from vpl.runs.folder import log
from vpl.runs.stages import Run
from vpl.sampling import evenly

SHARE, LOOKED = 20, 3
"""Of so many photographs one is measured, at most LOOKED, evenly spread, after one that warms up. [ours]"""
STEPS = 2
"""Training steps that are made; the first, which warms up, does not count. [ours]"""


@dataclass(frozen=True)
class Forecast:
    """What a run will take, without evaluation and report.

    Attributes:
        looked: how many photographs were measured.
        seconds: of each stage in the order of the work, for all photographs and all steps.
        step: seconds of one training step; None where nothing is trained, or none could be made.
        disk: bytes of label maps and regions of all photographs.
        memory: most bytes that the stages of the masks will hold beside a GPU's; 0 where the system does not tell.
    """

    looked: int
    seconds: dict[str, float]
    step: float | None
    disk: int
    memory: int = 0

    @property
    def masks(self) -> float:
        """Seconds until the pseudo-masks are there."""
        return sum(self.seconds.values()) - self.training

    @property
    def training(self) -> float:
        """Seconds of the whole training."""
        return self.seconds.get("network", 0.0)

    def __str__(self) -> str:
        steps = f" ({round(self.training / self.step):,} steps)" if self.step and self.training else ""
        parts = [f"{stage}{steps if stage == 'network' else ''} {duration(one)}" for stage, one in self.seconds.items()]
        on = "1 photograph" if self.looked == 1 else f"{self.looked} photographs"
        held = f", {size(self.memory)} of memory" if self.memory else ""
        return f"about {', '.join(parts)}; {size(self.disk)} on disk{held} (measured on {on} of these)"


class _Trial(Run):
    """A run on a few samples of another, with its CLIP, in a folder of its own."""

    def __init__(self, folder: Path, run: Run, samples: Sequence[Sample], config: Config):
        def measure(items: Iterable, total: int, words: str) -> Iterable:
            return run.progress(items, total, f"measure: {words}")

        device, workers = str(run.clip.device), run.image_workers
        super().__init__(folder, config, device=device, image_workers=workers, progress=measure)
        self._clip, self._guide, self._guide_hash = run.clip, run.guide, run._guide_hash
        self._dataset = replace(run.dataset, samples=tuple(replace(one, mask=None) for one in samples))
        self.stream.shares = False  # so that seconds of parts are those of one core


def measured(
    run: Run,
    most: int = LOOKED,
    *,
    photographs: int | None = None,
    training: bool = True,
    values: Mapping[str, object] = types.MappingProxyType({}),
    warm: bool = False,
) -> Forecast | None:
    """Measure on at most `most` photographs of a run; its folder is not touched. None where none of them can be used.

    Args:
        photographs: how many there are to do; default: all of the run that have tags.
        training: whether a network is trained, if the configuration says so.
        values: of the configuration, other than the run's.
        warm: no photograph is needed to warm up.
    """
    blank = {f"{section}.{key}": "" for section, keys in _UNUSED.items() for key in keys}
    config = run.config.with_values({**values, **blank})
    tagged = run.dataset.tagged
    samples = evenly(tagged, min(most, max(1, len(tagged) // SHARE)) + 1)
    warm_up, own = samples[:1], samples[1:] or samples
    with _unheard(), tempfile.TemporaryDirectory(prefix="vpl-") as name:
        if not warm:
            with contextlib.suppress(VplError), _Trial(Path(name) / "first", run, warm_up, config) as first:
                first.labels()
        try:
            with _Trial(Path(name) / "own", run, own, config) as trial:
                held, _ = memory()
                trial.bring("masks", *(["prototypes"] if training else []))
                at_once = math.ceil(trial.stream.lanes / min(len(own), trial.stream.lanes))
                held += (memory()[1] - held) * at_once
                step = _step_of(trial) if training and config.train.steps else None
                count = len(tagged) if photographs is None else photographs
                return replace(_forecast(trial, count, step), memory=held)
        except VplError:
            return None


_UNUSED = {"data": ("masks",), "validation": ("images", "tags", "masks", "split")}


def _forecast(trial: Run, photographs: int, step: float | None) -> Forecast:
    stages, looked = trial.record()["stages"], len(trial.dataset.samples) - len(trial.failures)
    on_cpu, seconds = trial.clip.device.type == "cpu", {}
    for name, one in stages.items():
        parts = dict(one.get("parts", {}))
        learning = parts.pop("learn", 0.0)
        shared = sum(parts.values()) / min(cores(), trial.image_workers) if on_cpu else one["seconds"] - learning
        seconds[name] = max(shared, 0.0) / max(looked, 1) * photographs + learning
    if step is not None:
        seconds["network"] = step * trial.config.train.steps
    made = sum(
        path.stat().st_size for path in trial.folder.rglob("*") if path.is_file() and path.parent != trial.folder
    )
    return Forecast(looked, seconds, step, made * photographs // max(looked, 1))


def _step_of(trial: Run) -> float | None:
    """Seconds of a training step on the pseudo-masks of the trial."""
    masks = trial.folder / "labels"
    items = [Item(one.id, one.image, masks / f"{one.id}.png", one.tags) for one in trial.dataset.samples]
    there = [one for one in items if one.mask.exists()]
    stored = read_prototypes(trial.folder / "prototypes.safetensors", trial.clip.dim)
    vision = stored["vision"].to(trial.clip.device)
    folder = trial.folder / "steps"
    steps = train.fit(there, trial.clip, trial.classes, vision, trial.config, folder, trial.image_workers)
    times = [time.perf_counter()]
    with contextlib.closing(steps):  # type: ignore[type-var]
        times += [time.perf_counter() for _ in itertools.islice(steps, STEPS)]
    return (times[-1] - times[-2]) if len(times) > 2 else (times[-1] - times[0] if len(times) > 1 else None)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """What the trial would say, the run says."""

    def none(record: logging.LogRecord) -> bool:
        return False

    log.addFilter(none)
    try:
        yield
    finally:
        log.removeFilter(none)


def duration(seconds: float) -> str:
    """ "under a second", "40 s", "12 min", "3.5 h", "9 days"."""
    for most, unit, words in ((1, 1, ""), (100, 1, "{:.0f} s"), (5400, 60, "{:.0f} min"), (172800, 3600, "{:.1f} h")):
        if seconds < most:
            return words.format(seconds / unit) if words else "under a second"
    return f"{seconds / 86400:.0f} days"


def size(count: int) -> str:
    """Bytes in the unit that fits: "3 MB", "1.2 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count, 1e6) / 1e6:.0f} MB"
