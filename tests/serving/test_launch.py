"""Serving without vLLM: vllm_options, plans, refusals, and how a server's life and death are handled."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import (
    BaseMismatchError,
    ConfigError,
    ConflictError,
    FailedError,
    IncompatibleError,
    NotFoundError,
)
from plyfold.engines import vllm_options
from plyfold.engines.vllm_options import engine_options, lora_rank
from plyfold.serving import launch
from plyfold.serving.launch import ServerPlan, log_causes, plan_server, run_server
from plyfold.variants import parse_variant

NAMES = ("base", "1", "1+2", "1+2+3")


@pytest.fixture(autouse=True)
def _vllm_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (vllm_options, launch):
        monkeypatch.setattr(module, "vllm_version", lambda: "0.32.0+cpu")
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_PLUGINS", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store(make_store: Any, tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_store(tmp_path_factory.mktemp("store") / ".plyfold", tiny_base(dtype="float32"), r=8)


def planned(store: Any, *names: str, **settings: Any) -> ServerPlan:
    return plan_server(store, [parse_variant(name, "tiny") for name in names], **{"port": 0, **settings})


class TestOptions:
    @pytest.mark.parametrize(
        ("rank", "expected"), [(1, 1), (8, 8), (9, 16), (48, 64), (129, 256), (321, 512), (512, 512)]
    )
    def test_the_next_rank_that_vllm_takes(self, rank: int, expected: int) -> None:
        assert lora_rank(rank) == expected

    def test_a_rank_above_all_is_refused(self) -> None:
        with pytest.raises(IncompatibleError, match="too wide"):
            lora_rank(513)

    def test_a_cpu_keeps_one_slot_empty_and_a_gpu_needs_none(self, tiny_base: Any) -> None:
        on_cpu = engine_options(tiny_base(), "float32", [8, 16, 24], cpu=True)
        on_gpu = engine_options(tiny_base(), "bfloat16", [8, 16, 24], cpu=False)
        assert (on_cpu.max_loras, on_gpu.max_loras) == (4, 3)
        assert (on_cpu.max_lora_rank, on_gpu.max_lora_rank) == (32, 32)
        assert "--enforce-eager" in on_cpu.flags()
        assert "--enforce-eager" not in on_gpu.flags()
        assert on_cpu.flags()[:4] == ["--dtype", "float32", "--max-model-len", "512"]
        assert "VLLM_CPU_KVCACHE_SPACE" not in on_gpu.environment()

    def test_without_adapters_lora_is_off(self, tiny_base: Any) -> None:
        assert engine_options(tiny_base(), "float32", [], cpu=True).arguments() == {
            "dtype": "float32",
            "max_model_len": 512,
            "generation_config": "vllm",
            "enforce_eager": True,
        }

    def test_the_cache_holds_eight_full_sequences(self, tmp_path: Path) -> None:
        config = {
            "max_position_embeddings": 32768,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "hidden_size": 2048,
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        chosen = engine_options(tmp_path, "bfloat16", [], cpu=True)
        # 2 * 36 layers * 2 heads * 128 * 2 bytes = 36 KiB a token; 8 * 4096 of them are 1.125 GiB.
        assert (chosen.max_model_len, chosen.kv_cache_gib) == (4096, 2)
        assert engine_options(tmp_path, "bfloat16", [], cpu=False).max_model_len == 32768

    def test_heads_that_the_cpu_kernels_lack_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64, "num_attention_heads": 4}))
        with pytest.raises(IncompatibleError, match="no attention"):
            engine_options(tmp_path, "float32", [], cpu=True)

    @pytest.mark.parametrize("length", [0, -1, 513])
    def test_a_context_that_does_not_fit_is_refused(self, tiny_base: Any, length: int) -> None:
        with pytest.raises(ConfigError, match="context"):
            engine_options(tiny_base(), "float32", [], max_model_len=length, cpu=True)

    def test_settings_of_the_user_are_kept(self, tiny_base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
        monkeypatch.setenv("VLLM_PLUGINS", "mine")
        environment = engine_options(tiny_base(), "float32", [8], cpu=True).environment()
        assert "VLLM_CPU_KVCACHE_SPACE" not in environment
        assert environment["VLLM_PLUGINS"] == "mine,plyfold"

    def test_without_vllm_the_command_that_installs_it_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(vllm_options.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(NotFoundError, match="not installed") as caught:
            vllm_options.vllm_version()
        assert "pip install" in caught.value.next_step


class TestPlan:
    def test_the_command_serves_every_variant_statically_and_nothing_more(
        self, store: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        plan = planned(store, *NAMES)
        command = list(plan.command)
        assert command[:4] == [sys.executable, "-m", "plyfold.engines.vllm_main", "serve"]
        assert command[4] == str(plan.twin)
        start = command.index("--served-model-name")
        assert command[start + 1 : start + 3] == ["base", plan.base.repo]
        modules = [json.loads(item) for item in command[command.index("--lora-modules") + 1 :]]
        assert [module["name"] for module in modules] == ["1", "1+2", "1+2+3"]
        assert len({module["path"] for module in modules}) == 3
        assert command[command.index("--max-lora-rank") + 1] == "32"
        assert command[command.index("--dtype") + 1] == "float32"
        assert command[command.index("--generation-config") + 1] == "vllm"
        assert command[command.index("--middleware") + 1] == "plyfold.serving.gateway.ServeGateway"
        for name, value in {
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
            "VLLM_USE_RUST_FRONTEND": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }.items():
            assert plan.environment[name] == value
        json.dumps(plan.to_json(), allow_nan=False)

    def test_planning_makes_nothing(self, make_store: Any, tiny_base: Any, tmp_path: Path) -> None:
        store = make_store(tmp_path / "s", tiny_base(dtype="float32"))
        before = sorted(tmp_path.rglob("*"))
        plan = planned(store, *NAMES)
        assert sorted(tmp_path.rglob("*")) == before
        assert not plan.twin.exists()

    def test_what_is_planned_is_where_preparing_puts_it(self, store: Any) -> None:
        plan = planned(store, "base", "1+2")
        launch.prepare_server(plan, store)
        assert (plan.twin / "config.json").is_file()
        assert all((path / "adapter_config.json").is_file() for path in plan.modules.values())

    def test_a_variant_named_twice_is_served_once(self, store: Any) -> None:
        assert list(planned(store, "1+2", "2+1", "tiny:1+2", "base", "base").modules) == ["1+2"]

    def test_a_taken_port_is_refused_before_anything_is_made(self, store: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConflictError, match="port") as caught:
            planned(store, "base", port=taken.getsockname()[1])
        assert "--port" in caught.value.next_step

    def test_an_address_that_is_none_is_refused(self, store: Any) -> None:
        with pytest.raises((ConfigError, ConflictError)):
            planned(store, "base", host="no.such.host.invalid")

    def test_an_unknown_stage_is_refused(self, store: Any) -> None:
        with pytest.raises(NotFoundError, match="no stage 4"):
            planned(store, "1+4")

    def test_a_rank_above_vllms_is_refused(self, make_store: Any, tiny_base: Any, tmp_path: Path) -> None:
        store = make_store(tmp_path / "s", tiny_base(dtype="float32"), r=300, stages=2)
        with pytest.raises(IncompatibleError, match="too wide") as caught:
            planned(store, "1+2")
        assert caught.value.found == "600"

    def test_two_bases_are_refused(self, make_store: Any, tiny_base: Any, tmp_path: Path) -> None:
        make_store(tmp_path / "s", tiny_base(dtype="float32"), stages=1, curriculum="one")
        store = make_store(tmp_path / "s", tiny_base(dtype="float32"), stages=2, curriculum="two", revision="e" * 40)
        with pytest.raises(BaseMismatchError):
            plan_server(store, [parse_variant("one:1", "one"), parse_variant("two:1+2", "one")], port=0)

    def test_two_variants_of_one_name_are_refused(self, make_store: Any, tiny_base: Any, tmp_path: Path) -> None:
        for curriculum in ("one", "two"):
            store = make_store(tmp_path / "s", tiny_base(dtype="float32"), stages=1, curriculum=curriculum)
        with pytest.raises(ConfigError, match="one name"):
            plan_server(store, [parse_variant("one:1", "one"), parse_variant("two:1", "one")], port=0)


FAKE = """
    import http.server, json, os, subprocess, sys, time
    mode, port, listed = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    orphan = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"])
    print("orphan", orphan.pid, flush=True)
    if mode == "dies":
        print("(Worker pid=7) ERROR 11-20 18:33:17 [x.py:1] RuntimeError: no memory", flush=True)
        sys.exit(3)
    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, code, body=b"{}"):
            self.send_response(code); self.end_headers(); self.wfile.write(body)
        def do_GET(self):
            self.reply(200, json.dumps({"data": [{"id": name} for name in listed]}).encode())
        def do_POST(self):
            self.reply(500 if mode == "mute" else 200)
        def log_message(self, *args):
            pass
    server = http.server.HTTPServer(("127.0.0.1", port), Handler)
    if mode == "brief":
        import threading
        threading.Timer(1, lambda: os._exit(9)).start()
    server.serve_forever()
