"""`vpl ablate NAME`: what one decision is worth, over several sets of images, on data with ground truth (METHOD.md 7).

    for each set of images: features once; for each setting: what changes from there on; mIoU of every stage
    claim: paired over the sets, difference = mIoU(setting) - mIoU(default), told as mean ± standard deviation

A set is a seed of drawn scenes, or a part of a data set. The raw result of a setting on a set is one small JSON file,
written atomically, so that a killed ablation goes on. The truth is opened here for comparison; what learns is `Bench`,
which never has it.

Letters: C classes · H W pixels.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vpl.classes import ClassSet
from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import Config, preset
from vpl.edges import images, storage
from vpl.errors import ConfigError, DataError
from vpl.judge.ablations import NETWORK, ROW_NAMES, Ablation, Setting, short
from vpl.judge.bench import MASK_STAGES, Bench
from vpl.method import signs
from vpl.method.metrics import Confusion
from vpl.method.views import View
from vpl.network import predict
from vpl.network.card import NETWORK_FOLDER
from vpl.pages import plots
from vpl.runs.files import read_json, scores_of, write_json
from vpl.runs.stages import Progress, Run, dataset_of, silent, split_of
from vpl.scenes.draw import draw as draw_scene
from vpl.scenes.tree import write_tree

SETS, IMAGES, SIDE, STYLE = 3, 60, 96, "demo"
SMALLEST = 0.05
"""Differences in mIoU, in percent points, below which nothing is claimed. [ours]"""
FIRST_SEED = 1000
"""Scene seeds of the sets start here, away from those that the embedded CLIP was trained on."""
SECTIONS = ("clip", "prompts", "seeds", "prototypes", "refine", "labels", "crf")
"""Sections that shape masks."""
NETWORK_SECTIONS = (*SECTIONS, "decoder", "rsc", "train", "predict")
QUICK_NETWORK = {
    "decoder.width": 64,
    "decoder.heads": 4,
    "decoder.blocks": 1,
    "train.steps": 100,
    "train.batch": 8,
    "train.crop": 96,
}
"""The network of `rsc` on scenes where the configuration is the scenes' own: small, so that 18 trainings take minutes.
[ours]"""


LEARNED = {
    "KL before": "KL(q ‖ p) of T",
    "KL after": "of V",
    "highest KL": "the highest on the way",
    "steps": "steps taken",
    "gap T": "distance of the mean region from the mean text prototype",
    "gap V": "from the mean vision prototype",
    "own T": "cosine of a region with its own text prototype",
    "own V": "with its own vision prototype",
    "right T": "share of the regions whose nearest text prototype is their own",
    "right V": "whose nearest vision prototype is",
}
"""Numbers about learned prototypes, and what they are."""


# ------------------------------------------------------------------------------------------------------------- material
@dataclass(frozen=True)
class ImageSet:
    """Images with their truth.

    Attributes:
        group: style or data set.
        number: which of the sets.
        split: what the images are called in tables.
        identity: changes when the images, tags or classes do.
    """

    group: str
    number: int
    split: str
    classes: ClassSet
    views: tuple[View, ...]
    truths: tuple[UInt8[np.ndarray, "H W"], ...]
    identity: str


@dataclass(frozen=True)
class Scenes:
    """Sets of drawn scenes: set number n has the scenes of seed `FIRST_SEED` + n that have tags."""

    style: str = STYLE
    count: int = IMAGES
    side: int = SIDE

    @property
    def group(self) -> str:
        return self.style

    def identity(self, number: int) -> str:
        return f"scenes {self.style} {self.side} px, {self.count} images, seed {FIRST_SEED + number}"

    def load(self, number: int) -> ImageSet:
        """Draw the set."""
        classes, views, truths, place = scene_classes(), [], [], 0
        while len(views) < self.count:
            scene = draw_scene(FIRST_SEED + number, place, self.style, self.side)
            place += 1
            if scene.tags:
                tags = tuple(classes.index(tag) for tag in scene.tags)
                views.append(View(scene.image, tags, scene.mask.shape))
                truths.append(scene.mask)
        return ImageSet(self.style, number, "train", classes, tuple(views), tuple(truths), self.identity(number))

    def tree(self, number: int, folder: Path) -> None:
        """The set as files, with as many held-out scenes."""
        write_tree(
            folder, {"train": self.count, "val": self.count}, seed=FIRST_SEED + number, style=self.style, size=self.side
        )


@dataclass(frozen=True)
class OwnData:
    """Sets of a user's data: parts of a fixed shuffle, that share no image while there are enough."""

    config: Config
    sets: int
    count: int

    @property
    def group(self) -> str:
        return split_of(self.config.data)

    def identity(self, number: int) -> str:
        data = self.config.data
        places = [getattr(data, item.name) for item in dataclasses.fields(data)]
        return f"{json.dumps(places)}, {self.count} images, part {number} of {self.sets}"

    def load(self, number: int) -> ImageSet:
        """Read the part.

        Raises:
            DataError: there are no truth masks.
        """
        dataset = dataset_of(self.config.data)
        samples = [one for one in dataset.samples if one.mask is not None]
        if not samples:
            raise DataError("an ablation compares with the truth, and the data have no truth masks; give --masks DIR.")
        if self.sets * self.count <= len(samples):
            order = np.random.default_rng(0).permutation(len(samples))[number * self.count : (number + 1) * self.count]
        else:
            order = np.random.default_rng([0, number]).permutation(len(samples))[: self.count]
        chosen = [samples[place] for place in sorted(order.tolist())]
        views = []
        for one in chosen:
            tags = tuple(dataset.classes.index(tag) for tag in one.tags)
            image = images.read_image(one.image, self.config.clip.max_side)
            views.append(View(image, tags, images.image_size(one.image)))
        truths = tuple(images.read_mask(one.mask) for one in chosen)
        return ImageSet(self.group, number, self.group, dataset.classes, tuple(views), truths, self.identity(number))


