"""`vpl compare RUN…`: several runs in one table and one self-contained page.

    what differs in configuration and review · mIoU of every stage · IoU by class · every image against the first run ·
    the images where the runs differ most

Without truth, images are compared by the share of pixels on which the runs agree. Plain data first, a template second.
Letters: H W pixels.
"""

from __future__ import annotations

import filecmp
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vpl.classes import ClassSet
from vpl.config import Config
from vpl.edges import images, outputs, sheet, storage, templates
from vpl.edges.datasets import Sample
from vpl.edges.truth import read_truth
from vpl.errors import RunError, VplError
from vpl.method.belonging import Counting
from vpl.method.metrics import Confusion
from vpl.runs import stored
from vpl.runs.planned import dataset_of
from vpl.runs.records import read_metrics
from vpl.runs.review import Review
from vpl.sampling import evenly

STAGES = {
    "labels": "pseudo-masks", "seeds/crf": "refined seeds after the CRF", "seeds/refined": "refined seeds",
    "seeds/vision": "vision seeds", "seeds/text": "text seeds",
}  # fmt: skip
"""Label maps that images are compared by, in words: the first of these that every run has."""
SAME_KEYS = ("data", "validation")
"""Sections that say where things lie; a difference there is no difference in the method."""
OF_TRUTH = ("data.masks", "data.mask_values", "validation.masks", "validation.mask_values")
"""Of these, what scores were measured against: told where two runs have one, and not the same."""
REVIEW = "review"
"""The row of what people decided, beside those of configuration values."""
PICTURED, MOST_LOOKED = 12, 2000
SIDE = 240


@dataclass(frozen=True)
class Line:
    """A stage of a split: mIoU by run, None where a run has none; `images` by run."""

    split: str
    name: str
    values: tuple[float | None, ...]
    images: tuple[int | None, ...]


@dataclass(frozen=True)
class Difference:
    """A configuration value that the runs do not share, by run; or what people decided (`REVIEW`)."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """One image: its score by run, how far they lie apart, and pictures (columns) as data URIs."""

    id: str
    tags: tuple[str, ...]
    scores: tuple[float, ...]
    apart: float
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What the page shows.

    Attributes:
        names: of the runs, each once.
        by_class: class name -> IoU by run, of the last line's stage that all runs have; empty without truth.
        compared: the label maps that images are compared by.
        measure: "mIoU", or "agreement with the first run" without truth.
        pictures: every image that was looked at, those that differ most first; the first ones have cells.
        colors: class name -> the colour that it has in pictures, as CSS writes it.
    """

    names: tuple[str, ...]
    differences: tuple[Difference, ...]
    lines: tuple[Line, ...]
    by_class: dict[str, tuple[float | None, ...]]
    by_class_of: str
    compared: str
    measure: str
    pictures: tuple[Compared, ...]
    colors: dict[str, str]

    def __str__(self) -> str:
        width = max([len(f"{one.split}: {one.name}") for one in self.lines] + [24])
        columns = [max(len(name), 7) for name in self.names]
        lines = [
            " " * width + "".join(f"  {name:>{w}}" for name, w in zip(self.names, columns, strict=True)) + "  (mIoU)"
        ]
        for one in self.lines:
            values = zip(one.values, columns, strict=True)
            cells = "".join(f"  {'–' if value is None else f'{100 * value:.1f}':>{w}}" for value, w in values)
            counts = {count for count in one.images if count is not None}
            told = f"  (images: {' | '.join(str(count or '–') for count in one.images)})" if len(counts) > 1 else ""
            lines.append(f"{f'{one.split}: {one.name}':<{width}}{cells}{told}")
        lines += [f"{differs.key}: {' | '.join(differs.values)}" for differs in self.differences]
        return "\n".join(lines)


def collect(folders: Sequence[str | Path], pictured: int = PICTURED) -> Comparison:
    """Read the runs; nothing is computed again but scores of label maps.

    Raises:
        RunError: fewer than two runs, a folder is none, or the runs share no image, have other photographs under its
            name, or not the same classes.
    """
    paths = [Path(one) for one in folders]
    if len(paths) < 2:
        raise RunError("one run was named; expected at least two to compare.")
    for path in paths:
        if not (path / "config.toml").is_file():
            raise RunError(f"{path} is no run folder of vpl (it has no config.toml); name folders that vpl made.")
    configs = [stored.read(path) for path in paths]
    metrics = [read_metrics(path) for path in paths]
    lines = _lines(metrics)
    by_class_of, by_class = _by_class(lines, metrics)
    stage, samples, classes = _shared(paths, configs)
    measure, pictures = _pictures(paths, stage, samples, classes, pictured)
    return Comparison(
        names=_names(paths),
        differences=(*_differences(configs), *_reviews(paths)),
        lines=lines,
        by_class=by_class,
        by_class_of=by_class_of,
        compared=stage,
        measure=measure,
        pictures=pictures,
        colors={
            name: "rgb({}, {}, {})".format(*classes.palette()[place]) for place, name in enumerate(classes.names, 1)
        },
    )


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The folders' names; with their parents where two are the same."""
    short = [path.resolve().name for path in paths]
    return tuple(name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True))


