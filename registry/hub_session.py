"""How requests to the Hub are sent: with a timeout, and with an end to what one question may bring.

An answer is what a server chose to send. Its length, and the number of pages it says there are, are held to limits, so
that none fills the memory or goes on for ever; files are streamed and held to the size their record declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MAX_ANSWER_BYTES = 32_000_000
"""Longest answer that is not a file: a thousand rows of a listing are some megabytes."""
MAX_REQUESTS = 200
"""Most requests for one question: listings come in pages."""
STREAMED = {"plyfold.streamed": True}
"""Extensions of a request whose answer is read piece by piece by who asked."""

_sent: int | None = None
"""Requests sent for the question that is being asked; None where none is, as in downloads of other libraries."""


class EndlessAnswerError(ValueError):
    """An answer, or a listing, beyond the limits."""


def use_session(silence_s: float) -> None:
    """Have huggingface_hub send its requests so; `silence_s` is the longest silence of a connection."""
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

    def bound(response: Any) -> None:
        streamed = STREAMED.items() <= response.request.extensions.items()
        if _sent is None or (streamed and response.is_success):
            return
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                response.close()
                raise EndlessAnswerError(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")
        response._content = bytes(data)  # what reading it all would have set

    def client() -> Any:
        made = default_client_factory()  # its event hook is what keeps HF_HUB_OFFLINE
        hooks = made.event_hooks
        made.event_hooks = {"request": [*hooks["request"], limit], "response": [*hooks["response"], bound]}
        return made

    set_client_factory(client)


@contextmanager
def question() -> Iterator[None]:
    """Hold what is asked within to the limits; the library has one session, which is not ours alone."""
    global _sent
    _sent = 0
    try:
        yield
    finally:
        _sent = None
