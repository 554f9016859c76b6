"""A run on its way out: pseudo-masks in the layouts of other tools, the network for other programs (`WAYS`).

    export(RUN, "voc" | "coco" | "cvat" | "yolo")    images and pseudo-masks
    export(RUN, "onnx" | "hf")                       the network, its CLIP included

The output is one folder. It is written under another name and renamed when it is whole; what is exported again takes
the old one's place, and a folder with anything else in it is left alone. `vpl-export.json` in it says what it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vpl import __version__
from vpl.classes import ClassSet
from vpl.edges import locks, outputs, sources, storage
from vpl.edges.outputs import Made
from vpl.errors import ConfigError, DataError, RunError
from vpl.exports import WAYS
from vpl.exports.labelled import Writer, local, place_of, read_labelled
from vpl.network import delivery, predict
from vpl.network.card import Card
from vpl.network.student import STUDENT_PREFIX
from vpl.progress import Progress, silent
from vpl.runs import stored
from vpl.runs.files import read_facts
from vpl.runs.folder import Failure
from vpl.runs.planned import dataset_of
from vpl.runs.records import read_evaluations
from vpl.runs.review import reviewed, taught

MARK = outputs.EXPORT
PREDICTED = "predicted"
"""Folder of a run for what its network says of its own photographs."""
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
    what: str | None = None,
    clip: str | Path | None = None,
    progress: Progress = silent,
) -> Exported:
    """Write a run's pseudo-masks or network for another tool.

    Args:
        run: a run folder, or a folder of masks that `vpl predict` made.
        what: "masks", the pseudo-masks of the run's photographs (default for a run); "predictions", what its network
            says of them, made now into RUN/predicted; a folder of masks holds predictions.
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
    if what not in (None, "masks", "predictions"):
        raise ConfigError(f"can't export {what!r}; expected masks or predictions.")
    note = delivery.read_note(run)
    if note is None and not (run / "config.toml").exists():
        raise RunError(
            f"{run} is no run folder (there is no config.toml), nor one of masks that vpl predict made; expected one."
        )
    if WAYS[to] == "network" and (note or what):
        raise ConfigError(f"{to} takes a run's network; name the run folder, without --what.")
    if note and what == "masks":
        raise ConfigError(f"{run} holds predictions; pseudo-masks are exported from a run folder.")
    _check_free(folder, to)
    way = importlib.import_module(f"vpl.exports.{to.replace('-', '_')}")
    if WAYS[to] == "masks":
        material = _predicted(run, note) if note else of_run(run, what == "predictions", clip, progress)
        return _written(folder, to, lambda partial: _masks(material, to, way.Writer, partial, progress))
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
        with _writing(folder):
            count, failures = fill(partial)
        mark = {"to": to, "vpl": __version__, "images": count, "skipped": {one.id: one.reason for one in failures}}
        storage.write_text_atomic(partial / MARK, json.dumps(mark, indent=1, ensure_ascii=False) + "\n")
        Made(partial).finish(sorted(_names(partial) - {locks.NAME}), to)
        _check_free(folder, to)  # another process may have written meanwhile
        with _writing(folder):
            if folder.exists():
                folder.rename(old)
            if os.name == "nt":  # a folder with an open file can't be renamed there
                lock.release()
            storage.take_name(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        _put_right(folder, old)
        raise
    finally:
        lock.release()
    (folder / locks.NAME).unlink(missing_ok=True)
    _put_right(folder, old)
    return Exported(folder, count, failures)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A system's error inside, such as a full disk, as one sentence that names the output."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder} can't be written ({error.strerror or error}); make room or mend that, then export again."
        ) from error


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