def _differences(configs: Sequence[Config]) -> tuple[Difference, ...]:
    flats = [config.flat() for config in configs]
    return tuple(
        Difference(key, tuple(str(flat[key]) for flat in flats))
        for key in flats[0]
        if (key in OF_TRUTH and len({flat[key] for flat in flats} - {""}) > 1)
        or (key.partition(".")[0] not in SAME_KEYS and any(flat[key] != flats[0][key] for flat in flats))
    )


def _reviews(paths: Sequence[Path]) -> tuple[Difference, ...]:
    """What people decided, counted by run, where that is not the same."""
    made = [Review(path) for path in paths]
    if all(one.decisions == made[0].decisions for one in made):
        return ()
    told = [", ".join(f"{count:,} {words}" for words, count in one.counts()) or "no decision" for one in made]
    others = ["" if one.decisions == made[0].decisions else ", not the same" for one in made]
    if len(set(told)) == 1:
        told = [text + other for text, other in zip(told, others, strict=True)]
    return (Difference(REVIEW, tuple(told)),)


def _rows(metrics: dict) -> dict[tuple[str, str], dict]:
    return {
        (one["split"], row["name"]): row | {"images": row.get("images", one["images"])}
        for one in metrics.get("evaluations", [])
        for row in one["rows"]
    }


def _lines(metrics: Sequence[dict]) -> tuple[Line, ...]:
    tables = [_rows(one) for one in metrics]
    keys = dict.fromkeys(key for table in tables for key in table)
    return tuple(
        Line(
            split,
            name,
            tuple(table.get((split, name), {}).get("miou") for table in tables),
            tuple(table.get((split, name), {}).get("images") for table in tables),
        )
        for split, name in keys
    )


def _by_class(lines: Sequence[Line], metrics: Sequence[dict]) -> tuple[str, dict[str, tuple[float | None, ...]]]:
    """IoU by class in the last line that every run has."""
    shared = [one for one in lines if None not in one.values]
    if not shared:
        return "", {}
    last = shared[-1]
    rows = [_rows(one)[last.split, last.name].get("iou", {}) for one in metrics]
    names = dict.fromkeys(name for row in rows for name in row)
    return f"{last.split}: {last.name}", {name: tuple(row.get(name) for row in rows) for name in names}


def _shared(paths: Sequence[Path], configs: Sequence[Config]) -> tuple[str, list[Sample], ClassSet]:
    """The stage to compare by, the samples that every run has a label map of, and the classes."""
    stage = next((one for one in STAGES if all((path / one).is_dir() for path in paths)), None)
    if stage is None:
        raise RunError("the runs share no kind of label maps; run vpl labels in each of them first.")
    datasets = [dataset_of(config.data) for config in configs]
    if len({one.classes.names for one in datasets}) > 1:
        raise RunError("the runs have different classes, so their masks can't be compared; name runs of one class set.")
    ids = set.intersection(*(_ids(path / stage) for path in paths))
    samples = [one for one in datasets[0].samples if one.id in ids]
    if not samples:
        raise RunError("the runs have no image in common; name runs over the same data.")
    samples = evenly(samples, MOST_LOOKED)
    for path, dataset in zip(paths[1:], datasets[1:], strict=True):
        theirs = {one.id: one.image for one in dataset.samples}
        for one in samples:
            if one.id in theirs and not _is_same(one.image, theirs[one.id]):
                raise RunError(
                    f"{one.id} is another photograph in {path} than in {paths[0]}, so their masks can't be compared; "
                    "name runs over the same data."
                )
    return stage, samples, datasets[0].classes


def _is_same(one: Path | str, other: Path | str) -> bool:
    """Whether two places hold the same photograph, as far as they can be looked at."""
    if one == other or storage.is_url(one) or storage.is_url(other):
        return True
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:  # the photographs of one run have been moved away
        return True


