"""A stage's `trainer:` mapping as TRL arguments: names checked, plyfold's defaults under it, unsafe fields refused."""

from __future__ import annotations

import difflib
import importlib.util
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.config import CurriculumConfig, StageConfig
from ...core.errors import ConfigError, first_line
from ..prompts.tasks import SUPERVISED
from ..runtime.library_logging import quiet_libraries
from .trainer_values import check_value

if TYPE_CHECKING:
    from transformers import TrainingArguments

SAVE_STEPS = 20
"""Optimiser steps between checkpoints, rounded up to whole generation cycles."""

REPORTERS = ("tensorboard", "trackio", "wandb")
"""What `trainer.report_to` may name, each a package and an extra of plyfold; metrics.jsonl is written always."""

_OWN = "plyfold sets it"
_MERGES = "it merges adapters into the quantised base, which damages the base for good"
_REFUSED = {
    "output_dir": _OWN,
    "seed": "it is the curriculum's `seed`",
    "data_seed": "it is the curriculum's `seed`",
    "disable_tqdm": _OWN,
    "use_cpu": "the base goes where CUDA is: hide it by CUDA_VISIBLE_DEVICES=",
    "remove_unused_columns": _OWN,
    "resume_from_checkpoint": "`train` resumes by itself",
    "load_best_model_at_end": "it would leave only one of the stacked adapters active",
    "model_init_kwargs": "the base is described under `base`",
    "num_completions_to_print": "completions are written to the run folder",
    "logging_nan_inf_filter": "it hides a NaN loss",
    "eval_strategy": "a stage has no rows to evaluate on: its `gate`, or `eval` afterwards",
    "eval_on_start": "a stage has no rows to evaluate on: its `gate`, or `eval` afterwards",
    "reward_weights": "there is one reward: its parts are weighed under `reward`",
    "sync_ref_model": "the reference is the base with the earlier stages",
    "ref_model_mixup_alpha": "the reference is the base with the earlier stages",
    "ref_model_sync_steps": "the reference is the base with the earlier stages",
    "use_vllm": _MERGES,
    "push_to_hub": "adapters are published from the registry",
    "hub_token": "secrets do not belong in a config",
    "hub_model_id": "adapters are published from the registry",
    "bf16": "it follows base.compute_dtype",
    "fp16": "it follows base.compute_dtype",
    "bf16_full_eval": "it casts the trained adapter for good",
    "fp16_full_eval": "it casts the trained adapter for good",
    "enable_jit_checkpoint": "a stop saves the step by itself, and this would end the run as if it were done",
    "use_transformers_paged": "it is an old name of use_transformers_continuous_batching",
    "use_transformers_continuous_batching": "it casts the trained adapter and the prior for good; rollout.engine: vllm",
    "cast_lm_head_to_fp32": "it casts the frozen head, which a quantised base shares with its embeddings",
    "save_only_model": "a rerun could not continue as the run would have",
    "ignore_data_skip": "a rerun could not continue as the run would have",
    "accelerator_config": "it decides how rows are drawn: a rerun might not continue as the run would have",
    "dataloader_drop_last": "a stage trains on all of its rows",
    "generation_kwargs": "samples would not be drawn as their log probabilities say: temperature, top_p, ...",
    "eos_token": "the base's tokenizer has it",
    "pad_token": "the base's tokenizer has it",
    "chat_template_path": "prompts are the evaluation's, without a template",
    "auto_find_batch_size": "the batch decides the weights: set per_device_train_batch_size",
    "use_liger_kernel": "it replaces the base's modules, and is not in the tested set of versions",
    "fsdp": "a stage trains with plain data parallelism: the quantised base and one small adapter",
    "deepspeed": "a stage trains with plain data parallelism: the quantised base and one small adapter",
}

