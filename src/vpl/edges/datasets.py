"""Lists of samples: image file, tags, truth mask if there is one. No image is opened here.

METHOD.md 0: a photograph comes with tags alone. `Sample.mask` is for evaluation only: nothing that learns may read it.

layouts.py reads what lies on the disk; here each row is checked, its photograph found, its tags spelled as the classes
are. What can't be used is told in `Dataset.problems`; only a file that can't be used at all is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vpl import classes as class_sets
from vpl.classes import ClassSet
from vpl.config import DataConfig
from vpl.edges import storage, tags
from vpl.edges.layouts import LAYOUTS, Row, Source
from vpl.edges.names import Finder, existing_file, existing_folder, folded, inside, listing, located, shown
from vpl.edges.truth import Drawings, Meaning, Values
from vpl.errors import ConfigError, DataError

__all__ = ["Dataset", "Sample", "inside", "open_dataset"]

_LONGEST_FILE_NAME = 255
_SHOWN_PROBLEMS = 5
_PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One photograph.

    Attributes:
        id: the name of its results, unique in the data set: the image's path below the image folder without its
            suffix, with "/" between folders (voc: below JPEGImages).
        image: its file, not opened yet; a URL where the images lie behind one.
        tags: names of classes, each once, in the order of the file; none: it holds background alone.
        mask: its truth mask, for evaluation only, or None.
        values: what is in that mask (truth.py); None: its numbers are label values.
    """

    id: str
    image: Path | str
    tags: tuple[str, ...]
    mask: Path | None
    values: Values | None = None


@dataclass(frozen=True)
class Dataset:
    """The usable samples in the order of the file, the classes, and what is to be said of the list.

    Attributes:
        samples: photographs with tags; where `data.untagged` is background, also those without.
        classes: the class set.
        problems: a line for each thing that was left out.
        warnings: what may be a mistake: tags that look alike, truth masks that were not found.
        notes: how the list was read: columns, separators, spellings.
        untagged: photographs on which there is nothing, as the list itself says, where they are left out. They are no
            mistake.
        left_out: how many photographs of the list can't be used.
        alike: groups of class names that look as if they were one.
    """

    samples: tuple[Sample, ...]
    classes: ClassSet
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    untagged: tuple[Sample, ...] = ()
    left_out: int = 0
    alike: tuple[tuple[str, ...], ...] = ()

    @property
    def tagged(self) -> tuple[Sample, ...]:
        """The samples with tags; the others hold background alone."""
        return tuple(sample for sample in self.samples if sample.tags)

    @property
    def masks(self) -> int:
        """How many samples have a truth mask."""
        return sum(sample.mask is not None for sample in self.samples)


def open_dataset(data: DataConfig, classes: ClassSet | None = None) -> Dataset:
    """List the samples that `data` describes.

    Left out, each with a line in `problems`: rows that are malformed, not UTF-8 or, unless `data.untagged` is
    background, without tags; unknown tags (the line gives the closest name), and photographs that have no other;
    missing images; names that leave the image folder; a second image of the same id. Rows of one image are joined.

    Args:
        data: format, paths and class set.
        classes: the class set to use in place of `data.classes`.

    Raises:
        DataError: a folder or file that is needed can't be used, or no sample is left.
        ConfigError: the folder is a URL that holds a key or password; columns or aliases are malformed.
    """
    storage.check(data.images, f"{data.name}.images")
    images = _image_folder(data)
    drawn = data.masks.lower().endswith(".json")
    masks = existing_folder(data.masks, f"{data.name}.masks") if data.masks and not drawn else None
    known = classes or _named_classes(data.classes)
    speller = tags.Speller(known, _aliases(data.aliases))
    source = Source(data, images, speller)
    listed = LAYOUTS[data.format](source)
    background = data.untagged == "background"
    shots = _Shots(images, speller, source.problems, background)
    for row in listed.rows:
        shots.add(row)
    if known is None and (kind := tags.codes(shots.counts())):
        raise DataError(
            f"the tags of {data.tags or data.images} are {kind} ({', '.join(list(shots.counts())[:3])}), and CLIP "
            "reads words; expected names. Point to a column of names (--columns tags=NAME), or rename them with "
            "--alias 0=dog."
        )
    problems = (*source.problems, *speller.problems())
    if not any(shot.tags for shot in shots.kept.values()):
        blank = f"It says that there is nothing on any of its {tags.photographs(len(shots.kept))}."
        told = " ".join(problems[:_SHOWN_PROBLEMS]) or (blank if shots.kept else "Nothing was found there.")
        raise DataError(f"no sample of {data.tags or data.images} can be used ({len(problems)} problems). {told}")
    warnings: list[str] = []
    alike: tuple[tuple[str, ...], ...] = ()
    if known is None:
        warnings += shots.join_cases()
        known = _own_classes(shots, listed.classes)
        alike = tags.alike(known.names)
        warnings += _told_alike(alike, shots)
        if len(known) > 1 and all(name.lower() in _PARTS for name in known.names):
            warnings.append(
                f"the tags are {' and '.join(known.names)}; if these are parts of a data set, give one of them as "
                "--images."
            )
    warnings += tags.told_same(known)
    ids = {name: listed.ids[tag] for tag in listed.ids for name in speller.read([tag], "") if name in known.names}
    meant = Meaning(data.mask_values, f"{data.name}.mask_values", known, ids, _aliases(data.aliases))
    truth = Drawings(existing_file(data.masks, f"{data.name}.masks", "COCO's instances JSON"), meant) if drawn else None
    found = _Masks(shots, images, masks, data.format == "voc", meant, truth, Path(data.masks))
    samples = tuple(found.sample(shot) for shot in shots.kept.values() if shot.tags or background)
    bare = [shot for shot in shots.kept.values() if not shot.tags]
    untagged = () if background else tuple(found.sample(shot) for shot in bare)
    notes = [*source.notes, *speller.notes()]
    if background and bare:
        notes.append(told_background(len(bare)))
    elif untagged:
        notes.append(f"without any object, as the list says: {tags.photographs(len(untagged))} ({untagged[0].id}, …).")
    warnings += found.warnings([sample for sample in samples if sample.mask is None], len(samples))
    return Dataset(samples, known, problems, tuple(warnings), tuple(notes), untagged, shots.left_out, alike)


