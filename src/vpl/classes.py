"""Class sets: the names of a data set, the words that CLIP reads for them, background words and colours.

METHOD.md 0. Label values: 0 is background, class number c (from 0) is written as c + 1, 255 is ignore.
"""

from __future__ import annotations

import csv
import difflib
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpl.errors import DataError

IGNORE = 255
MOST_CLASSES = 254
MOST_BYTES = 2**24
"""Larger classes files are refused unread."""
_OTHER_SUFFIXES = (".json", ".jsonl", ".yaml", ".yml", ".xml", ".npy", ".tsv", ".xlsx", ".pbtxt")
_NO_NAME = re.compile(r"^\d+\s*[:;,=\t ]|[:;,\t=]\s*\d+\s*$|:\d+,\d+,\d+:")
"""A line of a list that numbers or colours its names, as YOLO, CVAT and PASCAL write them."""
_ROW_KEYS = ("name", "words", "color")

BACKGROUND_WORDS = (
    "ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea", "railway",
    "railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean", "road", "rock", "street", "valley",
    "bridge", "sign",
)  # fmt: skip
"""CLIP-ES's background words for VOC. [ref]"""

_VOC_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_VOC_WORDS = {
    "bird": "bird avian",
    "chair": "chair seat",
    "person": "person with clothes,people,human",
    "tvmonitor": "tvmonitor screen",
}
"""CLIP-ES's words for VOC where they are not the names (new_class_names in its clip_text.py). [ref]"""
_COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
_COCO_WORDS = {
    "person": "person with clothes,people,human", "motorcycle": "motorbike", "airplane": "aeroplane",
    "bird": "bird avian", "backpack": "backpack,bag", "umbrella": "umbrella,parasol", "handbag": "handbag,purse",
    "tie": "necktie", "snowboard": "sknowboard", "baseball glove": "glove", "spoon": "dessertspoon",
    "chair": "chair seat", "couch": "sofa", "potted plant": "pottedplant", "dining table": "diningtable",
    "tv": "tvmonitor screen", "remote": "remote control", "hair drier": "hairdrier,blowdrier",
}  # fmt: skip
"""CLIP-ES's words for COCO (new_class_names_coco), its spelling of "snowboard" too: its numbers are of these. [ref]"""
SCENE_NAMES = (
    "boat", "car", "house", "tree", "dog", "cat", "bird", "fish",
    "butterfly", "flower", "mushroom", "umbrella", "chair", "balloon", "cup", "rocket",
)  # fmt: skip
SCENE_GROUNDS = ("grass", "water", "sand", "sky", "wall", "road", "snow", "floor")

SPELLINGS = (
    frozenset({"aeroplane", "airplane"}),
    frozenset({"motorbike", "motorcycle"}),
    frozenset({"sofa", "couch"}),
    frozenset({"diningtable", "dining table"}),
    frozenset({"pottedplant", "potted plant"}),
    frozenset({"tvmonitor", "tv", "tv/monitor"}),
)
"""Names that VOC and COCO give the same thing: each is read as the one that a class set has."""