@dataclass(frozen=True)
class Material:
    """What an export of masks is made from.

    Attributes:
        place: what messages call it.
        labels: the folder of masks, ID.png.
        above: the folder of the photographs.
        pictures: (id, photograph, tags); tags None: what the mask holds.
        left_out: what can't be exported, and why.
    """

    place: Path
    labels: Path
    above: Path | str
    classes: ClassSet
    pictures: tuple[tuple[str, Path | str, tuple[str, ...] | None], ...]
    left_out: tuple[Failure, ...]
    corrected: Mapping[str, Path] = field(default_factory=dict)
    """Masks that people painted, in the place of those in `labels`."""

    def mask(self, id: str) -> Path:
        """The mask of a photograph."""
        return self.corrected.get(id, self.labels / f"{id}.png")


def of_run(run: Path, predicted: bool = False, clip: str | Path | None = None, progress: Progress = silent) -> Material:
    """A run's photographs, with its pseudo-masks or with what its network says of them."""
    if not predicted and not (run / "labels").is_dir():
        raise RunError(f"{run} holds no pseudo-masks yet; run vpl labels first.")
    config = stored.read(run)
    dataset = reviewed(dataset_of(config.data), run)
    failures = [Failure(*problem.partition(": ")[::2]) for problem in dataset.problems]
    above = storage.place_of(config.data.images)
    if config.data.format == "voc" and isinstance(above, Path) and (above / "JPEGImages").is_dir():
        above = above / "JPEGImages"
    pictures = [(one.id, one.image, one.tags) for one in dataset.samples]
    if not predicted:
        classes, (rejected, corrected) = _classes_of(run, dataset.classes), taught(run)
        kept = tuple(one for one in pictures if one[0] not in rejected)
        return Material(run, run / "labels", above, classes, kept, tuple(failures), corrected)
    predictor = predict.load(run, clip)
    found = [sources.Found(id, image, id) for id, image, _ in pictures]
    failures += [
        Failure(*one) for one in delivery.deliver(predictor, found, run / PREDICTED, predictor.full, progress=progress)
    ]
    bad = {one.id for one in failures}
    predicted_of: tuple[tuple[str, Path | str, None], ...] = tuple(
        (id, image, None) for id, image, _ in pictures if id not in bad
    )
    return Material(run, run / PREDICTED, above, predictor.classes, predicted_of, tuple(failures))


def _predicted(folder: Path, note: delivery.Note) -> Material:
    """Masks that `vpl predict` made."""
    found = [
        (name, storage.place_of(image), None)
        for name, image in sorted(note.photographs.items())
        if (folder / f"{name}.png").exists()
    ]
    if not found:
        raise RunError(f"{folder} holds no masks of photographs; run vpl predict first.")
    return Material(folder, folder, _above([image for _, image, _ in found]), note.classes, tuple(found), ())


def _above(pictures: Sequence[Path | str]) -> Path | str:
    """The folder that holds all of these files; of files here and behind URLs, that of the ones here."""
    here = [Path(one).absolute().parent for one in pictures if not storage.is_url(one)]
    if not here:
        parts = [str(one).rpartition("/")[0].split("/") for one in pictures]
        same = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
        return "/".join(names[0] for names in same)
    try:
        return Path(os.path.commonpath(here))
    except ValueError:  # on several drives of Windows
        return here[0]


def _masks(
    given: Material, to: str, kind: Callable[[Path, ClassSet], Writer], folder: Path, progress: Progress
) -> tuple[int, tuple[Failure, ...]]:
    """Every image that has a mask."""
    writer = kind(folder, given.classes)
    failures, count = list(given.left_out), 0
    for id, image, tags in progress(given.pictures, len(given.pictures), f"export to {to}"):
        try:
            mask = given.mask(id)
            with local(image) as source:
                writer.add(read_labelled(id, source, place_of(image, given.above), tags, mask, given.classes))
            count += 1
        except DataError as error:
            failures.append(Failure(id, str(error)))
    writer.close()
    if not count:
        first = f" {failures[0].id}: {failures[0].reason}" if failures else ""
        raise RunError(f"none of the images of {given.place} could be exported.{first}")
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