_COMMON: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 1,
    "num_train_epochs": 1,  # epochs are materialised rows: each copy is masked anew
    "save_strategy": "steps",
    "save_total_limit": 2,  # a kill while the newest is written leaves the one before
    "ddp_find_unused_parameters": False,  # every factor of the adapter is used in every step
    "log_level_replica": "error",  # the first process speaks for all
}
_SFT: dict[str, Any] = {"completion_only_loss": True, "packing": False, "learning_rate": 2e-4, "max_length": 2048}
_GRPO: dict[str, Any] = {
    "loss_type": "dapo",
    "scale_rewards": "batch",  # per group, near-equal rewards become full-size advantages
    "beta": 0.0,
    "epsilon_high": 0.28,
    "num_generations": 8,
    "learning_rate": 1e-5,
    "disable_dropout": True,
    "log_completions": True,
}


def trainer_class(stage: StageConfig) -> type[TrainingArguments]:
    """TRL's argument class of a stage's task."""
    with quiet_libraries():
        from trl import GRPOConfig, SFTConfig

    return SFTConfig if stage.task in SUPERVISED else GRPOConfig  # type: ignore[no-any-return]


def check_trainer(stage: StageConfig, name: str) -> None:
    """Refuse unknown and unsafe fields of `stages.<name>.trainer` before anything is loaded.

    Raises:
        ConfigError: With the closest known field, or the reason; a reporter that is unknown or not installed.
    """
    kind = trainer_class(stage)
    known = {field.name: field.type for field in fields(kind) if field.init}
    where = f"stages.{name}.trainer"
    for key in stage.trainer:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            raise ConfigError(
                f"{kind.__name__} has no field {key}",
                where=where,
                found=key,
                expected=f"a field of TRL's {kind.__name__}",
                next_step=f"did you mean {' or '.join(close)}?" if close else "",
            )
        if key in _REFUSED or key.startswith("vllm_"):
            raise ConfigError(f"{key} cannot be set here", where=where, found=_REFUSED.get(key, _MERGES))
        check_value(kind.__name__, key, known[key], stage.trainer[key], f"{where}.{key}")
    if stage.trainer.get("save_total_limit") == 1:
        raise ConfigError(
            "one checkpoint is too few: the last sound one goes before the next is known to be whole",
            where=f"{where}.save_total_limit",
            found=1,
            expected="2 or more; null keeps all",
        )
    if stage.task not in SUPERVISED and stage.trainer.get("num_train_epochs", 1) != 1:
        raise ConfigError(
            "GRPO goes through its rows once: a later pass need not begin with a generation cycle, and could not be "
            "resumed exactly",
            where=f"{where}.num_train_epochs",
            found=stage.trainer["num_train_epochs"],
            expected="1",
            next_step=f"stages.{name}.epochs, which masks the rows of each copy anew",
        )
    if stage.trainer.get("save_strategy") == "best":
        raise ConfigError("no checkpoint is known to be the best", where=f"{where}.save_strategy", expected="steps")
    _check_reporters(stage.trainer.get("report_to", "none"), f"{where}.report_to")


def _check_reporters(asked: Any, where: str) -> None:
    for reporter in [asked] if isinstance(asked, str) else asked or []:
        if reporter not in ("none", *REPORTERS):
            raise ConfigError("no such reporter", where=where, found=reporter, expected=", ".join(("none", *REPORTERS)))
        if reporter != "none" and importlib.util.find_spec(reporter) is None:
            raise ConfigError(
                f"{reporter} is not installed", where=where, next_step=f"pip install 'plyfold[{reporter}]'"
            )


