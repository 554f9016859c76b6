"""labelstudio.py: asked over HTTP as Label Studio asks; its own SDK, in its own Python, checks and decodes it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
import pytest
from PIL import Image

from integrations.answering import Knowing, truth
from other_python import in_other_python
from vpl.errors import DataError
from vpl.integrations.labelstudio import Backend, interface

BRUSH = """<View><Image name="photo" value="$picture"/><BrushLabels name="tag" toName="photo">
<Label value="Dog"/><Label value="red_car" alias="car"/><Label value="tree"/></BrushLabels></View>"""
POLYGONS = BRUSH.replace("BrushLabels", "PolygonLabels")
HEIGHT, WIDTH = 14, 20


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(backend):
    with make_server("127.0.0.1", 0, backend, handler_class=Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(path, given=None, method=None):
            data = None if given is None else given if isinstance(given, bytes) else json.dumps(given).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", data, method=method)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)

        yield ask
        server.shutdown()


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b c.png"):
        Image.new("RGB", (WIDTH, HEIGHT), (9, 80, 7)).save(tmp_path / "photos" / name)
    (tmp_path / "secret.png").write_bytes((tmp_path / "photos" / "a.png").read_bytes())
    return tmp_path / "photos"


def task(address, id=1):
    return {"id": id, "data": {"picture": address}}


CHECK = """
import json, sys
import numpy as np
from label_studio_sdk.converter import brush
from label_studio_sdk.label_interface import LabelInterface
told = json.load(open(sys.argv[1]))
found = LabelInterface(told["config"])
errors = [found.validate_prediction(one, return_errors=True) for one in told["results"]]
masks = [[[one["value"]["brushlabels"][0],
           brush.decode_rle(one["value"]["rle"])
           .reshape(one["original_height"], one["original_width"], 4)[..., 3].tolist()]
          for one in each["result"] if "rle" in one["value"]] for each in told["results"]]
