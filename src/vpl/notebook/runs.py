"""A run folder and what it gives, as a notebook calls it: the same words as the command line, the same bytes.

made = vpl.run("runs/mine", "photos", "tags.csv", clip="openai/clip-vit-base-patch16")
made                                        # the first photographs with their masks; made.report, made.masks
vpl.predict("runs/mine", "more-photos/**/*.jpg")
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vpl import build
from vpl.classes import ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import Config
from vpl.edges import sources, storage
from vpl.edges.datasets import Sample
from vpl.edges.images import Picture
from vpl.errors import DataError
from vpl.judge import check as checks
from vpl.judge.check import Check
from vpl.network import delivery
from vpl.network import predict as network
from vpl.network.predict import Predictor, Protocol
from vpl.notebook.pictures import Pictures, shots
from vpl.notebook.shown import LabelMap, Prediction, Segmentation, contact_sheet
from vpl.progress import Progress, silent
from vpl.runs import stored
from vpl.runs.files import read_map
from vpl.runs.folder import Failure, log
from vpl.runs.plan import Plan, count_of, told
from vpl.runs.records import read_evaluations
from vpl.runs.scoring import MAP_ROWS
from vpl.runs.stages import Run

SHOWN = 4
"""Photographs that a run shows of itself."""


class Masks(Mapping[str, LabelMap]):
    """The masks of a folder by photograph, read when they are asked for.

    Args:
        images: the photographs by their names; those without a mask are left out.
        kind: what the masks are called.
    """

    def __init__(self, folder: Path, images: Mapping[str, Picture], classes: ClassSet, kind: str = "pseudo-mask"):
        self._folder, self._classes, self._kind = folder, classes, kind
        self._images = {name: one for name, one in images.items() if self._path(name).exists()}

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.png"

    def __getitem__(self, name: str) -> LabelMap:
        return LabelMap(name, self._images[name], read_map(self._path(name)), self._classes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return f"<{count_of(len(self), self._kind)} in {self._folder}>"


@dataclass(frozen=True)
class Made:
    """What a run folder holds.

    Attributes:
        plan: what was done, in lines.
        samples: the photographs, in the order of the list.
        masks: pseudo-masks by photograph.
        failures: photographs that could not be used, and why.
        scores: evaluations, where there are truth masks; see `metrics.json`.
        has_network: whether a network was trained: `vpl.load(folder)`, `vpl.predict(folder, images)`.
    """

    folder: Path
    plan: tuple[str, ...]
    samples: tuple[Sample, ...] = field(repr=False)
    masks: Masks
    failures: tuple[Failure, ...]
    scores: tuple[dict, ...] = field(repr=False)
    has_network: bool

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.folder / "report.html"

    def __repr__(self) -> str:
        parts = [count_of(len(self.masks), "pseudo-mask"), *(["a network"] if self.has_network else [])]
        parts += [f"{count_of(len(self.failures), 'photograph')} that can't be used"] if self.failures else []
        rows = {row["name"]: row["miou"] for one in self.scores for row in one["rows"] if row["miou"] is not None}
        parts += [f"mIoU {name} {100 * miou:.1f}" for name, miou in list(rows.items())[-1:]]
        return f"<run {self.folder}: {', '.join(parts)}>"

    def plot(self, most: int = SHOWN) -> object:
        """The first photographs with the label maps of every stage, as a PIL image."""
        return contact_sheet([self._segmentation(name) for name in list(self.masks)[:most]])

    def _segmentation(self, name: str) -> Segmentation:
        mask = self.masks[name]
        (sample,) = (one for one in self.samples if one.id == name)
        places = {row.rpartition("/")[2]: self.folder / row / f"{name}.png" for row in MAP_ROWS}
        maps = {stage: read_map(path) for stage, path in places.items() if path.exists()}
        return Segmentation(name, mask.source, mask.labels, mask.classes, sample.tags, maps=maps)

    def _repr_png_(self) -> bytes | None:
        if not self.masks:
            return None
        packed = io.BytesIO()
        self.plot().save(packed, "PNG")  # type: ignore[attr-defined]
        return packed.getvalue()


def run(
    folder: str | Path,
    images: str | Path = "",
    tags: str | Path = "",
    *,
    clip: str | Path = "",
    values: Mapping[str, object] | None = None,
    config: Config | None = None,
    device: str = "auto",
    workers: int | None = None,
    train: bool = False,
    relearn: bool = False,
    progress: Progress = silent,
) -> Made:
    """Everything of `vpl run`: masks, the network, scores, signs and the report. Only what has changed is made.

    Args:
        folder: the run folder; made when absent, continued when not.
        images: a folder of photographs, or its URL.
        tags: a table, JSONL, JSON or npy of tags.
        clip: pocket, a hub name, a folder or a file.
        values: any values of the configuration, such as {"train.steps": 0, "data.masks": "truth"}.
        config: where to start from; default: the folder's own `config.toml`, else the defaults. What of a new run
            nobody has chosen is quality standard's (`config.quality`), and on a CPU `build.cpu_steps`.
        train: train the network also where tags rank no better than chance or a CPU would train for hours.
        relearn: learn prototypes and network again also where only photographs or tags have changed.

    Raises:
        VplError: a folder, file or value can't be used; nothing that was finished is lost.
    """
    asked = _config(Path(folder), images, tags, clip, values, config)
    if config is None and not (Path(folder) / "config.toml").exists():
        asked = build.fitting(asked, device, values or {})
    train = train or "train.steps" in (values or {})
    said: list[str] = []

    def tell(plan: Plan) -> None:
        said.extend(told(plan))

    opened = build.open_run(
        folder, asked, device=device, image_workers=workers, progress=progress, relearn=relearn
    )  # fmt: skip
    with opened:
        for kind, line in opened.told_of_lists():
            if kind != "note":
                log.warning("%s: %s", kind, line)
        build.bring(opened, "run", tell, train=train)
        return _made(opened, tuple(said))


def check(
    images: str | Path,
    tags: str | Path = "",
    *,
    clip: str | Path = "",
    values: Mapping[str, object] | None = None,
    config: Config | None = None,
    device: str = "auto",
) -> Check:
    """What is to be known before a run: classes and tags that look alike, the tag rank, time and disk; nothing is kept.

    All arguments are as for `run`.

    Raises:
        VplError: the list or the CLIP can't be used.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="vpl-") as name:
        place = Path(name) / "check"
        asked = _config(place, images, tags, clip, values, config)
        if config is None:
            asked = build.fitting(asked, device, values or {})
        with build.open_run(place, asked, device=device) as opened:
            return checks.look(opened)


