"""How quality grows with steps where there is no GPU: what the length of a new run's training is chosen from.

    python benchmarks/steps.py --out FOLDER [--style web-photo] [--set 0] [--only adamw:120:300 ...]
    python benchmarks/steps.py --table

Networks of quality standard, taught by the pseudo-masks of quality standard on drawn scenes, with a new run's batch of
4: by optimiser, by how many scenes there are, and by steps. More than 120 scenes are those of several sets. The style
that is not said is one that may choose (docs/explanation/decisions.md). Measured on the set's 60 held-out scenes
without tags by both protocols, one thread. What lies in results/steps.jsonl is not measured
again, and a training that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from network import OFTEN, RECIPES, masks_of, scenes_of, told
from vpl.clip.model import FrozenClip
from vpl.demo import TRAIN_IMAGES
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
    *(("adamw", 120, steps) for steps in (75, 150, 300, 600, 1200)),
    *(("sgd", 120, steps) for steps in (150, 600, 1200)),
    *(("adamw", 30, steps) for steps in (75, 150, 300, 600)),
    *(("adamw", 360, steps) for steps in (150, 300, 600, 1200)),
)
"""Optimiser, scenes, steps."""
BATCH = 4


def items_of(out: Path, style: str, number: int, scenes: int) -> list[Item]:
    """So many scenes of a set, or of as many sets from this one on as it takes, with their pseudo-masks."""
    items: list[Item] = []
    for one in range(number, number - (-scenes // TRAIN_IMAGES)):
        masks = masks_of(out, "guided", "standard", style, one)
        samples = dataset_of(scenes_of(out, style, one).data).samples
        items += [Item(f"{one}-{each.id}", each.image, masks / f"{each.id}.png", each.tags) for each in samples]
    return evenly(items, scenes)


def measure(out: Path, style: str, number: int, optimizer: str, scenes: int, steps: int) -> dict:
    """mIoU of one network by both protocols, and the processor seconds of its training."""
    items, masks = items_of(out, style, number, scenes), masks_of(out, "guided", "standard", style, number)
    values = RECIPES["guided"] | OFTEN | OPTIMIZERS[optimizer] | {"train.batch": BATCH, "train.steps": steps}
    config = scenes_of(out, style, number).with_values(values)
    clip = FrozenClip.load("pocket", device="cpu", precision=config.clip.precision)
    vision = read_prototypes(masks.parent / "prototypes.safetensors", clip.dim)["vision"]
    folder = out / f"steps-{style}-{number}-{optimizer}-{scenes}-{steps}"
    whole, start = not folder.exists(), time.process_time()
    for _ in train.fit(items, clip, dataset_of(config.data).classes, vision, config, folder, workers=1):
        pass
    busy = {"busy seconds": round(time.process_time() - start, 1)} if whole else {}
    found = predict.evaluate(predict.load(folder, clip), dataset_of(config.validation).samples)
    return {
        "style": style, "set": number, "optimizer": optimizer, "scenes": scenes, "steps": steps,
        "single": round(100 * found.single.miou(), 2), "full": round(100 * found.full.miou(), 2),
        **busy,
    }  # fmt: skip


def results() -> list[dict]:
    """What is measured."""
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []


def table() -> str:
    """mIoU by style, optimiser, scenes and steps: mean ± std over the sets."""
    found: dict[tuple, list[dict]] = {}
    for one in results():
        found.setdefault((one["style"], one["optimizer"], one["scenes"], one["steps"]), []).append(one)
    rows = []
    for (style, optimizer, scenes, steps), own in sorted(found.items()):
        numbers = [told([one[name] for one in own]) for name in ("single", "full")]
        seconds = told([one["busy seconds"] for one in own if "busy seconds" in one])
        rows.append((style, optimizer, scenes, steps, f"{steps * BATCH / scenes:.3g}", *numbers, seconds, len(own)))
    head = ("style", "optimiser", "scenes", "steps", "passes", "single scale", "multi-scale + flip + CRF", "s", "sets")
    return markdown_table(rows, head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of scenes, masks and networks")
    parser.add_argument("--style", default="web-photo", help="of the scenes")
    parser.add_argument("--set", type=int, default=0, help="number of the set of scenes")
    parser.add_argument("--only", nargs="*", default=[], metavar="OPTIMISER:SCENES:STEPS", help="default: all")
    parser.add_argument("--table", action="store_true", help="of what is measured")
    given = parser.parse_args()
    if given.table:
        print(table())
        return
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    only = [(name, int(scenes), int(steps)) for name, scenes, steps in (one.split(":") for one in given.only)]
    for optimizer, scenes, steps in only or ASKED:
        asked = {"style": given.style, "set": given.set, "optimizer": optimizer, "scenes": scenes, "steps": steps}
        if not any(one.items() >= asked.items() for one in results()):
            found = json.dumps(measure(given.out.resolve(), given.style, given.set, optimizer, scenes, steps))
            print(found, flush=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(found + "\n")


if __name__ == "__main__":
    main()
