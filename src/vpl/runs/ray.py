"""Pseudo-labels by many workers: the stage `labels` of a run as one Ray Data pipeline (METHOD.md 1, 2 and 4).

    windows of the list -> flat_map over actors -> label maps into the store;  one row per batch -> the driver

An actor holds one `Labeller`, sent by the driver, so that every worker has the driver's own weights, and sends its
windows through the local engine's pipeline (`stream`): the same batches, without those whose files are all there, and
the same bytes. A window of a killed
worker is given to another one; a killed driver's run goes on where the files end. Failed images come back as rows: the
driver alone writes the run's record.

Photographs and label maps may lie behind URLs (storage.py); the run folder itself is local to the driver.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import math
import os
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from vpl.clip.model import aligned
from vpl.edges import images, outputs, storage
from vpl.edges.datasets import Sample
from vpl.errors import DataError, RunError, VplError
from vpl.machine import Clock
from vpl.method.labeller import Draft, Labeller
from vpl.method.views import View, prepared
from vpl.runs import labelling
from vpl.runs.folder import log, versions
from vpl.runs.stages import Run
from vpl.runs.stream import WINDOW, Batch, Portion, Stream, grid_of, read_view

T = TypeVar("T")

MOST_PARTS = 8
"""A window is given to at most this many workers; each reads all of its headers."""
PARTS_PER_WORKER = 2
MOST_ATTEMPTS = 6
"""Times that a window is begun, each but the first after a worker's death, before the run stops."""
REACH_SECONDS = 10.0
"""How long a cluster's address may take to answer."""


@dataclass(frozen=True)
class Photograph:
    """One sample as a worker gets it: its name, its place, and the numbers of its classes."""

    id: str
    image: str
    tags: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """What every worker of a run is given.

    Attributes:
        labeller: on the CPU.
        folders: name of each label map -> the place of its folder.
        palette: colours of the label maps.
        device: where a worker computes.
        image_workers: threads of a worker that read photographs, and as many that finish them (CRF, writing).
        versions: of everything that shapes the numbers; a worker with others stops.
        begin: counts how often the part of this number was begun, over all workers.
    """

    labeller: Labeller
    folders: Mapping[str, str]
    palette: Sequence[tuple[int, int, int]]
    device: str
    image_workers: int
    versions: Mapping[str, str]
    begin: Callable[[int], int]


@dataclass(frozen=True)
class Done:
    """What a worker reports: images that are dealt with, (id, reason) of those that failed, or why it can't go on."""

    images: int
    failed: tuple[tuple[str, str], ...] = ()
    stop: str = ""

    def row(self) -> dict:
        """As a row of a data set."""
        return {"images": self.images, "failed": json.dumps(self.failed), "stop": self.stop}