@dataclass(frozen=True)
class ClassSet:
    """The foreground classes of a data set, in label order.

    Attributes:
        names: C class names, the tags that users write.
        words: C prompt words, what CLIP reads in a name's place; empty: the names.
        background: B background words; one that is also a class's name or words is dropped (`dropped` tells which).
        colors: C colours (R, G, B), 0 to 255; empty: the VOC palette.

    Raises:
        DataError: no class, too many, a double name, or lists of another length than the names.
    """

    names: tuple[str, ...]
    words: tuple[str, ...] = ()
    background: tuple[str, ...] = BACKGROUND_WORDS
    colors: tuple[tuple[int, int, int], ...] = ()
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(self.names)
        if not 1 <= len(names) <= MOST_CLASSES:
            raise DataError(f"the class set has {len(names)} classes; expected 1 to {MOST_CLASSES}.")
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise DataError(f"the class set names {', '.join(doubles)} twice; expected each name once.")
        if not all(isinstance(name, str) and name.strip() for name in names):
            raise DataError("a class of the class set has no name; expected a word for each.")
        ground = next((name for name in names if name.lower().strip("_") == "background"), None)
        if ground is not None:
            raise DataError(f"the class set names {ground!r} as a class; leave it out: label 0 is always background.")
        for field_name, wanted in (("words", self.words), ("colors", self.colors)):
            if wanted and len(wanted) != len(names):
                raise DataError(
                    f"the class set has {len(names)} names but {len(wanted)} {field_name}; expected one each."
                )
        palette = voc_palette()
        known = {one.strip().lower() for one in (*names, *self.words)}
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "words", tuple(self.words) or names)
        object.__setattr__(self, "colors", tuple(self.colors) or tuple(palette[1 : len(names) + 1]))
        object.__setattr__(self, "dropped", tuple(word for word in self.background if word.lower() in known))
        object.__setattr__(self, "background", tuple(word for word in self.background if word.lower() not in known))

    def __len__(self) -> int:
        return len(self.names)

    def alike(self) -> tuple[tuple[str, ...], ...]:
        """Groups of classes whose words are the same to CLIP, which reads small letters alone."""
        groups: dict[str, list[str]] = {}
        for name, words in zip(self.names, self.words, strict=True):
            groups.setdefault(" ".join(unicodedata.normalize("NFC", words).lower().split()), []).append(name)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    def index(self, name: str) -> int:
        """The number (from 0) of a class.

        Raises:
            DataError: the name is unknown; the message gives the closest one.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise DataError(f"unknown tag {name!r}; the closest class is {self.closest(name)!r}.") from None

    def numbers(self, names: Iterable[str]) -> tuple[int, ...]:
        """The numbers (from 0) of several classes, in their order; errors as `index`."""
        return tuple(map(self.index, names))

    def closest(self, name: str) -> str:
        """The known name that is spelled most like `name`."""
        lowered = {known.lower(): known for known in self.names}
        return lowered[difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.0)[0]]

    def palette(self) -> list[tuple[int, int, int]]:
        """256 colours by label value: black, the classes', the VOC palette for the rest (255: cream)."""
        colors = voc_palette()
        colors[1 : len(self) + 1] = self.colors
        return colors

    def to_toml(self) -> str:
        """The class set as a classes file that `from_file` reads back."""
        import tomlkit

        document = tomlkit.document()
        document.add("background", list(self.background))
        rows = tomlkit.aot()
        for name, words, color in zip(self.names, self.words, self.colors, strict=True):
            row = tomlkit.table()
            row.add("name", name)
            if words != name:
                row.add("words", words)
            row.add("color", "#{:02x}{:02x}{:02x}".format(*color))
            rows.append(row)
        document.add("class", rows)
        return tomlkit.dumps(document)


def numbering(classes: ClassSet) -> str:
    """How label values number the classes, as one line: "0 background, 1 aeroplane, ..., 255 ignored"."""
    names = ("background", *classes.names)
    return ", ".join([*(f"{number} {name}" for number, name in enumerate(names)), f"{IGNORE} ignored"])


def voc() -> ClassSet:
    """The 20 classes of PASCAL VOC with CLIP-ES's words. [ref]"""
    return ClassSet(_VOC_NAMES, tuple(_VOC_WORDS.get(name, name) for name in _VOC_NAMES))


def coco() -> ClassSet:
    """The 80 things of MS COCO with CLIP-ES's words and background words. [ref]"""
    background = tuple(word for word in BACKGROUND_WORDS if word not in ("keyboard", "sign"))
    return ClassSet(_COCO_NAMES, tuple(_COCO_WORDS.get(name, name) for name in _COCO_NAMES), background)


def scenes() -> ClassSet:
    """The 16 classes of the drawn scenes, with their grounds as background words."""
    return ClassSet(SCENE_NAMES, background=SCENE_GROUNDS)


