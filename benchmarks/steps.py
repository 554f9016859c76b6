"""How quality grows with steps where there is no GPU: what the length of a new run's training is chosen from.

    python benchmarks/steps.py --out FOLDER [--style web-photo] [--sets 0]
    python benchmarks/steps.py --table

Networks of quality standard, taught by the pseudo-masks of quality standard on drawn scenes of a style that chooses
(docs/explanation/decisions.md), with a new run's batch of 4: by optimiser, by passes over the scenes and by how many
scenes there are. Measured on 60 held-out scenes without tags by both protocols, one thread. What lies in
results/steps.jsonl is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from network import GUIDED, masks_of, scenes_of, told
from vpl.clip.model import FrozenClip
from vpl.edges.templates import markdown_table
from vpl.network import predict, train
from vpl.network.crops import Item
from vpl.runs.files import read_prototypes
from vpl.runs.planned import dataset_of
from vpl.sampling import evenly

RESULTS = Path(__file__).parent / "results" / "steps.jsonl"
OPTIMIZERS: dict[str, dict[str, object]] = {
    "sgd": {"train.optimizer": "sgd", "train.learning_rate": 0.01, "train.weight_decay": 1e-4},
    "adamw": {"train.optimizer": "adamw", "train.learning_rate": 0.002, "train.weight_decay": 0.01},
}
ASKED = (
    *(("adamw", 120, passes) for passes in (5, 10, 20, 40)),
    *(("adamw", 30, passes) for passes in (20, 80)),
    *(("sgd", 120, passes) for passes in (20, 40)),
)
"""Optimiser, scenes, passes over them."""
BATCH = 4


def measure(out: Path, style: str, number: int, optimizer: str, scenes: int, passes: int) -> dict:
    """mIoU of one network by both protocols, and the processor seconds of its training."""
    masks, steps = masks_of(out, "guided", "standard", style, number), max(1, scenes * passes // BATCH)
    values = GUIDED | OPTIMIZERS[optimizer] | {"train.batch": BATCH, "train.steps": steps}
    config = scenes_of(out, style, number).with_values(values)
    clip = FrozenClip.load("pocket", device="cpu", precision=config.clip.precision)
    vision, dataset = (
        read_prototypes(masks.parent / "prototypes.safetensors", clip.dim)["vision"],
        dataset_of(config.data),
    )
    items = [Item(one.id, one.image, masks / f"{one.id}.png", one.tags) for one in evenly(dataset.samples, scenes)]
    folder, start = out / f"steps-{style}-{number}-{optimizer}-{scenes}-{passes}", time.process_time()
    for _ in train.fit(items, clip, dataset.classes, vision, config, folder, workers=1):
        pass
    busy = time.process_time() - start
    found = predict.evaluate(predict.load(folder, clip), dataset_of(config.validation).samples)
    return {
        "style": style, "set": number, "optimizer": optimizer, "scenes": scenes, "passes": passes, "steps": steps,
        "single": round(100 * found.single.miou(), 2), "full": round(100 * found.full.miou(), 2),
        "busy seconds": round(busy, 1),
    }  # fmt: skip


def results() -> list[dict]:
    """What is measured."""
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []


def table() -> str:
    """mIoU by optimiser, scenes and passes: mean over styles and sets."""
    rows = []
    for optimizer, scenes, passes in ASKED:
        own = [
            one for one in results() if (one["optimizer"], one["scenes"], one["passes"]) == (optimizer, scenes, passes)
        ]
        if own:
            numbers = [told([one[name] for one in own]) for name in ("single", "full")]
            seconds = f"{np.mean([one['busy seconds'] for one in own]):.0f}"
            rows.append((optimizer, scenes, passes, own[0]["steps"], *numbers, seconds, len(own)))
    head = ("optimiser", "scenes", "passes", "steps", "single scale", "multi-scale + flip + CRF", "seconds", "sets")
    return markdown_table(rows, head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of scenes, masks and networks")
    parser.add_argument("--style", default="web-photo", help="of the scenes")
    parser.add_argument("--sets", type=int, nargs="*", default=[0], help="numbers of the sets of scenes")
    parser.add_argument("--table", action="store_true", help="of what is measured")
    given = parser.parse_args()
    if given.table:
        print(table())
        return
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    for number in given.sets:
        for optimizer, scenes, passes in ASKED:
            asked = {"style": given.style, "set": number, "optimizer": optimizer, "scenes": scenes, "passes": passes}
            if not any(one.items() >= asked.items() for one in results()):
                found = json.dumps(measure(given.out.resolve(), given.style, number, optimizer, scenes, passes))
                print(found, flush=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(found + "\n")


if __name__ == "__main__":
    main()