# -------------------------------------------------------------------------------------------------------------- results
@dataclass(frozen=True)
class Cell:
    """mIoU in percent of one setting and stage, one number per set (nan: not there)."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation over the sets, with n - 1; nan for one set."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.std:.1f}" if len(self.values) > 1 else f"{self.mean:.1f}"


@dataclass(frozen=True)
class Claim:
    """A setting against the default, paired over all sets: differences in mIoU, in percent points."""

    setting: str
    default: str
    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.differences))

    @property
    def std(self) -> float:
        return float(np.std(self.differences, ddof=1)) if len(self.differences) > 1 else math.nan

    @property
    def supported(self) -> bool:
        """Whether the mean difference is larger than the spread of the differences. One set supports nothing.

        Nor does a difference that the tables round to 0.
        """
        return len(self.differences) > 1 and abs(self.mean) > max(self.std, SMALLEST)


@dataclass(frozen=True)
class Ablated:
    """The table of an ablation.

    Attributes:
        groups: styles, or the data set's name.
        cells: (group, setting name, stage) -> values over the sets.
        learned: (group, setting name) -> `LEARNED` numbers of the prototypes, means over the sets; where V was learned.
        default: name of the setting that is the configuration's own.
        images: images in each set.
        side: of the scenes in pixels; 0 for photographs.
        base: values of the configuration that are neither varied nor the data's usual ones.
        files: what was written.
        notes: what could not be done.
    """

    ablation: Ablation
    groups: tuple[str, ...]
    split: str
    sets: int
    images: int
    stages: tuple[str, ...]
    default: str
    cells: dict[tuple[str, str, str], Cell]
    learned: dict[tuple[str, str], dict[str, float]] = dataclasses.field(default_factory=dict)
    side: int = 0
    base: dict[str, object] = dataclasses.field(default_factory=dict)
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def claim(self, setting: str, group: str | None = None) -> Claim:
        """`setting` against the default in the deciding stage, in one group or in all."""
        differences = [
            a - b
            for one in ([group] if group else self.groups)
            for a, b in zip(
                self.cells[one, setting, self.ablation.row].values,
                self.cells[one, self.default, self.ablation.row].values,
                strict=True,
            )
        ]
        return Claim(setting, self.default, tuple(differences))

    @property
    def best(self) -> str:
        """The setting, other than the default, with the highest mean in the deciding stage."""
        others = [one.name for one in self.ablation.settings if one.name != self.default]
        return max(others, key=lambda name: self.claim(name).mean)

    @property
    def sentence(self) -> str:
        """What the numbers support: the best other setting against the default, and what is worse beyond the spread."""
        return self._best_words() + self._worse_words()

    def _worse_words(self) -> str:
        names = [one.name for one in self.ablation.settings if one.name != self.default]
        claims = [self.claim(name) for name in names if len(names) > 1 and name != self.best]
        worse = [f"{one.setting} {one.mean:+.1f} ± {one.std:.1f}" for one in claims if one.supported and one.mean < 0]
        return f" Worse beyond the spread: {'; '.join(worse)}." if worse else ""

    def _best_words(self) -> str:
        if len(self.ablation.settings) < 2:
            return "One setting alone supports no comparison."
        claim, count = self.claim(self.best), self.sets * len(self.groups)
        where = f"{ROW_NAMES[self.ablation.row]}, {count} sets of {self.images} images"
        numbers = f"{claim.mean:+.1f} ± {claim.std:.1f} mIoU against the default {self.default} ({where})"
        if count < 2:
            return f"One set supports no claim; here {claim.setting} has {claim.mean:+.1f} mIoU against {self.default}."
        if not claim.supported:
            return (
                f"No difference beyond the spread of the sets: the best other setting, {claim.setting}, has {numbers}."
            )
        wins = sum(one > 0 for one in claim.differences)
        if claim.mean > 0:
            return f"{claim.setting} is better in {wins} of {count} sets: {numbers}, chosen on these very images."
        return f"The default {self.default} is best: the next, {claim.setting}, has {numbers}."

    def __str__(self) -> str:
        lines = [self.ablation.question]
        width = max(len(one.name) for one in self.ablation.settings) + 12
        columns = [max(len(ROW_NAMES[stage]), 12) for stage in self.stages]
        for group in self.groups:
            lines += [
                "",
                f"{group}, {self.split}: mIoU in percent, mean ± std over {self.sets} sets of {self.images} images",
            ]
            names = "  ".join(f"{ROW_NAMES[stage]:>{w}}" for stage, w in zip(self.stages, columns, strict=True))
            lines.append(f"  {'':<{width}}{names}")
            for setting in self.ablation.settings:
                row = (self.cells[group, setting.name, stage] for stage in self.stages)
                values = "  ".join(f"{cell!s:>{w}}" for cell, w in zip(row, columns, strict=True))
                lines.append(f"  {setting.name + self._mark(setting.name):<{width}}{values}")
        lines += ["", self.sentence, *self.notes]
        return "\n".join([*lines, *(f"{path}" for path in self.files)])

    def _mark(self, name: str) -> str:
        marks = ["default"] * (name == self.default) + ["paper"] * (name == self.ablation.marked)
        return f" ({', '.join(marks)})" if marks else ""

    @property
    def title(self) -> str:
        """The ablation's name, with the values that are not the usual ones."""
        return ", ".join([self.ablation.name, *(f"{key} = {short(one)}" for key, one in self.base.items())])

    def markdown(self) -> str:
        """The table as Markdown, with the sentence."""
        lines = [f"### {self.title}", "", self.ablation.question, ""]
        for group in self.groups:
            lines += [
                f"{group}, split {self.split}: mIoU in percent, mean ± std over {self.sets} sets of {self.images} "
                "images.",
                "",
                "| | " + " | ".join(ROW_NAMES[stage] for stage in self.stages) + " |",
                "|---|" + "---:|" * len(self.stages),
            ]
            for one in self.ablation.settings:
                values = " | ".join(str(self.cells[group, one.name, stage]) for stage in self.stages)
                name = one.name.replace("|", "\\|")
                lines.append(f"| {name}{self._mark(one.name)} | {values} |")
            lines.append("")
        return "\n".join([*lines, self.sentence, "", *self._learned_lines()])

    def _learned_lines(self) -> list[str]:
        """What the prototypes learned, as Markdown: means over the sets of all groups."""
        names = [one.name for one in self.ablation.settings if (self.groups[0], one.name) in self.learned]
        if not names:
            return []
        lines = [
            "What the prototypes learned, means over all sets: " + "; ".join(LEARNED.values()) + ".",
            "",
            "| | " + " | ".join(LEARNED) + " |",
            "|---|" + "---:|" * len(LEARNED),
        ]
        for name in names:
            rows = [self.learned[group, name] for group in self.groups]
            values = (np.mean([row[key] for row in rows]) for key in LEARNED)
            lines.append(f"| {name.replace('|', chr(92) + '|')} | " + " | ".join(f"{one:.3g}" for one in values) + " |")
        return [*lines, ""]

    def to_dict(self) -> dict:
        """All of it but the files, as plain data."""
        return {
            "name": self.ablation.name,
            "question": self.ablation.question,
            "row": self.ablation.row,
            "marked": self.ablation.marked,
            "settings": [{"name": one.name, "values": dict(one.values)} for one in self.ablation.settings],
            "groups": list(self.groups),
            "split": self.split,
            "sets": self.sets,
            "images": self.images,
            "stages": list(self.stages),
            "default": self.default,
            "side": self.side,
            "base": self.base,
            "cells": [
                {"group": group, "setting": setting, "stage": stage, "miou": [round(one, 4) for one in cell.values]}
                for (group, setting, stage), cell in self.cells.items()
            ],
            "learned": [
                {"group": group, "setting": setting, "values": {key: round(one, 6) for key, one in values.items()}}
                for (group, setting), values in self.learned.items()
            ],
        }

    @classmethod
    def from_dict(cls, tree: dict) -> Ablated:
        """What `to_dict` wrote."""
        settings = tuple(Setting(one["name"], tuple(one["values"].items())) for one in tree["settings"])
        return cls(
            ablation=Ablation(tree["name"], tree["question"], settings, tree["row"], tree["marked"]),
            groups=tuple(tree["groups"]),
            split=tree["split"],
            sets=tree["sets"],
            images=tree["images"],
            stages=tuple(tree["stages"]),
            default=tree["default"],
            cells={(one["group"], one["setting"], one["stage"]): Cell(tuple(one["miou"])) for one in tree["cells"]},
            learned={(one["group"], one["setting"]): one["values"] for one in tree["learned"]},
            side=tree["side"],
            base=tree["base"],
        )

    def table(self) -> str:
        """One line for each group, setting, stage and set, as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("ablation", "group", "split", "images", "setting", "stage", "set", "miou"))
        for (group, setting, stage), cell in self.cells.items():
            for number, one in enumerate(cell.values):
                writer.writerow(
                    (self.ablation.name, group, self.split, self.images, setting, stage, number, f"{one / 100:.6f}")
                )
        return text.getvalue()


# ----------------------------------------------------------------------------------------------------------------- work
def ablate(
    folder: str | Path,
    ablations: Sequence[Ablation],
    base: Config,
    sources: Sequence[Scenes | OwnData],
    *,
    sets: int = SETS,
    device: str = "auto",
    workers: int = 2,
    progress: Progress = silent,
) -> Iterator[Ablated]:
    """Measure what is not in `folder` yet, then give the table of each ablation, written as CSV, Markdown and PNG.

    Args:
        folder: holds raw/ and the tables.
        base: the configuration that the settings change; what it says is the default.
        sources: one group each.
        sets: sets of images for each group.

    Raises:
        ConfigError: a setting's values don't fit.
        DataError: the data can't be used or have no truth.
    """
    folder = Path(folder)
    if all(isinstance(source, Scenes) for source in sources):
        own, scenes_own = base.flat(), preset("scenes").flat()
        base = base.with_values({key: one for key, one in QUICK_NETWORK.items() if own[key] == scenes_own[key]})
    ablations = [_with_default(one, base) for one in ablations]
    clip = FrozenClip.load(base.clip.model, device, base.clip.precision)
    wanted: list[tuple[Scenes | OwnData, int, Config, bool]] = []
    for source in sources:
        for number in range(sets):
            for config, trained in dict.fromkeys(
                (base.with_values(dict(setting.values)), one.trained) for one in ablations for setting in one.settings
            ):
                if not _raw(folder, source, number, config, trained, clip).exists():
                    wanted.append((source, number, config, trained))
    held: dict[tuple, tuple[Bench, ImageSet]] = {}
    for source, number, config, trained in progress(wanted, len(wanted), "ablate"):
        if (source.group, number) not in held:
            held.clear()
            material = source.load(number)
            held[source.group, number] = Bench(clip, material.classes, material.views, workers), material
        bench, material = held[source.group, number]
        start = time.perf_counter()
        made = _train(folder, source, material, clip, config, workers) if trained else measure(bench, material, config)
        found = made | {"seconds": round(time.perf_counter() - start, 3)}
        path = _raw(folder, source, number, config, trained, clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    for one in ablations:
        yield _finished(folder, one, base, sources, sets, clip)


def _with_default(ablation: Ablation, base: Config) -> Ablation:
    """The ablation with the configuration's own values among its settings."""
    if any(base.with_values(dict(one.values)) == base for one in ablation.settings):
        return ablation
    own = base.flat()
    keys = dict.fromkeys(key for one in ablation.settings for key, _ in one.values)
    name = short(own[next(iter(keys))]) if len(keys) == 1 else "as configured"
    settings = (*ablation.settings, Setting(name, tuple((key, own[key]) for key in keys)))
    if ablation.numbers and len(keys) == 1:
        settings = tuple(sorted(settings, key=lambda one: float(one.name)))
    return dataclasses.replace(ablation, settings=settings)


