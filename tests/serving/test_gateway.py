"""What stands in front of vLLM, asked directly: which requests pass, which are refused, and what answers give away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plyfold.core.errors import ConfigError
from plyfold.serving import gateway
from plyfold.serving.gateway import MAX_BODY_BYTES, RUNS, TWIN, RolloutGateway, ServeGateway

KEY = "k-secret"
BEARER = ("Authorization", f"Bearer {KEY}")
TWIN_FOLDER = "/home/me/.plyfold/cache/twins/tiny-0123"


class Behind:
    """Stands for vLLM: remembers what reaches it."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, str, bytes]] = []
        self.status, self.body = 200, b"{}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            self.reached.append((scope["type"], "", b""))
            return
        message = await receive() if scope["method"] == "POST" else {"body": b""}
        assert not message.get("more_body")
        self.reached.append((scope["method"], scope["path"], message["body"]))
        headers = [(b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        half = len(self.body) // 2
        await send({"type": "http.response.body", "body": self.body[:half], "more_body": True})
        await send({"type": "http.response.body", "body": self.body[half:]})


class Client:
    def __init__(self, kind: type[ServeGateway] = ServeGateway) -> None:
        self.behind = Behind()
        self.gateway = kind(self.behind)
        modules = [SimpleNamespace(name="1+2", path=f"{TWIN_FOLDER}/below")]
        arguments = SimpleNamespace(host="127.0.0.1", model=TWIN_FOLDER, lora_modules=modules)
        self.app = SimpleNamespace(state=SimpleNamespace(args=arguments))
        self.read = 0

    def ask(
        self,
        method: str,
        path: str,
        *headers: tuple[str, str],
        body: bytes | Iterable[bytes] = b"",
        host: str | None = "localhost:8000",
        **scope: Any,
    ) -> tuple[int, Any]:
        """Status and JSON of an answer, with the headers kept as `self.headers`."""
        chunks = iter([body] if isinstance(body, bytes) else body)
        sent: list[Any] = []

        async def receive() -> Any:
            chunk = next(chunks, None)
            self.read += len(chunk or b"")
            return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None and body is not chunk}

        async def send(message: Any) -> None:
            sent.append(message)

        own = [("Host", host)] if host is not None else []
        asked = {"type": "http", "method": method, "path": path, "root_path": "", "app": self.app,
                 "raw_path": path.encode(), "headers": [(k.lower().encode(), v.encode("latin-1"))
                                                        for k, v in (*own, *headers)], **scope}  # fmt: skip
        asyncio.run(self.gateway(asked, receive, send))
        whole = b"".join(message.get("body", b"") for message in sent[1:])
        self.headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        assert int(self.headers["content-length"]) == len(whole)
        return sent[0]["status"], json.loads(whole)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_API_KEY", "PLYFOLD_KEY_REQUIRED", RUNS, TWIN):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    return Client()


def test_without_the_key_nothing_but_health_is_answered(keyed: Client) -> None:
    assert keyed.ask("GET", "/health", host="10.0.0.7")[0] == 200
    paths = ["/", "/v1/models", "/v1/completions", "/invocations", "/metrics", "/docs", "/version", "/health/",
             "//health", "/nowhere", "/adapters"]  # fmt: skip
    for path in paths:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
            assert keyed.ask(method, path)[0] == 401, (method, path)
    assert keyed.headers["www-authenticate"] == "Bearer"
    assert keyed.ask("HEAD", "/health")[0] == 401
    assert [path for _, path, _ in keyed.behind.reached] == ["/health"]


@pytest.mark.parametrize(
    "said",
    ["", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer  {KEY}", f"Bearer {KEY} ", f"Basic {KEY}", KEY,
     f"bearer\t{KEY}", "Bearer k-sécret"],
)  # fmt: skip
def test_a_key_is_taken_exactly(keyed: Client, said: str) -> None:
    assert keyed.ask("GET", "/v1/models", ("Authorization", said))[0] == 401
    assert keyed.ask("GET", "/v1/models", BEARER, ("Authorization", said))[0] == 401  # which of the two?
    assert not keyed.behind.reached


def test_with_the_key_the_routes_of_a_server_pass_and_no_others(keyed: Client) -> None:
    keyed.behind.body = b'{"data": []}'
    for method, path in ServeGateway.routes:
        assert keyed.ask(method, path, BEARER, host="example.org")[0] == 200, path
    assert len(keyed.behind.reached) == len(ServeGateway.routes)
    assert keyed.ask("GET", "/v1/models", ("Authorization", f"bearer {KEY}"))[0] == 200
    for path in ("/invocations", "/ping", "/adapters", "/v1/load_lora_adapter", "/v1/responses", "/docs", "/sleep"):
        assert keyed.ask("POST", path, BEARER)[0] == 404, path
    status, answer = keyed.ask("DELETE", "/v1/models", BEARER)
    assert (status, keyed.headers["allow"], answer["error"]["code"]) == (405, "GET", 405)
    assert keyed.ask("OPTIONS", "/v1/completions", BEARER)[0] == 405


@pytest.mark.parametrize(
    "path",
    ["//v1/models", "/v1//models", "/v1/models/", "/V1/models", "/v1/Models", "/v1/./models", "/x/../v1/models",
     "/v1/models;x", "/v1/models%20", "v1/models", "http://localhost/v1/models", "/v1/models\n", "/v1/modèls", "*", ""],
)  # fmt: skip
def test_a_route_has_one_spelling(path: str) -> None:
    client = Client()
    assert client.ask("GET", path)[0] == 404
    assert not client.behind.reached


def test_what_was_decoded_or_moved_is_another_spelling() -> None:
    client = Client()
    assert client.ask("GET", "/v1/models", raw_path=b"/v1/%6dodels")[0] == 404
    assert client.ask("GET", "/v1/models", raw_path=b"/%76%31/models")[0] == 404
    assert client.ask("GET", "/v1/models", root_path="/v1")[0] == 404
    assert not client.behind.reached


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.7", "[::2]:80",
                                  "evil.example@localhost", "localhost/evil.example", "localhost#evil",
                                  "localhost:80:80", "localhost\t",
                                  "localhost@evil.example", "127.0.0.1.evil.example", "", None, "[::1"])  # fmt: skip
