"""A stage's `trainer:` mapping: reporters are checked before anything is loaded, and steps count every process."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plyfold.core.config import CurriculumConfig, StageConfig, load_config
from plyfold.core.errors import ConfigError
from plyfold.stages.plan.token_budget import require_rows
from plyfold.stages.plan.trainer_values import CHOICES
from plyfold.stages.plan.trl_args import REPORTERS, check_trainer, count_steps, trainer_arguments


def _config(report_to: str) -> CurriculumConfig:
    return load_config("sandbox", [f"stages.structure.trainer.report_to={report_to}"])


@pytest.mark.parametrize("reporter", REPORTERS)
def test_a_reporter_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    reporter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_trainer(_config("none").stages["structure"], "structure")  # loads TRL, which looks for packages itself
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
     ("complete", "save_strategy", "best"), ("reconstruct", "eval_on_start", True), ("complete", "eval_on_start", True),
     ("reconstruct", "use_liger_kernel", True), ("reconstruct", "fsdp", "full_shard"),
     ("complete", "deepspeed", "zero.json"), ("reconstruct", "auto_find_batch_size", True),
     ("reconstruct", "enable_jit_checkpoint", True), ("reconstruct", "dataloader_drop_last", True),
     ("reconstruct", "accelerator_config", {"use_seedable_sampler": False}),
     ("complete", "generation_kwargs", {"temperature": 0.5}), ("complete", "ref_model_sync_steps", 8)],
)  # fmt: skip
def test_what_training_has_nothing_for_is_refused_at_once(task: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_trainer(StageConfig(number=1, task=task, trainer={key: value}), "one")
    assert key in str(caught.value)


@pytest.mark.parametrize("stage", ["structure", "brevity"])
@pytest.mark.parametrize("key", ["per_device_train_batch_size", "gradient_accumulation_steps"])
def test_a_batch_of_nothing_is_a_usage_error(stage: str, key: str) -> None:
    config = load_config("sandbox", [f"stages.{stage}.trainer.{key}=0"])
    with pytest.raises(ConfigError, match="no such value") as caught:
        trainer_arguments(config, stage, Path("."), on_gpu=False)
    assert (caught.value.exit_code, caught.value.expected) == (2, "1 or more")


def test_whatever_trl_ends_with_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**_: Any) -> Any:
        raise ImportError("a package that is not here")

    monkeypatch.setattr("plyfold.stages.plan.trl_args.trainer_class", lambda stage: made)
    monkeypatch.setattr("plyfold.stages.plan.trl_args.check_trainer", lambda *_: None)
    with pytest.raises(ConfigError, match="TRL refuses") as caught:
        trainer_arguments(load_config("sandbox"), "structure", Path("."), on_gpu=False)
    assert "a package that is not here" in str(caught.value)


def test_one_checkpoint_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="one checkpoint is too few"):
        check_trainer(StageConfig(number=1, task="complete", trainer={"save_total_limit": 1}), "one")
    check_trainer(StageConfig(number=1, task="complete", trainer={"save_total_limit": None}), "one")


def test_grpo_passes_over_its_rows_only_where_they_divide_into_cycles() -> None:
    two_passes = StageConfig(number=1, task="complete", trainer={"num_train_epochs": 2})
    with pytest.raises(ConfigError, match="GRPO goes through its rows once") as caught:
        check_trainer(two_passes, "one")
    assert "stages.one.epochs" in caught.value.next_step
    check_trainer(replace(two_passes, task="reconstruct"), "one")

    def require(steps_per_generation: int, max_steps: int) -> None:
        sizes = {"per_device_train_batch_size": 4, "num_generations": 4, "gradient_accumulation_steps": 4}
        fields = {**sizes, "steps_per_generation": steps_per_generation, "max_steps": max_steps, "save_steps": 12}
        trainer = "stages.brevity.trainer"
        config = load_config("sandbox", [f"{trainer}={{{', '.join(f'{k}: {v}' for k, v in fields.items())}}}"])
        arguments = trainer_arguments(config, "brevity", Path("."), on_gpu=False)
        require_rows(30, "brevity", config.stages["brevity"], arguments, 99)

    require(6, 8)  # 30 passes are 7.5 steps of 4
    with pytest.raises(ConfigError, match="goes through the rows more than once") as caught:
        require(6, 9)
    assert caught.value.expected == "8 or less"
    require(4, 99)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("learning_rate", "abc", "a number"),
        ("learning_rate", float("nan"), "a number"),
        ("learning_rate", -1, "above 0"),
        ("max_steps", None, "a whole number"),
        ("max_steps", 1.5, "a whole number"),
        ("max_steps", 0, "1 or more, or -1 for all rows"),
        ("multi_objective_aggregation", "sum", "one of sum_then_normalize, normalize_then_sum"),
        ("train_sampling_strategy", "group_by_length", "one of random"),
        ("num_generations", True, "a whole number"),
        ("num_generations", None, "a whole number"),
        ("max_completion_length", None, "a whole number"),
        ("max_completion_length", 0, "1 or more"),
        ("temperature", 0, "above 0"),
        ("top_p", 2, "above 0, 1 at most"),
        ("top_k", -5, "0 or more"),
        ("min_p", 1.5, "0 to 1, or null"),
        ("beta", -0.1, "0 or more"),
        ("epsilon_high", 0, "above 0, or null"),
        ("adam_beta1", 1, "0 or more and below 1"),
        ("save_steps", 0, "above 0"),
        ("gradient_checkpointing", "maybe", "true or false"),
        ("loss_type", "daapo", "one of grpo, bnpo, dr_grpo, dapo, luspo, cispo, sapo, vespo"),
        ("scale_rewards", "foo", "one of group, batch, none"),
        ("importance_sampling_level", "word", "one of token, sequence"),
    ],
)
def test_what_is_no_number_is_refused_by_its_key(key: str, value: object, expected: str) -> None:
    stage = load_config("sandbox").stages["brevity"]
    sound = {"epsilon_high": None, "learning_rate": 1, "scale_rewards": False, "max_grad_norm": 0, "top_p": 1}
    check_trainer(replace(stage, trainer=stage.trainer | sound), "brevity")
    with pytest.raises(ConfigError) as caught:
        check_trainer(replace(stage, trainer=stage.trainer | {key: value}), "brevity")
    assert (caught.value.where, caught.value.expected) == (f"stages.brevity.trainer.{key}", expected)


def test_every_choice_is_one_that_trl_knows() -> None:
    import inspect

    from transformers import trainer, training_args
    from transformers.generation import configuration_utils
    from trl import data_utils
    from trl.trainer import grpo_trainer, sft_config, sft_trainer

    modules = {
        "SFTConfig": (training_args, trainer, sft_config, sft_trainer, data_utils),
        "GRPOConfig": (training_args, trainer, grpo_trainer, configuration_utils),
    }
    source = {kind: "".join(map(inspect.getsource, read)) for kind, read in modules.items()}
    for kind, fields in CHOICES.items():
        for key, values in fields.items():
            assert f"self.{key}" in source[kind] or f"args.{key}" in source[kind]
            assert all(f'"{value}"' in source[kind] for value in values if isinstance(value, str)), key
    known = re.findall(r'self\.loss_type (?:== |in )(\[[^]]*\]|"\w+")', source["GRPOConfig"])
    assert set(re.findall(r'"(\w+)"', " ".join(known))) == set(CHOICES["GRPOConfig"]["loss_type"])


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("lr_scheduler_type", "cosine_with_min_lr", "lr_scheduler_type"),
        ("lr_scheduler_type", "warmup_stable_decay", "lr_scheduler_type"),
        ("lr_scheduler_kwargs", "{no_such: 1}", "lr_scheduler_type"),
        ("optim", "galore_adamw", "optim"),
        ("reward_weights", "[0.5, 0.5]", ""),
    ],
)
def test_what_could_not_be_made_is_refused_when_it_is_planned(field: str, value: str, where: str) -> None:
    trainer = "stages.brevity.trainer"
    with pytest.raises(ConfigError) as caught:
        trainer_arguments(load_config("sandbox", [f"{trainer}.{field}={value}"]), "brevity", Path("."), on_gpu=False)
    assert caught.value.where == (f"{trainer}.{where}" if where else trainer)
    sound = [f"{trainer}.lr_scheduler_type=cosine_with_min_lr", f"{trainer}.lr_scheduler_kwargs={{min_lr_rate: 0.1}}"]
    trainer_arguments(load_config("sandbox", sound), "brevity", Path("."), on_gpu=False)
