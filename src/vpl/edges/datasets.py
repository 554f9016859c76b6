"""Lists of samples (image file, tags, truth mask if there is one) from four layouts on disk. No image is opened here.

METHOD.md 0: a photograph comes with tags alone. `Sample.mask` is for evaluation only: nothing that learns may read it.

- folder: a folder of images and a CSV (header `file_name,tags`, `;` between tags) or JSONL of the same two keys;
- class-folders: a folder of folders, whose names are the tags; masks lie in folders of the same names;
- voc: PASCAL VOC's folder; tags are the objects of Annotations, part objects left out, difficult ones included;
- coco: a folder of images and COCO's instances JSON; tags are the categories of the annotations, crowds included.

A line that can't be used is skipped and told in `Dataset.problems`; only a file that can't be used at all is an error.
"""

from __future__ import annotations

import csv
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from vpl import classes as class_sets
from vpl.classes import ClassSet
from vpl.config import DataConfig
from vpl.edges import storage
from vpl.errors import DataError

MOST_LINE_BYTES = 2**20
"""Longer lines of a CSV, JSONL or list file are skipped with a problem."""
MOST_XML_BYTES = 2**20
"""Longer annotation files are skipped with a problem."""
MOST_JSON_BYTES = 2**31
"""Longer COCO files are refused."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".avif", ".jp2")
_VOC_SPLITS = ("train", "val", "trainval", "train_aug")
_LONGEST_FILE_NAME = 255
_MOST_HINTS = 200
_LONGEST_HINTED = 60
_SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One photograph.

    Attributes:
        id: the name of its results, unique in the data set: the image's file name without its suffix (class-folders:
            after the folder's name and "_").
        image: its file, not opened yet; a URL where the images lie behind one.
        tags: names of classes, each once, in the order of the file.
        mask: its truth mask, for evaluation only, or None.
    """

    id: str
    image: Path | str
    tags: tuple[str, ...]
    mask: Path | None


@dataclass(frozen=True)
class Dataset:
    """The usable samples in the order of the file, the classes, and a line for each thing that was skipped."""

    samples: tuple[Sample, ...]
    classes: ClassSet
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """What a reader found: where (for messages), the image's name below its folder, the tags, the mask's name."""

    where: str
    name: str
    tags: tuple[str, ...]
    id: str = ""
    mask: str = ""


def open_dataset(data: DataConfig, classes: ClassSet | None = None) -> Dataset:
    """List the samples that `data` describes.

    Skipped, each with a line in `problems`: rows that are malformed, not UTF-8 or without tags; samples with an unknown
    tag, even among known ones (the line gives the closest name); missing images; names that leave the image folder;
    a second image of the same id. Empty tags between separators and repeated tags are dropped silently.

    Args:
        data: format, paths and class set.
        classes: the class set to use in place of `data.classes`.

    Raises:
        DataError: a folder or file that is needed can't be used, or no sample is left.
        ConfigError: the folder is a URL that holds a key or password.
    """
    storage.check(data.images, f"{data.name}.images")
    images = _image_folder(data)
    masks = _folder(data.masks, "data.masks") if data.masks else None
    known = classes or _named_classes(data.classes)
    problems: list[str] = []
    if data.format == "folder":
        rows = _tag_file_rows(_file(data.tags, "data.tags", "a CSV or JSONL of tags"), problems)
    elif data.format == "class-folders":
        rows = _class_folder_rows(images, known, problems)
    elif data.format == "voc":
        rows = _voc_rows(images, data.split, problems)
    else:
        rows = _coco_rows(_file(data.tags, "data.tags", "COCO's instances JSON"), problems)
    samples = _samples(rows, images, masks, data.format == "voc", known, problems)
    if not samples:
        told = " ".join(problems[:_SHOWN_PROBLEMS]) or "Nothing was found there."
        raise DataError(f"no sample of {data.tags or data.images} can be used ({len(problems)} problems). {told}")
    if known is None:
        known = ClassSet(tuple(sorted({tag for sample in samples for tag in sample.tags})))
    return Dataset(samples, known, tuple(problems))


