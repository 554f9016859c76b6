"""`vpl demo`: the whole method on drawn scenes with the embedded CLIP, nothing to download.

Three data sets of scenes (three seeds) go from tags to pseudo-masks twice, side by side: as in the paper, and as a new
run of vpl does it, which is quality standard. The table compares seeds and masks, mean and standard deviation over the
three, and the contact sheet shows the first. From the first set's pseudo-masks of either way a network is trained and
evaluated on held-out scenes; the report is of the second way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpl.config import Config, preset, quality
from vpl.edges import images, sheet
from vpl.edges.outputs import Made, check_new_or_ours
from vpl.errors import RunError
from vpl.judge import checkup
from vpl.pages import report
from vpl.presets import STANDARD
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
WAYS: dict[str, tuple[str, dict[str, object]]] = {"as in the paper": ("run", {}), "vpl": ("vpl", quality(STANDARD))}
"""What is compared -> the first part of its runs' folders, and values beside the preset's."""
SHEET_COLUMNS = {
    "image": None,
    "text seeds": ("run", "seeds/text"),
    "vision seeds": ("run", "seeds/vision"),
    "as in the paper": ("run", "labels"),
    "vpl": ("vpl", "labels"),
    "truth": TRUTH,
}
"""Column -> the first part of a run's folder, and the label maps that it shows; the truth is the data set's."""


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        pseudo: way -> the evaluation of seeds and pseudo-masks of each set.
        networks: way -> the evaluation of the first set's network on its held-out scenes.
    """

    folder: Path
    pseudo: dict[str, list[dict]]
    networks: dict[str, dict]
    sheet: Path
    report: Path

    def __str__(self) -> str:
        first, held_out = (next(iter(self.pseudo.values()))[0], next(iter(self.networks.values())))
        sets = len(next(iter(self.pseudo.values())))
        lines = [
            f"{sets} sets of {first['images']} scenes (style {STYLE}, {SIDE} px, {len(first['classes'])} classes), "
            f"split {first['split']}; mIoU in %, mean ± std over the {sets} sets",
            f"  {'':<36} " + "  ".join(f"{way:>15}" for way in WAYS),
        ]
        for place, row in enumerate(first["rows"]):
            cells = []
            for made in self.pseudo.values():
                values = [100 * one["rows"][place]["miou"] for one in made]
                cells.append(f"{np.mean(values):9.1f} ± {np.std(values, ddof=1):3.1f}")
            lines.append(f"  {row['name']:<36} " + "  ".join(cells))
        lines.append(
            f"network of the first set, {held_out['images']} held-out scenes, split {held_out['split']}; mIoU in %"
        )
        for place, row in enumerate(held_out["rows"]):
            cells = [f"{100 * one['rows'][place]['miou']:9.1f}      " for one in self.networks.values()]
            lines.append(f"  {row['name']:<36} " + "  ".join(cells).rstrip())
        lines += [
            "",
            f"made:  pseudo-masks of {sets * first['images']} scenes from tags alone, and networks that need no tags",
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
    folder = Path(folder).resolve()
    pseudo: dict[str, list[dict]] = {way: [] for way in WAYS}
    networks: dict[str, dict] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} can't be made ({error.strerror}); name another folder.") from error
    check_new_or_ours(folder)
    journal = Made(folder)
    journal.begin([SHEET])
    for seed in seeds:
        data = folder / f"scenes-{seed}"
        if data.exists() and not (data / "classes.toml").is_file():
            raise RunError(f"{data} is there and holds no scenes that vpl drew; move it away, or name another --out.")
        if not data.exists():
            counts = {"train": TRAIN_IMAGES, "val": HELD_OUT_IMAGES}
            write_tree(data, counts, seed=seed, style=STYLE, size=SIDE, layout="folder")
        for way, (name, values) in WAYS.items():
            config = config_for(data).with_values(values)
            run = Run(
                folder / f"{name}-{seed}", config, device=device, image_workers=image_workers, progress=progress
            )  # fmt: skip
            with run:
                run.labels()
                if seed == seeds[0]:
                    run.train()
                made = {one["split"]: one for one in run.evaluate()["evaluations"]}
                pseudo[way].append(made["train"])
                if seed == seeds[0]:
                    networks[way] = made["val"]
                    checkup.checkup(run)
                    page = report.report(run.folder)
        if seed == seeds[0]:
            picture = write_sheet(run, folder / SHEET)
            journal.finish([SHEET], "sheet")
    return Demo(folder, pseudo, networks, picture, page)


def write_sheet(run: Run, target: Path) -> Path:
    """The contact sheet of the first images of a set, from the runs of all ways beside `run`."""
    palette, rows, captions = run.classes.palette(), [], []
    seed = run.folder.name.rpartition("-")[2]
    for sample in run.dataset.samples[:SHEET_ROWS]:
        image = images.read_image(sample.image)
        cells = []
        for place in SHEET_COLUMNS.values():
            path = sample.mask
            if isinstance(place, tuple):
                path = run.folder.parent / f"{place[0]}-{seed}" / place[1] / f"{sample.id}.png"
            known = place is not None and path is not None and Path(path).exists()
            cells.append(sheet.overlay(image, images.read_mask(path), palette) if known and path else image)
        rows.append(cells)
        captions.append("tags: " + ", ".join(sample.tags))
    images.write_image(target, sheet.contact_sheet(list(SHEET_COLUMNS), rows, captions))
    return target