def _ids(folder: Path) -> set[str]:
    """The samples that have a label map in a folder."""
    return {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.png")}


def _pictures(
    paths: Sequence[Path], stage: str, samples: Sequence[Sample], classes: ClassSet, pictured: int
) -> tuple[str, tuple[Compared, ...]]:
    truth_known = _belongs(samples, classes)
    found = []
    for sample in samples:
        masks = [images.read_mask(path / stage / f"{sample.id}.png") for path in paths]
        if len({mask.shape for mask in masks}) > 1:
            continue
        truth = masks[0] if sample.mask is None or not truth_known else read_truth(sample.mask, sample.values)
        scores = tuple(_score(truth, mask, classes) for mask in masks)
        changed = max(float((masks[0] != mask).mean()) for mask in masks)
        apart = max(scores) - min(scores) if truth_known else changed
        found.append(Compared(sample.id, sample.tags, scores, apart))
    found.sort(key=lambda one: (-one.apart, one.id))
    by_id = {one.id: one for one in samples}
    shown = [_with_cells(one, by_id[one.id], paths, stage, classes, truth_known) for one in found[:pictured]]
    measure = "mIoU" if truth_known else "agreement with the first run"
    return measure, (*shown, *found[pictured:])


def _belongs(samples: Sequence[Sample], classes: ClassSet) -> bool:
    """Whether all images have truth, and it can be that of their tags: else they are not scored."""
    counting = Counting(classes.names)
    for one in samples:
        if one.mask is None:
            return False
        counting.add(read_truth(one.mask, one.values), classes.numbers(one.tags))
    return counting.result().together


def _score(truth: UInt8[np.ndarray, "H W"], mask: UInt8[np.ndarray, "H W"], classes: ClassSet) -> float:
    """mIoU of one image, 0 to 1; 1 where nothing is to be found and nothing was."""
    confusion = Confusion(len(classes) + 1)
    confusion.update(truth, mask)
    made = confusion.miou()
    return made if math.isfinite(made) else 1.0


def _with_cells(
    picture: Compared, sample: Sample, paths: Sequence[Path], stage: str, classes: ClassSet, truth_known: bool
) -> Compared:
    """The picture with its cells: the photograph, the truth where there is one, each run's mask."""
    try:
        image = images.read_image(sample.image)
    except VplError:
        return picture
    masks = [read_truth(sample.mask, sample.values)] if truth_known and sample.mask is not None else []
    masks += [images.read_mask(path / stage / f"{sample.id}.png") for path in paths]
    palette = classes.palette()
    cells = [image] + [sheet.overlay(image, mask, palette) for mask in masks if mask.shape == image.shape[:2]]
    uris = tuple(map(_uri, cells)) if len(cells) == len(masks) + 1 else ()
    return Compared(picture.id, picture.tags, picture.scores, picture.apart, uris)


def _uri(image: UInt8[np.ndarray, "H W 3"]) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    return templates.data_uri(picture, "JPEG", quality=85)


def render(data: Comparison) -> str:
    """The page: one HTML document with everything inside and no script. Every text is escaped."""
    return templates.render(
        "pages",
        "compare.html",
        data=data,
        truth=data.measure == "mIoU",
        verdict=verdict(data),
        compared=STAGES[data.compared],
        differing=[one for one in data.pictures if one.cells and one.apart],
        lines=[one for one in data.lines if any(value is not None for value in one.values)],
        by_class={name: values for name, values in data.by_class.items() if any(one is not None for one in values)},
        best=best,
        short=shortened,
        scatters=[
            (name, [(one.scores[0], one.scores[place], one.id) for one in data.pictures])
            for place, name in enumerate(data.names)
            if place
        ],
    )


def verdict(data: Comparison) -> str:
    """Which run is ahead, in one or two sentences."""
    line = next((one for one in data.lines if f"{one.split}: {one.name}" == data.by_class_of), None)
    if line is None:
        agreed = [
            sum(one.scores[place] for one in data.pictures) / len(data.pictures) for place in range(len(data.names))
        ]
        told = "" if data.measure == "mIoU" else "".join(
            f" The masks of {name} say the same as those of {data.names[0]} on {100 * share:.0f} % of the pixels."
            for name, share in zip(data.names[1:], agreed[1:], strict=True)
        )  # fmt: skip
        return "The runs have no score in common, so none is ahead." + told
    values = [value for value in line.values if value is not None]
    where, place = f"{line.name} on {line.split}", best(line.values)
    if place is None:
        return f"No run is ahead: the best have {100 * max(values):.1f} % mIoU in {where}."
    ahead = 100 * (max(values) - sorted(values)[-2])
    return f"{data.names[place]} is ahead: {100 * max(values):.1f} % mIoU in {where}, {ahead:.1f} more than the next."


def best(values: Sequence[float | None]) -> int | None:
    """The place of the one value that is larger than all others as the page writes them; None where several are."""
    written = [None if one is None else round(100 * one, 1) for one in values]
    there = [one for one in written if one is not None]
    return written.index(max(there)) if len(there) > 1 and there.count(max(there)) == 1 else None


def shortened(name: str, most: int = 22) -> str:
    """A run's name where there is little room, its end kept: that is where names of runs differ."""
    return name if len(name) <= most else "…" + name[1 - most :]


@dataclass(frozen=True)
class Written:
    """The comparison, and where its page lies."""

    data: Comparison
    page: Path

    def __str__(self) -> str:
        return f"{self.data}\npage in {self.page}"


def compare(runs: Sequence[str | Path], out: str | Path = "compare.html") -> Written:
    """Compare runs in one table and one self-contained page, written whole or not at all; nothing is computed again.

    Args:
        runs: at least two run folders that share images and classes; the first is what the others are compared with.
        out: the page.

    Returns:
        `data`, and the `page`; printed, it is the table.

    Raises:
        RunError: fewer than two runs, a folder is none, the runs share no image or not their classes, or there is a
            file of another's in the page's place.
    """
    outputs.check_page(Path(out))
    data = collect(runs)
    storage.write_text_atomic(out, render(data))
    return Written(data, Path(out))
