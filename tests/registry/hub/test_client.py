"""What exceptions of the Hub's library become, and the limits every request carries."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

httpx2 = pytest.importorskip("httpx2")

from huggingface_hub import errors as hub  # noqa: E402

from plyfold.adapters.hub import snapshot  # noqa: E402
from plyfold.core.errors import (  # noqa: E402
    AuthError,
    ConfigError,
    ConflictError,
    FailedError,
    NotFoundError,
    OfflineError,
    PlyfoldError,
)
from plyfold.registry.hub.client import TRIES, HubClient  # noqa: E402
from plyfold.registry.hub.errors import HeadMovedError, HubBusyError, translate  # noqa: E402
from plyfold.registry.hub.places import checked_repo, stage_repos  # noqa: E402
from plyfold.registry.hub.session import MAX_REQUESTS  # noqa: E402

TOKEN = "hf_aVerySecretToken"


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def answered(status: int, kind: type[hub.HfHubHTTPError] = hub.HfHubHTTPError) -> hub.HfHubHTTPError:
    response = httpx2.Response(status, request=httpx2.Request("GET", "http://hub/api"))
    return kind(f"refused, {TOKEN}", response=response, server_message=f"you sent {TOKEN}\nmore")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (answered(401), AuthError),
        (answered(403), AuthError),
        (answered(401, hub.RepositoryNotFoundError), AuthError),
        (answered(404, hub.RepositoryNotFoundError), NotFoundError),
        (answered(404, hub.RevisionNotFoundError), NotFoundError),
        (answered(404, hub.RemoteEntryNotFoundError), NotFoundError),
        (answered(403, hub.GatedRepoError), AuthError),
        (answered(409), ConflictError),
        (answered(412), HeadMovedError),
        (answered(408), HubBusyError),
        (answered(429), HubBusyError),
        (answered(500), HubBusyError),
        (answered(503), HubBusyError),
        (answered(400), FailedError),
        (httpx2.ConnectError("refused"), HubBusyError),
        (httpx2.RemoteProtocolError("closed"), HubBusyError),
        (httpx2.ReadTimeout("slow"), HubBusyError),
        (ConnectionError("Network error: ..."), HubBusyError),
        (hub.OfflineModeIsEnabled("off"), OfflineError),
        (hub.LocalTokenNotFoundError("none"), AuthError),
        (hub.HFValidationError("bad name"), ConfigError),
        (ValueError(f"LFS batch API returned errors {TOKEN}"), FailedError),
    ],
)
def test_an_exception_becomes_the_error_of_its_exit_code(error: Exception, told: type[PlyfoldError]) -> None:
    got = translate(error, "acme/toy")
    assert type(got) is told
    assert got.where == "acme/toy"
    assert TOKEN not in str(got)


@pytest.mark.parametrize(
    "endpoint",
    ["http://user:canary@127.0.0.1:1", "https://canary@hub.example", "https://hub.example/?token=canary", "http://[canary",
     "ht tp://canary", "canary", "file:///canary", "http://h:canary", "https://hub.example/\x1bcanary"],
)  # fmt: skip
def test_what_is_no_address_of_a_hub_is_refused_without_showing_it(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)  # read when it is imported
    for ask in (HubClient, lambda: snapshot("acme/x", "0" * 40, patterns=["config.json"], check=lambda folder: None)):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize("token", ["hf_é-canary", "hf_ canary", "hf_\x01canary"])
def test_a_token_that_no_header_carries_is_refused_without_showing_it(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    for ask in (HubClient, lambda: snapshot("acme/x", "0" * 40, patterns=["config.json"], check=lambda folder: None)):
        with pytest.raises(AuthError) as caught:
            ask()
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["", "https://huggingface.co/", "http://[::1]:8080", "https://mirror.example/api/hf"]
)
def test_mirrors_are_taken(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert HubClient().endpoint.startswith("http")


def test_what_an_upload_wraps_is_unwrapped_and_what_is_ours_is_left() -> None:
    wrapped = RuntimeError("Error while uploading")
    wrapped.__cause__ = answered(503)
    assert type(translate(wrapped, "acme/toy")) is HubBusyError
    assert translate(ZeroDivisionError("a bug"), "acme/toy") is None
    assert translate(OSError(28, "No space left on device"), "acme/toy") is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"<html>",
        b"[" * 100_000,
        b"\xff",
        b'{"branches": [], "tags": 7}',
        b'{"branches": [{"name": "main", "ref": "x", "targetCommit": "../../evil"}], "tags": [], "converts": []}',
    ],
)
def test_an_answer_that_makes_no_sense_is_asked_for_again_and_then_said(
    monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    client, seen = answering(monkeypatch, lambda request: httpx2.Response(200, content=body))
    with pytest.raises(HubBusyError, match="makes no sense") as error:
        client.refs("acme/toy")
    assert len(seen) == TRIES
    assert "acme/toy" in error.value.where


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_answer_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch, status: int, tmp_path: Path) -> None:
    def zeros() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield bytes(1 << 20)

    taken: list[int] = []
    client, _ = answering(monkeypatch, lambda request: httpx2.Response(status, content=zeros()))
    with pytest.raises(FailedError, match="more than 32,000,000 bytes"):
        client.refs("acme/toy")
    assert len(taken) <= 33
    taken.clear()
    with nullcontext() if status == 200 else pytest.raises(FailedError, match="32,000,000"):
        client.fetch("acme/toy", "0" * 40, "file", tmp_path / "file", max_bytes=10)
        assert (tmp_path / "file").stat().st_size == 11
    assert len(taken) <= 33


def test_a_listing_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def circle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=[], headers={"Link": f'<{request.url}>; rel="next"'})

    client, seen = answering(monkeypatch, circle)
    with pytest.raises(FailedError, match="more than 200 requests"):
        client.repos("acme", "toy")
    assert len(seen) <= MAX_REQUESTS


def answering(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[httpx2.Request], httpx2.Response]
) -> tuple[HubClient, list[httpx2.Request]]:
    """A client whose every request is answered so, and the requests it has made."""
    from huggingface_hub import close_session

    seen: list[httpx2.Request] = []

    def handle(self: object, request: httpx2.Request) -> httpx2.Response:
        if "/api/models" in str(request.url):  # not the library's own question about who runs it
            seen.append(request)
        return answer(request)

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", handle)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    close_session()
    return HubClient(timeout_s=1, first_wait_s=0), seen


def test_no_request_goes_without_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session, get_session

    seen = []

    def handle(self: object, request: httpx2.Request) -> httpx2.Response:
        seen.append(request.extensions["timeout"])
        return httpx2.Response(200)

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", handle)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    HubClient(timeout_s=7)
    get_session().get("http://hub/api")
    get_session().get("http://hub/api", timeout=None)  # as the library lists
    get_session().get("http://hub/api", timeout=3)
    close_session()
    assert [each["read"] for each in seen] == [7, 7, 3]
    monkeypatch.setenv("PLYFOLD_HUB_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="seconds"):
        HubClient()


@pytest.mark.parametrize(
    "repo", ["acme", "acme/", "/x", "acme/a--b", "acme/a..b", "-a/b", "a/b-", f"a/{'b' * 96}", "a b/c"]
)
def test_names_the_hub_refuses_are_refused_first(repo: str) -> None:
    with pytest.raises(ConfigError, match="not the name"):
        checked_repo(repo)


def test_stages_are_read_off_the_names_of_repositories() -> None:
    repos = [
        "acme/toy-s02-brevity",
        "acme/toy-s01-a",
        "acme/toy-s01-b",
        "acme/toy-two-s01-a",
        "acme/toy",
        "else/toy-s01-a",
    ]
    assert stage_repos(repos, "acme", "toy") == {
        1: ["acme/toy-s01-a", "acme/toy-s01-b"],
        2: ["acme/toy-s02-brevity"],
    }


class Socketed:
    """A Hub of one socket, which sends what it is given and then a byte at a time."""

    def __init__(self, start: bytes, byte: bytes = b"", pause_s: float = 0.02) -> None:
        self.start, self.byte, self.pause_s = start, byte, pause_s
        self.asked: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self.asked.append(connection.recv(65536))
            connection.sendall(self.start)
            while self.byte:
                connection.sendall(self.byte)
                time.sleep(self.pause_s)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def hub_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Socketed], HubClient]]:
    """A client of such a Hub, which is patient for half a second and asks once."""
    from huggingface_hub import close_session

    opened: list[Socketed] = []

    def client(hub: Socketed) -> HubClient:
        opened.append(hub)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("plyfold.registry.hub.client.TRIES", 1)
        close_session()
        return HubClient(timeout_s=0.5, first_wait_s=0)

    yield client
    close_session()
    for each in opened:
        each.close()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "byte"),
    [(b"", b"H"), (OK, b"x"), (OK + b"x: ", b"y"), (OK + b"Content-Length: 99999\r\n\r\n", b"z"), (OK + b"\r\n", b"z")],
    ids=["status", "header", "value", "declared body", "open body"],
)
def test_a_hub_that_drips_is_given_up(hub_at: Any, tmp_path: Path, start: bytes, byte: bytes) -> None:
    client = hub_at(Socketed(start, byte))
    for ask in (
        lambda: client.refs("acme/toy"),
        lambda: client.fetch("acme/toy", "0" * 40, "file", tmp_path / "file", max_bytes=10**9),
    ):
        begin_s = time.monotonic()
        with pytest.raises(HubBusyError) as error:
            ask()
        assert time.monotonic() - begin_s < 8
        assert error.value.exit_code == 6
    if start.endswith(b"\r\n\r\n"):
        assert "bytes a second" in error.value.found


@pytest.mark.slow
def test_a_slow_hub_that_keeps_a_pace_is_heard_to_the_end(hub_at: Any, tmp_path: Path) -> None:
    body = OK + b"Content-Length: 30000\r\n\r\n"
    client = hub_at(Socketed(body, b"x" * 1000, pause_s=0.04))
    client.fetch("acme/toy", "0" * 40, "file", tmp_path / "file", max_bytes=10**9)
    assert (tmp_path / "file").stat().st_size == 30000


def _packed(data: bytes) -> bytes:
    return OK + f"Content-Encoding: gzip\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def test_what_is_packed_is_bounded_unpacked(hub_at: Any, tmp_path: Path) -> None:
    client = hub_at(Socketed(_packed(gzip.compress(b" " * 200_000_000, 1))))
    with pytest.raises(FailedError, match="more than 32,000,000 bytes"):
        client.refs("acme/toy")
    with pytest.raises(HubBusyError, match="packed as gzip"):
        client.fetch("acme/toy", "0" * 40, "file", tmp_path / "file", max_bytes=10)
    refs = {"branches": [{"name": "main", "ref": "x", "targetCommit": "a" * 40}], "tags": [], "converts": []}
    assert hub_at(Socketed(_packed(gzip.compress(json.dumps(refs).encode())))).refs("acme/toy").branches["main"]


def test_the_token_goes_to_no_other_host(hub_at: Any, tmp_path: Path) -> None:
    other = Socketed(OK + b"Content-Length: 1\r\n\r\nx")
    moved = f"HTTP/1.1 302 Found\r\nLocation: {other.url}/file\r\nContent-Length: 0\r\n\r\n".encode()
    hub = Socketed(moved)
    client = hub_at(hub)
    client.fetch("acme/toy", "0" * 40, "file", tmp_path / "file", max_bytes=10)
    assert TOKEN.encode() in hub.asked[0]
    assert len(other.asked) == 1
    assert TOKEN.encode() not in other.asked[0]
    other.close()


def test_a_file_is_cut_at_what_was_declared(hub_at: Any, tmp_path: Path) -> None:
    client = hub_at(Socketed(OK + b"\r\n", b"x" * 65536, pause_s=0))
    client.fetch("acme/toy", "0" * 40, "file", tmp_path / "file", max_bytes=1000)
    assert (tmp_path / "file").stat().st_size == 1001
