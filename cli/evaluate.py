"""`plyfold eval`: variants of a curriculum scored side by side on held-out problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.config import CurriculumConfig, build_config, load_config
from ..core.console import emit_json, say
from ..core.errors import ConfigError, NotFoundError
from .options import config_option, curriculum_option, json_option, registry_option

if TYPE_CHECKING:
    from ..registry.store import Store


@click.command("eval")
@click.argument("arguments", nargs=-1, metavar="[VARIANT]… [KEY=VALUE]…")
@click.option("--engine", type=click.Choice(["hf", "vllm"]), help="What generates; hf is the reference.")
@click.option("--protocol", help="How to ask; zero-shot.")
@click.option("--limit", type=click.IntRange(min=1), help="Score the first N problems only.")
@click.option("--data", type=click.Path(path_type=Path), help="Problems: a .jsonl, .json, .csv, .tsv or .parquet file.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True)
@config_option
@curriculum_option
@registry_option
@json_option
def eval_command(
    arguments: tuple[str, ...],
    engine: str | None,
    protocol: str | None,
    limit: int | None,
    data: Path | None,
    runs: Path,
    config: str | None,
    curriculum: str | None,
    registry: Path | None,
    as_json: bool,
) -> None:
    """Score variants side by side: base, 1, 1+2, 1+2+3.

    The first variant is what the others are compared with; without any, the base and every step of the curriculum
    are scored. Data, protocol and limits are those the last stage was trained with, or those of -c; KEY=VALUE changes
    them, for example eval.max_new_tokens=256.
    """
    from ..registry.store import find_store
    from ..serving.variants import Variant, find_variant

    store = find_store(registry)
    name = store.default_curriculum(curriculum)
    overrides = [argument for argument in arguments if "=" in argument]
    variants = [find_variant(store, argument, name) for argument in arguments if "=" not in argument]
    numbers = tuple(store.stages(name))
    variants = variants or [Variant(curriculum=name, stages=numbers[:last]) for last in range(len(numbers) + 1)]
    options = {"engine": engine, "protocol": protocol, "limit": limit}
    overrides += [f"eval.{key}={value}" for key, value in options.items() if value is not None]
    settings = _settings(store, name, config, [*_data_overrides(data), *overrides]).eval

    from ..evaluation.report import print_evaluation
    from ..evaluation.scoring import score_variants
    from ..stages.data import load_scored

    try:
        problems, rows = load_scored(settings.data, settings.limit)
    except NotFoundError as error:
        if config is None and data is None:  # a record holds a file's name, not where it lies
            error.next_step = error.next_step or "say where it lies with --data FILE, or name a config with -c FILE"
        raise
    evaluation, folder = score_variants(store, variants, problems, settings, data=rows.ref(), runs=runs)
    if as_json:
        emit_json({"curriculum": name, "folder": str(folder), **evaluation.to_json()})
        return
    print_evaluation(evaluation, name)
    say(f"every answer: {folder}")


def _settings(store: Store, curriculum: str, config: str | None, overrides: list[str]) -> CurriculumConfig:
    if config is not None:
        return load_config(config, overrides)
    stages = store.stages(curriculum)
    entry = store.peek(stages[max(stages)]) if stages else None
    if entry is None or not entry.record.recipe.config:
        raise ConfigError(
            "no stage of this curriculum says what to score on",
            where=curriculum,
            next_step="name a config: -c sandbox, -c gsm8k or -c FILE",
        )
    return build_config(entry.record.recipe.config, overrides, where=f"the record of {entry.record.label}")


def _data_overrides(data: Path | None) -> list[str]:
    """Overrides that put a local file in the place of the configured problems; what named those is forgotten."""
    if data is None:
        return []
    return [
        f"eval.data.path={json.dumps(str(data))}",
        *(f"eval.data.{key}=null" for key in ("name", "revision", "rows")),
    ]