def inside(folder: str | Path, name: str) -> Path:
    """The path of a file name that came from a data file, if it stays inside `folder`. The file may be missing.

    `folder` itself may be a symbolic link; below it, a link is allowed only when it leads to a place inside.

    Raises:
        DataError: the name is empty, absolute, climbs by '..', is too long, holds control characters or is no valid
            Unicode, or a symbolic link on the way leaves the folder.
    """
    return _located(Path(folder), name)[0]


def _located(folder: Path | str, name: str) -> tuple[Path | str, bool]:
    """The path that `inside` gives, and whether a regular file is there; behind a URL that shows when it is read."""
    shown = _shown(name)
    if not name or _CONTROL.search(name):
        raise DataError(f"the file name {shown} is empty or holds control characters; rename the file.")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
        raise DataError(f"the file name {shown} is absolute; expected a name inside {folder}.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or ".." in name.split("\\"):
        raise DataError(f"the file name {shown} climbs out of its folder by '..'; expected a name inside {folder}.")
    if storage.is_url(folder):
        return storage.below(folder, "/".join(parts)), True
    place = folder
    for number, part in enumerate(parts, 1):
        place = place / part
        try:
            kind = place.lstat().st_mode
            if stat.S_ISLNK(kind):
                if not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder)):
                    raise DataError(f"the file name {shown} is a link out of {folder}; copy the file into the folder.")
                kind = place.stat().st_mode
        except FileNotFoundError:
            return place.joinpath(*parts[number:]), False
        except OSError as error:
            raise DataError(f"the file name {shown} can't be used ({error.strerror}); rename the file.") from error
    return place, stat.S_ISREG(kind)


