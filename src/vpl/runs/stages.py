"""A run: one data set streamed through the stages into one folder that can be killed and continued at any moment.

    prototypes  text prototypes, regions of every image, vision prototypes      regions/ prototypes.safetensors
    seeds       label maps of text, vision and refined seeds                    seeds/{text,vision,refined}/*.png
    labels      the same, after the CRF, and pseudo-masks                       seeds/crf/*.png labels/*.png
    train       the network, from the pseudo-masks                              network/
    evaluate    everything that is there against the truth                      metrics.json predictions/*.png

The folder itself, its lock and its record are `runfolder`'s. The unit of work is a batch of images with equal patch
grids, planned from the list of images alone, so that a continued run computes the same batches as an uninterrupted one
and writes the same bytes. Truth masks are opened in `evaluate` and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpl.classes import ClassSet
from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import ClipConfig, Config, DataConfig
from vpl.edges import images
from vpl.edges.datasets import Dataset, Sample, open_dataset
from vpl.errors import ConfigError, DataError, RunError, VplError
from vpl.machine import Clock, cores
from vpl.method import labels, prototypes, signs
from vpl.method.metrics import Confusion
from vpl.network import card, predict, team, train
from vpl.network.crops import Item
from vpl.runs.folder import (
    STAGE_FOLDERS,
    RunFolder,
    log,
    read_facts,
    read_json,
    read_map,
    read_prototypes,
    read_regions,
    scores_of,
    versions,
    write_json,
    write_tensors,
)

WINDOW = 32
"""Batches are cut from windows of this many times the batch size, so that memory does not grow with the data set."""

ATTENTION_CELLS = 2**25
"""A batch holds at most this many cells of attention (its images times the square of their patches), or one image."""

AHEAD = 2
"""Batches that are read, or wait to be finished, beside those that are being encoded."""

CUDA_LANES = 2
"""Batches in the encoder at once on a CUDA device: one computes while the host prepares the other."""

PARTS = {
    "reading": ("read",),
    "encoding": ("encode", "seeds", "refine", "regions", "crf on device"),
    "finishing": ("upsample", "crf", "write"),
}
"""The three kinds of threads of a stage, and the parts of the work that each does."""

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


@dataclass(frozen=True)
class Batch:
    """Images that go through the encoder together: place in the plan, numbers into the list of samples, patch grid."""

    number: int
    members: tuple[int, ...]
    grid: tuple[int, int]


@dataclass(frozen=True)
class Portion:
    """Images of a batch that were encoded together: numbers into the list of samples, views, and what was computed."""

    members: list[int]
    views: list[labels.View]
    result: Any


def grid_of(image: Path | str, patch: int, config: ClipConfig) -> tuple[int, int]:
    """(h, w), the patch grid of a photograph at the encoder, from its header.

    Raises:
        DataError: as `images.image_size`.
    """
    size = images.size_within(*images.image_size(image), config.max_side)
    return images.patch_size_of(*size, patch, images.encoder_scale(*size, patch, config.scale, config.max_patches))


def read_view(image: Path | str, tags: tuple[int, ...], config: ClipConfig) -> labels.View:
    """One photograph as encoder and CRF see it; `tags` are class numbers.

    Raises:
        DataError: as `images.read_image`.
    """
    return labels.View(images.read_image(image, config.max_side), tags, images.image_size(image))


def too_large(view: labels.View, clip: FrozenClip, config: ClipConfig) -> DataError:
    """What to say of an image that does not fit into the device's memory."""
    height, width = view.image.shape[:2]
    return DataError(
        f"the memory of {clip.device} is too small for this image at {height} x {width} pixels, even alone; "
        f"lower clip.max_side (now {config.max_side}) or take another --device."
    )


