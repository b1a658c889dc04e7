"""What stands in front of vLLM: an ASGI middleware that lets a few routes through, and nothing else.

vLLM guards only some of its paths with its key and answers on others (`/invocations` generates, `/adapters` loads), so
here the order is: the key, before anything is looked at; the route, by its exact spelling; the body, up to a cap, read
whole before vLLM sees any of it. Answers leave without paths of this machine.

vLLM adds what `--middleware` names outermost and constructs it from the application alone, so what else a gateway has
to know stands in the environment and in vLLM's own arguments.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from .access import KEY_REQUIRED, KEY_VARIABLE, api_key, names_loopback

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

RUNS = "PLYFOLD_ROLLOUT_RUNS"
"""Variable with the folders that rollout adapters lie below, separated as in PATH."""
TWIN = "PLYFOLD_ROLLOUT_TWIN"
"""Variable with the digest of what the served base is a twin of, which a trainer compares with its own."""
MAX_BODY_BYTES = 4 << 20
"""Largest request: a few hundred prompts of the longest context."""
BODY_TIMEOUT_S = 60.0
"""Longest time a client may take to send one."""
MAX_ERROR_BYTES = 1 << 16
"""As much of an error is passed on."""
MAX_NAME = 200
"""Longest name of an adapter, in characters."""

HEALTH = ("GET", "/health")
MODELS = ("GET", "/v1/models")
LOAD, UNLOAD = ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter")
COMMON = frozenset({HEALTH, MODELS, ("GET", "/version"), ("GET", "/metrics"), ("POST", "/v1/completions")})
SERVED = COMMON | {("POST", "/v1/chat/completions"), ("POST", "/tokenize"), ("POST", "/detokenize")}
ROLLOUTS = COMMON | {LOAD, UNLOAD}


class _RefusedError(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]


class ServeGateway:
    """The middleware of `plyfold serve`; its subclass is that of `plyfold rollouts`."""

    routes = SERVED

    def __init__(self, app: App) -> None:
        """Stand in front of an application.

        Raises:
            ConfigError: VLLM_API_KEY is no key, or is missing where one is required.
        """
        key = api_key()
        if key is None and os.environ.get(KEY_REQUIRED) == "1":
            raise ConfigError("others reach this server, and it asks for no key", next_step=f"set {KEY_VARIABLE}")
        self._app = app
        self._key = None if key is None else hashlib.sha256(key.encode()).digest()
        self._paths = {path for _, path in self.routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await receive()  # the wish to connect; closed before it is accepted, which uvicorn answers with 403
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        try:
            route = self._admit(scope)
            scope, receive = await self._take(route, scope, receive)
        except _RefusedError as refused:
            await _answer(send, refused.status, {"error": _error(refused)}, refused.headers)
            return
        except _DisconnectedError:
            return
        answer = _Answer(send, self._hide if route == MODELS else None, _local_paths(scope))
        await self._app(scope, receive, answer.send)

    def _admit(self, scope: Scope) -> tuple[str, str]:
        """The route of a request that may pass, judged by its first lines alone."""
        method, path = str(scope["method"]), str(scope["path"])
        route, headers = (method, path), list(scope["headers"])
        if self._key is None:
            self._check_local(scope, headers)
        elif route != HEALTH and not self._knows_key(headers):
            raise _RefusedError(401, "this server asks for a key: Authorization: Bearer KEY", www_authenticate="Bearer")
        raw = scope.get("raw_path")
        if path not in self._paths or scope.get("root_path") or (raw is not None and raw != path.encode()):
            known = ", ".join(sorted(self._paths))
            raise _RefusedError(404, f"no such route; there are {known}")
        if route not in self.routes:
            raise _RefusedError(405, "not with this method", allow=next(m for m, p in self.routes if p == path))
        lengths = _all(headers, b"content-length")
        if any(not re.fullmatch(rb"\d{1,9}", length) or int(length) > MAX_BODY_BYTES for length in lengths):
            raise _RefusedError(413, f"a request has at most {MAX_BODY_BYTES} bytes")
        return route

    def _knows_key(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        said = _all(headers, b"authorization")
        scheme, _, key = (said[0] if len(said) == 1 else b"").partition(b" ")
        matches = hmac.compare_digest(hashlib.sha256(key).digest(), self._key or b"")
        return matches and scheme.lower() == b"bearer"

    def _check_local(self, scope: Scope, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Without a key, only what was addressed to this machine: a web page may point its own name at 127.0.0.1."""
        own = str(getattr(_arguments(scope), "host", None) or "")
        hosts = [value.decode("latin-1") for value in _all(headers, b"host")]
        origins = [value.decode("latin-1").partition("://")[2] for value in _all(headers, b"origin")]
        if len(hosts) != 1 or not (names_loopback(hosts[0]) or (own and hosts[0].partition(":")[0] == own)):
            raise _RefusedError(403, "without a key this server answers to localhost alone; start it with a key")
        if not all(map(names_loopback, origins)):
            raise _RefusedError(403, "without a key this server does not answer to web pages")

    async def _take(self, route: tuple[str, str], scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """Read a request's body and put it before the application again."""
        if route[0] != "POST":
            return scope, receive
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _read(receive)
        except TimeoutError:
            raise _RefusedError(408, f"the request was not sent within {BODY_TIMEOUT_S:.0f} s") from None
        changed = self._check_body(route, body)
        if changed is not body:
            headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(changed)).encode())]}
        whole: list[Message] = [{"type": "http.request", "body": changed, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return scope, again

    def _check_body(self, route: tuple[str, str], body: bytes) -> bytes:
        """The body that vLLM gets."""
        return body

    def _hide(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The list of models without where they lie: each names itself as its root, and a variant its parent."""
        cards = [{**card, "root": card["id"]} for card in answer["data"]]
        return {**answer, "data": cards}


class RolloutGateway(ServeGateway):
    """The middleware of `plyfold rollouts`: adapters are loaded by name and from the folders of runs alone."""

    routes = ROLLOUTS

    def __init__(self, app: App) -> None:
        """As ServeGateway; the folders are those that PLYFOLD_ROLLOUT_RUNS names, none if it does not."""
        super().__init__(app)
        self._twin = os.environ.get(TWIN)
        self._runs = [Path(each).resolve() for each in os.environ.get(RUNS, "").split(os.pathsep) if each]

    def _hide(self, answer: dict[str, Any]) -> dict[str, Any]:
        cards = super()._hide(answer)["data"]
        return {**answer, "data": [card if card["parent"] else {**card, "twin": self._twin} for card in cards]}

    def _check_body(self, route: tuple[str, str], body: bytes) -> bytes:
        if route not in (LOAD, UNLOAD):
            return body
        fields = ("lora_name", "lora_path") if route == LOAD else ("lora_name",)
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict) or set(said) != set(fields) or not all(isinstance(v, str) for v in said.values()):
            raise _RefusedError(400, f"expected a JSON object of {' and '.join(fields)}")
        if not 0 < len(said["lora_name"]) <= MAX_NAME:
            raise _RefusedError(400, f"an adapter's name has 1 to {MAX_NAME} characters")
        if route == LOAD:
            said["lora_path"] = str(self._folder(said["lora_path"]))
        return json.dumps(said).encode()

    def _folder(self, text: str) -> Path:
        """Where an adapter really lies, if it lies below the runs."""
        try:
            folder = Path(text).resolve()
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a circle of links
            folder = Path()
        if not os.path.isabs(text) or not any(folder.is_relative_to(runs) for runs in self._runs):
            raise _RefusedError(
                400, "the adapter does not lie below the runs this server reads: start plyfold rollouts with --runs"
            )
        return folder


class _DisconnectedError(Exception):
    """The client has gone."""


class _Answer:
    """Passes an answer on: a list of models rewritten, an error without paths, all else as it comes."""

    def __init__(
        self, send: Send, rewrite: Callable[[dict[str, Any]], dict[str, Any]] | None, hidden: dict[str, str]
    ) -> None:
        self._send, self._rewrite, self._hidden = send, rewrite, hidden
        self._start: Message | None = None
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and (message["status"] >= 400 or self._rewrite):
            self._start = message
            return
        if message["type"] != "http.response.body" or self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        failed = self._start["status"] >= 400
        if failed:
            del self._body[MAX_ERROR_BYTES:]
        if message.get("more_body"):
            return
        body = bytes(self._body)
        if failed:
            for path, name in self._hidden.items():
                body = body.replace(path.encode(), name.encode())
        elif self._rewrite:
            body = json.dumps(self._rewrite(json.loads(body))).encode()
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        start, self._start = self._start, None
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _DisconnectedError
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise _RefusedError(413, f"a request has at most {MAX_BODY_BYTES} bytes", connection="close")
        if not message.get("more_body"):
            return bytes(body)


async def _answer(send: Send, status: int, content: dict[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> None:
    body = json.dumps(content).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _error(refused: _RefusedError) -> dict[str, Any]:
    return {"message": refused.message, "type": "plyfold", "code": refused.status}


def _all(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def _arguments(scope: Scope) -> Any:
    """The command line of vLLM, parsed."""
    return getattr(getattr(scope.get("app"), "state", None), "args", None)


def _local_paths(scope: Scope) -> dict[str, str]:
    """Folders that vLLM reads, and the names they are served under; longest first, as one may lie in another."""
    arguments = _arguments(scope)
    found = {str(module.path): str(module.name) for module in getattr(arguments, "lora_modules", None) or ()}
    if model := getattr(arguments, "model", None):
        found[str(model)] = next(iter(getattr(arguments, "served_model_name", None) or ()), "base")
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))
