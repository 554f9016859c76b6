"""A trained network as Label Studio's machine-learning backend: brush masks, or polygons, of each task's photograph.

    from wsgiref.simple_server import make_server
    backend = Backend(vpl.load("runs/mine"), files="photos")
    make_server("127.0.0.1", 9090, backend).serve_forever()    # any WSGI server does

Label Studio asks GET /health, POST /setup and POST /predict, and is answered as label-studio-ml's own server answers.
Photographs come from the folder that Label Studio serves local files from (`files`), or from Label Studio itself
(`host` and `key`); no other address is ever asked, whatever a task names.
"""

from __future__ import annotations

import json
import logging
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import parse_qs, unquote, urljoin, urlsplit
from xml.parsers import expat

import numpy as np

from vpl import __version__
from vpl.classes import IGNORE, ClassSet
from vpl.edges import images
from vpl.edges.names import inside, shown
from vpl.edges.tags import Speller
from vpl.errors import DataError, VplError
from vpl.exports import labelstudio, labelstudio_parts
from vpl.network.predict import SINGLE, Predictor

MOST_REQUEST_BYTES = 2**26
"""Longer requests are refused unread."""
HOST_SECONDS = 30
"""How long Label Studio may take to begin a photograph."""
LOCAL_FILES = "/data/local-files/"
ELEMENTS = {"BrushLabels": "brushlabels", "PolygonLabels": "polygonlabels"}
"""Elements of a labelling interface that hold what we give -> the kind of their results; the first one is taken."""

log = logging.getLogger("vpl")


@dataclass(frozen=True)
class Interface:
    """What a labelling interface asks for.

    Attributes:
        kind: brushlabels or polygonlabels.
        control, image: names of the labels and of the image in it.
        field: where a task holds the image.
        labels: label -> what results call it.
    """

    kind: str
    control: str
    image: str
    field: str
    labels: Mapping[str, str]


def interface(text: str) -> Interface:
    """The first brush or polygon labels of a labelling interface.

    Raises:
        DataError: it is no XML, declares entities, or has no such labels of an image.
    """
    controls: list[tuple[str, dict[str, str], dict[str, str]]] = []
    fields: dict[str, str] = {}

    def start(name: str, given: dict[str, str]) -> None:
        if name == "Image":
            fields[given.get("name", "")] = given.get("value", "").removeprefix("$")
        elif name in ELEMENTS:
            controls.append((name, given, {}))
        elif name == "Label" and controls and "value" in given:
            controls[-1][2][given["value"]] = given.get("alias") or given["value"]

    def refuse(*_: object) -> None:
        raise DataError("the labelling interface declares entities, which none does.")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EntityDeclHandler = start, refuse
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise DataError(f"the labelling interface is no XML ({error}).") from error
    controls.sort(key=lambda one: list(ELEMENTS).index(one[0]))
    for name, given, labels in controls:
        if given.get("toName") in fields and labels:
            image = given["toName"]
            return Interface(ELEMENTS[name], given.get("name", ""), image, fields[image], labels)
    raise DataError(
        f"the labelling interface has no {' or '.join(ELEMENTS)} of an Image; add them, such as those of labels.xml, "
        "which vpl export --to labelstudio writes."
    )


