"""How lists of tagged photographs lie on disk: one reader a layout, each giving the same rows. No image is opened here.

- folder: a folder of images and a tag file: a table (CSV, TSV, Excel's with ';'; with a column of tags, a row for each
  tag, or a column of 0 and 1 for each class), JSONL, JSON, or the field's cls_labels_onehot.npy;
- class-folders: a folder of folders, whose names are the tags; masks lie in folders of the same names;
- voc: PASCAL VOC's folder; tags are the objects of Annotations, part objects left out, difficult ones included;
- coco: a folder of images and COCO's instances JSON; tags are the categories of the annotations, crowds included.

A new layout is one function from a `Source` to a `Listing`, in `LAYOUTS`; a new kind of tag file one in `TAG_FILES`.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard
from xml.parsers import expat

import numpy as np

from vpl.classes import IGNORE
from vpl.config import DataConfig
from vpl.edges import onehot, toolfiles
from vpl.edges.names import IMAGE_SUFFIXES, existing_file, inside, listing, located, shown
from vpl.edges.tags import Speller, each_once, split_fields
from vpl.errors import ConfigError, DataError

MOST_LINE_BYTES = 2**20
"""Longer lines of a table, JSONL or list file are skipped with a problem."""
MOST_XML_BYTES = 2**20
"""Longer annotation files are skipped with a problem."""
MOST_JSON_BYTES = 2**31
"""Longer JSON files are refused."""
MOST_WIDE_BYTES = 2**28
"""Longer files in UTF-16 are refused."""
VOC_SPLITS = ("train", "val", "trainval", "train_aug")

_BESIDE_A_NAME = re.compile(r"-?\d|.*/.*|\S+\.png")
"""What stands after a name in VOC's lists: whether a class is there, or a mask."""

IMAGE_COLUMNS = (
    "file_name", "filename", "file", "image", "image_name", "image_path", "image_file", "img", "img_name", "path",
    "file_path", "filepath", "photo", "image_id", "imageid", "name", "id",
)  # fmt: skip
"""What a column of photographs is called, best first, in small letters with "_" for spaces."""
TAG_COLUMNS = (
    "tags", "labels", "tag", "label", "classes", "class", "categories", "category", "class_name", "label_name",
    "labelname", "class_names", "label_names", "objects", "keywords",
)  # fmt: skip
_FLAGS = dict.fromkeys(("true", "t", "yes", "y", "x", "wahr", "vrai"), True) | dict.fromkeys(
    ("false", "f", "no", "n", "falsch", "faux", "", "nan", "none", "null", "na"), False
)
_NO_CLASS = re.compile(
    r"_*background_*|unnamed: \d+|index|fold|split|"
    r"(is_?)?(valid|train|test|difficult|truncated|occluded|crowd|verified)"
)
"""Columns of 0 and 1 that tell something else of a photograph."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a reader found: where (for messages), the image's name below its folder, the tags.

    Attributes:
        id: the name of its results; empty: the image's name without its suffix.
        mask: its truth mask's name below the image folder, where a layout brings its own.
        explicit: whether the file says that there is nothing on it, when there are no tags.
        problem: why the photograph can't be used; empty: it can.
    """

    where: str
    name: str
    tags: tuple[str, ...]
    id: str = ""
    mask: str = ""
    explicit: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Source:
    """What a reader is given; it adds to `problems` (what is left out) and `notes` (what was found)."""

    data: DataConfig
    images: Path | str
    speller: Speller
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Listing:
    """Rows, the classes in the order that the file itself numbers them (empty: it does not), and ids by their names."""

    rows: Iterable[Row]
    classes: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(default_factory=dict)


# ---------------------------------------------------------------------- tag files


def tag_file(source: Source) -> Listing:
    """A folder of images and one file that says what is on each."""
    kinds = ", ".join(TAG_FILES)
    path = existing_file(
        source.data.tags, f"{source.data.name}.tags", f"a CSV or JSONL of tags (or another of {kinds})"
    )
    read = TAG_FILES.get(path.suffix.lower())
    if read is None:
        raise DataError(f"the tag file {path} ends with {path.suffix!r}; expected one of {kinds}.")
    return read(path, source)