def _default_name(ablation: Ablation, base: Config) -> str:
    return next(one.name for one in ablation.settings if base.with_values(dict(one.values)) == base)


def _raw(folder: Path, source: Scenes | OwnData, number: int, config: Config, trained: bool, clip: FrozenClip) -> Path:
    """Where the result of a setting on a set lies: its name holds all that the result depends on."""
    sections = NETWORK_SECTIONS if trained else SECTIONS
    flat = {key: one for key, one in config.flat().items() if key.partition(".")[0] in sections or key == "seed"}
    key = json.dumps([source.identity(number), clip.weights_hash, trained, flat], sort_keys=True)
    return folder / "raw" / f"{source.group}-{number}" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def measure(bench: Bench, material: ImageSet, config: Config) -> dict:
    """The raw result of a setting: mIoU and confusion of every stage, and what the prototypes learned."""
    masks = bench.masks(config, MASK_STAGES)
    rows = {}
    for stage, made in masks.items():
        confusion = Confusion(len(material.classes) + 1)
        for truth, mask in zip(material.truths, made, strict=True):
            confusion.update(truth, mask)
        rows[stage] = _row(confusion, material.classes)
    found = _described(material, config) | {"rows": rows}
    if config.prototypes.kind == "vision":
        found["prototypes"] = learned_facts(bench, config)
    return found


