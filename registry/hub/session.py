"""How requests to the Hub are sent: with a timeout, and with an end to what one question may bring.

An answer is what a server chose to send. Its length, and the number of pages it says there are, are held to limits, so
that none fills the memory or goes on for ever; files are streamed and held to the size their record declares. What
drips is ended: the head of an answer has to be here in time, and its body has to come at a pace.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any
from weakref import WeakSet

from ...core.one_host import unpacked

MAX_ANSWER_BYTES = 32_000_000
"""Longest answer that is not a file: a thousand rows of a listing are some megabytes."""
MAX_REQUESTS = 200
"""Most requests for one question: listings come in pages."""
SLOWEST_BYTES_PER_S = 10_000
"""Slowest pace of an answer's body over any span of the longest silence; of 64 bytes a second nobody sees the end."""
STREAMED = {"plyfold.streamed": True}
"""Extensions of a request whose answer is read piece by piece by who asked."""

_sent: int | None = None
"""Requests sent for the question that is being asked; None where none is, as in downloads of other libraries."""


class EndlessAnswerError(ValueError):
    """An answer, or a listing, beyond the limits."""


def use_session(silence_s: float) -> None:
    """Have huggingface_hub send its requests so.

    Args:
        silence_s: Longest silence of a connection; twice of it the longest until the head of an answer is here; and
            the span over which a body's pace is taken.
    """
    import httpx2
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    limits = httpx2.Timeout(silence_s, connect=min(10.0, silence_s)).as_dict()

    def limit(request: Any) -> None:
        global _sent
        if _sent is not None:
            _sent += 1
            if _sent > MAX_REQUESTS:
                raise EndlessAnswerError(f"more than {MAX_REQUESTS:,} requests for one question")
        # Listings ask for no timeout at all, which would overrule one set on the client.
        asked = {name: value for name, value in request.extensions.get("timeout", {}).items() if value is not None}
        request.extensions["timeout"] = {**limits, **asked}
        request.extensions.setdefault("trace", _HeadWatch(2 * silence_s))
        request.headers["Accept-Encoding"] = "identity"  # a packed answer would blur the limits

    def bound(response: Any) -> None:
        response.stream = _paced(response.stream, silence_s)
        streamed = STREAMED.items() <= response.request.extensions.items()
        if _sent is None or (streamed and response.is_success):
            return
        raw = bytearray()
        for chunk in [response.content] if response.is_stream_consumed else response.iter_raw():
            raw += chunk
            if len(raw) > MAX_ANSWER_BYTES:
                response.close()
                break
        try:
            data = unpacked(bytes(raw), response.headers.get("content-encoding", ""), MAX_ANSWER_BYTES)
        except ValueError as error:
            raise EndlessAnswerError(f"an answer of {error}") from error
        response._content = data  # what reading it all would have set

    def client() -> Any:
        made = default_client_factory()  # its event hook is what keeps HF_HUB_OFFLINE
        hooks = made.event_hooks
        made.event_hooks = {"request": [*hooks["request"], limit], "response": [*hooks["response"], bound]}
        return made

    set_client_factory(client)


class _HeadWatch:
    """Ends every connection of the session where the head of an answer is not here in time.

    A connection's own timeout begins anew with each byte. httpx calls this before and after each of its steps.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timer: Timer | None = None

    def __call__(self, step: str, info: dict[str, Any]) -> None:
        if step.endswith((".connect_tcp.complete", ".start_tls.complete")):
            _connections.add(info["return_value"].get_extra_info("socket"))
        elif step.endswith(".receive_response_headers.started"):
            self._timer = Timer(self._limit_s, _end_connections)
            self._timer.daemon = True
            self._timer.start()
        elif ".receive_response_headers." in step and self._timer:
            self._timer.cancel()


_connections: WeakSet[socket.socket] = WeakSet()


def _end_connections() -> None:
    for each in list(_connections):
        with suppress(OSError):  # closed already
            each.shutdown(socket.SHUT_RDWR)


def _paced(stream: Any, span_s: float) -> Any:
    """The same body, which raises once a span of it has brought too little."""
    import httpx2

    class Paced(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            start_s, num_bytes = time.monotonic(), 0
            for chunk in stream:
                yield chunk
                num_bytes += len(chunk)
                if (took_s := time.monotonic() - start_s) < span_s:
                    continue
                if num_bytes < SLOWEST_BYTES_PER_S * span_s:
                    raise httpx2.ReadTimeout(
                        f"{num_bytes / took_s:,.0f} bytes a second over {took_s:.0f} s, slower than "
                        f"{SLOWEST_BYTES_PER_S:,}; PLYFOLD_HUB_TIMEOUT sets the seconds it is taken over"
                    )
                start_s, num_bytes = time.monotonic(), 0

        def close(self) -> None:
            stream.close()

    return Paced()


@contextmanager
def question() -> Iterator[None]:
    """Hold what is asked within to the limits; the library has one session, which is not ours alone."""
    global _sent
    _sent = 0
    try:
        yield
    finally:
        _sent = None
