"""The run folder: one run's lock, configuration, record, log, and what made each of its files.

    config.toml  every value of the run        run.json  versions, device, hashes, times by stage, failures
    log.txt      commands, plans, messages     metrics.json  scores, one entry for each split, and signs
    state/       fingerprints                  replaced/  what was long to make and no longer fits, until `vpl clean`

How files are read and written is `files`'s. One process at a time may write. Nothing is written before `settle`, so a
command that fails in its beginning leaves the folder as it was, or no folder.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import platform
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from filelock import BaseFileLock

import vpl
from vpl.classes import ClassSet
from vpl.config import Config
from vpl.edges import locks, outputs, storage
from vpl.errors import RunError, VplError
from vpl.runs import state, stored
from vpl.runs.files import write_json
from vpl.runs.records import Choice, read_choices, read_evaluations, read_metrics, read_record

log = logging.getLogger("vpl")
Folder = TypeVar("Folder", bound="RunFolder")

REPLACED = "replaced"
ENCODINGS = "state/encodings"
"""Encodings that the next stage needs; they go when it has ended."""
MADE_BY_STAGES = ("regions", "seeds", "labels", "network")
"""Folders that show that a run has begun."""
LINKABLE = (
    *MADE_BY_STAGES, *(f"seeds/{name}" for name in ("text", "vision", "refined", "crf")), "predictions", "export",
    REPLACED, state.FOLDER,
)  # fmt: skip
"""Folders of a run that may be links to a larger disk, to folders that were empty."""


@dataclass(frozen=True)
class Failure:
    """An image that was skipped, and why; `stage` is "" where the photograph itself can't be used."""

    id: str
    reason: str
    stage: str = ""


