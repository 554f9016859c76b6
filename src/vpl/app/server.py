"""A server for the one person at this machine: 127.0.0.1 alone, every address under a random token.

    http://127.0.0.1:PORT/TOKEN/            the first page: the review, or Try where there is no run
    GET  review · try                       the pages
    GET  list · photograph · mask           what the review shows
    POST decide · paint · remake · mirror   what is decided, and what is looked at anew
    GET  values · looked                    what Try shows
    POST look · maps · use                  a photograph, its label maps under values, values for the run

The token is in the path, so that nothing without it is answered; the names Host and Origin are checked too, so that
neither another page nor a name that was made to mean 127.0.0.1 gets through. The standard library's server: no extra.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vpl.app.room import Room
from vpl.app.tryout import Tryout
from vpl.edges import templates
from vpl.errors import VplError
from vpl.runs.review import Changed

MOST_BYTES = 2**28
"""Longer bodies are refused unread: a byte a pixel of the largest image."""
MOST_PHOTOGRAPH = 2**26
"""Longer files of photographs are refused unread."""
MOST_WORDS = 2**16
"""Longer bodies of decisions are refused unread."""
_MOST = {"paint": MOST_BYTES, "look": MOST_PHOTOGRAPH}
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'",
}


class Server(ThreadingHTTPServer):
    """Serves its rooms until it is told to stop. `address` is what to open.

    Args:
        room: the run under review; None: there is Try alone.
        tryout: the room Try.
        port: on 127.0.0.1; 0: any that is free.
    """

    daemon_threads = True

    def __init__(self, room: Room | None, tryout: Tryout, port: int = 0):
        self.room, self.tryout, self.token = room, tryout, secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", port), _Answer)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing where the browser has gone, as it does from pictures out of sight; else the traceback."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Stop listening, and let the run go."""
        super().server_close()
        if self.room is not None:
            self.room.close()

    @property
    def host(self) -> str:
        """127.0.0.1 and the port."""
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def address(self) -> str:
        """The page's address, its token included."""
        return f"http://{self.host}/{self.token}/"


class _Answer(BaseHTTPRequestHandler):
    server: Server
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an address holds the token."""

    def do_GET(self) -> None:
        """The page, its data and pictures."""
        if (name := self._allowed()) is None:
            return
        asked, room, tryout = self._query(), self.server.room, self.server.tryout
        answers: dict[str, Callable[[], tuple[str, bytes]]] = {
            "": lambda: _page("try" if room is None else "review"),
            "try": lambda: _page("try"),
            "page.js": lambda: ("text/javascript; charset=utf-8", templates.source("app", "page.js").encode()),
            "page.css": lambda: ("text/css; charset=utf-8", templates.source("app", "page.css").encode()),
            "values": lambda: _json(tryout.values() | {"review": room is not None}),
            "looked": lambda: ("image/jpeg", tryout.photograph(asked.get("look", ""))),
        }
        if room is not None:
            answers |= {
                "review": lambda: _page("review"),
                "list": lambda: _json(room.listed()),
                "photograph": lambda: (
                    "image/jpeg",
                    room.photograph(asked.get("id", ""), _whole(asked.get("side"), 512)),
                ),
                "mask": lambda: (
                    "image/png",
                    room.mask(asked.get("id", ""), asked.get("stage", "labels"), _whole(asked.get("side"), 0)),
                ),
            }
        self._answer(answers.get(name))

    def _query(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}

    def do_POST(self) -> None:
        """Decisions, photographs and values."""
        if (name := self._allowed()) is None:
            return
        most = _MOST.get(name, MOST_WORDS)
        length = _whole(self.headers.get("Content-Length"), -1)
        if not 0 <= length <= most:
            self.close_connection = True
            return self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {most} bytes.")
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return None
        asked, room, tryout = self._query(), self.server.room, self.server.tryout
        answers: dict[str, Callable[[], tuple[str, bytes]]] = {
            "look": lambda: _json(
                tryout.look(body, asked.get("id", ""), asked.get("tags", ""), asked.get("clip", ""))
            ),
            "maps": lambda: ("application/octet-stream", tryout.maps(_object(body))),
            "use": lambda: _json(tryout.use(_object(body))),
        }  # fmt: skip
        if room is not None:
            answers |= {
                "decide": lambda: _json(room.decide(_object(body))),
                "paint": lambda: _json(room.paint(asked.get("id", ""), body, asked.get("revision", ""))),
                "mirror": lambda: _json(room.mirror()),
                "remake": lambda: _json(room.remake()),
            }
        return self._answer(answers.get(name))

    def _allowed(self) -> str | None:
        """What is asked for, below the token; None where it is refused."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host not in (self.server.host, self.server.host.replace("127.0.0.1", "localhost")):
            self._fail(HTTPStatus.FORBIDDEN, "this name is not answered.")
            return None
        if origin not in (None, f"http://{host}") or self.headers.get("Sec-Fetch-Site") == "cross-site":
            self._fail(HTTPStatus.FORBIDDEN, "another page may not ask.")
            return None
        token, _, name = urlsplit(self.path).path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._fail(HTTPStatus.FORBIDDEN, "open the address that vpl app has said.")
            return None
        return name

    def _answer(self, make: Callable[[], tuple[str, bytes]] | None) -> None:
        if make is None:
            return self._fail(HTTPStatus.NOT_FOUND, "there is nothing of this name.")
        try:
            kind, body = make()
        except Changed as error:
            return self._fail(HTTPStatus.CONFLICT, str(error))
        except (VplError, ValueError) as error:
            return self._fail(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            return self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"it can't be written ({error.strerror}).")
        except RecursionError:
            return self._fail(HTTPStatus.BAD_REQUEST, "expected a JSON object without so many brackets.")
        except Exception as error:
            self._fail(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"vpl has a fault ({type(error).__name__}); its terminal says more."
            )
            raise
        return self._send(HTTPStatus.OK, kind, body)

    def _fail(self, status: HTTPStatus, reason: str) -> None:
        self._send(status, *_json({"error": reason}))

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _page(name: str) -> tuple[str, bytes]:
    return "text/html; charset=utf-8", templates.source("app", f"{name}.html").encode()


def _json(data: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(data, ensure_ascii=False).encode()


def _object(body: bytes) -> dict[str, Any]:
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object.")
    return found


def _whole(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else default
