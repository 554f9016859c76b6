"""A run from its plan to its report: the stages of all rooms, and what each command asks for.

vpl run      everything: masks, network, scores, signs, report, and the exports that the run folder holds
vpl plan     the same, said and not done
vpl check    what is to be known before: the list, the tags, what the CLIP thinks of them, time and disk
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial
from pathlib import Path

from vpl.config import CPU_PASSES, CPU_STEPS, YOURS, Config, quality
from vpl.errors import ConfigError
from vpl.exports import export as exports
from vpl.judge import check, checkup, forecast
from vpl.judge.forecast import Forecast
from vpl.machine import device_of
from vpl.pages import report
from vpl.presets import STANDARD
from vpl.progress import Progress, silent
from vpl.runs.folder import log
from vpl.runs.learning import CHANCE_RANK
from vpl.runs.plan import EXPORTS, STAGES, WHOLE, Plan
from vpl.runs.planned import dataset_of
from vpl.runs.stages import Run

MUCH = 50
"""Photographs to be worked on from which the time is measured beforehand: measuring costs a few of them. [ours]"""
SCALES = ("train.scale_low", "train.scale_high")
NEVER: dict[str, tuple[str, ...]] = {"evaluate": ("network",), "report": ("network",)}
"""Command -> what it does not make, however stale."""


def open_run(
    folder: str | Path,
    config: Config,
    *,
    device: str = "auto",
    image_workers: int | None = None,
    progress: Progress = silent,
    relearn: bool = False,
) -> Run:
    """A run that can make the stages of all rooms; see `Run`."""
    makers: dict[str, Callable[[Run], object]] = {"signs": checkup.checkup, "report": _report}
    makers |= {to: partial(_export, to=to, progress=progress) for to in EXPORTS}
    return Run(
        folder, config, device=device, image_workers=image_workers, progress=progress, relearn=relearn, makers=makers
    )


def expected(run: Run, plan: Plan) -> Forecast | None:
    """What the work of a plan will take, measured where it is much; None where it is little, or can't be measured."""
    photographs = max((len(work.wanted) for work in plan.work if STAGES[work.stage].each), default=0)
    rank = run.record().get("tag_rank")
    guesses = isinstance(rank, float) and rank < CHANCE_RANK  # which teach no network
    training = plan.of("network") is not None and not guesses
    if photographs < MUCH and not training:
        return None
    return forecast.measured(run, photographs=photographs, training=training)


def planned(run: Run, command: str) -> Plan:
    """What a command would do; nothing is written."""
    return run.plan(run.targets_of(command), NEVER.get(command, ()))


def bring(
    run: Run,
    command: str,
    tell: Callable[[Plan], None] | None = None,
    *,
    train: bool = False,
    expected: Forecast | None = None,
) -> Plan:
    """Do what a command asks for; `tell` is given the plan before anything is done.

    A whole run stops after the masks where its network should not be trained before somebody asks for it
    (`check.doubt`); a warning says why, and what goes on.

    Args:
        train: it is asked for. So it is where the steps are the user's own, or the training has begun.
        expected: what training was found to take.

    Raises:
        ConfigError: a launcher started several processes of another command than `train`.
        RunError: an evaluation is asked for, and there are no truth masks.
    """
    if run.place.count > 1:  # of a launched training
        if command != "train":
            raise ConfigError(
                f"vpl {command} was started by a launcher as {run.place.count} processes, and training alone is shared "
                "among processes; run it plainly, then accelerate launch --multi_gpu -m vpl train RUN."
            )
        run.train()
        return planned(run, command)
    if command == "evaluate":
        run.check_scored()
    targets, never = run.targets_of(command), NEVER.get(command, ())
    if command == "run" and not train and run.config.source("train.steps") != YOURS:
        plan = planned(run, command)
        work = plan.of("network")
        if work is not None and run.state.records.get("training", {}).get(WHOLE) != work.wanted[WHOLE]:
            run.check(plan)
            if tell is not None:
                tell(plan)
            tell = None
            run.bring("masks", "prototypes")  # which training reads
            why = check.doubt(run, expected)
            if why:
                log.warning(why)
                never = ("network",)
    return run.bring(*targets, never=never, tell=tell)


def fitting(config: Config, device: str, chosen: Container[str] = ()) -> Config:
    """The configuration of a new run: what nobody has chosen is quality standard's, the number format that its device
    computes fastest, and on a CPU as many steps as its photographs ask for (`cpu_steps`).

    That number is settled here, once: the run's config.toml holds it, so that a photograph more makes no network stale.

    Args:
        chosen: keys that somebody has chosen; the two ends of a range are one choice.
    """
    values = {key: one for key, one in (quality(STANDARD) | {"clip.precision": "auto"}).items() if key not in chosen}
    if any(key in chosen for key in SCALES):
        values = {key: one for key, one in values.items() if key not in SCALES}
    usual = config.train.steps == Config().train.steps and config.data.format not in ("voc", "coco")
    if usual and config.data.images and "train.steps" not in chosen and device_of(device).type == "cpu":
        values["train.steps"] = cpu_steps(len(dataset_of(config.data).samples), config.train.batch)
    return config.with_values(values)


def cpu_steps(photographs: int, batch: int) -> int:
    """The first of `CPU_STEPS` in which batches see each photograph `CPU_PASSES` times, else the last."""
    return next((one for one in CPU_STEPS if one * batch >= CPU_PASSES * photographs), CPU_STEPS[-1])


def _report(run: Run) -> None:
    report.report(run.folder)


def _export(run: Run, to: str, progress: Progress) -> None:
    exports.export(run.folder, to, progress=progress)
