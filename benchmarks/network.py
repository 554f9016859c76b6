"""What a network makes of its masks: teachers, heads, losses, augmentation on drawn scenes (benchmarks/README.md).

    python benchmarks/network.py run RECIPE MAKER --out FOLDER [--style demo] [--sets 0 1 2] [--value KEY=VALUE]
    python benchmarks/network.py table                            of every result that lies in results/network.jsonl

Makers of masks: `paper`, `standard` and `best` are a run's pseudo-masks; `again` those that the recipe's network,
taught by `standard`, predicts for its own training scenes by the second protocol, restricted to their tags (a second
round); `truth` the drawn masks, which only a benchmark may teach: they show what a head could learn; `right` what
of standard's masks is right, all else 255, which shows what wrong pixels cost. Values of `labels` shape the masks.
Scenes, masks and networks are made where they are not there yet, a training that was killed goes on, and what is
measured already is kept. All networks are measured on held-out scenes without tags, by both protocols. Rows of results
without a style are of demo scenes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from vpl.classes import IGNORE
from vpl.clip.model import FrozenClip
from vpl.config import Config, quality
from vpl.demo import HELD_OUT_IMAGES, SIDE, STYLE, TRAIN_IMAGES, config_for
from vpl.edges import images
from vpl.method.masks import pseudo_mask
from vpl.method.metrics import Confusion
from vpl.method.views import View
from vpl.network import predict, train
from vpl.network.crops import Item
from vpl.runs.files import read_prototypes
from vpl.runs.planned import dataset_of
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree

RESULTS = Path(__file__).parent / "results" / "network.jsonl"
QUALITIES: dict[str, dict[str, object]] = {"paper": {}, "standard": quality("standard"), "best": quality("best")}
AGAIN, RIGHT = "again", "right"
MAKERS = ("truth", *QUALITIES, AGAIN, RIGHT)
OFTEN = {"train.checkpoint_every": 50}
BALANCED = {key: one for key, one in quality("standard").items() if key.startswith(("decoder.", "train."))}
NEAR: dict[str, object] = {"train.scale_low": 0.75, "train.scale_high": 1.5}
WECLIP: dict[str, object] = {
    "decoder.network": "weclip", "train.loss": "balanced", "train.affinity": 0.1, "train.weight_decay": 0.01,
    "train.power": 1.0, "train.warmup": 50, "train.learning_rate": 0.002,
}  # fmt: skip
RECIPES: dict[str, dict[str, object]] = {
    "sgd": {"train.optimizer": "sgd", "train.learning_rate": 0.01},
    "scenes": {},
    "near": NEAR,
    "guided": BALANCED | {"train.loss": "ce"},
    "balanced": BALANCED,
    "weclip": WECLIP,
    "weclip, online": WECLIP | {"train.online": True, "train.online_labels": "seeds"},
}
"""Name -> values on top of the scenes preset; `balanced` are those of quality standard. Results hold names that are not
here, too: what was tried and not kept."""


def scenes_of(out: Path, style: str, number: int) -> Config:
    """The configuration of a set of scenes, drawn where it is not there."""
    data = out / f"scenes-{style}-{number}"
    if not data.exists():
        counts = {"train": TRAIN_IMAGES, "val": HELD_OUT_IMAGES}
        write_tree(data, counts, seed=number, style=style, size=SIDE, layout="folder")
    return config_for(data)


def masks_of(out: Path, recipe: str, maker: str, style: str, number: int, values: dict[str, str] | None = None) -> Path:
    """The folder of a maker's masks, made where it is not there; of a run it has all that the run made."""
    config = scenes_of(out, style, number)
    drawn = out / f"scenes-{style}-{number}" / "masks" / "train"
    if maker == "truth":
        return drawn
    if maker in QUALITIES:
        name = "-".join((maker, *(f"{key}={one}" for key, one in (values or {}).items()), style, str(number)))
        with Run(out / name, config.with_values(QUALITIES[maker] | (values or {})), device="cpu") as run:
            run.labels()
        return run.folder / "labels"
    if maker == RIGHT:
        made, folder = masks_of(out, recipe, "standard", style, number, values), out / f"{RIGHT}-{style}-{number}"
        folder.mkdir(exist_ok=True)
        palette = dataset_of(config.data).classes.palette()
        for path in made.glob("*.png"):
            mask, truth = images.read_mask(path), images.read_mask(drawn / path.name)
            images.write_mask(folder / path.name, np.where(mask == truth, mask, IGNORE), palette)
        return folder
    folder = out / f"{recipe}-{AGAIN}-{style}-{number}"
    folder.mkdir(exist_ok=True)
    dataset, taught = dataset_of(config.data), out / f"network-{recipe}-standard-{style}-{number}"
    predictor = predict.load(taught, FrozenClip.load("pocket", device="cpu", precision=config.clip.precision))
    protocol = predict.Protocol(predictor.full.scales, predictor.full.flip)
    for sample in dataset.samples:
        image = images.read_image(sample.image)
        view = View(image, tuple(dataset.classes.index(tag) for tag in sample.tags), image.shape[:2])
        shares = predictor.answer(image, protocol).shares[[0, *(tag + 1 for tag in view.tags)]]
        mask = pseudo_mask(shares / shares.sum(dim=0), view, config)[1]
        images.write_mask(folder / f"{sample.id}.png", mask, dataset.classes.palette())
    return folder