"""


class TestRun:
    """With a stand-in for vLLM that starts, like vLLM, a process of its own, one which ignores SIGTERM."""

    @pytest.fixture(autouse=True)
    def _impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch, "POLL_S", 0.05)

    @pytest.fixture
    def plan(self, store: Any, tmp_path: Path) -> ServerPlan:
        return replace(planned(store, *NAMES), log=tmp_path / "server.log")

    def faked(self, plan: ServerPlan, mode: str, listed: list[str] | None = None) -> ServerPlan:
        script = plan.log.with_suffix(".py")
        script.write_text(textwrap.dedent(FAKE))
        names = listed if listed is not None else ["base", plan.base.repo, *plan.modules]
        return replace(plan, command=(sys.executable, str(script), mode, str(plan.port), json.dumps(names)))

    def orphan_is_gone(self, plan: ServerPlan) -> bool:
        match = re.search(r"orphan (\d+)", plan.log.read_text())
        assert match
        for _ in range(50):
            try:
                os.kill(int(match[1]), 0)
                if Path(f"/proc/{match[1]}/stat").read_text().split()[2] == "Z":
                    return True
            except (ProcessLookupError, FileNotFoundError):
                return True
            time.sleep(0.1)
        return False

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_stops_everything_and_ends_with_130(self, plan: ServerPlan, number: signal.Signals) -> None:
        fake = self.faked(plan, "serves")
        before = signal.getsignal(signal.SIGTERM)
        ready = []

        def on_ready() -> None:
            ready.append(True)
            os.kill(os.getpid(), number)

        assert run_server(fake, on_ready) == 130
        assert ready
        assert self.orphan_is_gone(fake)
        assert signal.getsignal(signal.SIGTERM) is before

    def test_dying_at_the_start_is_told_with_vllms_own_reason(self, plan: ServerPlan) -> None:
        fake = self.faked(plan, "dies")
        with pytest.raises(FailedError, match="code 3 before it answered") as caught:
            run_server(fake)
        assert caught.value.found == "RuntimeError: no memory"
        assert caught.value.where == str(plan.log)
        assert self.orphan_is_gone(fake)

    def test_dying_later_is_told(self, plan: ServerPlan) -> None:
        fake = self.faked(plan, "brief")
        ready = []
        with pytest.raises(FailedError, match="vLLM ended with code 9"):
            run_server(fake, lambda: ready.append(True))
        assert ready
        assert self.orphan_is_gone(fake)

    def test_an_engine_that_is_healthy_and_answers_nothing_is_not_ready(self, plan: ServerPlan) -> None:
        fake = self.faked(plan, "mute")
        with pytest.raises(FailedError, match="started and then failed"):
            run_server(fake, lambda: pytest.fail("was called ready"))
        assert self.orphan_is_gone(fake)

    def test_other_models_than_planned_are_not_accepted(self, plan: ServerPlan) -> None:
        fake = self.faked(plan, "serves", ["base"])
        with pytest.raises(FailedError, match="other models"):
            run_server(fake)


@pytest.mark.slow
def test_a_server_ends_with_a_launcher_that_was_killed() -> None:
    child = """
