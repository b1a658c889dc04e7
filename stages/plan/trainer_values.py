"""Values of a stage's `trainer` fields that TRL takes without a word, and that fail or mean nothing once it trains.

TRL checks few of them before it has a model and rows, which in a curriculum is hours after `train` was started.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...core.errors import ConfigError

_Range = tuple[Callable[[float], bool], str]
_ANY: _Range = (lambda value: True, "")
_ABOVE_0: _Range = (lambda value: value > 0, "above 0")
_FROM_0: _Range = (lambda value: value >= 0, "0 or more")
_FROM_1: _Range = (lambda value: value >= 1, "1 or more")
_MOMENT: _Range = (lambda value: 0 <= value < 1, "0 or more and below 1")
_SHARE: _Range = (lambda value: 0 <= value <= 1, "0 to 1")
_NO_EMPTY_SHARE: _Range = (lambda value: 0 < value <= 1, "above 0, 1 at most")

_STEPS: _Range = (lambda value: value == -1 or value >= 1, "1 or more, or -1 for all rows")

_RANGES: dict[str, _Range] = {
    "max_steps": _STEPS,
    **dict.fromkeys(("learning_rate", "adam_epsilon", "num_train_epochs", "logging_steps", "save_steps"), _ABOVE_0),
    **dict.fromkeys(("temperature", "repetition_penalty", "delta", "epsilon_high"), _ABOVE_0),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers"), _FROM_0),
    # A negative beta would pay for every step away from the reference.
    **dict.fromkeys(("beta", "epsilon", "top_k"), _FROM_0),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation"), _FROM_1),
    **dict.fromkeys(("generation_batch_size", "num_generations", "num_iterations"), _FROM_1),
    **dict.fromkeys(("max_completion_length", "max_length"), _FROM_1),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), _MOMENT),
    **dict.fromkeys(("min_p", "label_smoothing_factor"), _SHARE),
    **dict.fromkeys(("top_p", "top_entropy_quantile"), _NO_EMPTY_SHARE),
}
_NEEDED = ("max_completion_length", "num_generations")
"""Fields that TRL lets be null and a stage with rollouts cannot do without."""

CHOICES: dict[str, dict[str, tuple[str | bool | None, ...]]] = {
    "SFTConfig": {
        "loss_type": ("nll", "chunked_nll", "dft"),
        "packing_strategy": ("bfd", "bfd_split", "wrapped"),
        "truncation_mode": ("keep_start", "keep_end"),
        # By length, a resumed pass would have another order.
        "train_sampling_strategy": ("random", "sequential", "batch_rebalance"),
    },
    "GRPOConfig": {
        "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static", "quantized", None),
        "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
        "train_sampling_strategy": ("random",),
        "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
        "scale_rewards": ("group", "batch", "none", True, False),
        "importance_sampling_level": ("token", "sequence"),
    },
}
"""What TRL looks at only in the first step: class -> field -> values."""


def check_value(kind: str, key: str, annotation: Any, value: Any, where: str) -> None:
    """Refuse a value that its field cannot have.

    Args:
        kind: TRL's class, `SFTConfig` or `GRPOConfig`.
        key: Name of the field.
        annotation: Its type.
        value: As the config has it; YAML reads `1e-3` as a number, and `abc` as a text.
        where: What an error names.

    Raises:
        ConfigError: Not of its type, out of its range, or none of its choices.
    """
    choices = CHOICES[kind].get(key)
    if choices is not None and not any(value is choice or value == choice for choice in choices):
        names = ", ".join(choice for choice in choices if isinstance(choice, str))
        raise ConfigError("no such value", where=where, found=value, expected=f"one of {names}")
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    types = {part.strip() for part in text.split("|")}
    if key in _NEEDED:
        types.discard("None")
    if types <= {"int", "float", "None"}:
        _check_number(key, types, value, where)
    elif types <= {"bool", "None"} and not (isinstance(value, bool) or (value is None and "None" in types)):
        raise ConfigError("no such value", where=where, found=value, expected="true or false")


def _check_number(key: str, types: set[str], value: Any, where: str) -> None:
    null = ", or null" if "None" in types else ""
    if value is None and null:
        return
    whole = "float" not in types
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (whole and value != int(value)):
        expected = "a whole number" if whole else "a number"
        raise ConfigError("no such value", where=where, found=value, expected=f"{expected}{null}")
    within, words = _RANGES.get(key, _ANY)
    if not within(value):
        raise ConfigError("no such value", where=where, found=value, expected=f"{words}{null}")
