"""A run on its way out: pseudo-masks in the layouts of other tools, the network for other programs (`WAYS`).

    export(RUN, "voc" | "coco" | "cvat" | "yolo")    images and pseudo-masks
    export(RUN, "onnx" | "hf")                       the network, its CLIP included

The output is one folder. It is written under another name and renamed when it is whole; what is exported again takes
the old one's place, and a folder with anything else in it is left alone. `vpl-export.json` in it says what it is.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vpl import __version__
from vpl.classes import ClassSet
from vpl.config import Config
from vpl.edges import locks, outputs, storage
from vpl.edges.outputs import Made
from vpl.errors import ConfigError, DataError, RunError
from vpl.exports import WAYS
from vpl.exports.labelled import Writer, local, place_of, read_labelled
from vpl.network import predict
from vpl.network.card import Card
from vpl.network.student import STUDENT_PREFIX
from vpl.progress import Progress, silent
from vpl.runs.files import read_facts
from vpl.runs.folder import Failure
from vpl.runs.opened import dataset_of
from vpl.runs.records import read_evaluations

MARK = "vpl-export.json"
UNFINISHED, REPLACED = ".vpl-export", ".vpl-export-old"
"""Ends of names beside an output folder while it is written. What a killed process left there is swept."""


@dataclass(frozen=True)
class Exported:
    """The folder that was written, how many images it holds, and what was left out and why."""

    folder: Path
    images: int
    failures: tuple[Failure, ...]


def export(
    run: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    clip: str | Path | None = None,
    progress: Progress = silent,
) -> Exported:
    """Write a run's pseudo-masks or network for another tool.

    Args:
        run: a run folder.
        to: one of `WAYS`.
        out: the folder to write; default: `RUN/export/TO`. It is replaced when it holds an earlier export of the kind.
        clip: where the CLIP of the network lies now, if elsewhere (onnx, hf).
        progress: shows progress, for images.

    Raises:
        ConfigError: an unknown `to`.
        RunError: no run, nothing to export in it, or the output folder holds other things.
        ModelError: the network or its CLIP can't be used, or a package is missing.
    """
    if to not in WAYS:
        raise ConfigError(f"can't export to {to!r}; expected one of {', '.join(WAYS)}.")
    run = Path(run)
    folder = (Path(out) if out is not None else run / "export" / to).absolute()
    if not (run / "config.toml").exists():
        raise RunError(f"{run} is no run folder (there is no config.toml); expected one that vpl run made.")
    _check_free(folder, to)
    way = importlib.import_module(f"vpl.exports.{to}")
    if WAYS[to] == "masks":
        return _written(folder, to, lambda partial: _masks(run, to, way.Writer, partial, progress))
    return _written(folder, to, lambda partial: _network(run, way.write, partial, clip))


def _check_free(folder: Path, to: str) -> None:
    if folder == Path.cwd() or not folder.name or folder.name == "..":
        raise RunError(f"{folder} is where vpl works and can't be replaced; name a new folder in it with --out.")
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise RunError(f"{folder} is no folder; name another with --out.")
    if not any(folder.iterdir()):
        return
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))["to"]
    except (OSError, ValueError, TypeError, KeyError):
        raise RunError(
            f"{folder} holds files that vpl export did not write; name an empty or new folder with --out."
        ) from None
    if found != to:
        raise RunError(f"{folder} holds an export to {found}; name another folder for {to} with --out.")
    strangers = sorted(_names(folder) - set(Made(folder).known) - {MARK, outputs.NAME})
    if strangers:
        raise RunError(
            f"{folder} is replaced when it is exported anew, and holds a file that vpl export did not write "
            f"({strangers[0]}); move it away, or name another folder with --out."
        )


def _names(folder: Path) -> set[str]:
    """The files below a folder, by their paths in it."""
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*") if not one.is_dir() or one.is_symlink()}


def _written(folder: Path, to: str, fill: Callable[[Path], tuple[int, tuple[Failure, ...]]]) -> Exported:
    """Fill a folder beside the wanted one, which one process alone has, then let it take the name."""
    partial, old = (folder.with_name(f".{folder.name}{kind}") for kind in (UNFINISHED, REPLACED))
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} can't be made ({error.strerror}); name another folder with --out.") from error
    lock = locks.claim(partial)
    try:
        _empty(partial)  # left by a kill
        _put_right(folder, old)
        count, failures = fill(partial)
        mark = {"to": to, "vpl": __version__, "images": count, "skipped": {one.id: one.reason for one in failures}}
        storage.write_text_atomic(partial / MARK, json.dumps(mark, indent=1, ensure_ascii=False) + "\n")
        Made(partial).finish(sorted(_names(partial) - {locks.NAME}), to)
        _check_free(folder, to)  # another process may have written meanwhile
        if folder.exists():
            folder.rename(old)
        if os.name == "nt":  # a folder with an open file can't be renamed there
            lock.release()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        _put_right(folder, old)
        raise
    finally:
        lock.release()
    (folder / locks.NAME).unlink(missing_ok=True)
    _put_right(folder, old)
    return Exported(folder, count, failures)


def _put_right(folder: Path, old: Path) -> None:
    """What was there before an export that did not end takes its name again; else it goes."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _empty(folder: Path) -> None:
    for one in folder.iterdir():
        if one.name == locks.NAME:
            continue
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one)
        else:
            one.unlink()


