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

from vpl.clip.dinov2 import FrozenDinov2
from vpl.clip.model import Features, FrozenClip
from vpl.config import Config
from vpl.edges import storage
from vpl.edges.datasets import Sample
from vpl.errors import DataError, RunError, VplError
from vpl.machine import Clock, native_bfloat16, precision_of
from vpl.method.seeds import seed_maps
from vpl.method.views import View, guide_of, prepared
from vpl.network import team
from vpl.progress import Progress, silent
from vpl.runs import texts
from vpl.runs.folder import ENCODINGS, log, versions
from vpl.runs.plan import Plan, digest
from vpl.runs.planned import Planned, split_of
from vpl.runs.shelf import Shelf
from vpl.runs.stream import Batch, Portion, Settled, Stream, grid_of, read_view, workers_of


class Opened(Planned):
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
        workers = workers_of(image_workers)
        super().__init__(folder, config, workers=workers, progress=progress, relearn=relearn, leads=place.leads)
        self.place, self.device = place, place.device(device)
        self._settle_precision()
        self.makers = dict(makers or {})
        self._clip: FrozenClip | None = None
        self._guide: FrozenDinov2 | None = None
        self._guide_hash = ""
        self._stream: Stream | None = None
        self._shelf: Shelf | None = None
        self._text: tuple[Tensor, str] | None = None

    def _settle_precision(self) -> None:
        """In the place of "auto" the number format that the run began with, or that a new one's device computes itself:
        it shapes results, so a run keeps it wherever it goes on."""
        if self.config.clip.precision == "auto":
            before = self.stored
            name = before.clip.precision if before else "auto"
            self.config = self.config.with_values({"clip.precision": precision_of(name, self.device)})

    def _note_rest(self) -> None:
        super()._note_rest()
        if self._clip is not None:
            texts.remember(self.folder, self._clip)

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
        self.remember_clip(clip.weights_hash)
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

    def clip_hash(self) -> str:
        """What the CLIP is."""
        return self.clip.weights_hash

    def guide_hash(self) -> str:
        """What the encoder of `refine.features` is; "" where it is not asked for."""
        return self._guide_hash if self.guide else ""

    def take(self, planned: Planned) -> None:
        """Take the lists over that were opened for this run's plan."""
        self._dataset, self._validation = planned._dataset, planned._validation

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
