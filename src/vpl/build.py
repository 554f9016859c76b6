"""A run from its plan to its report: the stages of all rooms, and what each command asks for.

vpl run      everything: masks, network, scores, signs, report, and the exports that the run folder holds
vpl plan     the same, said and not done
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from vpl.config import Config
from vpl.exports import export as exports
from vpl.judge import checkup
from vpl.pages import report
from vpl.progress import Progress, silent
from vpl.runs import inventory
from vpl.runs.plan import EXPORTS, Plan
from vpl.runs.stages import Run

TARGETS: dict[str, tuple[str, ...]] = {
    "run": ("report",),
    "prototypes": ("prototypes",),
    "seeds": ("maps",),
    "labels": ("masks",),
    "train": ("network",),
    "evaluate": ("scores", "network scores", "signs"),
    "report": ("report",),
}
"""Command -> the stages that it brings."""
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


def targets_of(command: str, folder: Path) -> tuple[str, ...]:
    """The stages that a command brings; a whole run keeps the exports in its folder up to date."""
    there = [to for to in EXPORTS if inventory.whole_place(folder, to).exists()] if command == "run" else []
    return (*TARGETS[command], *there)


def planned(run: Run, command: str) -> Plan:
    """What a command would do; nothing is written."""
    return run.plan(targets_of(command, run.folder), NEVER.get(command, ()))


def bring(run: Run, command: str, tell: Callable[[Plan], None] | None = None) -> Plan:
    """Do what a command asks for; `tell` is given the plan before anything is done."""
    if run.place.count > 1:  # of a launched training
        run.train()
        return planned(run, command)
    return run.bring(*targets_of(command, run.folder), never=NEVER.get(command, ()), tell=tell)


def _report(run: Run) -> None:
    report.report(run.folder)


def _export(run: Run, to: str, progress: Progress) -> None:
    exports.export(run.folder, to, progress=progress)
