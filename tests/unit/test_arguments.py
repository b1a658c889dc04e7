"""A stage's `trainer:` mapping: reporters are checked before anything is loaded, and steps count every process."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plyfold.core.config import CurriculumConfig, StageConfig, load_config
from plyfold.core.errors import ConfigError
from plyfold.stages.arguments import REPORTERS, check_trainer, count_steps, trainer_arguments


def _config(report_to: str) -> CurriculumConfig:
    return load_config("sandbox", [f"stages.structure.trainer.report_to={report_to}"])


@pytest.mark.parametrize("reporter", REPORTERS)
def test_a_reporter_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    reporter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found.get(name))
    for named in (reporter, f"[none, {reporter}]"):
        with pytest.raises(ConfigError, match=f"{reporter} is not installed") as caught:
            check_trainer(_config(named).stages["structure"], "structure")
        assert caught.value.next_step == f"pip install 'plyfold[{reporter}]'"
    found[reporter] = object()
    check_trainer(_config(reporter).stages["structure"], "structure")


@pytest.mark.parametrize("reporter", ["all", "mlflow"])
def test_an_unknown_reporter_is_refused(reporter: str) -> None:
    with pytest.raises(ConfigError, match="no such reporter"):
        check_trainer(_config(reporter).stages["structure"], "structure")


def test_a_run_has_its_stages_name_where_it_is_reported() -> None:
    arguments = trainer_arguments(_config("none"), "structure", Path("."), on_gpu=False)
    assert (arguments.run_name, arguments.project, arguments.report_to) == ("sandbox-1-structure", "sandbox", [])


@pytest.mark.parametrize(
    ("processes", "supervised", "grpo"),
    [(1, 13, 48), (2, 7, 24), (4, 4, 12)],
)
def test_steps_count_every_process(processes: int, supervised: int, grpo: int) -> None:
    common = {"max_steps": -1, "world_size": processes, "num_train_epochs": 1, "per_device_train_batch_size": 4}
    sft = SimpleNamespace(**common, gradient_accumulation_steps=2)
    assert count_steps(sft, 101) == supervised  # type: ignore[arg-type]
    batch = {"generation_batch_size": 8 * processes, "num_generations": 4, "num_iterations": 2}
    rl = SimpleNamespace(**common, gradient_accumulation_steps=2, **batch)
    assert count_steps(rl, 48) == grpo  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [("reconstruct", "eval_strategy", "steps"), ("complete", "sync_ref_model", True),
     ("complete", "save_strategy", "best")],
)  # fmt: skip
def test_what_training_has_nothing_for_is_refused_at_once(task: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_trainer(StageConfig(number=1, task=task, trainer={key: value}), "one")
    assert key in str(caught.value)
