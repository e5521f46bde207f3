"""A node's HTTP side: ``/live``, ``/ready``, ``/metrics``. On loopback unless told otherwise.

``/live`` says whether the process continues (200, else 503: restart it), ``/ready`` whether it answers for all that it hosts
(200, else 503 with what it waits for), ``/metrics`` is Prometheus' text. When ``ONEFOLD_HTTP_TOKEN`` is set, ``/metrics`` asks
for it as a bearer token; the other two tell nothing that is worth hiding.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from onefold.arguments import shown
from onefold.errors import InvalidArgument, SpaceError

TOKEN_VARIABLE: Final = "ONEFOLD_HTTP_TOKEN"
LOOPBACK: Final = "127.0.0.1"
_REQUEST_S: Final = 10.0
_CONNECTIONS_MAX: Final = 32
_CLOSE_LOOK_S: Final = 0.5

Check = Callable[[], dict[str, Any]]
"""What to answer; its key ``ok`` decides the status."""


def parse_listen(text: str) -> tuple[str, int]:
    """``HOST:PORT``, ``[::1]:PORT``, ``:PORT`` or ``PORT``; without a host loopback. Port 0: a free one.

    Raises InvalidArgument.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or LOOPBACK
    if not port.isascii() or not port.isdigit() or len(port) > 5 or not int(port) < 65536:
        raise InvalidArgument(f"--http takes HOST:PORT or PORT; got {shown(text)}")
    return host, int(port)


class HttpSide:
    """Serves until it is closed."""

    def __init__(
        self,
        listen: tuple[str, int],
        *,
        live: Check,
        ready: Check,
        registry: CollectorRegistry,
        token: str | None = None,
    ) -> None:
        """``token``: for ``/metrics`` (default: what the environment says). Raises SpaceError when the address is taken."""
        self._checks = {"/live": live, "/ready": ready}
        self._registry = registry
        self._token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        host, port = listen
        try:
            self._server = make_server(host, port, self._answer, server_class=_Server, handler_class=_Quiet)
        except OSError as error:
            raise SpaceError(
                f"nothing can listen on {host}:{port}: {error.strerror or error}. Choose another with --http"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_CLOSE_LOOK_S,), name="onefold-http", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """``HOST:PORT``, with the port that was taken."""
        host, port = self._server.server_address[:2]
        shown = str(host)
        return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = str(environ.get("PATH_INFO", "")).rstrip("/") or "/"
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _reply(start, "405 Method Not Allowed", b"GET only\n")
        check = self._checks.get(path)
        if check is not None:
            found = check()
            status = "200 OK" if found.get("ok") else "503 Service Unavailable"
            return _reply(start, status, json.dumps(found).encode() + b"\n", "application/json")
        if path != "/metrics":
            return _reply(start, "404 Not Found", b"/live, /ready, /metrics\n")
        if self._token and not self._allowed(str(environ.get("HTTP_AUTHORIZATION", ""))):
            return _reply(
                start, "401 Unauthorized", b"a bearer token is needed\n", extra=("WWW-Authenticate", "Bearer")
            )
        return _reply(start, "200 OK", generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def _allowed(self, header: str) -> bool:
        kind, _, given = header.partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode(), (self._token or "").encode()
        )


def _reply(
    start: StartResponse,
    status: str,
    body: bytes,
    kind: str = "text/plain",
    extra: tuple[str, str] | None = None,
) -> Iterable[bytes]:
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    start(status, [*headers, extra] if extra is not None else headers)
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    """One thread for each request, of which there are few: more wait in the listen queue."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, *args: Any, **options: Any) -> None:
        self._room = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        if ":" in args[0][0]:
            self.address_family = socket.AF_INET6
        super().__init__(*args, **options)

    def server_bind(self) -> None:
        # Without the base class's look-up of the host's name, which may ask a name server.
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._room.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or one that sends nonsense: nobody needs to know."""


class _Quiet(WSGIRequestHandler):
    timeout = _REQUEST_S

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are no events."""