def image_files(folder: str | Path) -> tuple[tuple[Path, ...], tuple[tuple[str, str], ...]]:
    """The images of a folder by their suffixes, sorted by name, and those left out (name, why), such as links that
    leave the folder.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    folder = _folder(str(folder), "the folder of images")
    found, left_out = [], []
    for name in _listing(folder):
        if name.lower().endswith(_IMAGE_SUFFIXES):
            try:
                found.append(inside(folder, name))
            except DataError as error:
                left_out.append((_shown(name), str(error)))
    if not found and not left_out:
        raise DataError(f"{folder} holds no images; expected files that end with {', '.join(_IMAGE_SUFFIXES)}.")
    return tuple(found), tuple(left_out)


def _named_classes(name: str) -> ClassSet | None:
    if name == "scenes":
        raise DataError("data.classes is 'scenes', which only the scenes data set brings; give a classes file instead.")
    if not name:
        return None
    built_in = {"voc": class_sets.voc, "coco": class_sets.coco}
    return built_in[name]() if name in built_in else class_sets.from_file(name)


def _samples(
    rows: Iterable[_Row],
    images: Path | str,
    masks: Path | None,
    own_masks: bool,
    known: ClassSet | None,
    problems: list[str],
) -> tuple[Sample, ...]:
    """Check each row; keep those without a problem. Own masks are named by the rows, below the image folder."""
    samples: list[Sample] = []
    taken: dict[str, str] = {}
    judge = _TagJudge(known)
    for row in rows:
        wrong = judge.problems(row.tags)
        try:
            image, is_file = _located(images, row.name)
            for form in () if is_file else ("NFC", "NFD"):  # macOS and others write the same é in two ways
                if not is_file:
                    image, is_file = _located(images, unicodedata.normalize(form, row.name))
            name = row.id or Path(image).stem
            if not is_file:
                wrong.append(f"there is no image file {image}.")
            if len(name.encode()) + len(".png") > _LONGEST_FILE_NAME:
                raise DataError(f"the image name {_shown(name)} is too long for its mask's file name; shorten it.")
            if name in taken:
                wrong.append(f"the name {name!r} was taken by {taken[name]}; rename one of the two images.")
            mask, has_mask = None, False
            if masks is not None:
                mask, has_mask = _located(masks, f"{name}.png" if own_masks else row.mask or f"{name}.png")
            elif own_masks:
                mask, has_mask = _located(images, row.mask)
        except DataError as error:
            wrong.append(str(error))
        if wrong:
            problems += [f"{row.where}: {one}" for one in wrong]
            continue
        taken[name] = row.where
        samples.append(Sample(name, image, judge.kept(row.tags), mask if has_mask else None))
    return tuple(samples)


class _TagJudge:
    """Knows the class names; remembers what it said of a tag, so that a million wrong lines stay quick."""

    def __init__(self, known: ClassSet | None):
        self._known = known
        self._names = None if known is None else frozenset(known.names)
        self._said: dict[str, str] = {}
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def problems(self, tags: tuple[str, ...]) -> list[str]:
        if not tags:
            return ["no tags; expected at least one."]
        unknown = [tag for tag in tags if not self._is_known(tag)]
        told = [self._problem(tag) for tag in unknown[:_SHOWN_PROBLEMS]]
        more = len(unknown) - len(told)
        return [*told, f"and {more} more unknown tags."] if more else told

    def kept(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """`tags`, as one object for all samples that carry the same."""
        return self._shared.setdefault(tags, tags)

    def _is_known(self, tag: str) -> bool:
        if self._names is not None:
            return tag in self._names
        return tag != "background" and not _CONTROL.search(tag)

    def _problem(self, tag: str) -> str:
        if tag in self._said:
            return self._said[tag]
        if self._known is None:
            return f"the tag {_shown(tag)} can't name a class; leave out 'background' and control characters."
        if len(tag) > _LONGEST_HINTED or len(self._said) >= _MOST_HINTS:
            return f"unknown tag {_shown(tag)}."
        said = f"unknown tag {_shown(tag)}; the closest class is {self._known.closest(tag)!r}."
        self._said[tag] = said
        return said


def _tags(given: Iterable[str]) -> tuple[str, ...]:
    """Stripped, not empty, each once, in order."""
    return tuple(dict.fromkeys(tag for one in given if (tag := one.strip())))


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_HINTED else text[: _LONGEST_HINTED - 3] + "...")


def _image_folder(data: DataConfig) -> Path | str:
    """The folder of images. Behind a URL nothing is listed, so that a hundred million images cost no listing."""
    if not storage.is_url(data.images):
        return _folder(data.images, "data.images")
    if data.format not in ("folder", "coco"):
        raise DataError(
            f"data.images is the URL {data.images} and data.format is {data.format}, which lists folders; "
            "expected a local folder, or format folder (a CSV or JSONL of tags) or coco."
        )
    return data.images


def _folder(given: str, key: str) -> Path:
    if not given:
        raise DataError(f"{key} is empty; set it to the folder.")
    try:
        found = Path(given).is_dir()
    except (OSError, ValueError):
        found = False
    if not found:
        raise DataError(f"{key} is {_shown(given)}, which is no folder; check the path.")
    return Path(given)


def _file(given: str, key: str, wanted: str) -> Path:
    if not given:
        raise DataError(f"{key} is empty; set it to {wanted}.")
    try:
        found = Path(given).is_file()
    except (OSError, ValueError):
        found = False
    if not found:
        raise DataError(f"{key} is {_shown(given)}, which is no file; expected {wanted}.")
    return Path(given)


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[str, str]]:
    """("file:number", text) of every line that is not blank; too long and non-UTF-8 lines become problems."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_LINE_BYTES):
                number += 1
                where = f"{path.name}:{number}"
                if len(line) == MOST_LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := file.readline(MOST_LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    problems.append(f"{where}: the line is longer than {MOST_LINE_BYTES} bytes.")
                    continue
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    problems.append(f"{where}: not UTF-8 (byte {error.start} of the line); save the file as UTF-8.")
                    continue
                if text.strip():
                    yield where, text
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); check the file.") from error


def _tag_file_rows(path: Path, problems: list[str]) -> Iterator[_Row]:
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"the tag file {path} ends with {path.suffix!r}; expected .csv or .jsonl.")
    return readers[path.suffix.lower()](path, problems)


