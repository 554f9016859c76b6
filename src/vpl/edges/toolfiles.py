"""Exports of labelling tools -> rows {"file_name": ..., "tags": [...]}: Label Studio, FiftyOne, CVAT, COCO's captions.

Only what is on a photograph is taken, never where: boxes, polygons and masks are tags here. What a
file leaves open is told row by row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.parsers import expat

from vpl.classes import ClassSet
from vpl.errors import DataError

Entry = dict[str, Any]

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")


def rows_of(tree: object, classes: ClassSet | None) -> list[Entry] | None:
    """The rows of a tool's JSON; None where it is none of those known.

    Raises:
        DataError: COCO's captions without classes whose words are looked for.
    """
    if isinstance(tree, list) and tree and all(_is_task(one) for one in tree):
        return [_task(one) for one in tree]
    if isinstance(tree, dict) and isinstance(tree.get("samples"), list):
        return [_sample(one) for one in tree["samples"] if isinstance(one, dict)]
    if isinstance(tree, dict) and isinstance(tree.get("labels"), dict) and isinstance(tree.get("classes"), list):
        return list(_labelled(tree["labels"], tree["classes"]))
    if isinstance(tree, dict) and _has_captions(tree):
        if classes is None:
            raise DataError(
                "captions hold no tags, and there are no classes whose words could be looked for in them; give them: "
                "--classes voc, coco or a file."
            )
        return _captioned(tree, classes)
    return None


# ------------------------------------------------------------------------------------------------------ Label Studio
def _is_task(one: object) -> bool:
    return isinstance(one, dict) and isinstance(one.get("data"), dict) and isinstance(one.get("annotations"), list)


def _task(task: Entry) -> Entry:
    """A task; annotations that were skipped or withdrawn say nothing."""
    places = [one for one in task["data"].values() if isinstance(one, str)]
    image = next((one for one in places if re.search(r"\.\w{3,4}($|[?&])", one)), places[0] if places else "")
    tags: dict[str, None] = {}
    for annotation in _objects(task["annotations"]):
        for result in () if annotation.get("was_cancelled") else _objects(annotation.get("result")):
            value, kind = result.get("value"), result.get("type")
            named = value.get(kind) if isinstance(value, dict) and isinstance(kind, str) else None
            for one in named if isinstance(named, list) else ():
                last = one[-1] if isinstance(one, list) and one else one  # of a taxonomy's way, the leaf
                tags |= {last: None} if isinstance(last, str) else {}
    return {"file_name": _place(image), "tags": list(tags)}


def _objects(found: object) -> list[Entry]:
    """The objects of a list; what is something else says nothing."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _place(address: str) -> str:
    """The file that Label Studio's address stands for: served from a folder, uploaded, or elsewhere."""
    try:
        parts = urlsplit(address)
    except ValueError:  # no address, so no file that could be found
        return address
    if parts.path.endswith("/data/local-files/"):
        return (parse_qs(parts.query).get("d") or [""])[0]
    if "/data/upload/" in parts.path:
        return _UPLOADED.sub("", PurePosixPath(unquote(parts.path)).name)
    return PurePosixPath(unquote(parts.path)).name if parts.scheme else address


# ---------------------------------------------------------------------------------------------------------- FiftyOne
def _sample(sample: Entry) -> Entry:
    """A sample of a FiftyOneDataset: every label of every field of labels."""
    tags: dict[str, None] = {}
    for field in sample.values():
        if isinstance(field, dict):
            several = next((one for one in field.values() if isinstance(one, list)), [])
            labels = [field.get("label"), *(one.get("label") for one in several if isinstance(one, dict))]
            tags |= dict.fromkeys(one for one in labels if isinstance(one, str))
    return {"file_name": str(sample.get("filepath", "")).removeprefix("data/"), "tags": list(tags)}


def _labelled(labels: Mapping[str, Any], classes: list[Any]) -> Iterator[Entry]:
    """FiftyOne's classification and detection files: a number, a name, several, or objects with a label."""
    for name, found in labels.items():
        several = found if isinstance(found, list) else [found] if found is not None else []
        own = [one.get("label") if isinstance(one, dict) else one for one in several]
        named = [classes[one] if isinstance(one, int) and 0 <= one < len(classes) else one for one in own]
        yield {"file_name": name, "tags": list(dict.fromkeys(one for one in named if isinstance(one, str)))}


# --------------------------------------------------------------------------------------------------- COCO's captions
def _has_captions(tree: Entry) -> bool:
    lists = isinstance(tree.get("images"), list) and isinstance(tree.get("annotations"), list)
    return lists and any(isinstance(one, dict) and "caption" in one for one in tree["annotations"][:9])


def _captioned(tree: Entry, classes: ClassSet) -> list[Entry]:
    """A tag for each class whose name or one of whose prompt words stands in a caption, in the singular or plural."""
    wanted = {}
    for name, words in zip(classes.names, classes.words, strict=True):
        spelled = {name.lower(), *(one.strip().lower() for one in words.split(","))}
        pattern = "|".join(_forms(one) for one in sorted(spelled, key=len, reverse=True))
        wanted[name] = re.compile(rf"\b(?:{pattern})\b")
    texts: dict[str, list[str]] = {}
    for one in _objects(tree["annotations"]):
        if isinstance(one.get("caption"), str):
            texts.setdefault(repr(one.get("image_id")), []).append(one["caption"].lower())
    rows = []
    for image in _objects(tree["images"]):
        text = " . ".join(texts.get(repr(image.get("id")), ()))
        tags = [name for name, pattern in wanted.items() if pattern.search(text)]
        rows.append({"file_name": image.get("file_name"), "tags": tags})
    return rows


def _forms(words: str) -> str:
    whole = re.escape(words).replace(r"\ ", r"[\s-]?")
    return rf"{whole[:-1]}ies|{whole}" if words.endswith("y") else rf"{whole}(?:e?s)?"


# -------------------------------------------------------------------------------------------------------------- CVAT
def cvat_rows(data: bytes) -> list[Entry]:
    """The images of "CVAT for images 1.1", with the labels of their tags and shapes.

    Raises:
        DataError: it is no XML, declares entities, or holds no image.
    """
    rows: list[Entry] = []

    def start(name: str, given: dict[str, str]) -> None:
        if name == "image":
            rows.append({"file_name": given.get("name", ""), "tags": []})
        elif rows and "label" in given and given["label"] not in rows[-1]["tags"]:
            rows[-1]["tags"].append(given["label"])

    def refuse(*_: object) -> None:
        raise DataError("it declares entities, which no export does.")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EntityDeclHandler = start, refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise DataError(f"it is no XML ({error}).") from error
    if not rows:
        raise DataError('it holds no images; export the task as "CVAT for images 1.1".')
    return rows


def named(rows: Iterable[Entry], where: str) -> Iterator[tuple[str, Entry]]:
    """Rows with the place that messages name."""
    return ((f"{where}: [{number}]", row) for number, row in enumerate(rows))