class RunFolder:
    """A folder that one process alone may write. A context manager: leaving it lets the folder go.

    Args:
        folder: made when it is absent.
        config: what is run; written into the folder by `settle`.
        leads: whether this process writes; the further processes of a launched training only read.

    Attributes:
        began: when the work on it began, of `time.perf_counter`: run.json's times add up to what has passed since.

    Raises:
        RunError: the folder holds other things, belongs to another process, or was made by a vpl that did not note what
            made its files.
        ConfigError: a folder of images is a URL that holds a key or password.
    """

    def __init__(self, folder: str | Path, config: Config, *, leads: bool = True):
        self.folder = Path(folder)
        self.config = config
        self.leads = leads
        self.failures: dict[str, Failure] = {}
        self.said: list[str] = []
        self._lock: BaseFileLock | None = None
        self._settled = self._is_new = False
        self.began, self._timed, self._started = time.perf_counter(), 0.0, 0.0
        for data in (config.data, config.validation):
            storage.check(data.images, f"{data.name}.images")  # before anything is stored
        self._log = _LogFile()
        if self.leads:
            self._claim()
        try:
            self._check_age()
            self.state = state.State(self.folder)
            self._read_failures()
        except BaseException:
            self.close()
            raise
        log.addHandler(self._log)
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)  # for log.txt; what is shown is its handler's choice

    def __enter__(self: Folder) -> Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None:
            words = f"{error}" if isinstance(error, VplError) else f"{kind.__name__}: {error}"
            self._log.emit(log.makeRecord(log.name, logging.ERROR, "", 0, f"ended by {words}", (), None))
        self.close()

    def close(self) -> None:
        """Let the folder go; one that this process made and wrote nothing into is removed."""
        log.removeHandler(self._log)
        self._log.close()
        if self._lock is None:
            return
        if self._is_new and not self._settled:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
        self._lock = None

    def _claim(self) -> None:
        if re.search(r"[\ud800-\udfff]", str(self.folder)):
            raise RunError(f"the run folder {str(self.folder)!r} holds bytes that are no UTF-8; name another.")
        try:
            self._is_new = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            names = [item.name for item in self.folder.iterdir()]
            ours = (locks.NAME, state.FOLDER)  # there before config.toml is
            strangers = [name for name in names if name not in ours and not name.endswith(storage.PARTIAL)]
            for name in LINKABLE:
                outputs.take_linked(self.folder / name)
            if strangers and not (self.folder / "config.toml").exists():
                raise RunError(
                    f"{self.folder} holds files ({sorted(strangers)[0]}) but no config.toml of vpl; "
                    "name an empty folder or one that vpl made."
                )
        except OSError as error:
            raise RunError(
                f"the run folder {self.folder} can't be written ({error.strerror}); name another."
            ) from error
        self._lock = locks.claim(self.folder)

    def _check_age(self) -> None:
        begun = [name for name in MADE_BY_STAGES if (self.folder / name).exists()]
        if begun and not (self.folder / state.FOLDER).exists():
            raise RunError(
                f"{self.folder} was made by vpl 0.1, which did not note what made each file, so nothing can be added; "
                "vpl predict, report and export read it as it is. To go on, name a new folder."
            )

    # ------------------------------------------------------------------ configuration and log

    @property
    def stored(self) -> Config | None:
        """The configuration that the folder holds; None in a new one."""
        return stored.read(self.folder) if (self.folder / stored.FILE).exists() else None

    def settle(self) -> None:
        """Store the configuration; from here on this process writes into the folder.

        Raises:
            RunError: log.txt can't be written.
            OSError: the folder can't be written.
        """
        if not self.leads:
            return
        first = not self._settled
        if first:
            for partial in self.folder.rglob(f".*{storage.PARTIAL}"):  # left by a kill; the folder is ours alone
                partial.unlink()
        (self.folder / state.FOLDER).mkdir(exist_ok=True)  # before stages' folders, which without it are an older vpl's
        if first and (self.folder / stored.FILE).exists():
            for edit in stored.look(self.folder).edits:
                self.say(f"{self.folder / stored.FILE} was edited by hand: {edit}")
        stored.write(self.folder, self.config.to_toml(self._reasons()))
        if first:
            self._log.open(self.folder / "log.txt")
            self._started = time.perf_counter() - self.began
        self._settled = True

    def _reasons(self) -> dict[str, str]:
        """Why `vpl tune` chose values that the configuration still has. `vpl tune` itself tells of a damaged file."""
        own, found = self.config.flat(), {}
        for one in tuned(self.folder):
            if own.get(one.key) == one.value:
                found[one.key] = " ".join(one.reason.split())
        return found

    # ------------------------------------------------------------------ record

    def record(self) -> dict:
        """What run.json says: versions, device, hashes, times by stage, failures."""
        return read_record(self.folder)

    def note(self, **facts: object) -> None:
        """Add facts to run.json; of several training processes the first alone writes."""
        if self.leads:
            before = self.record()
            after = before | facts
            if after != before:
                write_json(self.folder / "run.json", after)

    def note_stage(
        self,
        stage: str,
        seconds: float,
        count: int,
        parts: Mapping[str, float] | None = None,
        busy: Mapping[str, float] | None = None,
        encoded: int | None = None,
    ) -> None:
        """Add a stage's time to run.json; a continued stage adds up.

        Args:
            parts: seconds by part of the work, all its threads together.
            busy: share of the time, 0 to 1, that each kind of thread worked; that of the latest process which worked.
            encoded: photographs that went through the encoder for it.
        """
        stages = self.record().get("stages", {})
        before = stages.get(stage, {})
        noted = before | {"seconds": round(before.get("seconds", 0.0) + seconds, 3), "images": count}
        if encoded is not None:
            noted["encoded"] = before.get("encoded", 0) + encoded
        if parts:
            known = before.get("parts", {})
            noted["parts"] = known | {name: round(known.get(name, 0.0) + one, 3) for name, one in parts.items()}
            noted["busy"] = dict(busy or {})
        stages[stage] = noted
        self.note(stages=stages)
        self._timed += seconds
        log.info("%s: %.1f s", stage, seconds)

    def _note_rest_of_time(self) -> None:
        """What no stage has counted of the wall clock of a command that has worked: its start, and what lay between."""
        if not self._timed and "other" in self.record().get("stages", {}):
            return
        elapsed, timed = time.perf_counter() - self.began, self._timed
        self.note_stage("start", self._started, 0)
        self.note_stage("other", max(elapsed - self._started - timed, 0.0), 0)

    def _read_failures(self) -> None:
        """Photographs that failed, from the state; truth masks that did, from run.json."""
        for identity, (_, reason) in self.state.failed.items():
            self.failures[identity] = Failure(identity, reason)
        for one in self.record().get("failures", []):
            if isinstance(one, dict) and one.get("stage") and isinstance(one.get("id"), str):
                self.failures[one["id"]] = Failure(one["id"], str(one.get("reason", "")), str(one["stage"]))

    def fail(self, identity: str, error: VplError, stage: str = "") -> None:
        """Remember an image that can't be used; `note_failures` writes it down."""
        if identity not in self.failures:
            log.warning("%s skipped: %s", identity, error)
        self.failures[identity] = Failure(identity, str(error), stage)

    def say(self, *lines: str) -> None:
        """What the user should know and nothing has to be done about: into log.txt, and `said` for who shows it."""
        for line in lines:
            log.info("%s", line)
            self.said.append(line)

    def note_failures(self) -> None:
        """Put the failures into run.json, in one go."""
        if self._settled:
            self.note(failures=[dataclasses.asdict(failure) for failure in self.failures.values()])

    def note_evaluation(
        self,
        split: str,
        classes: ClassSet,
        rows: Sequence[dict],
        facts: Mapping[str, object] = MappingProxyType({}),
        *,
        held_out: bool = False,
    ) -> None:
        """Put the rows of one split into metrics.json in the place of older ones; held-out ones stand last.

        Args:
            rows: each with `of`, the fingerprint of the label maps or of the network that it scores.
            facts: `fingerprint` of all that was scored and compared with, and how its truth and `tags` agree.
        """
        kept = [one for one in read_evaluations(self.folder) if bool(one.get("held_out")) != held_out]
        new = {"split": split, "images": rows[0]["images"], "classes": list(classes.names)}
        new |= {**facts, "rows": list(rows)}
        self.note_metrics(evaluations=[*kept, new | {"held_out": True}] if held_out else [new, *kept])

    def drop_evaluation(self, *, held_out: bool) -> None:
        """Take the rows of one split out of metrics.json."""
        kept = [one for one in read_evaluations(self.folder) if bool(one.get("held_out")) != held_out]
        self.note_metrics(evaluations=kept)

    def note_metrics(self, **facts: object) -> None:
        """Put facts into metrics.json, which keeps one order: evaluations, signs without truth, signs with it."""
        found = read_metrics(self.folder) | facts
        order = ("evaluations", "label_free", "with_truth")
        write_json(self.folder / "metrics.json", {key: found[key] for key in order if found.get(key)})

    # ------------------------------------------------------------------ what no longer fits

    def set_aside(self, path: Path, name: str = "") -> None:
        """Move a file or folder of the run, if it is there, to `replaced/`: to the same place, or under a name."""
        if path.exists():
            _move(path, self.folder / REPLACED / (name or path.relative_to(self.folder)))

    def put_back(self, path: Path, name: str = "") -> None:
        """Move what was set aside to its place."""
        source = self.folder / REPLACED / (name or path.relative_to(self.folder))
        if source.exists():
            _move(source, path)