def predict(
    model: str | Path | Predictor,
    images: Pictures,
    *,
    out: str | Path | None = None,
    protocol: Protocol | None = None,
    probabilities: bool = False,
    clip: FrozenClip | str | Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Prediction | list[Prediction] | Masks:
    """Label maps by a trained network, of one image or of many; no tags.

    Args:
        model: a run folder, a folder that `vpl export --to hf` made, or what `vpl.load` gave.
        images: a path, PIL image or array; a list of these, a folder with its sub-folders, a pattern.
        out: a folder for the masks, which then are not held in memory: what `vpl predict --out` writes, to the same
            bytes. A photograph that can't be used is a warning and left out; what comes back reads the masks.
        protocol: how an image is looked at; default: as `predict` of the run's configuration says, like `vpl predict`.
        probabilities: also those of background and each class.
        clip: the CLIP that the network was trained with, if it lies elsewhere now.

    Raises:
        ModelError: there is no network, or not its CLIP.
        DataError: an image can't be used; with `out`, none of them can.
        RunError: `out` can't be written, or holds files that vpl did not make.
    """
    loaded = model if isinstance(model, Predictor) else network.load(model, clip, device)
    wanted = protocol or loaded.full
    if out is not None:
        meant = sources.read(images)
        outputs = delivery.Outputs(probabilities=probabilities)
        for name, reason in delivery.deliver(loaded, meant, out, wanted, outputs, progress):
            log.warning("%s skipped: %s", name, reason)
        return Masks(Path(out), {one.name: one.image for one in meant.found}, loaded.classes, "mask")
    (given, alone), found = shots(images), []
    for shot in progress(given, len(given), "predict"):
        try:
            if probabilities:
                labels, shares = loaded.predict(shot.source, True, wanted)
            else:
                labels, shares = loaded.predict(shot.source, protocol=wanted), None
        except DataError as error:
            raise DataError(f"{shot.name}: {error}") from error
        found.append(Prediction(shot.name, shot.source, labels, loaded.classes, shares))
    return found[0] if alone else found


def _config(
    folder: Path,
    images: str | Path,
    tags: str | Path,
    clip: str | Path,
    values: Mapping[str, object] | None,
    config: Config | None,
) -> Config:
    """The stored configuration of the run, that which is given, or the defaults, with what is said beside it."""
    base = config or (stored.read(folder) if (folder / stored.FILE).exists() else Config())
    said = {"data.images": images, "data.tags": tags, "clip.model": clip}
    places = {key: str(one) for key, one in said.items() if str(one)}
    for key in ("data.images", "data.tags"):
        if key in places and not storage.is_url(places[key]):
            places[key] = str(Path(places[key]).resolve())
    return base.with_values({**places, **(values or {})})


def _made(run: Run, plan: tuple[str, ...]) -> Made:
    return Made(
        run.folder,
        plan,
        run.dataset.samples,
        Masks(run.folder / "labels", {one.id: one.image for one in run.dataset.samples}, run.classes),
        tuple(run.failures.values()),
        tuple(read_evaluations(run.folder)),
        run.has_network,
    )
