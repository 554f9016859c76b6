"""What each command does: thin layers over what a notebook may call too, that say what was made and what was not."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vpl.cli import show
from vpl.cli.parser import KEYS, parser
from vpl.cli.show import bar, say
from vpl.config import ABLATION_STYLE, TUNE_IMAGES, Config, of_presets, preset, quality
from vpl.edges import legend, storage
from vpl.errors import ConfigError
from vpl.network.team import place
from vpl.presets import PUBLISHED
from vpl.runs.plan import Plan, count_of, told
from vpl.runs.state import FOLDER as STATE_FOLDER
from vpl.runs.stored import FILE, read

if TYPE_CHECKING:
    from vpl.runs.planned import Planned
    from vpl.runs.stages import Run

log = logging.getLogger("vpl")

HOW_TO_READ = ("data.columns", "data.separator", "data.aliases", "data.untagged", "data.mask_values")
"""Flags that say how a list is read hold for the held-out list too."""

PATHS = {"data.images", "data.tags", "data.masks", "validation.images", "validation.tags", "validation.masks"}


def run(arguments: Sequence[str] | None = None, began: float | None = None) -> int:
    """Run one command; returns the exit status. Errors leave it as they are.

    Args:
        began: when the program began, of `time.perf_counter`; default: now.
    """
    given = parser().parse_args(arguments)
    given.began = time.perf_counter() if began is None else began
    given.command = shlex.join(["vpl", *(sys.argv[1:] if arguments is None else arguments)])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setLevel(logging.WARNING)  # what log.txt holds besides is not shown twice
    logging.addLevelName(logging.WARNING, "warning")
    return COMMANDS.get(given.name, _stage)(given)


def _config(given: argparse.Namespace) -> Config:
    """The stored configuration of the run or the defaults, then preset, file, flags, and --set, in this order."""
    folder = given.folder or Path()
    stored = folder / "config.toml"
    base = preset(*given.preset)
    if given.config:
        base = Config.from_toml(given.config, base)
    elif given.folder and stored.exists():
        base = read(folder).with_values(_preset_beside_tuning(given.preset, folder))
    values: dict[str, object] = quality(given.quality) if given.quality else {}
    values |= {key: getattr(given, key) for key in KEYS.values() if getattr(given, key) is not None}
    shared = {key: f"validation.{key.removeprefix('data.')}" for key in HOW_TO_READ if key in values}
    values |= {theirs: values[own] for own, theirs in shared.items()}
    for text in given.set:
        key, sign, content = text.partition("=")
        if not sign:
            raise ConfigError(f"--set {text} has no value; write --set KEY=VALUE, such as --set prototypes.phi=0.4.")
        values[key.strip()] = content.strip()
    for key in PATHS & values.keys():
        if values[key] != "" and not storage.is_url(str(values[key])):  # "" is none, and not the folder one stands in
            values[key] = str(Path(str(values[key])).resolve())
    if "data.classes" in values and Path(str(values["data.classes"])).is_file():
        values["data.classes"] = str(Path(str(values["data.classes"])).resolve())
    for key in ("data.mask_values", "validation.mask_values"):
        if key in values:
            values[key] = legend.located(str(values[key]))
    return base.with_values(values)


def _preset_beside_tuning(names: Sequence[str], folder: Path) -> Mapping[str, object]:
    """Presets' values for a run that has begun: those that `vpl tune` chose stay."""
    values = of_presets(names)
    if not names or not (folder / "tune.json").exists():
        return values
    from vpl.runs.folder import tuned

    chosen = {one.key for one in tuned(folder)}
    return {key: one for key, one in values.items() if key not in chosen}