def table(path: Path, source: Source) -> Listing:
    """CSV, TSV or Excel's: a header, then a row for a photograph or for one of its tags."""
    lines = _lines(path, source.problems)
    first = next(lines, ("", ""))[1]
    sign = ""
    if found := re.fullmatch(r"sep=(.)", first.strip()):
        sign, first = found[1], next(lines, ("", ""))[1]
    sign, header = _header(first, sign, source.data.columns, path)
    columns = _columns(header, source.data.columns, path)
    rows: list[tuple[str, list[str]]] = []
    for where, text in lines:
        values = _fields(text, sign)
        if values is None or len(values) != len(header):
            wrong = "broken quotes" if values is None else f"{len(values)} columns"
            source.problems.append(f"{where}: {wrong}; expected {len(header)} columns, as in {sign.join(header)}.")
        else:
            rows.append((where, values))
    if columns.tags is None:
        return _one_hot_table(path, header, columns.image, rows, source)
    rows = _confident(path, header, rows, source)
    fields = [values[columns.tags] for _, values in rows]
    names = [values[columns.image].strip(" \t") for _, values in rows]
    return Listing(_tagged(path, [where for where, _ in rows], names, fields, source))


def _tagged(path: Path, places: list[str], names: list[str], fields: list[str], source: Source) -> Iterator[Row]:
    """Rows of a column of texts."""
    read = split_fields(fields, source.data.separator, source.speller)
    source.notes.extend([f"{path.name}: {note}" for note in read.notes])
    for where, name, tags in zip(places, names, read.tags, strict=True):
        yield Row(where, name, (), problem=tags) if isinstance(tags, str) else Row(where, name, tags)


@dataclass(frozen=True)
class _Columns:
    image: int
    tags: int | None


def _header(line: str, sign: str, wanted: Sequence[str], path: Path) -> tuple[str, list[str]]:
    """The separator of columns with which the first line names a column of images, and the names."""
    best: tuple[int, str, list[str]] = (0, ",", [])
    for one in [sign] if sign else [",", "\t", ";", "|"]:
        names = [name.strip() for name in _fields(line, one) or ()]
        try:
            columns = _columns(names, wanted, path)
        except DataError:
            continue
        best = max(best, (2 + (columns.tags is not None), one, names), key=lambda found: found[0])
    if not best[0]:
        names = [name.strip() for name in _fields(line, sign or ",") or ()]
        _columns(names, wanted, path)
    return best[1], best[2]


def _columns(header: Sequence[str], wanted: Sequence[str], path: Path) -> _Columns:
    """Where images and tags stand; tags may be None, when each class has a column of its own.

    Raises:
        DataError: no column of images is found, or a name could be two.
        ConfigError: `wanted` is not in the form image=NAME or tags=NAME.
    """
    chosen: dict[str, str] = {}
    for part in (part for one in wanted for part in one.split(",")):
        kind, sign, name = part.partition("=")
        if not sign or kind.strip() not in ("image", "tags"):
            raise ConfigError(f"data.columns is {part!r}; expected image=NAME or tags=NAME, by the file's header.")
        chosen[kind.strip()] = name.strip()
    plain = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in header]

    def place(kind: str, common: Sequence[str]) -> int | None:
        if kind in chosen:
            if list(header).count(chosen[kind]) != 1:
                raise DataError(
                    f"{path} has no column {chosen[kind]!r}, or two of them; its header is {shown(','.join(header))}."
                )
            return list(header).index(chosen[kind])
        found = [name for name in common if name in plain]
        if not found:
            return None
        if plain.count(found[0]) > 1:
            raise DataError(
                f"{path} has {plain.count(found[0])} columns {found[0]}; expected one, with ';' between tags."
            )
        if kind == "tags" and len(found) > 1 and found[0] != "tags":
            raise DataError(
                f"the first line of {path} is {shown(','.join(header))}; expected a header with the columns "
                f"file_name,tags, and the {kind} could be in {' or '.join(found)}; say where: --columns "
                f"{kind}={found[0]}."
            )
        return plain.index(found[0])

    image, tags = place("image", IMAGE_COLUMNS), place("tags", TAG_COLUMNS)
    if image is None or len(header) < 2:
        raise DataError(
            f"the first line of {path} is {shown(','.join(header))}; expected a header with the columns "
            "file_name,tags (and ';' between tags), or say which they are: --columns image=NAME,tags=NAME."
        )
    return _Columns(image, tags)


