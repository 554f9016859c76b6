"""`data.mask_values`: what the numbers and colours of truth masks stand for, as it is written down -> rows.

    labels               label values (truth.py)              colors    the class set's own colours, VOC's for voc
    ids                  category ids of the list             binary    0, and anything else the photograph's one tag
    FILE                 a label map: CVAT's labelmap.txt, a CSV with a header, TOML with [[class]] tables
    254=dog              a number; 254=background, 254=ignore
    #e0e0c0=dog          a colour
    void=ignore          a name of the label map, or a category of COCO's JSON, as if it had the other name
    *=ignore             every number, colour or name that is not told otherwise

Parts stand beside each other with commas ("labelmap.txt,void=ignore"); a later one goes before an earlier one.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpl.edges.names import shown
from vpl.errors import ConfigError, DataError

KINDS = ("labels", "ids", "binary", "colors")
IGNORED = ("ignore", "ignored")
MOST_BYTES = 2**20
"""Larger label maps are refused unread."""
NAME_COLUMNS = ("name", "label", "class", "class_name")
NUMBER_COLUMNS = ("value", "id", "number", "index", "label_id", "class_id")
COLOR_COLUMNS = ("color", "colour", "color_rgb")
CHANNELS = (("r", "red"), ("g", "green"), ("b", "blue"))

Key = int | tuple[int, int, int]


@dataclass(frozen=True)
class Legend:
    """A setting, taken apart.

    Attributes:
        kind: one of `KINDS`, or empty.
        rows: number or colour -> name.
        instead: name of the file -> name that is meant.
        rest: the name for all that is not told; empty: it is refused.
        place: the label map's file, for messages.
    """

    kind: str = ""
    rows: Mapping[Key, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    rest: str = ""
    place: str = ""


def read(text: str, key: str) -> Legend:
    """What a setting says. `key` is its name, for messages.

    Raises:
        ConfigError: a part is none of the forms.
        DataError: the label map can't be read.
    """
    kind, rest, place = "", "", ""
    rows: dict[Key, str] = {}
    instead: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        given, sign, meant = (one.strip() for one in part.partition("="))
        if part in KINDS:
            if kind and kind != part:
                raise ConfigError(f"{key} says {kind} and {part}; expected one of them.")
            kind = part
        elif not sign:
            rows |= _of_file(_existing(part, key))
            place = part
        elif not given or not meant:
            raise ConfigError(f"{key} has the part {shown(part)}; expected NUMBER=CLASS, #rrggbb=CLASS or NAME=CLASS.")
        elif given == "*":
            rest = meant
        elif re.fullmatch(r"\d+", given):
            rows[_number(_digits(given), key)] = meant
        elif given.startswith("#"):
            rows[_hex(given, key)] = meant
        else:
            instead[given] = meant
    return Legend(kind, rows, instead, rest, place)


def located(text: str) -> str:
    """The setting with the places of its files from the root on, so that it holds wherever it is read."""
    parts = [part.strip() for part in text.split(",")]
    return ",".join(part if part in KINDS or "=" in part or not part else str(Path(part).resolve()) for part in parts)


def _existing(part: str, key: str) -> Path:
    try:
        found = Path(part).is_file()
    except (OSError, ValueError):
        found = False
    if not found:
        raise ConfigError(
            f"{key} is {shown(part)}, which is no file; expected {', '.join(KINDS)}, the file of a label map, or "
            "NUMBER=CLASS."
        )
    return Path(part)


def _of_file(path: Path) -> dict[Key, str]:
    """The rows of a label map.

    Raises:
        DataError: it can't be read, or a row is malformed; the message names it.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"the label map {path} has more than {MOST_BYTES} bytes; expected a line per class.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"the label map {path} can't be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the label map {path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    reader = {".csv": _csv, ".toml": _toml, ".txt": _labelmap}.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"the label map {path} ends with {path.suffix!r}; expected .txt (CVAT's), .csv or .toml.")
    rows: dict[Key, str] = {}
    for key, name in reader(path, text):
        if rows.setdefault(key, name) != name:
            raise DataError(f"the label map {path} calls {told(key)} both {shown(rows[key])} and {shown(name)}.")
    if not rows:
        raise DataError(f"the label map {path} holds no number and no colour; expected one for each class.")
    return rows