def _csv_rows(path: Path, problems: list[str]) -> Iterator[_Row]:
    lines = _lines(path, problems)
    header = [column.strip() for column in _fields(next(lines, ("", ""))[1]) or ()]
    if header.count("file_name") != 1 or header.count("tags") != 1:
        raise DataError(
            f"the first line of {path} is {_shown(','.join(header))}; expected a header with the columns "
            "file_name,tags (and ';' between tags)."
        )
    name_at, tags_at = header.index("file_name"), header.index("tags")
    for where, text in lines:
        values = _fields(text)
        if values is None or len(values) != len(header):
            found = "broken quotes" if values is None else f"{len(values)} columns"
            problems.append(f"{where}: {found}; expected {len(header)} columns, as in {','.join(header)}.")
            continue
        yield _Row(where, values[name_at].strip(" \t"), _tags(values[tags_at].split(";")))


def _fields(line: str) -> list[str] | None:
    """The columns of one CSV line, None when its quotes are broken. Each line stands alone: none can eat the next."""
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return None


def _jsonl_rows(path: Path, problems: list[str]) -> Iterator[_Row]:
    for where, text in _lines(path, problems):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            problems.append(f"{where}: no valid JSON; expected an object with file_name and tags.")
            continue
        name, tags = (row.get("file_name"), row.get("tags")) if isinstance(row, dict) else (None, None)
        if isinstance(tags, str):
            tags = tags.split(";")
        if not isinstance(name, str) or not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            problems.append(f'{where}: expected {{"file_name": "a.jpg", "tags": ["dog", "sofa"]}}.')
            continue
        yield _Row(where, name, _tags(tags))


def _class_folder_rows(images: Path, known: ClassSet | None, problems: list[str]) -> Iterator[_Row]:
    judge = _TagJudge(known)
    for name in _listing(images):
        try:
            folder = inside(images, name)
        except DataError as error:
            problems.append(f"{_shown(name)}: {error}")
            continue
        if not folder.is_dir():
            problems.append(f"{_shown(name)}: expected a folder named by its tag, with images in it.")
            continue
        tags = _tags([name])
        if wrong := judge.problems(tags):
            problems += [f"{_shown(name)}: {one} The whole folder is skipped." for one in wrong]
            continue
        for file_name in _listing(folder):
            if not file_name.lower().endswith(_IMAGE_SUFFIXES):
                problems.append(f"{_shown(f'{name}/{file_name}')}: no image file by its suffix.")
                continue
            stem = Path(file_name).stem
            yield _Row(
                _shown(f"{name}/{file_name}"), f"{name}/{file_name}", tags, f"{name}_{stem}", f"{name}/{stem}.png"
            )


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
    except OSError as error:
        raise DataError(f"the folder {folder} can't be listed ({error.strerror}); check its permissions.") from error


def _voc_rows(root: Path, split: str, problems: list[str]) -> Iterator[_Row]:
    lists = [root / "ImageSets" / kind for kind in ("Segmentation", "Main")]
    found = [folder / f"{split}.txt" for folder in lists] if re.fullmatch(r"[\w-]{1,100}", split) else []
    listed = next((one for one in found if one.is_file()), None)
    if listed is None:
        there = [one for one in _VOC_SPLITS if any((folder / f"{one}.txt").is_file() for folder in lists)]
        raise DataError(
            f"data.split is {_shown(split)}, and {root} has no list ImageSets/Segmentation/<split>.txt of that name; "
            f"expected one of {', '.join(_VOC_SPLITS)} (here: {', '.join(there) or 'none'})."
        )
    augmented = split == "train_aug" and (root / "SegmentationClassAug").is_dir()
    mask_folder = "SegmentationClassAug" if augmented else "SegmentationClass"
    for where, text in _lines(listed, problems):
        columns = text.split()
        first = columns[0].lstrip("/")
        stem = Path(first).stem if "/" in first else first
        image = first if "/" in first else f"JPEGImages/{first}.jpg"
        mask = columns[1].lstrip("/") if len(columns) > 1 and "/" in columns[1] else f"{mask_folder}/{stem}.png"
        try:
            tags = _voc_tags(inside(root, f"Annotations/{stem}.xml"))
        except DataError as error:
            problems.append(f"{where}: {error}")
            continue
        yield _Row(where, image, tags, stem, mask)