def _confident(
    path: Path, header: Sequence[str], rows: list[tuple[str, list[str]]], source: Source
) -> list[tuple[str, list[str]]]:
    """Rows less those whose confidence is 0: Open Images' way to say that a tag is not on the photograph."""
    at = next((number for number, name in enumerate(header) if name.strip().lower() == "confidence"), None)
    if at is None:
        return rows
    kept = [row for row in rows if not re.fullmatch(r"0*\.?0*", row[1][at].strip()) or not row[1][at].strip()]
    if len(kept) < len(rows):
        source.notes.append(f"{path.name}: {len(rows) - len(kept)} rows of Confidence 0 say what is not there.")
    return kept


def _one_hot_table(
    path: Path, header: Sequence[str], image: int, rows: list[tuple[str, list[str]]], source: Source
) -> Listing:
    """A column of 0 and 1 for each class."""
    flags = [
        number
        for number, name in enumerate(header)
        if number != image and name and _is_flags([values[number] for _, values in rows])
    ]
    if source.speller.known:
        flags = [number for number in flags if source.speller.knows(header[number])]
    else:
        flags = [number for number in flags if not _NO_CLASS.fullmatch(header[number].strip().lower())]
    if not flags:
        raise DataError(
            f"the first line of {path} is {shown(','.join(header))}; expected a header with the columns file_name,tags "
            "(and ';' between tags), or a column of 0 and 1 for each class. Say which: --columns image=NAME,tags=NAME."
        )
    passed = [name for number, name in enumerate(header) if number != image and number not in flags]
    source.notes.append(
        f"{path.name}: {len(flags)} columns of 0 and 1 are classes ({', '.join(header[one] for one in flags[:5])}"
        f"{', ...' if len(flags) > 5 else ''})" + (f"; passed over: {', '.join(passed[:5])}." if passed else ".")
    )

    def read() -> Iterator[Row]:
        for where, values in rows:
            wrong = next((values[number] for number in flags if _flag(values[number]) is None), None)
            if wrong is not None:
                problem = f"{shown(wrong)} in a column of a class; expected 0 or 1."
                yield Row(where, values[image].strip(" \t"), (), problem=problem)
                continue
            own = each_once(header[number] for number in flags if _flag(values[number]))
            yield Row(where, values[image].strip(" \t"), own, explicit=True)

    return Listing(read(), tuple(header[number] for number in flags))


@functools.lru_cache(maxsize=4096)
def _flag(text: str) -> bool | None:
    """What a cell says of a class, as numbers and words say it; None: it is no such mark."""
    word = text.strip().lower()
    if word in _FLAGS:
        return _FLAGS[word]
    try:
        return {1.0: True, 0.0: False, -1.0: False}.get(float(word.replace(",", ".")))
    except ValueError:
        return None


def _is_flags(column: Sequence[str]) -> bool:
    """Whether a column holds marks, most of them or all; and is no count of the rows."""
    held = Counter(column)
    marks = sum(count for text, count in held.items() if _flag(text) is not None)
    said = any(_flag(text) is not None and text.strip() for text in held)
    counts = len(column) > 2 and any(list(column) == list(map(str, range(n, n + len(column)))) for n in (0, 1))
    return said and 2 * marks >= len(column) and not counts


def _fields(line: str, sign: str) -> list[str] | None:
    """The columns of one line, None when its quotes are broken. Each line stands alone: none can eat the next."""
    if '"' not in line:
        return line.split(sign)
    try:
        return next(csv.reader([line], delimiter=sign, skipinitialspace=True, strict=True), [])
    except csv.Error:
        return None


def jsonl(path: Path, source: Source) -> Listing:
    """A JSON object a line."""

    def objects() -> Iterator[tuple[str, object]]:
        for where, text in _lines(path, source.problems):
            try:
                yield where, json.loads(text)
            except (ValueError, RecursionError):
                source.problems.append(f"{where}: no valid JSON; expected an object with file_name and tags.")

    return Listing(_objects(path, objects(), source))


