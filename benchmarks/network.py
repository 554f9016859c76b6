"""What a network makes of its masks: heads, losses, augmentation and schedules on drawn scenes (benchmarks/README.md).

    python benchmarks/network.py prepare --out FOLDER             scenes, masks of three makers, prototypes
    python benchmarks/network.py run RECIPE MAKER --out FOLDER [--set 0] [--value train.steps=600]
    python benchmarks/network.py table                            of every result that lies in results/network.jsonl

Masks: `paper` are a run's pseudo-masks, `committee` those of many looks (judge/committee) after the exact CRF, and
`truth` the drawn masks, which only a benchmark may teach: they show what a head could learn. All networks are measured
on held-out scenes without tags, by both protocols.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vpl.clip.model import FrozenClip
from vpl.config import Config
from vpl.demo import HELD_OUT_IMAGES, SIDE, STYLE, TRAIN_IMAGES, config_for
from vpl.edges import images
from vpl.judge import committee
from vpl.judge.bench import Bench
from vpl.method.masks import pseudo_mask
from vpl.method.metrics import Confusion
from vpl.method.views import View
from vpl.network import predict, train
from vpl.network.crops import Item
from vpl.runs.files import read_prototypes
from vpl.runs.opened import dataset_of
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree

RESULTS = Path(__file__).parent / "results" / "network.jsonl"
MAKERS = ("truth", "committee", "paper")
NEAR: dict[str, object] = {"train.scale_low": 0.75, "train.scale_high": 1.5}
WECLIP: dict[str, object] = {
    "decoder.network": "weclip", "train.loss": "balanced", "train.affinity": 0.1, "train.weight_decay": 0.01,
    "train.power": 1.0, "train.warmup": 50, "train.learning_rate": 0.002,
}  # fmt: skip
RECIPES: dict[str, dict[str, object]] = {
    "sgd": {"train.optimizer": "sgd", "train.learning_rate": 0.01},
    "scenes": {},
    "near": NEAR,
    "guided": NEAR | {"decoder.cells": 4},
    "weclip": WECLIP,
    "weclip, online": WECLIP | {"train.online": True, "train.online_labels": "seeds"},
}
"""Name -> values on top of the scenes preset. Results hold names that are not here too: what was tried and not kept."""


def prepare(out: Path, number: int) -> None:
    """Scenes, and their masks by each maker."""
    data, run = out / f"scenes-{number}", out / f"run-{number}"
    if not data.exists():
        counts = {"train": TRAIN_IMAGES, "val": HELD_OUT_IMAGES}
        write_tree(data, counts, seed=number, style=STYLE, size=SIDE, layout="folder")
    config = config_for(data)
    with Run(run, config, device="cpu", image_workers=1) as made:
        made.labels()
        clip, dataset = made.clip, made.dataset
    masks = {"paper": run / "labels", "truth": data / "masks" / "train", "committee": out / f"committee-{number}"}
    masks["committee"].mkdir(exist_ok=True)
    views = []
    for sample in dataset.samples:
        image = images.read_image(sample.image)
        tags = tuple(dataset.classes.index(tag) for tag in sample.tags)
        views.append(View(image, tags, image.shape[:2]))
    bench = Bench(clip, dataset.classes, views, workers=1)
    settled = committee.settled(bench, config).with_values({"crf.mode": "exact"})
    for sample, view, shares in zip(dataset.samples, views, committee.votes(bench, settled), strict=True):
        mask = pseudo_mask(shares, view, settled.labels, settled.crf)[1]
        images.write_mask(masks["committee"] / f"{sample.id}.png", mask, dataset.classes.palette())
    for maker, folder in masks.items():
        confusion = Confusion(len(dataset.classes) + 1)
        for sample in dataset.samples:
            confusion.update(images.read_mask(sample.mask), images.read_mask(folder / f"{sample.id}.png"))
        print(number, maker, f"{100 * confusion.miou():.1f}", flush=True)


def items_of(out: Path, config: Config, maker: str, number: int) -> list[Item]:
    """What a network learns from."""
    folders = {"paper": out / f"run-{number}" / "labels", "committee": out / f"committee-{number}"}
    found = []
    for sample in dataset_of(config.data).samples:
        mask = folders[maker] / f"{sample.id}.png" if maker in folders else Path(sample.mask)
        found.append(Item(sample.id, sample.image, mask, sample.tags))
    return found


def measure(out: Path, recipe: str, maker: str, number: int, values: dict[str, str], kept: Path | None) -> dict:
    """Train and evaluate; seconds are wall clock of the process's own threads."""
    config = config_for(out / f"scenes-{number}").with_values(RECIPES[recipe] | values)
    clip = FrozenClip.load("pocket", device="cpu", precision=config.clip.precision)
    vision = read_prototypes(out / f"run-{number}" / "prototypes.safetensors", clip.dim)["vision"]
    dataset, folder = dataset_of(config.data), kept or Path(tempfile.mkdtemp(dir=out))
    began = time.perf_counter(), time.process_time()
    items = items_of(out, config, maker, number)
    losses = [one.loss for one in train.fit(items, clip, dataset.classes, vision, config, folder, workers=1)]
    wall, busy = time.perf_counter() - began[0], time.process_time() - began[1]
    predictor = predict.load(folder, clip)
    found = predict.evaluate(predictor, dataset_of(config.validation).samples)
    if kept is None:
        shutil.rmtree(folder)
    steps = config.train.steps
    return {
        "recipe": recipe, "values": values, "maker": maker, "set": number, "steps": steps,
        "single": round(100 * found.single.miou(), 2), "full": round(100 * found.full.miou(), 2),
        "loss": round(float(np.mean(losses[-20:])), 4), "train seconds": round(wall, 1),
        "busy seconds": round(busy, 1), "threads": torch.get_num_threads(),
    }  # fmt: skip


def table() -> None:
    """Means over the sets, a row for each recipe and teacher."""
    rows: dict[tuple, list[dict]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        key = (one["recipe"], json.dumps(one["values"]), one["steps"], one["maker"])
        rows.setdefault(key, []).append(one)
    print("| recipe | changed | steps | taught by | single scale | multi-scale + flip + CRF | sets | busy seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for (recipe, values, steps, maker), found in rows.items():
        cells = []
        for name in ("single", "full"):
            numbers = [one[name] for one in found]
            spread = f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else ""
            cells.append(f"{np.mean(numbers):.1f}{spread}")
        changed = ", ".join(f"{key}={one}" for key, one in json.loads(values).items())
        seconds = np.mean([one["busy seconds"] for one in found])
        print(f"| {recipe} | {changed} | {steps} | {maker} | {' | '.join(cells)} | {len(found)} | {seconds:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "run", "table"))
    parser.add_argument("recipe", nargs="?", choices=tuple(RECIPES))
    parser.add_argument("maker", nargs="?", choices=MAKERS)
    parser.add_argument("--out", type=Path, help="folder of scenes and masks")
    parser.add_argument("--set", type=int, default=0, help="number of the set of scenes")
    parser.add_argument("--value", action="append", default=[], metavar="KEY=VALUE", help="on top of the recipe")
    parser.add_argument("--keep", type=Path, help="folder for the network")
    given = parser.parse_args()
    if given.what == "table":
        table()
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if given.what == "prepare":
        given.out.mkdir(parents=True, exist_ok=True)
        prepare(given.out.resolve(), given.set)
        return
    values = dict(one.split("=", 1) for one in given.value)
    found = measure(given.out.resolve(), given.recipe, given.maker, given.set, values, given.keep)
    line = json.dumps(found)
    print(line)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