def _voc_tags(path: Path) -> tuple[str, ...]:
    """The names of a VOC annotation's objects. Document types and entities are refused, whatever they say."""
    try:
        if not path.is_file():
            raise DataError(f"there is no annotation {path}.")
        with path.open("rb") as file:
            text = file.read(MOST_XML_BYTES + 1)
    except OSError as error:
        raise DataError(f"the annotation {path} can't be read ({error.strerror}).") from error
    if len(text) > MOST_XML_BYTES:
        raise DataError(f"the annotation {path} is longer than {MOST_XML_BYTES} bytes.")
    where: list[str] = []
    names: list[str] = []

    def start(tag, attributes):
        where.append(tag)
        if where == ["annotation", "object", "name"]:
            names.append("")

    def characters(piece):
        if where == ["annotation", "object", "name"]:
            names[-1] += piece

    def refuse(*declared):
        raise DataError(f"the annotation {path} declares a document type or entity; remove it.")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: where.pop()
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DataError(f"the annotation {path} is no valid XML ({error}).") from error
    return _tags(names)


_COCO_KEYS = ("images", "annotations", "categories", "id", "name", "file_name", "image_id", "category_id")


def _coco_rows(path: Path, problems: list[str]) -> Iterator[_Row]:
    tree = _coco_tree(path)
    names: dict[int | str, str] = {}
    for _, entry in _entries(tree, "categories", ("id", "name"), path, problems):
        names[entry["id"]] = entry["name"]
    images: list[tuple[str, dict]] = []
    tags: dict[int | str, dict[str, None]] = {}
    for where, entry in _entries(tree, "images", ("id", "file_name"), path, problems):
        if entry["id"] in tags:
            problems.append(f"{where}: the id {_shown(str(entry['id']))} was used before; give each image its own.")
            continue
        tags[entry["id"]] = {}
        images.append((where, entry))
    for where, entry in _entries(tree, "annotations", ("image_id", "category_id"), path, problems):
        if entry["image_id"] not in tags:
            problems.append(f"{where}: there is no image of id {_shown(str(entry['image_id']))}.")
        elif entry["category_id"] not in names:
            problems.append(f"{where}: there is no category of id {_shown(str(entry['category_id']))}.")
        else:
            tags[entry["image_id"]][names[entry["category_id"]]] = None
    for where, entry in images:
        yield _Row(where, entry["file_name"], _tags(tags[entry["id"]]))


def _coco_tree(path: Path) -> dict:
    """The file without what is not needed: polygons, by far the most of it, are dropped as they are parsed."""
    try:
        size = path.stat().st_size
        if size > MOST_JSON_BYTES:
            raise DataError(f"{path} has {size} bytes; expected at most {MOST_JSON_BYTES}. Split it.")
        tree = json.loads(
            path.read_bytes(),
            object_hook=lambda entry: {key: entry[key] for key in _COCO_KEYS if key in entry},
            parse_float=lambda digits: None,
        )
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); check the file.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON ({error}); expected COCO's instances file.") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} is no JSON object; expected COCO's lists images, annotations and categories.")
    return tree


def _entries(
    tree: dict, key: str, wanted: tuple[str, str], path: Path, problems: list[str]
) -> Iterator[tuple[str, dict]]:
    """("file: key[number]", entry) of a COCO list whose wanted keys are ids (whole numbers or texts) and names."""
    entries = tree.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{path} has no list {key!r}; expected COCO's lists images, annotations and categories.")
    for number, entry in enumerate(entries):
        where = f"{path.name}: {key}[{number}]"
        given = [entry.get(name) for name in wanted] if isinstance(entry, dict) else []
        kinds = [(str,) if name in ("name", "file_name") else (int, str) for name in wanted]
        if not given or any(type(one) not in kind for one, kind in zip(given, kinds, strict=True)):
            problems.append(f"{where}: expected an object with {' and '.join(wanted)}.")
            continue
        yield where, entry
