"""Requests that stay with one host, and answers that are held to a length and to a time, however slowly they drip.

No redirect is followed, and this machine is reached without a proxy.
"""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .disk.digest import CHUNK_BYTES

UNANSWERED = (OSError, http.client.HTTPException)
"""What `ask` raises where no whole answer came."""


class Reply(NamedTuple):
    """An answer."""

    status: int
    data: bytes
    """Never more than was allowed and one byte."""
    location: str
    """Where a redirect would lead, empty where it is none."""


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own: `localhost`, 127.0.0.0/8, `::1`; also 0.0.0.0, to ask."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        address = ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or address.is_unspecified or (mapped is not None and mapped.is_loopback)


def ask(url: str, *, data: bytes | None = None, headers: Mapping[str, str], timeout_s: float, max_bytes: int) -> Reply:
    """One answer, whatever its status.

    Args:
        url: Of http or https.
        data: Posted; null asks with GET.
        headers: Of the request.
        timeout_s: Longest until the whole answer is here.
        max_bytes: Reading stops at one byte more.

    Raises:
        OSError, HTTPException: Nothing answers, what answers speaks no HTTP, or not to its end in time.
    """
    ended: SimpleQueue[Reply | BaseException] = SimpleQueue()
    given_up = threading.Event()

    def work() -> None:
        try:
            ended.put(_ask(url, data, headers, timeout_s, max_bytes, given_up))
        except BaseException as error:
            ended.put(error)

    # A thread, since a socket's timeout begins anew with every byte; a daemon, since nothing waits for it.
    threading.Thread(target=work, daemon=True).start()
    try:
        found = ended.get(timeout=timeout_s)
    except Empty:
        raise TimeoutError(f"no whole answer within {timeout_s:g} s") from None
    finally:
        given_up.set()
    if isinstance(found, BaseException):
        raise found
    return found


def _ask(
    url: str,
    data: bytes | None,
    headers: Mapping[str, str],
    timeout_s: float,
    max_bytes: int,
    given_up: threading.Event,
) -> Reply:
    proxies: dict[str, str] | None = {} if is_loopback(urlsplit(url).hostname or "") else None  # None: as set there
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _Stay())
    request = urllib.request.Request(url, data=data, headers=dict(headers))
    try:
        answered: Any = opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        answered = error
    with answered as response:
        raw = bytearray()
        while not given_up.is_set() and len(raw) <= max_bytes:
            chunk = response.read1(min(CHUNK_BYTES, max_bytes + 1 - len(raw)))
            if not chunk:
                break
            raw += chunk
        _require_whole(response, raw, max_bytes)
        location = response.headers.get("Location", "") if 300 <= response.status < 400 else ""
        return Reply(response.status, bytes(raw), location)


def _require_whole(response: Any, raw: bytearray, max_bytes: int) -> None:
    declared = response.headers.get("Content-Length", "")
    if declared.isdecimal() and len(raw) < int(declared) and len(raw) <= max_bytes:  # read1 ends as if all were here
        raise http.client.IncompleteRead(bytes(raw[:0]), int(declared) - len(raw))


def unpacked(raw: bytes, packing: str, limit: int) -> bytes:
    """An answer's text, never more of it than `limit` bytes, whatever it is packed into.

    Args:
        raw: As it came.
        packing: Its Content-Encoding; only gzip and deflate are read, which some proxies choose unasked.
        limit: In bytes, of the text and of what came.

    Raises:
        ValueError: It is longer, damaged, or packed in another way.
    """
    data, kind = raw, packing.strip().lower()
    if kind in ("gzip", "x-gzip", "deflate"):
        unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)
        try:
            data = unpacker.decompress(raw[: limit + 1], limit + 1)
        except zlib.error as error:
            raise ValueError(f"not {kind}: {error}") from error
        if not unpacker.eof and len(data) <= limit:
            raise ValueError(f"cut {kind}")
    elif kind not in ("", "identity"):
        raise ValueError(f"packed as {packing[:40]}")
    if max(len(raw), len(data)) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    return data


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: the answer itself is what the caller gets."""
