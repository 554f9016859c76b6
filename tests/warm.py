"""The command line in processes of their own that start at once: a warm process forks one child for each job.

A job is a list of steps that its child takes in order: commands of vpl as a user gives them, and faults of the machine
under which the commands after them run. The child is a real process: it can be killed, it holds real locks, its disk
can be really full. Run as a program this file is the warm process:

    python tests/warm.py FOLDER        one request (JSON) a line on stdin, one answer a line on stdout
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LONGEST = 60.0
"""Seconds that a job may take before it counts as hanging."""
NEW_MOUNTS, NEW_USER, PRIVATE, READ_ONLY, REMOUNT, BIND = 0x20000, 0x10000000, 0x44000, 0x1, 0x20, 0x1000
MOST_TOLD = 2**20
"""Bytes that one command may print."""
NO_MOUNTS = 77
"""Exit status of a child that may not mount anything."""


# --------------------------------------------------------------------------------------------------- a run to disturb
SIDE = 32
STAGES = ("prototypes", "seeds", "labels", "train", "evaluate", "predict")


def command(stage: str, folder: Path, tree: Path) -> list:
    """A stage as a user gives it: two images a batch, a checkpoint every second step."""
    if stage == "predict":
        given = ["predict", "--model", folder, "--images", tree / "images" / "train", "--out", folder / "out"]
        return ["vpl", *given, "--fast", "--probabilities", "--overlays", "--device", "cpu"]
    given = ["vpl", stage, folder, "--preset", "scenes", "--device", "cpu", "--batch-size", "2", "--steps", "5"]
    for name, place in (("", "train"), ("val-", "val")):
        given += [f"--{name}images", tree / "images" / place, f"--{name}tags", tree / f"{place}.csv"]
        given += [f"--{name}masks", tree / "masks" / place]
    small = {"train.checkpoint_every": 2, "train.crop": SIDE, "train.batch": 2, "decoder.width": 16, "decoder.heads": 2}
    small |= {"crf.rounds": 2, "predict.scales": "[1.0]", "train.flip": "false"}
    small |= {"train.scale_low": 1.0, "train.scale_high": 1.0, "data.split": "train", "validation.split": "val"}
    for key, one in small.items():
        given += ["--set", f"{key}={one}"]
    return given


def held(folder: Path) -> dict[str, object]:
    """Every file of a run by its name: its bytes, or what it says besides times and speeds. Journals tell of kills."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if (
            path.is_dir()
            or path.name in ("log.txt", ".lock", ".vpl-made.jsonl")
            or path.name.startswith("events.")
            or name.startswith("state/")
        ):
            continue
        found[name] = path.read_bytes()
    if "run.json" in found:
        record = json.loads(found["run.json"])
        record["stages"] = {stage: one["images"] for stage, one in record.get("stages", {}).items()}
        found["run.json"] = record
    if "network/curve.csv" in found:
        found["network/curve.csv"] = [row.rsplit(",", 1)[0] for row in found["network/curve.csv"].decode().split("\n")]
    return found


# ------------------------------------------------------------------------------------------------------- in the tests
@dataclass(frozen=True)
class Told:
    """What one command of a job answered."""

    status: int
    out: str
    err: str


class Job:
    """A child at work."""

    def __init__(self, warm: Warm, pid: int, folder: Path):
        self.pid, self._warm, self._folder = pid, warm, folder

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The child's exit status, -9 after a kill; a child that hangs fails the test."""
        status = self._warm.ask(wait=self.pid)["status"]
        assert status is not None, f"no end after {LONGEST} s: {(self._folder / 'err').read_text()[-2000:]}"
        return status

    def told(self) -> list[Told]:
        """What its commands have answered so far."""
        return [Told(*json.loads(path.read_text())) for path in sorted(self._folder.glob("told-*"))]


