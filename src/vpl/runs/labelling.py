"""The stages `maps` and `masks`: label maps of all seeds, and pseudo-masks, in one pass over the photographs.

seeds/{text,vision,refined,crf}/*.png    labels/*.png

A photograph without tags holds background alone (`data.untagged`): its maps are 0, and nothing is encoded for them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vpl.edges import images, outputs, storage
from vpl.edges.datasets import Sample
from vpl.errors import RunError
from vpl.machine import Clock
from vpl.method.labeller import Draft, Labeller
from vpl.method.views import View
from vpl.runs import inventory
from vpl.runs.files import read_facts, read_prototypes
from vpl.runs.opened import Opened
from vpl.runs.plan import Plan, Work
from vpl.runs.stream import Batch, Portion


def labeller(run: Opened) -> Labeller:
    """What makes label maps from the run's prototypes, on the run's device.

    Raises:
        RunError: the prototypes are damaged, or come from a run of other classes or another CLIP.
    """
    path = run.folder / "prototypes.safetensors"
    stored, facts = read_prototypes(path, run.clip.dim), read_facts(path)
    if facts.get("classes") != list(run.classes.names):
        raise RunError(
            f"the prototypes in {run.folder} are of other classes than these images' tags; "
            "give both runs the same classes file (--classes)."
        )
    if facts.get("clip_hash") != run.clip.weights_hash:
        raise RunError(
            f"the prototypes in {run.folder} were made with another CLIP than {run.config.clip.model}; "
            "give both runs the same weights (--clip)."
        )
    text, vision = (stored[key].to(run.clip.device) for key in ("text", "vision"))
    kind = run.config.prototypes.kind
    return Labeller(run.clip, text, vision if kind == "vision" else None, len(run.classes), run.config, run.guide)


def map_folders(run: Opened, pseudo: bool) -> dict[str, Path]:
    """Name of each label map that `labeller` makes -> the folder that holds it."""
    return inventory.map_places(run.folder, run.config, pseudo=pseudo)


def make(run: Opened, plan: Plan, work: Work, *, pseudo: bool) -> None:
    """Label maps, and with `pseudo` the pseudo-masks of the plan in the same pass."""
    works = [each for each in (plan.of("maps"), plan.of("masks") if pseudo else None) if each is not None]
    for each in works:
        _put_back(run, each)
    wanted = {each.stage: {id: f for id, f in each.wanted.items() if id not in each.put_back} for each in works}
    todo = [sample for sample in run.dataset.samples if any(sample.id in ids for ids in wanted.values())]
    start, palette = time.perf_counter(), run.classes.palette()
    maker, folders = labeller(run), map_folders(run, pseudo)
    outputs.check_apart(folders.values(), run.inputs())
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)

    def write(sample: Sample, view: View, draft: Draft) -> None:
        keep(sample, maker.masks(view, draft, pseudo))

    def keep(sample: Sample, made: Mapping[str, Any]) -> None:
        with maker.clock("write"):
            for stage, ids in wanted.items():
                if sample.id in ids:
                    with run.state.making(stage, ids[sample.id], sample.id):
                        _write_maps(run, stage, sample.id, made, folders, palette)

    def finish(_: Batch, portions: list[Portion]) -> list[Callable[[], None]]:
        return [
            partial(write, todo[member], view, draft)
            for portion in portions
            for member, view, draft in zip(portion.members, portion.views, portion.result, strict=True)
        ]

    def drafts(these: list[Sample], views: list[View]) -> list[Draft]:
        with maker.clock("encode"):
            features = [run.encode(these, views, guided=True)]
        with maker.clock("seeds"):
            seeds = run.text_seeds(these, features[0], maker.text)
        return maker.drafts_of(features.pop(), views, pseudo, seeds)  # which lets go of them before the CRFs

    words, encoded = "pseudo-masks" if pseudo else "seeds", run.shelf.encoded
    blank(run, [sample for sample in todo if not sample.tags], list(folders), keep, maker.clock)
    todo = [sample for sample in todo if sample.tags]
    busy = run.flow(words, todo, drafts, finish, maker.clock)
    run.shelf.clear()
    if "vision" not in folders:
        with contextlib.suppress(OSError):  # absent, or it still holds what was never noted
            (run.folder / "seeds" / "vision").rmdir()
    count = len(run.usable(plan))
    run.note_stage(words, time.perf_counter() - start, count, maker.clock.seconds(), busy, run.shelf.encoded - encoded)


def blank(
    run: Opened,
    samples: Sequence[Sample],
    names: Sequence[str],
    keep: Callable[[Sample, Mapping[str, UInt8[np.ndarray, "height width"]]], None],
    clock: Clock,
) -> None:
    """Label maps of photographs that hold background alone: each is read, and none is encoded.

    Args:
        names: of the label maps; `keep` is given all of them of a photograph.
    """

    def finish(_: Batch, portions: list[Portion]) -> list[Callable[[], None]]:
        return [
            partial(keep, samples[member], dict.fromkeys(names, np.zeros(view.size, np.uint8)))
            for portion in portions
            for member, view in zip(portion.members, portion.views, strict=True)
        ]

    if samples:
        run.flow("photographs without tags", samples, lambda these, views: these, finish, clock)


def _write_maps(
    run: Opened,
    stage: str,
    id: str,
    made: Mapping[str, Any],
    folders: Mapping[str, Path],
    palette: Sequence[tuple[int, int, int]],
) -> None:
    """A photograph's label maps of one stage; those that the configuration no longer has go."""
    for name, folder in folders.items():
        if (name in inventory.SEED_MAPS) == (stage == "maps"):
            images.write_mask(storage.ready(folder, f"{id}.png"), made[name], palette)
    if stage == "maps" and "vision" not in folders:
        (run.folder / "seeds" / "vision" / f"{id}.png").unlink(missing_ok=True)


def _put_back(run: Opened, work: Work) -> None:
    """Photographs' products that were set aside, in their places again."""
    for identity in work.put_back:
        for place, suffix in inventory.places_of(run.folder, work.stage, run.config):
            run.put_back(place / f"{identity}{suffix}")
        run.state.move(work.stage, identity, identity, back=True)