def _masks(
    run: Path, to: str, kind: Callable[[Path, ClassSet], Writer], folder: Path, progress: Progress
) -> tuple[int, tuple[Failure, ...]]:
    """Every image that has a pseudo-mask."""
    labels = run / "labels"
    if not labels.is_dir():
        raise RunError(f"{run} holds no pseudo-masks yet; run vpl labels first.")
    config = Config.from_toml(run / "config.toml")
    dataset = dataset_of(config.data)
    classes = _classes_of(run, dataset.classes)
    writer = kind(folder, classes)
    failures = [Failure(*problem.partition(": ")[::2]) for problem in dataset.problems]
    above, count = storage.place_of(config.data.images), 0
    if config.data.format == "voc" and isinstance(above, Path) and (above / "JPEGImages").is_dir():
        above = above / "JPEGImages"
    for sample in progress(dataset.samples, len(dataset.samples), f"export to {to}"):
        try:
            mask = labels / f"{sample.id}.png"
            with local(sample.image) as source:
                place = place_of(sample.image, above)
                writer.add(read_labelled(sample.id, source, place, sample.tags, mask, classes))
            count += 1
        except DataError as error:
            failures.append(Failure(sample.id, str(error)))
    writer.close()
    if not count:
        first = f" {failures[0].id}: {failures[0].reason}" if failures else ""
        raise RunError(f"none of the images of {run} could be exported.{first}")
    return count, tuple(failures)


def _network(
    run: Path, write: Callable[..., None], folder: Path, clip: str | Path | None
) -> tuple[int, tuple[Failure, ...]]:
    """The trained network with its CLIP."""
    predictor = predict.load(run, clip, "cpu")
    card = _without_paths(predictor.card)
    write(folder, card, *predictor.parts, read_evaluations(run))
    return 0, ()


def _without_paths(card: Card) -> Card:
    """The card without the folders of this machine: an export may be published."""

    def shown(name: str) -> str:
        prefix = STUDENT_PREFIX if name.startswith(STUDENT_PREFIX) else ""
        path = Path(name.removeprefix(prefix))
        return prefix + path.name if path.is_absolute() or path.exists() else name

    network = shown(card.decoder.network)
    return dataclasses.replace(
        card,
        clip_name=shown(card.clip_name),
        decoder=dataclasses.replace(card.decoder, network=network),
        training=card.training | {"decoder.network": network},
        student=card.student and {key: one for key, one in card.student.items() if key != "_name_or_path"},
    )


def _classes_of(run: Path, found: ClassSet) -> ClassSet:
    """The classes that the masks were made with: when images vanish, tags alone may tell of fewer."""
    try:
        names = tuple(read_facts(run / "prototypes.safetensors")["classes"])
    except (RunError, KeyError, TypeError) as error:
        raise RunError(f"{run / 'prototypes.safetensors'} can't be read ({error}); run vpl labels again.") from error
    return found if names == found.names else ClassSet(names)
