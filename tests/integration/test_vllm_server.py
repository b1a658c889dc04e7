"""`plyfold serve` with a real vLLM over HTTP: one server for the whole module, stopped with Ctrl-C at its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import psutil

NAMES = ("base", "1", "1+2", "1+2+3")
PROMPT = "Question: Ann has 3 apples and buys 4 more. How many has she?\nSolution:\n"
START_TIMEOUT_S = 300


class Server:
    """A running `plyfold serve` and what it said when it was ready."""

    def __init__(self, process: subprocess.Popen[str], said: dict[str, Any]) -> None:
        self.process, self.said = process, said
        self.url: str = said["url"]
        self.processes = psutil.Process(process.pid).children(recursive=True)

    def request(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(
            f"{self.url}{path}", data=data, headers={"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def complete(self, model: str) -> tuple[str, list[float]]:
        """Greedy text of a variant and the log probabilities of its tokens."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 0}
        status, answer = self.request("/v1/completions", body)
        assert status == 200, answer
        return answer["choices"][0]["text"], answer["choices"][0]["logprobs"]["token_logprobs"]


@pytest.fixture(scope="module")
def server(make_store: Any, tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    make_store(folder / ".plyfold", tiny_base(dtype="float32"), r=8)
    process = subprocess.Popen(
        [sys.executable, "-m", "plyfold", "serve", *NAMES, "--port", "0", "--json"],
        cwd=folder,
        env={**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},  # what the server has to close all the same
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    watchdog = threading.Timer(START_TIMEOUT_S, process.terminate)
    watchdog.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            break
    watchdog.cancel()
    if process.poll() is not None or not lines:
        pytest.fail(f"the server did not start: {process.communicate()[1]}")
    running = Server(process, json.loads("".join(lines)))
    try:
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_it_lists_the_base_under_both_names_and_every_variant(server: Server) -> None:
    status, listed = server.request("/v1/models")
    assert status == 200
    assert {model["id"] for model in listed["data"]} == {*NAMES, "acme/tiny-qwen2"}
    assert server.said["ready"] is True
    assert [variant["name"] for variant in server.said["variants"]] == list(NAMES)


def test_every_variant_answers_in_its_own_way(server: Server) -> None:
    answers = {name: server.complete(name) for name in NAMES}
    assert len({text for text, _ in answers.values()}) == len(NAMES)
    assert server.complete("acme/tiny-qwen2")[0] == answers["base"][0]


def test_requests_at_the_same_time_answer_as_alone(server: Server) -> None:
    alone = {name: server.complete(name) for name in NAMES}
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda name: (name, server.complete(name)), NAMES * 3))
    for name, (text, logprobs) in together:
        assert text == alone[name][0]
        # Float32, one more summation order: far below what any adapter changes.
        assert logprobs == pytest.approx(alone[name][1], abs=1e-4)


@pytest.mark.parametrize("name", ["2", "1+3", "2+1", "../1", "gsm8k:1"])
def test_a_variant_that_is_not_served_is_not_found(server: Server, name: str) -> None:
    status, _ = server.request("/v1/completions", {"model": name, "prompt": PROMPT, "max_tokens": 1})
    assert status == 404


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/load_lora_adapter", "POST"),
        ("/v1/unload_lora_adapter", "POST"),
        ("/adapters", "POST"),
        ("/adapters/1", "DELETE"),
    ],
)
def test_no_adapter_can_be_loaded_or_removed_over_http(server: Server, path: str, method: str) -> None:
    path_of_one = next(variant["path"] for variant in server.said["variants"] if variant["path"])
    body = {"lora_name": "1", "lora_path": path_of_one, "name": "x", "src": path_of_one}
    status, _ = server.request(path, body, method)
    assert status in (404, 405)
    assert {model["id"] for model in server.request("/v1/models")[1]["data"]} == {*NAMES, "acme/tiny-qwen2"}


def test_a_second_server_on_its_port_is_refused_at_once(server: Server) -> None:
    registry = Path(server.said["log"]).parents[2]
    port = server.url.rpartition(":")[2]
    second = subprocess.run(
        [sys.executable, "-m", "plyfold", "serve", "base", "--port", port, "--registry", str(registry)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 5
    assert "port" in second.stderr
    assert "Traceback" not in second.stderr


def test_ctrl_c_ends_every_process_with_130(server: Server) -> None:
    """Last: it stops the module's server."""
    assert len(server.processes) >= 2
    server.process.send_signal(signal.SIGINT)
    _, errors = server.process.communicate(timeout=60)
    assert server.process.returncode == 130
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(server.processes, timeout=10)
    assert not alive
