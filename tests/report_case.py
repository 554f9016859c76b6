"""A run folder whose every number is known, with names that try to break a page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from vpl.classes import ClassSet
from vpl.config import Config
from vpl.edges.images import write_mask

EVIL = "<script>window.broken=1</script>"
EVIL_FILE = "<img src=x onerror=window.broken=2>"
NAMES = ("cat", EVIL, "dog")
TRAIN = ("a10", "a9", EVIL_FILE, "a1")
VAL = ("v0", "v1")


def truth(number: int) -> np.ndarray:
    """(20, 30): background above, one class below."""
    mask = np.zeros((20, 30), np.uint8)
    mask[10:] = number % 3 + 1
    return mask


def cut(mask: np.ndarray, columns: int) -> np.ndarray:
    """The mask with its first columns made background: its class then has IoU (30 - columns) / 30."""
    made = mask.copy()
    made[:, :columns] = 0
    return made


def row(name: str, miou: float, classes: tuple[str, ...] = NAMES, confusion: list | None = None) -> dict:
    share = {"background": 0.9} | dict.fromkeys(classes, miou)
    return {"name": name, "folder": "x", "miou": miou, "pixel_accuracy": 0.75, "iou": share, "precision": share} | {
        "recall": share | {"dog": None},
        "confusion": confusion or [],
    }


def make_data(folder: Path, split: str, ids: tuple[str, ...]) -> None:
    """Images, masks and tags; image n carries class n % 3."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    lines = ["file_name,tags"]
    for number, name in enumerate(ids):
        pixels = np.full((20, 30, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        write_mask(folder / "masks" / f"{name}.png", truth(number), [(0, 0, 0)])
        lines.append(f'"{name}.png","{NAMES[number % 3]}"')
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_run(root: Path, masks: bool = True) -> Path:
    """A run folder with everything in it; `masks`: the data have truth."""
    run, palette = root / "run & co", ClassSet(NAMES).palette()
    run.mkdir(parents=True)
    classes = root / "classes.txt"
    classes.write_text("\n".join(NAMES), encoding="utf-8")
    values: dict[str, object] = {"prototypes.phi": 0.4, "seed": 3}
    for section, split, ids in (("data", "train", TRAIN), ("validation", "val", VAL)):
        folder = root / section
        make_data(folder, split, ids)
        values |= {
            f"{section}.images": str(folder / "images"),
            f"{section}.tags": str(folder / f"{split}.csv"),
            f"{section}.classes": str(classes),
        }
        if masks:
            values[f"{section}.masks"] = str(folder / "masks")
    (run / "config.toml").write_text(Config().with_values(values).to_toml(), encoding="utf-8")
    for folder, columns in (("seeds/text", 20), ("seeds/vision", 10), ("seeds/refined", 5), ("seeds/crf", 4)):
        (run / folder).mkdir(parents=True)
        for number, name in enumerate(TRAIN):
            write_mask(run / folder / f"{name}.png", cut(truth(number), columns), palette)
    (run / "labels").mkdir()
    for number, name in enumerate(TRAIN):
        made = cut(truth(number), 6 * number)
        made[0, :15] = 255
        write_mask(run / "labels" / f"{name}.png", made if name != "a1" else np.zeros((20, 30), np.uint8), palette)
    (run / "predictions").mkdir()
    for number, name in enumerate(VAL):
        write_mask(run / "predictions" / f"{name}.png", truth(number), palette)
    confusion = [[90, 10, 0, 0, 0], [20, 60, 0, 10, 10], [0, 0, 0, 0, 0], [0, 30, 0, 70, 0]]
    evaluations = [
        {
            "split": "train",
            "images": 4,
            "classes": list(NAMES),
            "rows": [row("text seeds", 0.3), row("vision seeds", 0.5), row("pseudo-masks", 0.6, confusion=confusion)],
        },
        {
            "split": "val",
            "images": 2,
            "classes": list(NAMES),
            "rows": [row("network, single scale", 0.61), row("network, multi-scale + flip + CRF", 0.634)],
        },
    ]
    label_free = {
        "tag consistency": {"value": 0.9, "meaning": "Regions are nearest to their tags.", "advice": ""},
        "agreement": {"value": 0.81, "meaning": "Seeds & flips agree.", "advice": "Raise <it>."},
        "CRF change": {"value": None, "meaning": "Unknown here.", "advice": ""},
    }
    with_truth = {
        "completeness": {"value": 0.625, "meaning": "Objects are covered.", "advice": ""},
        "co-occurrence": {"value": 0.375, "meaning": "Seeds lie on others.", "advice": "Add <words>."},
    }
    metrics = {
        "evaluations": evaluations if masks else [],
        "label_free": label_free,
        "with_truth": with_truth if masks else {},
    }
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    record = {
        "versions": {"vpl": "0.1.0", "torch": "2.13.0"},
        "device": "cpu",
        "precision": "float32",
        "clip": {"name": "pocket", "hash": "c" * 64},
        "data": {"hash": "d" * 64, "images": 4, "split": "train", "problems": ["line 7: unknown tag 'dgo'."]},
        "seed": 3,
        "tag_rank": 0.92,
        "stages": {"prototypes": {"seconds": 2.0, "images": 4}, "train": {"seconds": 192.4, "images": 40}},
        "failures": [{"id": EVIL_FILE, "reason": "the image is damaged; replace the file."}],
    }
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    rng = np.random.default_rng(0)
    tables = {name: rng.normal(size=(5, 8)).astype("f4") for name in ("text", "vision")}
    facts = {"classes": NAMES, "background": ["sky", "sea"]}
    save_file(tables, run / "prototypes.safetensors", metadata={"vpl": json.dumps(facts)})
    (run / "regions").mkdir()
    for turn in (1, 2):  # the second round replaces the first
        for batch in range(2):
            tensors = {"embeddings": rng.normal(size=(5, 8)).astype("f4"), "class": np.array([0, 1, 2, -1, 0])}
            save_file(tensors, run / "regions" / f"round{turn}-{batch:06d}.safetensors")
    learned = {"regions": 10, "kl_text": 1.5, "kl_vision": 0.25, "gap_text": 1.1, "gap_vision": 0.2}
    learned |= {"kl_before": 1.4, "kl_after": 0.3, "curve": [1.5, 0.5, 0.25], "steps": 50, "own_text": None}
    one = {"regions": 4, "distance": 1.25, "own": 0.5, "other": None}
    learned["modality"] = {
        "text": {"gap": 1.0, "separability": 0.97, "classes": {NAMES[0]: one}},
        "vision": {"gap": 0.5, "separability": None, "classes": {NAMES[0]: one | {"own": 0.75}}},
    }
    (run / "prototypes.json").write_text(json.dumps(learned), encoding="utf-8")
    (run / "network").mkdir()
    lines = ["step,loss,pull,note", "1,2.0,0.5,a", "2,1.0,nan,b", "3,0.5,0.25,c"]
    (run / "network" / "curve.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return run