class Worker:
    """Makes the label maps of windows. Ray keeps one for each actor; nothing in here knows Ray.

    Args:
        job: the job, or a function that fetches it.
    """

    def __init__(self, job):
        torch.set_num_threads(1)
        self.job: Job = job if isinstance(job, Job) else job()
        self._labeller: Labeller | None = None
        self._stream: Stream | None = None

    def __call__(self, row: dict) -> Iterator[dict]:
        """One row for the headers of the window and one for each batch of the part: as many at every attempt."""
        try:
            window = [Photograph(id, image, tuple(tags)) for id, image, tags in json.loads(row["window"])]
            if self.job.begin(row["number"]) > MOST_ATTEMPTS:
                raise RunError(
                    f"{MOST_ATTEMPTS} workers died at the images {window[0].id} to {window[-1].id}, likely for want of "
                    "memory; lower --batch-size, --max-side or --image-workers. Finished work is kept."
                )
            yield from (done.row() for done in self._label(window, row["part"], row["parts"]))
        except VplError as error:
            yield Done(0, stop=f"{socket.gethostname()}: {error}").row()

    def _ready(self) -> tuple[Labeller, Stream]:
        """The labeller on the worker's device, and the pipeline around its CLIP; made once."""
        if self._labeller is None or self._stream is None:
            self._labeller = self._made()
            clip = self._labeller.clip
            self._stream = Stream(clip, self._labeller.config.clip, self.job.image_workers)
        return self._labeller, self._stream

    def _made(self) -> Labeller:
        given, wanted, own = self.job.labeller, self.job.versions, versions()
        other = [f"{name} {own[name]} (driver: {one})" for name, one in wanted.items() if own[name] != one]
        if other:
            raise RunError(f"this worker has other versions than the driver: {', '.join(other)}; make them equal.")
        clip = given.clip.prepare(self.job.device, given.config.clip.precision)
        vision = None if given.vision is None else aligned(given.vision.to(clip.device))
        guide = None if given.guide is None else given.guide.prepare(self.job.device)
        text = aligned(given.text.to(clip.device))
        return dataclasses.replace(given, clip=clip, text=text, vision=vision, guide=guide)

    def _label(self, window: Sequence[Photograph], part: int, parts: int) -> Iterator[Done]:
        self._see_folders()
        labeller, stream = self._ready()
        clip, config = labeller.clip, labeller.config.clip
        failed: list[tuple[str, str]] = []
        with tempfile.TemporaryDirectory(prefix="vpl-") as folder:
            near = [_Near(one, Path(folder) / str(number)) for number, one in enumerate(window)]

            def read(member: int) -> View:
                tags = window[member].tags
                return near[member].use(lambda place: prepared(clip, read_view(place, tags, config), config))

            def finish(_: Batch, portions: list[Portion]) -> list[Callable[[], None]]:
                return [
                    partial(self._finish, labeller, window[member], view, draft)
                    for portion in portions
                    for member, view, draft in zip(portion.members, portion.views, portion.result, strict=True)
                ]

            planned = stream.plan(
                len(window),
                lambda member: near[member].use(lambda place: grid_of(place, clip.patch, config)),
                lambda member, error: failed.append((window[member].id, str(error))),
            )
            batches = list(planned)[part::parts]
            yield Done(0 if part else len(failed), tuple(failed))
            flow = stream.flow(
                batches,
                read,
                lambda _, views: labeller.drafts(views, pseudo=True),
                finish,
                lambda batch: all(self._is_there(window[member]) for member in batch.members),
            )
            with contextlib.closing(flow):
                for settled in flow:
                    reasons = tuple((window[member].id, str(error)) for member, error in settled.failures)
                    yield Done(len(settled.batch.members), reasons)

    def _finish(self, labeller: Labeller, photograph: Photograph, view: View, draft: Draft) -> None:
        _keep(self.job.folders, self.job.palette, photograph, labeller.masks(view, draft, pseudo=True))

    def _place(self, name: str, photograph: Photograph) -> str | Path:
        return storage.below(self.job.folders[name], f"{photograph.id}.png")

    def _is_there(self, photograph: Photograph) -> bool:
        places = [self._place(name, photograph) for name in self.job.folders]
        return all(storage.exists(one) if storage.is_url(one) else Path(one).exists() for one in places)

    def _see_folders(self) -> None:
        for folder in self.job.folders.values():
            if not storage.is_url(folder) and not Path(folder).is_dir():
                raise RunError(
                    f"this worker does not see the folder {folder}; put it on a file system that all machines share, "
                    "or name a store for the label maps: --out s3://bucket/folder."
                )


@dataclass(frozen=True)
class _Near:
    """A photograph and the local file that it is fetched to if it lies behind a URL: once for all its uses."""

    photograph: Photograph
    local: Path

    def use(self, what: Callable[[Path], T]) -> T:
        """What `what` makes of the local file; its `DataError` names the photograph's own place."""
        image = self.photograph.image
        try:
            if not storage.is_url(image):
                return what(Path(image))
            if not self.local.exists():
                storage.write_bytes_atomic(self.local, storage.read(image, images.MOST_FILE_BYTES))
            return what(self.local)
        except DataError as error:
            raise DataError(str(error).replace(str(self.local), image)) from error


# ------------------------------------------------------------------ the driver