def _stage(given: argparse.Namespace) -> int:
    config = _config(given)
    if given.out and given.engine != "ray":
        raise ConfigError("--out needs --engine ray; the local engine writes into the run folder.")
    quick = _quickly(given, config)
    if isinstance(quick, int):
        return quick
    if given.tune:
        config = _tuned(given, config, TUNE_IMAGES)
    from vpl import build

    config = _fitting(given, config)
    run = build.open_run(
        given.folder, config, device=given.device, image_workers=given.image_workers, progress=bar,
        relearn=given.relearn,
    )  # fmt: skip
    tell = partial(_tell, config=config)
    run.began = given.began
    with run:
        if quick is not None:
            run.take(quick)
        log.info("command: %s", given.command)
        if given.name == "check":
            return _check(run)
        _tell_of_the_list(run)
        if given.name == "plan":
            print("\n".join(told(build.planned(run, "run"))))
            return 0
        if given.engine == "ray":
            from vpl.runs import ray as scaleout

            scaleout.labels(run, given.out)
        if given.name == "run":
            from vpl.judge import check

            plan = build.planned(run, "run")
            expected = build.expected(run, plan) if run.leads and run.place.count == 1 else None
            for line in replace(check.of_list(run), forecast=expected).lines(short=True) if plan else ():
                say(f"check: {line}", aside=True)
            build.bring(run, "run", tell, train=given.train or _steps_given(given), expected=expected)
        elif not given.out:
            build.bring(run, given.name, tell)
        return _close(run, given.out, whole=given.name == "run") if run.leads else 0


def _quickly(given: argparse.Namespace, config: Config) -> int | Planned | None:
    """The exit status of a plan, or of a run with nothing to do, where the run's memory tells without the weights; else
    what has been opened, None where that is nothing."""
    from vpl.runs.planned import MEMORY, Planned, Unread

    begun = (given.folder / STATE_FOLDER / MEMORY).exists() and (given.folder / FILE).exists()
    if given.name not in ("run", "plan") or given.tune or given.engine == "ray" or not begun or place().count > 1:
        return None
    run = Planned(given.folder, config, workers=given.image_workers, progress=bar, relearn=given.relearn)
    run.began = given.began
    with run:
        try:
            plan = run.plan(run.targets_of("run"))
        except Unread:
            return run
        if given.name == "run" and (plan or not run.is_told):
            return run
        log.info("command: %s", given.command)
        _tell_of_the_list(run)
        if given.name == "plan":
            print("\n".join(told(plan)))
            return 0
        run.settle()
        _tell(plan, config)
        return _close(run, None, whole=True)


def _check(run: Run) -> int:
    from vpl.judge import check

    print(check.look(run))
    unseen = run.validation_list
    for kind, line in run.told_of_lists():
        if kind.startswith("held-out"):
            print(f"{kind}: {line}")
    return 1 if run.dataset.problems or (unseen and unseen.problems) else 0


def _fitting(given: argparse.Namespace, config: Config) -> Config:
    """The configuration with the values of quality standard, and the number format and steps that suit the device,
    where a new run begins and nobody has chosen them."""
    if given.config or (given.folder / "config.toml").exists():
        return config
    from vpl import build

    chosen = {text.partition("=")[0].strip() for text in given.set} | of_presets(given.preset).keys()
    chosen |= quality(given.quality).keys() if given.quality else set()
    chosen |= {"train.steps"} if PUBLISHED.keys() & set(given.preset) else set()
    return build.fitting(
        config, given.device, chosen | {key for key in KEYS.values() if getattr(given, key) is not None}
    )


def _steps_given(given: argparse.Namespace) -> bool:
    return getattr(given, "train.steps") is not None or any(one.startswith("train.steps=") for one in given.set)


def _tell_of_the_list(run: Planned) -> None:
    for kind, line in run.told_of_lists():
        say(f"{kind}: {line}", aside=True)


