"""What can be said against a rollout engine before anything expensive starts."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...adapters.base.resolve import BaseRef, Quantisation
from ...adapters.base.twin import twin_note
from ...core.config import RolloutConfig
from ...core.environment import meaning
from ...core.errors import ConfigError, IncompatibleError
from ...engines.vllm_options import engine_options, lora_rank, vllm_version
from ..plan.stage_plan import StagePlan
from ..prompts.tasks import SUPERVISED
from .http import HttpRollouts

if TYPE_CHECKING:
    from transformers import TrainingArguments


ROLLOUT_ENGINES = ("hf", "vllm", "http")
WHERE = "rollout"

_WHOLE = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
"""Trainer fields that would cut or bend the distribution, at the values that leave it whole."""


def check_rollout(config: RolloutConfig) -> None:
    """Refuse values that cannot be meant.

    Raises:
        ConfigError: An unknown engine, a server without a URL, or a number out of range.
    """
    if config.engine not in ROLLOUT_ENGINES:
        close = difflib.get_close_matches(config.engine, ROLLOUT_ENGINES, n=1)
        hint = f"did you mean {close[0]}?" if close else ""
        raise ConfigError("no such rollout engine", where=f"{WHERE}.engine", found=config.engine,
                          expected=", ".join(ROLLOUT_ENGINES), next_step=hint)  # fmt: skip
    if config.engine == "http" and not config.url:
        raise ConfigError("a rollout server needs its URL", where=f"{WHERE}.url", expected="as http://127.0.0.1:8001")
    if "@" in meaning(config.url or ""):
        raise ConfigError("a URL with a password would be on record", where=f"{WHERE}.url",
                          next_step="leave it out of the URL; a server's key is read from VLLM_API_KEY")  # fmt: skip
    if config.url and config.engine != "http":
        raise ConfigError("a URL is for a rollout server", where=f"{WHERE}.url", found=f"engine {config.engine}",
                          next_step=f"{WHERE}.engine=http, or leave {WHERE}.url out")  # fmt: skip
    if not 0 < config.gpu_memory < 1:
        raise ConfigError("not a share of memory", where=f"{WHERE}.gpu_memory", found=config.gpu_memory,
                          expected="between 0 and 1")  # fmt: skip
    if not config.timeout_s > 0:
        raise ConfigError("not a time", where=f"{WHERE}.timeout_s", found=config.timeout_s, expected="seconds above 0")


def check_sampling(config: RolloutConfig, arguments: TrainingArguments, where: str) -> None:
    """Refuse sampling whose log probabilities the trainer cannot compare with its own.

    vLLM reports a token's probability under what it was drawn from. Where that is a part of the distribution, the
    importance ratio of a sequence shrinks by the part that was cut off at every token, and with it the gradient.

    Raises:
        ConfigError: Sampling from less than the whole distribution, or TRL's own generation arguments.
    """
    if config.engine == "hf":
        return
    for name, whole in _WHOLE.items():
        found = getattr(arguments, name)
        if found not in (whole, None) and not (name == "min_p" and found == 0):
            raise ConfigError(
                f"rollouts from {config.engine} are drawn from the whole distribution, at a temperature",
                where=f"{where}.trainer.{name}",
                expected=whole,
                found=found,
                next_step=f"leave it out, or take {WHERE}.engine=hf",
            )
    for name in ("generation_kwargs", "use_transformers_continuous_batching"):
        if getattr(arguments, name, None):
            raise ConfigError(f"{name} is for {WHERE}.engine=hf", where=f"{where}.trainer", found=config.engine)


def plan_rollout(
    config: RolloutConfig, base: BaseRef, quantisation: Quantisation, stages: Sequence[StagePlan]
) -> dict[str, Any]:
    """What is known of the engine before it starts, once nothing is left to be said against it.

    Args:
        config: Which engine.
        base: What is trained on; its files may be missing.
        quantisation: Of the base.
        stages: Those of which some may have completions drawn; without one nothing is asked and the result is empty.

    Raises:
        As `check_ready`.
    """
    asking = [stage for stage in stages if stage.will_train and stage.stage.task not in SUPERVISED]
    if not asking:
        return {}
    rank = max(stage.prior_rank + stage.adapter.r for stage in asking)
    longest = max(int(stage.arguments.max_completion_length) for stage in asking)
    temperature = next((stage.arguments.temperature for stage in asking if stage.arguments.temperature != 1.0), 1.0)
    return check_ready(config, base, quantisation, rank, longest, temperature)


def check_ready(
    config: RolloutConfig,
    base: BaseRef,
    quantisation: Quantisation,
    rank: int,
    longest_completion: int,
    temperature: float,
) -> dict[str, Any]:
    """Refuse an engine that is not there, or not as it has to be.

    Args:
        config: Which engine.
        base: What is trained on; its files may be missing.
        quantisation: Of the base.
        rank: Largest that an adapter of the run will have.
        longest_completion: In tokens, over all stages.
        temperature: Completions are drawn at.

    Returns:
        What is known of the engine, for the plan.

    Raises:
        NotFoundError: vLLM is not installed; the command that installs it is named.
        IncompatibleError: A rank above vLLM's largest, attention its CPU kernels lack, several training processes for
            one vLLM beside them, or a server that is not as rollouts need it.
        OfflineError, AuthError, BaseMismatchError: As `HttpRollouts.check`.
    """
    if config.engine == "hf":
        return {"engine": "hf"}
    lora_rank(rank)
    if config.engine == "http":
        server = HttpRollouts(meaning(config.url or ""), timeout_s=config.timeout_s)
        server.check(longest_completion + 1, temperature=temperature, twin=twin_note(base, quantisation))
        return server.describe()
    version, count = vllm_version(), int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise IncompatibleError(
            "vLLM beside the trainer serves one training process",
            where=f"{WHERE}.engine",
            found=f"{count} processes",
            next_step=f"start one server for all of them (plyfold rollouts), and set {WHERE}.engine=http",
        )
    if (base.path / "config.json").is_file():
        engine_options(base.path, quantisation.compute_dtype, [rank])
    return {"engine": "vllm", "vllm": version}
