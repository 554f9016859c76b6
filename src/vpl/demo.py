"""`vpl demo`: the whole method on drawn scenes with the embedded CLIP, nothing to download.

Three data sets of scenes (three seeds) go from tags to pseudo-masks; the table compares seeds from text prototypes with
seeds from vision prototypes, mean and standard deviation over the three, and the contact sheet shows the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpl import images, scenes, sheet
from vpl.config import Config, preset
from vpl.run import Progress, Run, silent

SEEDS = (0, 1, 2)
TRAIN_IMAGES = 120
STYLE = "demo"
SIDE = 128
SHEET_ROWS = 8
SHEET_COLUMNS = {
    "image": None,
    "text seeds": "seeds/text",
    "vision seeds": "seeds/vision",
    "pseudo-mask": "labels",
    "truth": None,
}


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    folder: Path
    evaluations: tuple[dict, ...]
    sheet: Path

    def __str__(self) -> str:
        first = self.evaluations[0]
        count = first["images"]
        lines = [
            f"{len(SEEDS)} sets of {count} scenes (style {STYLE}, {SIDE} px, seeds {', '.join(map(str, SEEDS))}), "
            f"{len(first['classes'])} classes, split train:",
            f"  {'':<16} mIoU, mean ± std over {len(SEEDS)} sets",
        ]
        for place, row in enumerate(first["rows"]):
            values = [100 * one["rows"][place]["miou"] for one in self.evaluations]
            lines.append(f"  {row['name']:<16} {np.mean(values):5.1f} ± {np.std(values, ddof=1):3.1f}")
        lines += [
            "",
            f"made:  pseudo-masks of {len(SEEDS) * count} scenes from their tags alone",
            f"where: {self.sheet} (contact sheet), {self.folder}/run-0/labels (masks)",
            "next:  vpl run runs/mine --images PHOTOS --tags TAGS.csv    (file_name,tags with ; between tags)",
        ]
        return "\n".join(lines)


def config_for(data: Path) -> Config:
    """The configuration of one demo set, written by `scenes.write_tree`."""
    return preset("scenes").with_values(
        {
            "data.images": str(data / "images" / "train"),
            "data.tags": str(data / "train.csv"),
            "data.masks": str(data / "masks" / "train"),
        }
    )


def demo(
    folder: Path,
    *,
    device: str = "auto",
    image_workers: int = 2,
    progress: Progress = silent,
    seeds: Sequence[int] = SEEDS,
) -> Demo:
    """Draw the scenes, run the method on them and compare.

    Raises:
        RunError: the folder can't be used.
    """
    folder = Path(folder).resolve()
    evaluations = []
    for seed in seeds:
        data = folder / f"scenes-{seed}"
        if not (data / "train.csv").exists():
            scenes.write_tree(data, {"train": TRAIN_IMAGES}, seed=seed, style=STYLE, size=SIDE, layout="folder")
        run = Run(
            folder / f"run-{seed}",
            config_for(data),
            device=device,
            image_workers=image_workers,
            progress=progress,
        )
        with run:
            run.labels()
            evaluations.append(run.evaluate()["evaluations"][-1])
            if seed == seeds[0]:
                picture = write_sheet(run, folder / "contact-sheet.png")
    return Demo(folder, tuple(evaluations), picture)


def write_sheet(run: Run, target: Path) -> Path:
    """The contact sheet of the first images of a run."""
    palette, rows, captions = run.classes.palette(), [], []
    for sample in run.dataset.samples[:SHEET_ROWS]:
        image = images.read_image(sample.image)
        cells = []
        for name, place in SHEET_COLUMNS.items():
            if name == "image":
                cells.append(image)
            else:
                path = run.folder / place / f"{sample.id}.png" if place else sample.mask
                cells.append(sheet.overlay(image, images.read_mask(path), palette))
        rows.append(cells)
        captions.append("tags: " + ", ".join(sample.tags))
    images.write_image(target, sheet.contact_sheet(list(SHEET_COLUMNS), rows, captions))
    return target