def clean(folder: Path) -> int:
    """Remove what a run has set aside; how many bytes that frees.

    Raises:
        RunError: it is no run folder, or another process works in it.
    """
    if not (folder / "config.toml").exists():
        raise RunError(f"{folder} is no run folder (there is no config.toml); expected one that vpl run made.")
    lock = locks.claim(folder)
    try:
        size = 0
        for place in (folder / REPLACED, folder / ENCODINGS):
            size += sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            shutil.rmtree(place, ignore_errors=True)
    finally:
        lock.release()
    return size


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


def tuned(folder: Path) -> tuple[Choice, ...]:
    """What `vpl tune` chose for a run folder; none where its file is damaged, which `vpl tune` itself tells."""
    try:
        return read_choices(folder)[1]
    except RunError:
        return ()


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a full disk is told by what fails to write results."""


class _LogFile(logging.Handler):
    """log.txt, and what is said before it is opened. What can't be written to it is lost there alone."""

    def __init__(self):
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._early: list[logging.LogRecord] = []
        self._file: logging.FileHandler | None = None

    def open(self, path: Path) -> None:
        """Begin to write.

        Raises:
            RunError: the file can't be opened.
        """
        try:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise OSError(errno.EEXIST, "it is no regular file", str(path))
            self._file = _File(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise RunError(f"{path} can't be written ({error.strerror}); mend that, then start again.") from error
        self._file.setFormatter(self.formatter)
        for record in self._early:
            self._file.handle(record)
        self._early.clear()

    def emit(self, record: logging.LogRecord) -> None:
        if self._file is None:
            self._early.append(record)
        else:
            self._file.handle(record)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def versions() -> dict[str, str]:
    """Versions of everything that shapes the numbers."""
    names = ("torch", "transformers", "numpy", "scipy", "Pillow", "safetensors")
    return {"vpl": vpl.__version__, "python": platform.python_version()} | {name: version(name) for name in names}
