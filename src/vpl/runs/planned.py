"""A run whose list is open, and no photograph or weights yet: enough to compare what is asked with what is there.

    state/clip.json    what the CLIP was when its weights were last read: their hash, and size and times of its files

Nothing here needs torch, so that "nothing to do" is said in a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpl.classes import ClassSet
from vpl.classes import scenes as scene_classes
from vpl.clip.places import files_of
from vpl.config import Config, DataConfig
from vpl.edges.datasets import Dataset, Sample, open_dataset
from vpl.edges.tags import photographs
from vpl.errors import ConfigError, RunError, VplError
from vpl.progress import Progress, silent
from vpl.runs import inventory
from vpl.runs.contents import Contents, signature
from vpl.runs.files import read_json, write_json
from vpl.runs.folder import RunFolder, versions
from vpl.runs.plan import EXPORTS, FREE, Plan, compare, digest, encoding_of
from vpl.runs.review import reviewed
from vpl.runs.state import FOLDER as STATE_FOLDER

MEMORY = "clip.json"
TARGETS: dict[str, tuple[str, ...]] = {
    "run": ("report",),
    "prototypes": ("prototypes",),
    "seeds": ("maps",),
    "labels": ("masks",),
    "train": ("network",),
    "evaluate": ("scores", "network scores", "signs"),
    "report": ("report",),
}
"""Command -> the stages that it brings."""


class Unread(VplError):
    """What a plan compares with is not known before the weights are read."""


class Planned(RunFolder):
    """A run folder whose data set is open. A context manager: leaving it lets the folder go.

    Args:
        folder: made when it is absent.
        config: what to run.
        workers: threads that read photographs whose bytes are not known.
        progress: shows progress.
        relearn: learn prototypes and network again also where only photographs or tags have changed.
        leads: whether this process writes.

    Attributes:
        passing: id -> fingerprint of the photographs that failed in this process.

    Raises:
        RunError: the folder is another's, belongs to another process, or was made by an earlier vpl.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Config,
        *,
        workers: int = 1,
        progress: Progress = silent,
        relearn: bool = False,
        leads: bool = True,
    ):
        super().__init__(folder, config, leads=leads)
        self.image_workers, self.progress, self.relearn = workers, progress, relearn
        self._dataset: Dataset | None = None
        self._validation: Dataset | None = None
        self._contents: Contents | None = None
        self.passing: dict[str, str] = {}
        self._content_of: dict[str, str] = {}
        self._encoding = ""
        self.unscored = ""
        """Why truth masks that were named give no scores."""

    def close(self) -> None:
        """Note what is still to be noted, and let the folder go."""
        try:
            if self._settled and self.leads:
                self._note_rest()
        except (OSError, VplError):
            pass  # a full disk or a damaged file: what met it first has told
        finally:
            super().close()

    def _note_rest(self) -> None:
        self._note_rest_of_time()
        self.note_failures()
        if self._contents is not None and self._dataset is not None:
            unseen = self._validation.samples if self._validation else ()
            self._contents.close(inventory.files_of([*self._dataset.samples, *unseen]))
            self.state.close(one.id for one in self._dataset.samples)
        else:
            self.state.close()

    @property
    def dataset(self) -> Dataset:
        """The samples and classes of the run."""
        if self._dataset is None:
            self._dataset = reviewed(dataset_of(self.config.data), self.folder)
        return self._dataset

    @property
    def held_out(self) -> tuple[Sample, ...]:
        """The samples of [validation] that have a truth mask; none where there is no such split."""
        return tuple(sample for sample in self.validation if sample.mask is not None)

    @property
    def validation(self) -> tuple[Sample, ...]:
        """The samples of [validation]."""
        return self.validation_list.samples if self.validation_list else ()

    @property
    def validation_list(self) -> Dataset | None:
        """The list of [validation]; None where there is none.

        Raises:
            ConfigError: tags or masks are given, and no photographs.
        """
        given = self.config.validation
        if not given.images and (given.tags or given.masks):
            raise ConfigError("validation.images is empty; say where the held-out images are (--val-images FOLDER).")
        if self._validation is None and given.images:
            self._validation = dataset_of(given, self.classes)
        return self._validation

    def told_of_lists(self) -> list[tuple[str, str]]:
        """(kind, line) of all that is to be said of the list and of the held-out list."""
        told = [("left out", one) for one in self.dataset.problems]
        told += [("warning", one) for one in self.dataset.warnings] + [("note", one) for one in self.dataset.notes]
        if self.validation_list is not None:
            told += [("held-out list: left out", one) for one in self.validation_list.problems]
            told += [("held-out list: warning", one) for one in (*self.validation_list.warnings, *self._doubts())]
        return told

    def _doubts(self) -> list[str]:
        """What may be a mistake where a held-out list is given."""
        doubts = []
        if not self.held_out and not self.config.validation.masks:
            doubts.append(
                "held-out photographs have no truth masks, so nothing is evaluated on them; give --val-masks."
            )
        own = {str(sample.image) for sample in self.dataset.samples}
        if known := sum(str(sample.image) in own for sample in self.held_out):
            doubts.append(
                f"the network learns from {known} of {photographs(len(self.held_out))} that are held out, so its "
                "scores don't tell what it does with others."
            )
        return doubts

    @property
    def classes(self) -> ClassSet:
        """The class set of the run."""
        return self.dataset.classes

    @property
    def contents(self) -> Contents:
        """What photographs and masks are."""
        if self._contents is None:
            self._contents = Contents(self.folder / STATE_FOLDER / "contents.tsv", self.image_workers)
        return self._contents

    @property
    def has_network(self) -> bool:
        """Whether training has finished."""
        return inventory.whole_place(self.folder, "network").exists()

    @property
    def is_told(self) -> bool:
        """Whether a command with nothing to do has no more to say than that: its record is whole, and scores that can't
        be made, or other versions, are told by a command that looks at them."""
        record = self.record()
        return (
            "other" in record.get("stages", {}) and not record.get("unscored") and record.get("versions") == versions()
        )

    def clip_hash(self) -> str:
        """What the CLIP is.

        Raises:
            Unread: that is not known before its weights are read: they were not, or may have changed.
        """
        if not _known(found := self._remembered()) or found != self._clip_as_it_is(found["hash"]):
            raise Unread(f"the weights of {self.config.clip.model} are to be read.")
        return found["hash"]

    def guide_hash(self) -> str:
        """What the encoder of `refine.features` is; "" where it is not asked for.

        Raises:
            Unread: it is asked for.
        """
        if self.config.refine.guided:
            raise Unread(f"the weights of {self.config.refine.features} are to be read.")
        return ""

    def remember_clip(self, weights_hash: str) -> None:
        """Note what the CLIP is, where the files tell whether they are still those that were read."""
        found = self._clip_as_it_is(weights_hash)
        if found["files"] and found != self._remembered():
            write_json(self.folder / STATE_FOLDER / MEMORY, found)

    def _remembered(self) -> dict:
        try:
            return read_json(self.folder / STATE_FOLDER / MEMORY)
        except RunError:  # a memory: it is made again
            return {}

    def _clip_as_it_is(self, weights_hash: str) -> dict:
        flat = self.config.flat()
        said = [(key, one) for key, one in flat.items() if key.startswith("clip.") and key not in FREE]
        files = {str(path): f"{signature(path)} {path.stat().st_ino}" for path in files_of(self.config.clip.model)}
        return {"hash": weights_hash, "said": digest(said), "files": files, "versions": versions()}

    def targets_of(self, command: str) -> tuple[str, ...]:
        """The stages that a command brings; a whole run keeps the exports in its folder up to date."""
        there = [to for to in EXPORTS if inventory.whole_place(self.folder, to).exists()] if command == "run" else []
        return (*TARGETS[command], *there)

    def plan(self, targets: Iterable[str], never: Iterable[str] = ()) -> Plan:
        """What is to be done until the targets (names of `plan.STAGES`) are there; nothing is written.

        Args:
            never: stages that are not made now.

        Raises:
            Unread: weights are to be read first.
        """
        clip, guide = self.clip_hash(), self.guide_hash()
        asked = inventory.asked_of(
            self.config,
            self.dataset,
            self.held_out,
            clip,
            self.contents,
            self.folder,
            split=split_of(self.config.data),
            relearn=self.relearn,
            progress=self.progress,
            guide=guide,
        )
        self._encoding = encoding_of(asked)
        self._content_of = {one.id: one.content for one in asked.photographs}
        return compare(asked, inventory.there_of(self.folder, self.state, self.config, self.passing), targets, never)


def split_of(data: DataConfig) -> str:
    """What a data set's split is called: its name, or that of the tag file or folder that lists it."""
    return data.split or Path(data.tags or data.images).stem


def dataset_of(data: DataConfig, classes: ClassSet | None = None) -> Dataset:
    """`open_dataset`, with the classes that are given, or those of scenes where the configuration names them."""
    if data.images == "":
        raise ConfigError(f"{data.name}.images is empty; say where the images are (--images FOLDER).")
    if classes is None and data.classes == "scenes":
        classes = scene_classes()
    return open_dataset(data, classes=classes)


def _known(found: dict) -> bool:
    return isinstance(found.get("hash"), str) and bool(found.get("files"))
