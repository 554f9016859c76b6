"""What a review of twenty scenes is worth to the network: docs/how-to/review.md.

    python benchmarks/review.py run --out FOLDER [--set 0] [--only paint]     one set: scenes, masks, three networks
    python benchmarks/review.py table [--out FOLDER]                          of these sets, kept in results/

Lists of tags are as people have them: of every fifth scene one tag is another class. The reviewer takes the twenty
scenes that the page shows first, by signs that need no truth, and no other; sees what is in them, as a person does
(here the drawn truth), and mends tags; has the masks made again; then rejects masks that are still bad, or paints
them. The network is trained anew with the same start, and measured on held-out scenes without tags. Only this reviewer
sees the truth: signs, masks and training don't.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import shutil
import time
from pathlib import Path

import numpy as np

from vpl.app.room import Room
from vpl.cli import main
from vpl.edges import images
from vpl.method.metrics import Confusion
from vpl.runs.planned import dataset_of
from vpl.runs.records import read_evaluations
from vpl.scenes.tree import write_tree

RESULTS = Path(__file__).parent / "results" / "review.json"
SCENES, HELD_OUT, SIDE, STYLE, STEPS = 60, 60, 128, "demo", 300
LOOKED, WRONG_EVERY, BAD = 20, 5, 0.6
"""Scenes that are reviewed; one in how many has a wrong tag; mIoU of a mask that a person calls bad."""
WAYS = {
    "before": "no review", "reject": "20 reviewed: tags mended, bad masks rejected",
    "paint": "20 reviewed: tags mended, bad masks painted",
}  # fmt: skip
ROWS = {"single": "network, single scale", "full": "network, multi-scale + flip + CRF"}


def spoil(tags: Path, number: int) -> int:
    """Swap one tag of every fifth scene for another class; how many."""
    rows = list(csv.DictReader(tags.open(encoding="utf-8")))
    key, rng = list(rows[0])[1], np.random.default_rng(number)
    classes = sorted({tag for row in rows for tag in row[key].replace(",", ";").split(";") if tag})
    spoiled = 0
    for row in rows[::WRONG_EVERY]:
        own = [tag for tag in row[key].replace(",", ";").split(";") if tag]
        if own:
            own[int(rng.integers(len(own)))] = str(rng.choice([one for one in classes if one not in own]))
            row[key], spoiled = ";".join(own), spoiled + 1
    with tags.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return spoiled


def quietly(*arguments: object) -> None:
    """One command of vpl's."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        status = main([str(one) for one in arguments])
    if status:
        raise SystemExit(f"vpl {' '.join(map(str, arguments))}: status {status}\n{told.getvalue()}")


def network(folder: Path) -> dict[str, float]:
    """Train, and measure on the held-out scenes, in percent."""
    quietly("train", folder, "--device", "cpu", "--image-workers", 1)
    quietly("evaluate", folder, "--device", "cpu", "--image-workers", 1)
    rows = {row["name"]: row["miou"] for one in read_evaluations(folder) if one.get("held_out") for row in one["rows"]}
    return {short: round(100 * rows[name], 2) for short, name in ROWS.items()}


def worst(room: Room) -> list[str]:
    """The scenes that the page shows first."""
    while len(room._signs) < len(room._samples):
        time.sleep(0.1)

    def bad(row: dict) -> float:
        return row["missing"] + row["ignored"] + (1 - row["rank"] if row["rank"] is not None else 0)

    return [row["id"] for row in sorted(room.listed()["rows"], key=bad, reverse=True)][:LOOKED]


def review(folder: Path, truths: dict[str, Path], paint: bool) -> dict[str, int]:
    """Twenty scenes, worst first; what was done."""
    room, done = Room(folder, "cpu"), {"tags": 0, "rejected": 0, "painted": 0, "accepted": 0}
    try:
        looked = worst(room)
        for id in looked:
            there = set(np.unique(images.read_mask(truths[id])).tolist()) - {0, 255}
            tags = [name for number, name in enumerate(room.classes.names, 1) if number in there]
            if tags and set(tags) != set(room.tags(id)):
                row = room.row(id)
                room.decide({"id": id, "decision": "", "tags": tags, "revision": row["revision"]})
                done["tags"] += 1
        room.remake()
        while room.listed()["busy"]:
            time.sleep(0.2)
        for id in looked:
            truth, mask = images.read_mask(truths[id]), images.read_mask(folder / "labels" / f"{id}.png")
            confusion = Confusion(len(room.classes) + 1)
            confusion.update(truth, mask)
            row = room.row(id)
            if confusion.miou() >= BAD:
                kind = "accepted"
                room.decide({"id": id, "decision": "accept", "tags": row["tags"], "revision": row["revision"]})
            elif paint:
                kind = "painted"
                room.paint(id, truth.tobytes(), row["revision"])
            else:
                kind = "rejected"
                room.decide({"id": id, "decision": "reject", "tags": row["tags"], "revision": row["revision"]})
            done[kind] += 1
    finally:
        room.close()
    return done


def measure(out: Path, number: int, only: str) -> None:
    """One network of a set, or all that are not there yet."""
    data, run = out / f"scenes-{number}", out / f"run-{number}"
    told = out / f"set-{number}.json"
    row: dict = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    if not row:
        write_tree(data, {"train": SCENES, "val": HELD_OUT}, seed=number, style=STYLE, size=SIDE)
        wrong = spoil(data / "train.csv", number)
        quietly(
            "labels", run, "--preset", "scenes", "--quality", "standard", "--device", "cpu", "--image-workers", 1,
            "--images", data / "images" / "train", "--tags", data / "train.csv", "--set", f"train.steps={STEPS}",
            "--set", f"validation.images={data / 'images' / 'val'}", "--set", f"validation.tags={data / 'val.csv'}",
            "--set", f"validation.masks={data / 'masks' / 'val'}",
        )  # fmt: skip
        row = {"set": number, "scenes": SCENES, "looked": LOOKED, "wrong tags": wrong, "steps": STEPS}
        told.write_text(json.dumps(row), encoding="utf-8")
    truths = {one.id: data / "masks" / "train" / f"{one.id}.png" for one in _samples(run)}
    for name in (only,) if only else WAYS:
        if name in row:
            continue
        folder = out / f"{name}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run, folder)
        done = {} if name == "before" else review(folder, truths, name == "paint")
        row[name] = network(folder) | {"done": done}
        told.write_text(json.dumps(row), encoding="utf-8")
        print(number, name, row[name], flush=True)


def _samples(run: Path) -> tuple:
    from vpl.config import Config

    return dataset_of(Config.from_toml(run / "config.toml").data).samples


def table(out: Path | None) -> str:
    """Markdown: mIoU of the network on held-out scenes, mean ± std over the sets."""
    if out:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("set-*.json"))]
        found = [row for row in found if row.keys() >= WAYS.keys()]
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = ["| | single scale | multi-scale + flip + CRF | gain, single scale |", "|---|---|---|---|"]
    for name, title in WAYS.items():
        cells = [[row[name][short] for row in rows] for short in ROWS]
        gains = [row[name]["single"] - row["before"]["single"] for row in rows]
        told = [_spread(one) for one in cells]
        gain = "" if name == "before" else _spread(gains, "+")
        lines.append(f"| {title} | {' | '.join(told)} | {gain} |")
    return "\n".join(lines)


def _spread(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation over the sets; of one set, its value."""
    std = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.1f}{std}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", type=int, default=0)
    parser.add_argument("--only", choices=WAYS, default="")
    given = parser.parse_args()
    if given.what == "table":
        print(table(given.out))
    else:
        measure(given.out, given.set, given.only)
