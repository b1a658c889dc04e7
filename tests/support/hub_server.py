"""A Hub for tests: real HTTP on a local port over `HubSite`, with a log of requests and faults where a test asks."""

from __future__ import annotations

import re
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from . import hub_collections  # noqa: F401  (adds its routes)
from .hub_routes import HubSite, Reply, Request, as_json

STATUS_FAULTS = {
    "500": "Internal Error - We're working hard to fix this as soon as possible!",
    "503": "Service Unavailable",
    "429": "We had to rate limit you",
    "401": "Invalid credentials in Authorization header",
    "403": "Forbidden: you are not allowed to do this",
    "412": "The branch was updated since you opened this page. Please refresh and try again.",
}
KINDS = (*STATUS_FAULTS, "500_after", "503_after", "drop_before", "drop_after", "hang", "truncate", "flip")


@dataclass(kw_only=True)
class Fault:
    """What happens to the next `times` requests that match, after `skip` that pass; `hits` counts them."""

    match: re.Pattern[str]
    kind: str
    times: int | None
    skip: int
    hits: int = 0


class HubServer(HubSite):
    """Serves a folder as a Hub until `close`; another server on the same folder continues where this one stopped.

    Args:
        root: Folder of the state.
        port: 0 takes a free one.

    Attributes:
        log: Every request so far.
        closing: Set when the server closes.
    """

    def __init__(self, root: Path, port: int = 0) -> None:
        super().__init__(root)
        self.log: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = _Server(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    # ---- for tests

    def fault(self, match: str, kind: str | int, times: int | None = 1, *, skip: int = 0) -> Fault:
        """Breaks requests.

        Args:
            match: Regular expression searched in `METHOD /path?query`; a large file's contents come from
                `/_lfs/<sha256>?path=<path in the repository>`.
            kind: 500, 503, 429, 401, 403, 412: answered so, nothing is done. 500_after, 503_after: done, then answered
                so. drop_before, drop_after: the connection closes before or after it is done, without an answer. hang:
                no answer until the server closes. truncate: half of the answer's body. flip: one bit of what a PUT
                brings or of what any other request gets.
            times: How many matching requests; None is all.
            skip: How many matching requests pass first.

        Raises:
            ValueError: `kind` is none of these.
        """
        if str(kind) not in KINDS:
            raise ValueError(f"unknown fault {kind}; known are {', '.join(KINDS)}")
        fault = Fault(match=re.compile(match), kind=str(kind), times=times, skip=skip)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Forgets all faults."""
        with self._lock:
            self._faults.clear()

    def seen(self, match: str = "") -> list[Request]:
        """The requests so far in whose `METHOD /path?query` the regular expression is found."""
        with self._lock:
            return [request for request in self.log if re.search(match, str(request))]

    # ---- one request

    def receive(self, request: Request) -> str | None:
        """Logs a request and returns the fault that it meets."""
        with self._lock:
            self.log.append(request)
            for fault in self._faults:
                if fault.match.search(str(request)) and (fault.times is None or fault.hits < fault.times):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.hits += 1
                    request.fault = fault.kind
                    return fault.kind
        return None


# ---- HTTP


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that went away is part of the tests
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, format: str, *args: Any) -> None:  # the log is HubServer.log
        return

    def _serve(self) -> None:
        body = self._read_body()
        if body is None:
            self.close_connection = True
            return
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(method=self.command, target=self.path, headers=headers, body=body)
        fault = self.hub.receive(request)
        if fault == "hang":
            self.hub.closing.wait()
        if fault in ("hang", "drop_before"):
            self.close_connection = True
            return
        if fault == "flip" and request.method == "PUT":
            request.body = flip_bit(request.body)
        if fault in STATUS_FAULTS:
            message = STATUS_FAULTS[fault]
            reply = as_json({"error": message}, int(fault), **{"X-Error-Message": message})
        else:
            reply = self.hub.answer(request)
        if fault == "drop_after":
            self.close_connection = True
            return
        if fault and fault.endswith("_after"):
            reply = as_json({"error": "Internal Error"}, int(fault.partition("_")[0]))
        if fault == "flip" and request.method != "PUT":
            reply = reply._replace(body=flip_bit(reply.body))
        request.status = reply.status
        self._send(reply, half=fault == "truncate")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _read_body(self) -> bytes | None:
        """The whole body, or None where the client went away in the middle of it: half a request does nothing."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            return body if len(body) == length else None
        chunks = []
        while line := self.rfile.readline():
            size = int(line.split(b";")[0], 16)
            chunk = self.rfile.read(size + 2)
            if size == 0:
                return b"".join(chunks)
            chunks.append(chunk[:-2])
        return None

    def _send(self, reply: Reply, *, half: bool) -> None:
        self.send_response(reply.status)
        for key, value in reply.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if half else reply.body)
        if half:
            self.close_connection = True


def flip_bit(content: bytes) -> bytes:
    """`content` with the lowest bit of its middle byte flipped."""
    if not content:
        return content
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    return bytes(flipped)