def _tell(plan: Plan, config: Config) -> None:
    """The plan, before it is done, and what a photograph's looks cost."""
    looks, guide = config.looks, config.refine.features if config.refine.guided else ""
    for line in told(plan):
        say(f"plan: {line}", aside=True)
    if plan.of("masks") and looks.vote:
        seen = f"{count_of(len(looks.scales), 'scale')}{', mirrored too' if looks.flip else ''}"
        cost = f"{looks.encodings:g} encoding{'' if looks.encodings == 1 else 's'}"
        say(f"plan: {', '.join(looks.makers)} look at each photograph at {seen}: {cost}", aside=True)
    if guide and (plan.of("maps") or plan.of("masks")):
        say(f"plan: {guide} looks, too, as often as the CLIP does: each of its encodings comes on top", aside=True)


def _close(run: Planned, out: str | None, *, whole: bool) -> int:
    """Say what was made and which images were not; `whole`: all that there is was brought up to date."""
    from vpl.runs.records import read_evaluations

    for evaluation in read_evaluations(run.folder):
        say(show.table(evaluation))
    for line in run.said:
        say(line)
    masks = run.folder / "labels"
    if out:
        say(f"pseudo-masks in {storage.below(out, 'labels')}")
    elif masks.exists():
        say(f"{count_of(sum(1 for _ in masks.rglob('*.png')), 'pseudo-mask')} in {masks}")
    if run.has_network:
        of = "" if whole else _outdated(run, "network", "train")
        say(f"network in {run.folder / 'network'}{of}: vpl predict {run.folder} --images DIR --out DIR")
    if (run.folder / "report.html").exists():
        say(f"report in {run.folder / 'report.html'}{'' if whole else _outdated(run, 'report', 'run')}")
    unseen = run.validation_list
    problems = len(run.dataset.problems) + (len(unseen.problems) if unseen else 0)
    for failure in run.failures.values():
        say(f"skipped {failure.id}: {failure.reason}", aside=True)
    if all(sample.id in run.failures for sample in run.dataset.samples):
        say("vpl: none of the images could be used; mend the first one above.", aside=True)
        return 2
    if run.failures or problems:
        left_out = run.dataset.left_out + (unseen.left_out if unseen else 0)
        left = f"{count_of(left_out, 'photograph')} of the list left out"
        skipped = count_of(len(run.failures), "image")
        say(f"{skipped} skipped, {left} ({count_of(problems, 'line')}, see above).", aside=True)
    if run.unscored:
        say(f"vpl: there are no scores: {run.unscored}", aside=True)
    return 1 if run.failures or problems or run.unscored else 0


def _outdated(run: Planned, stage: str, command: str) -> str:
    """What to say of a product that was made from something else than is there now; "" where it was not."""
    stale = run.plan([stage], () if run.has_network else ["network"]).of(stage) is not None
    return f" (made before what has changed; vpl {command} makes it anew)" if stale else ""


def _predict(given: argparse.Namespace) -> int:
    from vpl.edges import sources
    from vpl.network import delivery, predict

    if (given.folder is None) == (given.model is None):
        raise ConfigError("expected one run folder: vpl predict RUN --images PHOTOS --out DIR.")
    if given.fast and given.protocol == "multi":
        raise ConfigError("--fast is --protocol single; give one of the two.")
    wanted = delivery.Outputs(
        given.probabilities, given.overlays, given.scores, given.confidence, given.overwrite, given.every
    )
    predictor = predict.load(given.folder or given.model, given.clip, given.device)
    protocol = predict.SINGLE if given.fast or given.protocol == "single" else predictor.full
    meant, failures = sources.read(given.images), 0
    for name, reason in delivery.deliver(predictor, meant, given.out, protocol, wanted, progress=bar):
        print(f"skipped {name}: {reason}", file=sys.stderr)
        failures += 1
    print(f"masks in {given.out}, made from {meant.kinds()}" + (f"; {failures} skipped" if failures else ""))
    return 1 if failures else 0


