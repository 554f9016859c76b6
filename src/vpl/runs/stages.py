"""A run: one data set brought through the stages into one folder, which does what its plan says and nothing twice.

    prototypes  text prototypes, regions of every image, vision prototypes      regions/ prototypes.safetensors
    seeds       label maps of text, vision and refined seeds                    seeds/{text,vision,refined}/*.png
    labels      the same, after the CRF, and pseudo-masks                       seeds/crf/*.png labels/*.png
    train       the network, from the pseudo-masks                              network/
    evaluate    masks and network against the truth                             metrics.json predictions/*.png

`plan` compares what is asked with what is there, `bring` does the work; later rooms add their stages as `makers`. The
folder itself, its lock and its record are `folder`'s, its files `files`'s; `stream` is the way of the photographs.
Truth masks are opened in `evaluate` and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpl.classes import ClassSet
from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import Config, DataConfig
from vpl.edges import images, outputs, storage
from vpl.edges.datasets import Dataset, Sample, open_dataset
from vpl.edges.truth import read_truth
from vpl.errors import ConfigError, DataError, RunError, VplError
from vpl.machine import Clock, cores
from vpl.method import gap, prototypes
from vpl.method.labeller import Draft, Labeller
from vpl.method.lesson import Lesson, learn
from vpl.method.metrics import Confusion
from vpl.method.refine import refine_maps
from vpl.method.regions import Regions, regions
from vpl.method.seeds import seed_maps
from vpl.method.views import View, encode, prepared
from vpl.network import card, checkpoint, predict, team, train
from vpl.network.crops import Item
from vpl.progress import Progress, silent
from vpl.runs import checks, inventory
from vpl.runs.contents import Contents
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
from vpl.runs.folder import REPLACED, RunFolder, log, versions
from vpl.runs.plan import STAGES, WHOLE, Plan, Work, compare, digest, encoding_of, learns
from vpl.runs.state import FOLDER as STATE_FOLDER
from vpl.runs.stream import Batch, Portion, Settled, Stream, grid_of, read_view

CHANCE_RANK = 0.6
"""Mean tag rank below which a CLIP is said not to know the photographs; guessing gives 0.5."""

SEED_ROWS = {"text": "text seeds", "vision": "vision seeds", "refined": "refined seeds"}
MAP_ROWS = {f"seeds/{name}": words for name, words in SEED_ROWS.items()} | {
    "seeds/crf": "refined + CRF",
    "labels": "pseudo-masks",
}
"""Folder of label maps -> its name in tables. Pseudo-masks are counted with their ignored pixels as errors."""

Maker = Callable[["Run"], object]
"""Makes the product of a stage that a later room brings."""

_ENVIRONMENT = {
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EHOSTDOWN,
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ECONNREFUSED,
}  # fmt: skip
"""Errors of reading that tell of the machine and not of the photograph."""


class Run(RunFolder):
    """A data set's way through the stages. A context manager: leaving it lets the run folder go.

    Args:
        folder: made when it is absent.
        config: what to run. What it changes is made anew, with what follows from it.
        device: "auto", "cpu", "cuda" or "mps".
        image_workers: threads that read images, as many that finish them (CRF, writing), and on a CPU as many that
            encode; default: the number of cores.
        progress: shows progress.
        relearn: learn prototypes and network again also where only photographs or tags have changed.
        makers: stage -> what makes it, for the stages of later rooms (signs, report, exports).

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
        makers: Mapping[str, Maker] | None = None,
    ):
        place = team.place()
        super().__init__(folder, config, leads=place.leads)
        self.place, self.device = place, place.device(device)
        self.image_workers = image_workers or cores()
        self.progress = progress
        self.relearn = relearn
        self._makers = dict(makers or {})
        self._clip: FrozenClip | None = None
        self._stream: Stream | None = None
        self._dataset: Dataset | None = None
        self._held_out: tuple[Sample, ...] | None = None
        self._contents: Contents | None = None
        self._passing: dict[str, str] = {}
        self._content_of: dict[str, str] = {}
        self._encoding = ""

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
        self.note_failures()
        if self._contents is not None and self._dataset is not None:
            self._contents.close(inventory.files_of([*self._dataset.samples, *(self._held_out or ())]))
            self.state.close(one.id for one in self._dataset.samples)
        else:
            self.state.close()

    # ------------------------------------------------------------------ inputs

    @property
    def dataset(self) -> Dataset:
        """The samples and classes of the run."""
        if self._dataset is None:
            self._dataset = dataset_of(self.config.data)
        return self._dataset

    @property
    def held_out(self) -> tuple[Sample, ...]:
        """The samples of [validation] that have a truth mask; none where there is no such split."""
        return tuple(sample for sample in self._validation if sample.mask is not None)

    @property
    def _validation(self) -> tuple[Sample, ...]:
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
        return self._clip

    @property
    def stream(self) -> Stream:
        """The pipeline around the run's CLIP."""
        if self._stream is None:
            self._stream = Stream(self.clip, self.config.clip, self.image_workers)
        return self._stream

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
        dataset, clip, _ = self.dataset, self.clip, self._validation
        fresh = not self._settled
        super().settle()
        if not fresh or not self.leads:
            return
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
            versions=versions(),
        )

    # ------------------------------------------------------------------ the plan

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
        )
        self._encoding = encoding_of(asked)
        self._content_of = {one.id: one.content for one in asked.photographs}
        return compare(asked, inventory.there_of(self.folder, self.state, self.config, self._passing), targets, never)

    def bring(self, *targets: str, never: Iterable[str] = (), tell: Callable[[Plan], None] | None = None) -> Plan:
        """Do what the plan says, stage after stage; returns the plan.

        Args:
            tell: is given the plan before anything is done.
        """
        never = tuple(never)
        first = plan = self.plan(targets, never)
        self._check(plan)
        if tell is not None:
            tell(plan)
        self.settle()
        self._tidy(plan)
        own: dict[str, Callable[[Plan, Work], None]] = {
            "prototypes": self._make_prototypes,
            "maps": partial(self._make_maps, pseudo="masks" in plan.stages),
            "masks": partial(self._make_maps, pseudo=True),
            "network": self._make_network,
            "scores": self._make_scores,
            "network scores": self._make_network_scores,
        }
        for stage in STAGES:
            work = plan.of(stage)
            if work is None or stage == "regions":
                continue
            self.state.remember(plan.settings)
            if stage in own:
                own[stage](plan, work)
            else:
                with self.state.making(stage, work.wanted[WHOLE]):
                    self._makers[stage](self)
            self.note_failures()
            plan = self.plan(targets, never)  # photographs may have failed
        self._note_untimed(plan)
        return first

    def _note_untimed(self, plan: Plan) -> None:
        """Stages that a kill ended between their last product and the note of their time."""
        if not self.leads:
            return
        noted, usable = self.record().get("stages", {}), len(self._usable(plan))
        words = {"prototypes": "prototypes", "masks": "pseudo-masks", "network": "train"}
        words |= {"network scores": "evaluate network"} | ({} if "masks" in plan.stages else {"maps": "seeds"})
        for stage, name in words.items():
            if stage in plan.stages and stage in self.state.records and name not in noted:
                self.note_stage(name, 0.0, len(self.held_out) if stage == "network scores" else usable)

    def _check(self, plan: Plan) -> None:
        """Everything that can be wrong, before the first photograph is encoded."""
        stages = {work.stage for work in plan.work}
        if "scores" in plan.stages or self.config.data.masks:
            checks.check_truth(self.dataset.samples, self.config.data, scored="scores" in plan.stages)
        if "network scores" in stages or (stages and self.config.validation.masks):
            scored = "network scores" in plan.stages
            checks.check_truth(self._validation, self.config.validation, scored=scored)
        if stages:
            checks.check_settings(self.config, stages, self.clip, self.classes)
        maps = plan.of("maps")
        if maps is not None:
            checks.warn_of_little_room(self.folder, len(maps.wanted))

    def _tidy(self, plan: Plan) -> None:
        """Forget failures of photographs that have changed; set aside what is no longer asked for."""
        failed = set(plan.failed)
        for identity in [one for one in self.state.failed if one not in failed]:
            self.state.mend(identity)
            self.failures.pop(identity, None)
        for identity in plan.gone:
            for stage in [one for one, ids in self.state.records.items() if identity in ids]:
                for place, suffix in inventory.places_of(self.folder, stage, self.config):
                    self.set_aside(place / f"{identity}{suffix}")
                self.state.move(stage, identity, identity, back=False)
        for stage in plan.dropped:
            if stage == "network":
                self._set_network_aside()
            else:
                self.state.strike(stage)
                self.drop_evaluation(held_out=stage != "scores")
                if stage == "network scores":
                    self.set_aside(self.folder / "predictions")
        if "network" in plan.stages and plan.of("network") is None and self.has_network:
            self._refresh_card()

    def _forget(self, stage: str) -> None:
        """Forget the failures of a stage that is made again."""
        for identity in [one.id for one in self.failures.values() if one.stage == stage]:
            del self.failures[identity]

    # ------------------------------------------------------------------ streaming

    def _flow(
        self,
        words: str,
        samples: Sequence[Sample],
        work: Callable[[list[View]], Any],
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
            flow = self.stream.flow(batches, read, lambda _, views: work(views), finish)
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
        self._stop_for_environment(sample, error)
        fingerprint = f"{self._content_of[sample.id]}-{self._encoding}"
        self._passing[sample.id] = fingerprint
        self.fail(sample.id, error)
        try:
            self.view(sample)
        except VplError:
            self.state.fail(sample.id, fingerprint, str(error))

    def _stop_for_environment(self, sample: Sample, error: VplError) -> None:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                raise RunError(
                    f"there is not enough memory to read {sample.image}; give fewer --image-workers or free some, then "
                    "start the same command again: finished work is kept."
                ) from error
            if isinstance(cause, OSError) and cause.errno in _ENVIRONMENT:
                raise RunError(
                    f"{sample.image} can't be read now ({cause.strerror}); mend that, then start the same command "
                    "again: finished work is kept."
                ) from error
            if isinstance(cause, RunError):
                raise cause
            cause = cause.__cause__
        if not storage.is_url(sample.image) and not Path(sample.image).parent.is_dir():
            raise RunError(
                f"the folder {Path(sample.image).parent} has vanished; bring it back, then start the same command "
                "again: finished work is kept."
            ) from error

    # ------------------------------------------------------------------ prototypes

    def prototypes(self) -> None:
        """Text prototypes, region embeddings and vision prototypes into prototypes.safetensors (METHOD.md 0 and 3)."""
        self.bring("prototypes")

    def _make_prototypes(self, plan: Plan, work: Work) -> None:
        start, clock, busy = time.perf_counter(), Clock(), {}
        text, samples = self.text_prototypes(), self._usable(plan)
        vision, facts = text, None
        if learns(self.config):

            def survey(turn: int, table: Tensor, scale: float) -> Regions:
                found, shares = self._survey(plan, samples, turn, table, scale, text, clock)
                busy.update(shares)
                return found

            tags = [self.classes.numbers(sample.tags) for sample in samples]
            scale, settings = self.clip.logit_scale, self.config.prototypes
            lesson = learn(survey, tags, text, scale, len(self.classes), settings, clock, self.clip.device)
            self._warn_about_tags(lesson.tag_ranks)
            vision, facts = lesson.vision, self._facts(lesson)
        now = self.plan(["prototypes"]).fingerprints["prototypes"]  # photographs may have failed
        named = {
            "classes": self.classes.names,
            "background": self._background(),
            "clip": self.clip.name,
            "clip_hash": self.clip.weights_hash,
            "fingerprint": now,
        }
        with self.state.making("prototypes", now):
            if facts is None:
                (self.folder / "prototypes.json").unlink(missing_ok=True)
            else:
                write_json(self.folder / "prototypes.json", facts)
            write_tensors(self.folder / "prototypes.safetensors", {"text": text, "vision": vision}, named)
        self.note_stage("prototypes", time.perf_counter() - start, len(samples), clock.seconds(), busy)

    def _usable(self, plan: Plan) -> list[Sample]:
        """The samples that have not failed."""
        failed = set(plan.failed)
        return [sample for sample in self.dataset.samples if sample.id not in failed]

    def _background(self) -> tuple[str, ...]:
        return self.classes.background if self.config.prompts.background_words else ()

    def text_prototypes(self) -> Tensor:
        """(C+B, D) unit rows: the classes', then the background words'."""
        if self.classes.dropped:
            log.warning("background words that are classes here are not used: %s", ", ".join(self.classes.dropped))
        made = prototypes.text_prototypes(self.clip, self.classes, self.config.prompts)
        return torch.cat([made.foreground, made.background]).cpu()

    def _survey(
        self,
        plan: Plan,
        samples: Sequence[Sample],
        turn: int,
        table: Tensor,
        scale: float,
        text: Tensor,
        clock: Clock,
    ) -> tuple[Regions, dict[str, float]]:
        """Regions of all images, one file each in regions/; and how busy the threads were."""
        stage = "regions" if turn == 0 else f"regions {turn + 1}"
        ((folder, suffix),) = inventory.places_of(self.folder, stage, self.config)
        folder.mkdir(parents=True, exist_ok=True)
        count, config = len(self.classes), self.config
        there = table.to(self.clip.device), text.to(self.clip.device)
        wanted = self._regions_wanted(plan, turn, table)
        records = inventory.there_of(self.folder, self.state, config, {}).records.get(stage, {})
        missing = [one for one in samples if records.get(one.id) != wanted[one.id]]

        def work(views: list[View]) -> Regions:
            tags = [view.tags for view in views]
            with clock("encode"):
                features = encode(self.clip, views, config.clip)
            with clock("seeds"):
                cams = seed_maps(self.clip, features, tags, there[0], count, scale, config.seeds.kind)
            if config.prototypes.refined:
                with clock("refine"):
                    cams = refine_maps(features.attention, cams, config.refine)
            with clock("regions"):
                return regions(self.clip, features, views, cams, there[1], count, config.prototypes)

        def write(sample: Sample, found: Regions) -> None:
            with clock("write"), self.state.making(stage, wanted[sample.id], sample.id):
                write_regions(Path(storage.ready(folder, f"{sample.id}{suffix}")), found)

        def finish(_: Batch, portions: list[Portion]) -> list[Callable[[], None]]:
            return [
                partial(write, missing[member], found)
                for portion in portions
                for member, found in zip(portion.members, portion.result.each(), strict=True)
            ]

        busy = self._flow("regions" if turn == 0 else f"regions, round {turn + 1}", missing, work, finish, clock)
        found = [
            read_regions(folder / f"{sample.id}{suffix}", self.clip.dim, count, 1).numbered([number])
            for number, sample in enumerate(samples)
            if sample.id not in self._passing
        ]
        if not found:
            raise RunError(f"no image of {self.folder} could be used; see the list of failures and mend the first one.")
        return Regions.joined(found), busy

    def _regions_wanted(self, plan: Plan, turn: int, table: Tensor) -> dict[str, str]:
        """Photograph's id -> fingerprint of its regions; later rounds also depend on the prototypes before them."""
        if turn == 0:
            return dict(plan.regions)
        before = digest(hashlib.sha256(table.numpy().tobytes()).hexdigest())
        return {id: f"{one}{before}" for id, one in plan.regions.items()}

    def _facts(self, lesson: Lesson) -> dict:
        """The report of METHOD.md 3.5 and how V was reached, as plain data.

        Raises:
            DataError: no region is a tag's.
        """
        learned, own = lesson.learned, lesson.of_tags
        if lesson.report is None:
            raise DataError("there is no region of a tag; lower prototypes.phi or use more images.")
        modality = gap.modality(
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

    # ------------------------------------------------------------------ label maps

    def seeds(self) -> None:
        """Label maps of text, vision and refined seeds."""
        self.bring("maps")

    def labels(self) -> None:
        """Label maps of all seeds, and the pseudo-masks."""
        self.bring("masks")

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
        return inventory.map_places(self.folder, self.config, pseudo=pseudo)

    def _make_maps(self, plan: Plan, work: Work, *, pseudo: bool) -> None:
        """Label maps, and with `pseudo` the pseudo-masks of the plan in the same pass."""
        works = [each for each in (plan.of("maps"), plan.of("masks") if pseudo else None) if each is not None]
        for each in works:
            self._put_back(each)
        wanted = {each.stage: {id: f for id, f in each.wanted.items() if id not in each.put_back} for each in works}
        todo = [sample for sample in self.dataset.samples if any(sample.id in ids for ids in wanted.values())]
        start, palette = time.perf_counter(), self.classes.palette()
        labeller, folders = self.labeller(), self.map_folders(pseudo)
        outputs.check_apart(folders.values(), self._inputs())
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)

        def write(sample: Sample, view: View, draft: Draft) -> None:
            made = labeller.masks(view, draft, pseudo)
            with labeller.clock("write"):
                for stage, ids in wanted.items():
                    if sample.id in ids:
                        with self.state.making(stage, ids[sample.id], sample.id):
                            self._write_maps(stage, sample.id, made, folders, palette)

        def finish(_: Batch, portions: list[Portion]) -> list[Callable[[], None]]:
            return [
                partial(write, todo[member], view, draft)
                for portion in portions
                for member, view, draft in zip(portion.members, portion.views, portion.result, strict=True)
            ]

        words = "pseudo-masks" if pseudo else "seeds"
        busy = self._flow(words, todo, lambda views: labeller.drafts(views, pseudo), finish, labeller.clock)
        if "vision" not in folders:
            with contextlib.suppress(OSError):  # absent, or it still holds what was never noted
                (self.folder / "seeds" / "vision").rmdir()
        count = len(self._usable(plan))
        self.note_stage(words, time.perf_counter() - start, count, labeller.clock.seconds(), busy)

    def _write_maps(
        self,
        stage: str,
        id: str,
        made: Mapping[str, Any],
        folders: Mapping[str, Path],
        palette: Sequence[tuple[int, int, int]],
    ) -> None:
        """A photograph's label maps of one stage; those that the configuration no longer has go."""
        for name, folder in folders.items():
            if (name in SEED_ROWS) == (stage == "maps"):
                images.write_mask(storage.ready(folder, f"{id}.png"), made[name], palette)
        if stage == "maps" and "vision" not in folders:
            (self.folder / "seeds" / "vision" / f"{id}.png").unlink(missing_ok=True)

    @contextlib.contextmanager
    def handed_out(self) -> Iterator[list[Sample]]:
        """The samples whose label maps others make inside the block, into `map_folders`; those that are whole are noted
        when it ends. Where it was left before its end, files of the same plan count when it is begun again."""
        self.prototypes()
        plan = self.plan(["masks"])
        self.settle()
        self._tidy(plan)
        self.state.remember(plan.settings)
        if plan.of("masks") is None:
            yield []
            return
        mark = plan.fingerprints["masks"]
        if self.state.records.get("handed out", {}).get(WHOLE) != mark:
            for work in plan.work:
                for identity in work.wanted:
                    self.state.strike(work.stage, identity)
                    for place, suffix in inventory.places_of(self.folder, work.stage, self.config):
                        (place / f"{identity}{suffix}").unlink(missing_ok=True)
            with self.state.making("handed out", mark):
                pass
        self._note_whole(plan)
        left = self.plan(["masks"]).of("masks")
        try:
            yield [sample for sample in self.dataset.samples if left is not None and sample.id in left.wanted]
        finally:
            self._note_whole(plan)
        self.state.strike("handed out")
        self.note_failures()

    def _note_whole(self, plan: Plan) -> None:
        """Write down products of the plan that others made."""
        for work in plan.work:
            there = inventory.files_there(self.folder, work.stage, self.config)
            for identity, fingerprint in work.wanted.items():
                known = self.state.records.get(work.stage, {}).get(identity) == fingerprint
                if not known and identity in there:
                    with self.state.making(work.stage, fingerprint, identity):
                        pass

    def _put_back(self, work: Work) -> None:
        """Photographs' products that were set aside, in their places again."""
        for identity in work.put_back:
            for place, suffix in inventory.places_of(self.folder, work.stage, self.config):
                self.put_back(place / f"{identity}{suffix}")
            self.state.move(work.stage, identity, identity, back=True)

    # ------------------------------------------------------------------ network

    def train(self) -> None:
        """The network of METHOD.md 5 from the pseudo-masks, into network/; pseudo-masks that are missing come first."""
        if self.place.count == 1:
            self.bring("network")
            return
        together = team.Team(self.clip.device)
        plan = self.plan(["network"])
        if any(work.stage != "network" for work in plan.work):
            raise RunError(f"the pseudo-masks of {self.folder} are not up to date; run `vpl labels` first.")
        together.wait()  # every process has read the state before the first one changes it
        if self.leads:
            self.settle()
            self.state.remember(plan.settings)
            for work in plan.work:
                self._make_way(work)
        together.wait()
        for work in plan.work:
            self._make_network(plan, work)

    def _make_way(self, work: Work) -> None:
        """A network or a training of other settings goes aside; one that was set aside for these comes back."""
        fingerprint = work.wanted[WHOLE]
        if self.state.records.get("training", {}).get(WHOLE) == fingerprint:
            return
        self._set_network_aside()
        if work.put_back:
            self._put_network_back(fingerprint)
        with self.state.making("training", fingerprint):
            pass

    def _make_network(self, plan: Plan, work: Work) -> None:
        fingerprint = work.wanted[WHOLE]
        if self.place.count == 1:
            self._make_way(work)
        start = time.perf_counter()
        if not self.leads:
            self._fit(self._usable(plan))
            return
        with self.state.making("network", fingerprint):
            count = self._fit(self._usable(plan))
        self.note_stage("train", time.perf_counter() - start, count)

    def _fit(self, samples: Sequence[Sample]) -> int:
        """Train on the pseudo-masks that are there; how many."""
        folder = self.folder / "labels"
        items = [
            Item(sample.id, sample.image, folder / f"{sample.id}.png", sample.tags)
            for sample in samples
            if (folder / f"{sample.id}.png").exists()
        ]
        stored = read_prototypes(self.folder / "prototypes.safetensors", self.clip.dim)
        vision = stored["vision"].to(self.clip.device)
        records = train.fit(items, self.clip, self.classes, vision, self.config, self.folder, self.image_workers)
        for _ in self.progress(records, self.config.train.steps, "train") if self.leads else records:
            pass
        return len(items)

    def _set_network_aside(self) -> None:
        """A network, or a training that has begun, goes to replaced/ under its fingerprint."""
        folder = self.folder / card.NETWORK_FOLDER
        if not folder.exists():
            return
        finished = self.state.records.get("network", {}).get(WHOLE)
        known = finished or self.state.records.get("training", {}).get(WHOLE, "unknown")
        name = f"{folder.name}-{digest(known)[:8]}"
        self.set_aside(folder, name)
        if finished:
            self.state.move("network", WHOLE, name, back=False)
        self.state.strike("training")
        log.info("the network that was there is kept in %s/%s until vpl clean", REPLACED, name)

    def _put_network_back(self, fingerprint: str) -> None:
        name = next(name for name, one in self.state.aside["network"].items() if one == fingerprint)
        self.put_back(self.folder / card.NETWORK_FOLDER, name)
        self.state.move("network", WHOLE, name, back=True)

    @property
    def has_network(self) -> bool:
        """Whether training has finished."""
        return (self.folder / card.NETWORK_FOLDER / card.CARD_FILE).exists()

    # ------------------------------------------------------------------ evaluation

    def evaluate(self) -> dict:
        """Masks and network against the truth masks, into metrics.json (METHOD.md 6). Returns its content.

        Seeds and pseudo-masks are evaluated on the images of [data], the network on the held-out images of
        [validation], by both protocols side by side. Pseudo-masks that are missing come first; a network is not
        trained.

        Raises:
            RunError: there are no truth masks.
        """
        truths = any(sample.mask is not None for sample in self.dataset.samples)
        if not truths and not self.config.validation.masks:
            raise RunError(
                "the data have no truth masks; evaluation needs data.masks. The masks are made without them."
            )
        self.bring("scores", "network scores", never=["network"])
        return read_json(self.folder / "metrics.json")

    def _make_scores(self, plan: Plan, work: Work) -> None:
        self._forget("scores")
        truths = [sample for sample in self._usable(plan) if sample.mask is not None]
        with self.state.making("scores", work.wanted[WHOLE]):
            rows = [
                self._evaluate_folder(folder, words, truths)
                for folder, words in MAP_ROWS.items()
                if any((self.folder / folder).rglob("*.png"))
            ]
            self.note_evaluation(split_of(self.config.data), self.classes, rows)

    def _inputs(self) -> list[str]:
        """The user's folders, which nothing is ever written into."""
        return [place for data in (self.config.data, self.config.validation) for place in (data.images, data.masks)]

    def _make_network_scores(self, plan: Plan, work: Work) -> None:
        self._forget("network scores")
        start = time.perf_counter()
        predictor = predict.load(self.folder, self.clip)
        folder, palette = self.folder / "predictions", self.classes.palette()
        outputs.check_apart([folder], self._inputs())
        folder.mkdir(exist_ok=True)
        samples = self.held_out
        counted = self.progress(samples, len(samples), "evaluate network")

        def keep(sample: Sample, mask: Any) -> None:
            images.write_mask(storage.ready(folder, f"{sample.id}.png"), mask, palette)

        with self.state.making("network scores", work.wanted[WHOLE]):
            made = predict.evaluate(
                predictor, counted, keep, lambda sample, error: self.fail(sample.id, error, "network scores")
            )
            parts = ["multi-scale" if len(predictor.full.scales) > 1 else "single scale"]
            parts += [name for name, on in (("flip", predictor.full.flip), ("CRF", predictor.full.crf)) if on]
            rows = [
                {"name": "network, single scale", "folder": None} | scores_of(made.single, self.classes),
                {"name": f"network, {' + '.join(parts)}", "folder": "predictions"} | scores_of(made.full, self.classes),
            ]
            once = rows[1:] if rows[0]["name"] == rows[1]["name"] else rows  # one name, one row
            self.note_evaluation(split_of(self.config.validation), self.classes, once, held_out=True)
        kept = {sample.id for sample in samples}
        for path in folder.rglob("*.png"):
            if path.relative_to(folder).with_suffix("").as_posix() not in kept:
                self.set_aside(path)
        self.note_stage("evaluate network", time.perf_counter() - start, made.images)

    def _refresh_card(self) -> None:
        """The network's card says how it predicts: as the configuration says now."""
        path = self.folder / card.NETWORK_FOLDER / card.CARD_FILE
        own = checkpoint.finished(path.parent)
        if own.predict != self.config.predict:
            storage.write_text_atomic(path, dataclasses.replace(own, predict=self.config.predict).to_json())

    def _evaluate_folder(self, folder: str, words: str, truths: Sequence[Sample]) -> dict:
        confusion, missing = Confusion(len(self.classes) + 1), []
        for sample in self.progress(truths, len(truths), f"evaluate {words}"):
            path = self.folder / folder / f"{sample.id}.png"
            if not path.exists():
                missing.append(sample.id)
                continue
            label_map = read_map(path)
            try:
                confusion.update(read_truth(sample.mask, sample.values), label_map)
            except DataError as error:
                self.fail(sample.id, error, "scores")
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