def test_without_a_key_only_this_machine_by_its_own_names_is_answered(host: str | None) -> None:
    client = Client()
    assert client.ask("GET", "/health", host=host)[0] == 403
    assert client.ask("POST", "/v1/completions", host=host)[0] == 403
    assert client.ask("GET", "/health", ("Host", "evil.example"))[0] == 403  # which of the two?
    assert not client.behind.reached


def test_names_of_this_machine() -> None:
    client = Client()
    for host in ("localhost", "LOCALHOST:80", "a.localhost", "127.0.0.1:1", "127.8.8.8", "[::1]:8000",
                 "[::ffff:127.0.0.1]:8000", "localhost.:80"):  # fmt: skip
        assert client.ask("GET", "/health", host=host)[0] == 200, host
    client.app.state.args.host = "mybox"  # as it was told to listen on, which resolves to this machine
    assert client.ask("GET", "/health", host="mybox:8000")[0] == 200


def test_without_a_key_web_pages_are_not_answered() -> None:
    client = Client()
    for origin in (
        "https://evil.example",
        "null",
        "http://evil.example@localhost",
        "file://",
        "http://localhost.evil.example",
    ):
        assert client.ask("POST", "/v1/completions", ("Origin", origin))[0] == 403, origin
    assert client.ask("POST", "/v1/completions", ("Origin", "http://localhost:3000"))[0] == 200


def test_a_body_is_capped_by_what_it_says_and_by_what_comes(keyed: Client) -> None:
    said = ("Content-Length", str(MAX_BODY_BYTES + 1))
    assert keyed.ask("POST", "/v1/completions", said)[0] == 401  # the key is first
    assert keyed.ask("POST", "/v1/completions", BEARER, said)[0] == 413
    for length in ("-1", "", "+1", "1_0", "9" * 5000):
        assert keyed.ask("POST", "/v1/completions", BEARER, ("Content-Length", length))[0] == 413
    assert keyed.read == 0
    endless = (b"x" * (1 << 16) for _ in range(1 << 20))
    assert keyed.ask("POST", "/v1/completions", BEARER, body=endless)[0] == 413
    assert keyed.read <= MAX_BODY_BYTES + (1 << 16)
    assert not keyed.behind.reached
    whole = b"x" * MAX_BODY_BYTES
    assert (
        keyed.ask("POST", "/v1/completions", BEARER, body=(whole[i : i + 1000] for i in range(0, len(whole), 1000)))[0]
        == 200
    )
    assert keyed.behind.reached[0][2] == whole


def test_a_body_that_drips_is_given_up(keyed: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "BODY_TIMEOUT_S", 0.05)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/tokenize", "headers": [(b"authorization", BEARER[1].encode())]}
    asyncio.run(keyed.gateway(scope, receive, send))
    assert sent[0]["status"] == 408


def test_a_client_that_leaves_while_it_sends_is_forgotten(keyed: Client) -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/tokenize", "headers": [(b"authorization", BEARER[1].encode())]}
    asyncio.run(keyed.gateway(scope, receive, lambda message: pytest.fail(f"answered {message}")))
    assert not keyed.behind.reached