def _described(material: ImageSet, config: Config) -> dict:
    return {
        "group": material.group,
        "set": material.number,
        "split": material.split,
        "images": len(material.views),
        "data": material.identity,
        "changed": {
            key: own
            for key, (own, _) in config.differences(Config(data=config.data, validation=config.validation)).items()
        },
    }


def _row(confusion: Confusion, classes: ClassSet) -> dict:
    scores = scores_of(confusion, classes)
    return {key: scores[key] for key in ("miou", "pixel_accuracy", "iou", "confusion")}


def learned_facts(bench: Bench, config: Config) -> dict:
    """KL and its curve, METHOD.md 3.5, and the modality gap by class, as plain data."""
    known = bench.lesson(config)
    own = known.of_tags
    facts = {
        "kl_before": known.learned.kl_before,
        "kl_after": known.learned.kl_after,
        "kl_highest": max(known.learned.curve),
        "curve": list(known.learned.curve),
        "steps": known.learned.steps,
    }
    if known.report is not None:
        report = dataclasses.asdict(known.report)
        facts["report"] = {key: one if math.isfinite(one) else None for key, one in report.items()}
        facts["modality"] = signs.modality(
            known.x[own].numpy(),
            known.classes[own].numpy(),
            known.text.numpy(),
            known.vision.numpy(),
            bench.classes.names,
        )
    return facts