def _print_config(given: argparse.Namespace) -> int:
    if given.folder and not (given.folder / "config.toml").exists():
        raise ConfigError(
            f"{given.folder} is no run folder (it has no config.toml); name one, or none for the defaults."
        )
    print(show.config(_config(given)))
    return 0


def _clean(given: argparse.Namespace) -> int:
    from vpl.runs.folder import clean

    print(f"{clean(given.folder) / 1e6:,.1f} MB freed in {given.folder}")
    return 0


def _app(given: argparse.Namespace) -> NoReturn:
    from vpl.app.room import Room
    from vpl.app.server import Server
    from vpl.app.tryout import Tryout

    folder = given.folder
    room = Room(folder, given.device) if folder else None
    what = f"review of {folder}" if folder else "a photograph to try"
    server = Server(room, Tryout(folder, given.clip, given.device), given.port)
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"{what}: {server.address}\nonly this machine can open it; Ctrl-C ends it.", flush=True)
        server.serve_forever()
    if folder:
        print(f"what was decided is in {folder / 'review.csv'}; vpl run {folder} goes on from there.")
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(0)  # a thread that still answers is inside torch, which aborts a program that ends in the usual way


def _report(given: argparse.Namespace) -> int:
    from vpl.pages import report

    print(f"report in {report.report(given.folder)}")
    return 0


def _export(given: argparse.Namespace) -> int:
    from vpl.exports import export as exports

    made = exports.export(given.folder, given.to, given.out, what=given.what, clip=given.clip, progress=bar)
    for failure in made.failures:
        print(f"skipped {failure.id}: {failure.reason}", file=sys.stderr)
    what = f"{count_of(made.images, 'image')} with masks" if made.images else "network"
    print(f"{what} in {made.folder}")
    return 1 if made.failures else 0


def _demo(given: argparse.Namespace) -> int:
    from vpl import demo

    print(demo.demo(given.out, device=given.device, image_workers=given.image_workers, progress=bar))
    return 0


def _tune(given: argparse.Namespace) -> int:
    _tuned(given, _config(given), given.count)
    return 0


def _tuned(given: argparse.Namespace, config: Config, count: int) -> Config:
    """The configuration with values chosen on `count` images; says which and why."""
    from vpl.judge import tune

    config = _fitting(given, config)
    made = tune.tune(given.folder, config, device=given.device, workers=given.image_workers, count=count, progress=bar)
    print(made)
    return made.config


def _compare(given: argparse.Namespace) -> int:
    from vpl.pages import compare

    print(compare.compare(given.folders, given.out))
    return 0


def _ablate(given: argparse.Namespace) -> int:
    if not (given.preset or given.config or getattr(given, "data.images")):
        given.preset = ["scenes"]
    config = _config(given)
    from vpl.judge import ablate, ablations
    from vpl.judge.material import OwnData, Scenes

    if config.data.images:
        sources: list[OwnData | Scenes] = [OwnData(config, given.sets, given.count)]
    else:
        sources = [Scenes(style, given.count, given.side) for style in given.styles or [ABLATION_STYLE]]
    wanted = ablations.chosen(given.names, given.by)
    for made in ablate.ablate(
        given.folder, wanted, config, sources, sets=given.sets, device=given.device, workers=given.image_workers,
        progress=bar,
    ):  # fmt: skip
        print(made, end="\n\n")
    return 0


def _scenes(given: argparse.Namespace) -> int:
    from vpl.scenes.tree import write_tree

    counts = {"train": given.train, "val": given.val}
    made = write_tree(given.out, counts, seed=given.seed, style=given.style, size=given.size, layout=given.layout)
    print(f"{given.train} + {given.val} scenes in {made}")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "tune": _tune,
    "config": _print_config,
    "clean": _clean,
    "predict": _predict,
    "app": _app,
    "report": _report,
    "compare": _compare,
    "export": _export,
    "demo": _demo,
    "scenes": _scenes,
    "ablate": _ablate,
}
"""Those that bring no stage of a run."""
