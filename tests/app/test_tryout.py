"""The room Try: its label maps are a run's, its quick ones near, its values go into a run; what is refused."""

from __future__ import annotations

import dataclasses
import http.client
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from PIL import Image

from app_case import Asker, wait
from browser import chromium
from vpl.app.room import Room
from vpl.app.server import MOST_PHOTOGRAPH, Server
from vpl.app.trial import QUICK_ROUNDS, Trial
from vpl.app.tryout import Tryout
from vpl.cli import main
from vpl.config import Config, quality
from vpl.edges import images
from vpl.errors import DataError, ModelError, RunError
from vpl.method import crf, looks, masks
from vpl.method.refine import minmax
from vpl.method.seeds import Slopes, seeds
from vpl.method.views import View, encode
from vpl.runs.review import Changed
from warm import command


@pytest.fixture(scope="module")
def labelled(small_tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("try") / "run"
    assert main([str(one) for one in command("labels", folder, small_tree)[1:]]) == 0
    return folder


@pytest.fixture
def folder(labelled, tmp_path):
    return shutil.copytree(labelled, tmp_path / "run")


@pytest.fixture
def tryout(folder):
    return Tryout(folder, device="cpu")


@pytest.fixture
def server(folder):
    with Server(Room(folder, "cpu"), Tryout(folder, device="cpu")) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def photograph(small_tree):
    return sorted((small_tree / "images" / "train").iterdir())[0]


def unpacked(made: bytes, shown: dict) -> tuple[dict, dict[str, np.ndarray]]:
    head, _, rows = made.partition(b"\n")
    told = json.loads(head)
    shape = (len(told["stages"]), shown["height"], shown["width"])
    return told, dict(zip(told["stages"], np.frombuffer(rows, np.uint8).reshape(shape), strict=True))


def test_the_whole_answer_is_the_runs_own_and_the_quick_one_is_near(tryout, folder):
    id = next(iter(tryout._samples))
    shown = tryout.look(b"", id, "", "")
    told, whole = unpacked(tryout.maps({"look": shown["look"], "values": {}, "whole": True}), shown)
    assert told["whole"] and list(whole) == ["text", "vision", "refined", "labels"]
    for stage, mask in whole.items():
        place = "labels" if stage == "labels" else f"seeds/{stage}"
        assert np.array_equal(mask, images.read_mask(folder / place / f"{id}.png")), stage
    told, quick = unpacked(tryout.maps({"look": shown["look"], "values": {}}), shown)
    assert not told["whole"]
    near = {stage: float((quick[stage] == whole[stage]).mean()) for stage in whole}
    assert near["text"] == 1 and near["vision"] > 0.97, near
    assert near["refined"] > 0.9, near  # a box may move by a rounding
    sure = (quick["labels"] != 255) & (whole["labels"] != 255)
    assert (quick["labels"] == whole["labels"])[sure].mean() > 0.95, "without PAR other pixels are unsure"


@pytest.mark.parametrize("scale", [5.0, 100 / 3, 100.0])
def test_slopes_are_the_seeds_of_any_scale(tiny_clip, scale):
    rng = np.random.default_rng(2)
    view = View(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8), (0, 1), (40, 56))
    table = torch.nn.functional.normalize(torch.randn(11, tiny_clip.dim, generator=torch.manual_seed(4)), dim=1)
    features = encode(tiny_clip, [view], Config().clip)
    own = seeds(tiny_clip, features, [table], [2], scale).cam[0]
    made = Slopes(tiny_clip, features, table).seeds(2, scale)
    assert torch.allclose(made, own, atol=2e-3) and not torch.allclose(own, minmax(torch.rand_like(own)), atol=0.1)


def test_the_best_label_is_the_first_of_the_largest():
    scores = torch.randint(0, 3, (5, 40, 30), generator=torch.manual_seed(1)).float()
    top, place = masks.best(scores)
    assert torch.equal(top, scores.max(dim=0).values) and torch.equal(place.long(), scores.argmax(dim=0))


def test_what_stays_the_same_is_not_made_again(tiny_clip, monkeypatch):
    view = View(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8), (0, 2), (40, 48))
    text = torch.nn.functional.normalize(torch.randn(9, tiny_clip.dim, generator=torch.manual_seed(0)), dim=1)
    config = Config().with_values(quality("standard"))
    made = Trial(tiny_clip, 4, view, text, text.flip(1), config)
    encoded = []
    monkeypatch.setattr(type(tiny_clip), "encode", lambda *_, **__: encoded.append(1))
    first = made.quick(config)
    kept = dict(made._made)
    made.quick(config.with_values({"labels.confidence": 0.5}))
    assert made._made == kept and encoded == [], "a threshold costs nothing else"
    other = made.quick(config.with_values({"prototypes.image_temperature": 0.3}))
    assert (other["text"] == first["text"]).all() and made._made["text"] is kept["text"]
    assert made._made["maker sclip"] is kept["maker sclip"] and made._made["vision"] is not kept["vision"]