def json_list(path: Path, source: Source) -> Listing:
    """A JSON list of objects, or an object from image names to tags."""
    tree = _json(path, "a list of objects with file_name and tags", object_pairs_hook=_each_key_once)
    if isinstance(tree, dict) and {"images", "annotations", "categories"} <= set(tree):
        raise DataError(f"{path} is in COCO's format; say --format coco.")
    found = toolfiles.rows_of(tree, source.speller.known)
    if found is not None:
        source.notes.append(f"{path.name}: tags are read from a labelling tool's export.")
        return Listing(_objects(path, toolfiles.named(found, path.name), source))
    if isinstance(tree, dict):
        rows = [(f"{path.name}: {shown(name)}", {"file_name": name, "tags": tags}) for name, tags in tree.items()]
        return Listing(_objects(path, rows, source))
    if not isinstance(tree, list):
        raise DataError(f"{path} is no list; expected objects with file_name and tags, or names and their tags.")
    return Listing(_objects(path, ((f"{path.name}: [{n}]", row) for n, row in enumerate(tree)), source))


def cvat_xml(path: Path, source: Source) -> Listing:
    """CVAT's "CVAT for images 1.1"."""
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise DataError(f"it has more than {MOST_JSON_BYTES} bytes; split it.")
        rows = toolfiles.cvat_rows(path.read_bytes())
    except (OSError, DataError) as error:
        raise DataError(f"the tag file {path} can't be used: {error}") from error
    return Listing(_objects(path, toolfiles.named(rows, path.name), source))


def _objects(path: Path, objects: Iterable[tuple[str, object]], source: Source) -> Iterator[Row]:
    """Rows of JSON objects; tags are a list, or a text as in a table."""
    rows: list[tuple[str, str, str | list[str]]] = []
    for where, row in objects:
        try:
            columns = _columns(list(row), source.data.columns, path) if isinstance(row, dict) else None
        except DataError:
            columns = None
        values = list(row.values()) if columns and isinstance(row, dict) else []
        name = values[columns.image] if columns else None
        tags = values[columns.tags] if columns and columns.tags is not None else None
        if isinstance(name, str) and (isinstance(tags, str) or _are_texts(tags)):
            rows.append((where, name, tags))
        else:
            source.problems.append(f'{where}: expected {{"file_name": "a.jpg", "tags": ["dog", "sofa"]}}.')
    read = split_fields([tags for _, _, tags in rows], source.data.separator, source.speller)
    source.notes.extend([f"{path.name}: {note}" for note in read.notes])
    for (where, name, given), tags in zip(rows, read.tags, strict=True):
        if isinstance(tags, str):
            yield Row(where, name, (), problem=tags)
        else:
            yield Row(where, name, tags, explicit=given == [])


def _are_texts(given: object) -> TypeGuard[list[str]]:
    return isinstance(given, list) and all(isinstance(one, str) for one in given)


def one_hot_file(path: Path, source: Source) -> Listing:
    """The field's cls_labels_onehot.npy: image names to vectors of 0 and 1 in the order of the classes."""
    vectors, known = onehot.read(path), source.speller.known
    length = next((len(vector) for vector in vectors.values()), 0)
    if known is None:
        raise DataError(
            f"{path} holds vectors of {length} numbers and no names; expected the classes in their order. Give them: "
            "--classes voc, coco or a file."
        )

    def read() -> Iterator[Row]:
        for name, vector in vectors.items():
            where = f"{path.name}: {shown(name)}"
            if vector.shape != (len(known),) or not np.isin(vector, (0, 1)).all():
                wrong = f"a vector of shape {vector.shape}; expected {len(known)} numbers 0 or 1, one a class."
                yield Row(where, name, (), problem=wrong)
                continue
            tags = tuple(known.names[number] for number in np.flatnonzero(vector))
            yield Row(where, name, tags, explicit=True)

    return Listing(read())


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[str, str]]:
    """("file:number", text) of every line that is not blank; too long lines and those that are no text are problems."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(0)
            if start in (b"\xff\xfe", b"\xfe\xff") or (len(start) == 2 and 0 in start and start != b"\0\0"):
                lines: Iterable[bytes] = _wide(path, file, start)
            else:
                lines = iter(lambda: file.readline(MOST_LINE_BYTES), b"")
            number, rest = 0, False
            for line in lines:
                ends = line.endswith(b"\n")
                if rest:
                    rest = not ends
                    continue
                number += 1
                where = f"{path.name}:{number}"
                if len(line) >= MOST_LINE_BYTES and not ends:
                    rest = True
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


def _wide(path: Path, file: io.BufferedReader, start: bytes) -> list[bytes]:
    """The lines of a file in UTF-16, as Excel's "Unicode text" is, in UTF-8."""
    data = file.read(MOST_WIDE_BYTES + 1)
    if len(data) > MOST_WIDE_BYTES:
        raise DataError(f"{path} is in UTF-16 and has more than {MOST_WIDE_BYTES} bytes; save it as UTF-8.")
    coding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-16-le" if start[1] == 0 else "utf-16-be"
    text = data.decode(coding, "replace")
    if "\0" in text[:64]:
        raise DataError(f"{path} is in UTF-32, or no text; save it as UTF-8.")
    return [f"{line}\n".encode("utf-8", "replace") for line in text.split("\n")]


