"""The stage `prototypes`: text prototypes, regions of every image, vision prototypes (METHOD.md 0 and 3).

regions/             one file for each image and round
prototypes.safetensors, prototypes.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vpl.edges import storage
from vpl.edges.datasets import Sample
from vpl.errors import DataError, RunError
from vpl.machine import Clock
from vpl.method import gap, prototypes
from vpl.method.affinities import refined
from vpl.method.lesson import Lesson, learn
from vpl.method.regions import BACKGROUND_REGION, Regions, regions
from vpl.method.seeds import seed_maps
from vpl.method.views import View
from vpl.runs import inventory
from vpl.runs.files import damaged, read_tensors, write_json, write_tensors
from vpl.runs.folder import log
from vpl.runs.opened import Opened
from vpl.runs.plan import WHOLE, Plan, Work, digest
from vpl.runs.stream import Batch, Portion

REGION_KEYS = ("embeddings", "class", "sample", "tag_ranks")
"""Tensors of a file in regions/."""
CHANCE_RANK = 0.6
"""Mean tag rank below which a CLIP is said not to know the photographs; guessing gives 0.5."""


def make(run: Opened, plan: Plan, work: Work) -> None:
    """Text prototypes and, where they are asked for, vision prototypes, into prototypes.safetensors."""
    start, clock, busy = time.perf_counter(), Clock(), {}
    text, samples = text_prototypes(run), [one for one in run.usable(plan) if one.tags]
    vision, facts, encoded = text.clone(), None, run.shelf.encoded
    if plan.learns:

        def survey(turn: int, table: Tensor, scale: float) -> Regions:
            found, shares = _survey(run, plan, samples, turn, table, scale, text, clock)
            busy.update(shares)
            return found

        tags = [run.classes.numbers(sample.tags) for sample in samples]
        scale, settings = run.clip.logit_scale, run.config.prototypes
        lesson = learn(survey, tags, text, scale, len(run.classes), settings, clock, run.clip.device, run.progress)
        _warn_about_tags(run, lesson.tag_ranks)
        vision, facts = lesson.vision, _facts(run, lesson)
    now = work.wanted[WHOLE]
    if plan.learns:  # photographs may have failed
        now = run.plan(["prototypes"]).fingerprints["prototypes"]
    named = {
        "classes": run.classes.names,
        "background": _background(run),
        "clip": run.clip.name,
        "clip_hash": run.clip.weights_hash,
        "fingerprint": now,
    }
    with run.state.making("prototypes", now):
        if facts is None:
            (run.folder / "prototypes.json").unlink(missing_ok=True)
        else:
            write_json(run.folder / "prototypes.json", facts)
        write_tensors(run.folder / "prototypes.safetensors", {"text": text, "vision": vision}, named)
    encoded = run.shelf.encoded - encoded
    run.note_stage("prototypes", time.perf_counter() - start, len(samples), clock.seconds(), busy, encoded)


def text_prototypes(run: Opened) -> Tensor:
    """(C+B, D) unit rows: the classes', then the background words'."""
    if run.classes.dropped:
        log.warning("background words that are classes here are not used: %s", ", ".join(run.classes.dropped))
    made = prototypes.text_prototypes(run.clip, run.classes, run.config.prompts)
    return torch.cat([made.foreground, made.background]).cpu()


def _survey(
    run: Opened,
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
    ((folder, suffix),) = inventory.places_of(run.folder, stage, run.config)
    folder.mkdir(parents=True, exist_ok=True)
    count, config = len(run.classes), run.config
    there = table.to(run.clip.device), text.to(run.clip.device)
    wanted = _regions_wanted(run, plan, turn, table)
    records = inventory.there_of(run.folder, run.state, config, {}).records.get(stage, {})
    missing = [one for one in samples if records.get(one.id) != wanted[one.id]]

    more = config.prototypes.rounds > turn + 1
    again = {one for each in (plan.of("maps"), plan.of("masks")) if each is not None for one in each.wanted}
    keep = {one.id for one in samples} if more else again

    def work(these: list[Sample], views: list[View]) -> Regions:
        tags = [view.tags for view in views]
        with clock("encode"):
            features = run.encode(these, views, keep, guided=config.prototypes.refined)
        with clock("seeds"):
            if turn == 0:
                cams = run.text_seeds(these, features, there[1], again)
            else:
                cams = seed_maps(run.clip, features, tags, there[0], count, scale, config.seeds.kind)
        if config.prototypes.refined:
            with clock("refine"):
                cams = refined(run.clip, features, tags, cams, there[1], count, config.refine)
        with clock("regions"):
            return regions(run.clip, features, views, cams, there[1], count, config.prototypes)

    def write(sample: Sample, found: Regions) -> None:
        with clock("write"), run.state.making(stage, wanted[sample.id], sample.id):
            write_regions(Path(storage.ready(folder, f"{sample.id}{suffix}")), found)

    def finish(_: Batch, portions: list[Portion]) -> list[Callable[[], None]]:
        return [
            partial(write, missing[member], found)
            for portion in portions
            for member, found in zip(portion.members, portion.result.each(), strict=True)
        ]

    busy = run.flow("regions" if turn == 0 else f"regions, round {turn + 1}", missing, work, finish, clock)
    found = [
        read_regions(folder / f"{sample.id}{suffix}", run.clip.dim, count, 1).numbered([number])
        for number, sample in enumerate(samples)
        if sample.id not in run.passing
    ]
    if not found:
        raise RunError(f"no image of {run.folder} could be used; see the list of failures and mend the first one.")
    return Regions.joined(found), busy


def _regions_wanted(run: Opened, plan: Plan, turn: int, table: Tensor) -> dict[str, str]:
    """Photograph's id -> fingerprint of its regions; later rounds also depend on the prototypes before them."""
    if turn == 0:
        return dict(plan.regions)
    before = digest(hashlib.sha256(table.numpy().tobytes()).hexdigest())
    return {id: f"{one}{before}" for id, one in plan.regions.items()}