def test_makers_are_asked_before_they_are_chosen(tiny_clip, monkeypatch):
    view = View(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8), (0, 2), (40, 48))
    text = torch.nn.functional.normalize(torch.randn(9, tiny_clip.dim, generator=torch.manual_seed(0)), dim=1)
    config = Config().with_values(quality("standard"))
    chosen = config.with_values({"looks.makers": ("words", "clearclip", "gradcam")})
    fresh, made = (Trial(tiny_clip, 4, view, text, text.flip(1), config) for _ in range(2))
    made.quick(config)
    made.prepare(config)
    wanted = fresh.quick(chosen)
    for name in set(looks.MAKERS) - {looks.PAPER}:
        monkeypatch.setitem(looks.MAKERS, name, lambda seen: pytest.fail("asked again"))
    found = made.quick(chosen)
    assert all((found[stage] == one).all() for stage, one in wanted.items())


def test_after_the_first_answer_all_makers_are_asked(tryout):
    key = tryout.look(b"", next(iter(tryout._samples)), "", "")["look"]
    tryout.maps({"look": key})
    every = {f"maker {name}" for name in looks.MAKERS if name != looks.PAPER}
    wait(lambda: every <= set(tryout._trial(key)._made))


def test_ctrl_c_while_makers_are_asked_ends_the_page(folder):
    """A thread that is inside torch when a program ends in the usual way aborts it."""
    lines = (
        "import sys, torch",
        "from vpl.app.trial import Trial",
        "from vpl.cli import main",
        "def busy(self, config):",
        "    print('busy', flush=True)",
        "    while True: torch.rand(400, 400) @ torch.rand(400, 400)",
        "Trial.prepare = busy",
        "sys.exit(main(['app', *sys.argv[1:]]))",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), str(folder), "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    found = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/", process.stdout.readline())

    def post(name, body, **query):
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("POST", f"/{found[2]}/{name}?{urlencode(query)}", body)
        return connection.getresponse().read()

    look = json.loads(post("look", b"", id=next(iter((folder / "labels").rglob("*.png"))).stem))["look"]
    post("maps", json.dumps({"look": look}))
    while process.stdout.readline().strip() != "busy":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "review.csv" in out and "terminate" not in err


def test_the_quick_answer_takes_a_few_rounds_of_the_crf(tiny_clip, monkeypatch):
    view = View(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8), (0, 2), (40, 48))
    text = torch.nn.functional.normalize(torch.randn(9, tiny_clip.dim, generator=torch.manual_seed(0)), dim=1)
    rounds, own = [], crf.dense_crfs
    monkeypatch.setattr(crf, "dense_crfs", lambda *given: rounds.append(given[2].rounds) or own(*given))
    made = Trial(tiny_clip, 4, view, text, None, Config())
    for wanted in (10, 2):
        made.quick(Config().with_values({"crf.rounds": wanted}))
    made.whole(Config())
    assert rounds == [QUICK_ROUNDS, 2, 10]


def test_without_a_run_the_tags_are_all_there_is(photograph):
    made = Tryout(device="cpu")
    shown = made.look(photograph.read_bytes(), "", "house;  bird , house", "")
    assert shown["tags"] == ["house", "bird"] and shown["stages"] == ["text", "refined", "labels"]
    assert "learned by a run" in shown["without_vision"] and shown["clip"] == "pocket"
    _, maps = unpacked(made.maps({"look": shown["look"], "values": {"crf.enabled": False}}), shown)
    assert set(np.unique(maps["refined"])) <= {0, 1, 2}
    told = made.use({"values": {"refine.box_threshold": 0.5, "looks.makers": ["gradcam", "sclip"]}})
    assert not told["written"]
    assert told["line"] == 'vpl run RUN --set refine.box_threshold=0.5 --set \'looks.makers=["gradcam", "sclip"]\''


