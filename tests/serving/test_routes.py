"""Every route of the real vLLM application, behind the gateway: allowed, or refused by a list that names it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from plyfold.serving.gateway import ROLLOUTS, RUNS, SERVED

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

KEY = "k-secret"
REFUSED = {
    "/": "no page",
    "/openapi.json": "names every route",
    "/docs": "as openapi.json",
    "/docs/oauth2-redirect": "as openapi.json",
    "/redoc": "as openapi.json",
    "/ping": "SageMaker's health, which vLLM leaves open",
    "/invocations": "generates past vLLM's key",
    "/adapters": "loads adapters past vLLM's key",
    "/adapters/{adapter_name}": "unloads adapters past vLLM's key",
    "/load": "of no use beside /metrics",
    "/kv_event_sources": "for routers of vLLM's own",
    "/tokenizer_info": "the tokenizer's files",
    "/v1/responses": "keeps what was asked",
    "/v1/responses/{response_id}": "as /v1/responses",
    "/v1/responses/{response_id}/cancel": "as /v1/responses",
    "/v1/responses/render": "as /v1/responses",
    "/v1/messages": "another vendor's form",
    "/v1/messages/count_tokens": "as /v1/messages",
    "/v1/messages/render": "as /v1/messages",
    "/v1/systemone": "structured decisions, which nothing here scores",
    "/v1/chat/completions/batch": "many at once past the queue of one",
    "/v1/chat/completions/render": "for disaggregated serving",
    "/v1/chat/completions/derender": "for disaggregated serving",
    "/v1/completions/render": "for disaggregated serving",
    "/v1/completions/derender": "for disaggregated serving",
    "/inference/v1/generate": "for disaggregated serving",
    "/inference/v1/abort_requests": "ends requests of others",
    "/generative_scoring": "nothing here scores so",
    "/scale_elastic_ep": "changes the engine",
    "/is_scaling_elastic_ep": "asks about that",
}
DEVELOPERS = {
    "/server_info", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/sleep", "/wake_up",
    "/is_sleeping", "/collective_rpc", "/abort_requests", "/pause", "/resume", "/is_paused", "/get_world_size",
    "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/start_weight_update", "/update_weights",
    "/start_draft_weight_update", "/finish_weight_update", "/update_weight_version", "/weight_checker", "/weight_info",
    "/release_kv_cache_memory",
}  # fmt: skip
"""Routes that VLLM_SERVER_DEV_MODE opens, which the servers set to 0."""


def app(gateway: str) -> Any:
    """The application that vLLM serves, without an engine behind it."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags = ["--middleware", f"plyfold.serving.gateway.{gateway}", "--allowed-origins", "[]"]  # docs are left on
    return build_app(make_arg_parser(FlexibleArgumentParser()).parse_args(flags), ("generate",))


@pytest.fixture(params=["ServeGateway", "RolloutGateway"])
def gateway(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv(RUNS, "/nowhere")
    return str(request.param)


def ask(app: Any, method: str, path: str, *headers: tuple[bytes, bytes]) -> int:
    """Status of an answer."""
    statuses: list[int] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path,
             "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": ("127.0.0.1", 8000),
             "client": ("127.0.0.1", 1), "headers": [(b"host", b"localhost"), *headers]}  # fmt: skip
    try:
        asyncio.run(app(scope, receive, send))
    except Exception:  # an engine would be needed: it was let through
        statuses.append(-1)
    return statuses[0]


def test_every_route_is_allowed_or_refused_by_name(gateway: str) -> None:
    allowed = SERVED if gateway == "ServeGateway" else ROLLOUTS
    whole = app(gateway)
    assert whole.user_middleware[0].cls.__name__ == gateway  # outermost, whatever else is added
    key = (b"authorization", f"Bearer {KEY}".encode())
    routes = {(method, route.path) for route in whole.routes for method in getattr(route, "methods", None) or ("GET",)}
    assert {path for _, path in routes} >= {path for _, path in allowed}
    unknown = set()
    for method, path in sorted(routes):
        address = path.replace("{response_id}", "r").replace("{adapter_name}", "a")
        if (method, path) != ("GET", "/health"):
            assert ask(whole, method, address) == 401, (method, path)
        if (method, path) in allowed:
            assert ask(whole, method, address, key) not in (401, 403, 404, 405), (method, path)
            continue
        assert ask(whole, method, address, key) in (404, 405), (method, path)
        known_path = path in REFUSED or path in DEVELOPERS or path in {p for _, p in SERVED | ROLLOUTS}
        if not known_path:
            unknown.add(path)
    assert not unknown, f"say of these whether they are let through: {json.dumps(sorted(unknown))}"


def test_answers_give_no_other_page_a_right_to_read_them(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY")
    whole, page = app(gateway), (b"origin", b"https://evil.example")
    assert ask(whole, "GET", "/version") == 200
    assert ask(whole, "GET", "/version", page) == 403
    preflight = (b"access-control-request-method", b"POST")
    assert ask(whole, "OPTIONS", "/v1/completions", page, preflight) == 403
    assert ask(whole, "OPTIONS", "/v1/completions", preflight) == 405
