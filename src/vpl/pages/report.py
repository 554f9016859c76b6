"""A run folder as one HTML page: plain data first (`collect`), a template second (`render`, report.html).

METHOD.md 6 to 8: what was run, mIoU from seeds to network, each class, confusions, curves, the modality gap, and the
pictures themselves. The page needs no network and no other file. It holds no clock time: the same run folder gives the
same page.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vpl.config import Config
from vpl.edges import outputs, templates
from vpl.edges.storage import write_text_atomic
from vpl.errors import RunError
from vpl.method.signs import Sign
from vpl.network.card import CARD_FILE, NETWORK_FOLDER
from vpl.pages import charts
from vpl.pages.charts import Curve
from vpl.pages.gallery import Counted, Exhibit, gallery
from vpl.pages.modality import Gap, gap
from vpl.runs import stored
from vpl.runs.files import damaged
from vpl.runs.folder import Failure
from vpl.runs.learning import CHANCE_RANK
from vpl.runs.records import is_number, read_metrics, read_record
from vpl.runs.review import Review

MOST_PICTURED = 200  # images in the gallery
REPORT_FILE = TEMPLATE = "report.html"

_NO_TRUTH = (
    "The run has no truth masks, so no IoU can be computed; what can be judged without them stands under "
    "“Without ground truth” and in the gallery."
)
_NOT_EVALUATED = "There are truth masks, but the run has not been evaluated yet: run `vpl evaluate`."


@dataclass(frozen=True)
class Changed:
    """One configuration value that differs from its default; `source` says where the default comes from."""

    key: str
    value: str
    default: str
    source: str
    help: str


@dataclass(frozen=True)
class StageTime:
    """Time of one stage. `rate`: images per second, None where it means nothing (training sees images many times)."""

    name: str
    seconds: float
    images: int | None
    rate: float | None


@dataclass(frozen=True)
class Row:
    """One set of masks against the truth. All values in [0, 1]; None where a class occurs nowhere.

    `iou`, `precision` and `recall` follow `Evaluation.classes`. `confusion[t][p]` counts pixels of true class t that
    were called p, in the order of `Evaluation.classes`; a column more than rows is "no label". Empty: not saved.
    """

    name: str
    miou: float | None
    pixel_accuracy: float | None
    iou: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Evaluation:
    """All rows that were evaluated on one split. `classes` starts with background where it was counted."""

    split: str
    images: int
    classes: tuple[str, ...]
    rows: tuple[Row, ...]


NamedSign = tuple[str, Sign]


@dataclass(frozen=True)
class ReportData:
    """All that the page shows.

    `signs` need no truth, `with_truth` were measured against it; those that ask for something to be done come first.
    `problems` are skipped lines of the data list. `reviewed` are kinds of decisions and how many there are.
    `absent` maps a section's name to the sentence in its place.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    settings: tuple[Changed, ...]
    stages: tuple[StageTime, ...]
    failures: tuple[Failure, ...]
    problems: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    signs: tuple[NamedSign, ...]
    with_truth: tuple[NamedSign, ...]
    curves: tuple[Curve, ...]
    gap: Gap | None
    exhibits: tuple[Exhibit, ...]
    gallery_note: str
    absent: Mapping[str, str]
    counts: tuple[Counted, ...] = ()
    reviewed: tuple[tuple[str, int], ...] = ()
    has_network: bool = False


def collect(run_folder: str | Path, most_pictured: int = MOST_PICTURED) -> ReportData:
    """Read a run folder into plain data. Nothing is computed anew but the gallery's per-image IoU, the
    network's answers on some images without truth, and the projection.

    At most `most_pictured` images enter the gallery. What the run folder doesn't hold is named in `absent`.

    Raises:
        RunError: the folder is no run folder, or one of its own files is broken; the message names the file.
    """
    run = Path(run_folder)
    if not (run / "config.toml").is_file():
        raise RunError(
            f"{run} is no run folder: it has no config.toml. Give the folder that `vpl run` or `vpl demo` wrote."
        )
    config = stored.read(run)
    if not (run / "run.json").is_file():
        raise RunError(f"{run} has no run.json, so no stage has begun there. Run `vpl run` or one of the stages first.")
    record, metrics = read_record(run), read_metrics(run)
    absent: dict[str, str] = {}

    evaluations = tuple(_evaluation(item, run / "metrics.json") for item in metrics.get("evaluations", []))
    evaluations = tuple(one for one in evaluations if one.rows)
    curves = _curves(run / "network" / "curve.csv")
    if not curves:
        absent["training"] = "The run has no training curve: no network was trained in this folder."
    apart = gap(run)
    if apart is None:
        absent["gap"] = "The run has no prototypes yet, so there is no modality gap to show."
    elif not apart.points:
        absent["projection"] = "The run has no region embeddings, so the gap is shown in numbers only."
    pictures = gallery(run, config, most_pictured, scored=not record.get("unscored"))
    if not pictures.exhibits:
        absent["gallery"] = pictures.note
    if not evaluations:
        why = record.get("unscored")
        there = any(one.iou is not None for one in pictures.exhibits)
        absent["evaluation"] = f"There are no scores: {why}" if why else _NOT_EVALUATED if there else _NO_TRUTH
    signs = _signs(_tag_rank(record) | pictures.signs | metrics.get("label_free", {}))
    if not signs:
        absent["signs"] = "The run has no label-free numbers and no pseudo-masks to count them from."
    with_truth = _signs(metrics.get("with_truth", {}))
    if evaluations and not with_truth:
        absent["with truth"] = "How the masks fail has not been measured yet: run `vpl evaluate`."
    return ReportData(
        title=run.resolve().name,
        facts=_facts(config, record),
        versions=tuple(record.get("versions", {}).items()),
        settings=_settings(config),
        stages=_stages(record),
        failures=tuple(Failure(item["id"], item.get("reason", "")) for item in record.get("failures", [])),
        problems=tuple(record.get("data", {}).get("problems", ())),
        evaluations=evaluations,
        signs=signs,
        with_truth=with_truth,
        curves=curves,
        gap=apart,
        exhibits=pictures.exhibits,
        gallery_note=pictures.note,
        absent=absent,
        counts=pictures.counts,
        reviewed=Review(run).counts(),
        has_network=(run / NETWORK_FOLDER / CARD_FILE).is_file(),
    )


