"""The commands: one per stage, `run` for all of them. Flags are made from the fields of `config`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vpl import __version__
from vpl.config import PRESETS, Config, preset
from vpl.edges import storage
from vpl.errors import ConfigError
from vpl.exports import WAYS
from vpl.machine import cores
from vpl.runs.plan import Plan, told

if TYPE_CHECKING:
    from vpl.runs.stages import Run

SHORTCUTS = {
    "images": "data.images",
    "tags": "data.tags",
    "columns": "data.columns",
    "separator": "data.separator",
    "alias": "data.aliases",
    "masks": "data.masks",
    "mask-values": "data.mask_values",
    "classes": "data.classes",
    "format": "data.format",
    "split": "data.split",
    "val-images": "validation.images",
    "val-tags": "validation.tags",
    "val-masks": "validation.masks",
    "val-split": "validation.split",
    "clip": "clip.model",
    "precision": "clip.precision",
    "max-side": "clip.max_side",
    "batch-size": "clip.batch",
    "steps": "train.steps",
    "seed": "seed",
}
"""Flag -> the configuration value that it sets."""

HOW_TO_READ = ("data.columns", "data.separator", "data.aliases", "data.mask_values")
"""Flags that say how a list is read hold for the held-out list too."""

PATHS = {"data.images", "data.tags", "data.masks", "validation.images", "validation.tags", "validation.masks"}

STAGES = {
    "run": "everything: prototypes, seeds, pseudo-masks, the network, evaluation where truth exists, the report",
    "prototypes": "text and vision prototypes",
    "seeds": "label maps of text, vision and refined seeds",
    "labels": "pseudo-masks",
    "train": "the segmentation network, from the pseudo-masks",
    "evaluate": "pseudo-masks, and the network if there is one, against the truth masks",
    "plan": "what vpl run would do, and why; nothing is done",
}


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors leave it as they are."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr, force=True)
    logging.addLevelName(logging.WARNING, "warning")
    return given.command(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpl", description="From image tags to segmentation masks, with a frozen CLIP (Vision Prototype Learning)."
    )
    parser.add_argument("--version", action="version", version=f"vpl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, words in STAGES.items():
        stage = commands.add_parser(name, help=words, description=words)
        stage.add_argument(
            "folder", type=Path, metavar="RUN", help="the run folder; made when absent, continued when not"
        )
        _add_config_flags(stage)
        _add_machine_flags(stage)
        if name == "run":
            stage.add_argument("--tune", action="store_true", help="choose thresholds first, see vpl tune")
        if name in ("run", "labels"):
            stage.add_argument("--engine", choices=("local", "ray"), help="who makes the pseudo-masks (default: local)")
        if name == "labels":
            stage.add_argument("--out", metavar="PLACE", help="engine ray: folder or URL for label maps (default: RUN)")
        stage.add_argument(
            "--relearn",
            action="store_true",
            help="learn prototypes and network again where only photographs or tags have changed",
        )
        stage.set_defaults(command=_stage, stage=name, tune=False, engine="local", out=None)

    predict = commands.add_parser("predict", help="masks of new photographs, without tags")
    predict.add_argument("--model", type=Path, required=True, metavar="RUN", help="a run folder with a trained network")
    predict.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of photographs")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the masks go")
    predict.add_argument("--clip", default=None, help="where the CLIP of the network lies now, if elsewhere")
    predict.add_argument("--fast", action="store_true", help="one scale, no flip, no CRF")
    predict.add_argument("--probabilities", action="store_true", help="also write the probabilities (npz)")
    predict.add_argument("--overlays", action="store_true", help="also write the masks in colour over the photographs")
    _add_device_flag(predict)
    predict.set_defaults(command=_predict)

    clean = commands.add_parser("clean", help="remove what a run keeps in replaced/: networks and masks of before")
    clean.add_argument("folder", type=Path, metavar="RUN")
    clean.set_defaults(command=_clean)

    report = commands.add_parser("report", help="one self-contained HTML page about a run")
    report.add_argument("folder", type=Path, metavar="RUN")
    report.set_defaults(command=_report)

    export = commands.add_parser("export", help="pseudo-masks or the network in the formats of other tools")
    export.add_argument("folder", type=Path, metavar="RUN")
    export.add_argument("--to", required=True, choices=WAYS, help="the format")
    export.add_argument("--out", type=Path, default=None, metavar="DIR", help="where it goes (default: RUN/export/TO)")
    export.add_argument("--clip", default=None, help="where the CLIP of the network lies now, if elsewhere (onnx, hf)")
    export.set_defaults(command=_export)

    tune = commands.add_parser("tune", help="choose thresholds for images without ground truth, before a run")
    tune.add_argument("folder", type=Path, metavar="RUN", help="the run folder; the choice goes into its configuration")
    tune.add_argument("--count", type=int, default=60, help="images to choose on (default: 60)")
    _add_config_flags(tune)
    _add_machine_flags(tune)
    tune.set_defaults(command=_tune)

    compare = commands.add_parser("compare", help="several runs in one table and one self-contained page")
    compare.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    compare.add_argument("--out", type=Path, default=Path("compare.html"), metavar="FILE", help="default: compare.html")
    compare.set_defaults(command=_compare)

    ablate = commands.add_parser("ablate", help="what one decision is worth, on data with ground truth")
    ablate.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="an ablation, several, all, or KEY=VALUE,VALUE of any configuration value",
    )
    ablate.add_argument("--by", metavar="NAME", help="cross it with a second one: a heat map")
    ablate.add_argument(
        "--out", dest="folder", type=Path, default=Path("ablation"), metavar="DIR", help="results go here"
    )
    ablate.add_argument("--styles", nargs="+", metavar="STYLE", help="drawing styles, where no --images are given")
    ablate.add_argument("--sets", type=int, default=3, help="sets of images (default: 3)")
    ablate.add_argument("--count", type=int, default=60, help="images in each set (default: 60)")
    ablate.add_argument("--side", type=int, default=96, help="side of drawn scenes in pixels (default: 96)")
    _add_config_flags(ablate)
    _add_machine_flags(ablate)
    ablate.set_defaults(command=_ablate)

    demo = commands.add_parser("demo", help="the whole method on drawn scenes, with nothing to download")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where it goes (default: demo)")
    _add_machine_flags(demo)
    demo.set_defaults(command=_demo)

    tree = commands.add_parser("scenes", help="write drawn scenes as a data set: images, tags, truth masks")
    tree.add_argument("out", type=Path, metavar="DIR")
    tree.add_argument("--train", type=int, default=200, help="training images (default: 200)")
    tree.add_argument("--val", type=int, default=100, help="held-out images (default: 100)")
    tree.add_argument("--style", default="demo", help="drawing style")
    tree.add_argument("--size", type=int, default=96, help="side in pixels (default: 96)")
    tree.add_argument("--seed", type=int, default=0)
    tree.add_argument("--layout", choices=("folder", "voc"), default="folder")
    tree.set_defaults(command=_scenes)
    return parser


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    defaults = Config()
    for flag, key in SHORTCUTS.items():
        section, _, name = key.rpartition(".")
        holder = getattr(defaults, section) if section else defaults
        metadata = next(item.metadata for item in dataclasses.fields(holder) if item.name == name)
        words = metadata["help"]
        if section == "validation":
            words = f"of the held-out split: {words}"
        choices = metadata["choices"] or None
        several = "append" if isinstance(getattr(holder, name), tuple) else "store"
        parser.add_argument(
            f"--{flag}",
            dest=key,
            metavar=None if choices else flag.upper(),
            choices=choices,
            help=words,
            action=several,
        )
    parser.add_argument("--preset", choices=sorted(PRESETS), help="start from the values for this data set")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="start from a TOML file, such as a run's config.toml"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any configuration value; may be repeated"
    )


def _add_machine_flags(parser: argparse.ArgumentParser) -> None:
    _add_device_flag(parser)
    parser.add_argument(
        "--image-workers",
        type=int,
        default=cores(),
        metavar="N",
        help="threads for reading, for CRFs and on a CPU for encoding (default: one a core)",
    )


def _add_device_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="where to compute")


def _config(given: argparse.Namespace) -> Config:
    """The stored configuration of the run or the defaults, then preset, file, flags, and --set, in this order."""
    stored = given.folder / "config.toml"
    base = preset(given.preset) if given.preset else Config()
    if given.config:
        base = Config.from_toml(given.config, base)
    elif stored.exists():
        base = Config.from_toml(stored).with_values(_preset_beside_tuning(given.preset, given.folder))
    values: dict[str, object] = {
        key: getattr(given, key) for key in SHORTCUTS.values() if getattr(given, key) is not None
    }
    shared = {key: f"validation.{key.removeprefix('data.')}" for key in HOW_TO_READ if key in values}
    values |= {theirs: values[own] for own, theirs in shared.items()}
    for text in given.set:
        key, sign, content = text.partition("=")
        if not sign:
            raise ConfigError(f"--set {text} has no value; write --set KEY=VALUE, such as --set prototypes.phi=0.4.")
        values[key.strip()] = content.strip()
    for key in PATHS & values.keys():
        if not storage.is_url(str(values[key])):
            values[key] = str(Path(str(values[key])).resolve())
    if "data.classes" in values and Path(str(values["data.classes"])).is_file():
        values["data.classes"] = str(Path(str(values["data.classes"])).resolve())
    return base.with_values(values)


def _preset_beside_tuning(name: str | None, folder: Path) -> Mapping[str, object]:
    """A preset's values for a run that has begun: those that `vpl tune` chose stay."""
    if not name or not (folder / "tune.json").exists():
        return PRESETS[name] if name else {}
    from vpl.runs.folder import tuned

    chosen = {key for key, _, _ in tuned(folder)}
    return {key: one for key, one in PRESETS[name].items() if key not in chosen}


