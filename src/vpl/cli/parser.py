"""What can be typed: the commands in groups, their flags with defaults and units, and an example of each.

Flags of a run's configuration are made from the fields of `config`; every default that the library has is read there.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

from vpl import __version__
from vpl.config import (
    ABLATION_IMAGES,
    ABLATION_SETS,
    ABLATION_STYLE,
    MOST_WORKERS,
    PRESETS,
    SCENE_SIDE,
    TUNE_IMAGES,
    Config,
    quality,
)
from vpl.errors import ConfigError
from vpl.exports import WAYS
from vpl.judge.ablations import ABLATIONS
from vpl.machine import cores
from vpl.presets import QUALITY, STANDARD
from vpl.scenes.styles import STYLES

SHORTCUTS = {
    "data": {
        "images": "data.images",
        "tags": "data.tags",
        "format": "data.format",
        "split": "data.split",
        "classes": "data.classes",
        "columns": "data.columns",
        "separator": "data.separator",
        "alias": "data.aliases",
        "untagged": "data.untagged",
        "masks": "data.masks",
        "mask-values": "data.mask_values",
    },
    "held-out data": {
        "val-images": "validation.images",
        "val-tags": "validation.tags",
        "val-masks": "validation.masks",
        "val-split": "validation.split",
    },
    "method": {
        "clip": "clip.model",
        "precision": "clip.precision",
        "max-side": "clip.max_side",
        "batch-size": "clip.batch",
        "steps": "train.steps",
        "seed": "seed",
    },
}
"""Title of a group -> flag -> the configuration value that it sets."""

KEYS = {flag: key for group in SHORTCUTS.values() for flag, key in group.items()}

MOST_IMAGES = 1_000_000
"""The largest count of images, sets or scenes that a flag takes."""

GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "from tags to masks and a network": {
        "run": (
            "everything: prototypes, seeds, pseudo-masks, the network, evaluation where truth exists, the report",
            "vpl run runs/mine --images photos --tags tags.csv --clip openai/clip-vit-base-patch16",
        ),
        "check": (
            "look at the list, the tags, and what the CLIP thinks of them; measure time and disk; nothing is written",
            "vpl check runs/mine --images photos --tags tags.csv --clip openai/clip-vit-base-patch16",
        ),
        "plan": ("what vpl run would do, and why; nothing is done", "vpl plan runs/mine --steps 2000"),
        "tune": (
            "choose thresholds from tags and images alone, without ground truth",
            "vpl tune runs/mine --count 100",
        ),
        "config": ("print every configuration value with its source and meaning", "vpl config runs/mine"),
    },
    "one stage of a run, with what it needs": {
        "prototypes": ("text and vision prototypes", "vpl prototypes runs/mine --images photos --tags tags.csv"),
        "seeds": ("label maps of text, vision and refined seeds", "vpl seeds runs/mine"),
        "labels": ("pseudo-masks", "vpl labels runs/mine --engine ray --out s3://bucket/maps"),
        "train": ("the segmentation network, from the pseudo-masks", "vpl train runs/mine --steps 5000"),
        "evaluate": (
            "pseudo-masks, and the network if there is one, against the truth masks",
            "vpl evaluate runs/mine --masks truth",
        ),
        "clean": ("remove what a run keeps in replaced/: networks and masks of before", "vpl clean runs/mine"),
    },
    "what a run is for": {
        "predict": (
            "masks of new photographs, without tags",
            "vpl predict runs/mine --images more-photos --out masks --overlays",
        ),
        "app": (
            "a local page: try values on a photograph; look through a run's masks, accept, reject, correct tags, paint",
            "vpl app runs/mine",
        ),
        "report": ("one self-contained HTML page about a run", "vpl report runs/mine"),
        "compare": ("several runs in one table and one self-contained page", "vpl compare runs/mine runs/other"),
        "export": (
            "pseudo-masks or the network in the formats of other tools",
            "vpl export runs/mine --to coco --out mine-coco",
        ),
    },
    "with nothing of your own": {
        "demo": ("the whole method on drawn scenes, with nothing to download", "vpl demo --out demo"),
        "scenes": (
            "write drawn scenes as a data set: images, tags, truth masks",
            "vpl scenes tree --train 50 --val 20 --style sketch",
        ),
        "ablate": (
            "what one decision is worth, on drawn scenes or on data with ground truth",
            "vpl ablate temperature phi --styles demo sketch --out ablation",
        ),
    },
}
"""Title of a group -> command -> (what it does, an example)."""


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def parser() -> argparse.ArgumentParser:
    """The whole command line; what is parsed has `name`, the command."""
    whole = argparse.ArgumentParser(prog="vpl", formatter_class=_Help, description=_overview(), usage="vpl COMMAND ...")
    whole.add_argument("--version", action="version", version=f"vpl {__version__}")
    commands = whole.add_subparsers(prog="vpl", metavar="COMMAND", required=True, dest="name", help=argparse.SUPPRESS)
    makers: dict[str, Callable[[argparse.ArgumentParser], None]] = {
        "tune": _tune, "config": _config, "clean": _folder, "predict": _predict, "report": _folder,
        "app": _app, "compare": _compare, "export": _export, "demo": _demo, "scenes": _scenes, "ablate": _ablate,
    }  # fmt: skip
    for group in GROUPS.values():
        for name, (words, example) in group.items():
            one = commands.add_parser(
                name, formatter_class=_Help, description=_sentence(words), epilog=f"example:\n  {example}"
            )
            makers.get(name, _stage)(one)
            if len(one._actions) > 20:  # of so many flags a line of usage says nothing
                one.usage = f"vpl {name} {'NAME' if name == 'ablate' else 'RUN'} [flags]"
    return whole


def _overview() -> str:
    lines = ["From image tags to segmentation masks, with a frozen CLIP (Vision Prototype Learning)."]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<12}{words}" for name, (words, _) in group.items())]
    return "\n".join([*lines, "", "vpl COMMAND --help tells its flags, and gives an example."])


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


# -------------------------------------------------------------------------------------------------------- the commands
def _stage(one: argparse.ArgumentParser) -> None:
    name = one.prog.split()[-1]
    _run_folder(one, "the run folder; made when absent, continued when not")
    one.set_defaults(tune=False, train=False, engine="local", out=None)
    _config_flags(one)
    how = one.add_argument_group("how")
    if name == "run":
        how.add_argument("--tune", action="store_true", help="choose thresholds first, see vpl tune")
        how.add_argument(
            "--train",
            action="store_true",
            help="train also where tags rank no better than chance or a CPU needs hours; so does --steps",
        )
    if name in ("run", "labels"):
        how.add_argument("--engine", choices=("local", "ray"), help="who makes the pseudo-masks (default: local)")
    if name == "labels":
        how.add_argument("--out", metavar="PLACE", help="engine ray: folder or URL for label maps (default: RUN)")
    how.add_argument(
        "--relearn",
        action="store_true",
        help="learn prototypes and network again where only photographs or tags have changed",
    )
    _machine_flags(one)


def _folder(one: argparse.ArgumentParser) -> None:
    _run_folder(one, "a run folder")


def _tune(one: argparse.ArgumentParser) -> None:
    _run_folder(one, "the run folder; the choice goes into its configuration")
    _count(one, "--count", TUNE_IMAGES, "images to choose on")
    _config_flags(one)
    _machine_flags(one)


def _config(one: argparse.ArgumentParser) -> None:
    one.add_argument("folder", type=Path, nargs="?", metavar="RUN", help="a run folder (default: the defaults)")
    _config_flags(one)


def _predict(one: argparse.ArgumentParser) -> None:
    one.add_argument("folder", type=Path, nargs="?", metavar="RUN", help="a run folder with a trained network")
    one.add_argument("--model", type=Path, metavar="RUN", help="the same as RUN")
    one.add_argument(
        "--images", nargs="+", required=True, metavar="IMAGES",
        help="photographs or films: files, folders (with their sub-folders), patterns, lists (.txt)",
    )  # fmt: skip
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the masks go")
    one.add_argument("--clip", metavar="CLIP", help="where the CLIP of the network lies now, if elsewhere")
    one.add_argument(
        "--protocol", choices=("single", "multi"),
        help="one scale; or several scales, mirror images and a CRF (default: multi)",
    )  # fmt: skip
    one.add_argument("--fast", action="store_true", help="the same as --protocol single")
    one.add_argument(
        "--confidence", type=float, default=0.0, metavar="SHARE",
        help=_default("pixels whose label is less probable become 255, 0 to 1", 0.0),
    )  # fmt: skip
    one.add_argument("--scores", action="store_true", help="also write what was found and how sure (scores.csv)")
    _count(one, "--every", 1, "of a film, every how many frames")
    one.add_argument("--overwrite", action="store_true", help="make all again, and replace files that vpl did not make")
    one.add_argument("--probabilities", action="store_true", help="also write the probabilities (npz)")
    one.add_argument(
        "--overlays", action="store_true", help="also write the masks in colour over the photographs or films"
    )
    _device_flag(one)


def _app(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "folder", type=Path, metavar="RUN", nargs="?", help="a run folder with pseudo-masks; without one, only Try"
    )  # fmt: skip
    one.add_argument(
        "--clip", action="append", default=[], metavar="CLIP",
        help="offered in Try, the first one to begin with: a hub name, a folder or a file; may be repeated "
        "(default: the run's, or pocket)",
    )  # fmt: skip
    one.add_argument(
        "--port", type=_whole("--port", 0, 65535), default=0, metavar="N",
        help=_default("where on 127.0.0.1 it listens; 0: any that is free", 0),
    )  # fmt: skip
    _device_flag(one)


def _compare(one: argparse.ArgumentParser) -> None:
    one.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="at least two run folders")
    _out(one, "compare.html", "FILE", "the page")


def _export(one: argparse.ArgumentParser) -> None:
    one.add_argument("folder", type=Path, metavar="MASKS|RUN", help="a run folder, or masks that vpl predict made")
    one.add_argument(
        "--what", choices=("masks", "predictions"),
        help="a run's pseudo-masks, or what its network says of the same photographs (default: masks)",
    )  # fmt: skip
    one.add_argument("--to", required=True, choices=tuple(WAYS), help="the format: " + _ways())
    one.add_argument("--out", type=Path, metavar="DIR", help="where it goes (default: RUN/export/TO)")
    one.add_argument("--clip", metavar="CLIP", help="where the CLIP of the network lies now, if elsewhere")


def _demo(one: argparse.ArgumentParser) -> None:
    _out(one, "demo", "DIR", "where it goes")
    _machine_flags(one)


def _scenes(one: argparse.ArgumentParser) -> None:
    one.add_argument("out", type=Path, metavar="DIR", help="a new or empty folder")
    _count(one, "--train", 200, "training images")
    _count(one, "--val", 100, "held-out images")
    one.add_argument("--style", default=ABLATION_STYLE, metavar="STYLE", help=_styles())
    one.add_argument(
        "--size", type=_whole("--size", 16, 1024), default=SCENE_SIDE, metavar="N",
        help=_default("side in pixels", SCENE_SIDE),
    )  # fmt: skip
    one.add_argument(
        "--seed", type=_whole("--seed", 0, 2**63 - 1), default=0, metavar="N", help=_default("which scenes", 0)
    )
    one.add_argument("--layout", choices=("folder", "voc"), default="folder", help=_default("how they lie", "folder"))


def _ablate(one: argparse.ArgumentParser) -> None:
    one.add_argument("names", nargs="+", metavar="NAME", help="of those below, all, or KEY=VALUE,VALUE of any value")
    one.add_argument("--by", metavar="NAME", help="cross it with a second one: a heat map")
    _out(one, "ablation", "DIR", "where tables and figures go", dest="folder")
    drawn = one.add_argument_group("drawn scenes, where no --images are given")
    drawn.add_argument(
        "--styles", nargs="+", metavar="STYLE",
        help=_styles(),
    )  # fmt: skip
    _count(drawn, "--sets", ABLATION_SETS, "sets of images")
    _count(drawn, "--count", ABLATION_IMAGES, "images in each set")
    drawn.add_argument(
        "--side", type=_whole("--side", 16, 1024), default=SCENE_SIDE, metavar="N",
        help=_default("side in pixels", SCENE_SIDE),
    )  # fmt: skip
    _config_flags(one)
    _machine_flags(one)
    width = max(map(len, ABLATIONS)) + 2
    names = "\n".join(f"  {name:<{width}}{ablation.question}" for name, ablation in ABLATIONS.items())
    one.epilog = f"ablations:\n{names}\n\nKEY is any of vpl config.\n\n{one.epilog}"


# ----------------------------------------------------------------------------------------------------------- the flags
def _run_folder(one: argparse.ArgumentParser, words: str) -> None:
    one.add_argument("folder", type=Path, metavar="RUN", help=words)


def _out(one: argparse.ArgumentParser, default: str, metavar: str, words: str, dest: str = "out") -> None:
    one.add_argument(
        "--out", dest=dest, type=Path, default=Path(default), metavar=metavar, help=_default(words, default)
    )


def _config_flags(one: argparse.ArgumentParser) -> None:
    defaults = Config()
    for title, flags in SHORTCUTS.items():
        group = one.add_argument_group(title)
        for flag, key in flags.items():
            told, default = defaults.field(key).metadata, defaults.flat()[key]
            words = told["help"] if default in ("", ()) else _default(told["help"], default)
            group.add_argument(
                f"--{flag}", dest=key, help=words.replace("%", "%%"),
                metavar=None if told["choices"] else flag.rpartition("-")[2].upper(), choices=told["choices"] or None,
                action="append" if isinstance(default, tuple) else "store",
            )  # fmt: skip
    group = one.add_argument_group("any value")
    group.add_argument(
        "--preset", action="append", default=[], choices=sorted(PRESETS),
        help="start from the values for this data set, or of this published method; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--quality", choices=tuple(QUALITY),
        help=f"looks at a photograph, CRF and network's recipe: {_qualities()} (default of a new run: {STANDARD})",
    )  # fmt: skip
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="start from a TOML file, such as a run's config.toml"
    )
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="any value that vpl config prints, such as prototypes.phi=0.4; may be repeated",
    )  # fmt: skip


def _machine_flags(one: argparse.ArgumentParser) -> None:
    group = _device_flag(one)
    group.add_argument(
        "--image-workers", type=_whole("--image-workers", 1, MOST_WORKERS), default=cores(), metavar="N",
        help="threads for reading, for CRFs and on a CPU for encoding (default: one a core)",
    )  # fmt: skip


def _device_flag(one: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = one.add_argument_group("machine")
    group.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"),
        help="where to compute (default: auto, a GPU where there is one)",
    )  # fmt: skip
    return group


def _count(one: argparse._ActionsContainer, flag: str, default: int, words: str) -> None:
    one.add_argument(
        flag, type=_whole(flag, 1, MOST_IMAGES), default=default, metavar="N", help=_default(words, default)
    )


def _default(words: str, default: object) -> str:
    return f"{words} (default: {default})"


def _whole(flag: str, low: int, high: int) -> Callable[[str], int]:
    """Reads a whole number within its bounds, both allowed."""

    def read(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and low <= int(text) <= high):
            raise ConfigError(f"{flag} is {text}; expected a whole number from {low} to {high}.")
        return int(text)

    return read


@functools.cache
def _qualities() -> str:
    costs = {name: Config().with_values(quality(name)).looks.encodings for name in QUALITY}
    return ", ".join(f"{name} {cost:g}" for name, cost in costs.items()) + " encodings for each photograph"


def _styles() -> str:
    return _default(f"of {', '.join(STYLES)}", ABLATION_STYLE)


def _ways() -> str:
    """The ways out, by what of a run they take."""
    kinds: Iterable[str] = dict.fromkeys(WAYS.values())
    return "; ".join(f"{', '.join(way for way in WAYS if WAYS[way] == kind)} ({kind})" for kind in kinds)
