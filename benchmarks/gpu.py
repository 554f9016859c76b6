"""The GPU's rows of benchmarks/README.md, in about ten minutes: ViT-B/16 with random weights, 500×375, 3 tags.

    python benchmarks/gpu.py [--device cuda] [--batch 16] [--repeats 5] [--steps 30] [--photographs 16]

images/s   encode, seeds, refine, the three together, and the exact CRF of a batch, in float32 and bfloat16
steps/s    of a training with the defaults but its length, from the fourth step on, reading and encoding included
peak MB    that each takes on the device
same       share of the pixels on which device and CPU agree, float32: refined seeds, after the CRF, pseudo-masks

Without a GPU it says so and ends with status 2; with masks that agree on less than 99.9 % it ends with status 1. Prints
one number a line, then the rows; the raw numbers go to gpu.json in the results folder. `--device cpu --tiny` goes the
same way with the CLIP that the package carries, small and few: a test of the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import closing
from datetime import date
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from crf import synthetic
from stages import BACKGROUND, PRECISIONS, Machine, Models

from vpl.classes import scenes
from vpl.clip.model import FrozenClip
from vpl.config import preset
from vpl.method import masks
from vpl.method.affinities import refined
from vpl.method.labeller import Labeller
from vpl.method.seeds import seed_maps
from vpl.method.views import View, pixels_of
from vpl.network import train
from vpl.network.crops import Item
from vpl.scenes.tree import write_tree

AGREE = 0.999
"""Share of the pixels on which device and CPU must agree."""
TAGS, WARM = 3, 3
CLASSES = scenes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="of the training")
    parser.add_argument("--photographs", type=int, default=16, help="whose masks are compared with the CPU's")
    parser.add_argument("--tiny", action="store_true", help="the CLIP that vpl carries, 64×48 pixels, one repeat")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("This machine has no GPU that torch can use, so there is nothing to measure; run it where there is one.")
        raise SystemExit(2)
    size = (500, 375)
    if given.tiny:
        size, given.batch, given.repeats, given.steps, given.photographs = (64, 48), 2, 1, WARM + 2, 2
    machine = Machine(torch.device(given.device), given.batch)
    models = Models.of(machine.device).ours if not given.tiny else pocket(given.device)
    table = F.normalize(torch.randn(len(CLASSES) + BACKGROUND, models["float32"].dim), dim=1)
    views = [photograph(number, *size) for number in range(max(given.batch, given.photographs))]
    cases = [case for name in PRECISIONS for case in stages(machine, models[name], name, table, views, given.repeats)]
    found = {
        "date": date.today().isoformat(), "device": machine.name(), "torch": torch.__version__, "tiny": given.tiny,
        "batch": given.batch, "size": list(size), "tags": TAGS,
        "stages": cases,
        "training": training(machine, models["float32"], table, size, given.steps),
        "same": same(models["float32"], table, views[: given.photographs], given.device),
    }  # fmt: skip
    given.results.mkdir(exist_ok=True)
    (given.results / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(rows_of(found))
    raise SystemExit(0 if min(found["same"].values()) >= AGREE else 1)


def pocket(device: str) -> dict[str, FrozenClip]:
    return {name: FrozenClip.load("pocket", device, name) for name in PRECISIONS}


def photograph(number: int, width: int, height: int) -> View:
    tags = np.random.default_rng(number).permutation(len(CLASSES))[:TAGS].tolist()
    return View(synthetic(width, height, number), tuple(sorted(tags)), (height, width))


def stages(
    machine: Machine, clip: FrozenClip, precision: str, table: torch.Tensor, views: list[View], repeats: int
) -> list[dict]:
    """Images/s and peak of each stage on one batch."""
    config, batch = preset("paper"), views[: machine.batch]
    table, tags = table.to(machine.device), [view.tags for view in batch]
    pixels = torch.stack([pixels_of(clip, view, config.clip) for view in batch]).to(machine.device)

    def encode():
        return clip.encode(pixels, config.clip.attention_blocks)

    def seed(features):
        return seed_maps(clip, features, tags, table, len(CLASSES), clip.logit_scale)

    def spread(features, cams):
        return refined(clip, features, tags, cams, table, len(CLASSES), config.refine)

    def three():
        features = encode()
        return spread(features, seed(features))

    features = encode()
    cams = seed(features)
    scores = [
        masks.label_scores(cam, view, config.labels.background_exponent)
        for cam, view in zip(spread(features, cams), batch, strict=True)
    ]
    calls = {
        "encode": encode,
        "seeds": lambda: seed(features),
        "refine": lambda: spread(features, cams),
        "encode + seeds + refine": three,
        "CRF": lambda: masks.pseudo_masks(scores, batch, config),
    }
    found = []
    for name, call in calls.items():
        call()
        seconds = [machine.seconds(call) / len(batch) for _ in range(repeats)]
        one = {"stage": name, "precision": precision, "seconds": seconds, "peak_mb": machine.peak(call)}
        rate = 1 / statistics.median(seconds)
        print(f"{name} {precision}: {rate:.1f} images/s, peak {one['peak_mb']:.0f} MB", flush=True)
        found.append(one)
    return found


def training(machine: Machine, clip: FrozenClip, table: torch.Tensor, size: tuple[int, int], steps: int) -> dict:
    """Steps/s and peak of the decoder's training on scenes, whose drawn masks stand in for pseudo-masks."""
    config = preset("paper").with_values({"train.steps": steps})
    if size[0] < 100:
        config = config.with_values({"train.crop": 32, "train.batch": 2, "decoder.width": 16, "decoder.heads": 2})
    times: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        tree = write_tree(Path(name) / "scenes", {"train": 32}, size=max(size))
        items = []
        for line in (tree / "train.csv").read_text(encoding="utf-8").splitlines()[1:]:
            file, tags = line.split(",")
            mask = tree / "masks/train" / f"{Path(file).stem}.png"
            items.append(Item(file, tree / "images/train" / file, mask, tuple(tags.split(";"))))
        made = train.fit(items, clip, CLASSES, table.to(machine.device), config, Path(name) / "run")

        def go() -> None:
            with closing(made):  # type: ignore[type-var]
                for _ in islice(made, steps - 1):  # the last one also writes the network
                    times.append(time.perf_counter())

        peak = machine.peak(go)
    rate = (len(times) - WARM) / (times[-1] - times[WARM - 1])
    print(f"training: {rate:.2f} steps/s of {config.train.batch} crops, peak {peak:.0f} MB", flush=True)
    return {"steps_per_second": rate, "peak_mb": peak, "batch": config.train.batch, "crop": config.train.crop}


