"""What is to be known before the work: the list of photographs and tags, what the CLIP thinks of them, time and disk.

    tag rank = share of (own tag, other class) pairs of an image that the CLIP's text scores order rightly; chance 0.5

`look` writes nothing. `doubt` is why a network should not be trained yet: its masks would be guesses, or its training
would take a CPU for hours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from vpl.edges.datasets import told_background
from vpl.edges.tags import alike, photographs
from vpl.errors import VplError
from vpl.judge import forecast
from vpl.judge.bench import Bench, Shelf
from vpl.judge.forecast import Forecast, duration
from vpl.method.regions import tag_ranks
from vpl.presets import QUALITY
from vpl.runs import checks
from vpl.runs.learning import CHANCE_RANK
from vpl.runs.stages import Run
from vpl.sampling import evenly

RANKED = 16
"""Photographs that the CLIP is asked about, evenly spread over the list. [ours]"""
LONGEST = 2 * 3600.0
"""Seconds that a CPU trains without being asked to. [ours]"""
SHOWN = 6
"""Classes, and values of labels, that the short form names."""


@dataclass(frozen=True)
class Check:
    """What is to be known before the work.

    Attributes:
        counts: photographs by class, in the order of the labels.
        alike: groups of class names that may be one.
        problems: a line for each thing of the list that can't be used; `left_out` photographs altogether.
        warnings: what may be a mistake; notes: how the list was read.
        photographs: those with tags.
        untagged: photographs on which there is nothing, as the list itself says, and which are left out.
        background: photographs without tags that are background.
        tag_rank: mean over `ranked` photographs, 0 to 1; None where it was not measured.
        forecast: None where it was not measured.
        qualities: seconds until the masks are there by quality (`config.QUALITY`), where they were measured.
    """

    photographs: int
    counts: dict[str, int]
    alike: tuple[tuple[str, ...], ...]
    problems: tuple[str, ...]
    left_out: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    untagged: int
    clip: str
    background: int = 0
    tag_rank: float | None = None
    ranked: int = 0
    forecast: Forecast | None = None
    qualities: dict[str, float] = field(default_factory=dict)

    def lines(self, *, short: bool = False) -> list[str]:
        """For people, a line for each thing; `short`: without the classes one by one and without what the list says."""
        most = sorted(self.counts.items(), key=lambda one: -one[1])
        absent = [name for name, count in most if not count]
        shown = ", ".join(f"{name} {count:,}" for name, count in (most[:SHOWN] if short else most) if count)
        more = f", and {len(most) - SHOWN - len(absent)} more" if short and len(most) - len(absent) > SHOWN else ""
        classes = f"{len(self.counts):,} class{'' if len(self.counts) == 1 else 'es'}"
        found = [f"{photographs(self.photographs)} with tags, {classes}: {shown}{more}"]
        if absent:
            found.append(f"classes on no photograph: {', '.join(absent)}")
        if not short:
            found += [f"left out: {one}" for one in self.problems]
            found += [f"warning: {one}" for one in self.warnings]
            found += [f"note: {one}" for one in self.notes]
            if not any("look alike" in one for one in self.warnings):
                found += [f"classes that look alike: {' and '.join(group)}" for group in self.alike]
        if self.left_out:
            found.append(f"photographs of the list that can't be used: {self.left_out:,}")
        if self.untagged:
            found.append(f"photographs without any object, as the list says: {self.untagged:,}")
        if self.background and short:
            found.append(told_background(self.background))
        found.append(f"labels in the masks: {_numbering(tuple(self.counts), SHOWN if short else 256)}")
        if self.tag_rank is not None:
            found.append(
                f"tag rank of {self.clip}: {100 * self.tag_rank:.0f} % (guessing: 50 %, on {photographs(self.ranked)})"
                + ("; it does not know these photographs" if self.tag_rank < CHANCE_RANK else "")
            )
        if self.forecast is not None:
            found.append(f"time: {self.forecast}")
        if self.qualities:
            times = ", ".join(f"{name} {duration(one)}" for name, one in self.qualities.items())
            found.append(f"masks by --quality: {times}")
        return found

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _numbering(names: Sequence[str], most: int) -> str:
    shown = [f"{number} {name}" for number, name in enumerate(("background", *names))]
    middle = shown[:most] + (["…", shown[-1]] if len(shown) > most + 1 else shown[most:])
    return ", ".join([*middle, "255 ignored"])


def of_list(run: Run) -> Check:
    """What the list alone says; no photograph is opened."""
    dataset = run.dataset
    counts = Counter(tag for sample in dataset.samples for tag in sample.tags)
    return Check(
        len(dataset.tagged),
        {name: counts[name] for name in dataset.classes.names},
        dataset.alike or alike(dataset.classes.names),
        dataset.problems,
        dataset.left_out,
        dataset.warnings,
        dataset.notes,
        len(dataset.untagged),
        run.config.clip.model,
        len(dataset.samples) - len(dataset.tagged),
    )


def look(run: Run, *, ranked: int = RANKED, looked: int = forecast.LOOKED) -> Check:
    """The whole check: the list, the tag rank on `ranked` photographs, time and disk measured on `looked` ones,
    and the time of every quality on one.

    Raises:
        VplError: the list or the CLIP can't be used.
    """
    found = of_list(run)
    checks.check_words(run.config, run.classes)
    rank, count = rank_of(run, ranked)
    expected = forecast.measured(run, looked)
    by_quality = {
        name: forecast.measured(run, 1, training=False, values=values, warm=True)
        for name, values in QUALITY.items()
        if expected
    }
    qualities = {name: one.masks for name, one in by_quality.items() if one is not None}
    more = {"tag_rank": rank, "ranked": count, "forecast": expected, "qualities": qualities}
    return Check(**vars(found) | more)


def rank_of(run: Run, most: int = RANKED) -> tuple[float | None, int]:
    """Mean tag rank of at most `most` photographs and how many they were; None where every class is a tag of each."""
    views = []
    for sample in evenly(run.dataset.tagged, most):
        try:
            views.append(run.view(sample))
        except VplError:  # told where it is worked on
            continue
    bench = Bench(run.clip, run.classes, views, run.image_workers, Shelf(0))
    text = bench.text(run.config)[: len(run.classes)]

    def make(members: tuple[int, ...], features: object) -> list[float]:
        return tag_ranks(features, [views[number] for number in members], text).tolist()  # type: ignore[arg-type]

    known = [one for one in bench.each(run.config.clip, make) if one == one]
    return (sum(known) / len(known), len(known)) if known else (None, 0)


def doubt(run: Run, expected: Forecast | None = None) -> str:
    """Why a network should not be trained before somebody asks for it, and which flag goes on; "" where it may be.

    Args:
        expected: a forecast that was made; on a CPU one is made where it is not given.
    """
    rank = run.record().get("tag_rank")
    if not isinstance(rank, float):
        rank = rank_of(run)[0]
    if rank is not None and rank < CHANCE_RANK:
        return (
            f"no network was trained: {run.config.clip.model} ranks an image's own tags above other classes "
            f"{100 * rank:.0f} % of the time (guessing: 50 %), so the masks are guesses. Give real CLIP weights "
            "(--clip), or go on all the same with --train."
        )
    if run.clip.device.type != "cpu":
        return ""
    expected = expected or forecast.measured(run, 1)
    if expected is None or expected.training <= LONGEST:
        return ""
    steps, fewer = run.config.train.steps, max(1, int(LONGEST / 2 / (expected.step or 1.0)))
    return (
        f"no network was trained: {steps:,} steps would take this CPU about {duration(expected.training)}. Go on with "
        f"fewer (--steps {fewer}, about {duration(fewer * (expected.step or 1.0))}), with --train for all of them, or "
        "on a machine with a GPU."
    )