print(json.dumps({"errors": errors, "masks": masks}))
"""


@pytest.mark.parametrize("config", [BRUSH, POLYGONS])
def test_label_studios_own_sdk_takes_the_answer(photos, tmp_path, config):
    tasks = [task("/data/local-files/?d=a.png"), task("/data/local-files/?d=sub/b%20c.png", 2)]
    with served(Backend(Knowing(), photos)) as ask:
        status, told = ask(
            "/predict", {"tasks": tasks, "label_config": config, "project": "1.2", "params": {"context": None}}
        )
    assert status == 200 and len(told["results"]) == 2
    (tmp_path / "told.json").write_text(json.dumps({"config": config, "results": told["results"]}))
    found = in_other_python("VPL_LABELSTUDIO_PYTHON", CHECK, tmp_path / "told.json")
    assert found["errors"] == [[], []]
    if config is BRUSH:
        for one in found["masks"]:
            assert [name for name, _ in one] == ["Dog", "car"]
            for label, (_, mask) in enumerate(one, 1):
                assert np.array_equal(np.array(mask), 255 * (truth(HEIGHT, WIDTH) == label))


def test_label_studios_requests_are_answered(photos):
    with served(Backend(Knowing(), photos)) as ask:
        status, told = ask("/health")
        assert status == 200 and told["status"] == "UP" and told["model_version"].endswith(" 01234567")
        assert ask("/")[1] == told
        setup = {"project": "1.2", "schema": BRUSH, "hostname": "http://x", "access_token": "t"}
        assert ask("/setup", setup) == (200, {"model_version": told["model_version"]})
        assert ask("/webhook", {"action": "ANNOTATION_CREATED"}) == (201, {})
        assert ask("/predict/everything", {})[0] == 404 and ask("/predict")[0] == 404
        assert "is no JSON" in ask("/predict", b"{")[1]["error"]
        assert ask("/predict", {"tasks": 3})[0] == 400
        status, told = ask("/predict", {"tasks": [task("/data/local-files/?d=a.png")], "label_config": BRUSH})
        (one,) = told["results"]
        assert one["score"] == pytest.approx(0.97, abs=0.2) and {row["type"] for row in one["result"]} == {
            "brushlabels"
        }


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("<View/>", "no BrushLabels or PolygonLabels of an Image"),
        ("<View", "no XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View/>', "declares entities"),
        (
            '<View><Image name="i" value="$i"/><BrushLabels toName="j"><Label value="a"/></BrushLabels></View>',
            "no BrushL",
        ),
        (BRUSH.replace("Dog", "cow").replace("red_car", "bus"), "the network knows 'dog', 'red car', 'sofa'"),
    ],
)
def test_an_interface_that_cant_be_used_is_told_when_it_is_set_up(photos, config, words):
    with served(Backend(Knowing(), photos)) as ask:
        status, told = ask("/setup", {"project": "1", "schema": config})
    assert status == 400 and words in told["error"]


def test_brush_labels_go_before_polygons_and_names_are_read_from_the_interface():
    found = interface(
        POLYGONS.replace("</View>", BRUSH.removeprefix("<View>").replace("photo", "two").replace('"tag"', '"x"'))
    )
    assert (found.kind, found.control, found.image, found.field) == ("brushlabels", "x", "two", "picture")
    assert dict(found.labels) == {"Dog": "Dog", "red_car": "car", "tree": "tree"}


ADDRESSES = (
    "/data/local-files/?d=../secret.png", "/data/local-files/?d=", "/data/local-files/?d=/etc/passwd", "s3://bucket/a.png",
    "http://169.254.169.254/latest", "file:///etc/passwd", "//evil/a.png", "/data/local-files/?d=none.png",
    "/data/upload/1/a.png",
)  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_other_address_is_read(photos, address, caplog):
    with pytest.raises(DataError, match="none of the 1 photographs can be used"):
        Backend(Knowing(), photos).predict([task(address)], BRUSH)
    found = Backend(Knowing(), photos).predict([task(address), task("/data/local-files/?d=a.png", 2)], BRUSH)
    assert [len(one["result"]) for one in found] == [0, 2] and "task 1:" in caplog.text


class Host(BaseHTTPRequestHandler):
    """Label Studio with one photograph; /moved leads to another server."""

    def __init__(self, data, seen, elsewhere, *arguments):
        self.data, self.seen, self.elsewhere = data, seen, elsewhere
        super().__init__(*arguments)

    def do_GET(self):
        self.seen.append((self.path, self.headers.get("Authorization")))
        self.send_response(302 if self.path == "/moved" else 200)
        if self.path == "/moved":
            self.send_header("Location", self.elsewhere)
        self.end_headers()
        self.wfile.write(b"" if self.path == "/moved" else self.data)

    def log_message(self, *_):
        pass


def test_photographs_come_from_label_studio_and_its_key_goes_nowhere_else(photos):
    data, seen, other = (photos / "a.png").read_bytes(), [], []
    with HTTPServer(("127.0.0.1", 0), partial(Host, data, other, "")) as store:
        elsewhere = f"http://localhost:{store.server_port}/kept"
        with HTTPServer(("127.0.0.1", 0), partial(Host, data, seen, elsewhere)) as host:
            for one in (store, host):
                threading.Thread(target=one.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{host.server_port}"
            backend = Backend(Knowing(), host=address, key="secret")
            tasks = [task("/data/upload/1/0a-a.png"), task(f"{address}/data/upload/1/b.png"), task("/moved")]
            found = backend.predict(tasks, BRUSH)
            assert [len(one["result"]) for one in found] == [2, 2, 2]
            with pytest.raises(DataError, match="is behind another address than Label Studio's"):
                backend.predict([task(f"{address}0/a.png")], BRUSH)
            for one in (store, host):
                one.shutdown()
    assert {key for _, key in seen} == {"Token secret"} and len(seen) == 3
    assert other == [("/kept", None)]