def same(clip: FrozenClip, table: torch.Tensor, views: list[View], device: str) -> dict[str, float]:
    """Share of the pixels on which the label maps of device and CPU agree, by kind of map."""
    made = []
    for place in (device, "cpu"):
        clip.prepare(place)
        labeller = Labeller(clip, table.to(place), None, len(CLASSES), preset("paper"))
        drafts = labeller.drafts(views, True)
        made.append([labeller.masks(view, draft, True) for view, draft in zip(views, drafts, strict=True)])
    found = {}
    for name in ("refined", "crf", "labels"):
        pairs = [(one[name], other[name]) for one, other in zip(*made, strict=True)]
        found[name] = sum(int((a == b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)
        print(f"same pixels as the CPU, {name}: {100 * found[name]:.3f} %", flush=True)
    return found


def rows_of(found: dict) -> str:
    """Rows for benchmarks/README.md."""
    lines = [f"{found['device']}, torch {found['torch']}, batch {found['batch']}, {found['date']}:", ""]
    lines += ["| what | float32 | bfloat16 | peak MB |", "|---|---|---|---|"]
    by = {(one["stage"], one["precision"]): one for one in found["stages"]}
    for stage in dict.fromkeys(name for name, _ in by):
        rates = [f"{1 / statistics.median(by[stage, one]['seconds']):.1f} images/s" for one in PRECISIONS]
        lines.append(f"| {stage} | {' | '.join(rates)} | {max(by[stage, one]['peak_mb'] for one in PRECISIONS):.0f} |")
    trained = found["training"]
    crops, rate = f"{trained['batch']} crops of {trained['crop']}", f"{trained['steps_per_second']:.2f} steps/s"
    lines.append(f"| training, {crops} | {rate} | | {trained['peak_mb']:.0f} |")
    lines += [f"| {name}: pixels as on the CPU | {100 * one:.3f} % | | |" for name, one in found["same"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
