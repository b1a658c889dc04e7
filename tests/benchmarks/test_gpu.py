"""benchmarks/gpu.py rehearsed on its tiny shape: every part runs here as it does on a card, if more slowly."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from plyfold.stages.plan.model_shape import KNOWN

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
VLLM = importlib.util.find_spec("vllm") is not None
PARTS = ("limits", "load", "twin", "sft", "grpo", "adapters", *(["vllm"] if VLLM else []))


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_rehearsal_measures_every_part(tmp_path: Path) -> None:
    out = tmp_path / "tiny.json"
    command = [sys.executable, SCRIPT, "--shape", "tiny", "--steps", "1", "--out", out, "--parts", *PARTS]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # a rehearsal, where there is a card too
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    parts: dict[str, Any] = report["parts"]
    assert tuple(parts) == PARTS
    assert {"torch", "trl", "peft", "bitsandbytes"} <= report["versions"].keys()
    assert parts["twin"]["share of weights bit-equal"] == 1
    assert parts["adapters"]["reference policy equals an untrained policy"] is True
    for part in ("sft", "grpo"):
        assert parts[part]["frozen parts bit-identical"] is True
        assert parts[part]["least share of a lora_A that moved"] > 0.9
        assert parts[part]["time / stock"] > 0
        assert next(iter(parts[part])) == "time / stock"  # ratios first
    assert parts["sft"]["plyfold"]["tokens/s"] == pytest.approx(2 * 48 / parts["sft"]["plyfold"]["step_s"])
    assert 0 < parts["grpo"]["plyfold"]["share of time in rollouts"] < 1
    assert all("limit" not in name or value > 0 for part in ("sft", "grpo") for name, value in parts[part].items())
    if VLLM:
        assert parts["vllm"]["tokens/s of base and 2 adapters / base"] > 0
    page = out.with_suffix(".md").read_text()
    assert "A rehearsal on a CPU" in page
    assert all(f"## {part}" in page for part in PARTS)


def test_a_part_that_fails_is_written_down_and_the_others_go_on(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(bench: Any) -> dict[str, Any]:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setitem(gpu.PARTS, "load", out_of_memory)
    out = tmp_path / "tiny.json"
    monkeypatch.setattr("sys.argv", ["gpu.py", "--shape", "tiny", "--out", str(out), "--parts", "load", "limits"])
    assert gpu.main() == 1
    parts = json.loads(out.read_text())["parts"]
    assert parts["load"]["error"] == "RuntimeError: CUDA out of memory"
    assert parts["limits"]["bf16 TFLOP/s"] > 0
    assert "| error  | RuntimeError: CUDA out of memory |" in out.with_suffix(".md").read_text()


def test_the_full_shape_is_qwens(gpu: ModuleType) -> None:
    (known,) = (config for (repo, _), config in KNOWN.items() if repo == "Qwen/Qwen2.5-3B")
    model = gpu.SHAPES["qwen2.5-3b"].model  # a copy: the script goes to its machine alone
    assert model == {key: known[key] for key in model}
    assert len(model) == 7
