"""The stages `scores` and `network scores`: label maps and network against the truth (METHOD.md 6), into metrics.json.

Truth masks are opened here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from vpl.edges import images, outputs, storage
from vpl.edges.datasets import Sample
from vpl.edges.truth import read_truth
from vpl.errors import DataError
from vpl.method.metrics import Confusion
from vpl.network import card, checkpoint, predict
from vpl.runs.files import read_map, scores_of
from vpl.runs.opened import Opened, split_of
from vpl.runs.plan import WHOLE, Plan, Work

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
    with run.state.making("scores", work.wanted[WHOLE]):
        rows = [
            _evaluate_folder(run, folder, words, truths)
            for folder, words in MAP_ROWS.items()
            if any((run.folder / folder).rglob("*.png"))
        ]
        run.note_evaluation(split_of(run.config.data), run.classes, rows)


def make_network(run: Opened, plan: Plan, work: Work) -> None:
    """Rows of the network by both protocols, against the truth of [validation]; its predictions are kept."""
    run.forget("network scores")
    start = time.perf_counter()
    predictor = predict.load(run.folder, run.clip)
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
            {"name": "network, single scale", "folder": None} | scores_of(made.single, run.classes),
            {"name": f"network, {' + '.join(parts)}", "folder": "predictions"} | scores_of(made.full, run.classes),
        ]
        once = rows[1:] if rows[0]["name"] == rows[1]["name"] else rows  # one name, one row
        run.note_evaluation(split_of(run.config.validation), run.classes, once, held_out=True)
    kept = {sample.id for sample in samples}
    for path in folder.rglob("*.png"):
        if path.relative_to(folder).with_suffix("").as_posix() not in kept:
            run.set_aside(path)
    run.note_stage("evaluate network", time.perf_counter() - start, made.images)


def _evaluate_folder(run: Opened, folder: str, words: str, truths: Sequence[Sample]) -> dict:
    confusion, missing = Confusion(len(run.classes) + 1), []
    for sample in run.progress(truths, len(truths), f"evaluate {words}"):
        path = run.folder / folder / f"{sample.id}.png"
        if not path.exists():
            missing.append(sample.id)
            continue
        label_map = read_map(path)
        try:
            confusion.update(read_truth(sample.mask, sample.values), label_map)
        except DataError as error:
            run.fail(sample.id, error, "scores")
            missing.append(sample.id)
    return {"name": words, "folder": folder, "missing": missing} | scores_of(confusion, run.classes)


def refresh_card(run: Opened) -> None:
    """The network's card says how it predicts: as the configuration says now."""
    path = run.folder / card.NETWORK_FOLDER / card.CARD_FILE
    own = checkpoint.finished(path.parent)
    if own.predict != run.config.predict:
        storage.write_text_atomic(path, dataclasses.replace(own, predict=run.config.predict).to_json())