def next_steps(data: ReportData) -> tuple[str, ...]:
    """What to do next, three lines with commands in backticks: what asks for it most, then people's look, then what the
    run is for."""
    asking = [f"{name}: {sign.advice}" for name, sign in (*data.signs, *data.with_truth) if sign.advice]
    if not data.exhibits:
        first = "Make the masks: `vpl run RUN`."
    elif asking:
        first = asking[0] + (f" ({len(asking) - 1} more below.)" if len(asking) > 1 else "")
    else:
        first = "No sign asks for anything: look at the worst photographs below."
    told = ", ".join(f"{count:,} {words}" for words, count in data.reviewed)
    second = (
        f"Reviewed so far: {told}. Go on with `vpl app RUN`; `vpl run RUN` takes the decisions in."
        if told
        else "Look through the masks, reject what is wrong, correct a tag: `vpl app RUN`, worst first."
    )
    third = (
        "Use the network: `vpl predict RUN --images PHOTOS --out MASKS`; masks go to other tools by "
        "`vpl export RUN --to coco`."
        if data.has_network
        else "Train the network: `vpl run RUN --train`; masks go to other tools by `vpl export RUN --to coco`."
    )
    return first, second, third


def _facts(config: Config, record: Mapping) -> tuple[tuple[str, str], ...]:
    data, clip = record.get("data", {}), record.get("clip", {})
    rows = [
        ("Images", f"{data['images']:,}" if isinstance(data.get("images"), int) else ""),
        ("Data", " · ".join(filter(None, (config.data.format, config.data.images, config.data.split)))),
        ("Data list hash", str(data.get("hash", ""))[:16]),
        ("Held-out data", " · ".join(filter(None, (config.validation.images, config.validation.split)))),
        ("CLIP", str(clip.get("name", config.clip.model))),
        ("CLIP weights hash", str(clip.get("hash", ""))[:16]),
        ("Device", " · ".join(str(record[key]) for key in ("device", "precision") if record.get(key))),
        ("Seed", str(record.get("seed", config.seed))),
    ]
    return tuple((name, text) for name, text in rows if text)


def _settings(config: Config) -> tuple[Changed, ...]:
    rows = []
    for key, (own, default) in config.differences(Config()).items():
        section, _, name = key.rpartition(".")
        metadata: Mapping = {}
        if section:
            metadata = type(getattr(config, section)).__dataclass_fields__[name].metadata
        rows.append(Changed(key, _plain(own), _plain(default), metadata.get("source", ""), metadata.get("help", "")))
    return tuple(rows)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if value != "" else "(empty)"


def _stages(record: Mapping) -> tuple[StageTime, ...]:
    stages = []
    for name, item in record.get("stages", {}).items():
        seconds, images = item["seconds"], item.get("images")
        rate = images / seconds if images and seconds and name not in ("train", "signs", "report") else None
        stages.append(StageTime(name, seconds, int(images) if images else None, rate))
    return tuple(stages)


def _evaluation(item: Mapping, path: Path) -> Evaluation:
    classes = tuple(item["classes"])
    if "background" not in classes and any("background" in tree.get("iou", {}) for tree in item["rows"]):
        classes = ("background", *classes)
    rows = tuple(_row(tree, classes, path) for tree in item["rows"])
    return Evaluation(item["split"], int(item["images"]), classes, rows)