def _labelmap(path: Path, text: str) -> list[tuple[Key, str]]:
    """CVAT's: name:r,g,b:parts:actions."""
    found: list[tuple[Key, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, _, after = line.partition(":")
            color = after.partition(":")[0]
            if not name.strip() or not color.strip():
                raise DataError(f"line {number} of the label map {path} is {shown(line)}; expected name:r,g,b::")
            found.append((_color(color, f"line {number} of {path}"), name.strip()))
    return found


def _csv(path: Path, text: str) -> list[tuple[Key, str]]:
    lines = text.splitlines()
    sign = max(",;\t", key=lambda one: lines[0].count(one)) if lines else ","
    try:
        table = list(csv.reader(lines, delimiter=sign, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise DataError(f"the label map {path} is no CSV ({error}); mend it.") from error
    header = [name.strip().lower() for name in table[0]] if table else []

    def column(*names: str) -> int | None:
        return next((header.index(name) for name in names if name in header), None)

    name, number, color = column(*NAME_COLUMNS), column(*NUMBER_COLUMNS), column(*COLOR_COLUMNS)
    channels = [column(*one) for one in CHANNELS]
    if name is None or (number is None and color is None and None in channels):
        raise DataError(
            f"the first line of the label map {path} is {shown(sign.join(header))}; expected a header with name, and "
            "value, color or r,g,b."
        )
    found: list[tuple[Key, str]] = []
    for line, row in enumerate(table[1:], 2):
        where = f"line {line} of {path}"
        if not any(one.strip() for one in row):
            continue
        if len(row) != len(header):
            raise DataError(f"{where} has {len(row)} columns; expected {len(header)}.")
        if number is not None and row[number].strip():
            found.append((_whole(row[number], where), row[name].strip()))
        if color is not None and row[color].strip():
            found.append((_color(row[color], where), row[name].strip()))
        elif None not in channels:
            found.append((_color(",".join(row[one] for one in channels if one is not None), where), row[name].strip()))
    return found


def _toml(path: Path, text: str) -> list[tuple[Key, str]]:
    """[[class]] with name, and value or color; a classes file is one of colours."""
    try:
        rows: Any = tomllib.loads(text).get("class")
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"the label map {path} is no valid TOML ({error}); mend that line.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"the label map {path} has no [[class]] tables; expected them with name, and value or color.")
    found: list[tuple[Key, str]] = []
    for number, row in enumerate(rows, 1):
        where, name = f"class {number} of {path}", row.get("name")
        if not isinstance(name, str) or not name.strip() or not ("value" in row or "color" in row):
            raise DataError(f"{where} has no name, or neither value nor color.")
        if "value" in row:
            found.append((_whole(str(row["value"]), where), name.strip()))
        if "color" in row:
            found.append((_color(str(row["color"]), where), name.strip()))
    return found


def _whole(text: str, where: str) -> int:
    if not re.fullmatch(r"\s*\d+\s*", text):
        raise DataError(f"{where} has the number {shown(text)}; expected a whole one from 0 to 255.")
    return _number(_digits(text.strip()), where)


def _number(value: int, where: str) -> int:
    if value > 255:
        raise DataError(f"{where} has the number {value}; expected one from 0 to 255, as 8-bit masks hold.")
    return value


def _digits(text: str) -> int:
    """A whole number; of one so long that nobody means it, one that is too large."""
    return int(text) if len(text) < 10 else 10**9


def _hex(text: str, where: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ConfigError(f"{where} has the colour {shown(text)}; expected six hex digits such as #ff8800.")
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def _color(text: str, where: str) -> tuple[int, int, int]:
    if text.strip().startswith("#"):
        try:
            return _hex(text.strip(), where)
        except ConfigError as error:
            raise DataError(str(error)) from error
    numbers = re.findall(r"\d+", text)
    if len(numbers) != 3 or re.search(r"[^\d\s,;()\[\]]", text) or any(_digits(one) > 255 for one in numbers):
        raise DataError(f"{where} has the colour {shown(text)}; expected r,g,b of 0 to 255, or #rrggbb.")
    red, green, blue = map(int, numbers)
    return red, green, blue


def told(key: Key) -> str:
    """A number or colour as a setting names it."""
    return str(key) if isinstance(key, int) else "#{:02x}{:02x}{:02x}".format(*key)
