"""A run that is open: its data set, its CLIP, its plan, and the way of its photographs through the stream.

What the stages (`learning`, `labelling`, `teaching`, `scoring`) need of a run. A photograph that can't be used is left
out and noted; where the machine is at fault and not the photograph, the run stops.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vpl.classes import ClassSet
from vpl.classes import scenes as scene_classes
from vpl.clip.dinov2 import FrozenDinov2
from vpl.clip.model import Features, FrozenClip
from vpl.config import Config, DataConfig
from vpl.edges import storage
from vpl.edges.datasets import Dataset, Sample, open_dataset
from vpl.errors import ConfigError, DataError, RunError, VplError
from vpl.machine import Clock, native_bfloat16, precision_of
from vpl.method.seeds import seed_maps
from vpl.method.views import View, guide_of, prepared
from vpl.network import team
from vpl.progress import Progress, silent
from vpl.runs import inventory, texts
from vpl.runs.contents import Contents
from vpl.runs.folder import ENCODINGS, RunFolder, log, versions
from vpl.runs.plan import Plan, compare, digest, encoding_of
from vpl.runs.review import reviewed
from vpl.runs.shelf import Shelf
from vpl.runs.state import FOLDER as STATE_FOLDER
from vpl.runs.stream import Batch, Portion, Settled, Stream, grid_of, read_view, workers_of


class Opened(RunFolder):
    """A run folder whose data set and CLIP are open. A context manager: leaving it lets the folder go.

    Args:
        folder: made when it is absent.
        config: what to run.
        device: "auto", "cpu", "cuda" or "mps".
        image_workers: threads that read images, as many that finish them (CRF, writing), and on a CPU as many that
            encode; default: the number of cores.
        progress: shows progress.
        relearn: learn prototypes and network again also where only photographs or tags have changed.
        makers: stage -> what makes its product from the run, for the stages of later rooms (signs, report, exports).

    Attributes:
        passing: id -> fingerprint of the photographs that failed in this process.

    Raises:
        RunError: the folder is another's, belongs to another process, or was made by an earlier vpl.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Config,
        *,
        device: str = "auto",
        image_workers: int | None = None,
        progress: Progress = silent,
        relearn: bool = False,
        makers: Mapping[str, Callable[[Any], object]] | None = None,
    ):
        place = team.place()
        super().__init__(folder, config, leads=place.leads)
        self.place, self.device = place, place.device(device)
        self._settle_precision()
        self.image_workers = workers_of(image_workers)
        self.progress = progress
        self.relearn = relearn
        self.makers = dict(makers or {})
        self._clip: FrozenClip | None = None
        self._guide: FrozenDinov2 | None = None
        self._guide_hash = ""
        self._stream: Stream | None = None
        self._shelf: Shelf | None = None
        self._dataset: Dataset | None = None
        self._held_out: tuple[Sample, ...] | None = None
        self._contents: Contents | None = None
        self.passing: dict[str, str] = {}
        self._content_of: dict[str, str] = {}
        self._encoding = ""
        self._text: tuple[Tensor, str] | None = None
        self.unscored = ""
        """Why truth masks that were named give no scores."""

    def _settle_precision(self) -> None:
        """In the place of "auto" the number format that the run began with, or that a new one's device computes itself:
        it shapes results, so a run keeps it wherever it goes on."""
        if self.config.clip.precision == "auto":
            before = self.stored
            name = before.clip.precision if before else "auto"
            self.config = self.config.with_values({"clip.precision": precision_of(name, self.device)})

    def close(self) -> None:
        """Note what is still to be noted, and let the folder go."""
        try:
            if self._settled and self.leads:
                self._note_rest()
        except (OSError, VplError):
            pass  # a full disk or a damaged file: what met it first has told
        finally:
            super().close()

    def _note_rest(self) -> None:
        self._note_rest_of_time()
        self.note_failures()
        if self._clip is not None:
            texts.remember(self.folder, self._clip)
        if self._contents is not None and self._dataset is not None:
            self._contents.close(inventory.files_of([*self._dataset.samples, *(self._held_out or ())]))
            self.state.close(one.id for one in self._dataset.samples)
        else:
            self.state.close()

    @property
    def dataset(self) -> Dataset:
        """The samples and classes of the run."""
        if self._dataset is None:
            self._dataset = reviewed(dataset_of(self.config.data), self.folder)
        return self._dataset

    @property
    def held_out(self) -> tuple[Sample, ...]:
        """The samples of [validation] that have a truth mask; none where there is no such split."""
        return tuple(sample for sample in self.validation if sample.mask is not None)

    @property
    def validation(self) -> tuple[Sample, ...]:
        """The samples of [validation]."""
        if self._held_out is None:
            given = self.config.validation
            self._held_out = dataset_of(given, self.classes).samples if given.images else ()
        return self._held_out

    @property
    def classes(self) -> ClassSet:
        """The class set of the run."""
        return self.dataset.classes

    @property
    def clip(self) -> FrozenClip:
        """The frozen CLIP, loaded on first use."""
        if self._clip is None:
            self._clip = FrozenClip.of(self.config.clip, self.device)
            texts.recall(self.folder, self._clip)
        return self._clip

    @property
    def guide(self) -> FrozenDinov2 | None:
        """The encoder of `refine.features`, loaded on first use; None where it is not asked for."""
        if self._guide is None and self.config.refine.guided:
            self._guide = FrozenDinov2.load(self.config.refine.features, str(self.clip.device))
            self._guide_hash = self._guide.weights_hash
        return self._guide

    @property
    def stream(self) -> Stream:
        """The pipeline around the run's CLIP."""
        if self._stream is None:
            self._stream = Stream(self.clip, self.config.clip, self.image_workers)
        return self._stream

    @property
    def shelf(self) -> Shelf:
        """Encodings between the run's passes."""
        if self._shelf is None:
            self._shelf = Shelf(self.folder / ENCODINGS, self.config.clip)
        return self._shelf

    def encode(
        self, samples: Sequence[Sample], views: Sequence[View], keep: Container[str] = (), *, guided: bool
    ) -> Features:
        """Features of photographs of one patch grid, once encoded or taken from the shelf.

        Args:
            keep: ids of those that are needed again.
            guided: with what the encoder of `refine.features` says, where it is asked for.
        """
        keys, kept = self._kept_as(samples), [one.id in keep for one in samples]
        features = self.shelf.features(self.clip, views, keys, kept)
        guide = self.guide if guided else None
        if guide is None:
            return features

        def make() -> list[Tensor]:
            self.shelf.count(len(views))
            return list(guide_of(guide, views, features.grid))

        keys = [f"{one}-{self._guide_hash[:16]}" for one in keys]
        return replace(features, guide=torch.stack(self.shelf.once("guide", keys, kept, make, guide.device)))

    def text_seeds(
        self,
        samples: Sequence[Sample],
        features: Features,
        text: Float[Tensor, "P D"],
        keep: Container[str] = (),
    ) -> list[Float[Tensor, "_ h w"]]:
        """Seeds of photographs from the text prototypes, once made or taken from the shelf.

        Args:
            features: their encoding.
            text: T, on the device of the CLIP.
            keep: ids of those that are needed again.
        """
        tags, kind = [self.classes.numbers(one.tags) for one in samples], self.config.seeds.kind
        if self._text is None or self._text[0] is not text:
            self._text = text, hashlib.sha256(text.cpu().numpy().tobytes()).hexdigest()
        keys = [
            f"{key}-{digest(self._text[1], own, kind)}" for key, own in zip(self._kept_as(samples), tags, strict=True)
        ]
        return self.shelf.once(
            "seeds",
            keys,
            [one.id in keep for one in samples],
            lambda: seed_maps(self.clip, features, tags, text, len(self.classes), self.clip.logit_scale, kind),
            self.clip.device,
        )

    def _kept_as(self, samples: Sequence[Sample]) -> list[str]:
        """What the encoding of each depends on."""
        made_by = f"{self._encoding}-{self.config.clip.attention_blocks}-{self.clip.device.type}"
        return [f"{self._content_of[one.id]}-{made_by}" for one in samples]

    @property
    def contents(self) -> Contents:
        """What photographs and masks are."""
        if self._contents is None:
            self._contents = Contents(self.folder / STATE_FOLDER / "contents.tsv", self.image_workers)
        return self._contents

    def view(self, sample: Sample) -> View:
        """One photograph as encoder and CRF see it."""
        return read_view(sample.image, self.classes.numbers(sample.tags), self.config.clip)

    def settle(self) -> None:
        """Store the configuration, once data, classes and CLIP have opened, and note what they are."""
        dataset, clip, _ = self.dataset, self.clip, self.validation
        fresh = not self._settled
        super().settle()
        if not fresh or not self.leads:
            return
        own, before = versions(), self.record().get("versions", {})
        other = [f"{name} {before[name]}, now {one}" for name, one in own.items() if before.get(name, one) != one]
        if other and self.state.records:
            log.warning(
                "%s was begun under other versions (%s): what is made from here on may differ in its last bits from "
                "what is there.", self.folder, "; ".join(other),
            )  # fmt: skip
        if self.config.clip.precision == "bfloat16" and not native_bfloat16(clip.device):
            log.warning(
                "%s computes in bfloat16, which this device does not multiply itself: float32 (--precision float32, "
                "which makes all anew) would be quicker here.", self.folder,
            )  # fmt: skip
        told = ", ".join(f"{name} {one}" for name, one in own.items())
        log.info("versions: %s; device %s; CLIP %s (%s)", told, clip.device, clip.name, clip.weights_hash[:12])
        names = hashlib.sha256()
        for sample in dataset.samples:
            names.update(json.dumps([sample.id, *sample.tags]).encode())
        names.update(json.dumps(dataset.classes.names).encode())
        self.note(
            data={
                "hash": names.hexdigest(),
                "images": len(dataset.samples),
                "split": split_of(self.config.data),
                "problems": list(dataset.problems),
            },
            clip={"name": clip.name, "hash": clip.weights_hash},
            device=str(clip.device),
            precision=self.config.clip.precision,
            seed=self.config.seed,
            versions=own,
        )

    def plan(self, targets: Iterable[str], never: Iterable[str] = ()) -> Plan:
        """What is to be done until the targets (names of `plan.STAGES`) are there; nothing is written.

        Args:
            never: stages that are not made now.
        """
        asked = inventory.asked_of(
            self.config,
            self.dataset,
            self.held_out,
            self.clip.weights_hash,
            self.contents,
            self.folder,
            split=split_of(self.config.data),
            relearn=self.relearn,
            progress=self.progress,
            guide=self._guide_hash if self.guide else "",
        )
        self._encoding = encoding_of(asked)
        self._content_of = {one.id: one.content for one in asked.photographs}
        return compare(asked, inventory.there_of(self.folder, self.state, self.config, self.passing), targets, never)

    def usable(self, plan: Plan) -> list[Sample]:
        """The samples that have not failed."""
        failed = set(plan.failed)
        return [sample for sample in self.dataset.samples if sample.id not in failed]

    def forget(self, stage: str) -> None:
        """Forget the failures of a stage that is made again."""
        for identity in [one.id for one in self.failures.values() if one.stage == stage]:
            del self.failures[identity]

    def inputs(self) -> list[str]:
        """The user's folders, which nothing is ever written into."""
        return [place for data in (self.config.data, self.config.validation) for place in (data.images, data.masks)]

    # ------------------------------------------------------------------ the way of the photographs

    def flow(
        self,
        words: str,
        samples: Sequence[Sample],
        work: Callable[[list[Sample], list[View]], Any],
        finish: Callable[[Batch, list[Portion]], Iterable[Callable[[], None]]],
        clock: Clock,
    ) -> dict[str, float]:
        """Samples through the stream; failures into the record. How busy the threads were."""
        patch = self.clip.patch

        def read(member: int) -> View:
            sample = samples[member]
            with clock("read"):
                view = prepared(self.clip, self.view(sample), self.config.clip)
            if not self.contents.unchanged(sample.image):
                raise DataError("the image has changed while the run went on; start the same command again.")
            return view

        batches = self.stream.plan(
            len(samples),
            lambda member: grid_of(samples[member].image, patch, self.config.clip),
            lambda member, error: self._skip(samples[member], error),
        )
        with self.stream.watched(clock) as busy:
            flow = self.stream.flow(
                batches, read, lambda members, views: work([samples[one] for one in members], views), finish
            )
            with contextlib.closing(flow):
                for settled in self._counted(flow, len(samples), words):
                    for member, error in settled.failures:
                        self._skip(samples[member], error)
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

    def _skip(self, sample: Sample, error: VplError) -> None:
        """Leave a photograph out: until its bytes change where they are at fault, until the next command otherwise.

        Raises:
            RunError: not the photograph is at fault but the machine.
        """
        self._stop_for_machine(sample, error)
        fingerprint = f"{self._content_of[sample.id]}-{self._encoding}"
        self.passing[sample.id] = fingerprint
        self.fail(sample.id, error)
        try:
            self.view(sample)
        except VplError:
            self.state.fail(sample.id, fingerprint, str(error))

    def _stop_for_machine(self, sample: Sample, error: VplError) -> None:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, RunError):
                raise cause
            storage.check_machine(sample.image, cause)
            cause = cause.__cause__
        storage.check_folder_of(sample.image, error)


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