def measure(out: Path, recipe: str, maker: str, style: str, number: int, values: dict[str, str]) -> dict:
    """Train and evaluate; processor seconds of a training that ran through."""
    labels = {key: one for key, one in values.items() if key.startswith("labels.")}
    masks = masks_of(out, recipe, maker, style, number, labels)
    prototypes = masks_of(out, recipe, "standard", style, number).parent / "prototypes.safetensors"
    config = scenes_of(out, style, number).with_values(RECIPES[recipe] | OFTEN | values)
    clip = FrozenClip.load("pocket", device="cpu", precision=config.clip.precision)
    vision, dataset = read_prototypes(prototypes, clip.dim)["vision"], dataset_of(config.data)
    name = "-".join((recipe, *(f"{key}={one}" for key, one in values.items()), maker, style, str(number)))
    folder, confusion, items = out / f"network-{name}", Confusion(len(dataset.classes) + 1), []
    for sample in dataset.samples:
        items.append(Item(sample.id, sample.image, masks / f"{sample.id}.png", sample.tags))
        confusion.update(images.read_mask(str(sample.mask)), images.read_mask(items[-1].mask))
    whole, start = not folder.exists(), time.process_time()
    losses = [one.loss for one in train.fit(items, clip, dataset.classes, vision, config, folder, workers=1)]
    busy = {"busy seconds": round(time.process_time() - start, 1)} if whole else {}
    found = predict.evaluate(predict.load(folder, clip), dataset_of(config.validation).samples)
    return {
        "recipe": recipe, "values": values, "maker": maker, "style": style, "set": number,
        "steps": config.train.steps, "masks": round(100 * confusion.miou(), 2),
        "single": round(100 * found.single.miou(), 2), "full": round(100 * found.full.miou(), 2),
        **({"loss": round(float(np.mean(losses[-20:])), 4)} if losses else {}), **busy,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def results() -> list[dict]:
    """What is measured."""
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def told(numbers: list[float]) -> str:
    """Mean ± std over the sets; nothing of nothing."""
    if not numbers:
        return ""
    return f"{np.mean(numbers):.1f}" + (f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else "")


def table() -> str:
    """A row for each recipe, style and teacher: mean ± std over the sets, and set by set the share of what the network
    has that the truth taught."""
    rows: dict[tuple, dict[int, dict]] = {}
    for one in results():
        key = (one["recipe"], json.dumps(one["values"]), one["steps"], one.get("style", STYLE), one["maker"])
        rows.setdefault(key, {})[one["set"]] = one
    lines = [
        "| recipe | changed | steps | style | taught by | masks | single scale | of truth's, % | "
        "multi-scale + flip + CRF | of truth's, % | sets | busy seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (recipe, values, steps, style, maker), found in rows.items():
        truth = rows.get((recipe, values, steps, style, "truth"), {}) if maker != "truth" else {}
        cells = [told([one["masks"] for one in found.values() if "masks" in one])]
        for name in ("single", "full"):
            cells.append(told([one[name] for one in found.values()]))
            cells.append(told([100 * one[name] / truth[place][name] for place, one in found.items() if place in truth]))
        changed = ", ".join(f"{key}={one}" for key, one in json.loads(values).items())
        cells += [str(len(found)), told([one["busy seconds"] for one in found.values() if "busy seconds" in one])]
        lines.append(f"| {recipe} | {changed} | {steps} | {style} | {maker} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("recipe", nargs="?", choices=tuple(RECIPES))
    parser.add_argument("maker", nargs="?", choices=MAKERS)
    parser.add_argument("--out", type=Path, help="folder of scenes, masks and networks")
    parser.add_argument("--style", default=STYLE, help="of the scenes")
    parser.add_argument("--sets", type=int, nargs="*", default=[0], help="numbers of the sets of scenes")
    parser.add_argument("--value", action="append", default=[], metavar="KEY=VALUE", help="on top of the recipe")
    given = parser.parse_args()
    if given.what == "table":
        print(table())
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    given.out.mkdir(parents=True, exist_ok=True)
    values = dict(one.split("=", 1) for one in given.value)
    asked = {"recipe": given.recipe, "maker": given.maker, "style": given.style, "values": values}
    for number in given.sets:
        if any(one.items() >= (asked | {"set": number}).items() for one in results() if "masks" in one):
            continue
        found = json.dumps(measure(given.out.resolve(), given.recipe, given.maker, given.style, number, values))
        print(found, flush=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(found + "\n")


if __name__ == "__main__":
    main()
