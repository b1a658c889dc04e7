"""Rollouts over HTTP against a scripted server: what is asked of it, and which of its answers are refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from plyfold.adapters.base.resolve import BaseRef, Quantisation
from plyfold.adapters.base.twin import twin_note
from plyfold.core.disk.digest import digest_json
from plyfold.core.errors import (
    AuthError,
    BaseMismatchError,
    ConfigError,
    IncompatibleError,
    OfflineError,
    PlyfoldError,
)
from plyfold.stages.rollouts import http as rollout_http
from plyfold.stages.rollouts.engine import (
    Completion,
    Request,
    Sampling,
    adapter_prefix,
)
from plyfold.stages.rollouts.http import HttpRollouts

SAMPLING = Sampling(temperature=1.0, max_tokens=8, stop_token_ids=(1,))


@dataclass
class Script:
    """What the server does; `faults` are answered first, one a request to /v1/completions."""

    url: str = ""
    adapters: dict[str, str] = field(default_factory=dict)
    faults: list[Any] = field(default_factory=list)
    runtime: bool = True
    processed: bool = True
    refuse: str = ""
    key: str = ""
    root: str = "/elsewhere"
    twin: str | None = None
    completions: int = 0
    elsewhere: str = ""
    models: Any = None
    sent: bytes | None = None
    """Instead of completions."""
    extra: Callable[[dict[str, Any]], dict[str, Any]] = lambda choice: choice

    def answer(self, path: str, body: Any, authorised: str) -> tuple[int, Any]:
        if self.key and authorised != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if path == "/v1/models":
            if self.models is not None:
                return self.models
            base = {"id": "twin", "root": self.root, "parent": None, "max_model_len": 32, "twin": self.twin}
            return 200, {"data": [base, *({"id": k, "root": v, "parent": "twin"} for k, v in self.adapters.items())]}
        if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter") and self.runtime:
            name = body["lora_name"]
            if not name or (self.refuse and "un" not in path):
                return 400, {"error": {"message": self.refuse or "both must be provided"}}
            if "un" in path:
                self.adapters.pop(name)
            elif name in self.adapters:
                return 400, {"error": {"message": "has already been loaded"}}
            else:
                self.adapters[name] = body["lora_path"]
            return 200, "Success"
        if path == "/v1/completions":
            return self.complete(body)
        return 404, {"detail": "Not Found"}

    def complete(self, body: Any) -> tuple[int, Any]:
        self.completions += 1
        if self.faults:
            fault = self.faults.pop(0)
            if callable(fault):
                fault()
            else:
                return fault, {"error": {"message": "fault"}}
        if body["model"] not in (*self.adapters, "twin"):
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if self.sent is not None:
            return 200, self.sent
        top = -1.0 / body["temperature"] if self.processed else -1.0
        choices = [
            self.extra({"index": i, "token_ids": [body["seed"] % 7 + i, 1],
                        "logprobs": {"token_logprobs": [-0.5, -0.25], "top_logprobs": [{"a": top}]}})
            for i in reversed(range(body.get("n", 1)))
        ]  # fmt: skip
        return 200, {"choices": choices}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setattr(rollout_http, "WAIT_S", 0.01)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = script.answer(self.path, json.loads(raw or b"{}"), self.headers.get("Authorization", ""))
            if status == 0:
                self.connection.close()
                return
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if status == 307:
                self.send_header("Location", script.elsewhere)
            self.send_header("Content-Length", str(len(data) + (status == 503)))  # cut off
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    yield script
    server.shutdown()
    server.server_close()


REQUESTS = [Request(prompt_ids=(5, 6), n=2, seed=3), Request(prompt_ids=(7,), n=1, seed=4)]
EXPECTED = [
    [Completion([3, 1], [-0.5, -0.25]), Completion([4, 1], [-0.5, -0.25])],
    [Completion([4, 1], [-0.5, -0.25])],
]


def test_a_server_gives_completions_in_order_and_forgets_what_it_was_given(script: Script, tmp_path: Path) -> None:
    engine = HttpRollouts(f"{script.url}/v1", timeout_s=5)
    engine.check(32, temperature=0.7)
    engine.load("a-v1", tmp_path)
    assert engine.sample("a-v1", REQUESTS, SAMPLING) == EXPECTED
    engine.load("a-v2", tmp_path)
    engine.unload("a-v1")
    assert list(script.adapters) == ["a-v2"]
    left, others = f"{adapter_prefix(tmp_path)}01-v9", f"{adapter_prefix(tmp_path.parent / 'x' / tmp_path.name)}01-v9"
    script.adapters |= {left: "?", others: str(tmp_path)}  # of a run folder of the same name that lies elsewhere
    engine.sweep(tmp_path)
    assert set(script.adapters) == {"a-v2", others}
    engine.close()
    assert list(script.adapters) == [others]


def test_a_server_that_was_restarted_or_busy_gets_its_adapter_and_its_time(script: Script, tmp_path: Path) -> None:
    engine = HttpRollouts(script.url, timeout_s=5)
    engine.load("a-v1", tmp_path)
    script.faults = [503, 0, script.adapters.clear]  # busy, cut off, then restarted without adapters
    assert engine.sample("a-v1", REQUESTS[:1], SAMPLING) == EXPECTED[:1]
    assert script.adapters == {"a-v1": str(tmp_path)}
    engine.load("a-v1", tmp_path)  # an answer that was lost: it is held already


def test_a_server_that_stays_away_is_an_error_after_a_bounded_time(script: Script, tmp_path: Path) -> None:
    engine = HttpRollouts(script.url, timeout_s=5)
    engine.load("a-v1", tmp_path)
    script.faults = [502] * 100
    with pytest.raises(OfflineError) as caught:
        engine.sample("a-v1", REQUESTS[:1], SAMPLING)
    assert script.completions == rollout_http.ATTEMPTS
    assert "continues from the last checkpoint" in caught.value.next_step


def test_servers_that_are_not_as_rollouts_need_them(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseRef(repo="acme/tiny", revision="0" * 40, path=tmp_path)
    note = twin_note(base, Quantisation())

    def refused(kind: type[PlyfoldError], match: str, context: int = 32, temperature: float = 1.0) -> None:
        with pytest.raises(kind, match=match):
            HttpRollouts(script.url, timeout_s=5).check(context, temperature=temperature, twin=note)

    refused(IncompatibleError, "too short", context=33)
    script.runtime = False
    refused(IncompatibleError, "loads no adapters while it runs")
    script.runtime, script.processed = True, False
    HttpRollouts(script.url, timeout_s=5).check(32)  # at temperature 1 both are the same
    refused(IncompatibleError, "leaves temperature out", temperature=0.7)
    script.processed, script.root = True, str(tmp_path)
    refused(BaseMismatchError, "another model")
    (tmp_path / "twin.json").write_text(json.dumps(twin_note(base, Quantisation(double_quant=False))))
    refused(BaseMismatchError, "another model")
    (tmp_path / "twin.json").write_text(json.dumps(note))
    HttpRollouts(script.url, timeout_s=5).check(32, twin=note)
    script.twin = digest_json(twin_note(base, Quantisation(double_quant=False)))
    refused(BaseMismatchError, "another model")  # what it says goes before what lies here
    script.twin, script.root = digest_json(note), "twin"
    HttpRollouts(script.url, timeout_s=5).check(32, twin=note)
    script.key = "k"
    refused(AuthError, "asks for a key")
    monkeypatch.setenv("VLLM_API_KEY", "")
    refused(ConfigError, "empty")
    monkeypatch.setenv("VLLM_API_KEY", "k")
    HttpRollouts(script.url, timeout_s=5).check(32)
    script.refuse = "rank 64 is greater than max_lora_rank"
    with pytest.raises(IncompatibleError, match="does not take the adapter") as caught:
        HttpRollouts(script.url, timeout_s=5).load("a-v1", tmp_path)
    assert "rank 64" in caught.value.found


@pytest.mark.parametrize("missing", ["token_ids", "logprobs"])
def test_answers_without_token_ids_or_log_probabilities_are_refused(
    missing: str, script: Script, tmp_path: Path
) -> None:
    engine = HttpRollouts(script.url, timeout_s=5)
    engine.load("a-v1", tmp_path)
    script.extra = lambda choice: {key: None if key == missing else value for key, value in choice.items()}
    with pytest.raises(IncompatibleError, match="lack their token ids"):
        engine.sample("a-v1", REQUESTS, SAMPLING)


def test_an_error_does_not_wait_for_the_requests_beside_it(script: Script, tmp_path: Path) -> None:
    engine, free = HttpRollouts(script.url, timeout_s=60), threading.Event()
    engine.load("a-v1", tmp_path)
    script.faults = [lambda: free.wait(30), 400, lambda: free.wait(30)]
    start_s = time.monotonic()
    with pytest.raises(PlyfoldError):
        engine.sample("a-v1", [Request(prompt_ids=(5,), n=1, seed=seed) for seed in range(3)], SAMPLING)
    assert time.monotonic() - start_s < 15  # of the 30 the others take
    free.set()


def _sent(tokens: str = "[3, 1]", logprobs: str = "[-0.5, -0.25]", index: str = "0", more: str = "") -> bytes:
    choice = f'{{"index": {index}, "token_ids": {tokens}, "logprobs": {{"token_logprobs": {logprobs}}}}}'
    return f'{{"choices": [{choice}{more}]}}'.encode()


@pytest.mark.parametrize(
    "sent",
    [
        _sent(tokens="[3, -1]"), _sent(tokens="[3, true]"), _sent(tokens="[3, 1.5]"), _sent(tokens='"31"'),
        _sent(tokens="[3, 99999999999]"), _sent(tokens="[]", logprobs="[]"), _sent(logprobs="[0.5, 1]"),
        _sent(logprobs="[-1]"), _sent(logprobs='["a", "b"]'), _sent(logprobs="[null, null]"),
        _sent(logprobs="[-1, NaN]"),
        _sent(logprobs="[-1, -Infinity]"), _sent(logprobs="[-1, -1e999]"), _sent(index="1"), _sent(index='"0"'),
        _sent(index="[0]"), _sent(more=", 7"), _sent(tokens=str([1] * 9), logprobs=str([-1] * 9)),
        b'{"choices": 7}', b"[]",
        b'{"choices":' * 10_000, b"<html>", b"", b'{"choices": []}', b'{"choices": "' + b"x" * 5_000_000 + b'"}',
        b"\xff\xfe", _sent()[:-1] + b', "choices": []}',
    ],
    ids=range(27),
)  # fmt: skip
def test_a_servers_bad_answer_is_one_error_that_names_it(sent: bytes, script: Script, tmp_path: Path) -> None:
    engine = HttpRollouts(script.url, timeout_s=5)
    engine.load("a-v1", tmp_path)
    request = Request(prompt_ids=(5,), n=1, seed=3)
    assert engine.sample("a-v1", [request], SAMPLING) == [[Completion([3, 1], [-0.5, -0.25])]]
    script.sent = sent
    with pytest.raises(IncompatibleError) as caught:
        engine.sample("a-v1", [request], SAMPLING)
    assert caught.value.where == script.url
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "models", [{"data": [7]}, {"data": [{}]}, {"data": 7}, [], b'{"data": [{"id": NaN}]}', b"[" * 1000, b"x" * 10**7]
)
def test_a_list_of_models_that_is_none_is_no_server(models: Any, script: Script) -> None:
    script.models = (200, models)
    with pytest.raises(IncompatibleError, match="server"):
        HttpRollouts(script.url, timeout_s=5).check(8)


def test_a_redirect_is_refused_and_the_key_stays_with_its_host(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "k-not-to-be-seen")
    engine, seen = HttpRollouts(script.url, timeout_s=5), script.completions
    script.models, script.elsewhere = (307, b""), f"{script.url}/v1/completions?key=k"
    with pytest.raises(IncompatibleError, match="one host alone") as caught:
        engine.check(8)
    assert "key=k" not in str(caught.value)
    assert script.completions == seen
    monkeypatch.setenv("VLLM_API_KEY", "k-not-to-be-seen\n")
    with pytest.raises(ConfigError) as refused:
        engine.check(8)
    assert "not-to-be-seen" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://x", "127.0.0.1:8001", "http://u:secret@x", "http://x/v1?k=secret", "http://[", ""]
)  # fmt: skip
def test_what_is_no_address_is_refused_unasked(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HttpRollouts(url, timeout_s=5)
    assert "secret" not in str(caught.value)
