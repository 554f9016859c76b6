"""The page's server: what is answered, what is refused; in Chromium from the first look to a decision on the disk."""

from __future__ import annotations

import dataclasses
import errno
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from app_case import Asker, wait
from browser import chromium
from vpl import build
from vpl.app.room import Room
from vpl.app.server import Server
from vpl.app.tryout import Tryout
from vpl.cli import main
from vpl.config import Config
from vpl.edges import images, storage
from vpl.errors import DataError, RunError
from vpl.runs import teaching
from vpl.runs.review import Review
from warm import command

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def labelled(small_tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app") / "run"
    assert main([str(one) for one in command("labels", folder, small_tree)[1:]]) == 0
    return folder


@pytest.fixture
def server(labelled, tmp_path):
    folder = shutil.copytree(labelled, tmp_path / "run")
    with Server(Room(folder, "cpu"), Tryout(folder, device="cpu")) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def ask(server):
    return Asker(server)


def whole_list(ask):
    """The list, once the signs of all photographs are in it."""
    return wait(lambda: (one := ask("list")[1])["signs"] == 5 and one)


def test_the_list_and_the_pictures(ask, server):
    told = whole_list(ask)
    assert [row["decision"] for row in told["rows"]] == [""] * 5 and told["stages"][0] == "labels"
    row = told["rows"][2]
    _, photo, _ = ask("photograph", id=row["id"], side=20)
    assert max(Image.open(io.BytesIO(photo)).size) == 20
    for stage in told["stages"]:
        _, mask, _ = ask("mask", id=row["id"], stage=stage)
        place = server.room.folder / ("labels" if stage == "labels" else f"seeds/{stage}") / f"{row['id']}.png"
        assert np.array_equal(np.array(Image.open(io.BytesIO(mask))), images.read_mask(place))
    assert row["size"] == list(images.read_mask(place).shape) and 0 <= row["ignored"] <= 1
    assert all(0 <= row["rank"] <= 1 and row["agreement"] is None for row in told["rows"]), "as the regions have it"


def test_only_who_has_the_token_and_no_other_page_is_answered(ask, server):
    host = server.host
    assert ask("list")[0] == 200
    assert ask("list", token="x" * 32)[0] == 403 and ask("list", token="")[0] == 200
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{server.server_address[1]}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"https://{host}"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        status, told, _ = ask("list", headers=headers)
        assert status == 403 and set(told) == {"error"}, headers
        assert ask("decide", b"{}", headers=headers)[0] == 403
    assert ask("list", headers={"Origin": f"http://{host}"})[0] == 200
    _, page, answer = ask("")
    assert b"<title>Review" in page and answer.getheader("Access-Control-Allow-Origin") is None
    assert "frame-ancestors 'none'" in answer.getheader("Content-Security-Policy")
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("photograph", {"id": "../../config"}),
        ("photograph", {"id": "/etc/passwd"}),
        ("mask", {"id": "../config"}),
        ("mask", {"stage": "../../labels"}),
        ("mask", {"stage": "labels/.."}),
    ],
)
def test_no_way_leads_out_of_the_run(ask, server, name, query):
    given = {"id": next(iter(server.room._samples))} | query
    status, told, _ = ask(name, **given)
    assert status == 400 and "there is no" in told["error"] and "/" not in told["error"]
    for path in ("../../../etc/passwd", "%2e%2e/config.toml", "config.toml"):
        assert ask(path)[0] == 404


def test_what_is_too_large_is_refused_unread(ask, server):
    id = next(iter(server.room._samples))
    for name, length in (("paint", 2**40), ("decide", 2**30), ("decide", -1)):
        headers = {"Content-Length": str(length)} if length > 0 else {"Content-Length": "many"}
        status, told, _ = ask(name, b"", headers=headers, id=id)
        assert status == 413 and "at most" in told["error"]
    assert ask("paint", b"\0" * 7, id=id, revision=server.room.row(id)["revision"])[0] == 400
    for body in (b"[]", b"{", b'{"id": 3}', json.dumps({"id": id, "tags": ["no class"]}).encode()):
        assert ask("decide", body)[0] == 400
    assert ask("list")[0] == 200 and not (server.room.folder / "review.csv").exists()


