"""Masks of many photographs and films, into a folder: what is there and fresh is passed over, what is not ours is left.

    OUT/day1/garden.png            the mask of day1/garden.jpg, palette PNG
    OUT/day1/garden.npz            probabilities of background and each class, float16
    OUT/overlays/day1/garden.png   the mask in colour over the photograph
    OUT/walk/000000.png, ...       the masks of a film's frames; OUT/overlays/walk.mp4 the film with its masks
    OUT/scores/day1/garden.json    what was found, and how sure; OUT/scores.csv all of them

Label values: 0 background, c + 1 class c, 255 below the wanted confidence. On a CPU each core has a photograph of
its own.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import operator
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vpl.classes import ClassSet
from vpl.edges import film, images, locks, sheet, sources, storage
from vpl.edges.outputs import MASKS, NAME, Made, check_apart, check_no_run
from vpl.edges.sources import Found
from vpl.errors import ConfigError, DataError, RunError
from vpl.machine import cores, one_core_each, threads
from vpl.network.predict import SINGLE, Answer, Predictor, Protocol
from vpl.progress import Progress, silent

SCORES, OVERLAYS, TABLE = "scores", "overlays", "scores.csv"
NOTE = MASKS


@dataclass(frozen=True)
class Outputs:
    """What is written, and how.

    Attributes:
        probabilities: also NAME.npz.
        overlays: also the masks in colour over the photographs.
        scores: also scores/NAME.json and scores.csv.
        confidence: pixels whose label is less probable become 255; 0 to 1.
        overwrite: make everything again, and replace files that vpl did not make.
        every: of a film, every how many frames.
    """

    probabilities: bool = False
    overlays: bool = False
    scores: bool = False
    confidence: float = 0.0
    overwrite: bool = False
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise ConfigError(f"the confidence is {self.confidence}; expected a number from 0 to 1.")
        if self.every < 1:
            raise ConfigError(f"every {self.every}th frame was asked for; expected a whole number from 1.")


def deliver(
    predictor: Predictor,
    given: object,
    out: str | Path,
    protocol: Protocol = SINGLE,
    outputs: Outputs = Outputs(),
    progress: Progress = silent,
) -> Iterator[tuple[str, str]]:
    """A palette PNG for each image that `given` means (`sources.read`, or what it gave); yields what could not be used,
    and why.

    Images whose files were made from this network, these settings and this very photograph are passed over, so that a
    killed run goes on where it was; files that vpl did not make are not replaced (edges/outputs), unless
    `outputs.overwrite`.

    Raises:
        DataError: there are no images, or none that can be used.
        RunError: `out` can't be written, or it or a folder in it is one of the images'.
    """
    out = Path(out)
    overlays = out / OVERLAYS
    check_no_run(out)
    meant = given if isinstance(given, sources.Sources) else sources.read(given)
    tops = [out, *([overlays] if outputs.overlays else []), *([out / SCORES] if outputs.scores else [])]
    above = {str(PurePosixPath(one.name).parent) for one in meant.found}
    check_apart([top / name for top in tops for name in {".", *above}], meant.folders)
    new, journal = not out.exists(), out / NAME
    fresh = not journal.exists()
    try:
        (overlays if outputs.overlays else out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} can't be made ({error.strerror}); name another folder.") from error
    failed, first = 0, ""
    with _shared(out):
        work = _Delivery(predictor, out, protocol, outputs)
        work.begin()
        for name, reason in itertools.chain(meant.left_out, work.each(meant.found, progress)):
            failed, first = failed + 1, first or f"{name}: {reason}"
            yield name, reason
        nothing = failed == len(meant.found) + len(meant.left_out)
        if not nothing:
            write_note(out, predictor, meant.found)
        if outputs.scores and not nothing:
            _table(out, meant.found, work.made)
        if nothing and fresh:  # the folder as it was
            journal.unlink(missing_ok=True)
    if nothing:
        for folder in (overlays, out) if new else ():
            with contextlib.suppress(OSError):  # what is not empty stays
                folder.rmdir()
        raise DataError(f"none of the images could be used ({failed} skipped); the first: {first}")


def write_note(out: Path, predictor: Predictor, found: tuple[Found, ...]) -> None:
    """Note what the masks mean and which photographs they are of; what was noted before under these classes stays."""
    classes = predictor.classes
    before = read_note(out)
    there = before.photographs if before and before.classes.names == classes.names else {}
    photographs = there | {
        one.name: str(one.image if storage.is_url(one.image) else Path(one.image).resolve())
        for one in found
        if isinstance(one.image, (str, Path)) and not one.is_film
    }
    told = {"classes": classes.names, "colors": classes.colors, "photographs": photographs}
    storage.write_text_atomic(out / NOTE, json.dumps(told, indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Note:
    """What a folder of masks says of itself: its classes, and name -> photograph."""

    classes: ClassSet
    photographs: dict[str, str]


def read_note(folder: Path) -> Note | None:
    """What `deliver` noted; None where a folder has no such note, or a damaged one."""
    try:
        told = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        colors = tuple(tuple(one) for one in told["colors"])
        return Note(
            ClassSet(tuple(told["classes"]), colors=colors), {str(k): str(v) for k, v in told["photographs"].items()}
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


@contextlib.contextmanager
def _shared(out: Path) -> Iterator[None]:
    """Other processes may write into the folder too; one that is alone removes what a killed one left half written."""
    with locks.alone(out) as alone:
        if alone:
            for partial in out.rglob(f".*{storage.PARTIAL}"):
                partial.unlink(missing_ok=True)
        yield


class _Delivery:
    """One network at work on many pictures."""

    def __init__(self, predictor: Predictor, out: Path, protocol: Protocol, outputs: Outputs):
        self.predictor, self.out, self.protocol, self.outputs = predictor, out, protocol, outputs
        self.made, self.palette = Made(out, ", or give --overwrite"), predictor.classes.palette()

    def begin(self) -> None:
        """Say that the lists beside the masks are about to be written, before the first photograph is looked at.

        Raises:
            DataError: there is another file of their name.
        """
        ours = self.outputs.overwrite or read_note(self.out) is not None
        self.made.begin([NOTE], replace=ours)
        if self.outputs.scores:
            self.made.begin([TABLE], replace=self.outputs.overwrite)

    def each(self, found: tuple[Found, ...], progress: Progress) -> Iterator[tuple[str, str]]:
        """Writes; yields what could not be used, and why."""
        with contextlib.ExitStack() as stack:
            pool, workers = None, cores()
            if self.predictor.device.type == "cpu" and min(workers, len(found)) > 1:
                stack.enter_context(one_core_each())
                pool = stack.enter_context(threads(workers))
            for one, problem in progress(self._results(found, pool, 2 * workers), len(found), "predict"):
                if problem:
                    yield one.where, problem

    def _results(
        self, found: Sequence[Found], pool: ThreadPoolExecutor | None, ahead: int
    ) -> Iterator[tuple[Found, str]]:
        """Each picture and what is wrong with it, in their order; photographs go to the pool, films do not."""
        waiting: deque[tuple[Found, Callable[[], None]]] = deque()
        for one in found:
            if one.is_film:
                while waiting:
                    yield _ended(*waiting.popleft())
                yield _ended(one, partial(self._film, one))
                continue
            try:
                waiting.append((one, self._photograph(one, pool)))
            except DataError as error:
                waiting.append((one, partial(_fail, error)))
            if pool is None or len(waiting) > ahead:
                yield _ended(*waiting.popleft())
        while waiting:
            yield _ended(*waiting.popleft())

    def _photograph(self, one: Found, pool: ThreadPoolExecutor | None) -> Callable[[], None]:
        """Begin a photograph; what is returned ends it."""
        parts = {"mask": f"{one.name}.png"}
        parts |= {"shares": f"{one.name}.npz"} if self.outputs.probabilities else {}
        parts |= {"picture": f"{OVERLAYS}/{one.name}.png"} if self.outputs.overlays else {}
        parts |= {"scores": f"{SCORES}/{one.name}.json"} if self.outputs.scores else {}
        fingerprint = self._fingerprint(one)
        if not self._begun(parts, fingerprint):
            return _nothing
        if pool is None:
            return partial(self._write, one.image, parts, fingerprint)
        written = pool.submit(self._files, one.image, parts)

        def end() -> None:
            written.result()
            self.made.finish(list(parts.values()), fingerprint)

        return end

    def _begun(self, parts: dict[str, str], fingerprint: str) -> bool:
        """Whether files are to be made; then they are noted."""
        wanted = list(parts.values())
        if not self.outputs.overwrite and self.made.is_fresh(wanted, fingerprint):
            return False
        self.made.begin(wanted, replace=self.outputs.overwrite)
        return True

    def _write(self, image: images.Picture, parts: dict[str, str], fingerprint: str) -> None:
        self._files(image, parts)
        self.made.finish(list(parts.values()), fingerprint)

    def _files(self, image: images.Picture, parts: dict[str, str]) -> None:
        answer = self.predictor.answer(image, self.protocol)
        labels = answer.labels(self.outputs.confidence)
        if "shares" in parts:
            packed = io.BytesIO()
            np.savez_compressed(packed, probabilities=answer.probabilities().astype(np.float16))
            storage.write_bytes_atomic(storage.ready(self.out, parts["shares"]), packed.getvalue())
        if "picture" in parts:
            seen = sheet.overlay(images.read_image(image), labels, self.palette)
            images.write_image(Path(storage.ready(self.out, parts["picture"])), seen)
        if "scores" in parts:
            text = json.dumps(_scores(answer, labels, self.predictor.classes.names), ensure_ascii=False)
            storage.write_text_atomic(storage.ready(self.out, parts["scores"]), text + "\n")
        images.write_mask(Path(storage.ready(self.out, parts["mask"])), labels, self.palette)

    def _film(self, one: Found) -> None:
        """Masks of the frames; with overlays, the film again with the masks in colour."""
        content, path = self._fingerprint(one), Path(str(one.image))
        shown, kind = f"{OVERLAYS}/{one.name}.mp4", f"{content} film"

        def seen() -> Iterator[UInt8[np.ndarray, "H W 3"]]:
            for number, frame in film.frames(path, self.outputs.every):
                name = f"{one.name}/{number:06}"
                parts = {"mask": f"{name}.png"}
                parts |= {"shares": f"{name}.npz"} if self.outputs.probabilities else {}
                parts |= {"scores": f"{SCORES}/{name}.json"} if self.outputs.scores else {}
                if self._begun(parts, f"{content} {number}"):
                    self._write(frame, parts, f"{content} {number}")
                yield sheet.overlay(frame, images.read_mask(self.out / f"{name}.png"), self.palette)

        if self.outputs.overlays and (self.outputs.overwrite or not self.made.is_fresh([shown], kind)):
            self.made.begin([shown], replace=self.outputs.overwrite)
            film.write(Path(storage.ready(self.out, shown)), seen(), film.rate(path) / self.outputs.every)
            self.made.finish([shown], kind)
        else:
            for _ in seen():
                pass

    def _fingerprint(self, one: Found) -> str:
        """What the outputs of a picture depend on: network, settings, its bytes."""
        digest = hashlib.sha256(f"{self.predictor.fingerprint} {self.protocol}".encode())
        if self.outputs.confidence:
            digest.update(f" {self.outputs.confidence}".encode())
        if isinstance(one.image, np.ndarray):
            digest.update(repr(one.image.shape).encode() + one.image.tobytes())
        elif not isinstance(one.image, (str, Path)):
            digest.update(images.read_image(one.image).tobytes())
        elif storage.is_url(one.image):
            digest.update(storage.read(one.image, images.MOST_FILE_BYTES))
        else:
            try:
                with storage.open_bytes(one.image) as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                storage.check_machine(one.image, error)
                raise DataError(f"{one.image} can't be read ({error.strerror}); replace the file.") from error
        return digest.hexdigest()


def _ended(one: Found, end: Callable[[], None]) -> tuple[Found, str]:
    try:
        end()
    except DataError as error:
        return one, str(error)
    return one, ""


def _nothing() -> None:
    """It was there."""


def _fail(error: DataError) -> None:
    raise error


def _scores(answer: Answer, labels: UInt8[np.ndarray, "H W"], names: tuple[str, ...]) -> dict[str, Any]:
    """How much of each label there is, and how probable it is.

    `share`: of the pixels, as the mask has it (fraction). `mean`, `highest`: of the label's probability over the pixels
    at the size that was looked at, where it is the most probable one, and anywhere.
    """
    shares = answer.shares
    top, best = shares.max(dim=0)
    found = {}
    for number, name in enumerate(("background", *names)):
        there = best == number
        found[name] = {
            "share": round(float((labels == number).mean()), 6),
            "mean": round(float(top[there].mean()), 6) if bool(there.any()) else None,
            "highest": round(float(shares[number].max()), 6),
        }
    return {"confidence": round(float(top.mean()), 6), "labels": found}


def _read_scores(path: Path) -> dict[str, Any]:
    """A file that `_scores` gave.

    Raises:
        RunError: it is damaged.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            (told["confidence"] + 0, one["share"] + 0, one["mean"], one["highest"]) for one in told["labels"].values()
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it, then run the same command again.") from error
    if not rows:
        raise RunError(f"{path} is damaged (it has no labels); delete it, then run the same command again.")
    return told


def _table(out: Path, found: tuple[Found, ...], made: Made) -> None:
    """scores.csv: a row for each photograph or frame and label that is there, the least sure photographs first."""
    rows: list[tuple[Any, ...]] = []
    for one in found:
        frames = (
            sorted((out / SCORES / one.name).glob("*.json")) if one.is_film else [out / SCORES / f"{one.name}.json"]
        )
        for path in frames:
            if path.is_file():
                told = _read_scores(path)
                name = path.relative_to(out / SCORES).as_posix().removesuffix(".json")
                rows += [
                    (name, told["confidence"], label, *one.values())
                    for label, one in told["labels"].items()
                    if one["share"]
                ]
    text = io.StringIO()
    written = csv.writer(text, lineterminator="\n")
    written.writerow(["name", "confidence", "label", "share", "mean", "highest"])
    rows.sort(key=operator.itemgetter(1, 0))
    written.writerows(rows)
    storage.write_text_atomic(out / TABLE, text.getvalue())
    made.finish([TABLE], "table")
