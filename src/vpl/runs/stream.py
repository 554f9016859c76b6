"""The way of photographs through the machine: read, encode, finish, all three at once. THE pipeline of every engine.

    plan     images of equal patch grids, a batch each, from the list alone      stream.plan
    flow     read (threads) ──> work on the encoder's device (lanes) ──> finish (threads, or the lane)      stream.flow

The unit of work is a batch, on a CPU a photograph, planned from the list of images alone, so that a continued run, a
worker of a cluster and a notebook compute the same batches and so the same bytes. Memory does not grow with the list:
batches are cut from windows of it, and few of them are on their way at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from vpl.clip.model import FrozenClip
from vpl.config import MOST_WORKERS, ClipConfig
from vpl.edges import images
from vpl.errors import ConfigError, DataError, VplError
from vpl.machine import Clock, Crew, cores, one_core_each, threads, unless_out_of_memory
from vpl.method.views import View

log = logging.getLogger("vpl")
T = TypeVar("T")

WINDOW = 32
"""Batches are cut from windows of this many times the batch size, so that memory does not grow with the data set."""

ATTENTION_CELLS = 2**25
"""A batch holds at most this many cells of attention (its images times the square of their patches), or one image."""

AHEAD = 2
"""Batches that are read, or wait to be finished, beside those that are being encoded."""

CUDA_LANES = 2
"""Batches in the encoder at once on a CUDA device: one computes while the host prepares the other."""

PARTS = {
    "reading": ("read",),
    "encoding": ("encode", "seeds", "refine", "looks", "regions", "crf on device"),
    "finishing": ("upsample", "crf", "write"),
}
"""The three kinds of threads of a stage, and the parts of the work that each does."""


@dataclass(frozen=True)
class Batch:
    """Images that go through the encoder together: place in the plan, numbers into the list of images, patch grid."""

    number: int
    members: tuple[int, ...]
    grid: tuple[int, int]


@dataclass(frozen=True)
class Portion:
    """Images of a batch that were encoded together: their numbers, views (without pixels), and what was computed."""

    members: tuple[int, ...]
    views: list[View]
    result: Any


@dataclass(frozen=True)
class Settled:
    """A batch that is through: what was computed of it, and (number, reason) of images that can't be used."""

    batch: Batch
    portions: Sequence[Portion] = ()
    failures: Sequence[tuple[int, VplError]] = ()


def workers_of(given: int | None) -> int:
    """How many threads of a kind: as given, or one a core.

    Raises:
        ConfigError: it is no number from 1 to `MOST_WORKERS`.
    """
    if given is None:
        return cores()
    if type(given) is not int or not 1 <= given <= MOST_WORKERS:
        raise ConfigError(f"{given!r} workers were asked for; expected a whole number from 1 to {MOST_WORKERS}.")
    return given


def grid_of(image: Path | str, patch: int, config: ClipConfig) -> tuple[int, int]:
    """(h, w), the patch grid of a photograph at the encoder, from its header.

    Raises:
        DataError: as `images.image_size`.
    """
    return grid_at(images.size_within(*images.image_size(image), config.max_side), patch, config)


def grid_at(size: tuple[int, int], patch: int, config: ClipConfig) -> tuple[int, int]:
    """(h, w), the patch grid at the encoder of a view of `size` (height, width) pixels."""
    return images.patch_size_of(*size, patch, images.encoder_scale(*size, patch, config.scale, config.max_patches))


def read_view(image: Path | str, tags: tuple[int, ...], config: ClipConfig) -> View:
    """One photograph as encoder and CRF see it; `tags` are class numbers.

    Raises:
        DataError: as `images.read_image`.
    """
    return View(images.read_image(image, config.max_side), tags, images.image_size(image))


def most_of(device: torch.device, config: ClipConfig) -> int:
    """Most images of a batch. On a CPU one: batches bring little there, cores share out more photographs without them,
    and a photograph's bytes do not depend on which others are worked on."""
    return 1 if device.type == "cpu" else config.batch


