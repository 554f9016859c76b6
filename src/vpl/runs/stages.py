"""A run: one data set streamed through the stages into one folder that can be killed and continued at any moment.

    prototypes  text prototypes, regions of every image, vision prototypes      regions/ prototypes.safetensors
    seeds       label maps of text, vision and refined seeds                    seeds/{text,vision,refined}/*.png
    labels      the same, after the CRF, and pseudo-masks                       seeds/crf/*.png labels/*.png
    train       the network, from the pseudo-masks                              network/
    evaluate    everything that is there against the truth                      metrics.json predictions/*.png

The folder itself, its lock and its record are `folder`'s, its files `files`'s; `stream` is the way of the photographs,
in batches that are planned from the list alone, so that a continued run writes the bytes of an uninterrupted one.
Truth masks are opened in `evaluate` and nowhere else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpl.classes import ClassSet
from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import Config, DataConfig
from vpl.edges import images, storage
from vpl.edges.datasets import Dataset, Sample, open_dataset
from vpl.errors import ConfigError, DataError, RunError
from vpl.machine import Clock, cores
from vpl.method import prototypes, signs
from vpl.method.labeller import Draft, Labeller
from vpl.method.lesson import Lesson, learn
from vpl.method.metrics import Confusion
from vpl.method.refine import refine_maps
from vpl.method.regions import Regions, regions
from vpl.method.seeds import seed_maps
from vpl.method.views import View, encode, prepared
from vpl.network import card, predict, team, train
from vpl.network.crops import Item
from vpl.runs.files import (
    read_facts,
    read_json,
    read_map,
    read_prototypes,
    read_regions,
    scores_of,
    write_json,
    write_regions,
    write_tensors,
)
from vpl.runs.folder import STAGE_FOLDERS, RunFolder, log, versions
from vpl.runs.stream import Batch, Portion, Settled, Stream, grid_of, read_view

CHANCE_RANK = 0.6
"""Mean tag rank below which a CLIP is said not to know the photographs; guessing gives 0.5."""

SEED_ROWS = {"text": "text seeds", "vision": "vision seeds", "refined": "refined seeds"}
MAP_ROWS = {f"seeds/{name}": words for name, words in SEED_ROWS.items()} | {
    "seeds/crf": "refined + CRF",
    "labels": "pseudo-masks",
}
"""Folder of label maps -> its name in tables. Pseudo-masks are counted with their ignored pixels as errors."""

Progress = Callable[[Iterable, int, str], Iterable]
"""Wraps an iterable of known length with a progress bar; the third argument names the work."""


def silent(items: Iterable, total: int, words: str) -> Iterable:
    """A `Progress` that shows nothing."""
    return items


class Run(RunFolder):
    """A data set's way through the stages. A context manager: leaving it lets the run folder go.

    Args:
        folder: made when it is absent.
        config: what to run. Values that a finished stage depended on can't change; later ones may.
        device: "auto", "cpu", "cuda" or "mps".
        image_workers: threads that read images, as many that finish them (CRF, writing), and on a CPU as many that
            encode; default: the number of cores.
        progress: shows progress.

    Raises:
        RunError: the folder is another's run, belongs to another process, or the configuration differs.
        DataError, ModelError: the data or the CLIP can't be used.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Config,
        *,
        device: str = "auto",
        image_workers: int | None = None,
        progress: Progress = silent,
    ):
        place = team.place()
        super().__init__(folder, config, leads=place.leads)
        self.place, self.device = place, place.device(device)
        self.image_workers = image_workers or cores()
        self.progress = progress
        self._clip: FrozenClip | None = None
        self._stream: Stream | None = None
        self._dataset: Dataset | None = None

    @property
    def dataset(self) -> Dataset:
        """The samples and classes of the run."""
        if self._dataset is None:
            self._dataset = dataset_of(self.config.data)
            self._check_list(self._dataset)
        return self._dataset

    @property
    def classes(self) -> ClassSet:
        """The class set of the run."""
        return self.dataset.classes

    @property
    def clip(self) -> FrozenClip:
        """The frozen CLIP, loaded on first use."""
        if self._clip is None:
            self._clip = FrozenClip.of(self.config.clip, self.device)
            known = self.record().get("clip", {}).get("hash")
            if known not in (None, self._clip.weights_hash):
                raise RunError(
                    f"{self.folder} was made with other weights of {self.config.clip.model} "
                    f"(hash {known[:12]}, now {self._clip.weights_hash[:12]}); name a new folder."
                )
            self.note(
                clip={"name": self._clip.name, "hash": self._clip.weights_hash},
                device=str(self._clip.device),
                precision=self.config.clip.precision,
                seed=self.config.seed,
                versions=versions(),
            )
        return self._clip

    def _check_list(self, dataset: Dataset) -> None:
        """The list of images and tags is part of a run: another one is refused."""
        digest = hashlib.sha256()
        for sample in dataset.samples:
            digest.update(json.dumps([sample.id, *sample.tags]).encode())
        digest.update(json.dumps(dataset.classes.names).encode())
        data = {
            "hash": digest.hexdigest(),
            "images": len(dataset.samples),
            "split": split_of(self.config.data),
            "problems": list(dataset.problems),
        }
        known = self.record().get("data", {}).get("hash")
        if known not in (None, data["hash"]) and (self.folder / STAGE_FOLDERS["prototypes"]).exists():
            raise RunError(f"the images or tags have changed since {self.folder} was made; name a new folder.")
        self.note(data=data)

    # ------------------------------------------------------------------ streaming

    @property
    def stream(self) -> Stream:
        """The pipeline around the run's CLIP."""
        if self._stream is None:
            self._stream = Stream(self.clip, self.config.clip, self.image_workers)
        return self._stream

    def plan(self) -> Iterator[Batch]:
        """The batches of the run, the same in every process."""
        samples, patch = self.dataset.samples, self.clip.patch
        return self.stream.plan(
            len(samples),
            lambda member: grid_of(samples[member].image, patch, self.config.clip),
            lambda member, error: self.fail(samples[member].id, error),
        )

    def view(self, sample: Sample) -> View:
        """One photograph as encoder and CRF see it."""
        return read_view(sample.image, self.classes.numbers(sample.tags), self.config.clip)

    def _flow(
        self,
        words: str,
        done: Callable[[Batch], bool],
        work: Callable[[tuple[int, ...], list[View]], Any],
        finish: Callable[[Batch, list[Portion]], Iterable[Callable[[], None]]],
        clock: Clock,
    ) -> dict[str, float]:
        """All batches that are not `done` through the stream; failures into the record. How busy the threads were."""
        samples = self.dataset.samples

        def read(member: int) -> View:
            with clock("read"):
                return prepared(self.clip, self.view(samples[member]), self.config.clip)

        with self.stream.watched(clock) as busy:
            for settled in self._counted(self.stream.flow(self.plan(), read, work, finish, done), len(samples), words):
                for member, error in settled.failures:
                    self.fail(samples[member].id, error)
        return busy

    def _counted(self, batches: Iterator[Settled], total: int, words: str) -> Iterator[Settled]:
        """`batches` as they come, while the progress bar counts images."""

        def ticks() -> Iterator[Settled | None]:
            for one in batches:
                yield one
                yield from (None for _ in one.batch.members[1:])

        for item in self.progress(ticks(), total, words):
            if item is not None:
                yield item

    # ------------------------------------------------------------------ stages

    def prototypes(self) -> None:
        """Text prototypes, region embeddings and vision prototypes into prototypes.safetensors (METHOD.md 0 and 3)."""
        target = self.folder / "prototypes.safetensors"
        if target.exists():
            return
        start, clock, busy = time.perf_counter(), Clock(), {}
        text, samples = self.text_prototypes(), self.dataset.samples

        def survey(turn: int, table: Tensor, scale: float) -> Regions:
            found, shares = self._survey(turn, table, scale, text, clock)
            busy.update(shares)
            return found

        tags = [self.classes.numbers(sample.tags) for sample in samples]
        lesson = learn(survey, tags, text, self.clip.logit_scale, len(self.classes), self.config.prototypes, clock)
        self._warn_about_tags(lesson.tag_ranks)
        write_json(self.folder / "prototypes.json", self._facts(lesson))
        facts = {
            "classes": self.classes.names,
            "background": self._background(),
            "clip": self.clip.name,
            "clip_hash": self.clip.weights_hash,
        }
        self.note_stage("prototypes", time.perf_counter() - start, len(samples), clock.seconds(), busy)
        write_tensors(target, {"text": text, "vision": lesson.vision}, facts)  # with this file the stage is finished

    def _background(self) -> tuple[str, ...]:
        return self.classes.background if self.config.prompts.background_words else ()

    def text_prototypes(self) -> Tensor:
        """(C+B, D) unit rows: the classes', then the background words'."""
        if self.classes.dropped:
            log.warning("background words that are classes here are not used: %s", ", ".join(self.classes.dropped))
        made = prototypes.text_prototypes(self.clip, self.classes, self.config.prompts)
        return torch.cat([made.foreground, made.background]).cpu()

    def _survey(
        self, turn: int, table: Tensor, scale: float, text: Tensor, clock: Clock
    ) -> tuple[Regions, dict[str, float]]:
        """Regions of all images, one file per batch in regions/; and how busy the threads were."""
        folder = self.folder / STAGE_FOLDERS["prototypes"]
        folder.mkdir(exist_ok=True)
        count, config = len(self.classes), self.config
        table, text = table.to(self.clip.device), text.to(self.clip.device)

        def path(batch: Batch) -> Path:
            return folder / f"round{turn + 1}-{batch.number:06d}.safetensors"

        def work(members: tuple[int, ...], views: list[View]) -> Regions:
            tags = [view.tags for view in views]
            with clock("encode"):
                features = encode(self.clip, views, config.clip)
            with clock("seeds"):
                cams = seed_maps(self.clip, features, tags, table, count, scale, config.seeds.kind)
            if config.prototypes.refined:
                with clock("refine"):
                    cams = refine_maps(features.attention, cams, config.refine)
            with clock("regions"):
                made = regions(self.clip, features, views, cams, text, count, config.prototypes)
            return made.numbered(members)

        def write(batch: Batch, portions: list[Portion]) -> None:
            with clock("write"):
                write_regions(path(batch), Regions.joined([portion.result for portion in portions]))

        words = "regions" if turn == 0 else f"regions, round {turn + 1}"
        busy = self._flow(
            words,
            lambda batch: path(batch).exists(),
            work,
            lambda batch, portions: [partial(write, batch, portions)],
            clock,
        )
        files = sorted(folder.glob(f"round{turn + 1}-*.safetensors"))
        if not files:
            raise RunError(f"no image of {self.folder} could be used; see the list of failures and mend the first one.")
        return Regions.joined([read_regions(f, self.clip.dim, count, len(self.dataset.samples)) for f in files]), busy

    def _facts(self, lesson: Lesson) -> dict:
        """The report of METHOD.md 3.5 and how V was reached, as plain data.

        Raises:
            DataError: no region is a tag's.
        """
        learned, own = lesson.learned, lesson.of_tags
        if lesson.report is None:
            raise DataError("there is no region of a tag; lower prototypes.phi or use more images.")
        modality = signs.modality(
            lesson.x[own].numpy(),
            lesson.classes[own].numpy(),
            lesson.text.numpy(),
            lesson.vision.numpy(),
            self.classes.names,
        )
        report = {key: one if math.isfinite(one) else None for key, one in dataclasses.asdict(lesson.report).items()}
        return report | {
            "background_regions": int((~own).sum()),
            "kl_before": learned.kl_before,
            "kl_after": learned.kl_after,
            "curve": list(learned.curve),
            "steps": learned.steps,
            "modality": modality,
        }

    def _warn_about_tags(self, ranks: Tensor) -> None:
        known = ranks[~ranks.isnan()]
        if not len(known):
            return
        mean = float(known.mean())
        self.note(tag_rank=mean)
        if mean < CHANCE_RANK:
            log.warning(
                "%s does not know these photographs: it ranks an image's own tags above other classes %.0f %% of the "
                "time (guessing: 50 %%), so the masks will be poor. Use real CLIP weights (--clip), see the README.",
                self.clip.name,
                100 * mean,
            )

    def seeds(self) -> None:
        """Label maps of text, vision and refined seeds."""
        self._maps(pseudo=False)

    def labels(self) -> None:
        """Label maps of all seeds, and the pseudo-masks."""
        self._maps(pseudo=True)

    def labeller(self) -> Labeller:
        """What makes label maps from the run's prototypes, on the run's device.

        Raises:
            RunError: the prototypes are damaged, or come from a run of other classes or another CLIP.
        """
        path = self.folder / "prototypes.safetensors"
        stored, facts = read_prototypes(path, self.clip.dim), read_facts(path)
        if facts.get("classes") != list(self.classes.names):
            raise RunError(
                f"the prototypes in {self.folder} are of other classes than these images' tags; "
                "give both runs the same classes file (--classes)."
            )
        if facts.get("clip_hash") != self.clip.weights_hash:
            raise RunError(
                f"the prototypes in {self.folder} were made with another CLIP than {self.config.clip.model}; "
                "give both runs the same weights (--clip)."
            )
        text, vision = (stored[key].to(self.clip.device) for key in ("text", "vision"))
        kind = self.config.prototypes.kind
        return Labeller(self.clip, text, vision if kind == "vision" else None, len(self.classes), self.config)

    def map_folders(self, pseudo: bool) -> dict[str, Path]:
        """Name of each label map that `labeller` makes -> the folder that holds it."""
        kind = self.config.prototypes.kind
        folders = {name: self.folder / "seeds" / name for name in SEED_ROWS if name != "vision" or kind == "vision"}
        return folders | ({"crf": self.folder / "seeds" / "crf", "labels": self.folder / "labels"} if pseudo else {})

    def _maps(self, pseudo: bool) -> None:
        self.prototypes()
        start = time.perf_counter()
        samples, palette = self.dataset.samples, self.classes.palette()
        labeller, folders = self.labeller(), self.map_folders(pseudo)
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)

        def done(batch: Batch) -> bool:
            names = [f"{samples[member].id}.png" for member in batch.members]
            return all((folder / name).exists() for folder in folders.values() for name in names)

        def one(sample: Sample, view: View, draft: Draft) -> None:
            made = labeller.masks(view, draft, pseudo)
            with labeller.clock("write"):
                for name, mask in made.items():
                    images.write_mask(storage.ready(folders[name], f"{sample.id}.png"), mask, palette)

        def finish(_: Batch, portions: list[Portion]) -> list[Callable[[], None]]:
            return [
                partial(one, samples[member], view, draft)
                for portion in portions
                for member, view, draft in zip(portion.members, portion.views, portion.result, strict=True)
            ]

        words = "pseudo-masks" if pseudo else "seeds"
        busy = self._flow(words, done, lambda _, views: labeller.drafts(views, pseudo), finish, labeller.clock)
        self.note_stage(words, time.perf_counter() - start, len(samples), labeller.clock.seconds(), busy)

    def train(self) -> None:
        """The network of METHOD.md 5 from the pseudo-masks, into network/; pseudo-masks that are missing come first."""
        if self.place.count == 1:
            self.labels()
        start = time.perf_counter()
        folder = self.folder / "labels"
        items = [
            Item(sample.id, sample.image, folder / f"{sample.id}.png", sample.tags)
            for sample in self.dataset.samples
            if (folder / f"{sample.id}.png").exists()
        ]
        stored = read_prototypes(self.folder / "prototypes.safetensors", self.clip.dim)
        vision = stored["vision"].to(self.clip.device)
        records = train.fit(items, self.clip, self.classes, vision, self.config, self.folder, self.image_workers)
        count = 0
        for _ in self.progress(records, self.config.train.steps, "train") if self.leads else records:
            count += 1
        if count or "train" not in self.record().get("stages", {}):  # a kill may come between network and note
            self.note_stage("train", time.perf_counter() - start, len(items))

    @property
    def has_network(self) -> bool:
        """Whether training has finished."""
        return (self.folder / card.NETWORK_FOLDER / card.CARD_FILE).exists()

    def evaluate(self) -> dict:
        """What there is against the truth masks, into metrics.json (METHOD.md 6). Returns its content.

        Seeds and pseudo-masks are evaluated on the images of [data], the network on the held-out images of
        [validation], by both protocols side by side.

        Raises:
            RunError: there are no truth masks, or there is nothing to evaluate yet.
        """
        truths = [sample for sample in self.dataset.samples if sample.mask is not None]
        if truths:
            self._evaluate_maps(truths)
        elif not self.config.validation.masks:
            raise RunError(
                "the data have no truth masks; evaluation needs data.masks. The masks are made without them."
            )
        if self.has_network and self.config.validation.images:
            self._evaluate_network()
        return read_json(self.folder / "metrics.json")

    def _evaluate_maps(self, truths: Sequence[Sample]) -> None:
        rows = [
            self._evaluate_folder(folder, words, truths)
            for folder, words in MAP_ROWS.items()
            if any((self.folder / folder).rglob("*.png"))
        ]
        if not rows:
            raise RunError(f"{self.folder} holds no label maps yet; run `vpl seeds` or `vpl labels` first.")
        self.note_evaluation(split_of(self.config.data), self.classes, rows)

    def _evaluate_network(self) -> None:
        start = time.perf_counter()
        held_out = dataset_of(self.config.validation, self.classes)
        predictor = predict.load(self.folder, self.clip)
        folder, palette = self.folder / "predictions", self.classes.palette()
        folder.mkdir(exist_ok=True)
        samples = [sample for sample in held_out.samples if sample.mask is not None]
        counted = self.progress(samples, len(samples), "evaluate network")
        made = predict.evaluate(
            predictor,
            counted,
            lambda sample, mask: images.write_mask(storage.ready(folder, f"{sample.id}.png"), mask, palette),
            lambda sample, error: self.fail(sample.id, error),
        )
        parts = ["multi-scale" if len(predictor.full.scales) > 1 else "single scale"]
        parts += [name for name, on in (("flip", predictor.full.flip), ("CRF", predictor.full.crf)) if on]
        rows = [
            {"name": "network, single scale", "folder": None} | scores_of(made.single, self.classes),
            {"name": f"network, {' + '.join(parts)}", "folder": "predictions"} | scores_of(made.full, self.classes),
        ]
        self.note_evaluation(split_of(self.config.validation), self.classes, rows)
        self.note_stage("evaluate network", time.perf_counter() - start, made.images)

    def _evaluate_folder(self, folder: str, words: str, truths: Sequence[Sample]) -> dict:
        confusion, missing = Confusion(len(self.classes) + 1), []
        for sample in self.progress(truths, len(truths), f"evaluate {words}"):
            path = self.folder / folder / f"{sample.id}.png"
            if not path.exists():
                missing.append(sample.id)
                continue
            label_map = read_map(path)
            try:
                confusion.update(images.read_mask(sample.mask), label_map)
            except DataError as error:
                self.fail(sample.id, error)
                missing.append(sample.id)
        return {"name": words, "folder": folder, "missing": missing} | scores_of(confusion, self.classes)


def split_of(data: DataConfig) -> str:
    """What a data set's split is called: its name, or that of the tag file or folder that lists it."""
    return data.split or Path(data.tags or data.images).stem


def dataset_of(data: DataConfig, classes: ClassSet | None = None) -> Dataset:
    """`open_dataset`, with the classes that are given, or those of scenes where the configuration names them."""
    if data.images == "":
        raise ConfigError(f"{data.name}.images is empty; say where the images are (--images FOLDER).")
    if classes is None and data.classes == "scenes":
        classes = scene_classes()
    return open_dataset(data, classes=classes)