class Warm:
    """The warm process, as tests see it. A context manager."""

    def __init__(self, folder: Path):
        self._folder, self._jobs = folder, 0

    def __enter__(self) -> Warm:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, str(self._folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def ask(self, **request) -> dict:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(self, *steps: list) -> Job:
        """Begin a job: steps are ["vpl", argument, ...] or [name of a fault below, argument, ...]."""
        self._jobs += 1
        folder = self._folder / f"job-{self._jobs:04d}"
        folder.mkdir()
        plain = [[str(part) if isinstance(part, Path) else part for part in step] for step in steps]
        return Job(self, self.ask(steps=plain, folder=str(folder))["pid"], folder)

    def run(self, *steps: list) -> list[Told]:
        """A whole job; what its commands answered."""
        job = self.start(*steps)
        status = job.wait()
        if status == NO_MOUNTS:
            import pytest

            pytest.skip("this user may not mount a file system here")
        assert status == 0, (status, (job._folder / "err").read_text()[-3000:])
        return job.told()

    def vpl(self, *arguments: str | Path) -> Told:
        """One command."""
        return self.run(["vpl", *arguments])[0]


# ------------------------------------------------------------------------------------------------- faults of a machine
def die_at(folder: str, event: int) -> None:
    """kill -9 of this very process at the n-th time that something changes in the folder; a file that was about to get
    its name is left half written."""
    _on_change(folder, lambda number, kind, path: _die(kind, path) if number == event else None)


def _die(kind: str, path: str) -> None:
    if kind == "os.rename":
        os.truncate(path, Path(path).stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def count_into(folder: str, file: str) -> None:
    """Write the number of changes in the folder into a file, after each."""
    _on_change(folder, lambda number, kind, path: _note(file, str(number)))


def on_open(path: str, action: str, target: str) -> None:
    """Before a file is opened for the second time: replace it by another, or remove it."""
    seen = []

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and _text(arguments[0]) == path:
            seen.append(path)
            if len(seen) == 2:
                Path(path).unlink()
                if action == "replace":
                    shutil.copy(target, path)

    sys.addaudithook(watch)


def _on_change(folder: str, act) -> None:
    start, count = folder.rstrip("/"), 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        path = _text(arguments[0])
        if path != start and not path.startswith(f"{start}/"):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        count += 1
        act(count, event, path)

    sys.addaudithook(watch)


def _text(path) -> str:
    return os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""


def _note(file: str, text: str) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(handle, text.encode())
    os.close(handle)


def small_disk(folder: str, size: int) -> None:
    """Lay a file system of `size` bytes over the folder; a second time: change its size."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if folder in _mounted:
        _mount(b"tmpfs", folder, REMOUNT, f"size={size}")
    else:
        _own_mounts()
        _mount(b"tmpfs", folder, 0, f"size={size}")
        _mounted.add(folder)


def read_only(folder: str) -> None:
    """Make what lies in the folder unchangeable, for root too."""
    _own_mounts()
    _mount(folder.encode(), folder, BIND)
    _mount(folder.encode(), folder, BIND | REMOUNT | READ_ONLY)


_mounted: set[str] = set()


def _own_mounts() -> None:
    """From now on this process sees mounts of its own, which end with it."""
    if _mounted:
        return
    user, group = os.geteuid(), os.getegid()
    if ctypes.CDLL(None).unshare(NEW_MOUNTS if user == 0 else NEW_MOUNTS | NEW_USER):
        os._exit(NO_MOUNTS)
    if user:
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{file}").write_text(text)
    _mount(b"none", "/", PRIVATE)
    _mounted.add("")


def _mount(what: bytes, where: str, flags: int, options: str = "") -> None:
    kind = b"tmpfs" if what == b"tmpfs" else None
    if ctypes.CDLL(None).mount(what, where.encode(), kind, flags, options.encode() or None):
        os._exit(NO_MOUNTS)


def largest_file(size: int) -> None:
    """No file may grow above `size` bytes; -1: any."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size < 0 else size, hard))


def most_memory(size: int) -> None:
    """This process may have `size` bytes more of address space than it has now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def clock(start: float, step: float) -> None:
    """The wall clock says `start`, and `step` seconds more, or less, each time it is asked."""
    now = [start]

    def tell() -> float:
        now[0] += step
        return max(0.0, now[0])

    time.time = tell
    time.time_ns = lambda: int(tell() * 1e9)


def copy(source: str, target: str) -> None:
    """Keep what a mount of this process holds."""
    shutil.copytree(source, target)


FAULTS = {
    one.__name__: one
    for one in (die_at, count_into, on_open, small_disk, read_only, largest_file, most_memory, clock, copy)
}


# ------------------------------------------------------------------------------------------------ in the warm process
NEEDED = (
    "tokenizers", "torch._dynamo", "tensorboard.summary.writer.record_writer", "vpl.judge.checkup", "vpl.cli",
    "vpl.network.predict", "vpl.pages.report", "vpl.runs.stages", "vpl.judge.tune",
)  # fmt: skip


def serve(folder: Path) -> None:
    """Import what the commands import, then fork a child per request."""
    for module in NEEDED:
        importlib.import_module(module)
    importlib.import_module("vpl.edges.images")._known_formats()
    os.chdir(folder)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"status": _wait(request["wait"])}
        else:
            pid = os.fork()
            if pid == 0:
                _child(request["steps"], Path(request["folder"]))
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def _wait(pid: int) -> int | None:
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _child(steps: list[list], folder: Path) -> None:
    """Take the steps; never returns."""
    status = 1
    out, err = (os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND) for name in ("out", "err"))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    _open_streams()
    try:
        for number, (name, *arguments) in enumerate(steps):
            if name == "vpl":
                _command(arguments, folder / f"told-{number:03d}")
            else:
                FAULTS[name](*arguments)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(status)


def _open_streams() -> None:
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _command(arguments: list[str], told: Path) -> None:
    """One command, its answers through pipes: files would share the disk's faults."""
    from vpl.cli import main

    kept, ends = [os.dup(1), os.dup(2)], [os.pipe(), os.pipe()]
    for number, (reader, writer) in enumerate(ends, 1):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, MOST_TOLD)
        os.set_blocking(reader, False)
        os.dup2(writer, number)
        os.close(writer)
    _open_streams()
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    except BaseException:
        import traceback

        traceback.print_exc()
        status = "traceback"
    texts = []
    for number, (reader, _) in enumerate(ends, 1):
        (sys.stdout, sys.stderr)[number - 1].flush()
        with contextlib.suppress(BlockingIOError):
            texts.append(os.read(reader, MOST_TOLD).decode(errors="replace"))
        texts += [""] * (number - len(texts))
        os.dup2(kept[number - 1], number)
        os.close(reader)
    _open_streams()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit[1], limit[1]))
    told.write_text(json.dumps([status, *texts]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
