"""A plain client of the page's server, and patience."""

from __future__ import annotations

import http.client
import json
import time
from urllib.parse import urlencode

from vpl.app.server import Server


class Asker:
    """A plain client: what it sends is what is said here."""

    def __init__(self, server: Server):
        self.server = server

    def __call__(self, name: str, body: bytes | None = None, *, token: str = "", headers=None, **query):
        port = self.server.server_address[1]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        path = f"/{token or self.server.token}/{name}" + (f"?{urlencode(query)}" if query else "")
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        is_json = answer.getheader("Content-Type") == "application/json"
        return answer.status, json.loads(content) if is_json else content, answer


def wait(test, seconds: float = 120):
    end = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)
    return found
