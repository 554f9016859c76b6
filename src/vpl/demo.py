"""`vpl demo`: the whole method on drawn scenes with the embedded CLIP, nothing to download.

Three data sets of scenes (three seeds) go from tags to pseudo-masks; the table compares seeds from text prototypes with
seeds from vision prototypes, mean and standard deviation over the three, and the contact sheet shows the first. From
the first set's pseudo-masks a network is trained, evaluated on held-out scenes and shown in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpl.config import Config, preset
from vpl.edges import images, sheet
from vpl.edges.outputs import Made
from vpl.errors import RunError
from vpl.judge import checkup
from vpl.pages import report
from vpl.progress import Progress, silent
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree

SEEDS = (0, 1, 2)
TRAIN_IMAGES = 120
HELD_OUT_IMAGES = 60
STYLE = "demo"
SIDE = 128
SHEET, SHEET_ROWS = "contact-sheet.png", 8
TRUTH = "truth"
SHEET_COLUMNS = {
    "image": None,
    "text seeds": "seeds/text",
    "vision seeds": "seeds/vision",
    "pseudo-mask": "labels",
    "truth": TRUTH,
}
"""Column -> the run's folder of label maps that it shows; the truth is the data set's."""


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        pseudo: the evaluation of seeds and pseudo-masks of each set.
        network: the evaluation of the first set's network on its held-out scenes.
    """

    folder: Path
    pseudo: tuple[dict, ...]
    network: dict
    sheet: Path
    report: Path

    def __str__(self) -> str:
        first, held_out = self.pseudo[0], self.network
        sets = len(self.pseudo)
        lines = [
            f"{sets} sets of {first['images']} scenes (style {STYLE}, {SIDE} px, {len(first['classes'])} classes), "
            f"split {first['split']}; mIoU in %, mean ± std over the {sets} sets",
        ]
        for place, row in enumerate(first["rows"]):
            values = [100 * one["rows"][place]["miou"] for one in self.pseudo]
            lines.append(f"  {row['name']:<36} {np.mean(values):5.1f} ± {np.std(values, ddof=1):3.1f}")
        lines.append(
            f"network of the first set, {held_out['images']} held-out scenes, split {held_out['split']}; mIoU in %"
        )
        lines += [f"  {row['name']:<36} {100 * row['miou']:5.1f}" for row in held_out["rows"]]
        lines += [
            "",
            f"made:  pseudo-masks of {sets * first['images']} scenes from tags alone, and a network that needs no tags",
            f"where: {self.report} (open it in a browser), {self.sheet}",
            "next:  vpl run runs/mine --images PHOTOS --tags TAGS.csv    (file_name,tags with ; between tags)",
        ]
        return "\n".join(lines)


def config_for(data: Path) -> Config:
    """The configuration of one demo set, written by `write_tree`."""
    places = {
        f"{section}.{key}": str(data / path)
        for section, split in (("data", "train"), ("validation", "val"))
        for key, path in (("images", f"images/{split}"), ("tags", f"{split}.csv"), ("masks", f"masks/{split}"))
    }
    return preset("scenes").with_values(places)


def demo(
    folder: Path,
    *,
    device: str = "auto",
    image_workers: int = 2,
    progress: Progress = silent,
    seeds: Sequence[int] = SEEDS,
) -> Demo:
    """Draw the scenes, run the method on them and compare. A demo that was interrupted goes on.

    Raises:
        RunError: the folder can't be used.
    """
    folder, pseudo = Path(folder).resolve(), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} can't be made ({error.strerror}); name another folder.") from error
    journal = Made(folder)
    journal.begin([SHEET])
    for seed in seeds:
        data = folder / f"scenes-{seed}"
        if not data.exists():
            counts = {"train": TRAIN_IMAGES, "val": HELD_OUT_IMAGES}
            write_tree(data, counts, seed=seed, style=STYLE, size=SIDE, layout="folder")
        run = Run(
            folder / f"run-{seed}", config_for(data), device=device, image_workers=image_workers, progress=progress
        )
        with run:
            run.labels()
            if seed == seeds[0]:
                run.train()
            made = {one["split"]: one for one in run.evaluate()["evaluations"]}
            pseudo.append(made["train"])
            if seed == seeds[0]:
                network = made["val"]
                picture = write_sheet(run, folder / SHEET)
                journal.finish([SHEET], "sheet")
                checkup.checkup(run)
                page = report.report(run.folder)
    return Demo(folder, tuple(pseudo), network, picture, page)


def write_sheet(run: Run, target: Path) -> Path:
    """The contact sheet of the first images of a run."""
    palette, rows, captions = run.classes.palette(), [], []
    for sample in run.dataset.samples[:SHEET_ROWS]:
        image = images.read_image(sample.image)
        cells = []
        for place in SHEET_COLUMNS.values():
            path = sample.mask if place == TRUTH else run.folder / place / f"{sample.id}.png" if place else None
            cells.append(sheet.overlay(image, images.read_mask(path), palette) if path else image)
        rows.append(cells)
        captions.append("tags: " + ", ".join(sample.tags))
    images.write_image(target, sheet.contact_sheet(list(SHEET_COLUMNS), rows, captions))
    return target