from plyfold.engines.processes import follow_launcher
import time
follow_launcher()
print("up", flush=True)
time.sleep(600)
"""
    launcher = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE,
                         env={{**os.environ, "PLYFOLD_SERVER_PARENT": str(os.getpid())}})
child.stdout.readline(); print(child.pid, flush=True); child.wait()
"""
    parent = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the server outlived its launcher")


def test_vllm_cpu_answers_to_vllms_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    from plyfold.engines import vllm_main

    def version(name: str) -> str:
        if name != "vllm-cpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.32.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    vllm_main.map_version()
    assert importlib.metadata.version("vllm") == "0.32.0+cpu"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("another")


def test_the_reason_is_found_in_vllms_log() -> None:
    log = """
(APIServer pid=1) WARNING 11-20 18:32:51 [system_utils.py:255] OSError: [Errno 24] Too many open files, perhaps
(Worker pid=2) ERROR 11-20 18:33:17 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=2) ERROR 11-20 18:33:17 [multiproc_executor.py:1063]     raise RuntimeError(
(Worker pid=2) ERROR 11-20 18:33:17 [multiproc_executor.py:1063] RuntimeError: Unsupported head_dim=16
(Worker pid=2) ERROR 11-20 18:33:17 [multiproc_executor.py:1063] RuntimeError: Unsupported head_dim=16
vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.
INFO:     127.0.0.1:38244 - "POST /v1/completions HTTP/1.1" 500 Internal Server Error
"""
    assert log_causes(log) == [
        "RuntimeError: Unsupported head_dim=16",
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
    ]
    assert log_causes("first\nlast\n") == ["last"]
    assert log_causes("") == []
