"""The training curve: one record a step, as rows of curve.csv and, where tensorboard is installed, as its events."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from vpl.edges import storage
from vpl.errors import RunError

CURVE_FILE = "curve.csv"


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step: losses are the batch's means, and a term that is off is 0.

    loss = cross_entropy + λ (pull + complement + negatives) + the other terms times their weights
    """

    step: int
    loss: float
    cross_entropy: float
    pull: float
    complement: float
    negatives: float
    affinity: float
    texts: float
    area: float
    learning_rate: float
    images_per_second: float


class CurveFile:
    """curve.csv, one row a step, and TensorBoard events where tensorboard is installed; rows before `start` stay."""

    def __init__(self, folder: Path, start: int):
        self._path, self._start, self._folder = folder / CURVE_FILE, start, folder
        self._names = [field.name for field in fields(StepRecord)]

    def __enter__(self):
        kept = []
        if self._start and self._path.exists():
            try:
                with self._path.open(newline="", encoding="utf-8") as file:
                    kept = [row for row in csv.reader(file) if row and row[0].isdecimal() and int(row[0]) < self._start]
            except (OSError, ValueError, csv.Error) as error:
                raise RunError(f"{self._path} is damaged ({error}); delete it, then start again.") from error
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self._names, *kept])
        storage.write_text_atomic(self._path, text.getvalue())
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._events: _Events | None = None
        with contextlib.suppress(ImportError):  # no tensorboard
            self._events = _Events(self._folder, self._start)
        return self

    def add(self, record: StepRecord) -> None:
        row = asdict(record)
        try:
            self._rows.writerow([row["step"], *(f"{row[name]:.7g}" for name in self._names[1:])])
            self._file.flush()
            if self._events is not None:
                self._events.add(record.step, {name: row[name] for name in self._names[1:]})
        except OSError as error:
            raise RunError(f"{self._path} can't be written ({error.strerror}); make room, then start again.") from error

    def __exit__(self, *_):
        with contextlib.suppress(OSError):  # a full disk: `add` has told
            self._file.close()
        if self._events is not None:
            self._events.close()


class _Events:
    """A TensorBoard event file, written as it goes: torch's own writer has a thread that a full disk ends in a
    traceback."""

    def __init__(self, folder: Path, start: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        place = folder / f"events.out.tfevents.{time.time_ns():020d}.{os.getpid()}"
        self._file = place.open("ab", buffering=0)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=start, session_log=SessionLog(status=SessionLog.START))  # later steps of before are void

    def add(self, step: int, values: dict[str, float]) -> None:
        made = [self._summary.Value(tag=name, simple_value=one) for name, one in values.items()]
        self._write(step=step, summary=self._summary(value=made))

    def _write(self, **content: object) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        self._file.close()
