"""The stages `scores` and `network scores`: label maps and network against the truth (METHOD.md 6), into metrics.json.

Truth masks are opened here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from vpl.edges import images, outputs, storage
from vpl.edges.datasets import Sample
from vpl.edges.truth import read_truth
from vpl.errors import DataError
from vpl.method.belonging import Counting
from vpl.method.metrics import Confusion
from vpl.network import card, checkpoint, predict
from vpl.runs.files import read_map, scores_of
from vpl.runs.opened import Opened
from vpl.runs.plan import WHOLE, Plan, Work
from vpl.runs.planned import split_of

MAP_ROWS = {
    "seeds/text": "text seeds",
    "seeds/vision": "vision seeds",
    "seeds/refined": "refined seeds",
    "seeds/crf": "refined + CRF",
    "labels": "pseudo-masks",
}
"""Folder of label maps -> its name in tables. Pseudo-masks are counted with their ignored pixels as errors."""


def make(run: Opened, plan: Plan, work: Work) -> None:
    """Rows of every kind of label map that is there, against the truth of [data]."""
    run.forget("scores")
    truths = [sample for sample in run.usable(plan) if sample.mask is not None]
    of = {name: plan.fingerprints["maps" if name.startswith("seeds/") and name != "seeds/crf" else "masks"]
          for name in MAP_ROWS}  # fmt: skip
    with run.state.making("scores", work.wanted[WHOLE]):
        folders = [name for name in MAP_ROWS if any((run.folder / name).rglob("*.png"))]
        tallies = {name: _Tally(Confusion(len(run.classes) + 1)) for name in folders}
        counting = Counting(run.classes.names)
        for sample in run.progress(truths, len(truths), "evaluate"):
            truth = _truth(run, sample)
            if truth is not None:
                counting.add(truth, run.classes.numbers(sample.tags))
            for name, tally in tallies.items():
                tally.add(run, sample, truth, run.folder / name / f"{sample.id}.png")
        belonging = counting.result()
        if not belonging.together:
            run.drop_evaluation(held_out=False)
            raise DataError(belonging.refusal(run.config.data.masks or run.config.data.images))
        failed = [one for one in run.failures.values() if one.stage == "scores"]
        if failed and not any(tally.confusion.matrix.any() for tally in tallies.values()):
            raise DataError(
                f"nothing could be evaluated: {len(failed)} of {len(truths)} truth masks can't be used; the first, of "
                f"{failed[0].id}: {failed[0].reason}"
            )
        rows = [
            {"name": MAP_ROWS[name], "folder": name, "of": of[name], "missing": tally.missing}
            | scores_of(tally.confusion, run.classes)
            for name, tally in tallies.items()
        ]
        facts = {"fingerprint": work.wanted[WHOLE], "tags": belonging.counts()}
        run.note_evaluation(split_of(run.config.data), run.classes, rows, facts)
    if without := len(run.dataset.samples) - run.dataset.masks:
        run.say(f"{without} of {len(run.dataset.samples)} photographs have no truth mask and are in no score")
    run.say(f"truth: {belonging.told()}", f"truth masks are read as {belonging.numbers()}")


@dataclasses.dataclass
class _Tally:
    """The confusion of one kind of label map, and the photographs that are not in it."""

    confusion: Confusion
    missing: list[str] = dataclasses.field(default_factory=list)

    def add(self, run: Opened, sample: Sample, truth: np.ndarray | None, path: Path) -> None:
        if truth is None or not path.exists():
            self.missing.append(sample.id)
            return
        label_map = read_map(path)
        try:
            self.confusion.update(truth, label_map)
        except DataError as error:
            run.fail(sample.id, error, "scores")
            self.missing.append(sample.id)


def _truth(run: Opened, sample: Sample) -> np.ndarray | None:
    try:
        return None if sample.mask is None else read_truth(sample.mask, sample.values)
    except DataError as error:
        run.fail(sample.id, error, "scores")
        return None


def make_network(run: Opened, plan: Plan, work: Work) -> None:
    """Rows of the network by both protocols, against the truth of [validation]; its predictions are kept."""
    run.forget("network scores")
    start = time.perf_counter()
    predictor = predict.load(run.folder, run.clip)
    of = run.state.records["network"][WHOLE]
    folder, palette = run.folder / "predictions", run.classes.palette()
    outputs.check_apart([folder], run.inputs())
    folder.mkdir(exist_ok=True)
    samples = run.held_out
    counted = run.progress(samples, len(samples), "evaluate network")

    def keep(sample: Sample, mask: Any) -> None:
        images.write_mask(storage.ready(folder, f"{sample.id}.png"), mask, palette)

    with run.state.making("network scores", work.wanted[WHOLE]):
        made = predict.evaluate(
            predictor, counted, keep, lambda sample, error: run.fail(sample.id, error, "network scores")
        )
        parts = ["multi-scale" if len(predictor.full.scales) > 1 else "single scale"]
        parts += [name for name, on in (("flip", predictor.full.flip), ("CRF", predictor.full.crf)) if on]
        rows = [
            {"name": "network, single scale", "folder": None, "of": of} | scores_of(made.single, run.classes),
            {"name": f"network, {' + '.join(parts)}", "folder": "predictions", "of": of}
            | scores_of(made.full, run.classes),
        ]
        once = rows[1:] if rows[0]["name"] == rows[1]["name"] else rows  # one name, one row
        facts = {"fingerprint": work.wanted[WHOLE], "tags": made.belonging.counts()}
        run.note_evaluation(split_of(run.config.validation), run.classes, once, facts, held_out=True)
    run.say(f"held-out truth: {made.belonging.told()}")
    kept = {sample.id for sample in samples}
    for path in folder.rglob("*.png"):
        if path.relative_to(folder).with_suffix("").as_posix() not in kept:
            run.set_aside(path)
    run.note_stage("evaluate network", time.perf_counter() - start, made.images)


def refresh_card(run: Opened) -> None:
    """The network's card says how it predicts: as the configuration says now."""
    path = run.folder / card.NETWORK_FOLDER / card.CARD_FILE
    own = checkpoint.finished(path.parent)
    if own.predict != run.config.predict:
        storage.write_text_atomic(path, dataclasses.replace(own, predict=run.config.predict).to_json())
