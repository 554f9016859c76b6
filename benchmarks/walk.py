"""The recorded walk through the page of `vpl app`: screenshots for docs/how-to/review.md, by a headless Chromium.

    python benchmarks/walk.py docs/how-to/walk [--out FOLDER]     FOLDER keeps the drawn scenes and their run

Drawn scenes, so that no photograph of anybody's enters the project.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vpl.app.room import Room
from vpl.app.server import Server
from vpl.app.tryout import Tryout
from vpl.cli import main
from vpl.edges.storage import write_bytes_atomic
from vpl.scenes.tree import write_tree

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import Browser, chromium

SCENES, SIDE, QUALITY = 40, 224, 72


def wait(test: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            raise SystemExit("the page did not get there in time")
        time.sleep(0.1)


def shoot(browser: Browser, folder: Path, name: str) -> None:
    time.sleep(0.5)
    packed = io.BytesIO()
    Image.open(io.BytesIO(browser.picture())).convert("RGB").save(packed, "WEBP", quality=QUALITY, method=6)
    write_bytes_atomic(folder / f"{name}.webp", packed.getvalue())
    print(f"{name}.webp {len(packed.getvalue()) / 1000:.0f} kB", flush=True)


def tried(browser: Browser, server: Server, folder: Path, id: str) -> None:
    """The room Try."""
    browser.screen(1280, 860)
    browser.open(f"{server.address}try?photo={id}")
    wait(lambda: browser.run("return document.body.dataset.whole"))
    shoot(browser, folder, "try")
    browser.run(
        "const put = (key, value) => { const one = document.getElementById(key); one.value = value; one.onchange(); };"
        "document.body.dataset.whole = ''; put('labels.confidence', .8); put('refine.box_threshold', .6);"
        "document.querySelector('input[value=naclip]').click()"
    )
    wait(lambda: browser.run("return document.body.dataset.whole"))
    browser.run("document.getElementById('use').click()")
    wait(lambda: browser.run("return !document.getElementById('line').hidden"))
    shoot(browser, folder, "values")
    browser.screen(390, 800, dark=True)
    browser.open(f"{server.address}try?photo={id}")
    wait(lambda: browser.run("return document.body.dataset.whole"))
    browser.run("document.getElementById('over').scrollIntoView()")
    shoot(browser, folder, "try-phone")


def reviewed(browser: Browser, server: Server, folder: Path) -> None:
    """The room Review."""
    browser.screen(1280, 860)
    browser.open(f"{server.address}review")
    room = server.room
    wait(lambda: browser.run("return data.signs") == len(room._samples))
    browser.run("document.getElementById('mirror').click()")
    wait(lambda: browser.run("return data.mirrored") == len(room._samples))
    shoot(browser, folder, "grid")
    ready = "return document.getElementById('one').dataset.ready"
    browser.press("j")
    wait(lambda: browser.run(ready))
    browser.run("document.querySelector('#tags input:not(:checked)').click()")
    shoot(browser, folder, "tags")
    browser.press("j")
    wait(lambda: browser.run(f"{ready} === shown[1].id"))
    browser.run(
        "document.getElementById('label').value = '1'; document.getElementById('label').onchange();"
        "const view = document.getElementById('view'), box = view.getBoundingClientRect();"
        "const at = (x, kind) => view.dispatchEvent(new PointerEvent(kind, {clientX: box.left + x * box.width,"
        " clientY: box.top + .5 * box.height, buttons: 1, bubbles: true}));"
        "at(.3, 'pointerdown'); for (let x = .3; x < .6; x += .02) at(x, 'pointermove'); view.focus()"
    )
    browser.press("s")
    wait(lambda: browser.run("return shown[1].corrected"))
    shoot(browser, folder, "brush")
    browser.press("a")
    wait(lambda: browser.run(f"{ready} === shown[2].id"))
    browser.press("r")
    wait(lambda: browser.run(f"{ready} === shown[3].id"))
    browser.run("document.getElementById('close').click()")
    browser.screen(390, 800, dark=True)
    browser.open(f"{server.address}review")
    wait(lambda: browser.run("return document.querySelectorAll('.cell').length") > 4)
    shoot(browser, folder, "phone")
    browser.press("j")
    wait(lambda: browser.run(ready))
    shoot(browser, folder, "phone-one")


def walk(folder: Path) -> None:
    data, run = Path("scenes"), Path("drawings")  # from here, so that no picture holds where they lie
    if not run.exists():
        write_tree(data, {"train": SCENES, "val": 8}, seed=11, style="demo", size=SIDE)
        paths = ["--images", str(data / "images" / "train"), "--tags", str(data / "train.csv")]
        with contextlib.redirect_stdout(io.StringIO()):
            status = main(["labels", str(run), "--preset", "scenes", "--quality", "standard", *paths])
        if status:
            raise SystemExit(status)
    folder.mkdir(parents=True, exist_ok=True)
    with Server(Room(run), Tryout(run)) as server, chromium() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tried(browser, server, folder, sorted(server.room._samples)[3])
        reviewed(browser, server, folder)
        server.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home, folder = given.out or Path(name), given.folder.resolve()
        home.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(home):
            walk(folder)