def _train(
    folder: Path, source: Scenes | OwnData, material: ImageSet, clip: FrozenClip, config: Config, workers: int
) -> dict:
    """The raw result of a trained network: pseudo-masks once per set, then one training per setting."""
    place = folder / "networks" / f"{source.group}-{material.number}"
    if isinstance(source, Scenes):
        if not (place / "data").exists():
            source.tree(material.number, place / "data")
        paths = {}
        for section, split in (("data", "train"), ("validation", "val")):
            paths |= {
                f"{section}.images": str(place / "data" / "images" / split),
                f"{section}.tags": str(place / "data" / f"{split}.csv"),
                f"{section}.masks": str(place / "data" / "masks" / split),
                f"{section}.classes": "scenes",
            }
        config = config.with_values(paths)
    elif not config.validation.masks:
        raise ConfigError(
            "an ablation of the network needs held-out images; give --val-images, --val-tags, --val-masks."
        )
    shape = json.dumps({key: one for key, one in config.flat().items() if key.partition(".")[0] in SECTIONS})
    masks = place / f"masks-{hashlib.sha256(shape.encode()).hexdigest()[:12]}"
    with Run(masks, config, device=str(clip.device), image_workers=workers) as run:
        run.labels()
        run.train()
        predictor = predict.load(masks, clip)
        held_out = [one for one in dataset_of(config.validation, run.classes).samples if one.mask is not None]
        made = predict.evaluate(predictor, held_out)
    shutil.rmtree(masks / NETWORK_FOLDER)
    rows = {"single": _row(made.single, material.classes), "full": _row(made.full, material.classes)}
    return _described(material, config) | {"split": "val", "images": made.images, "rows": rows}


