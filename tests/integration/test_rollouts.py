"""Stages whose completions come from a real vLLM on a CPU: beside the trainer, and over HTTP.

That completions are the current adapter's is seen where TRL compares the log probability of every sampled token with
the trainer's own: they agree to rounding at every step, while a step at this learning rate moves them a thousandfold.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from plyfold.adapters.base import Quantisation, ensure_twin, resolve_base
from plyfold.core.config import BaseConfig, CurriculumConfig, load_config
from plyfold.core.errors import BaseMismatchError
from plyfold.registry.record import check_portable
from plyfold.registry.store import Store
from plyfold.stages.curriculum import train
from plyfold.stages.plan import plan_curriculum
from plyfold.stages.recorder import read_metrics
from plyfold.stages.rewards import HierarchicalReward

BOUND = 1e-4
"""Two float32 evaluations of one sum in other orders, over 8 tokens of a 2-layer model."""
STEPS = 4
CONFIG = """
curriculum: tiny
base: {{repo: acme/tiny-qwen2, revision: auto, path: {base}, compute_dtype: float32}}
adapter: {{r: 4, alpha: 8}}
data: {{path: sandbox, rows: [0, 40]}}
eval: {{data: {{path: sandbox, split: test, rows: [0, 40]}}}}
threads: 1
stages:
  structure:
    number: 1
    task: reconstruct
    trainer: {{per_device_train_batch_size: 4, learning_rate: 1.0e-2, max_steps: 2}}
  brevity:
    number: 2
    task: complete
    unaided_share: 1.0
    trainer:
      per_device_train_batch_size: 4
      gradient_accumulation_steps: 2
      num_generations: 4
      max_completion_length: 8
      learning_rate: 1.0e-2
      lr_scheduler_type: constant
      max_steps: 4
      save_steps: 2
"""
MakeConfig = Callable[..., CurriculumConfig]


@pytest.fixture
def make_config(tmp_path: Path, tiny_base: Any) -> MakeConfig:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.format(base=tiny_base(dtype="float32")))
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture(autouse=True)
def _varied_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random base never answers right."""
    monkeypatch.setattr(HierarchicalReward, "score", lambda self, text, *_: float(len(set(text))))


def check_run(store: Store, run_dir: Path, engine: str) -> None:
    """What every engine has to leave behind."""
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert 0 < line["sampling/sampling_logp_difference/max"] < BOUND
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=10 * BOUND)
        assert line["rollout/sync_bytes"] > 0
        assert 0 < line["rollout/sync_seconds"] + line["rollout/seconds"] <= line["rollout/wall_seconds"]
    record = store.stage("tiny", 2).record
    check_portable(record.to_json())
    spent = record.recipe.details["rollout"]
    assert spent["engine"] == engine
    assert spent["sync_bytes"] == sum(line["rollout/sync_bytes"] for line in lines)
    assert 0 < spent["share"] < 1
    assert not (run_dir / "rollout").exists()


def test_vllm_beside_the_trainer_samples_from_prior_and_current_adapter(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from plyfold.stages.rollout import Request, Sampling
    from plyfold.stages.rollout_vllm import VllmRollouts

    store, config = Store(tmp_path / "store"), make_config("rollout.engine=vllm")
    plan = plan_curriculum(config, store)
    assert plan.rollout["engine"] == "vllm"
    seen: dict[str, Any] = {}
    load = VllmRollouts.load

    def looked_at(self: VllmRollouts, name: str, folder: Path) -> None:
        """The same request, drawn twice from this version and once from the one before."""
        load(self, name, folder)
        requests = [Request(prompt_ids=(5, 6, 7), n=2, seed=11)]
        sampling = Sampling(temperature=0.7, max_tokens=8, stop_token_ids=(0,))
        seen[name] = [self.sample(name, requests, sampling) for _ in range(2)]
        if len(seen) == 2:  # the version before is still there and still itself
            seen["again"] = self.sample(next(iter(seen)), requests, sampling)

    monkeypatch.setattr(VllmRollouts, "load", looked_at)
    train(config, store, runs_dir=tmp_path / "runs")
    check_run(store, tmp_path / "runs" / "tiny" / "2-brevity", "vllm")
    versions = [draws for name, draws in seen.items() if name != "again"]
    assert len(versions) == STEPS
    for first, second in versions:
        assert [each.token_ids for each in first[0]] == [each.token_ids for each in second[0]]  # one seed
        assert first[0][0] != first[0][1]  # n samples of one prompt differ
    assert _far(versions[0][0], versions[1][0])
    assert not _far(versions[0][0], seen["again"])
    assert torch.isfinite(torch.tensor([each.logprobs[0] for each in versions[0][0][0]])).all()


def _far(one: Any, other: Any) -> bool:
    """Whether the first token's log probability differs by more than rounding."""
    return any(abs(a.logprobs[0] - b.logprobs[0]) > 10 * BOUND for a, b in zip(one[0], other[0], strict=True))


@pytest.fixture
def server(tiny_base: Any, tmp_path: Path) -> Iterator[str]:
    """A server on the twin, started with what `plyfold rollouts` says."""
    from plyfold.serving.rollouts import server_command

    base = resolve_base(BaseConfig(repo="acme/tiny-qwen2", revision="auto", path=str(tiny_base(dtype="float32"))))
    twin = ensure_twin(base, Quantisation(compute_dtype="float32"), tmp_path / "cache")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command, environment = server_command(twin, twin, "float32", rank=8, host="127.0.0.1", port=port, max_model_len=400)
    log = (tmp_path / "server.log").open("wb")
    process = subprocess.Popen(command, env={**os.environ, **environment, "PLYFOLD_SERVER_PARENT": str(os.getpid())},
                               stdout=log, stderr=log, start_new_session=True)  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    deadline_s = time.monotonic() + 200
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline_s, (tmp_path / "server.log").read_text()
            time.sleep(0.3)
    yield url
    process.terminate()
    process.wait(60)


def test_a_server_samples_for_the_trainer_and_another_base_is_refused(
    server: str, make_config: MakeConfig, tiny_base: Any, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    config = make_config("rollout.engine=http", f"rollout.url={server}", "stages.brevity.trainer.temperature=0.8")
    with pytest.raises(BaseMismatchError, match="another model"):
        plan_curriculum(make_config("rollout.engine=http", f"rollout.url={server}", "base.double_quant=false"), store)
    train(config, store, runs_dir=tmp_path / "runs")
    check_run(store, tmp_path / "runs" / "tiny" / "2-brevity", "http")
    with urllib.request.urlopen(f"{server}/v1/models") as answer:
        assert [card["parent"] for card in json.load(answer)["data"]] == [None]  # every version was let go