def trainer_arguments(config: CurriculumConfig, name: str, output_dir: Path, *, on_gpu: bool) -> TrainingArguments:
    """TRL's arguments for a stage.

    Args:
        config: The curriculum.
        name: Name of the stage.
        output_dir: Run folder; completions go below it.
        on_gpu: Gradient checkpointing and pinned memory pay there only.

    Raises:
        ConfigError: An unknown or refused field, a value TRL refuses, or checkpoints off the generation cycle.
    """
    import torch

    stage = config.stages[name]
    check_trainer(stage, name)
    defaults = _COMMON | (_SFT if stage.task in SUPERVISED else _GRPO)
    defaults |= {"gradient_checkpointing": on_gpu, "dataloader_pin_memory": on_gpu}
    defaults |= {"project": config.curriculum, "run_name": f"{config.curriculum}-{stage.number}-{name}"}
    if not (on_gpu or torch.cuda.is_available()):
        defaults["use_cpu"] = True  # transformers refuses bfloat16 without an accelerator unless told so
    where = f"stages.{name}.trainer"
    try:
        arguments = trainer_class(stage)(
            **(defaults | stage.trainer),
            output_dir=str(output_dir),
            seed=config.seed,
            bf16=config.base.compute_dtype == "bfloat16",
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            **({} if stage.task in SUPERVISED else {"num_completions_to_print": 0}),
        )
    except Exception as error:  # also what transformers misses, cannot import or divides by
        found = str(error) or type(error).__name__
        raise ConfigError("TRL refuses the trainer's arguments", where=where, found=found) from error
    _check_optimiser(arguments, where)
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # the base is on one; TRL refuses a process that sees more, lest it copies the model
    cycle = generation_cycle(arguments)
    if "save_steps" not in stage.trainer:
        arguments.save_steps = math.ceil(SAVE_STEPS / cycle) * cycle
    elif arguments.save_steps % cycle:
        raise ConfigError(
            "a checkpoint in the middle of a generation cycle cannot be resumed exactly",
            where=f"{where}.save_steps",
            found=arguments.save_steps,
            expected=f"a multiple of {cycle}",
        )
    return arguments


def _check_optimiser(arguments: TrainingArguments, where: str) -> None:
    """Refuse an optimiser or a schedule that could not be made, on a parameter of its own."""
    import torch

    with quiet_libraries():
        from transformers import Trainer, get_scheduler

    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except Exception as error:  # a package that is missing, an argument it does not take
        raise ConfigError(
            "the optimiser cannot be made",
            where=f"{where}.optim",
            found=first_line(error),
            next_step=f"{where}.optim=adamw_torch",
        ) from error
    kind = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
    try:
        get_scheduler(
            kind,
            optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate),
            num_warmup_steps=arguments.get_warmup_steps(100),
            num_training_steps=100,
            scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
        )
    except Exception as error:
        raise ConfigError(
            "the schedule of the learning rate cannot be made",
            where=f"{where}.lr_scheduler_type",
            found=f"{kind}: {first_line(error)}",
            next_step=f"{where}.lr_scheduler_kwargs gives a schedule what it needs, as {{min_lr_rate: 0.1}}",
        ) from error


def generation_cycle(arguments: TrainingArguments) -> int:
    """Optimiser steps after which new completions are drawn; 1 for supervised training."""
    if not hasattr(arguments, "num_generations"):
        return 1
    micro_steps = arguments.steps_per_generation * arguments.num_iterations
    return int(micro_steps // math.gcd(micro_steps, arguments.gradient_accumulation_steps))


def prompts_per_generation(arguments: TrainingArguments) -> int:
    """Different prompts a generation batch holds, hence the fewest rows GRPO can train on."""
    return int(arguments.generation_batch_size // arguments.num_generations)


def count_micro_steps(arguments: TrainingArguments, num_rows: int) -> int:
    """Forward and backward passes of each process that `num_rows` rows make."""
    batch = int(arguments.per_device_train_batch_size * arguments.world_size)
    if not hasattr(arguments, "num_generations"):
        return math.ceil(num_rows / batch)
    prompts = prompts_per_generation(arguments)
    return int(num_rows // prompts * prompts * arguments.num_generations * arguments.num_iterations // batch)


def count_steps(arguments: TrainingArguments, num_rows: int) -> int:
    """Optimiser steps that `num_rows` rows make, on all processes together."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    micro_steps = count_micro_steps(arguments, num_rows)
    steps: float = math.ceil(micro_steps / arguments.gradient_accumulation_steps) * arguments.num_train_epochs
    return math.ceil(steps)