def read_regions(path: Path, dim: int, classes: int, samples: int) -> Regions:
    """A batch's regions (N, `dim`), their class and image numbers within their bounds."""
    found = read_tensors(path)
    try:
        regions = Regions(*(found[key] for key in REGION_KEYS))
        count = len(regions.classes)
        fit = (
            regions.embeddings.shape == (count, dim)
            and regions.classes.shape == regions.images.shape == (count,)
            and regions.tag_ranks.ndim == 1
            and regions.embeddings.is_floating_point()
            and regions.tag_ranks.is_floating_point()
            and not (regions.classes.is_floating_point() or regions.images.is_floating_point())
            and bool(regions.embeddings.isfinite().all())
            and bool(((regions.classes >= BACKGROUND_REGION) & (regions.classes < classes)).all())
            and bool(((regions.images >= 0) & (regions.images < samples)).all())
        )
    except (KeyError, TypeError) as error:
        raise damaged(path, f"it lacks {error}") from error
    if not fit:
        raise damaged(path, "its regions don't belong to these images and classes")
    return regions


def write_regions(path: Path, regions: Regions) -> None:
    """Write a batch's regions; `images` are numbers into the run's list."""
    values = (regions.embeddings, regions.classes, regions.images, regions.tag_ranks)
    write_tensors(path, dict(zip(REGION_KEYS, values, strict=True)))


def _facts(run: Opened, lesson: Lesson) -> dict:
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
        run.classes.names,
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


def _warn_about_tags(run: Opened, ranks: Tensor) -> None:
    known = ranks[~ranks.isnan()]
    if not len(known):
        return
    mean = float(known.mean())
    run.note(tag_rank=mean)
    if mean < CHANCE_RANK:
        log.warning(
            "%s does not know these photographs: it ranks an image's own tags above other classes %.0f %% of the "
            "time (guessing: 50 %%), so the masks will be poor. Use real CLIP weights (--clip), see the README.",
            run.clip.name,
            100 * mean,
        )


def _background(run: Opened) -> tuple[str, ...]:
    return run.classes.background if run.config.prompts.background_words else ()