def _finished(
    folder: Path,
    ablation: Ablation,
    base: Config,
    sources: Sequence[Scenes | OwnData],
    sets: int,
    clip: FrozenClip,
) -> Ablated:
    stages = NETWORK if ablation.trained else MASK_STAGES
    cells, learned, found = {}, {}, {}
    for source in sources:
        for setting in ablation.settings:
            config = base.with_values(dict(setting.values))
            raw = [read_json(_raw(folder, source, number, config, ablation.trained, clip)) for number in range(sets)]
            found = raw[0]
            for stage in stages:
                values = tuple(100 * one["rows"][stage]["miou"] for one in raw)
                cells[source.group, setting.name, stage] = Cell(values)
            facts = [_learned(one["prototypes"]) for one in raw if one.get("prototypes", {}).get("report")]
            if facts:
                means = {key: float(np.mean([one[key] for one in facts])) for key in LEARNED}
                learned[source.group, setting.name] = means
    made = Ablated(
        ablation=ablation,
        groups=tuple(source.group for source in sources),
        split=found["split"],
        sets=sets,
        images=found["images"],
        stages=stages,
        default=_default_name(ablation, base),
        cells=cells,
        learned=learned,
        side=sources[0].side if isinstance(sources[0], Scenes) else 0,
        base=_unusual(base, sources, ablation),
    )
    files = [folder / f"{_file_name(ablation)}.{ending}" for ending in ("csv", "md", "json", "png")]
    storage.write_text_atomic(files[0], made.table())
    storage.write_text_atomic(files[1], made.markdown())
    write_json(files[2], made.to_dict())
    try:
        picture = draw(made)
    except ConfigError as error:
        return dataclasses.replace(made, files=tuple(files[:3]), notes=(str(error),))
    storage.write_bytes_atomic(files[3], picture)
    return dataclasses.replace(made, files=tuple(files))


