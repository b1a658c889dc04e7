"""Alarms of real GRPO runs on a tiny base: the figures they read are logged, and each fires where it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run as run_command
from plyfold.core.config import load_config
from plyfold.registry.store import Store
from plyfold.stages.curriculum import train
from plyfold.stages.rewards.hierarchical import HierarchicalReward
from plyfold.stages.runtime.metrics import read_metrics
from plyfold.stages.training.health import CLIPPED, ENTROPY, EQUAL_GROUPS
from plyfold.stages.training.recorder import RunRecorder

from ...support.tiny_curriculum import tiny_config

pytestmark = pytest.mark.slow

STAGES = """
  brevity:
    number: 1
    task: complete
    masking: {mode: scattered}
    unaided_share: 0.5
    trainer: {per_device_train_batch_size: 4, gradient_accumulation_steps: 2, num_generations: 4,
               max_completion_length: 8, learning_rate: 1.0e-3, max_steps: 4, save_steps: 2}
"""


def _train(base: Path, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The alarms on record and the lines of metrics.jsonl."""
    path = folder / "tiny.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(tiny_config(base, STAGES))
    store = Store(folder / "store")
    train(load_config(path), store, runs_dir=folder / "runs")
    details = store.stage("tiny", 1).record.recipe.details
    return details["alarms"], read_metrics(folder / "runs" / "tiny" / "1-brevity" / "metrics.jsonl")


def _at(alarms: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(alarm["name"], alarm["step"]) for alarm in alarms]


def test_a_constant_reward_is_told_while_it_runs_at_its_end_and_on_record(
    tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HierarchicalReward, "score", lambda *_: 0.7)
    alarms, lines = _train(tiny_base(), tmp_path)
    expected = [("clipped_completions", 3), ("groups_without_variance", 3),  # a random base never ends by itself
                ("no_learning_signal", 4), ("adapter_unmoved", 4)]  # fmt: skip
    assert _at(alarms) == expected
    assert [entry for line in lines for entry in line.get("alarms", [])] == alarms
    shown = capsys.readouterr().err
    for told in ("% of completions are cut off", "step 3: 100% of groups", "taught nothing", "B is 0"):
        assert shown.count(told) == 1
    assert run_command(["show", "1", "--registry", str(tmp_path / "store"), "--json"]) == 0
    assert '"groups_without_variance"' in capsys.readouterr().out


def test_a_dead_group_is_seen_where_trls_own_figure_is_blind(
    tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HierarchicalReward, "__call__", lambda *_, completions, **__: [0.0] * 4 + [0.0, 1.0, 0.0, 1.0])
    alarms, lines = _train(tiny_base(), tmp_path)
    steps = [line for line in lines if "loss" in line]
    assert all(key in line for line in steps for key in (CLIPPED, ENTROPY, EQUAL_GROUPS, "frac_reward_zero_std"))
    assert [line[EQUAL_GROUPS] for line in steps] == [0.5] * 4
    assert [line["frac_reward_zero_std"] for line in steps] == [0.0] * 4
    assert _at(alarms) == [("clipped_completions", 3)]


def test_a_killed_run_ends_with_the_alarms_of_the_whole_one(
    tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            raise Killed

    monkeypatch.setattr(HierarchicalReward, "score", lambda *_: 0.7)
    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_step_end", kill)
        with pytest.raises(Killed):
            _train(tiny_base(), tmp_path)
    alarms, lines = _train(tiny_base(), tmp_path)
    assert _at(alarms) == [("clipped_completions", 3), ("groups_without_variance", 3),
                           ("no_learning_signal", 4), ("adapter_unmoved", 4)]  # fmt: skip
    assert [entry for line in lines for entry in line.get("alarms", [])] == alarms
