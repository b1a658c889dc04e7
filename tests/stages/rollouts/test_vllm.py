"""Stages whose completions come from a real vLLM on a CPU: beside the trainer, and over HTTP.

That completions are the current adapter's is seen where TRL compares the log probability of every sampled token with
the trainer's own: they agree to rounding at every step, while a step at this learning rate moves them a thousandfold.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from plyfold.adapters.tensors import read_adapter
from plyfold.core.config import CurriculumConfig, load_config
from plyfold.core.errors import BaseMismatchError
from plyfold.registry.record import check_portable
from plyfold.registry.store import Store
from plyfold.stages.curriculum import train
from plyfold.stages.plan.curriculum_plan import plan_curriculum
from plyfold.stages.rewards.hierarchical import HierarchicalReward
from plyfold.stages.rollouts.http import HttpRollouts
from plyfold.stages.runtime.metrics import read_metrics
from plyfold.stages.training.recorder import RunRecorder

from ...support.tiny_curriculum import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

BOUND = 1e-4
"""Two float32 evaluations of one sum in other orders, over 8 tokens of a 2-layer model."""
STEPS = 4
START_TIMEOUT_S, STOP_TIMEOUT_S = 500, 120
STAGES = """
  structure:
    number: 1
    task: reconstruct
    trainer: {per_device_train_batch_size: 4, learning_rate: 1.0e-2, max_steps: 2}
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
    path.write_text(tiny_config(tiny_base(dtype="float32"), STAGES))
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

    from plyfold.stages.rollouts.engine import Request, Sampling
    from plyfold.stages.rollouts.vllm import VllmRollouts

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


REMEDY = """  remedy:
    number: 2
    task: rewrite
    unaided_share: 0.5
    mining: {samples: 1, max_new_tokens: 8, wrong_share: 0, minimum: 4, unaided_samples: 1}
    trainer: {per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8, max_steps: 1,
              learning_rate: 1.0e-2}
"""


def test_mining_draws_from_the_engine_and_from_the_policy_of_that_moment(
    tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plyfold.stages.rollouts.vllm import VllmRollouts

    path, runs = tmp_path / "mined.yaml", tmp_path / "runs"
    path.write_text(tiny_config(tiny_base(dtype="float32"), STAGES.partition("  brevity:")[0] + REMEDY))
    load, sample = VllmRollouts.load, VllmRollouts.sample
    policies: dict[str, Any] = {}
    drawn: dict[str, list[Any]] = {}

    def loading(self: VllmRollouts, name: str, folder: Path) -> None:
        policies[name] = read_adapter(folder).factors
        load(self, name, folder)

    def sampling(self: VllmRollouts, name: str, requests: Any, how: Any) -> Any:
        completions = sample(self, name, requests, how)
        drawn.setdefault(name, []).extend(each for (each, *_) in completions)
        return completions

    monkeypatch.setattr(VllmRollouts, "load", loading)
    monkeypatch.setattr(VllmRollouts, "sample", sampling)
    stage = train(load_config(path, ["rollout.engine=vllm"]), Store(tmp_path / "store"), runs_dir=runs).stages[1]
    before, _training, after = policies
    assert [name.endswith("-policy") for name in policies] == [True, False, True]
    assert (len(drawn[before]), len(drawn[after])) == (80, 40)  # mined and measured, measured
    assert all(0 < len(each.token_ids) <= 8 for each in drawn[before])
    mined = json.loads((stage.run_dir / "mined.json").read_text())
    assert [problem["verdict"] for problem in mined["problems"]].count("wrong") == stage.details["mined"]["failures"]
    trained = read_adapter(stage.run_dir / "adapter").factors
    for name, factors in trained.items():
        first, then, last = (policies[key][name] for key in policies)
        assert first.B_OR.equal(then.B_OR)  # the prior, before anything is learnt
        assert not first.B_OR[:, 4:].any()
        assert last.B_OR[:, :4].equal(first.B_OR[:, :4])
        assert last.B_OR[:, 4:].equal(factors.B_OR * factors.scale)
    assert not (stage.run_dir / "rollout").exists()


def _far(one: Any, other: Any) -> bool:
    """Whether the first token's log probability differs by more than rounding."""
    return any(abs(a.logprobs[0] - b.logprobs[0]) > 10 * BOUND for a, b in zip(one[0], other[0], strict=True))


@pytest.fixture
def server(make_config: MakeConfig, tmp_path: Path) -> Iterator[str]:
    """`plyfold rollouts`, stopped as a service is."""
    import psutil

    make_config()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "plyfold",
        "rollouts",
        "-c",
        "tiny.yaml",
        "--registry",
        "store",
        "--json",
        "--runs",
        ".",
    ]
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--max-model-len", "400"], cwd=tmp_path, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, log)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 1
        yield url
    finally:
        process.terminate()
        code = process.wait(STOP_TIMEOUT_S)
    assert code == 130
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.3)


class _Killed(BaseException):
    pass


def test_a_server_samples_for_the_trainer_and_a_killed_run_asks_for_the_same_samples(
    server: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ("rollout.engine=http", f"rollout.url={server}", "stages.brevity.trainer.temperature=0.8")
    config, store = make_config(*here), Store(tmp_path / "store")
    with pytest.raises(BaseMismatchError, match="another model"):
        plan_curriculum(make_config(*here, "base.double_quant=false"), store)
    train(config, store, runs_dir=tmp_path / "runs")
    check_run(store, tmp_path / "runs" / "tiny" / "2-brevity", "http")

    other, on_step_end = Store(tmp_path / "other"), RunRecorder.on_step_end

    def killed_at_three(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 3:
            raise _Killed
        on_step_end(self, args, state, control, **others)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_step_end", killed_at_three)
        patch.setattr(HttpRollouts, "close", lambda self: None)  # a kill tells the server nothing
        with pytest.raises(_Killed):
            train(config, other, runs_dir=tmp_path / "again")
    assert len(listed(server)) == 2  # the base, and what the killed run has left
    train(config, other, runs_dir=tmp_path / "again")
    assert listed(server) == [None]
    folders = [root / "tiny" / "2-brevity" for root in (tmp_path / "runs", tmp_path / "again")]
    whole, resumed = (read_adapter(folder / "adapter").factors for folder in folders)
    for name, factors in whole.items():  # to rounding: what shares a batch in vLLM decides the order of its sums
        assert (factors.B_OR - resumed[name].B_OR).abs().max() < 1e-3 * factors.B_OR.abs().max()
    drawn, drawn_again = map(completions, folders)
    assert drawn == drawn_again
    assert len(set(drawn)) > STEPS


def listed(server: str) -> list[str | None]:
    """What each served model stands on: None for the base."""
    with urllib.request.urlopen(f"{server}/v1/models") as answer:
        return [card["parent"] for card in json.load(answer)["data"]]


def completions(run_dir: Path) -> list[str]:
    """All that a run drew, in order."""
    from datasets import Dataset

    files = sorted((run_dir / "completions").glob("*.parquet"))
    return [text for file in files for text in Dataset.from_parquet(str(file))["completion"]]
