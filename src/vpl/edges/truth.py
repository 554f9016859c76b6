"""Truth masks: whatever a user's masks hold -> label values. Evaluation alone reads them.

labels  0 background, c + 1 class c, 255 ignored: as they are
ids     the category ids of the COCO list, such as COCO's 1 to 90 for 80 classes; other numbers are ignored
binary  anything but 0 is the photograph's one tag, 255 too
colors  the class set's own colours (VOC's for voc, and wherever a classes file names none)
or a label map, numbers, colours (legend.py). A number or colour that is not told is refused by its name, never guessed.

Truth that lies in COCO's instances JSON is drawn (shapes.py) from its categories' names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vpl.classes import IGNORE, ClassSet
from vpl.edges import images, legend, shapes
from vpl.edges.legend import IGNORED, Legend
from vpl.edges.names import shown
from vpl.edges.tags import Speller
from vpl.errors import ConfigError, DataError

COCO_IDS = tuple(number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""COCO's ids of its 80 things, in order; masks of its 91 numbers hold them."""
MOST_JSON_BYTES = 2**31
"""Longer JSON files are refused."""
_SHOWN = 8
_KEPT = {
    "images", "annotations", "categories", "id", "name", "file_name", "width", "height", "image_id", "category_id",
    "segmentation", "iscrowd", "size", "counts",
}  # fmt: skip


@dataclass(frozen=True)
class Values:
    """How one photograph's truth is read.

    Attributes:
        numbers: label value by number in the file; a number that is missing is refused.
        colors: label value by colour, 0xrrggbb, likewise.
        shapes: what is drawn, JSON of {"size": [H, W], "shapes": [[label, COCO's segmentation], ...]}; empty: nothing.
    """

    numbers: tuple[tuple[int, int], ...] = ()
    colors: tuple[tuple[int, int], ...] = ()
    shapes: str = ""

    @cached_property
    def table(self) -> dict[int, int]:
        """Label value by number."""
        return dict(self.numbers)

    def told(self) -> str:
        """All of it as one text, for digests."""
        return f"{self.numbers} {self.colors} {self.shapes}"


def read_truth(mask: Path, values: Values | None = None) -> UInt8[np.ndarray, "H W"]:
    """A truth mask as label values.

    Args:
        mask: its file; COCO's JSON where `values` holds shapes.
        values: what is in it (`Sample.values`); None: label values.

    Raises:
        DataError: as `images.read_mask`; a number or colour in it is not told; a shape is malformed.
    """
    if values is None:
        return images.read_mask(mask)
    if values.shapes:
        return _drawn(mask, values.shapes)
    if values.colors and (not values.numbers or images.is_colored(mask)):
        colors = images.read_colors(mask).astype(np.int64)
        return _looked_up(colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2], dict(values.colors), mask)
    return _looked_up(images.read_mask(mask), values.table, mask)


def _looked_up(found: np.ndarray, table: Mapping[int, int], mask: Path) -> UInt8[np.ndarray, "H W"]:
    own, places = np.unique(found, return_inverse=True)
    strange = [value for value in own.tolist() if value not in table]
    if strange:
        colored = found.dtype != np.uint8
        words = [f"#{value:06x}" if colored else str(value) for value in strange]
        more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
        raise DataError(
            f"the mask {mask} holds {'colours' if colored else 'numbers'} that data.mask_values does not tell: "
            f"{', '.join(words[:_SHOWN])}{more}. Say what they are, such as {words[0]}=ignore or {words[0]}=CLASS."
        )
    return np.array([table[value] for value in own.tolist()], np.uint8)[places].reshape(found.shape)


def _drawn(place: Path, text: str) -> UInt8[np.ndarray, "H W"]:
    tree = json.loads(text)
    try:
        return shapes.draw([shapes.Shape(*one) for one in tree["shapes"]], *tree["size"])
    except DataError as error:
        raise DataError(f"a shape of {tree['name']} in {place} can't be drawn: {error}") from error


