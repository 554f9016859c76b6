"""The machine: its devices, cores and memory, and where the time of a pipeline goes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vpl.errors import ModelError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def device_of(name: str) -> torch.device:
    """The device of this name; "auto": cuda, else mps, else cpu.

    Raises:
        ModelError: it is not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"the device {name!r} is not there; use cpu, or auto to take what there is.") from error
    return chosen


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself: AVX512-BF16 or AMX, CUDA from compute capability 8.0."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(_capabilities().get("avx512_bf16") or has_tiles())


def has_tiles() -> bool:
    """Whether the CPU multiplies bfloat16 by tiles (AMX), an order of magnitude above its float32."""
    return bool(_capabilities().get("amx_bf16"))


def _capabilities() -> Mapping[str, object]:
    """What torch knows of the CPU."""
    import torch

    return getattr(torch.cpu, "get_capabilities", dict)()


def precision_of(name: str, device: str) -> str:
    """The number format of this name; "auto": bfloat16 where the device (as for `device_of`) multiplies it itself, else
    float32.

    Raises:
        ModelError: the device is not there.
    """
    if name != "auto":
        return name
    return "bfloat16" if native_bfloat16(device_of(device)) else "float32"


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Bytes of memory that this process holds, and the most that it ever held; zeros where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
        now, most = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError):
        return 0, 0
    return now, most


@contextlib.contextmanager
def one_core_each() -> Iterator[None]:
    """Torch computes on one core in this thread and in every thread that starts inside the block.

    Its results may depend on how many cores share a product; so computed, they do not depend on the machine's.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that drops what is not begun when the block is left by an error.

    Left by another thread than it was entered by, it waits for nobody: a pipeline that somebody forgot is ended by
    whichever thread collects garbage, one of the pool's own, for example, which would wait for itself.
    """
    pool, own = ThreadPoolExecutor(count), threading.get_ident()
    try:
        yield pool
    finally:
        pool.shutdown(wait=threading.get_ident() == own, cancel_futures=True)


class Crew:
    """Threads that take pieces of others' work while they have none of their own.

    Who works says so by `at_work`, and gives what can be shared to `shared`: as many of the pool's threads help as
    there are threads without work. Pieces are the same whoever computes them, and so is what they make.

    Args:
        pool: of as many threads as may help.
        count: how many work at once.
    """

    def __init__(self, pool: ThreadPoolExecutor, count: int):
        self._pool, self._idle, self._lock = pool, count, threading.Lock()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """This thread works inside the block, and shares what it can."""
        self._take()
        _OWN.crew = self
        try:
            yield
        finally:
            _OWN.crew = None
            self._idle_again()

    def each(self, work: Callable[[T], object], pieces: Sequence[T]) -> None:
        """`work` of every piece, by this thread and those that are idle."""
        import torch

        waiting, lock, graded = iter(pieces), threading.Lock(), torch.is_grad_enabled()

        def take() -> None:
            while True:
                with lock:
                    one = next(waiting, _NONE)
                if one is _NONE:
                    return
                work(one)  # type: ignore[arg-type]

        def help() -> None:
            try:
                with torch.set_grad_enabled(graded):
                    take()
            finally:
                self._idle_again()

        helpers: list[Future] = []
        while len(helpers) < len(pieces) - 1 and self._take(if_idle=True):
            helpers.append(self._pool.submit(help))
        try:
            take()
        finally:
            wait(helpers)
        for one in helpers:
            one.result()

    def _take(self, if_idle: bool = False) -> bool:
        with self._lock:
            if if_idle and self._idle < 1:
                return False
            self._idle -= 1
            return True

    def _idle_again(self) -> None:
        with self._lock:
            self._idle += 1


_NONE = object()


class _Own(threading.local):
    crew: Crew | None = None


_OWN = _Own()


def shared(work: Callable[[T], object], pieces: Sequence[T]) -> None:
    """`work` of every piece, which are independent; idle threads of the `Crew` that this thread is of help."""
    if _OWN.crew is not None and len(pieces) > 1:
        _OWN.crew.each(work, pieces)
        return
    for one in pieces:
        work(one)


def out_of_memory(error: Exception) -> bool:
    """Whether a computation failed because memory ran out, on a GPU or beside it."""
    import torch

    words = (
        "out of memory",
        "can't allocate memory",
        "cannot allocate memory",
        "alloc_failed",
        "can't start new thread",
    )
    told = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(one in told for one in words)
    )


def unless_out_of_memory(work: Callable[..., T], *given: object) -> T | None:
    """`work(*given)`, or None; by the time this returns, what the failed attempt held is free again."""
    import torch

    try:
        return work(*given)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


class Clock:
    """Seconds by part of a pipeline, added up over its threads.

    Every thread adds to numbers of its own, so nothing is locked and a clock can be pickled with what holds it.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, str], float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Counts the time inside the `with` block to `part`."""
        key, start = (threading.get_ident(), part), time.perf_counter()
        try:
            yield
        finally:
            self._seconds[key] = self._seconds.get(key, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Part -> seconds so far, all threads together."""
        total: dict[str, float] = {}
        for (_, part), one in list(self._seconds.items()):
            total[part] = total.get(part, 0.0) + one
        return total