def told_background(count: int) -> str:
    """How many photographs hold background alone."""
    return f"{tags.photographs(count)} without tags {'is' if count == 1 else 'are'} background"


@dataclass
class _Shot:
    """A photograph while its rows are read."""

    id: str
    image: Path | str
    where: str
    mask: str
    tags: tuple[str, ...] = ()


class _Shots:
    """The photographs of a list by their ids, folded as the least exact disk would: case and Unicode form aside."""

    def __init__(self, images: Path | str, speller: tags.Speller, problems: list[str], background: bool):
        self.kept: dict[str, _Shot] = {}
        self._background = background
        self._finder, self._speller, self._problems = Finder(images), speller, problems
        self._named: tuple[set[str], set[str]] = set(), set()

    @property
    def left_out(self) -> int:
        """How many photographs were named and can't be used."""
        used, refused = self._named
        return len(refused - used)

    def add(self, row: Row) -> None:
        """Check a row; keep its photograph, or add its tags to the one that is kept."""
        wrong, before, key, own = [], None, "", ""
        image: Path | str = ""
        try:
            if row.problem:
                raise DataError(row.problem)
            image, name, there = self._finder.find(row.name)
            if not there:
                raise DataError(f"there is no image file {image}.")
            own = row.id or PurePosixPath(name).with_suffix("").as_posix()
            if len(own.rpartition("/")[2].encode()) + len(".png") > _LONGEST_FILE_NAME:
                raise DataError(f"the image name {shown(own)} is too long for its mask's file name; shorten it.")
            key = folded(own)
            before = self.kept.get(key)
            if before is not None and not _same(before.image, image):
                raise DataError(self._taken(before, own))
        except DataError as error:
            wrong.append(str(error))
        known = self._speller.read(row.tags, row.where)
        if not (row.tags or row.explicit or row.problem or self._background):
            wrong.append("no tags; expected at least one, or --untagged background.")
        if wrong or (row.tags and not known):
            self._problems += [f"{row.where}: {one}" for one in wrong]
            self._named[1].add(row.name)
            return
        shot = before or self.kept.setdefault(key, _Shot(own, image, row.where, row.mask))
        shot.tags = self._speller.shared(tuple(dict.fromkeys((*shot.tags, *known))))
        self._named[0].add(row.name)

    def _taken(self, before: _Shot, own: str) -> str:
        aside = "" if before.id == own else f" as {before.id!r}, the same on disks that fold case or Unicode forms"
        return f"the name {own!r} was taken by {before.where}{aside}; rename one of the two images."

    def counts(self) -> Counter[str]:
        """Photographs by tag."""
        return Counter(tag for shot in self.kept.values() for tag in shot.tags)

    def join_cases(self) -> list[str]:
        """Make tags one that differ in capitals alone; returns what was done, as warnings."""
        counts = self.counts()
        instead = tags.one_case(counts)
        for shot in self.kept.values() if instead else ():
            shot.tags = self._speller.shared(tuple(dict.fromkeys(instead.get(tag, tag) for tag in shot.tags)))
        return [
            f"the tag {shown(tag)} ({tags.photographs(counts[tag])}) is read as {better!r}: CLIP reads both alike."
            for tag, better in instead.items()
        ]


def _same(first: Path | str, second: Path | str) -> bool:
    """Whether two places are one file: a disk that folds case gives one file under several names."""
    if first == second or isinstance(first, str) or isinstance(second, str):
        return first == second
    try:
        return first.samefile(second)
    except OSError:
        return False