class Meaning:
    """What the masks of a list hold.

    Args:
        setting: `data.mask_values`.
        key: its name, for messages.
        classes: the class set.
        ids: category id by class name; empty: COCO's own, for as many classes as COCO has.
        aliases: how names are to be read (`data.aliases`).

    Raises:
        ConfigError: the setting is malformed, or names no class.
        DataError: a label map can't be read, or names no class; the masks shall hold ids and there are none.
    """

    def __init__(
        self,
        setting: str,
        key: str,
        classes: ClassSet,
        ids: Mapping[str, int] | None = None,
        aliases: Mapping[str, str] | None = None,
    ):
        self._key, self._classes, self._legend = key, classes, legend.read(setting, key)
        plain = Speller(classes, {})
        usable = {one: meant for one, meant in (aliases or {}).items() if plain.knows(meant)}
        self._speller = Speller(classes, usable)
        rest = self._label(self._legend.rest, ConfigError) if self._legend.rest else None
        wanted, numbers, colors = self._legend, {}, {}
        if wanted.kind == "ids":
            numbers = dict(enumerate(_of_ids(classes, ids or {})))
        elif wanted.kind == "labels" and (wanted.rows or rest is not None):
            numbers = {number: number for number in (*range(len(classes) + 1), IGNORE)}
        elif wanted.kind == "colors":
            palette = classes.palette()
            colors = {_packed(palette[label]): label for label in (IGNORE, *range(len(classes), -1, -1))}
            if len(colors) != len(classes) + 2:
                raise ConfigError(
                    f"{key} is colors, and two of the classes have one colour; give each its own in the classes file."
                )
        labels = self._labels(wanted, rest)
        for one, label in labels.items():
            if isinstance(one, int):
                numbers[one] = label
            else:
                colors[_packed(one)] = label
        if rest is not None:
            numbers = {number: numbers.get(number, rest) for number in range(256)} if numbers else numbers
            if colors:
                raise ConfigError(f"{key} can't say *= of colours, for there are too many; name those that occur.")
        if wanted.kind != "binary" and not (wanted.kind == "labels" and not (numbers or colors)):
            self._own: Values | None = Values(tuple(sorted(numbers.items())), tuple(sorted(colors.items())))
        else:
            self._own = None
        self._binary: dict[int, Values] = {}

    def of(self, tags: Sequence[str]) -> Values | None:
        """How a photograph with these tags is read; None: its mask holds label values. Without a tag, a binary mask
        holds background alone.

        Raises:
            DataError: the photograph has several tags and its mask is binary.
        """
        if self._legend.kind != "binary":
            return self._own
        if len(tags) > 1:
            raise DataError(f"a binary mask can't tell {' from '.join(tags)}; expected one tag.")
        label = self._classes.index(tags[0]) + 1 if tags else 0
        if label not in self._binary:
            table: dict[int, int] = {0: 0} | (dict.fromkeys(range(1, 256), label) if label else {})
            table |= {one: own for one, own in self._labels(self._legend, None).items() if isinstance(one, int)}
            self._binary[label] = Values(tuple(sorted(table.items())))
        return self._binary[label]

    def names(self, given: Iterable[str], place: str) -> dict[str, int]:
        """Label value by the names of a file.

        Raises:
            DataError: some of them are no class, and the setting does not say what they are.
        """
        found, strange = {}, []
        for name in dict.fromkeys(given):
            try:
                found[name] = self._label(self._legend.instead.get(name, name), DataError)
            except DataError:
                if self._legend.rest:
                    found[name] = self._label(self._legend.rest, ConfigError)
                else:
                    strange.append(name)
        if strange:
            more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
            raise DataError(
                f"{place} names what is no class: {', '.join(map(shown, strange[:_SHOWN]))}{more}. Say what they "
                f"are in {self._key}, such as {strange[0]}=ignore, {strange[0]}=CLASS or *=background."
            )
        return found

    def _labels(self, given: Legend, rest: int | None) -> dict[legend.Key, int]:
        by_name = self.names(given.rows.values(), given.place or self._key)
        return {key: by_name[name] for key, name in given.rows.items()}

    def _label(self, name: str, error: type[DataError] | type[ConfigError]) -> int:
        if name.lower() == "background":
            return 0
        found = self._speller.read([name], self._key)
        if found:
            return self._classes.index(found[0]) + 1
        if name.lower() in IGNORED:
            return IGNORE
        raise error(
            f"{self._key} leads to {shown(name)}; expected a class (the closest is "
            f"{self._classes.closest(name)!r}), background or ignore."
        )