def _json(path: Path, wanted: str, **options: Any) -> Any:
    try:
        size = path.stat().st_size
        if size > MOST_JSON_BYTES:
            raise DataError(f"{path} has {size} bytes; expected at most {MOST_JSON_BYTES}. Split it.")
        return json.loads(path.read_bytes(), **options)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); check the file.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON ({error}); expected {wanted}.") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return tree


TAG_FILES: dict[str, Callable[[Path, Source], Listing]] = {
    ".csv": table,
    ".tsv": table,
    ".txt": table,
    ".jsonl": jsonl,
    ".json": json_list,
    ".xml": cvat_xml,
    ".npy": one_hot_file,
}
"""Suffix of a tag file -> its reader."""


# ---------------------------------------------------------------------- folders of classes


def class_folders(source: Source) -> Listing:
    """A folder for each tag."""
    root = Path(source.images)
    names = listing(root)
    read = split_fields([[name] for name in names], source.data.separator, source.speller)
    return Listing(_class_folder_rows(root, dict(zip(names, read.tags, strict=True)), source))


def _class_folder_rows(root: Path, meant: Mapping[str, tuple[str, ...] | str], source: Source) -> Iterator[Row]:
    for name, tags in meant.items():
        try:
            folder = inside(root, name)
        except DataError as error:
            source.problems.append(f"{shown(name)}: {error}")
            continue
        if not folder.is_dir():
            source.problems.append(f"{shown(name)}: expected a folder named by its tag, with images in it.")
            continue
        for file_name in listing(folder):
            where = shown(f"{name}/{file_name}")
            if (folder / file_name).is_dir():
                source.problems.append(f"{where}: a folder in the folder of a tag; expected images there.")
                continue
            if not file_name.lower().endswith(IMAGE_SUFFIXES):
                source.problems.append(f"{where}: no image file by its suffix.")
                continue
            if isinstance(tags, str):
                yield Row(where, f"{name}/{file_name}", (), problem=tags)
            else:
                yield Row(where, f"{name}/{file_name}", tags)


# ---------------------------------------------------------------------- PASCAL VOC


def voc(source: Source) -> Listing:
    """ImageSets, Annotations, JPEGImages, SegmentationClass."""
    root, split = Path(source.images), source.data.split
    lists = [root / "ImageSets" / kind for kind in ("Segmentation", "Main")]
    found = [folder / f"{split}.txt" for folder in lists] if re.fullmatch(r"[\w-]{1,100}", split) else []
    listed = next((one for one in found if one.is_file()), None)
    if listed is None:
        there = [one for one in VOC_SPLITS if any((folder / f"{one}.txt").is_file() for folder in lists)]
        raise DataError(
            f"{source.data.name}.split is {shown(split)}, and {root} has no list ImageSets/Segmentation/<split>.txt of "
            f"that name; expected one of {', '.join(VOC_SPLITS)} (here: {', '.join(there) or 'none'})."
        )
    augmented = split == "train_aug" and (root / "SegmentationClassAug").is_dir()
    masks = "SegmentationClassAug" if augmented else "SegmentationClass"
    return Listing(_voc_rows(root, listed, masks, source.problems))


