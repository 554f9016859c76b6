"""`vpl ablate NAME`: what one decision is worth, over several sets of images, on data with ground truth (METHOD.md 7).

    for each set of images: features once; for each setting: what changes from there on; mIoU of every stage

The raw result of a setting on a set is one small JSON file,
written atomically, so that a killed ablation goes on. The truth is opened here for comparison; what learns is `Bench`,
which never has it.

Letters: C classes · H W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vpl.classes import ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import ABLATION_SETS, Config, preset
from vpl.edges import storage
from vpl.edges.outputs import Made, check_apart
from vpl.errors import ConfigError, RunError
from vpl.judge.ablated import LEARNED, Ablated, Cell
from vpl.judge.ablations import NETWORK, Ablation, Setting, short
from vpl.judge.bench import MASK_STAGES, Bench, Shelf
from vpl.judge.material import ImageSet, OwnData, Scenes
from vpl.method import gap
from vpl.method.metrics import Confusion
from vpl.network import predict
from vpl.network.card import NETWORK_FOLDER
from vpl.progress import Progress, silent
from vpl.runs.files import read_json, scores_of, write_json
from vpl.runs.planned import dataset_of
from vpl.runs.stages import Run

SECTIONS = ("clip", "prompts", "seeds", "prototypes", "refine", "looks", "par", "labels", "crf")
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


def ablate(
    folder: str | Path,
    ablations: Sequence[Ablation],
    base: Config,
    sources: Sequence[Scenes | OwnData],
    *,
    sets: int = ABLATION_SETS,
    device: str = "auto",
    workers: int = 2,
    progress: Progress = silent,
) -> Iterator[Ablated]:
    """Measure what is not in `folder` yet, then give each ablation, written as CSV, Markdown, SVG and JSON.

    Args:
        folder: holds raw/ and the tables.
        base: the configuration that the settings change; what it says is the default.
        sources: one group each.
        sets: sets of images for each group.

    Raises:
        ConfigError: a setting's values don't fit.
        DataError: the data can't be used or have no truth, or a file of another's has a table's name.
    """
    folder = Path(folder)
    if all(isinstance(source, Scenes) for source in sources):
        own, scenes_own = base.flat(), preset("scenes").flat()
        base = base.with_values({key: one for key, one in QUICK_NETWORK.items() if own[key] == scenes_own[key]})
    ablations = [_with_default(one, base) for one in ablations]
    clip = FrozenClip.of(base.clip, device)
    wanted: list[tuple[Scenes | OwnData, int, Config, bool]] = []
    for source in sources:
        for number in range(sets):
            for config, trained in dict.fromkeys(
                (base.with_values(dict(setting.values)), one.trained) for one in ablations for setting in one.settings
            ):
                if not _raw(folder, source, number, config, trained, clip).exists():
                    wanted.append((source, number, config, trained))
    check_apart([folder], [place for one in sources if isinstance(one, OwnData) for place in one.inputs])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} can't be made ({error.strerror}); name another folder with --out.") from error
    Made(folder).begin([name for one in ablations for name in _file_names(one)])
    held: dict[tuple, tuple[Bench, ImageSet]] = {}
    with tempfile.TemporaryDirectory(prefix="encodings-", dir=folder) as kept:
        for source, number, config, trained in progress(wanted, len(wanted), "ablate"):
            if (source.group, number) not in held:
                for before, _ in held.values():
                    before.close()
                held.clear()
                material, shelf = source.load(number), Shelf(folder=Path(kept) / f"{source.group}-{number}")
                held[source.group, number] = Bench(clip, material.classes, material.views, workers, shelf), material
            bench, material = held[source.group, number]
            start = time.perf_counter()
            if trained:
                made = _train(folder, source, material, clip, config, workers)
            else:
                made = measure(bench, material, config)
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
        facts["modality"] = gap.modality(
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
        paths: dict[str, object] = {}
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
    texts = {"csv": made.table(), "md": made.markdown(), "svg": made.draw()}
    names = _file_names(ablation)
    for name, text in zip(names, texts.values(), strict=False):
        storage.write_text_atomic(folder / name, text)
    write_json(folder / names[-1], made.to_dict())
    Made(folder).finish(names, "table")
    return dataclasses.replace(made, files=tuple(folder / name for name in names))


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


def _file_names(ablation: Ablation) -> tuple[str, ...]:
    """Table, Markdown, figure and data."""
    return tuple(f"{ablation.name.replace('.', '-')}.{ending}" for ending in ("csv", "md", "svg", "json"))