def test_web_sockets_are_closed_and_the_lifespan_passes(keyed: Client) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", BEARER[1].encode())]
    asyncio.run(keyed.gateway({"type": "websocket", "path": "/v1/realtime", "headers": headers}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert not keyed.behind.reached
    asyncio.run(keyed.gateway({"type": "lifespan"}, receive, send))
    assert keyed.behind.reached == [("lifespan", "", b"")]


def test_models_are_listed_without_where_they_lie() -> None:
    client = Client()
    cards = [{"id": "base", "root": TWIN_FOLDER, "parent": None}, {"id": "1+2", "root": "/home/me/v", "parent": "base"}]
    client.behind.body = json.dumps({"object": "list", "data": cards}).encode()
    assert client.ask("GET", "/v1/models")[1]["data"] == [
        {"id": "base", "root": "base", "parent": None},
        {"id": "1+2", "root": "1+2", "parent": "base"},
    ]


def test_errors_are_bounded_and_name_no_folder_of_this_machine() -> None:
    client = Client()
    client.behind.status = 500
    client.behind.body = json.dumps({"error": f"no file {TWIN_FOLDER}/below/x, {TWIN_FOLDER}"}).encode()
    assert client.ask("POST", "/v1/completions") == (500, {"error": "no file 1+2/x, base"})


def test_a_key_that_is_none_keeps_a_server_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLYFOLD_KEY_REQUIRED", "1")
    with pytest.raises(ConfigError, match="no key"):
        Client()
    monkeypatch.setenv("VLLM_API_KEY", "")
    with pytest.raises(ConfigError, match="empty"):
        Client()


class TestRollouts:
    @pytest.fixture
    def runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        runs = tmp_path / "runs"
        (runs / "tiny/2-x/rollout/v1").mkdir(parents=True)
        monkeypatch.setenv(RUNS, str(runs))
        return runs

    def load(self, client: Client, folder: object, **more: Any) -> int:
        body = json.dumps({"lora_name": "v1", "lora_path": str(folder), **more}).encode()
        return client.ask("POST", "/v1/load_lora_adapter", body=body)[0]

    def test_adapters_are_loaded_from_below_the_runs_alone(self, runs: Path, tmp_path: Path) -> None:
        client, folder = Client(RolloutGateway), runs / "tiny/2-x/rollout/v1"
        assert self.load(client, folder) == 200
        (tmp_path / "elsewhere").mkdir()
        (runs / "link").symlink_to(tmp_path / "elsewhere")
        (runs / "ring").symlink_to(runs / "ring")
        for path in ("/", "/etc", tmp_path, tmp_path / "elsewhere", runs / "link", runs / "../elsewhere", "runs", ".",
                     "org/adapter", "~/x", "", f"{runs}\0", f"{runs}-twin", "/" + "x" * 5000, "s3://b/x"):  # fmt: skip
            assert self.load(client, path) == 400, path
        assert len(client.behind.reached) == 1
        assert json.loads(client.behind.reached[0][2]) == {"lora_name": "v1", "lora_path": str(folder)}

    def test_what_is_read_is_what_was_checked(self, runs: Path) -> None:
        client, folder = Client(RolloutGateway), runs / "tiny/2-x/rollout/v1"
        twice = f'{{"lora_name": "a", "lora_path": "/etc", "lora_path": "{folder}/../v1"}}'.encode()
        assert client.ask("POST", "/v1/load_lora_adapter", body=twice)[0] == 200
        assert json.loads(client.behind.reached[0][2])["lora_path"] == str(folder)
        assert self.load(client, folder, load_inplace=True) == 400
        for body in (b"", b"[]", b"[" * 100_000, b"{}", b'{"lora_name": 1, "lora_path": "/"}', b"\xff", b"null"):
            assert client.ask("POST", "/v1/load_lora_adapter", body=body)[0] == 400
            assert client.ask("POST", "/v1/unload_lora_adapter", body=body)[0] == 400
        assert client.ask("POST", "/v1/unload_lora_adapter", body=b'{"lora_name": "v1"}')[0] == 200
        assert client.ask("POST", "/v1/unload_lora_adapter", body=b'{"lora_name": "%s"}' % (b"v" * 201))[0] == 400

    def test_without_runs_nothing_is_loaded(self, tmp_path: Path) -> None:
        assert self.load(Client(RolloutGateway), tmp_path) == 400

    def test_the_base_says_what_it_is_a_twin_of(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(TWIN, "sha256:12")
        client = Client(RolloutGateway)
        cards = [{"id": "base", "root": TWIN_FOLDER, "parent": None}, {"id": "v1", "root": "/r", "parent": "base"}]
        client.behind.body = json.dumps({"data": cards}).encode()
        found = client.ask("GET", "/v1/models")[1]["data"]
        assert [card.get("twin") for card in found] == ["sha256:12", None]
        assert TWIN_FOLDER not in json.dumps(found)

    def test_chat_and_tokens_are_not_for_rollouts(self) -> None:
        client = Client(RolloutGateway)
        for path in ("/v1/chat/completions", "/tokenize", "/adapters", "/invocations"):
            assert client.ask("POST", path)[0] == 404