def test_values_go_into_the_run_whole_and_alone(tryout, folder):
    asked = {"values": {"refine.box_threshold": 0.55, "crf.enabled": False}, "revision": tryout.values()["revision"]}
    told = tryout.use(asked)
    now = Config.from_toml(folder / "config.toml")
    assert told["written"] and set(told["changed"]) == {"refine.box_threshold", "crf.enabled"}
    assert now.refine.box_threshold == 0.55 and not now.crf.enabled
    assert now == tryout.config.with_values({"refine.box_threshold": 0.55, "crf.enabled": False})
    with pytest.raises(Changed, match="in the meantime"):  # another window, with the revision of before
        tryout.use(asked | {"values": {"refine.box_threshold": 0.9}})
    assert Config.from_toml(folder / "config.toml") == now
    with pytest.raises(RunError, match="another process works in"), _held(folder):
        tryout.use({"values": {"refine.box_threshold": 0.9}, "revision": told["revision"]})
    for values, words in (
        ({"data.images": "/etc"}, "other keys"),
        ({"refine.box_threshold": 7}, "from 0.0 to 1.0"),
        ({"crf.enabled": "perhaps"}, "true or false"),
        ([], "other keys"),
    ):
        with pytest.raises((DataError, Exception), match=words):
            tryout.use({"values": values, "revision": told["revision"]})
    assert Config.from_toml(folder / "config.toml") == now


def _held(folder):
    import contextlib

    from vpl.edges import locks

    @contextlib.contextmanager
    def held():
        lock = locks.claim(folder)
        try:
            yield
        finally:
            lock.release()

    return held()