class Backend:
    """Label Studio's backend, a WSGI application.

    Args:
        predictor: the network (`vpl.load`).
        files: the folder that Label Studio serves local files from (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT).
        host: Label Studio's address, such as http://localhost:8080, for photographs that were uploaded to it.
        key: an access token of Label Studio's, which is sent to `host` alone.
        full: look at several scales, mirrored, and refine with the CRF.
    """

    def __init__(
        self,
        predictor: Predictor,
        files: str | Path | None = None,
        host: str = "",
        key: str = "",
        full: bool = False,
    ):
        self._predictor, self._protocol = predictor, predictor.full if full else SINGLE
        self._files, self._host, self._key = None if files is None else Path(files), host.rstrip("/"), key
        self.version = f"vpl {__version__} {predictor.fingerprint[:8]}"

    def predict(self, tasks: Sequence[Mapping[str, Any]], label_config: str) -> list[dict[str, Any]]:
        """One prediction for each task, in their order; a photograph that can't be used has an empty one, and is told.

        Args:
            tasks: Label Studio's; `data` holds the photograph's address.
            label_config: the labelling interface.

        Raises:
            DataError: the interface can't be used, or none of the photographs can.
        """
        wanted = interface(label_config)
        names = _names(wanted, self._predictor.classes)
        found, wrong = [], []
        for task in tasks:
            try:
                found.append(self._prediction(task, wanted, names))
            except DataError as error:
                log.warning("task %s: %s", task.get("id", "?"), error)
                wrong.append(str(error))
                found.append({"model_version": self.version, "score": 0.0, "result": []})
        if wrong and len(wrong) == len(tasks):
            raise DataError(f"none of the {len(tasks)} photographs can be used; the first: {wrong[0]}")
        return found

    def _prediction(self, task: Mapping[str, Any], wanted: Interface, names: Mapping[int, str]) -> dict[str, Any]:
        data = task.get("data")
        address = data.get(wanted.field) if isinstance(data, Mapping) else None
        if not isinstance(address, str):
            raise DataError(f"the task holds no photograph in {shown(wanted.field)}.")
        with self._photograph(address) as path:
            answer = self._predictor.answer(path, self._protocol)
        labels, (height, width) = answer.labels(), answer.size
        brush = wanted.kind == "brushlabels"
        result = [
            {
                "id": f"vpl-{label}-{number}",
                "type": wanted.kind,
                "from_name": wanted.control,
                "to_name": wanted.image,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": shape | {wanted.kind: [names[label]]},
            }
            for label in np.unique(labels).tolist()
            if label not in (0, IGNORE) and label in names
            for number, shape in enumerate((labelstudio if brush else labelstudio_parts).shapes(labels == label))
        ]
        score = float(answer.shares.max(dim=0).values.mean())
        return {"model_version": self.version, "score": round(score, 6), "result": result}

    @contextmanager
    def _photograph(self, address: str) -> Iterator[Path]:
        """The photograph's file; one of Label Studio's own is fetched for as long as the block lasts."""
        parts = urlsplit(address)
        if parts.path.endswith(LOCAL_FILES) and not parts.scheme:
            if self._files is None:
                raise DataError(
                    f"{shown(address)} lies where Label Studio serves local files; give that folder (files=)."
                )
            yield inside(self._files, (parse_qs(parts.query).get("d") or [""])[0])
            return
        if not self._host or not (address.startswith(("/", f"{self._host}/"))) or address.startswith("//"):
            raise DataError(
                f"{shown(address)} is behind another address than Label Studio's"
                f"{f' ({self._host})' if self._host else '; give its own (host=, key=)'}; it is not asked."
            )
        with tempfile.TemporaryDirectory(prefix="vpl-") as folder:
            path = Path(folder) / "photograph"
            path.write_bytes(self._fetched(urljoin(f"{self._host}/", address)))
            yield path

    def _fetched(self, address: str) -> bytes:
        request = urllib.request.Request(address)
        if self._key:
            request.add_unredirected_header("Authorization", f"Token {self._key}")  # not to a store it may lead to
        try:
            with urllib.request.urlopen(request, timeout=HOST_SECONDS) as answer:
                data: bytes = answer.read(images.MOST_FILE_BYTES + 1)
        except (URLError, OSError, ValueError) as error:
            raise DataError(f"{shown(unquote(address))} can't be fetched from Label Studio ({error}).") from error
        if len(data) > images.MOST_FILE_BYTES:
            raise DataError(f"{shown(address)} has more than {images.MOST_FILE_BYTES} bytes; save it smaller.")
        return data

    # WSGI

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """One request of Label Studio's."""
        try:
            status, answer = self._answered(environ)
        except VplError as error:
            status, answer = "400 Bad Request", {"error": str(error)}
        body = json.dumps(answer, ensure_ascii=False).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def _answered(self, environ: Mapping[str, Any]) -> tuple[str, Any]:
        method, path = environ.get("REQUEST_METHOD", "GET"), environ.get("PATH_INFO", "/").rstrip("/")
        if method == "GET" and path in ("", "/health"):
            return "200 OK", {"status": "UP", "model_class": "vpl", "model_version": self.version}
        if method != "POST" or path not in ("/setup", "/predict", "/webhook"):
            return "404 Not Found", {"error": "expected GET /health, POST /setup or POST /predict."}
        given = _json(environ)
        if path == "/webhook":  # nothing is learned from what people correct
            return "201 Created", {}
        if path == "/setup":
            _names(interface(str(given.get("schema") or "")), self._predictor.classes)
            return "200 OK", {"model_version": self.version}
        tasks = given.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(one, dict) for one in tasks):
            raise DataError("the request holds no list of tasks.")
        return "200 OK", {
            "results": self.predict(tasks, str(given.get("label_config") or "")),
            "model_version": self.version,
        }


def _names(wanted: Interface, classes: ClassSet) -> dict[int, str]:
    """What results call each label value whose class the interface has.

    Raises:
        DataError: it has none of them.
    """
    speller = Speller(classes, {})
    found = {}
    for label, alias in wanted.labels.items():
        for name in speller.read([label], "the labelling interface"):
            found[classes.index(name) + 1] = alias
    if not found:
        raise DataError(
            f"the labelling interface has the labels {', '.join(map(shown, wanted.labels))}, and the network knows "
            f"{', '.join(map(shown, classes.names[:9]))}{', …' if len(classes) > 9 else ''}; expected some of these."
        )
    return found


def _json(environ: Mapping[str, Any]) -> dict[str, Any]:
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        length = -1
    if not 0 <= length <= MOST_REQUEST_BYTES:
        raise DataError(
            f"the request has {environ.get('CONTENT_LENGTH')} bytes; expected at most {MOST_REQUEST_BYTES}."
        )
    try:
        tree = json.loads(environ["wsgi.input"].read(length) or b"{}")
    except (ValueError, RecursionError) as error:
        raise DataError("the request is no JSON.") from error
    if not isinstance(tree, dict):
        raise DataError("the request is no JSON object.")
    return tree
