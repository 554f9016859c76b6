"""The run folder: one run's files, its configuration, its record and its lock.

    config.toml  every value of the run        run.json  versions, device, hashes, times by stage, failures
    log.txt      warnings                      metrics.json  what `evaluate` found, one entry for each split

Files of ours are written to a temporary name and renamed. One process at a time may write.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import vpl
from vpl import images
from vpl.classes import ClassSet
from vpl.config import Config
from vpl.errors import RunError, VplError
from vpl.metrics import Confusion

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
    """

    def __init__(self, folder: str | Path, config: Config, *, leads: bool = True):
        self.folder = Path(folder)
        self.config = config
        self.leads = leads
        self.failures: dict[str, Failure] = {}
        self._lock = self._handler = None
        if not self.leads:
            return
        self._claim()
        try:
            self._sweep()
            self._settle_config()
        except BaseException:
            self.close()
            raise
        self._handler = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
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
            self._lock.close()

    def _claim(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            strangers = [item.name for item in self.folder.iterdir() if item.name != ".lock"]
            if strangers and not (self.folder / "config.toml").exists():
                raise RunError(
                    f"{self.folder} holds files ({sorted(strangers)[0]}) but no config.toml of vpl; "
                    "name an empty folder or one that vpl made."
                )
            self._lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise RunError(
                f"the run folder {self.folder} can't be written ({error.strerror}); name another."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunError(
                f"another process works in {self.folder}; wait until it ends, or name another folder."
            ) from None

    def _sweep(self) -> None:
        """Remove what a killed process left half written; the folder is ours alone."""
        for partial in self.folder.rglob(f".*{images.PARTIAL}"):
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
        images.write_text_atomic(path, self.config.to_toml())

    def record(self) -> dict:
        """What run.json says: versions, device, hashes, times by stage, failures."""
        return read_json(self.folder / "run.json")

    def note(self, **facts) -> None:
        """Add facts to run.json; of several training processes the first alone writes."""
        if self.leads:
            write_json(self.folder / "run.json", self.record() | facts)

    def note_stage(self, stage: str, seconds: float, count: int) -> None:
        """Add a stage's time to run.json; a continued stage adds up."""
        stages = self.record().get("stages", {})
        before = stages.get(stage, {"seconds": 0.0})["seconds"]
        stages[stage] = {"seconds": round(before + seconds, 3), "images": count}
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
        others = [one for one in metrics.get("evaluations", []) if one["split"] != split]
        new = {"split": split, "images": rows[0]["images"], "classes": list(classes.names), "rows": list(rows)}
        metrics["evaluations"] = [*others, new]
        write_json(path, metrics)


def scores_of(confusion: Confusion, classes: ClassSet) -> dict:
    """A confusion matrix and what follows from it, as plain data for metrics.json (fractions, null where undefined)."""
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
    names = ("torch", "transformers", "numpy", "scipy", "Pillow", "safetensors")
    return {"vpl": vpl.__version__, "python": platform.python_version()} | {name: version(name) for name in names}


def read_json(path: Path) -> dict:
    """The object in a JSON file of ours; empty when the file is absent."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it and run the stage again.") from error
    if not isinstance(tree, dict):
        raise RunError(f"{path} is damaged (no JSON object); delete it and run the stage again.")
    return tree


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file of ours, atomically."""
    images.write_text_atomic(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of ours."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it and run the stage again.") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, object] | None = None) -> None:
    """Write a safetensors file atomically; `facts` go as JSON under its one metadata key, so that bytes repeat."""
    metadata = {"vpl": json.dumps(facts, sort_keys=True)} if facts else None
    images.write_bytes_atomic(path, save({name: one.contiguous() for name, one in tensors.items()}, metadata))
