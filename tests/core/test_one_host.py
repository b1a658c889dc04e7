"""An answer is whole, short and in time, or an error; the request goes to one host and past every proxy of loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException

import pytest

from plyfold.core.one_host import ask, is_loopback

Serve = Callable[[socket.socket], None]


@pytest.fixture
def serving() -> Iterator[Callable[[Serve], str]]:
    """A server that does with a connection, once it has been asked, what it is given; its address."""
    opened: list[socket.socket] = []

    def start(serve: Serve) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        opened.append(server)

        def loop() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                opened.append(connection)
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection: socket.socket) -> None:
            try:
                connection.recv(65536)
                serve(connection)
                connection.close()
            except OSError:
                pass  # the client gave up, as it should

        threading.Thread(target=loop, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for each in opened:
        each.close()


def _drip(connection: socket.socket, start: bytes, byte: bytes) -> None:
    connection.sendall(start)
    while True:
        connection.sendall(byte)
        time.sleep(0.05)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("start", "byte"),
    [(b"", b"H"), (OK, b"x"), (OK + b"x: ", b"y"), (OK + b"Content-Length: 9999\r\n\r\n", b"z"), (OK + b"\r\n", b"z")],
    ids=["status", "header", "value", "declared body", "open body"],
)
def test_what_drips_ends_in_time(serving: Callable[[Serve], str], start: bytes, byte: bytes) -> None:
    url = serving(lambda connection: _drip(connection, start, byte))
    begin_s = time.monotonic()
    with pytest.raises((OSError, HTTPException)):
        ask(url, headers={}, timeout_s=1.0, max_bytes=10_000)
    assert time.monotonic() - begin_s < 8


def test_what_is_longer_than_allowed_is_read_no_further(serving: Callable[[Serve], str]) -> None:
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(OK + b"\r\n")
        while True:
            connection.sendall(b"x" * 65536)
            sent += 65536

    assert len(ask(serving(flood), headers={}, timeout_s=10, max_bytes=1000).data) == 1001
    time.sleep(0.2)
    assert sent < 20_000_000


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense\r\n\r\n", OK + b"Content-Length: 10\r\n\r\nabc",
     OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nabc",
     OK + b"x: y\r\n" * 1000 + b"\r\n", b"HTTP/1.1 200 " + b"x" * 100_000],
    ids=["nothing", "nonsense", "cut", "cut chunk", "headers", "long line"],
)  # fmt: skip
def test_what_is_no_whole_answer_is_an_error(serving: Callable[[Serve], str], answer: bytes) -> None:
    with pytest.raises((OSError, HTTPException, ValueError)):
        ask(serving(lambda connection: connection.sendall(answer)), headers={}, timeout_s=10, max_bytes=10_000)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer(serving: Callable[[Serve], str], status: int) -> None:
    asked: list[int] = []
    other = serving(lambda connection: asked.append(1))
    head = f"HTTP/1.1 {status} Moved\r\nLocation: {other}/x\r\nContent-Length: 0\r\n\r\n".encode()
    url = serving(lambda connection: connection.sendall(head))
    for data in (None, b"{}"):
        reply = ask(url, data=data, headers={"Authorization": "Bearer k"}, timeout_s=10, max_bytes=10)
        assert (reply.status, reply.location) == (status, f"{other}/x")
    assert not asked


def test_this_machine_is_reached_without_a_proxy(
    serving: Callable[[Serve], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    proxy = serving(lambda connection: asked.append(1))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    url = serving(lambda connection: connection.sendall(OK + b"Content-Length: 2\r\n\r\n{}"))
    assert ask(url, headers={}, timeout_s=10, max_bytes=10).data == b"{}"
    assert not asked


def test_which_hosts_are_this_machine() -> None:
    for host in ("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]", "0.0.0.0",
                 "::ffff:127.0.0.1"):  # fmt: skip
        assert is_loopback(host), host
    for host in ("", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "::2", "teacher.lan"):
        assert not is_loopback(host), host