def grouped(grids: Mapping[int, tuple[int, int]], size: int) -> Iterator[tuple[int, ...]]:
    """The batches of one window: of its members, by their patch grids, those of equal grids together in their order."""
    groups: dict[tuple[int, int], list[int]] = {}
    for member, grid in grids.items():
        groups.setdefault(grid, []).append(member)
    for (h, w), members in groups.items():
        step = max(1, min(size, ATTENTION_CELLS // (h * w) ** 2))
        for first in range(0, len(members), step):
            yield tuple(members[first : first + step])


class Portions:
    """Batches in portions that fit into the device's memory.

    A batch for which it runs out is halved, and so are later ones of that image size from the start. One warning says
    so. The results are those of a smaller batch.
    """

    def __init__(self) -> None:
        self._most: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()

    def each(self, views: Sequence[View], work: Callable[[slice], T]) -> Iterator[tuple[slice, T | None]]:
        """Portions of the views, in order, with what `work` makes of them; None for one view that can't fit at all."""
        first = 0
        while first < len(views):
            size = views[first].image.shape[:2]
            part = slice(first, min(len(views), first + self._most.get(size, len(views))))
            result = unless_out_of_memory(work, part)
            alone = part.stop - part.start == 1
            if result is None and not alone:
                self._halve(size, part.stop - part.start)
                continue
            yield part, result
            first = part.stop

    def _halve(self, size: tuple[int, int], count: int) -> None:
        with self._lock:
            if not self._most:
                log.warning(
                    "the device's memory is too small for %d images of %d x %d pixels at once; going on with %d. "
                    "A smaller clip.batch avoids the detour.", count, *size, count // 2
                )  # fmt: skip
            self._most[size] = count // 2


class Stream:
    """The pipeline around one encoder. It remembers how many images of a size fit into the device's memory.

    Args:
        clip: the encoder; on a CPU, as many batches as there are `workers` are in it at once.
        config: how it sees photographs, and how many a batch holds.
        workers: threads that read, as many that finish, and on a CPU as many that encode.

    Attributes:
        shares: whether threads without a photograph take pieces of others'.
    """

    def __init__(self, clip: FrozenClip, config: ClipConfig, workers: int):
        self.clip, self.config, self.workers = clip, config, workers
        self.lanes = {"cpu": workers, "cuda": CUDA_LANES}.get(clip.device.type, 1)
        self.shares = clip.device.type == "cpu"
        self._portions = Portions()
        self._marks: list[tuple[float, float]] = []

    def plan(
        self, count: int, grid: Callable[[int], tuple[int, int]], fail: Callable[[int, VplError], None]
    ) -> Iterator[Batch]:
        """The batches of a list of `count` images, the same in every process, from window to window.

        Args:
            grid: the patch grid of the image of this number; several threads ask at once.
            fail: told of an image whose grid is an error.
        """
        size, window_size, number = most_of(self.clip.device, self.config), WINDOW * self.config.batch, 0

        def attempt(member: int) -> tuple[int, int] | VplError:
            try:
                return grid(member)
            except VplError as error:
                return error

        for start in range(0, count, window_size):
            window = range(start, min(start + window_size, count))
            with threads(self.workers) as readers:
                found = dict(zip(window, readers.map(attempt, window), strict=True))
            for member, one in found.items():
                if isinstance(one, VplError):
                    fail(member, one)
            grids = {member: one for member, one in found.items() if not isinstance(one, VplError)}
            for members in grouped(grids, size):
                yield Batch(number, members, grids[members[0]])
                number += 1

    def flow(
        self,
        batches: Iterable[Batch],
        read: Callable[[int], View],
        work: Callable[[tuple[int, ...], list[View]], Any],
        finish: Callable[[Batch, list[Portion]], Iterable[Callable[[], None]]] | None = None,
        done: Callable[[Batch], bool] | None = None,
    ) -> Generator[Settled, None, None]:
        """All batches through reading, `work` and the calls that `finish` makes of its results, in their order.

        Reading, work on the device and finishing have threads of their own and overlap. On a CPU the thread that has
        worked on a photograph finishes it: no more threads than cores, so that each keeps its cache. At most `AHEAD`
        batches wait beside those at work. Every thread computes on one core: cores are shared out by images. So nothing
        waits for the slowest part of a product, and results do not depend on the number of cores, as torch's may.

        Args:
            read: the view, with its pixels, of the image of this number. Its `VplError` is the image's failure.
            work: what is computed of several images (numbers, views) together.
            finish: calls that go to threads of their own, but on a CPU; the batch has settled when they have ended.
            done: whether a batch needs nothing any more; it is settled at once.
        """

        def lane(
            batch: Batch, reading: list[Future], finishers: ThreadPoolExecutor | None, crew: Crew | None
        ) -> tuple[Settled, list[Future]]:
            members, views, failures = [], [], []
            for member, future in zip(batch.members, reading, strict=True):
                try:
                    views.append(self._fitting(future.result(), batch.grid))
                    members.append(member)
                except VplError as error:
                    failures.append((member, error))
            with crew.at_work() if crew else contextlib.nullcontext():
                return finished(batch, members, views, failures, finishers)

        def finished(
            batch: Batch,
            members: list[int],
            views: list[View],
            failures: list[tuple[int, VplError]],
            finishers: ThreadPoolExecutor | None,
        ) -> tuple[Settled, list[Future]]:
            portions = []
            for part, result in self._portions.each(views, lambda part: work(tuple(members[part]), views[part])):
                if result is None:
                    failures.append((members[part.start], self._too_large(views[part.start])))
                else:
                    bare = [dataclasses.replace(view, pixels=None) for view in views[part]]
                    portions.append(Portion(tuple(members[part]), bare, result))
            calls = list(finish(batch, portions)) if finish and portions else []
            finishing = [finishers.submit(call) for call in calls if finishers is not None]
            for call in calls if finishers is None else ():
                call()
            return Settled(batch, portions, failures), finishing

        on_cpu = self.clip.device.type == "cpu"
        with (
            one_core_each(),
            contextlib.nullcontext() if on_cpu else threads(self.workers) as finishers,
            threads(self.lanes) as helpers,
            threads(self.lanes) as encoders,
            threads(self.workers) as readers,
        ):
            crew = Crew(helpers, self.lanes) if self.shares else None
            waiting: deque[Future | Settled] = deque()
            for batch in batches:
                if done and done(batch):
                    waiting.append(Settled(batch))
                else:
                    reading = [readers.submit(read, member) for member in batch.members]
                    waiting.append(encoders.submit(lane, batch, reading, finishers, crew))
                if len(waiting) > self.lanes + AHEAD:
                    yield self._settled(waiting.popleft())
            while waiting:
                yield self._settled(waiting.popleft())

    def _settled(self, one: Future | Settled) -> Settled:
        """A batch, once its finishing calls have ended."""
        if isinstance(one, Settled):
            return one
        settled, finishing = one.result()
        for future in finishing:
            future.result()
        self._marks = [*self._marks[:1], *self._marks[1:][-1:], (time.perf_counter(), time.process_time())]
        return settled

    @contextlib.contextmanager
    def watched(self, clock: Clock) -> Iterator[dict[str, float]]:
        """How busy the threads were inside the block, 0 to 1, by kind (`PARTS`); "cores": processor time over that of
        all cores; "steady": the same from the end of the first batch to that of the last but one.
        It stands in the dictionary when the block ends."""
        busy: dict[str, float] = {}
        self._marks.clear()
        start, start_cpu, before = time.perf_counter(), time.process_time(), clock.seconds()
        yield busy
        taken = max(time.perf_counter() - start, 1e-9)
        spent = {part: seconds - before.get(part, 0.0) for part, seconds in clock.seconds().items()}
        counts = {"reading": self.workers, "encoding": self.lanes, "finishing": self.workers}
        for kind, count in counts.items():
            busy[kind] = round(sum(spent.get(part, 0.0) for part in PARTS[kind]) / (count * taken), 3)
        busy["cores"] = round((time.process_time() - start_cpu) / (cores() * taken), 3)
        if len(self._marks) > 2:
            (first, first_cpu), (last, last_cpu) = self._marks[0], self._marks[-2]
            busy["steady"] = round((last_cpu - first_cpu) / (cores() * max(last - first, 1e-9)), 3)

    def _fitting(self, view: View, grid: tuple[int, int]) -> View:
        if view.pixels is not None and view.pixels.shape[1:] != tuple(side * self.clip.patch for side in grid):
            raise DataError("the image has changed while it was being read; start the same command again.")
        return view

    def _too_large(self, view: View) -> DataError:
        height, width = view.image.shape[:2]
        return DataError(
            f"the memory of {self.clip.device} is too small for this image at {height} x {width} pixels, even alone; "
            f"lower clip.max_side (now {self.config.max_side}) or take another --device."
        )