class _Masks:
    """Finds the truth masks: by the sample's id, or by its last part where that is clear."""

    def __init__(
        self,
        shots: _Shots,
        images: Path | str,
        masks: Path | None,
        own: bool,
        meaning: Meaning,
        drawings: Drawings | None,
        place: Path,
    ):
        self._meaning, self._drawings, self._place = meaning, drawings, place
        self._unclear: list[str] = []
        self._images, self._folder, self._own = images, masks, own and masks is None and drawings is None
        self._stems = Counter(shot.id.rpartition("/")[2] for shot in shots.kept.values())

    def sample(self, shot: _Shot) -> Sample:
        """The sample with its mask."""
        mask = self._mask(shot)
        try:
            if self._drawings:
                values = self._drawings.of(shot.id, shot.id.rpartition("/")[2])
                mask = None if values is None else self._place
            else:
                values = None if mask is None else self._meaning.of(shot.tags)
        except DataError as error:
            self._unclear.append(str(error))
            mask = values = None
        return Sample(shot.id, shot.image, shot.tags, mask, values)

    def _mask(self, shot: _Shot) -> Path | None:
        if self._own:
            folder, names = Path(self._images), [shot.mask]
        elif self._folder is None:
            return None
        else:
            stem = shot.id.rpartition("/")[2]
            folder, names = self._folder, [f"{shot.id}.png", *([f"{stem}.png"] if self._stems[stem] == 1 else [])]
        for name in names:
            try:
                place, there = located(folder, name)
            except DataError:
                continue
            if there:
                return Path(place)
        return None

    def warnings(self, without: Sequence[Sample], count: int) -> list[str]:
        """What to say of masks that were given and not found."""
        if (self._folder is None and self._drawings is None) or not without:
            return []
        if self._unclear:
            own = tags.photographs(len(self._unclear))
            return [f"the truth masks of {own} of {count} can't be used: {self._unclear[0]}"]
        if self._folder is None:
            own = tags.photographs(count)
            listed = f"{len(without)} of {own} are not listed in {self._place} (such as {shown(without[0].id)})"
            more = "nothing is evaluated" if len(without) == count else "scores tell of the others alone"
            return [f"{listed}; {more}."]
        looked = f"{without[0].id}.png"
        if len(without) < count:
            return [
                f"{len(without)} of {tags.photographs(count)} have no truth mask in {self._folder} (such as {looked}); "
                "scores tell of the others alone."
            ]
        there = [name for name in listing(self._folder)[:3] if name]
        held = f"it holds {', '.join(map(shown, there))}" if there else "it is empty"
        return [
            f"no truth mask was found in {self._folder}: looked for {looked}, and {held}. Nothing is evaluated; name "
            "each mask as its photograph, as PNG."
        ]


def _own_classes(shots: _Shots, listed: Sequence[str]) -> ClassSet:
    """The tags that occur, as the file numbers them, else by name."""
    used = shots.counts()
    if not listed:
        return ClassSet(tuple(sorted(used)))
    spelled = {name.lower(): name for name in used}
    names = dict.fromkeys(spelled.get(name.lower(), name) for name in listed if name.lower() != "background")
    return ClassSet(tuple(dict.fromkeys([*names, *sorted(set(used) - set(names))])))


def _told_alike(groups: Sequence[Sequence[str]], shots: _Shots) -> list[str]:
    counts = shots.counts()
    told = []
    for group in groups:
        words = " and ".join(f"{shown(name)} ({tags.photographs(counts[name])})" for name in group)
        best = max(group, key=lambda name: counts[name])
        other = next(name for name in group if name != best)
        told.append(f"the tags {words} look alike; if they are one class, say --alias '{other}={best}'.")
    return told


def _aliases(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for part in (part for one in given for part in one.split(",")):
        written, sign, meant = part.partition("=")
        if not sign or not written.strip() or not meant.strip():
            raise ConfigError(f"data.aliases is {part!r}; expected TAG=CLASS, such as motorcycle=motorbike.")
        found[written.strip()] = meant.strip()
    return found


def _named_classes(name: str) -> ClassSet | None:
    if name == "scenes":
        raise DataError("data.classes is 'scenes', which only the scenes data set brings; give a classes file instead.")
    if not name:
        return None
    built_in = {"voc": class_sets.voc, "coco": class_sets.coco}
    return built_in[name]() if name in built_in else class_sets.from_file(name)


def _image_folder(data: DataConfig) -> Path | str:
    """The folder of images. Behind a URL nothing is listed, so that a hundred million images cost no listing."""
    if not storage.is_url(data.images):
        return existing_folder(data.images, f"{data.name}.images")
    if data.format not in ("folder", "coco"):
        raise DataError(
            f"{data.name}.images is the URL {data.images} and {data.name}.format is {data.format}, which lists "
            "folders; expected a local folder, or format folder (a CSV or JSONL of tags) or coco."
        )
    return data.images