def _stage(given: argparse.Namespace) -> int:
    config = _config(given)
    _check_workers(given.image_workers)
    if given.out and given.engine != "ray":
        raise ConfigError("--out needs --engine ray; the local engine writes into the run folder.")
    if given.tune:
        config = _tuned(given, config, 60)
    from vpl import build

    run = build.open_run(
        given.folder, config, device=given.device, image_workers=given.image_workers, progress=_bar,
        relearn=given.relearn,
    )  # fmt: skip
    with run:
        _tell_of_the_list(run)
        if given.stage == "plan":
            print("\n".join(told(build.planned(run, "run"))))
            return 0
        if given.engine == "ray":
            from vpl.runs import ray as scaleout

            scaleout.labels(run, given.out)
        if not given.out:
            build.bring(run, given.stage, _tell)
        return _close(run, given.out) if run.leads else 0


def _tell_of_the_list(run: Run) -> None:
    for kind, lines in (
        ("left out", run.dataset.problems),
        ("warning", run.dataset.warnings),
        ("note", run.dataset.notes),
    ):
        for line in lines:
            print(f"{kind}: {line}", file=sys.stderr)


def _tell(plan: Plan) -> None:
    """The plan, before it is done."""
    for line in told(plan):
        print(f"plan: {line}", file=sys.stderr)