def voc_palette() -> list[tuple[int, int, int]]:
    """VOC's 256 colours: the bits of a label, dealt in turn to red, green and blue from the top."""
    colors = []
    for label in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= ((label >> bit) & 1) << (7 - bit // 3)
        red, green, blue = channels
        colors.append((red, green, blue))
    return colors


def from_file(path: str | Path) -> ClassSet:
    """Read a classes file.

    .txt: one name per line. .csv: a header with `name` and, if wanted, `words` and `color` (#rrggbb). .toml: an array
    `[[class]]` of tables with the same three keys and, if wanted, a list `background` of background words.

    Raises:
        DataError: the file can't be read, or a line is wrong; the message names the line.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"the classes file {path} is no regular file; check the path.")
        if path.exists() and path.stat().st_size > MOST_BYTES:
            raise DataError(f"the classes file {path} has more than {MOST_BYTES} bytes; expected a line per class.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"the classes file {path} can't be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the classes file {path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except ValueError as error:
        raise DataError(f"the classes file {str(path)!r} is no path; check it.") from error
    background: Sequence[str] = BACKGROUND_WORDS
    suffix = path.suffix.lower()
    if suffix == ".toml":
        rows, background = _toml_rows(path, text)
    elif suffix == ".csv":
        rows = _csv_rows(path, text)
    elif suffix in _OTHER_SUFFIXES:
        raise DataError(f"the classes file {path} ends with {suffix!r}; expected .txt, .csv or .toml.")
    else:
        rows = [{"name": line.strip()} for line in text.splitlines() if line.strip()]
        if rows and all(_NO_NAME.search(row["name"]) for row in rows):
            raise DataError(
                f"the lines of the classes file {path} hold numbers beside names ({rows[0]['name'][:60]!r}); expected "
                "a name on each line, in the order of the labels."
            )
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("name"), str) or not row["name"].strip():
            raise DataError(f"class {number} of {path} has no name; expected a column or key 'name' with a text.")
        if re.search(r"[\x00-\x1f\x7f]", row["name"].strip()):
            raise DataError(f"the name of class {number} of {path} holds control characters; write it as plain text.")
        unknown = next((key for key in row if key not in _ROW_KEYS), None)
        if unknown is not None:
            raise DataError(f"class {number} of {path} has the key {unknown!r}; expected {', '.join(_ROW_KEYS)}.")
    names = tuple(row["name"].strip() for row in rows)
    words = tuple(str(row.get("words") or "").strip() or name for row, name in zip(rows, names, strict=True))
    palette = voc_palette()
    colors = tuple(
        _color(path, name, row["color"]) if row.get("color") else palette[number]
        for number, (row, name) in enumerate(zip(rows, names, strict=True), 1)
        if number < IGNORE
    )
    if len(names) > MOST_CLASSES:
        raise DataError(f"{path} has {len(names)} classes; expected 1 to {MOST_CLASSES}.")
    return ClassSet(names, words, tuple(background), colors)


def _csv_rows(path: Path, text: str) -> list[dict]:
    reader = csv.DictReader(
        text.splitlines(), restkey="(more columns than the header)", skipinitialspace=True, strict=True
    )
    try:
        return [row for row in reader if any(row.values())]
    except csv.Error as error:
        raise DataError(
            f"line {reader.reader.line_num} of the classes file {path} is no CSV ({error}); mend it."
        ) from error


def _toml_rows(path: Path, text: str) -> tuple[list[dict], Sequence[str]]:
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"the classes file {path} is no valid TOML ({error}); mend that line.") from error
    rows, background = tree.get("class", []), tree.get("background", BACKGROUND_WORDS)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"'class' of {path} is no list of tables; write each class as [[class]] with a name.")
    unknown = next((key for key in tree if key not in ("class", "background")), None)
    if unknown is not None:
        raise DataError(f"{path} has the key {unknown!r}; expected [[class]] tables and a list 'background'.")
    if isinstance(background, str) or not isinstance(background, Sequence) or not all(map(_is_word, background)):
        raise DataError(f"'background' of {path} is {background!r}; expected a list of words.")
    return rows, background


def _is_word(given: object) -> bool:
    return isinstance(given, str) and bool(given.strip())


def _color(path: Path, name: str, text: object) -> tuple[int, int, int]:
    if not isinstance(text, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", text.strip()):
        raise DataError(f"the colour of {name!r} in {path} is {text!r}; expected six hex digits such as #ff8800.")
    red, green, blue = bytes.fromhex(text.strip()[1:])
    return red, green, blue
