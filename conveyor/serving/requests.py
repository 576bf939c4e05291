"""One request to a page: who asks, what for, and the answer.

Law: a request gets nothing unless it names this machine as its host, comes from no other site, and knows the token.
It is GET or HEAD, and changes nothing.
"""

from __future__ import annotations

import hmac
import secrets
import selectors
from abc import ABC, abstractmethod
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from conveyor._lean.typing import TYPE_CHECKING, cast
from conveyor._system.clock import time
from conveyor.serving.address import NAMES
from conveyor.views.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from conveyor.serving.server import Server

EVENT_SECONDS = 0.5
MOST_STREAMS = 8
# How long a client may say nothing, or take nothing of what it is sent.
SILENT_SECONDS = 10.0
_RETRY_MILLISECONDS = 1000
_HTML, _JSON, _TEXT = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Connection": "close",
}


class Unanswered(Exception):
    """What was asked for is not there: the sentence says why.  With `later`, it may be there in a moment."""

    def __init__(self, sentence: str, later: bool = False) -> None:
        super().__init__(sentence)
        self.later = later


class Answers(ABC):
    """What the pipeline says; each may raise Unanswered."""

    token: str

    @abstractmethod
    def page(self, nonce: str) -> str: ...

    @abstractmethod
    def numbers(self) -> str: ...

    @abstractmethod
    def metrics(self) -> str: ...

    @abstractmethod
    def report_page(self) -> str: ...

    @abstractmethod
    def trace(self) -> Iterable[str]: ...

    @abstractmethod
    def event(self, known: dict[str, str]) -> str:
        """Return what is new beside what is known, as one line of JSON."""

    @abstractmethod
    def report(self, error: Exception) -> None:
        """Tell the user, once, of an error in here."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request, and closes the connection."""

    timeout = SILENT_SECONDS
    # Whether the client was told something, so that it cannot be told of an error.
    _is_answered = False

    @property
    def _server(self) -> Server:
        return cast("Server", self.server)

    def version_string(self) -> str:
        """Say nothing of versions to who has no token."""
        return "Conveyor"

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are nobody's business."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say what is wrong with a request, in a sentence."""
        self.send_response(code)
        self._send(_TEXT, f"{explain or message or self.responses[HTTPStatus(code)][1]}\n".encode("utf-8", "replace"))

    def parse_request(self) -> bool:
        """Read the request; answer those that are refused."""
        if not super().parse_request():
            return False
        refusal = self._refusal()
        if refusal is not None:
            self.send_error(403, explain=refusal)
        elif self.command not in ("GET", "HEAD"):
            self.send_response(405)
            self.send_header("Allow", "GET, HEAD")
            self._send(_TEXT, f"A page is only looked at: use GET, not {self.command[:20]}.\n".encode())
        else:
            return True
        return False

    def _refusal(self) -> str | None:
        """Return why a request is refused; None where it is not."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        # A page of another site may have its own name resolved to this machine, but the browser tells that name.
        if len(hosts) != 1 or not NAMES & {hosts[0].lower(), hosts[0].lower().rpartition(":")[0]}:
            return "The Host must be 127.0.0.1 or localhost: use the address that Conveyor has shown."
        if origins and origins != [f"http://{hosts[0]}"]:
            return "Pages of other sites may not ask."
        known = parse_qs(urlsplit(self.path).query).get("token", [""])[-1]
        scheme, _, bearer = self.headers.get("Authorization", "").partition(" ")
        if not known and scheme.lower() == "bearer":
            known = bearer.strip()
        if not hmac.compare_digest(
            known.encode("utf-8", "replace"), self._server.answers.token.encode("utf-8", "replace")
        ):
            return "The token is missing or wrong: use the address that Conveyor has shown."
        return None

    def do_GET(self) -> None:
        """Answer a request that is not refused."""
        answers, path = self._server.answers, urlsplit(self.path).path
        try:
            match path:
                case "/":
                    nonce = secrets.token_urlsafe(16)
                    body = answers.page(nonce)
                    self._begin(_HTML, f"script-src 'nonce-{nonce}'; ")
                    self._send("", body.encode("utf-8", "replace"))
                case "/events":
                    self._stream()
                case "/trace":
                    self._send_trace(answers.trace())
                case "/stats.json":
                    self._answer(_JSON, answers.numbers())
                case "/metrics":
                    self._answer(CONTENT_TYPE, answers.metrics())
                case "/report":
                    self._answer(_HTML, answers.report_page())
                case _:
                    raise Unanswered("There are /, /events, /stats.json, /metrics, /report and /trace.")
        except Unanswered as reason:
            self.send_error(503 if reason.later else 404, explain=str(reason))
        except OSError:
            # The client has gone, or takes nothing.
            pass
        except Exception as error:
            answers.report(error)
            if not self._is_answered:
                self.send_error(500, explain="This is an error in Conveyor, which has logged it.")

    do_HEAD = do_GET

    def _answer(self, kind: str, text: str) -> None:
        self._begin(kind)
        self._send("", text.encode("utf-8", "replace"))

    def _begin(self, kind: str, policy: str = "") -> None:
        self._is_answered = True
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", policy + _POLICY)

    def _send(self, kind: str, body: bytes) -> None:
        """Send the rest of an answer, whose beginning may have said the kind of its content already."""
        self._is_answered = True
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def end_headers(self) -> None:
        """Send what each answer has."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _send_trace(self, lines: Iterable[str]) -> None:
        self._begin(_JSON)
        self.send_header("Content-Disposition", 'attachment; filename="trace.json"')
        self.end_headers()
        if self.command != "HEAD":
            for line in lines:
                self.wfile.write(line.encode("utf-8", "replace"))

    def _stream(self) -> None:
        """Send events until the client has gone, or the page ends."""
        server, known = self._server, dict[str, str]()
        if not server.streams.acquire(blocking=False):
            raise Unanswered(f"{MOST_STREAMS} pages look on already, which is the most: close one.", later=True)
        try:
            self._begin("text/event-stream")
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(f"retry: {_RETRY_MILLISECONDS}\n\n".encode())
            is_there = True
            while is_there and not server.stopping.is_set():
                self._send_event("", known)
                is_there = self._wait()
            if is_there and server.closing:
                self._send_event("event: end\n", known)
        finally:
            server.streams.release()

    def _send_event(self, kind: str, known: dict[str, str]) -> None:
        self.wfile.write(f"{kind}data: {self._server.answers.event(known)}\n\n".encode("utf-8", "replace"))

    def _wait(self) -> bool:
        """Wait until the next event is due, or the threads are to end; return whether the client is still there."""
        until = time.monotonic() + EVENT_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            while (left := until - time.monotonic()) > 0 and not self._server.stopping.is_set():
                # A client that goes away ends its side of the connection, and so does `suspend`.
                if selector.select(left) and not self.connection.recv(4096):
                    return self._server.stopping.is_set()
        return True