def _check_workers(count: int) -> None:
    if count < 1:
        raise ConfigError(f"--image-workers is {count}; expected at least 1.")


def _close(run: Run, out: str | None) -> int:
    """Say what was made and which images were not."""
    from vpl.runs.files import read_evaluations

    for evaluation in read_evaluations(run.folder):
        print(table(evaluation))
    masks = run.folder / "labels"
    if out:
        print(f"pseudo-masks in {storage.below(out, 'labels')}")
    elif masks.exists():
        print(f"{sum(1 for _ in masks.rglob('*.png'))} pseudo-masks in {masks}")
    if run.has_network:
        print(f"network in {run.folder / 'network'}: vpl predict --model {run.folder} --images DIR --out DIR")
    if (run.folder / "report.html").exists():
        print(f"report in {run.folder / 'report.html'}")
    problems = len(run.dataset.problems)
    for failure in run.failures.values():
        print(f"skipped {failure.id}: {failure.reason}", file=sys.stderr)
    if all(sample.id in run.failures for sample in run.dataset.samples):
        print("vpl: none of the images could be used; mend the first one above.", file=sys.stderr)
        return 2
    if run.failures or problems:
        left = f"{run.dataset.left_out} photographs of the list left out ({problems} lines, see above)"
        print(f"{len(run.failures)} images skipped, {left}.", file=sys.stderr)
        return 1
    return 0