def cut(grids: Mapping[int, tuple[int, int]], size: int) -> Iterator[tuple[int, ...]]:
    """The batches of one window: of its members, by their patch grids, those of equal grids together in their order."""
    groups: dict[tuple[int, int], list[int]] = {}
    for member, grid in grids.items():
        groups.setdefault(grid, []).append(member)
    for (h, w), members in groups.items():
        step = max(1, min(size, ATTENTION_CELLS // (h * w) ** 2))
        for first in range(0, len(members), step):
            yield tuple(members[first : first + step])


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
        self._portions = labels.Portions()
        self._clip: FrozenClip | None = None
        self._dataset: Dataset | None = None

    @property
    def dataset(self) -> Dataset:
        """The samples and classes of the run."""
        if self._dataset is None:
            self._dataset = dataset_of(self.config.data)
            self._check_list()
        return self._dataset

    @property
    def classes(self) -> ClassSet:
        """The class set of the run."""
        return self.dataset.classes

    @property
    def clip(self) -> FrozenClip:
        """The frozen CLIP, loaded on first use."""
        if self._clip is None:
            self._clip = FrozenClip.load(self.config.clip.model, self.device, self.config.clip.precision)
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

    def _check_list(self) -> None:
        """The list of images and tags is part of a run: another one is refused."""
        digest = hashlib.sha256()
        for sample in self._dataset.samples:
            digest.update(json.dumps([sample.id, *sample.tags]).encode())
        digest.update(json.dumps(self._dataset.classes.names).encode())
        data = {
            "hash": digest.hexdigest(),
            "images": len(self._dataset.samples),
            "split": split_of(self.config.data),
            "problems": list(self._dataset.problems),
        }
        known = self.record().get("data", {}).get("hash")
        if known not in (None, data["hash"]) and (self.folder / STAGE_FOLDERS["prototypes"]).exists():
            raise RunError(f"the images or tags have changed since {self.folder} was made; name a new folder.")
        self.note(data=data)

    # ------------------------------------------------------------------ streaming

    def plan(self) -> Iterator[Batch]:
        """The batches of the run, the same in every process: images of equal patch grids, from window to window."""
        samples, size, number = self.dataset.samples, self.config.clip.batch, 0
        for start in range(0, len(samples), WINDOW * size):
            grids: dict[int, tuple[int, int]] = {}
            for member in range(start, min(start + WINDOW * size, len(samples))):
                try:
                    grids[member] = grid_of(samples[member].image, self.clip.patch, self.config.clip)
                except VplError as error:
                    self.fail(samples[member].id, error)
            for members in cut(grids, size):
                yield Batch(number, members, grids[members[0]])
                number += 1

    def view(self, sample: Sample) -> labels.View:
        """One photograph as encoder and CRF see it."""
        return read_view(sample.image, tuple(self.classes.index(tag) for tag in sample.tags), self.config.clip)

    def _flow(
        self,
        words: str,
        done: Callable[[Batch], bool],
        work: Callable[[Sequence[labels.View]], Any],
        finish: Callable[[Batch, list[Portion]], list[Callable[[], None]]],
        clock: Clock,
    ) -> dict[str, float]:
        """All batches that are not `done` through reading, `work` and the calls that `finish` makes of its results.

        Reading, work on the device and finishing have threads of their own and overlap; at most `AHEAD` batches wait
        beside those at work. Every thread computes on one core: cores are shared out by images. So nothing waits for
        the slowest part of a matrix product, and results do not depend on the number of cores, as torch's may.

        Returns:
            How busy the threads were, 0 to 1, by kind (`PARTS`); `cores`: processor time over that of all cores.
        """
        samples = self.dataset.samples
        lanes = {"cpu": self.image_workers, "cuda": CUDA_LANES}.get(self.clip.device.type, 1)

        def read(sample: Sample, grid: tuple[int, int]) -> labels.View:
            with clock("read"):
                view = labels.prepared(self.clip, self.view(sample), self.config.clip)
            if view.pixels.shape[1:] != tuple(side * self.clip.patch for side in grid):
                raise DataError(f"the image {sample.image} has changed while the run read it; start the run again.")
            return view

        def lane(batch: Batch, reading: list[Future], finishers: ThreadPoolExecutor) -> tuple[list, list[Future]]:
            members, views, failures, portions = [], [], [], []
            for member, future in zip(batch.members, reading, strict=True):
                try:
                    views.append(future.result())
                    members.append(member)
                except VplError as error:
                    failures.append((member, error))
            for part, result in self._portions.each(views, work):
                if result is None:
                    failures.append((members[part.start], too_large(views[part.start], self.clip, self.config.clip)))
                else:
                    bare = [dataclasses.replace(view, pixels=None) for view in views[part]]
                    portions.append(Portion(members[part], bare, result))
            calls = finish(batch, portions) if portions else []
            return failures, [finishers.submit(call) for call in calls]

        def settled() -> Iterator[Batch]:
            with (
                _threads(self.image_workers) as finishers,
                _threads(lanes) as encoders,
                _threads(self.image_workers) as readers,
            ):
                waiting: deque[tuple[Batch, Future]] = deque()

                def oldest() -> Batch:
                    batch, encoded = waiting.popleft()
                    failures, finishing = encoded.result()
                    for member, error in failures:
                        self.fail(samples[member].id, error)
                    for one in finishing:
                        one.result()
                    return batch

                for batch in self.plan():
                    if done(batch):
                        yield batch
                        continue
                    reading = [readers.submit(read, samples[member], batch.grid) for member in batch.members]
                    waiting.append((batch, encoders.submit(lane, batch, reading, finishers)))
                    if len(waiting) > lanes + AHEAD:
                        yield oldest()
                while waiting:
                    yield oldest()

        start, start_cpu, before = time.perf_counter(), time.process_time(), clock.seconds()
        with _one_core_each():
            for _ in self._counted(settled(), len(samples), words):
                pass
        taken = max(time.perf_counter() - start, 1e-9)
        spent = {part: seconds - before.get(part, 0.0) for part, seconds in clock.seconds().items()}
        threads = {"reading": self.image_workers, "encoding": lanes, "finishing": self.image_workers}
        busy = {
            name: sum(spent.get(part, 0.0) for part in PARTS[name]) / (count * taken) for name, count in threads.items()
        }
        busy["cores"] = (time.process_time() - start_cpu) / (cores() * taken)
        return {name: round(share, 3) for name, share in busy.items()}

    def _counted(self, batches: Iterator[Batch], total: int, words: str) -> Iterator[Batch]:
        """`batches` as they come, while the progress bar counts images."""

        def ticks() -> Iterator:
            for batch in batches:
                yield batch
                yield from (None for _ in batch.members[1:])

        for item in self.progress(ticks(), total, words):
            if item is not None:
                yield item

    # ------------------------------------------------------------------ stages

    def prototypes(self) -> None:
        """Text prototypes, region embeddings and vision prototypes into prototypes.safetensors (METHOD.md 0 and 3)."""
        target = self.folder / "prototypes.safetensors"
        if target.exists():
            return
        start, clock = time.perf_counter(), Clock()
        text = self.text_prototypes()
        table, scale = text, self.clip.logit_scale
        config = self.config.prototypes
        for turn in range(config.rounds):
            found, busy = self._regions(turn, table, text, scale, clock)
            with clock("learn"):
                table, report = self._learn(found, text)
            scale = 1 / config.image_temperature
        self._warn_about_tags(found["tag_ranks"])
        write_json(self.folder / "prototypes.json", report)
        facts = {
            "classes": self.classes.names,
            "background": self._background(),
            "clip": self.clip.name,
            "clip_hash": self.clip.weights_hash,
        }
        taken = time.perf_counter() - start
        self.note_stage("prototypes", taken, len(self.dataset.samples), clock.seconds(), busy)
        write_tensors(target, {"text": text, "vision": table}, facts)  # last: with this file the stage is finished

    def _background(self) -> tuple[str, ...]:
        return self.classes.background if self.config.prompts.background_words else ()

    def text_prototypes(self) -> Tensor:
        """(C+B, D) unit rows: the classes', then the background words'."""
        if self.classes.dropped:
            log.warning("background words that are classes here are not used: %s", ", ".join(self.classes.dropped))
        made = prototypes.text_prototypes(self.clip, self.classes, self.config.prompts)
        return torch.cat([made.foreground, made.background]).cpu()

    def _regions(
        self, turn: int, table: Tensor, text: Tensor, scale: float, clock: Clock
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Region embeddings of all images, one file per batch in regions/; and how busy the threads were."""
        folder = self.folder / STAGE_FOLDERS["prototypes"]
        folder.mkdir(exist_ok=True)
        count, config = len(self.classes), self.config
        table, text_there = table.to(self.clip.device), text.to(self.clip.device)

        def path(batch: Batch) -> Path:
            return folder / f"round{turn + 1}-{batch.number:06d}.safetensors"

        def work(views: Sequence[labels.View]) -> labels.Regions:
            with clock("encode"):
                features = labels.encode(self.clip, views, config)
            with clock("seeds"):
                cams = labels.seed_maps(self.clip, features, views, table, count, scale, config.seeds.kind)
            if config.prototypes.refined:
                with clock("refine"):
                    cams = labels.refine_maps(features, cams, config.refine)
            with clock("regions"):
                return labels.regions(self.clip, features, views, cams, text_there, count, config.prototypes)

        def write(batch: Batch, portions: list[Portion]) -> None:
            made = [portion.result for portion in portions]
            owners = [torch.tensor(portion.members)[portion.result.views] for portion in portions]
            with clock("write"):
                write_tensors(
                    path(batch),
                    {
                        "embeddings": torch.cat([one.embeddings for one in made]),
                        "class": torch.cat([one.classes for one in made]),
                        "sample": torch.cat(owners),
                        "tag_ranks": torch.cat([one.tag_ranks for one in made]),
                    },
                )

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
        parts = [read_regions(file, self.clip.dim, count, len(self.dataset.samples)) for file in files]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}, busy

    def _learn(self, found: dict[str, Tensor], text: Tensor) -> tuple[Tensor, dict]:
        """Vision prototypes from the regions, and the report of METHOD.md 3.5."""
        config, count = self.config.prototypes, len(self.classes)
        tags = [
            tuple(self.classes.index(tag) for tag in self.dataset.samples[number].tags)
            for number in found["sample"].tolist()
        ]
        lesson = labels.learn(found["embeddings"], found["class"], tags, text, count, config)
        learned, own = lesson.learned, lesson.classes != labels.BACKGROUND_REGION
        report = prototypes.report(
            lesson.x[own], lesson.q[own], lesson.classes[own], text, learned.prototypes, config.image_temperature
        )
        facts = {
            "background_regions": int((~own).sum()),
            "kl_before": learned.kl_before,
            "kl_after": learned.kl_after,
            "curve": list(learned.curve),
            "steps": learned.steps,
            "modality": signs.modality(
                lesson.x[own].numpy(),
                lesson.classes[own].numpy(),
                text.numpy(),
                learned.prototypes.numpy(),
                self.classes.names,
            ),
        }
        numbers = {key: one if math.isfinite(one) else None for key, one in dataclasses.asdict(report).items()}
        return learned.prototypes, numbers | facts

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

    def labeller(self) -> labels.Labeller:
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
        return labels.Labeller(self.clip, text, vision if kind == "vision" else None, len(self.classes), self.config)

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

        def one(sample: Sample, view: labels.View, maps: labels.Maps) -> None:
            made = labeller.masks(view, maps, pseudo)
            with labeller.clock("write"):
                for name, mask in made.items():
                    images.write_mask(folders[name] / f"{sample.id}.png", mask, palette)

        def finish(_: Batch, portions: list[Portion]) -> list[Callable[[], None]]:
            return [
                partial(one, samples[member], view, maps)
                for portion in portions
                for member, view, maps in zip(portion.members, portion.views, portion.result, strict=True)
            ]

        words = "pseudo-masks" if pseudo else "seeds"
        busy = self._flow(words, done, partial(labeller.maps, pseudo=pseudo), finish, labeller.clock)
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
            if any((self.folder / folder).glob("*.png"))
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
            lambda sample, mask: images.write_mask(folder / f"{sample.id}.png", mask, palette),
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


@contextlib.contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that drops what is not begun when the block is left by an error."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _one_core_each() -> Iterator[None]:
    """Threads that start inside the block compute on one core each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