def _voc_rows(root: Path, listed: Path, masks: str, problems: list[str]) -> Iterator[Row]:
    for where, text in _lines(listed, problems):
        first, second = _voc_line(root, text.strip())
        stem = Path(first).stem if "/" in first else first
        image = first if "/" in first else f"JPEGImages/{first}.jpg"
        mask = second if "/" in second else f"{masks}/{stem}.png"
        try:
            tags = _voc_tags(inside(root, f"Annotations/{stem}.xml"))
            if "/" not in first and not located(root, image)[1]:
                image = f"JPEGImages/{first}"  # of another suffix than VOC's own
        except DataError as error:
            yield Row(where, image, (), problem=str(error))
            continue
        yield Row(where, image, tags, stem, mask, explicit=True)


def _voc_line(root: Path, line: str) -> tuple[str, str]:
    """A name, or an image and a mask or a flag, with a space between them; names may hold spaces, too."""
    ends = [found.start() for found in re.finditer(r"\s+", line)]
    meant = [(line, "")]
    for end in reversed(ends[-8:]):
        if _BESIDE_A_NAME.fullmatch(second := line[end:].strip()):
            meant.append((line[:end], second))
    meant = [(_voc_name(first.lstrip("/")), second.lstrip("/")) for first, second in meant]
    for first, second in meant:
        try:
            if located(root, first if "/" in first else f"Annotations/{first}.xml")[1]:
                return first, second
        except DataError:
            continue
    return meant[-1]


def _voc_name(name: str) -> str:
    """A name of a list without the suffix of its image."""
    end = next((one for one in IMAGE_SUFFIXES if name.lower().endswith(one)), "") if "/" not in name else ""
    return name.removesuffix(name[-len(end) :]) if end else name


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
    return each_once(names)


# ---------------------------------------------------------------------- MS COCO

_COCO_KEYS = ("images", "annotations", "categories", "id", "name", "file_name", "image_id", "category_id")


def coco(source: Source) -> Listing:
    """COCO's instances JSON. Classes are numbered as its categories are: by their ids."""
    path = existing_file(source.data.tags, f"{source.data.name}.tags", "COCO's instances JSON")
    tree, problems = _coco_tree(path), source.problems
    names: dict[int | str, str] = {}
    for where, entry in _entries(tree, "categories", ("id", "name"), path, problems):
        if names.setdefault(entry["id"], entry["name"]) != entry["name"]:
            raise DataError(
                f"{path} gives the category id {entry['id']} to {shown(names[entry['id']])} and to "
                f"{shown(entry['name'])} ({where}); give each its own."
            )
    images: list[tuple[str, dict]] = []
    tags: dict[int | str, dict[str, None]] = {}
    for where, entry in _entries(tree, "images", ("id", "file_name"), path, problems):
        if entry["id"] in tags:
            problems.append(f"{where}: the id {shown(str(entry['id']))} was used before; give each image its own.")
            continue
        tags[entry["id"]] = {}
        images.append((where, entry))
    for where, entry in _entries(tree, "annotations", ("image_id", "category_id"), path, problems):
        if entry["image_id"] not in tags:
            problems.append(f"{where}: there is no image of id {shown(str(entry['image_id']))}.")
        elif entry["category_id"] not in names:
            problems.append(f"{where}: there is no category of id {shown(str(entry['category_id']))}.")
        else:
            tags[entry["image_id"]][names[entry["category_id"]]] = None
    rows = [Row(where, entry["file_name"], each_once(tags[entry["id"]]), explicit=True) for where, entry in images]
    numbers = [one for one in names if isinstance(one, int)]
    order = sorted(numbers) if len(numbers) == len(names) else list(names)
    ordered = each_once(names[one] for one in order)
    ids = {tag: one for one in numbers for tag in each_once([names[one]]) if 0 < one < IGNORE}
    if order == list(range(1, len(order) + 1)):
        return Listing(rows, ordered, ids)
    used = {tag for row in rows for tag in row.tags}
    return Listing(rows, tuple(name for name in ordered if name in used), ids)


def _coco_tree(path: Path) -> dict:
    """The file without what is not needed: polygons, by far the most of it, are dropped as they are parsed."""
    tree = _json(
        path,
        "COCO's instances file",
        object_hook=lambda entry: {key: entry[key] for key in _COCO_KEYS if key in entry},
        parse_float=lambda digits: None,
    )
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


LAYOUTS: dict[str, Callable[[Source], Listing]] = {
    "folder": tag_file,
    "class-folders": class_folders,
    "voc": voc,
    "coco": coco,
}
"""data.format -> its reader."""
