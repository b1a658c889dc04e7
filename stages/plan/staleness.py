"""The digest of everything that decides a stage's weights but its parents: what makes it stale when it changes."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from ...adapters.base.resolve import Quantisation
from ...core.config import LINEAR_MODULES, CurriculumConfig, MiningConfig, StageConfig, build_config
from ...core.differences import differences
from ...core.disk.digest import digest_json
from ...core.errors import ConfigError
from ...evaluation.protocols import protocol
from ...registry.record import Record
from ..mining.mining import MEASURING
from ..prompts.tasks import UNUSED

RECIPE_FORMAT = 5
"""Raised when equal configurations come to mean other training, so that stages made before count as stale."""

_UNDECIDING = {"save_steps", "save_total_limit", "save_strategy", "logging_steps", "logging_strategy", "report_to",
               "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
               "log_completions", "dataloader_num_workers", "gradient_checkpointing", "ddp_timeout",
               "logging_first_step", "num_generations_eval", "dataloader_pin_memory", "dataloader_persistent_workers",
               "dataloader_prefetch_factor", "log_level", "log_level_replica", "log_on_each_node", "log_multimodal",
               "log_unique_prompts", "log_completions_hub_repo", "skip_memory_metrics", "torch_empty_cache_steps",
               "activation_offloading"}  # fmt: skip
"""Trainer fields that leave the weights alone."""

_ADDED: dict[str, dict[str, Any]] = {
    "reward": {"mode": "continuous"},
    "mining": {"confirm": None, "wrong_share": 0.5, "held_out_share": 0.0, "rehearsal_share": 0.0},
}  # fmt: skip
"""Fields newer than the recipe format, at the values that mean what lacking them meant."""


def digest_on_record(record: Record) -> str:
    """The `recipe.config_digest` that the configuration on a stage's record makes, by this version's rules.

    Raises:
        ConfigError: A configuration this version cannot read, or without that stage.
    """
    return digest_json(_recipe_on_record(record))


def what_changed(record: Record, wanted: dict[str, Any]) -> list[str]:
    """What makes a stage stale that was trained as its record says: `trainer.max_steps 12 -> 3`.

    Args:
        record: Of the stage as it was trained.
        wanted: The `recipe` it would be trained by now.
    """
    try:
        before = _recipe_on_record(record)
    except ConfigError:
        return []
    found = [(each.field.removeprefix("stage."), each.first, each.second) for each in differences(before, wanted)]
    return ["its rows" if field == "rows" else f"{field} {_shown(first)} -> {_shown(second)}"
            for field, first, second in found]  # fmt: skip


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _recipe_on_record(record: Record) -> dict[str, Any]:
    try:
        config = build_config(record.recipe.config, where=f"the record of {record.label}")
        quantisation = Quantisation(**(record.base.quantisation or {}))  # type: ignore[arg-type]
        (stage,) = (item for item in config.stages.values() if record.stage and item.number == record.stage.number)
        (rows,) = record.data
        full = replace(stage, data=stage.data or config.data, adapter=stage.adapter or config.adapter)
        return recipe(full, config, (record.base.repo, record.base.revision), quantisation, rows.sha256)
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("the record does not say how its stage was configured", where=record.label) from error


def _place(target: str) -> tuple[int, str]:
    return (LINEAR_MODULES.index(target) if target in LINEAR_MODULES else len(LINEAR_MODULES)), target


def recipe_digest(
    stage: StageConfig, config: CurriculumConfig, base: tuple[str, str], quantisation: Quantisation, rows: str
) -> str:
    """Digest of a stage's `recipe`."""
    return digest_json(recipe(stage, config, base, quantisation, rows))


def recipe(
    stage: StageConfig, config: CurriculumConfig, base: tuple[str, str], quantisation: Quantisation, rows: str
) -> dict[str, Any]:
    """All that decides a stage's weights but its parents.

    Args:
        stage: With its data and adapter filled in.
        config: The curriculum.
        base: Repository and revision.
        quantisation: Of the base.
        rows: Digest of the rows.
    """
    decisive = asdict(stage)
    # The rows' own digest stands for the data; a gate decides no weights.
    for key in ("data", "gate", *UNUSED[stage.task]):
        del decisive[key]
    if stage.adapter:  # in any order they are the same modules; the default's is the one in digests so far
        decisive["adapter"]["targets"] = sorted(stage.adapter.targets, key=_place)
    if "mining" in decisive:  # an error or none; it was counted as deciding, so its default stands in every digest
        decisive["mining"]["minimum"] = MiningConfig().minimum
    for section, added in _ADDED.items():
        if section in decisive:
            decisive[section] = {key: value for key, value in decisive[section].items()
                                 if key not in MEASURING and (key not in added or value != added[key])}  # fmt: skip
    decisive["trainer"] = {key: value for key, value in stage.trainer.items() if key not in _UNDECIDING}
    return {
        "format": RECIPE_FORMAT,
        "base": [*base, quantisation.digest()],
        "stage": decisive,
        "rows": rows,
        "protocol": protocol(config.eval.protocol).digest(),
        "seed": config.seed,
    }