def labels(run: Run, out: str | Path | None = None) -> None:
    """The stage `labels` of a run on Ray: the same files as `run.labels()`, byte for byte.

    Prototypes that are missing are made first, by this process alone. A running Ray is used when the environment's
    RAY_ADDRESS names one; otherwise one is started on this machine and stopped at the end.

    Args:
        out: folder or URL for the label maps; None: the run folder. `seeds` and `labels` are made in it.

    Raises:
        RunError: Ray is missing or can't be reached, the store can't be used, or a worker can't go on.
        ConfigError: `out` holds a key or password.
    """
    ray = _ray()
    storage.check(str(out or ""), "--out")
    if out is not None:
        run.ready()
        _make(ray, run, run.dataset.samples, _folders(run, out))
        return
    with run.handed_out() as samples:
        if samples:
            _make(ray, run, samples, _folders(run, out))


def _make(ray: Any, run: Run, samples: Sequence[Sample], places: Mapping[str, str | Path]) -> None:
    """Label maps of the samples into the places, by the workers of a cluster; those of photographs without tags, which
    need no encoder, by this process."""
    start, count_all = time.perf_counter(), len(samples)
    folders = {name: str(place) for name, place in places.items()}
    keep = partial(_keep, folders, run.classes.palette())
    labelling.blank(run, [one for one in samples if not one.tags], list(folders), keep, Clock())
    samples = [one for one in samples if one.tags]
    if not samples:
        run.note_stage("pseudo-masks", time.perf_counter() - start, count_all)
        return
    with _cluster(ray):
        device, count, resources = _resources(ray, run.device)
        attempts = ray.remote(num_cpus=0)(_Attempts).remote()
        job = ray.put(
            Job(
                _portable(run.labeller()),
                folders,
                run.classes.palette(),
                device,
                run.image_workers if device == "cuda" else 1,
                versions(),
                lambda number: ray.get(attempts.begin.remote(number)),
            )
        )
        rows = _rows(run, samples, count)
        pipeline = _quiet(ray).from_items(rows, override_num_blocks=len(rows))
        pipeline = pipeline.flat_map(
            Worker,
            fn_constructor_args=(lambda: ray.get(job),),
            compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
            **resources,
        )
        try:
            made = _received(run, pipeline.iter_rows())
            deque(run.progress(made, len(samples), "pseudo-masks"), maxlen=0)
        except ray.exceptions.RayError as error:
            words = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise RunError(f"Ray gave up ({words}); run the same command again: finished work is kept.") from error
    run.note_stage("pseudo-masks", time.perf_counter() - start, count_all)


def _keep(
    folders: Mapping[str, str], palette: Sequence[tuple[int, int, int]], photograph: Any, made: Mapping[str, Any]
) -> None:
    """Write a photograph's label maps."""
    for name, mask in made.items():
        images.write_mask(storage.ready(folders[name], f"{photograph.id}.png"), mask, palette)


def _received(run: Run, rows: Iterable[dict]) -> Iterator[int]:
    """One item per image, as the progress bar counts; failures go into the run's record."""
    for row in rows:
        if row["stop"]:
            raise RunError(row["stop"])
        for identity, reason in json.loads(row["failed"]):
            run.fail(identity, DataError(reason))
        yield from range(row["images"])


def _rows(run: Run, samples: Sequence[Sample], workers: int) -> list[dict]:
    """The images as rows: a window each, several times where there are fewer windows than workers."""
    size = WINDOW * run.config.clip.batch
    windows = math.ceil(len(samples) / size)
    parts = min(MOST_PARTS, math.ceil(PARTS_PER_WORKER * workers / windows))
    rows: list[dict] = []
    for start in range(0, len(samples), size):
        window = [
            (
                one.id,
                str(one.image if storage.is_url(one.image) else Path(one.image).absolute()),
                run.classes.numbers(one.tags),
            )
            for one in samples[start : start + size]
        ]
        text, first = json.dumps(window), len(rows)
        rows += [{"number": first + part, "window": text, "part": part, "parts": parts} for part in range(parts)]
    return rows