def table(evaluation: dict) -> str:
    """The mIoU table of one split, as text."""
    lines = [f"{evaluation['split']}, {evaluation['images']} images{'':<14}mIoU   pixel accuracy"]
    width = len(lines[0]) - len("mIoU   pixel accuracy")
    for row in evaluation["rows"]:
        lines.append(f"  {row['name']:<{width - 2}}{100 * row['miou']:5.1f}   {100 * row['pixel_accuracy']:5.1f}")
    return "\n".join(lines)


_UNITS = {"ablate": "setting", "tune": "value", "train": "step"}
"""What a bar of these words counts, where it is not images."""


def _bar(items: Iterable, total: int, words: str) -> Iterable:
    from tqdm import tqdm

    return tqdm(
        items,
        total=total,
        desc=words,
        unit=_UNITS.get(words, "image"),
        dynamic_ncols=True,
        mininterval=0.5,
        delay=0.5,
        disable=None,
        file=sys.stderr,
    )


def _predict(given: argparse.Namespace) -> int:
    from vpl.network import predict

    predictor = predict.load(given.model, given.clip, given.device)
    wanted = predict.Outputs(probabilities=given.probabilities, overlays=given.overlays)
    protocol = predict.SINGLE if given.fast else predictor.full
    failures = list(predict.predict_folder(predictor, given.images, given.out, protocol, wanted, progress=_bar))
    for name, reason in failures:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    print(f"masks in {given.out}")
    return 1 if failures else 0


def _clean(given: argparse.Namespace) -> int:
    from vpl.runs.folder import clean

    print(f"{clean(given.folder) / 1e6:,.1f} MB freed in {given.folder}")
    return 0


def _report(given: argparse.Namespace) -> int:
    from vpl.pages import report

    print(f"report in {report.report(given.folder)}")
    return 0


def _export(given: argparse.Namespace) -> int:
    from vpl.exports import export as exports

    made = exports.export(given.folder, given.to, given.out, clip=given.clip, progress=_bar)
    for failure in made.failures:
        print(f"skipped {failure.id}: {failure.reason}", file=sys.stderr)
    print(f"{made.images} images with masks in {made.folder}" if made.images else f"network in {made.folder}")
    return 1 if made.failures else 0


def _demo(given: argparse.Namespace) -> int:
    _check_workers(given.image_workers)
    from vpl import demo

    print(demo.demo(given.out, device=given.device, image_workers=given.image_workers, progress=_bar))
    return 0


def _tune(given: argparse.Namespace) -> int:
    _check_workers(given.image_workers)
    if given.count < 1:
        raise ConfigError(f"--count is {given.count}; expected at least 1.")
    _tuned(given, _config(given), given.count)
    return 0


def _tuned(given: argparse.Namespace, config: Config, count: int) -> Config:
    """The configuration with values chosen on `count` images; says which and why."""
    from vpl.judge import tune

    made = tune.tune(given.folder, config, device=given.device, workers=given.image_workers, count=count, progress=_bar)
    print(made)
    return made.config


def _compare(given: argparse.Namespace) -> int:
    from vpl.pages import compare

    print(compare.compare(given.folders, given.out))
    return 0


def _ablate(given: argparse.Namespace) -> int:
    _check_workers(given.image_workers)
    for name in ("sets", "count"):
        if getattr(given, name) < 1:
            raise ConfigError(f"--{name} is {getattr(given, name)}; expected at least 1.")
    if not (given.preset or given.config or getattr(given, "data.images")):
        given.preset = "scenes"
    config = _config(given)
    from vpl.judge import ablate, ablations
    from vpl.judge.material import STYLE, OwnData, Scenes

    if config.data.images:
        sources: list[OwnData | Scenes] = [OwnData(config, given.sets, given.count)]
    else:
        sources = [Scenes(style, given.count, given.side) for style in given.styles or [STYLE]]
    wanted = ablations.chosen(given.names, given.by)
    for made in ablate.ablate(
        given.folder, wanted, config, sources, sets=given.sets, device=given.device, workers=given.image_workers,
        progress=_bar,
    ):  # fmt: skip
        print(made, end="\n\n")
    return 0


def _scenes(given: argparse.Namespace) -> int:
    from vpl.scenes.tree import write_tree

    counts = {"train": given.train, "val": given.val}
    made = write_tree(given.out, counts, seed=given.seed, style=given.style, size=given.size, layout=given.layout)
    print(f"{given.train} + {given.val} scenes in {made}")
    return 0
