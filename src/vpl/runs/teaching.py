"""The stage `network`: the network of METHOD.md 5 from the pseudo-masks, into network/.

A network of other settings is set aside under its fingerprint, and comes back where its settings do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from vpl.edges.datasets import Sample
from vpl.network import card, train
from vpl.network.crops import Item
from vpl.runs import review
from vpl.runs.files import read_prototypes
from vpl.runs.folder import REPLACED, log
from vpl.runs.opened import Opened
from vpl.runs.plan import WHOLE, Plan, Work, digest


def make_way(run: Opened, work: Work) -> None:
    """A network or a training of other settings goes aside; one that was set aside for these comes back."""
    fingerprint = work.wanted[WHOLE]
    if run.state.records.get("training", {}).get(WHOLE) == fingerprint:
        return
    set_aside(run)
    if work.put_back:
        _put_back(run, fingerprint)
    with run.state.making("training", fingerprint):
        pass


def make(run: Opened, plan: Plan, work: Work) -> None:
    """Train; of several processes each does its part, and the first one notes."""
    fingerprint = work.wanted[WHOLE]
    if run.place.count == 1:
        make_way(run, work)
    start = time.perf_counter()
    if not run.leads:
        _fit(run, run.usable(plan))
        return
    with run.state.making("network", fingerprint):
        count = _fit(run, run.usable(plan))
    run.note_stage("train", time.perf_counter() - start, count)


def _fit(run: Opened, samples: Sequence[Sample]) -> int:
    """Train on the pseudo-masks that are there, corrected ones in their place, rejected ones left out; how many."""
    folder, (rejected, corrected) = run.folder / "labels", review.taught(run.folder)
    masks = {sample.id: corrected.get(sample.id, folder / f"{sample.id}.png") for sample in samples}
    items = [
        Item(sample.id, sample.image, masks[sample.id], sample.tags)
        for sample in samples
        if sample.id not in rejected and masks[sample.id].exists()
    ]
    stored = read_prototypes(run.folder / "prototypes.safetensors", run.clip.dim)
    vision = stored["vision"].to(run.clip.device)
    records = train.fit(items, run.clip, run.classes, vision, run.config, run.folder, run.image_workers)
    for _ in run.progress(records, run.config.train.steps, "train") if run.leads else records:
        pass
    return len(items)


def set_aside(run: Opened) -> None:
    """A network, or a training that has begun, goes to replaced/ under its fingerprint."""
    folder = run.folder / card.NETWORK_FOLDER
    if not folder.exists():
        return
    finished = run.state.records.get("network", {}).get(WHOLE)
    known = finished or run.state.records.get("training", {}).get(WHOLE, "unknown")
    name = f"{folder.name}-{digest(known)[:8]}"
    run.set_aside(folder, name)
    if finished:
        run.state.move("network", WHOLE, name, back=False)
    run.state.strike("training")
    log.info("the network that was there is kept in %s/%s until vpl clean", REPLACED, name)


def _put_back(run: Opened, fingerprint: str) -> None:
    name = next(name for name, one in run.state.aside["network"].items() if one == fingerprint)
    run.put_back(run.folder / card.NETWORK_FOLDER, name)
    run.state.move("network", WHOLE, name, back=True)
