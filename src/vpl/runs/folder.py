"""The run folder: one run's files, its configuration, its record and its lock.

    config.toml  every value of the run        run.json  versions, device, hashes, times by stage, failures
    log.txt      warnings                      metrics.json  what `evaluate` found, one entry for each split

How files are read and written is `files`'s. One process at a time may write.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from filelock import BaseFileLock

import vpl
from vpl.classes import ClassSet
from vpl.config import Config
from vpl.edges import locks, storage
from vpl.errors import RunError, VplError
from vpl.runs.files import NUMBER, damaged, read_evaluations, read_json, write_json

log = logging.getLogger("vpl")
Folder = TypeVar("Folder", bound="RunFolder")

STAGE_OF_SECTION = {
    "": "prototypes",
    "data": "prototypes",
    "clip": "prototypes",
    "prompts": "prototypes",
    "seeds": "prototypes",
    "prototypes": "prototypes",
    "refine": "labels",
    "labels": "labels",
    "crf": "labels",
    "decoder": "network",
    "rsc": "network",
    "train": "network",
    "validation": "evaluation",
    "predict": "evaluation",
}
"""The first stage that reads a configuration section; once that stage has begun, its values are fixed."""

STAGE_FOLDERS = {"prototypes": "regions", "labels": "seeds", "network": "network"}


@dataclass(frozen=True)
class Failure:
    """An image that was skipped, and why."""

    id: str
    reason: str


class RunFolder:
    """A folder that one process alone may write. A context manager: leaving it lets the folder go.

    Args:
        folder: made when it is absent.
        config: what is run; written into the folder.
        leads: whether this process writes; the further processes of a launched training only read.

    Raises:
        RunError: the folder holds other things, belongs to another process, or a finished stage depended on a value
            that differs.
        ConfigError: a folder of images is a URL that holds a key or password.
    """

    def __init__(self, folder: str | Path, config: Config, *, leads: bool = True):
        self.folder = Path(folder)
        self.config = config
        self.leads = leads
        self.failures: dict[str, Failure] = {}
        self._lock: BaseFileLock | None = None
        self._handler: _LogFile | None = None
        for data in (config.data, config.validation):
            storage.check(data.images, f"{data.name}.images")  # before anything is stored
        if not self.leads:
            return
        self._claim()
        try:
            self._sweep()
            self._settle_config()
            self._handler = _LogFile(self.folder / "log.txt")
        except BaseException:
            self.close()
            raise
        log.addHandler(self._handler)

    def __enter__(self: Folder) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the folder go."""
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
        if self._lock is not None:
            self._lock.release()

    def _claim(self) -> None:
        if re.search(r"[\ud800-\udfff]", str(self.folder)):
            raise RunError(f"the run folder {str(self.folder)!r} holds bytes that are no UTF-8; name another.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = [item.name for item in self.folder.iterdir()]
            strangers = [name for name in names if name != locks.NAME and not name.endswith(storage.PARTIAL)]
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

    def _sweep(self) -> None:
        """Remove what a killed process left half written; the folder is ours alone."""
        for partial in self.folder.rglob(f".*{storage.PARTIAL}"):
            partial.unlink()

    def _settle_config(self) -> None:
        path = self.folder / "config.toml"
        if path.exists():
            stored = Config.from_toml(path)
            fixed = {}
            for key, (old, new) in stored.differences(self.config).items():
                stage = STAGE_OF_SECTION[key.rpartition(".")[0]]
                if stage in STAGE_FOLDERS and (self.folder / STAGE_FOLDERS[stage]).exists():
                    fixed[key] = f"{key} was {old!r}, is now {new!r}"
            if fixed:
                raise RunError(
                    f"{self.folder} was made with another configuration: {'; '.join(fixed.values())}. "
                    "Give the old values back, or name a new folder."
                )
        storage.write_text_atomic(path, self.config.to_toml(self._reasons()))

    def _reasons(self) -> dict[str, str]:
        """Why `vpl tune` chose values that the configuration still has. `vpl tune` itself tells of a damaged file."""
        try:
            choices = read_json(self.folder / "tune.json").get("choices")
        except RunError:
            return {}
        own, found = self.config.flat(), {}
        for one in choices if isinstance(choices, list) else ():
            key, reason = (one.get("key"), one.get("reason")) if isinstance(one, dict) else (None, None)
            if isinstance(key, str) and isinstance(reason, str) and own.get(key) == one.get("value"):
                found[key] = " ".join(reason.split())
        return found

    def record(self) -> dict:
        """What run.json says: versions, device, hashes, times by stage, failures."""
        path = self.folder / "run.json"
        record = read_json(path)
        kinds = {"clip": dict, "data": dict, "stages": dict, "failures": list}
        wrong = [key for key, kind in kinds.items() if not isinstance(record.get(key, kind()), kind)]
        hashes = [record.get(key, {}).get("hash", "") for key in ("clip", "data") if key not in wrong]
        stages = record.get("stages", {}).values() if "stages" not in wrong else ()
        if (
            wrong
            or not all(isinstance(one, str) for one in hashes)
            or not all(isinstance(one, dict) and isinstance(one.get("seconds"), NUMBER) for one in stages)
        ):
            raise damaged(path, f"{' and '.join(wrong) or 'a hash or a time'} is no value that vpl writes")
        return record

    def note(self, **facts: object) -> None:
        """Add facts to run.json; of several training processes the first alone writes."""
        if self.leads:
            write_json(self.folder / "run.json", self.record() | facts)

    def note_stage(
        self,
        stage: str,
        seconds: float,
        count: int,
        parts: Mapping[str, float] | None = None,
        busy: Mapping[str, float] | None = None,
    ) -> None:
        """Add a stage's time to run.json; a continued stage adds up.

        Args:
            parts: seconds by part of the work, all its threads together.
            busy: share of the time, 0 to 1, that each kind of thread worked; that of the latest process which worked.
        """
        stages = self.record().get("stages", {})
        before = stages.get(stage, {})
        noted = before | {"seconds": round(before.get("seconds", 0.0) + seconds, 3), "images": count}
        if parts:
            known = before.get("parts", {})
            noted["parts"] = known | {name: round(known.get(name, 0.0) + one, 3) for name, one in parts.items()}
            noted["busy"] = dict(busy or {})
        stages[stage] = noted
        self.note(stages=stages)

    def fail(self, identity: str, error: VplError) -> None:
        """Remember an image that can't be used."""
        if identity not in self.failures:
            log.warning("%s skipped: %s", identity, error)
            self.failures[identity] = Failure(identity, str(error))
            self.note(failures=[dataclasses.asdict(failure) for failure in self.failures.values()])

    def note_evaluation(self, split: str, classes: ClassSet, rows: Sequence[dict]) -> None:
        """Put the rows of one split into metrics.json in the place of older ones of that split."""
        path = self.folder / "metrics.json"
        metrics = read_json(path)
        others = [one for one in read_evaluations(self.folder) if one["split"] != split]
        new = {"split": split, "images": rows[0]["images"], "classes": list(classes.names), "rows": list(rows)}
        metrics["evaluations"] = [*others, new]
        write_json(path, metrics)


class _LogFile(logging.FileHandler):
    """log.txt. What can't be written to it is lost there alone: warnings are shown on stderr too."""

    def __init__(self, path: Path):
        try:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise OSError(errno.EEXIST, "it is no regular file", str(path))
            super().__init__(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise RunError(f"{path} can't be written ({error.strerror}); mend that, then start again.") from error
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told by what fails to write results; a log must not add tracebacks to it."""


def versions() -> dict[str, str]:
    """Versions of everything that shapes the numbers."""
    names = ("torch", "transformers", "numpy", "scipy", "Pillow", "safetensors")
    return {"vpl": vpl.__version__, "python": platform.python_version()} | {name: version(name) for name in names}
