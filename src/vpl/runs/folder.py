"""The run folder: one run's files, its configuration, its record and its lock.

    config.toml  every value of the run        run.json  versions, device, hashes, times by stage, failures
    log.txt      warnings                      metrics.json  what `evaluate` found, one entry for each split

Files of ours are written to a temporary name and renamed. One process at a time may write.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

import vpl
from vpl.classes import ClassSet
from vpl.config import Config
from vpl.edges import images, locks, storage
from vpl.errors import DataError, RunError, VplError
from vpl.method.metrics import Confusion

log = logging.getLogger("vpl")

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

NUMBER = (int, float)

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
        self._lock = self._handler = None
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

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_) -> None:
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

    def note(self, **facts) -> None:
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


def scores_of(confusion: Confusion, classes: ClassSet) -> dict:
    """A confusion matrix and what follows from it, as plain data for metrics.json (fractions, null where undefined).

    Raises:
        DataError: no pixel was counted.
    """
    if not confusion.matrix.any():
        raise DataError("nothing could be evaluated: the truth masks hold 255 (ignore) alone; check data.masks.")
    names = ("background", *classes.names)

    def by_name(values) -> dict[str, float | None]:
        return {name: None if np.isnan(one) else float(one) for name, one in zip(names, values, strict=True)}

    return {
        "images": confusion.images,
        "miou": float(confusion.miou()),
        "pixel_accuracy": float(confusion.pixel_accuracy()),
        "iou": by_name(confusion.iou()),
        "precision": by_name(confusion.precision()),
        "recall": by_name(confusion.recall()),
        "confusion": confusion.matrix.tolist(),
    }


def versions() -> dict[str, str]:
    """Versions of everything that shapes the numbers."""
    names = ("torch", "transformers", "numpy", "scipy", "Pillow", "safetensors", "numba")
    return {"vpl": vpl.__version__, "python": platform.python_version()} | {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # numba alone may be missing
        return "absent"


def read_json(path: Path) -> dict:
    """The object in a JSON file of ours; empty when the file is absent."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(tree, dict):
        raise damaged(path, "no JSON object")
    return tree


def read_evaluations(folder: Path) -> list[dict]:
    """What metrics.json of a run holds of each split: `split`, `images`, `classes`, `rows` with a name and scores."""
    path = folder / "metrics.json"
    found = read_json(path).get("evaluations", [])
    if not isinstance(found, list) or not all(map(_is_evaluation, found)):
        raise damaged(path, "its evaluations are no values that vpl writes")
    return found


def _is_evaluation(one: object) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(one.get("split"), str)
        and isinstance(one.get("images"), int)
        and isinstance(one.get("rows"), list)
        and all(map(_is_row, one["rows"]))
    )


def _is_row(row: object) -> bool:
    """Whether this is one line of an evaluation: a name, and scores as numbers or null."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("name"), str)
        and all(isinstance(row.get(key), (*NUMBER, type(None))) for key in ("miou", "pixel_accuracy"))
    )


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file of ours, atomically."""
    storage.write_text_atomic(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of ours."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, error) from error


def read_facts(path: Path) -> dict:
    """What `write_tensors` noted beside the tensors of a file; empty where it noted nothing."""
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {}).get("vpl", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(facts, dict):
        raise damaged(path, "its facts are no object")
    return facts


def read_prototypes(path: Path, dim: int) -> dict[str, Tensor]:
    """`text` and `vision` prototypes of a run, (P, `dim`) float each."""
    found = read_tensors(path)
    text, vision = (found.get(key) for key in ("text", "vision"))
    if text is None or vision is None or text.shape != vision.shape or text.ndim != 2 or text.shape[1] != dim:
        raise damaged(path, f"expected text and vision of one shape (P, {dim})")
    if not all(one.is_floating_point() and bool(one.isfinite().all()) for one in (text, vision)):
        raise damaged(path, "it holds values that are no finite floats")
    return found


def read_regions(path: Path, dim: int, classes: int, samples: int) -> dict[str, Tensor]:
    """A batch's regions: `embeddings` (N, `dim`), `class` and `sample` (N,) within their bounds, `tag_ranks`."""
    found = read_tensors(path)
    try:
        embeddings, numbers, owners = (found[key] for key in ("embeddings", "class", "sample"))
        fit = (
            embeddings.shape == (len(numbers), dim)
            and numbers.shape == owners.shape == (len(numbers),)
            and found["tag_ranks"].ndim == 1
            and embeddings.is_floating_point()
            and found["tag_ranks"].is_floating_point()
            and not (numbers.is_floating_point() or owners.is_floating_point())
            and bool(embeddings.isfinite().all())
            and bool(((numbers >= -1) & (numbers < classes) & (owners >= 0) & (owners < samples)).all())
        )
    except (KeyError, TypeError) as error:
        raise damaged(path, f"it lacks {error}") from error
    if not fit:
        raise damaged(path, "its regions don't belong to these images and classes")
    return found


def read_map(path: Path) -> UInt8[np.ndarray, "H W"]:
    """A label map of ours."""
    try:
        return images.read_mask(path)
    except DataError as error:
        raise RunError(f"{error} It is made anew when you delete it and run vpl labels again.") from error


def damaged(path: Path, reason: object) -> RunError:
    """A file of the run folder that can't be used."""
    words = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    return RunError(f"{path} is damaged ({words}); delete it and run the stage again.")


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, object] | None = None) -> None:
    """Write a safetensors file atomically; `facts` go as JSON under its one metadata key, so that bytes repeat."""
    metadata = {"vpl": json.dumps(facts, sort_keys=True)} if facts else None
    storage.write_bytes_atomic(path, save({name: one.contiguous() for name, one in tensors.items()}, metadata))
