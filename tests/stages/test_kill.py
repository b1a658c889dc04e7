"""`plyfold train` killed (SIGKILL) again and again, in steps, between stages, while it publishes and scores a gate.

A run that is killed at every turn ends with the adapters of one that was left alone, and the registry is sound after
each kill. Of four stages, two have the same task.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plyfold.adapters.tensors import tensor_digest
from plyfold.registry.store import Store
from plyfold.stages.runtime.metrics import read_metrics

from ..support.tiny_curriculum import tiny_config

pytestmark = pytest.mark.slow

STAGES = """
  structure: &sft
    number: 1
    task: reconstruct
    gate: tokens <= 4
    trainer: &quick {per_device_train_batch_size: 4, learning_rate: 1.0e-3, max_steps: 3, save_steps: 1,
                      lr_scheduler_type: constant}
  again: {number: 2, task: reconstruct, masking: {mode: scattered}, trainer: *quick}
  brevity:
    number: 3
    task: complete
    gate: accuracy >= previous
    masking: {mode: scattered}
    trainer: &grpo {per_device_train_batch_size: 4, gradient_accumulation_steps: 1, num_generations: 4,
                     max_completion_length: 8, learning_rate: 1.0e-3, max_steps: 3, save_steps: 1,
                      lr_scheduler_type: constant}
  remedy:
    number: 4
    task: rewrite
    mining: {samples: 1, problems: 8, max_new_tokens: 4, wrong_share: 0.0, unaided_samples: 0}
    trainer: *grpo
"""
STEPS = {"1-structure": 3, "2-again": 3, "3-brevity": 3, "4-remedy": 3}

# Forked once everything is imported, so that a kill falls into the work and not into Python's start. The child kills
# itself as it is about to make the first path that matches. A random base never answers right, so the reward is
# replaced by one that varies.
TRAIN = """
import fnmatch, os, signal, sys
import plyfold.engines.hf
import plyfold.stages.mining.hard_problems
import plyfold.stages.training.trainers
from plyfold.cli.main import run
from plyfold.stages.rewards.hierarchical import HierarchicalReward

HierarchicalReward.score = lambda self, text, *_: float(len(set(text)))
MADE = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.link": 1}

def die_at(pattern):
    def look(event, arguments):
        if event in MADE and isinstance(path := arguments[MADE[event]], (str, os.PathLike)):
            if fnmatch.fnmatch(path := os.path.abspath(path), pattern) and not os.path.exists(path):
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)

for line in sys.stdin:
    registry, runs, *until = line.split()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(runs + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        for pattern in until:
            die_at(os.path.abspath(pattern))
        os._exit(run(["train", "-c", "tiny.yaml", "--registry", registry, "--runs", runs]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def trainer(tmp_path: Path, tiny_base: Any) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "tiny.yaml").write_text(
        tiny_config(tiny_base(), STAGES, rows=20, scored=8, evaluation="max_new_tokens: 4")
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen([sys.executable, "-c", TRAIN], cwd=tmp_path, env=environment, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:  # fmt: skip
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _train(process: subprocess.Popen[str], name: str, until: str = "") -> int:
    """The exit code of `plyfold train`; with `until`, killed before it makes the first new path that matches."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"store-{name} runs-{name} {until}\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def _sound(store: Store) -> None:
    for digest in store.stages("tiny").values():
        store.load(digest)


def test_a_run_killed_at_every_turn_ends_as_one_left_alone(trainer: subprocess.Popen[str], tmp_path: Path) -> None:
    assert _train(trainer, "whole") == 0, (tmp_path / "runs-whole.log").read_text()
    moments = [
        "runs-killed/tiny/1-structure/checkpoints/checkpoint-2/*",  # in a checkpoint that is being written
        "runs-killed/tiny/1-structure/.adapter.tmp-*",  # between training and publishing
        "store-killed/tmp/*",  # while publishing
        "store-killed/cache/twins/.*",  # while the gate's model is made
        "runs-killed/tiny/eval/.*",  # while the gate's answers are written
        "runs-killed/tiny/2-again/run.json",  # between stages
        "store-killed/refs/tiny/2*",  # at the move of a name
        "runs-killed/tiny/3-brevity/completions",  # in a rollout
        "store-killed/attest/*/*",  # as a gate's score is written
        "runs-killed/tiny/4-remedy/mined*",  # while mining
        "runs-killed/tiny/4-remedy/checkpoints/checkpoint-1/plyfold.json",
    ]
    store = Store(tmp_path / "store-killed")
    for moment in moments:
        assert _train(trainer, "killed", moment) == -signal.SIGKILL, (
            moment,
            (tmp_path / "runs-killed.log").read_text(),
        )
        _sound(store)
    assert _train(trainer, "killed") == 0, (tmp_path / "runs-killed.log").read_text()

    whole = Store(tmp_path / "store-whole")
    assert sorted(whole.stages("tiny")) == sorted(store.stages("tiny")) == [1, 2, 3, 4]
    for (name, steps), number in zip(STEPS.items(), (1, 2, 3, 4), strict=True):
        assert tensor_digest(store.stage("tiny", number).path) == tensor_digest(whole.stage("tiny", number).path), name
        lines = read_metrics(tmp_path / "runs-killed" / "tiny" / name / "metrics.jsonl")
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, steps + 1))
    assert len({tensor_digest(store.stage("tiny", number).path) for number in (1, 2, 3, 4)}) == 4
    assert not list((tmp_path / "runs-killed").rglob(".*tmp-*"))
    log = (tmp_path / "runs-killed.log").read_text()
    assert "continues from checkpoint" in log
    assert "another configuration" not in log
    assert [parent.digest for parent in store.stage("tiny", 4).record.parents] == [
        store.ref("tiny", number) for number in (1, 2, 3)
    ]
    attested = [json.dumps(item.payload["inputs"]) for number in (1, 2, 3) for item in
                store.attestations(store.ref("tiny", number), "eval")]  # fmt: skip
    assert len(attested) >= 3  # 1, 1+2 and 1+2+3; a kill after a score and before its end may leave it twice