def _row(tree: Mapping, classes: Sequence[str], path: Path) -> Row:
    name, matrix = tree["name"], tree.get("confusion") or []

    def by_class(key: str) -> tuple[float | None, ...]:
        return tuple(tree.get(key, {}).get(one) for one in classes)

    try:
        counts = np.array(matrix, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise damaged(path, f"the confusion matrix of {name!r} is no table of whole numbers") from error
    wide = (len(classes), len(classes) + 1)
    if matrix and (counts.ndim != 2 or len(counts) not in wide or counts.shape[1] - len(counts) not in (0, 1)):
        raise damaged(path, f"the confusion matrix of {name!r} doesn't fit {len(classes)} classes")
    return Row(
        name=name,
        miou=tree["miou"],
        pixel_accuracy=tree["pixel_accuracy"],
        iou=by_class("iou"),
        precision=by_class("precision"),
        recall=by_class("recall"),
        confusion=tuple(map(tuple, counts.tolist())),
    )


def _signs(tree: Mapping) -> tuple[NamedSign, ...]:
    """The signs with a value, by their names, those that ask for something first."""
    found = [
        (
            charts.words(name),
            Sign(item["value"], item.get("meaning", ""), item.get("advice", ""), item.get("images", 0)),
        )
        for name, item in tree.items()
        if item["value"] is not None
    ]
    return tuple(sorted(found, key=lambda one: not one[1].advice))


def _tag_rank(record: Mapping) -> dict[str, dict]:
    rank = record.get("tag_rank")
    if rank is None:
        return {}
    advice = (
        "This CLIP doesn't know these photographs: use other weights (clip.model), or give the classes better prompt "
        "words."
    )
    meaning = "How often CLIP ranks an image's own tags above other classes; guessing gives 0.5."
    return {"tag rank": {"value": rank, "meaning": meaning, "advice": advice if rank < CHANCE_RANK else ""}}


def _curves(path: Path) -> tuple[Curve, ...]:
    """Every numeric column of a CSV with a header, over its column "step" (or over the line number)."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise damaged(path, f"it is no readable CSV ({error})") from error
    columns = {name: [_float(row[name]) for row in rows] for name in (rows[0] if rows else ()) if name}
    steps = columns.pop("step", None) or [float(number) for number in range(1, len(rows) + 1)]
    curves = []
    for name, column in columns.items():
        kept = [(s, v) for s, v in zip(steps, column, strict=True) if s is not None and v is not None]
        if kept:
            curves.append(Curve(name, *map(tuple, zip(*kept, strict=True))))
    return tuple(curves)


def _float(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if is_number(value) else None


def render(data: ReportData) -> str:
    """The page: one HTML document with its styles, its script and its pictures inside. Every text is escaped."""
    source = templates.source("pages", TEMPLATE)
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return templates.render(
        "pages",
        TEMPLATE,
        data=data,
        duration=duration,
        short=charts.short,
        sentence=charts.sentence,
        headline=headline(data),
        steps=next_steps(data),
        results=[(one, row) for one in data.evaluations for row in one.rows],
        held_out_first=tuple(reversed(data.evaluations)),
        matrices=[
            (one, one.rows[-1], charts.matrix(one.classes, one.rows[-1].confusion))
            for one in data.evaluations
            if one.rows[-1].confusion
        ],
        charts=[charts.chart(curve) for curve in data.curves],
        gap_chart=charts.chart(data.gap.curve) if data.gap and data.gap.curve else None,
        scatter=charts.scatter(data.gap.points) if data.gap else (),
        total_seconds=sum(stage.seconds for stage in data.stages),
        splits=list(dict.fromkeys(exhibit.split for exhibit in data.exhibits)),
        scored=any(exhibit.iou is not None for exhibit in data.exhibits),
        policy=" ".join(f"'sha256-{one}'" for one in hashes),
    )


def report(run: str | Path) -> Path:
    """Write RUN/report.html, one self-contained page about a run, whole or not at all; returns its path.

    Args:
        run: a run folder; what it doesn't hold yet, the page says so.

    Raises:
        RunError: the folder is no run, or the page can't be written.
    """
    path = Path(run) / REPORT_FILE
    page = render(collect(run))
    outputs.check_page(path)
    write_text_atomic(path, page)
    return path


def headline(data: ReportData) -> str:
    """The result in one or two sentences, with split and number of images."""
    if not data.evaluations:
        if data.absent["evaluation"] == _NOT_EVALUATED:
            return "Not evaluated yet."
        if data.absent["evaluation"] != _NO_TRUTH:
            return "The truth masks that were named give no scores."
        asking = [name for name, sign in data.signs if sign.advice]
        told = "Judge this run by its pictures."
        if asking:
            told = f"{len(asking)} of {len(data.signs)} signs without truth ask for something, first {asking[0]}."
        return "No truth masks were given, so there is no score. " + told
    sentences = []
    for one in reversed(data.evaluations):
        best = one.rows[-1]
        if best.miou is not None:
            sentences.append(f"{best.name}: {100 * best.miou:.1f}\u00a0% mIoU on {one.split}, {one.images:,} images.")
    return " ".join(map(charts.sentence, sentences))


def duration(seconds: float) -> str:
    """Seconds in the units that a person would say: 0.4 s, 41 s, 3 min 12 s, 2 h 04 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