def test_a_fault_is_answered_and_a_full_disk_loses_nothing(ask, server, monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", printed)
    row = whole_list(ask)["rows"][0]
    asked = {"id": row["id"], "decision": "accept", "tags": row["tags"] * 2, "revision": row["revision"]}
    assert ask("decide", b"[" * 60_000)[0] == 400
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        status, told, _ = ask("decide", json.dumps(asked).encode())
        assert status == 400 and "No space left" in told["error"] and ask("list")[1]["rows"][0] == row
        painted = bytes(row["size"][0] * row["size"][1])
        assert ask("paint", painted, id=row["id"], revision=row["revision"])[0] == 400
    assert not list(server.room.folder.rglob(f"*{storage.PARTIAL}")) and not Review(server.room.folder).decisions
    with monkeypatch.context() as patch:
        patch.setattr(server.room, "listed", lambda: 1 / 0)
        status, told, _ = ask("list")
        assert status == 500 and told["error"].startswith("vpl has a fault (ZeroDivisionError)")
    wait(lambda: "ZeroDivisionError: division by zero" in printed.getvalue())
    assert ask("decide", json.dumps(asked).encode())[1]["tags"] == row["tags"], "each once"


def test_a_browser_that_has_gone_is_no_fault(ask, server, capfd):
    for _ in range(8):
        with socket.create_connection(("127.0.0.1", server.server_address[1])) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.sendall(f"GET /{server.token}/list HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
    assert ask("list")[0] == 200
    time.sleep(0.5)
    assert capfd.readouterr().err == ""


def test_a_photograph_that_has_gone_is_told(ask, server, tmp_path):
    id = next(iter(server.room._samples))
    server.room._samples[id] = dataclasses.replace(server.room.sample(id), image=tmp_path / "gone.png")
    status, told, _ = ask("photograph", id=id)
    assert status == 400 and "gone.png" in told["error"]
    assert ask("mask", id=id)[0] == 200 and ask("list")[0] == 200


def test_a_tag_that_is_no_class_is_told_before_the_page_opens(labelled, tmp_path):
    folder = shutil.copytree(labelled, tmp_path / "run")
    (folder / "review.csv").write_text('id,decision,tags,corrected\nx,,"[""unicorn""]",\n', encoding="utf-8")
    with pytest.raises(RunError, match="the tag 'unicorn', which is none of the classes"):
        Room(folder, "cpu")


def test_two_windows_do_not_lose_each_others_work(ask, server):
    row = ask("list")[1]["rows"][0]
    first = {"id": row["id"], "decision": "accept", "tags": None, "revision": row["revision"]}
    assert ask("decide", json.dumps(first).encode())[1]["decision"] == "accept"
    status, told, _ = ask("decide", json.dumps(first | {"decision": "reject"}).encode())
    assert status == 409 and "in another window" in told["error"]
    assert Review(server.room.folder).of(row["id"]).decision == "accept"


def test_a_corrected_tag_makes_one_photograph_again(ask, server):
    folder, rows = server.room.folder, ask("list")[1]["rows"]
    row, other = rows[0], next(name for name in server.room.classes.names if name not in rows[0]["tags"])
    before = {one["id"]: (folder / "labels" / f"{one['id']}.png").stat().st_mtime_ns for one in rows}
    asked = {"id": row["id"], "decision": "", "tags": [*row["tags"], other], "revision": row["revision"]}
    assert ask("decide", json.dumps(asked).encode())[1]["tags"] == [*row["tags"], other]
    assert ask("remake", b"")[0] == 200
    told = wait(lambda: (one := ask("list")[1])["told"] and not one["busy"] and one)
    assert told["told"] == "1 mask made again."
    changed = [id for id, at in before.items() if (folder / "labels" / f"{id}.png").stat().st_mtime_ns != at]
    assert changed == [row["id"]]


def test_mirror_images_are_looked_at_when_asked(ask, server):
    assert ask("mirror", b"")[0] == 200
    told = wait(lambda: (one := ask("list")[1])["told"] and not one["busy"] and one)
    assert told["told"] == "5 mirror images looked at." and all(0 <= row["agreement"] <= 1 for row in told["rows"])


def test_held_out_photographs_are_shown_and_not_decided_on(labelled, small_tree, tmp_path):
    folder = shutil.copytree(labelled, tmp_path / "run")
    paths = {"images": small_tree / "images" / "val", "tags": small_tree / "val.csv"}
    config = Config.from_toml(folder / "config.toml")
    config = config.with_values({f"validation.{key}": str(path) for key, path in paths.items()})
    (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    name = sorted(path.stem for path in paths["images"].iterdir())[0]
    mask = np.zeros((32, 32), np.uint8)
    mask[:9] = 1
    (folder / "predictions").mkdir()
    images.write_mask(folder / "predictions" / f"{name}.png", mask, [])
    room = Room(folder, "cpu")
    try:
        listed = room.listed()
        assert len(listed["splits"]) == 2 and [row["id"] for row in listed["rows"] if row["split"]] == [name]
        assert np.array_equal(np.array(Image.open(io.BytesIO(room.mask(name, "labels")))), mask)
        for asked in (
            lambda: room.decide({"id": name, "decision": "accept", "revision": room.row(name)["revision"]}),
            lambda: room.paint(name, b"", room.row(name)["revision"]),
        ):
            with pytest.raises(DataError, match="is held out"):
                asked()
    finally:
        room.close()


def test_training_is_taught_what_was_decided(server, monkeypatch):
    folder, ids = server.room.folder, list(server.room._samples)
    made = server.room.review
    made.decide(ids[0], "reject", None, made.of(ids[0]).revision)
    painted = np.zeros_like(images.read_mask(folder / "labels" / f"{ids[1]}.png"))
    made.paint(ids[1], painted, server.room.classes, made.of(ids[1]).revision)
    taught = []
    monkeypatch.setattr(teaching.train, "fit", lambda items, *_: taught.extend(items) or iter(()))
    with build.open_run(folder, Config.from_toml(folder / "config.toml"), device="cpu") as run:
        plan = run.plan(["network"])
        teaching._fit(run, run.usable(plan))
        first = plan.of("network").wanted
        made.decide(ids[0], "", None, made.of(ids[0]).revision)
        assert run.plan(["network"]).of("network").wanted != first, "another decision is another network"
    assert [item.id for item in taught] == ids[1:]
    assert taught[0].mask == folder / "corrected" / f"{ids[1]}.png"


def test_one_page_at_a_time_reviews_a_run(server):
    with pytest.raises(RunError, match="another process works in"):
        Room(server.room.folder, "cpu")


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(RunError, match="is no run with pseudo-masks"):
        Room(tmp_path)


def test_killed_while_saving_and_ended_by_ctrl_c(labelled, tmp_path):
    folder = shutil.copytree(labelled, tmp_path / "run")

    def start():
        process = subprocess.Popen(
            [sys.executable, "-m", "vpl", "app", str(folder), "--device", "cpu"],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        found = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/", process.stdout.readline())
        return process, int(found[1]), found[2]

    process, port, token = start()
    ids = [
        path.relative_to(folder / "labels").with_suffix("").as_posix() for path in (folder / "labels").rglob("*.png")
    ]
    stop = threading.Event()

    def decide():
        review, number = Review(folder), 0
        revisions = {id: review.of(id).revision for id in ids}
        while not stop.is_set():
            id, number = ids[number % len(ids)], number + 1
            body = {"id": id, "decision": ("accept", "reject")[number % 2], "tags": None, "revision": revisions[id]}
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("POST", f"/{token}/decide", json.dumps(body))
                revisions[id] = json.load(connection.getresponse())["revision"]
            except (OSError, http.client.HTTPException, ValueError):
                return

    worker = threading.Thread(target=decide)
    worker.start()
    time.sleep(1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stop.set()
    worker.join()
    assert Review(folder).decisions and {one.decision for one in Review(folder).decisions.values()} <= {
        "accept",
        "reject",
    }
    process, _, _ = start()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "review.csv" in out


@pytest.mark.parametrize("width", [1280, 390])
def test_a_review_in_chromium_by_keyboard(server, width):
    folder = server.room.folder
    with chromium() as browser:
        browser.screen(width)
        browser.open(server.address)
        wait(lambda: browser.run("return document.querySelectorAll('.cell').length") == 5)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        names = browser.run("return shown.map(row => row.id)")

        def ready(id):
            wait(lambda: browser.run("return document.getElementById('one').dataset.ready") == id)

        browser.press("j")
        ready(names[0])
        browser.press("a")
        ready(names[1])
        browser.press("r")
        ready(names[2])
        assert {id: one.decision for id, one in Review(folder).decisions.items()} == dict(
            zip(names, ("accept", "reject"), strict=False)
        )
        browser.press("u")
        ready(names[1])
        wait(lambda: names[1] not in Review(folder).decisions)
        # the brush: one stroke by pointer, saved by key
        browser.run(
            "document.getElementById('label').value = '1'; const view = document.getElementById('view');"
            "const box = view.getBoundingClientRect(); const at = {clientX: box.left + box.width / 2,"
            " clientY: box.top + box.height / 2, buttons: 1, bubbles: true};"
            "view.dispatchEvent(new PointerEvent('pointerdown', at)); view.focus();"
        )
        browser.press("s")
        wait(lambda: Review(folder).of(names[1]).corrected)
        before = images.read_mask(folder / "labels" / f"{names[1]}.png")
        after = images.read_mask(folder / "corrected" / f"{names[1]}.png")
        height, across = before.shape
        assert after[height // 2, across // 2] == 1 and (after != before).sum() <= 12 * 12
        # a tag by its box
        said = "return document.getElementById('said').textContent"
        wait(lambda: browser.run(said).startswith(f"Saved: {names[1]} undecided, painted"))
        share = browser.run("return document.querySelector('#tags .soft').textContent")
        assert share.endswith(" %") or share == "no pixel", "what the first tag has of the mask"
        browser.run("document.querySelector('#tags input:not(:checked)').click()")
        wait(lambda: Review(folder).of(names[1]).tags)
        wait(lambda: "Make masks of mended tags" in browser.run(said))
        assert "tags mended" in browser.run("return document.getElementById('facts').textContent")
        browser.run("document.getElementById('close').click()")
        browser.run(
            "const find = document.getElementById('search'); find.value = arguments[0]; find.oninput()", names[0]
        )
        assert browser.run("return document.querySelectorAll('.cell').length") == 1
        assert browser.run("return document.querySelector('.badge').textContent") == "✓ accepted"
        browser.run("const find = document.getElementById('search'); find.value = 'nobody'; find.oninput()")
        assert browser.run("return document.getElementById('none').hidden") is False
        browser.run("document.getElementById('clear').click()")
        assert browser.run("return document.querySelectorAll('.cell').length") == 5
        assert browser.run("return document.querySelectorAll('button, input, select').length > 10") is True
        unnamed = "return [...document.querySelectorAll('input, select')].filter(one => !one.labels.length).length"
        assert browser.run(unnamed) == 0
        assert browser.console() == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_brush_by_keys_and_what_can_not_be_saved(server, width):
    folder = server.room.folder
    with chromium() as browser:
        browser.screen(width)
        browser.open(server.address)
        wait(lambda: browser.run("return document.querySelectorAll('.cell').length") == 5)
        wait(lambda: not browser.run("return data.looking"))
        names = browser.run("return shown.map(row => row.id)")
        order = "return [...document.querySelectorAll('.cell')].map(cell => cell.dataset.id)"
        browser.run(
            "put = (id, value) => { $(id).value = value; $(id).oninput(); }; put('search', arguments[0])", names[2]
        )
        browser.run("put('search', '')")
        assert browser.run(order) == names, "the Tab key goes as the eye does"
        ready = "return $('one').dataset.ready"
        said = "return $('said').textContent"
        browser.press("j")
        wait(lambda: browser.run(ready) == names[0])
        # saving where nothing is painted, or before the picture is there, saves nothing
        browser.run("open(1); save()")
        wait(lambda: browser.run(said) == "nothing is painted that is not saved")
        wait(lambda: browser.run(ready) == names[1])
        assert not Review(folder).decisions
        # the brush by keys: two steps to the right, paint, save
        browser.run("$('label').value = '1'; $('label').onchange(); $('width').value = 4; $('view').focus()")
        assert browser.run("return $('view').getAttribute('role')") == "application"
        browser.press("\ue014", 2)
        browser.press(" ")
        assert browser.run(said).startswith("Brush at ")
        browser.run("$('stage').style.width = '30px'; $('pixels').click(); $('view').focus()")
        browser.press("\ue012")
        browser.press("\ue014")
        assert browser.run("return $('stage').scrollLeft") > 0, "what the brush is at is in sight"
        browser.run("$('stage').style.width = ''; $('pixels').click(); $('view').focus()")
        browser.press("s")
        wait(lambda: Review(folder).of(names[1]).corrected)
        before = images.read_mask(folder / "labels" / f"{names[1]}.png")
        after = images.read_mask(folder / "corrected" / f"{names[1]}.png")
        height, across = before.shape
        assert after[height // 2, across // 2 + 4] == 1 and (after != before).sum() <= 16
        assert browser.run("return document.activeElement.id") == "view", "keys go on where they were"
        # a decision that is not saved does not go on
        browser.run(
            "$('label').value = ''; $('label').onchange(); window.fetch = () => Promise.reject(new TypeError())"
        )
        browser.press("a")
        wait(lambda: browser.run(said) == "vpl app does not answer; is it still running?")
        assert browser.run("return $('one').dataset.id") == names[1]
        assert not browser.run("return shown[at].decision")
        assert browser.console() == []


def test_the_grid_holds_a_hundred_thousand(server):
    with chromium() as browser:
        browser.open(server.address)
        wait(lambda: browser.run("return document.querySelectorAll('.cell').length") == 5)
        browser.run(
            "const one = data.rows[0]; data.rows = Array.from({length: 100000}, (_, n) => ({...one, id: one.id + n}));"
            "thumbnail = () => {}; arrange(); scrollTo(0, document.documentElement.scrollHeight)"
        )
        wait(lambda: browser.run("return Boolean(document.querySelector(`[data-id$='99999']`))"))
        assert browser.run("return document.querySelectorAll('.cell').length") < 200
        browser.run(
            "data.rows.forEach((row, n) => { row.rank = n === 7 ? .1 : .9; row.missing = 0; row.ignored = n % 2 });"
            "window.put = (id, value) => { const one = document.getElementById(id); one.value = value; one.oninput() };"
            "put('sign', 'rank')"
        )
        assert browser.run("return shown.length") == 1
        browser.run("put('sign', ''); put('search', '1234')")
        seen = browser.run("return shown.map(row => row.ignored)")
        assert len(seen) > 10 and seen == sorted(seen, reverse=True), "worst first"
