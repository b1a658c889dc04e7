"""`plyfold serve` with a real vLLM over HTTP: one server for the whole module, stopped with Ctrl-C at its end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import psutil

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

NAMES = ("base", "1", "1+2", "1+2+3")
HABITS = {"repetition_penalty": 1.3, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
          "no_repeat_ngram_size": 1, "max_new_tokens": 3}  # fmt: skip
"""Sampling defaults a base may come with; nothing that is scored or served may follow them."""
PROMPT = "Question: Ann has 3 apples and buys 4 more. How many has she?\nSolution:\n"
START_TIMEOUT_S = 300
GONE_S = 10


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


def launch(folder: Path, *names: str) -> subprocess.Popen[str]:
    """`plyfold serve`, with what it has to close all the same."""
    opened = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_USE_RUST_FRONTEND": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "plyfold", "serve", *names, "--port", "0", "--json"],
        cwd=folder,
        env={**os.environ, **opened},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def server(make_store: Any, tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    base = Path(shutil.copytree(tiny_base(dtype="float32"), folder / "base"))
    settings = base / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **HABITS}))
    make_store(folder / ".plyfold", base, r=8)
    process = launch(folder, *NAMES)
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
    parents = {model["id"]: model["parent"] for model in listed["data"]}
    assert parents == {"base": None, "acme/tiny-qwen2": None, **dict.fromkeys(NAMES[1:], "base")}
    assert server.said["ready"] is True
    assert [variant["name"] for variant in server.said["variants"]] == list(NAMES)


def test_every_variant_answers_in_its_own_way(server: Server) -> None:
    answers = {name: server.complete(name) for name in NAMES}
    assert len({text for text, _ in answers.values()}) == len(NAMES)
    assert server.complete("acme/tiny-qwen2")[0] == answers["base"][0]


def test_what_is_served_is_what_was_scored_whatever_the_base_has_for_habits(server: Server) -> None:
    from plyfold.engines.hf import HfEngine

    twin = Path(server.said["twin"])
    assert json.loads((twin / "generation_config.json").read_text())["repetition_penalty"] == 1.3
    paths = {each["name"]: each["path"] and Path(each["path"]) for each in server.said["variants"]}
    engine = HfEngine(twin, paths, max_new_tokens=8, batch_size=1)
    scored = {name: engine.generate(name, [PROMPT])[0].text for name in NAMES}
    assert scored == {name: server.complete(name)[0] for name in NAMES}
    assert scored["base"] != _penalised(twin)  # they would show


def _penalised(twin: Path) -> str:
    """The base's greedy answer with its repetition penalty."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(twin), AutoModelForCausalLM.from_pretrained(twin)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    out = model.generate(ids, do_sample=False, max_new_tokens=8, repetition_penalty=HABITS["repetition_penalty"],
                         no_repeat_ngram_size=0)  # fmt: skip
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_no_answer_says_where_anything_lies_here(server: Server) -> None:
    here = str(Path(server.said["log"]).parents[3])
    bodies: list[dict[str, Any]] = [
        {"model": "base", "prompt": "x", "max_tokens": 1},
        {"model": "nothing", "prompt": "x"},
        {"model": "1", "prompt": [1 << 40]},
        {"model": "1", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": here}}]}]},
        {"model": "1", "messages": [{"role": "user", "content": "x"}]},
    ]
    asked = [(path, body) for path in ("/v1/completions", "/v1/chat/completions", "/tokenize") for body in bodies]
    answers = [server.request(path, body) for path, body in asked]
    answers += [
        server.request("/v1/models"),
        server.request("/invocations", bodies[0]),
        server.request("/openapi.json"),
    ]
    assert {status for status, _ in answers} == {200, 400, 404}
    assert here not in json.dumps([answer for status, answer in answers if status == 200 or here not in str(asked)])
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as metrics:
        assert here not in metrics.read().decode()


def test_a_page_that_calls_its_own_name_this_machine_is_refused(server: Server) -> None:
    asked = urllib.request.Request(f"{server.url}/v1/models", headers={"Host": "evil.example:80"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=60)
    assert caught.value.code == 403


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
        ("/collective_rpc", "POST"),
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
    _, alive = psutil.wait_procs(server.processes, timeout=GONE_S)
    assert not alive


@pytest.mark.parametrize("victim", ["the launcher, while it starts", "the launcher", "its worker"])
def test_a_process_that_is_killed_takes_all_others_along(
    victim: str, make_store: Any, tiny_base: Any, tmp_path: Path
) -> None:
    make_store(tmp_path / ".plyfold", tiny_base(dtype="float32"), r=8)
    process = launch(tmp_path, "base")
    assert process.stdout is not None
    root, seen = psutil.Process(process.pid), set()
    ready = threading.Thread(target=process.stdout.readline, daemon=True)
    ready.start()
    try:
        for _ in range(START_TIMEOUT_S * 10):
            seen |= set(root.children(recursive=True))
            started = any(each.name().startswith("VLLM::") for each in seen if each.is_running())
            if not ready.is_alive() or (started and "while it starts" in victim):
                break
            time.sleep(0.1)
        assert process.poll() is None
        worker = next((each for each in seen if each.is_running() and each.name() == "VLLM::Worker"), None)
        (worker if victim == "its worker" and worker else root).kill()
        gone, alive = psutil.wait_procs([root, *seen], timeout=GONE_S)
        assert not alive
        assert victim != "its worker" or next(each.returncode for each in gone if each == root) == 1
    finally:
        for each in (root, *seen):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