def _packed(color: tuple[int, int, int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _of_ids(classes: ClassSet, ids: Mapping[str, int]) -> bytearray:
    """Label value by category id."""
    if not ids and len(classes) != len(COCO_IDS):
        raise DataError("data.mask_values is ids, and the list has none; expected COCO's instances JSON, or labels.")
    table = bytearray([0] + [IGNORE] * 255)
    for number, (name, own) in enumerate(zip(classes.names, COCO_IDS if not ids else classes.names, strict=False), 1):
        place = own if isinstance(own, int) else ids.get(name)
        if place is not None:
            table[place] = number
    return table


class Drawings:
    """Truth of COCO's instances JSON: for each image that it lists, how it is drawn.

    Crowds are ignored (255); an image without annotations is all background.

    Raises:
        DataError: the file can't be read, holds no such lists, or a category that `meaning` does not know.
    """

    def __init__(self, path: Path, meaning: Meaning):
        self._path = path
        tree = _tree(path)
        lists = {key: tree.get(key) for key in ("images", "annotations", "categories")}
        if not all(isinstance(one, list) for one in lists.values()):
            raise DataError(f"{path} holds no truth; expected COCO's lists images, annotations and categories.")
        entries = {key: [_keyed(one) for one in rows or () if isinstance(one, dict)] for key, rows in lists.items()}
        categories = {one.get("id"): str(one.get("name")) for one in entries["categories"]}
        used = {one.get("category_id") for one in entries["annotations"]}
        labels = meaning.names((name for id, name in categories.items() if id in used), str(path))
        drawn: dict[Any, list[list[Any]]] = {}
        for one in entries["annotations"]:
            name = categories.get(one.get("category_id"))
            if name is None:
                raise DataError(
                    f"{path} has an annotation of category {one.get('category_id')}, which it does not list."
                )
            label = IGNORE if one.get("iscrowd") else labels[name]
            if label and one.get("segmentation"):
                drawn.setdefault(one.get("image_id"), []).append([label, one["segmentation"]])
        self._values: dict[str, tuple[Any, ...]] = {}
        stems: dict[str, list[str]] = {}
        for one in entries["images"]:
            name, size = one.get("file_name"), [one.get("height"), one.get("width")]
            if isinstance(name, str):
                key = PurePosixPath(name.replace("\\", "/")).with_suffix("").as_posix().removeprefix("./")
                self._values[key] = name, size, drawn.get(one.get("id"), [])
                stems.setdefault(key.rpartition("/")[2], []).append(key)
        self._stems = {stem: keys[0] for stem, keys in stems.items() if len(keys) == 1}

    def of(self, *ids: str) -> Values | None:
        """How the truth of the first of these photographs that the file lists is drawn; None: it lists none of them.

        Raises:
            DataError: the file does not say the image's size.
        """
        key = next((one for one in ids if one in self._values), None) or self._stems.get(ids[-1] if ids else "")
        if key is None:
            return None
        name, size, drawn = self._values[key]
        if not all(type(one) is int and one > 0 for one in size) or size[0] * size[1] > images.MOST_PIXELS:
            raise DataError(
                f"{self._path} does not say the width and height of {shown(name)}, which truth is drawn at."
            )
        return Values(shapes=json.dumps({"name": name, "size": size, "shapes": drawn}))


def _keyed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry whose ids can be looked up: one that is a list or an object is none."""
    return entry | {key: None for key in ("id", "image_id", "category_id") if isinstance(entry.get(key), (list, dict))}


def _tree(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MOST_JSON_BYTES:
            raise DataError(f"{path} has {size} bytes; expected at most {MOST_JSON_BYTES}. Split it.")
        tree = json.loads(
            path.read_bytes(), object_hook=lambda entry: {key: entry[key] for key in _KEPT if key in entry}
        )
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); check the file.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON ({error}); expected COCO's instances file.") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} is no JSON object; expected COCO's instances file.")
    return tree
