"""A training of a few seconds: four drawn images, their masks as pseudo-masks, and a tiny CLIP.

Run as a program it is one process of a launch and writes the records of its training:

    python tests/training_case.py CLIP_FOLDER DATA_FOLDER RUN_FOLDER RECORDS.json
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vpl.classes import ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import Config
from vpl.edges import images
from vpl.network import predict, train
from vpl.network.crops import Item
from vpl.network.team import place

CLASSES = ClassSet(("red", "green"), background=("grey",))
SIZES = ((40, 56), (33, 47), (64, 40), (24, 24))
VALUES = {
    "decoder.width": 16, "decoder.blocks": 1, "decoder.heads": 2, "train.steps": 6, "train.batch": 4, "train.crop": 32,
    "train.learning_rate": 0.1, "train.checkpoint_every": 2,
}  # fmt: skip


def config(**changes) -> Config:
    """The case's configuration; `train__steps=3` changes train.steps."""
    return Config().with_values(VALUES | {key.replace("__", "."): one for key, one in changes.items()})


def picture(height: int = 41, width: int = 58, seed: int = 0) -> np.ndarray:
    """Pixels without any meaning."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def with_settings(predictor: predict.Predictor, **changes) -> predict.Predictor:
    """The same network with other settings in its card."""
    card = dataclasses.replace(predictor.card, **changes)
    return predict.Predictor(card, predictor._head, predictor._clip, torch.device("cpu"))


def make_items(folder: Path) -> list[Item]:
    """Grey images with a red or green rectangle each, or both, and a band of ignored pixels."""
    generator = np.random.default_rng(0)
    items = []
    for number, (height, width) in enumerate(SIZES):
        image = generator.integers(90, 160, (height, width, 3)).astype(np.uint8)
        mask = np.zeros((height, width), np.uint8)
        tags = (("red",), ("green",), ("red", "green"), ("green",))[number]
        for tag in tags:
            label = CLASSES.index(tag) + 1
            top, left = generator.integers(0, height // 2), generator.integers(0, width // 2)
            rows, columns = slice(top, top + height // 2), slice(left, left + width // 2)
            image[rows, columns] = (220, 30, 30) if label == 1 else (30, 200, 30)
            mask[rows, columns] = label
        mask[: 2 * number] = 255
        item = Item(f"image{number}", folder / f"{number}.png", folder / f"{number}_mask.png", tags)
        Image.fromarray(image).save(item.image)
        images.write_mask(item.mask, mask, CLASSES.palette())
        items.append(item)
    return items


def prototypes(dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.nn.functional.normalize(torch.randn(3, dim, generator=generator), dim=1)


def fit(clip: FrozenClip, items, folder: Path, **changes):
    return train.fit(items, clip, CLASSES, prototypes(clip.dim), config(**changes), folder)


def numbers(records) -> list[list[float]]:
    """All that a record says but its speed."""
    return [list(dataclasses.astuple(record)[:-1]) for record in records]


def main(clip_folder: str, data: str, run: str, out: str) -> None:
    torch.set_num_threads(1)
    clip = FrozenClip.load(clip_folder, device="cpu")
    Path(data).mkdir(exist_ok=True)
    records = numbers(fit(clip, make_items(Path(data)), Path(run)))
    if place().leads:
        Path(out).write_text(json.dumps(records))


if __name__ == "__main__":
    main(*sys.argv[1:])


def finished_run(folder, clip, **changes):
    """A run folder with a network, without the stages before."""
    folder.mkdir()
    items = folder / "items"
    items.mkdir()
    steps = {"train__steps": 40, "rsc__weight": 0.0, "clip__max_side": 72} | changes
    list(fit(clip, make_items(items), folder, **steps))
    (folder / "config.toml").write_text(config(**steps).to_toml(), encoding="utf-8")
    return folder


def photo(size, seed=0) -> np.ndarray:
    """Blobs of the colours that the network knows, and noise."""
    generator = np.random.default_rng(seed)
    rough = np.array([(125, 125, 125), (220, 30, 30), (30, 200, 30)])[generator.integers(0, 3, (5, 5))]
    smooth = Image.fromarray(rough.astype(np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth) + generator.normal(0, 8, (*size, 3)), 0, 255).astype(np.uint8)