def _folders(run: Run, out: str | Path | None) -> dict[str, str | Path]:
    """Name of each label map -> its folder, made where the store has folders."""
    own = run.map_folders(pseudo=True)
    outputs.check_apart(own.values(), run.inputs())
    for folder in own.values():
        folder.mkdir(parents=True, exist_ok=True)
    if out is None:
        return {name: folder.absolute() for name, folder in own.items()}
    out = out if storage.is_url(out) else Path(out).absolute()
    places = {name: storage.below(out, folder.relative_to(run.folder).as_posix()) for name, folder in own.items()}
    card = storage.below(out, "vpl.json")
    outputs.check_apart([place for place in places.values() if isinstance(place, Path)], run.inputs())
    if not (storage.exists(card) if storage.is_url(card) else Path(card).exists()):
        for place in places.values():
            if (first := storage.first_in(place)) is not None:
                raise RunError(f"{place} holds files that vpl did not make ({first}); name another --out.")
    if str(out).startswith("memory://"):
        log.warning("%s lies in this process's memory: nothing of it will remain when the command ends.", out)
    for place in places.values():
        if storage.is_url(place):
            storage.make_folder(place)
        else:
            Path(place).mkdir(parents=True, exist_ok=True)
    _claim(run, card)
    run.note(label_maps=str(out))
    return places


def _claim(run: Run, card: str | Path) -> None:
    """A place outside the run folder says whose label maps it holds, so that two runs' are never mixed."""
    shaping = ("clip.", "seeds.", "prototypes.", "refine.", "labels.", "crf.", "data.classes")
    facts = {
        "values": {key: one for key, one in run.config.flat().items() if key.startswith(shaping)},
        "prototypes": hashlib.sha256((run.folder / "prototypes.safetensors").read_bytes()).hexdigest(),
        "data": run.record()["data"]["hash"],
    }
    text = json.dumps(facts, indent=1)
    if storage.exists(card) if storage.is_url(card) else Path(card).exists():
        there = storage.read(card, images.MOST_FILE_BYTES) if storage.is_url(card) else Path(card).read_bytes()
        if there != text.encode():
            raise RunError(f"{card} belongs to label maps of another run or configuration; name another --out.")
        return
    storage.write_text_atomic(card, text)


def _portable(labeller: Labeller) -> Labeller:
    """A copy on the CPU, without the tokenizer, that any machine can load."""
    clip = copy.copy(labeller.clip)
    clip._tokenizer = None
    clip = copy.deepcopy(clip).to("cpu")
    vision = None if labeller.vision is None else labeller.vision.cpu()
    guide = None if labeller.guide is None else copy.deepcopy(labeller.guide).to("cpu")
    return dataclasses.replace(labeller, clip=clip, text=labeller.text.cpu(), vision=vision, guide=guide)


# ------------------------------------------------------------------ Ray


class _Attempts:
    """Counts how often each part was begun. One actor, which outlives the workers."""

    def __init__(self):
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self._begun[number] += 1
        return self._begun[number]


def _ray() -> Any:
    """The package, told to send no statistics and to say little."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RunError("--engine ray needs the package ray; install it: pip install 'vpl-seg[ray]'.") from error
    return ray


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connected to Ray: as this process already is, or to RAY_ADDRESS, or to one that is started here."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), REACH_SECONDS).close()
        own = {"include_dashboard": False} if address == "local" else {}
        with _silence():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        if address != "local":
            said = f"no Ray answers at {address} ({words}); check RAY_ADDRESS, or unset it to use this machine alone."
        elif "AF_UNIX" in words:
            said = f"the folder {tempfile.gettempdir()} has too long a name for Ray; set TMPDIR to a short one."
        else:
            said = f"Ray can't be started on this machine ({words}); mend that, or leave out --engine ray."
        raise RunError(said) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing on file 2 inside the block: Ray's C++ part announces there that it will be silent."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _quiet(ray: Any) -> Any:
    """Ray Data without its own progress bars and notes; every row that a worker yields comes at once."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray.data


def _resources(ray: Any, device: str) -> tuple[str, int, dict[str, int]]:
    """Device of the workers, how many there is room for, and what each asks for: a GPU or a core."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(one.get("GPU", 0)) for one in machines)
    if device not in ("auto", "cpu") and not (device.startswith("cuda") and gpus):
        raise RunError(
            f"--device {device}, but the Ray cluster has {gpus} GPUs; expected auto, cpu, or cuda with GPUs."
        )
    if gpus and device != "cpu":
        return "cuda", gpus, {"num_gpus": 1}
    count = sum(int(one.get("CPU", 0)) for one in machines)
    if not count:
        raise RunError("the Ray cluster has neither a GPU nor a CPU to offer; add a machine.")
    return "cpu", count, {"num_cpus": 1}