def _unusual(base: Config, sources: Sequence[Scenes | OwnData], ablation: Ablation) -> dict[str, object]:
    """Values that shape the result, are not varied, and differ from the preset of scenes or the defaults."""
    usual = preset("scenes") if all(isinstance(one, Scenes) for one in sources) else Config()
    sections = NETWORK_SECTIONS if ablation.trained else SECTIONS
    varied = {key for one in ablation.settings for key, _ in one.values} | set(QUICK_NETWORK)
    changes = base.differences(usual).items()
    return {key: own for key, (own, _) in changes if key.partition(".")[0] in sections and key not in varied}


def _learned(facts: dict) -> dict[str, float]:
    """`LEARNED` from the raw result of one set."""
    report = facts["report"]
    return {
        "KL before": facts["kl_before"],
        "KL after": facts["kl_after"],
        "highest KL": facts["kl_highest"],
        "steps": facts["steps"],
        "gap T": report["gap_text"],
        "gap V": report["gap_vision"],
        "own T": report["own_text"],
        "own V": report["own_vision"],
        "right T": report["accuracy_text"],
        "right V": report["accuracy_vision"],
    }


def _file_name(ablation: Ablation) -> str:
    return ablation.name.replace(".", "-")


def draw(made: Ablated) -> bytes:
    """The plot as PNG: lines with error bars over numbers, bars over names, a heat map over two ablations.

    Raises:
        ConfigError: matplotlib is not there.
    """
    row, own = made.ablation.row, made.ablation
    title = f"{own.name}: {ROW_NAMES[row]}"
    names = [one.name for one in own.settings]
    if all(" | " in name for name in names):
        pairs = [name.split(" | ") for name in names]
        rows, columns = (list(dict.fromkeys(pair[place] for pair in pairs)) for place in (0, 1))
        values = [
            [np.mean([made.cells[group, f"{a} | {b}", row].mean for group in made.groups]) for b in columns]
            for a in rows
        ]
        first, _, second = own.name.partition("-by-")
        return plots.heat_map(values, rows, columns, f"{first} (rows) by {second}: {ROW_NAMES[row]}", "mIoU, percent")
    lines = {group: [made.cells[group, name, row] for name in names] for group in made.groups}
    means = {group: [cell.mean for cell in cells] for group, cells in lines.items()}
    spreads = {group: [0 if math.isnan(cell.std) else cell.std for cell in cells] for group, cells in lines.items()}
    under = f"mean ± std over {made.sets} sets of {made.images} images, split {made.split}"
    if own.numbers:
        marks = {"default": float(made.default)} | ({"paper": float(own.marked)} if own.marked else {})
        return plots.lines(own.numbers, means, spreads, marks, title, under, "mIoU, percent")
    return plots.bars([name + made._mark(name) for name in names], means, spreads, title, under, "mIoU, percent")
