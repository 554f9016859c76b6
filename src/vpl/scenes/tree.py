"""Scenes as files of a data set: a folder with a CSV of tags, or VOC's layout."""

from __future__ import annotations

import csv
import glob
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vpl.classes import scenes
from vpl.config import ABLATION_STYLE, SCENE_SIDE
from vpl.edges import vocxml
from vpl.edges.storage import PARTIAL, take_name
from vpl.errors import DataError, RunError
from vpl.scenes.draw import Scene, check, draw


def write_tree(
    folder: str | Path, count: int | dict[str, int], *, seed: int = 0, style: str = ABLATION_STYLE,
    size: int = SCENE_SIDE, layout: str = "folder",
) -> Path:  # fmt: skip
    """Write scenes that have tags, as files of a data set, and return the folder.

    count: scenes of each split, such as {"train": 80, "val": 20}; a number is split 4 to 1 into these two.
    layout "folder": images/SPLIT/*.png, masks/SPLIT/*.png, SPLIT.csv (file_name,tags; `;` between tags), classes.toml.
    layout "voc": JPEGImages/*.jpg, Annotations/*.xml, SegmentationClass/*.png, ImageSets/Segmentation/SPLIT.txt,
    classes.toml.
    Scenes are drawn in order from index 0, those without tags left out, so that no scene is in two splits. The
    folder appears when it is complete.

    Raises:
        DataError: the folder exists and is not empty; an unknown layout or style, a wrong size, a count below 1.
        RunError: it can't be written.
    """
    folder = Path(folder)
    if layout not in ("folder", "voc"):
        raise DataError(f"Unknown layout {layout!r} of a scene tree. Known layouts: folder, voc. Choose one of them.")
    check(style, size)
    splits = {"train": count - count // 5, "val": count // 5} if isinstance(count, int) else dict(count)
    if not splits or min(splits.values()) < 0 or sum(splits.values()) < 1:
        raise DataError(f"A scene tree of {count!r} scenes was asked for; give a number of 1 or more for each split.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already and is not empty. Choose a new folder, or remove it first.")
    if folder.is_symlink():
        raise DataError(f"{folder} is a link; name the folder that it leads to, or a new one.")
    folder = folder.absolute()
    if folder == Path.cwd() or not folder.name:
        raise DataError(f"{folder} is where vpl works; choose a new folder in it.")
    for left_by_a_kill in folder.parent.glob(f".{glob.escape(folder.name)}-*{PARTIAL}"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}{PARTIAL}")
    try:
        partial.mkdir(parents=True)
        _fill(partial, splits, seed, style, size, layout)
        if folder.exists():
            folder.rmdir()
        take_name(partial, folder)
    except OSError as error:
        raise RunError(f"{folder} can't be written ({error.strerror or error}); mend that, then try again.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _fill(partial: Path, splits: Mapping[str, int], seed: int, style: str, size: int, layout: str) -> None:
    """All files of a tree into its folder."""
    classes = scenes()
    (partial / "classes.toml").write_text(classes.to_toml(), encoding="utf-8")
    palette = [channel for colour in classes.palette() for channel in colour]
    index = 0
    for split, wanted in splits.items():
        rows: list[tuple[str, tuple[str, ...]]] = []
        while len(rows) < wanted:
            scene = draw(seed, index, style, size)
            stem = f"{style}_{index:06d}"
            index += 1
            if scene.tags:
                _write_scene(partial, layout, split, stem, scene, palette)
                rows.append((stem, scene.tags))
        _write_split(partial, layout, split, rows)


def _write_scene(root: Path, layout: str, split: str, stem: str, scene: Scene, palette: list[int]) -> None:
    labels = np.asarray(scene.mask, np.uint8)
    mask = Image.fromarray(labels)
    mask.putpalette(palette)
    if layout == "folder":
        image_file, mask_file = root / "images" / split / f"{stem}.png", root / "masks" / split / f"{stem}.png"
    else:
        image_file, mask_file = root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClass" / f"{stem}.png"
    for file in (image_file, mask_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(image_file, quality=95)
    mask.save(mask_file)
    if layout == "voc":
        (root / "Annotations").mkdir(exist_ok=True)
        text = vocxml.annotation(stem, scene.tags, labels, scenes())
        (root / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")


def _write_split(root: Path, layout: str, split: str, rows: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    if layout == "folder":
        with (root / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("file_name", "tags"))
            writer.writerows((f"{stem}.png", ";".join(tags)) for stem, tags in rows)
    else:
        listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{stem}\n" for stem, _ in rows), encoding="utf-8")