@pytest.mark.parametrize(
    ("photograph", "given", "words"),
    [
        (b"no photograph", {}, "damaged or no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {}, "damaged or no image"),
        (b"", {}, "is empty"),
        (b"", {"id": "../../config"}, "no such photograph"),
        (b"", {"id": "/etc/passwd"}, "no such photograph"),
        (None, {"tags": "unicorn"}, "unknown tag"),
        (None, {"tags": " , "}, "0 tags"),
        (None, {"clip": "/etc/passwd"}, ""),
    ],
)
def test_what_can_not_be_looked_at(tryout, small_tree, photograph, given, words):
    own = sorted((small_tree / "images" / "train").iterdir())[0].read_bytes()
    asked = {"id": "", "tags": "house", "clip": ""} | given
    with pytest.raises((DataError, ModelError), match=words):
        tryout.look(own if photograph is None else photograph, **asked)


def packed(image, kind, **given):
    file = io.BytesIO()
    image.save(file, kind, **given)
    return file.getvalue()


def test_photographs_of_every_kind_are_looked_at(tryout):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    for sent, size in (
        (packed(image.convert("CMYK"), "JPEG"), [24, 40]),
        (packed(Image.fromarray(rng.integers(0, 65536, (24, 40), dtype=np.uint16)), "PNG"), [24, 40]),
        (packed(image, "JPEG", exif=turned), [40, 24]),
        (packed(image, "WEBP"), [24, 40]),
        (packed(image.convert("RGBA"), "TIFF"), [24, 40]),
        (packed(image.resize((1, 1)), "GIF"), [1, 1]),
    ):
        shown = tryout.look(sent, "", "house", "")
        assert shown["size"] == size
        assert unpacked(tryout.maps({"look": shown["look"], "values": {}}), shown)[1]["labels"].shape == tuple(size)
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    with pytest.raises(DataError, match=r"more than .* pixels"):
        tryout.look(bomb, "", "house", "")


def test_only_who_has_the_token_and_no_other_page_tries(server):
    ask = Asker(server)
    assert ask("try")[0] == ask("values")[0] == 200 and b"<title>Try" in ask("try")[1]
    for name, body in (
        ("try", None),
        ("values", None),
        ("looked", None),
        ("look", b""),
        ("maps", b"{}"),
        ("use", b"{}"),
    ):
        assert ask(name, body, token="x" * 32)[0] == 403
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert ask(name, body, headers=headers)[0] == 403, (name, headers)
    assert Config.from_toml(server.tryout.folder / "config.toml") == server.tryout.config


def test_what_is_too_large_or_strange_is_refused(server):
    ask = Asker(server)
    for name, most in (("look", MOST_PHOTOGRAPH), ("maps", 2**16), ("use", 2**16)):
        status, told, _ = ask(name, b"", headers={"Content-Length": str(most + 1)})
        assert status == 413 and "at most" in told["error"]
    for name, body in (("maps", b"[]"), ("maps", b'{"look": "../x"}'), ("use", b"{"), ("look", b"GIF89a")):
        assert ask(name, body, tags="house")[0] == 400
    for path in ("page.js/../../server.py", "%2e%2e/page.css", "../templates/page.js", "review.html"):
        assert ask(path)[0] == 404
    assert ask("looked", look="../../etc/passwd")[0] == 400


def test_two_windows_keep_their_photographs(server):
    ask, ids = Asker(server), list(server.tryout._samples)
    first, second = (ask("look", b"", id=id)[1] for id in ids[:2])
    told = [ask("maps", json.dumps({"look": one["look"], "values": {}}).encode()) for one in (first, second, first)]
    assert [status for status, _, _ in told] == [200] * 3 and told[0][1].partition(b"\n")[2] == told[2][1].partition(
        b"\n"
    )[2]
    for id in ids[2:5]:
        ask("look", b"", id=id)
    status, error, _ = ask("maps", json.dumps({"look": first["look"], "values": {}}).encode())
    assert status == 400 and "no longer kept" in error["error"]


@pytest.mark.slow
def test_killed_while_values_are_written(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "vpl", "app", str(folder), "--device", "cpu"],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    found = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/", process.stdout.readline())
    stop, written = threading.Event(), []

    def write():
        revision, number = None, 0
        while not stop.is_set():
            try:
                connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
                if revision is None:
                    connection.request("GET", f"/{found[2]}/values")
                    revision = json.load(connection.getresponse())["revision"]
                number += 1
                body = {"values": {"refine.box_threshold": number % 90 / 100}, "revision": revision}
                connection.request("POST", f"/{found[2]}/use", json.dumps(body))
                revision = json.load(connection.getresponse()).get("revision")
                written.append(revision)
            except (OSError, http.client.HTTPException, ValueError):
                return

    worker = threading.Thread(target=write)
    worker.start()
    wait(lambda: len(written) > 5)
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stop.set()
    worker.join()
    before = Config.from_toml(folder / "config.toml")
    same = dataclasses.replace(before, refine=Tryout(folder).config.refine)
    assert before == same and 0 <= before.refine.box_threshold < 0.9, "whole, whenever it ended"
    assert main(["plan", str(folder)]) == 0, "and the run goes on from there"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_try_in_chromium_by_keyboard(server, photograph, width):
    config = server.tryout.config
    with chromium() as browser:
        browser.screen(width, dark=width < 600)
        browser.open(server.address + "try")
        wait(lambda: browser.run("return facts.dials.length"))
        browser.run("document.getElementById('tags').value = 'house, bird'")
        browser.choose("#file", photograph)
        wait(lambda: browser.run("return document.body.dataset.whole"))
        stages = "return [...document.querySelectorAll('#maps figure')].map(one => one.dataset.stage)"
        assert browser.run(stages) == ["photo", "text", "vision", "refined", "labels"]
        assert "As a run makes it" in browser.run("return document.getElementById('told').textContent")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        browser.run("document.querySelector('[data-key=\"refine.box_threshold\"] input[type=range]').focus()")
        before = int(browser.run("return document.body.dataset.answered"))
        browser.press("\ue014", 5)  # right
        wait(lambda: int(browser.run("return document.body.dataset.answered")) > before)
        assert browser.run("return values['refine.box_threshold']") == 0.425
        assert browser.run("return document.activeElement.getAttribute('aria-valuetext')") == "0.425"
        one = "[data-key='looks.makers'] input[value=naclip]"
        first = browser.run("return values['looks.makers']")
        browser.run("document.querySelector(arguments[0]).click()", one)
        then = browser.run("return values['looks.makers']")
        assert ("naclip" in then) != ("naclip" in first)
        title = "return document.querySelector(`[data-key='looks.makers'] summary`).textContent"
        assert browser.run(title) == f"Makers that vote: {', '.join(then)}"
        browser.run("document.querySelector(arguments[0]).click()", one)
        assert browser.run("return values['looks.makers']") == first
        unnamed = (
            "return [...document.querySelectorAll('input, select')].filter("
            "one => !one.labels.length && !one.ariaLabel).length"
        )
        assert browser.run(unnamed) == 0
        browser.run("document.querySelector('figure[data-stage=labels] canvas').focus()")
        browser.press("\ue007")
        assert browser.run("return document.getElementById('large').open") is True
        browser.run("document.getElementById('shut').click(); document.getElementById('use').click()")
        wait(lambda: browser.run("return !document.getElementById('line').hidden"))
        assert Config.from_toml(server.tryout.folder / "config.toml") == config.with_values(
            {"refine.box_threshold": 0.425}
        )
        assert browser.console() == []
