"""A headless Chromium for tests of pages, driven by WebDriver over plain HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest


class Browser:
    """A headless Chromium, driven by WebDriver over plain HTTP."""

    def __init__(self, driver: str, chromium: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._base = f"http://127.0.0.1:{port}"
        options = {
            "binary": chromium,
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--window-size=1280,900",
            ],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            self._await()
            session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._process.kill()
            raise
        self._base += f"/session/{session['sessionId']}"

    def _await(self) -> None:
        for _ in range(150):
            with contextlib.suppress(OSError):
                self._call("GET", "/status")
                return
            time.sleep(0.1)
        raise RuntimeError("chromedriver doesn't answer")

    def _call(self, method: str, path: str, body: dict | None = None):
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + path, content, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:500]) from None

    def open(self, path: Path | str) -> None:
        address = path if isinstance(path, str) else path.resolve().as_uri()
        self._call("POST", "/url", {"url": address})

    def run(self, script: str, *arguments):
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters):
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def press(self, key: str, times: int = 1) -> None:
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}] * times
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    def click(self, query: str) -> None:
        found = self._call("POST", "/element", {"using": "css selector", "value": query})
        (element,) = found.values()
        self._call("POST", f"/element/{element}/click", {})

    def picture(self) -> bytes:
        """What the window shows, a PNG."""
        return base64.b64decode(self._call("GET", "/screenshot"))

    def screen(self, width: int, height: int = 800, dark: bool = False) -> None:
        """The size of the window, and what its user prefers."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        self.devtools(
            "Emulation.setEmulatedMedia", features=[{"name": name, "value": one} for name, one in features.items()]
        )

    def choose(self, query: str, file: Path) -> None:
        """Choose a file in a file field."""
        (element,) = self._call("POST", "/element", {"using": "css selector", "value": query}).values()
        self._call("POST", f"/element/{element}/value", {"text": str(file.resolve())})

    def console(self) -> list[str]:
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._call("DELETE", "")
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def chromium():
    """A browser; the test is skipped where the machine has none."""
    driver, program = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not program:
        pytest.skip("no Chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    made = Browser(driver, program)
    try:
        yield made
    finally:
        made.close()
